"""Files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path


def atomic_write(path: str | Path, content: str | bytes) -> None:
    """Write a file beside its target and rename it: a reader never sees half of it.

    What a kill leaves beside it, ``<name>.tmp``, the next writing replaces. Two processes must not
    write one file at the same time.

    Args:
        path: of the file; its folder is made if need be.
        content: text is written in UTF-8, with its line ends as they are.

    Raises:
        OSError: naming the file, if it cannot be written; the target stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = error.filename or str(path)  # a full disk is reported without a name
        raise
