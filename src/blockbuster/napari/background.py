"""One call in a thread of its own, which tells the thread of the window how far it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from qtpy.QtCore import QObject, Signal

__all__ = ["NAME", "Background", "Cancelled"]

# Of the threads.
NAME = "blockbuster-napari"
_INTERVAL = 0.1


class Cancelled(Exception):  # noqa: N818 - it is what was asked for
    """Somebody does not want a result any more."""


class Background(QObject):
    """Makes one call at a time.

    A thread, not a generator of superqt: that takes a RuntimeError of the function for its own end, and tells nobody.

    Attributes
    ----------
    progressed, returned, failed : Signal
        With what the call reports, returns and raises.
    cancelled : Signal
        The call has ended since it was cancelled.
    is_running : bool
        Whether a call has not ended, or its end has not been told.
    """

    progressed = Signal(object)
    returned = Signal(object)
    failed = Signal(object)
    cancelled = Signal()

    def __init__(self) -> None:
        # Without a parent: a thread may still need it when the window is gone.
        super().__init__()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self.is_running = False
        for ended in (self.returned, self.failed, self.cancelled):
            ended.connect(self._ended)

    def start(self, call: Callable[[Callable[[Any], None]], Any]) -> None:
        """Make a call; it is given a function to report with, which raises `Cancelled` when it is to end."""
        assert not self.is_running
        self.is_running = True
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(call, self._stop), name=NAME)
        self._thread.start()

    def cancel(self) -> None:
        """Let the call end with the next report."""
        self._stop.set()

    def _work(self, call: Callable[[Callable[[Any], None]], Any], stop: threading.Event) -> None:
        reported = 0.0

        def report(value: Any) -> None:
            nonlocal reported
            if stop.is_set():
                raise Cancelled
            if time.monotonic() - reported > _INTERVAL:
                reported = time.monotonic()
                self.progressed.emit(value)

        signal, told = self._outcome(call, report)
        signal.emit(*told)

    def _ended(self, *_told: Any) -> None:
        # In the thread of the window, before anybody else is told.
        self.is_running = False

    def _outcome(
        self, call: Callable[[Callable[[Any], None]], Any], report: Callable[[Any], None]
    ) -> tuple[Any, list[Any]]:
        try:
            return self.returned, [call(report)]
        except Cancelled:
            return self.cancelled, []
        except Exception as error:  # noqa: BLE001 - whatever it is, a person reads it in the window
            return self.failed, [error]
