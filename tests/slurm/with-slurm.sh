#!/usr/bin/env bash
# with-slurm.sh COMMAND...: runs a command while the SLURM of start-slurm.sh is up, and ends it afterwards, also when
# the command fails or is interrupted. One that was up before, with the same configuration, stays up. Needs root.
set -euo pipefail
# shellcheck source=tests/slurm/common.sh
. "$(dirname "$0")/common.sh"
here=$(dirname "$0")

controller() { pid_of $RUN/ctld/slurmctld.pid slurmctld; }

stop() {
    [ -n "$before" ] && [ "$(controller)" = "$before" ] || "$here/stop-slurm.sh" "$@"
}

before=$(controller)
trap stop EXIT
trap 'exit 130' INT TERM
"$here/start-slurm.sh"

# A process group of its own: an interrupt is passed on, and what the command has to clean up is waited for.
set -m
"$@" </dev/null &
command=$!
set +m
interrupted=0
trap 'interrupted=130; kill -INT -- "-$command" 2>/dev/null || true' INT TERM
status=0
wait "$command" || status=$?
# A signal ends "wait" before the command has ended.
while kill -0 "$command" 2>/dev/null; do
    status=0
    wait "$command" || status=$?
done
trap '' INT TERM
exit $((interrupted ? interrupted : status))
