"""Ctrl+C and SIGTERM during a fit: the first saves and stops, the second stops at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Exception):  # noqa: N818 - no error
    """A fit that a signal has stopped, after it saved a checkpoint.

    Args:
        signum: the signal.
        step: updates done.
        checkpoint: file to resume from.
    """

    def __init__(self, signum: int, step: int, checkpoint: str) -> None:
        super().__init__(f"stopped after {step} updates: {checkpoint}")
        self.signum, self.step, self.checkpoint = signum, step, checkpoint


class Terminated(KeyboardInterrupt):
    """SIGTERM with nothing to save, handled like Ctrl+C."""

    signum = signal.SIGTERM


class StopRequest:
    """Memory of the first SIGINT or SIGTERM, which then cannot interrupt an update.

    Attributes:
        signum: the signal received, or 0.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._before: dict[int, Any] = {}

    def watch(self) -> None:
        """Install the signal handlers. Only a main thread can."""
        if threading.current_thread() is threading.main_thread() and not self._before:
            self.signum = 0
            self._before = {signum: signal.signal(signum, self._remember) for signum in SIGNALS}

    def release(self) -> None:
        """Restore the signal handlers."""
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before = {}

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        self.release()  # a second signal acts at once
        self.signum = signum
