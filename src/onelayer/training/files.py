"""Files that are whole or not there."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

PARTIAL = ".tmp"
"""Ending of a file that is being written; what a kill leaves of it, the next writing replaces."""


def atomic_write(path: str | Path, content: str | bytes | memoryview) -> None:
    """Write a file beside its target, sync and rename it: a reader never sees half of it.

    Processes that write one file take turns; the last one's stays.

    Args:
        path: of the file; its folder is made if need be.
        content: text is written in UTF-8, with its line ends as they are.

    Raises:
        OSError: naming the file, if it cannot be written; the target stays as it was.
    """
    with named(path):
        _write(Path(path), content)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON, complete or not at all."""
    atomic_write(path, json.dumps(content, indent=2) + "\n")


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
    with _alone(temporary) as file:
        try:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # so that the new name survives a loss of power
    finally:
        os.close(folder)


@contextmanager
def _alone(path: Path) -> Iterator[BinaryIO]:
    """Open an empty file to write, when no other process writes it; a kill ends that, too."""
    while True:
        with path.open("ab") as file:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_still(path, file):
                continue  # the other has renamed what was waited for
            file.truncate(0)
            yield file
            return


def _is_still(path: Path, file: BinaryIO) -> bool:
    """Return whether an open file is the one of that name."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False
