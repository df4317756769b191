#!/usr/bin/env bash
# Installs what windows of Qt need to be drawn without a screen, where it is not there yet. Needs root, and Debian.
set -euo pipefail

packages=(
    # OpenGL, in software, and what Qt links to
    libgl1 libegl1 libglib2.0-0 libdbus-1-3 libfontconfig1 libxkbcommon0 libgssapi-krb5-2
    # a display, and what Qt needs to speak to it
    xvfb xauth libxkbcommon-x11-0 libxcb-cursor0 libxcb-icccm4 libxcb-keysyms1 libxcb-shape0
)

missing=()
for package in "${packages[@]}"; do
    dpkg-query --show --showformat='${Status}' "$package" 2>/dev/null | grep -q '^install ok installed' || missing+=("$package")
done
((${#missing[@]})) || exit 0
echo "Installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update --quiet=2
apt-get install --quiet=2 --yes --no-install-recommends "${missing[@]}" >/dev/null
