"""Ctrl+C and SIGTERM while a training runs: the first lets it save, the second just stops it."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):  # noqa: N818 - no error
    """A training that a signal has stopped, after it saved a checkpoint.

    Args:
        signum: the signal.
        step: updates done.
        checkpoint: what to go on from.
    """

    def __init__(self, signum: int, step: int, checkpoint: str) -> None:
        super().__init__(f"stopped after {step} updates: {checkpoint}")
        self.signum, self.step, self.checkpoint = signum, step, checkpoint


class Terminated(KeyboardInterrupt):
    """SIGTERM where nothing was there to be saved: what Ctrl+C is there."""

    signum = signal.SIGTERM


class StopRequest:
    """Remembers the first SIGINT or SIGTERM instead of letting it cut an update in two.

    Attributes:
        signum: the signal received, or 0.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._before: dict[int, Any] = {}

    def watch(self) -> None:
        """Take over the signals. Only a main thread can."""
        if threading.current_thread() is threading.main_thread() and not self._before:
            self.signum = 0
            self._before = {signum: signal.signal(signum, self._remember) for signum in SIGNALS}

    def release(self) -> None:
        """Give the signals back."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        self.release()  # a second signal acts at once
        self.signum = signum
