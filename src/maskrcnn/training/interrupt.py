"""SIGTERM and SIGINT during training: the first asks for a checkpoint and the end, a second one ends at once.

Several processes end after the same step, whichever of them had the signal. `torchrun` passes it on, waits for them
(30 seconds), and ends with a trace and a status of its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

from maskrcnn.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A launcher passes on what the terminal or the cluster has sent to every process already.
ECHO_SECONDS = 1.0


class StopRequest:
    """Take the signals while the block runs; in a thread other than the main one, where Python has none, do nothing.

    echoes: signals within a second of the first are the first one's echoes.
    """

    def __init__(self, *, echoes: bool = False) -> None:
        self.signal: signal.Signals | None = None
        self._echoes, self._at, self._may_raise = echoes, 0.0, False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise `Interrupted` in the block as soon as a signal has come: it may be left anywhere."""
        try:
            self._may_raise = True
            if self.signal is not None:
                raise Interrupted(self.signal)
            yield
        finally:
            self._may_raise = False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._at = signal.Signals(number), time.monotonic()
            if self._may_raise:
                raise Interrupted(self.signal)
        elif not self._echoes or time.monotonic() - self._at > ECHO_SECONDS:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
