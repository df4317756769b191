# Sourced by the other scripts: where the SLURM of the tests keeps what it has, and whether it is ours.

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
BASE=/var/lib/slurm-local # state, spool, logs, munge key
RUN=/run/slurm-local      # pid files, munge socket
# The path that Debian compiles in, so that sbatch, and dask-jobqueue which calls it, need no SLURM_CONF.
CONF=/etc/slurm/slurm.conf
CGROUP_CONF=/etc/slurm/cgroup.conf
MARK='# written by start-slurm.sh (slurm-local): do not edit'

say() { printf '%s: %s\n' "${0##*/}" "$*"; }
die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

is_ours() { # is_ours FILE: did start-slurm.sh write this file?
    grep -qxF "$MARK" "$1" 2>/dev/null
}

pid_of() { # pid_of PIDFILE NAME: prints the pid if it is that of a living process of this program
    local pid
    pid=$(tr -dc 0-9 2>/dev/null <"$1") || return 0
    [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$2" ] || return 0
    echo "$pid"
}

alive() { [ -n "$(pid_of "$1" "$2")" ]; }

others() { # others NAME PIDFILE...: prints the pids of processes of this program that are in none of the pid files
    local name=$1 ours
    shift
    ours=$(cat "$@" 2>/dev/null | tr -c '0-9\n' '\n')
    # Zombies are what is left where daemons put themselves into the background.
    ps -C "$name" -o pid=,stat= | awk '$2 !~ /^Z/ {print $1}' | grep -vxF -e "${ours:-none}" || true
}

refuse_other_slurm() { # ends the script if there is another SLURM on this machine: it is never touched
    [ -z "${SLURM_CONF:-}" ] || die "SLURM_CONF=$SLURM_CONF names another SLURM: unset it, or use a machine without one"
    for file in "$CONF" "$CGROUP_CONF"; do
        [ ! -e "$file" ] || is_ours "$file" || die "$file is not ours: there is another SLURM on this machine"
    done
    [ ! -e /run/slurm/conf/slurm.conf ] || die "/run/slurm/conf exists: there is another SLURM on this machine"
    local pids
    pids=$(others slurmctld "$RUN/ctld/slurmctld.pid" && others slurmd "$RUN"/slurmd/*.pid)
    [ -z "$pids" ] || die "another SLURM runs on this machine: processes ${pids//$'\n'/ }"
}

[ "$(id -u)" = 0 ] || die 'must run as root'
