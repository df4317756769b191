"""dask-jobqueue, without what its import does to this process: it takes over the handlers of signals."""

from __future__ import annotations

import signal
import sys
import threading

from blockbuster.errors import SchedulerError

__all__ = ["SLURMCluster", "SLURMJob"]

if "dask_jobqueue" not in sys.modules and threading.current_thread() is not threading.main_thread():
    raise SchedulerError(
        "dask-jobqueue can be imported in the main thread only, and this is another one. Import dask_jobqueue at the "
        "top of the program."
    )
_before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
try:
    from dask_jobqueue.slurm import SLURMCluster, SLURMJob
except ModuleNotFoundError as error:
    raise SchedulerError("make_slurm_cluster needs dask-jobqueue: pip install 'blockbuster-imaging[slurm]'.") from error
for _number, _handler in _before.items():
    if signal.getsignal(_number) is not _handler:
        signal.signal(_number, _handler)
