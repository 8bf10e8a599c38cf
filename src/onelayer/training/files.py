"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".tmp"
"""Ending of a file that is being written; what a kill leaves of it, the next writing replaces."""


def atomic_write(path: str | Path, content: str | bytes | memoryview) -> None:
    """Write a file beside its target, sync and rename it: a reader never sees half of it.

    Two processes must not write one file at the same time.

    Args:
        path: of the file; its folder is made if need be.
        content: text is written in UTF-8, with its line ends as they are.

    Raises:
        OSError: naming the file, if it cannot be written; the target stays as it was.
    """
    with named(path):
        _write(Path(path), content)


@contextmanager
def named(path: str | Path) -> Iterator[None]:
    """Put the file's name in an OSError that has none, as that of a full disk."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _write(path: Path, content: str | bytes | memoryview) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}{PARTIAL}")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # so that the new name survives a loss of power
        finally:
            os.close(folder)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
