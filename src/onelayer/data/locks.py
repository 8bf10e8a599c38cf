"""Locks between processes, which the kernel releases when the process ends, however it ends."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def alone(path: Path, waiting: str) -> Iterator[None]:
    """Hold the lock of a file, which stays; where another process holds it, say so and wait.

    Args:
        path: of the file; made if need be.
        waiting: what to say on stderr.

    Raises:
        OSError: the file cannot be made, or its file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0.5)
    except Timeout:
        print(waiting, file=sys.stderr, flush=True)
        lock.acquire()
    except NotImplementedError as error:
        raise OSError(str(error)) from None
    try:
        yield
    finally:
        lock.release()
