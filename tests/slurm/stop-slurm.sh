#!/usr/bin/env bash
# Ends the SLURM of start-slurm.sh: its jobs, then its daemons, by their pid files. Needs root. May run again.
#   stop-slurm.sh          keeps the configuration and the logs
#   stop-slurm.sh --purge  removes them
set -euo pipefail
# shellcheck source=tests/slurm/common.sh
. "$(dirname "$0")/common.sh"

cancel_jobs() { # what runs a job outlives its slurmd
    alive $RUN/ctld/slurmctld.pid slurmctld && is_ours $CONF || return 0
    timeout 10 squeue -h -o %A 2>/dev/null | xargs --no-run-if-empty timeout 10 scancel || true
    local i
    for ((i = 0; i < 100; i++)); do
        [ -n "$(timeout 10 squeue -h 2>/dev/null)" ] || return 0
        sleep 0.2
    done
}

end() { # end PIDFILE NAME: SIGTERM, and SIGKILL after 15 s
    local pid i
    pid=$(pid_of "$1" "$2")
    rm -f "$1"
    [ -n "$pid" ] || return 0
    kill "$pid" 2>/dev/null || true
    for ((i = 0; i < 150; i++)); do
        [ -e "/proc/$pid" ] || break
        sleep 0.1
    done
    [ ! -e "/proc/$pid" ] || kill -9 "$pid" 2>/dev/null || true
    say "ended $2 ($pid)"
}

purge() {
    local file
    for file in $CONF $CGROUP_CONF; do
        ! is_ours $file || rm -f $file
    done
    rm -rf $BASE $RUN
}

unset SLURM_CONF
cancel_jobs
for file in $RUN/slurmd/*.pid; do
    [ ! -e "$file" ] || end "$file" slurmd
done
end $RUN/ctld/slurmctld.pid slurmctld
end $RUN/munge/munged.pid munged
rm -f $RUN/munge/munge.socket.2 $RUN/munge/munge.socket.2.lock
[ "${1:-}" != --purge ] || purge
