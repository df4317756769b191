#!/usr/bin/env bash
# Starts a real SLURM of a few nodes on this one machine, for the tests: loopback only, no systemd. Needs root, and
# Debian where programs are missing. Installs only what is missing, starts only what is not running, and returns once
# the nodes are idle. One of ours that runs with another configuration is replaced if it has no jobs; a SLURM that is
# not ours is never touched.
#
# SLURM_LOCAL_NODES   2  nodes, one slurmd each: with two, one can be lost
# SLURM_LOCAL_NO_APT  0  1: install nothing, and fail where a program is missing
set -euo pipefail
# shellcheck source=tests/slurm/common.sh
. "$(dirname "$0")/common.sh"

NODES=${SLURM_LOCAL_NODES:-2}
JOBS_PER_CPU=4
PATIENCE=60 # seconds
CTLD_PORT=6817
FIRST_SLURMD_PORT=6818

install_missing() {
    local missing=() program
    for program in munged:munge slurmctld:slurmctld slurmd:slurmd sbatch:slurm-client; do
        command -v "${program%%:*}" >/dev/null || missing+=("${program##*:}")
    done
    [ "${#missing[@]}" -gt 0 ] || return 0
    [ "${SLURM_LOCAL_NO_APT:-0}" = 0 ] || die "missing packages: ${missing[*]}"
    command -v apt-get >/dev/null || die "missing programs of ${missing[*]}, and there is no apt-get to install them"
    say "installing ${missing[*]}"
    without_services apt_install "${missing[@]}"
}

without_services() { # without_services COMMAND...: the packages' own services must not start
    local policy=/usr/sbin/policy-rc.d status=0
    if [ -e $policy ]; then
        "$@"
        return
    fi
    printf '#!/bin/sh\nexit 101\n' >$policy
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    chmod 755 $policy
    "$@" || status=$?
    rm -f $policy
    trap - EXIT
    return $status
}

apt_install() {
    local log
    log=$(mktemp)
    # The lists of packages may be old, or none.
    apt_get install -y --no-install-recommends "$@" >"$log" 2>&1 ||
        { apt_get update >>"$log" 2>&1 && apt_get install -y --no-install-recommends "$@" >>"$log" 2>&1; } ||
        { tail -n 30 "$log" >&2 && die "apt-get could not install $*"; }
    rm -f "$log"
}

apt_get() { DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=120 "$@" 9>&-; }

make_folders() {
    install -d -m 755 $BASE $BASE/log $BASE/spool $RUN $RUN/slurmd /etc/slurm
    install -d -m 755 -o slurm -g slurm $BASE/ctld $BASE/log/ctld $RUN/ctld
    install -d -m 700 -o munge -g munge $BASE/munge $BASE/log/munge
    install -d -m 755 -o munge -g munge $RUN/munge
}

memory_per_node() { # MiB: what is available but for a margin
    free -m | awk -v n="$NODES" '/^Mem:/ {m = ($7 * 0.9 - 512) / n; m -= m % 256; print int(m < 512 ? 512 : m)}'
}

settings() { # all of slurm.conf but the memory of nodes, which differs from start to start
    local host
    host=$(hostname -s)
    cat <<CONF
$MARK
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$CTLD_PORT
# Listen on the addresses named here, not on all.
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=slurm
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$RUN/munge/munge.socket.2
StateSaveLocation=$BASE/ctld
SlurmdSpoolDir=$BASE/spool/%n
SlurmctldPidFile=$RUN/ctld/slurmctld.pid
SlurmdPidFile=$RUN/slurmd/%n.pid
SlurmctldLogFile=$BASE/log/ctld/slurmctld.log
SlurmdLogFile=$BASE/log/slurmd-%n.log
MailProg=/bin/true
# No cgroups and no binding to CPUs: the processes of a job are those of its process group, which they keep when the
# shell of the job ends before them. Ended jobs go into a text file in place of an accounting daemon.
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobCompType=jobcomp/filetxt
JobCompLoc=$BASE/log/ctld/jobcomp.log
# Each second, a job that has more than its memory is killed.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
# More CPUs than there are would be believed, and a node that was lost comes back by itself.
SlurmdParameters=config_overrides
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
# Quick reactions.
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=1
PriorityType=priority/basic
KillWait=5
MinJobAge=30
CompleteWait=0
InactiveLimit=0
SlurmctldTimeout=30
SlurmdTimeout=30
MessageTimeout=10
JobRequeue=0
CONF
    local k
    for ((k = 1; k <= NODES; k++)); do
        echo "NodeName=node$k NodeHostname=$host NodeAddr=127.0.0.1 Port=$((FIRST_SLURMD_PORT + k - 1))" \
            "CPUs=$(nproc) State=UNKNOWN"
    done
    # LLN: the next job goes to the least loaded node, or all small jobs would be on the first.
    echo "PartitionName=main Nodes=$(node_names) Default=YES MaxTime=INFINITE DefaultTime=60 State=UP LLN=YES" \
        "OverSubscribe=FORCE:$JOBS_PER_CPU DefMemPerCPU=256"
}

