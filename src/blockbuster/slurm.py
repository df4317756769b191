"""What SLURM says: of a job script before it is submitted, of jobs in its queue, and of those that have ended."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from blockbuster.errors import ParameterError, SchedulerError

__all__ = [
    "NEVER_STARTS",
    "JobState",
    "cancel_jobs",
    "check_installed",
    "check_interface",
    "check_script",
    "interface_to_controller",
    "job_states",
    "refusal",
    "walltime_seconds",
]

# Seconds that a command of SLURM may take; a controller under load answers late.
_PATIENCE = 60
# Reasons of pending jobs that no waiting resolves, as `squeue` names them.
NEVER_STARTS = frozenset(
    {
        "AccountNotAllowed",
        "BadConstraints",
        "DependencyNeverSatisfied",
        "InvalidAccount",
        "InvalidQOS",
        "JobHeldAdmin",
        "JobHeldUser",
        "PartitionConfig",
        "PartitionDown",
        "PartitionInactive",
        "PartitionNodeLimit",
        "PartitionTimeLimit",
        "QOSNotAllowed",
        "QOSMaxCpuPerJobLimit",
        "QOSMaxMemoryPerJob",
        "QOSMaxNodePerJobLimit",
        "QOSMaxWallDurationPerJobLimit",
        "launch failed requeued held",
    }
)


_ENDED = frozenset(
    {
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
    }
)


@dataclass(frozen=True)
class JobState:
    """What SLURM says of one job.

    Attributes
    ----------
    state : str
        "PENDING", "RUNNING", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", ...
    reason : str
        Why it is in that state; "None" where there is nothing to say.
    node : str
        Where it runs or ran; "" where it never did.
    """

    job_id: str
    state: str
    reason: str
    node: str
    exit_code: str

    @property
    def has_ended(self) -> bool:
        """Whether it will run no more."""
        return self.state.split()[0].rstrip("+") in _ENDED

    @property
    def never_starts(self) -> bool:
        """Whether it is pending for a reason that no waiting resolves."""
        return self.state == "PENDING" and self.reason.split(",")[0] in NEVER_STARTS

    def __str__(self) -> str:
        why = "" if self.reason in ("None", "") else f" ({self.reason})"
        where = f" on node {self.node}" if self.node else ""
        code = f", exit code {self.exit_code}" if self.has_ended and self.exit_code != "0:0" else ""
        return f"job {self.job_id} is {self.state}{why}{where}{code}"


def check_installed() -> None:
    """Refuse a machine that cannot submit jobs.

    Raises
    ------
    SchedulerError
        If it has no ``sbatch``.
    """
    if shutil.which("sbatch") is None:
        raise SchedulerError(
            f"There is no sbatch on {socket.gethostname()}, so no job can be submitted from here. Run this on a login "
            "node of a SLURM cluster, or load the module that has SLURM's commands; make_local_cluster() needs none."
        )


def check_script(script: str) -> None:
    """Ask SLURM whether it would take a job script, without submitting it.

    Raises
    ------
    SchedulerError
        With what SLURM says against it.
    """
    answer = _call(["sbatch", "--test-only"], script)
    if answer.returncode:
        raise SchedulerError(f"{refusal(answer.stderr)}\nThe job script was:\n{_directives(script)}")


def refusal(said: str) -> str:
    """The words for a job that SLURM does not take."""
    words = "; ".join(line.removeprefix("sbatch: error: ") for line in said.strip().splitlines() if line)
    return (
        f"SLURM refused the job: {words}. Change cores, memory, walltime, queue= (partition) or account= to what "
        "`sinfo -o '%P %l %c %m %G'` says there is."
    )


def job_states(job_ids: Sequence[str]) -> dict[str, JobState]:
    """What SLURM says of some jobs; those that it has forgotten are left out."""
    found = {}
    if job_ids:
        listed = _call(["squeue", "--noheader", "--states=all", f"--jobs={','.join(job_ids)}", "-o", "%i|%T|%r|%N"])
        for line in listed.stdout.splitlines():
            told = line.split("|")
            if len(told) == 4:
                job_id, state, reason, node = told
                found[job_id] = JobState(job_id, state, reason, node, "0:0")
    for job_id in job_ids:
        if job_id not in found or found[job_id].has_ended:
            shown = _told_of(job_id)
            if shown is not None:
                found[job_id] = shown
    return found


def _told_of(job_id: str) -> JobState | None:
    answer = _call(["scontrol", "--oneliner", "show", "job", job_id])
    if answer.returncode:
        return None
    facts = dict(re.findall(r"(\w+)=(\S*)", answer.stdout))
    node = facts.get("NodeList", "")
    return JobState(
        job_id=job_id,
        state=facts.get("JobState", "UNKNOWN"),
        reason=facts.get("Reason", "None"),
        node="" if node == "(null)" else node,
        exit_code=facts.get("ExitCode", "0:0"),
    )


def cancel_jobs(name: str, job_ids: Sequence[str]) -> None:
    """End those of some jobs of this user that have this name: a number may be another job's by now."""
    if job_ids:
        _call(["scancel", "--me", f"--name={name}", *job_ids])


