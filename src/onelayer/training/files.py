"""Files that are complete or not there."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

PARTIAL = ".tmp"  # ending of a file that is being written; the next write replaces leftovers


def atomic_write(path: str | Path, content: str | bytes | memoryview) -> None:
    """Write a file beside its target, sync and rename it, so that no reader sees a part.

    Processes that write one file take turns; the last one wins.

    Args:
        path: path of the file; its folder is made if necessary.
        content: text (written in UTF-8, line ends unchanged) or bytes.

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
    """Add the file's name to an OSError without one, such as that of a full disk."""
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
    """Open an empty file for writing, once no other process writes it."""
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