node_names() { seq -s, -f 'node%g' 1 "$NODES"; }

has_these_settings() { [ "$(sed 's/ RealMemory=[0-9]*//' $CONF 2>/dev/null)" = "$(settings)" ]; }

write_conf() {
    settings | sed "/^NodeName=/s/ State=/ RealMemory=$(memory_per_node) State=/" >$CONF.new
    mv $CONF.new $CONF
    # slurmd loads a plugin for cgroups though nothing uses it, and ends on some machines if it has to find out which.
    # "disabled" is known since 24.05; before, naming v1 does.
    local version plugin=disabled
    version=$(slurmd -V | grep -oE '[0-9]+\.[0-9]+' | head -n 1)
    awk -v v="$version" 'BEGIN {exit v + 0 >= 24.05}' && plugin=cgroup/v1
    printf '%s\n' "$MARK" "CgroupPlugin=$plugin" >$CGROUP_CONF
}

replace_if_different() {
    alive $RUN/ctld/slurmctld.pid slurmctld || return 0
    ! has_these_settings || return 0
    [ -z "$(timeout 10 squeue -h)" ] ||
        die 'a SLURM of ours runs with another configuration, and has jobs: end it with stop-slurm.sh'
    say 'a SLURM of ours runs with another configuration: replacing it'
    "$(dirname "$0")/stop-slurm.sh" 9>&-
}

start_munge() {
    local socket=$RUN/munge/munge.socket.2 key=$BASE/munge/munge.key
    if [ ! -s $key ]; then
        (umask 077 && dd if=/dev/urandom of=$key bs=1 count=1024 status=none)
        chown munge:munge $key
        chmod 400 $key
    fi
    if ! alive $RUN/munge/munged.pid munged; then
        rm -f $socket $socket.lock $RUN/munge/munged.pid
        setpriv --reuid=munge --regid=munge --clear-groups -- \
            munged --key-file=$key --socket=$socket --pid-file=$RUN/munge/munged.pid \
            --log-file=$BASE/log/munge/munged.log --seed-file=$BASE/munge/munged.seed 9>&-
    fi
    munge -S $socket -n | unmunge -S $socket >/dev/null || fail "munge does not answer" $BASE/log/munge/munged.log
}

start_daemons() {
    if ! alive $RUN/ctld/slurmctld.pid slurmctld; then
        rm -f $RUN/ctld/slurmctld.pid
        write_conf
        slurmctld </dev/null >/dev/null 2>&1 9>&- || fail 'slurmctld does not start' $BASE/log/ctld/slurmctld.log
    fi
    local node
    for node in $(node_names | tr , ' '); do
        ! alive "$RUN/slurmd/$node.pid" slurmd || continue
        rm -f "$RUN/slurmd/$node.pid"
        install -d -m 755 "$BASE/spool/$node"
        slurmd -N "$node" </dev/null >/dev/null 2>&1 9>&- ||
            fail "slurmd of $node does not start" "$BASE/log/slurmd-$node.log"
    done
}

wait_for_nodes() {
    local up end=$((SECONDS + PATIENCE))
    while :; do
        # Nodes with jobs are up too: of a second call while tests run. "*" behind a state means: no answer.
        up=$(timeout 10 sinfo -h -N -o %T 2>/dev/null | grep -cxE 'idle|mixed|allocated' || true)
        [ "$up" -lt "$NODES" ] || return 0
        [ $SECONDS -lt $end ] || break
        sleep 0.2
    done
    sinfo -N -l >&2 || true
    sinfo -R >&2 || true
    fail "only $up of $NODES nodes are up after $PATIENCE s" $BASE/log/ctld/slurmctld.log $BASE/log/slurmd-*.log
}

fail() { # fail MESSAGE LOG...: ends the script with the tail of logs
    local message=$1
    shift
    tail -n 20 "$@" >&2 || true
    die "$message"
}

# One start at a time. No daemon may inherit the lock: hence 9>&-.
exec 9>/run/slurm-local.lock
flock -w 300 9 || die 'another start-slurm.sh has been running for 300 s'
refuse_other_slurm
install_missing
make_folders
replace_if_different
start_munge
start_daemons
wait_for_nodes
say "$(sinfo --version) is up: $NODES nodes, logs in $BASE/log"