def interface_to_controller() -> str:
    """The network interface by which this machine reaches SLURM's controller.

    Raises
    ------
    SchedulerError
        If it cannot be found out.
    """
    answer = _call(["scontrol", "show", "config"])
    named = re.search(r"^(?:SlurmctldHost\[0\]|ControlMachine)\s*=\s*([^\s(]+)(?:\(([^)]+)\))?", answer.stdout, re.M)
    if named is not None:
        try:
            address = _own_address_towards(named.group(2) or named.group(1))
        except OSError:
            address = None
        for interface, addresses in psutil.net_if_addrs().items():
            if any(one.address == address for one in addresses):
                return interface
    raise SchedulerError(
        "It cannot be found out which network interface leads to the nodes: `scontrol show config` says "
        f"{answer.stderr.strip() or answer.stdout.strip()[:200]!r}. Give interface=, one of {_interfaces()}."
    )


def _own_address_towards(host: str) -> str:
    family, kind, protocol, _, address = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        # Nothing is sent: the kernel only chooses the route.
        probe.connect(address)
        own: str = probe.getsockname()[0]
        return own


def check_interface(interface: str) -> None:
    """Refuse an interface that this machine does not have.

    Raises
    ------
    ParameterError
        Naming those that it has.
    """
    if interface not in psutil.net_if_addrs():
        raise ParameterError(f"interface {interface!r} is none of this machine, which has {_interfaces()}.")


def _interfaces() -> str:
    return ", ".join(sorted(psutil.net_if_addrs()))


def walltime_seconds(walltime: str | int) -> int | None:
    """Seconds of a time as SLURM takes it; None for one without limit.

    Parameters
    ----------
    walltime : str or int
        Minutes, "minutes:seconds", "hours:minutes:seconds", "days-hours", "days-hours:minutes", or
        "days-hours:minutes:seconds".

    Raises
    ------
    ParameterError
        If it is none of these.

    Examples
    --------
    >>> walltime_seconds("1-06:30:00"), walltime_seconds("04:00:00"), walltime_seconds(90)
    (109800, 14400, 5400)
    """
    text = str(walltime).strip()
    if text.lower() in ("infinite", "unlimited"):
        return None
    days, has_days, rest = text.rpartition("-")
    parts = rest.split(":")
    if not all(part.isdigit() for part in [*parts, days or "0"]) or len(parts) > 3:
        raise ParameterError(
            f"walltime {walltime!r} is no time that SLURM knows. Give minutes, or words such as '04:00:00' or "
            "'1-12:00:00'."
        )
    numbers = [int(part) for part in parts]
    if has_days:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, (minutes, seconds) = 0, [*numbers, 0][:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def _directives(script: str) -> str:
    return "\n".join(line for line in script.splitlines() if line.startswith("#SBATCH"))


def _call(command: Sequence[str], given: str = "") -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, input=given, capture_output=True, text=True, check=False, timeout=_PATIENCE)
    except (subprocess.TimeoutExpired, FileNotFoundError) as error:
        raise SchedulerError(f"SLURM does not answer `{' '.join(command)}`: {error}") from error
