"""An archive from the first of several sources that sends it, verified and unpacked.

All sources hold the same bytes, and one digest judges them all. So what one has sent is kept when
it is left for the next, or when the process is killed, and the download goes on from there.

A source whose pace would not do the whole archive in the time limit is left for the next. When all
have been tried it is asked again for a sixth of that pace, and so on: slow connections get there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

from onelayer.core.checks import at_home
from onelayer.core.errors import InputError
from onelayer.data.locks import alone

_SILENCE = 10.0  # seconds without an answer or a byte after which a source is left
_WINDOW = 5.0  # seconds over which a source's pace is judged
_CHUNK = 2**16  # bytes received at a time, at most


@dataclass(frozen=True)
class Archive:
    """A published gzipped tar of one folder, and where it is to be had.

    Attributes:
        title: of the data set, for messages.
        urls: sources of the archive, in the order in which they are asked.
        name: file name of the archive.
        md5: of the archive.
        size: of the archive, in bytes.
        folder: the files' folder, in the archive and on disk.
        files: name and MD5 of each wanted file of that folder.
    """

    title: str
    urls: tuple[str, ...]
    name: str
    md5: str
    size: int
    folder: str
    files: Mapping[str, str]

    def find(self, root: str | Path) -> Path | None:
        """Return the folder, below ``root`` or ``root`` itself, that holds any of the files."""
        root = at_home(root)
        for folder in (root / self.folder, root):
            # not Path.is_file, which raises where the folder may not be searched
            if any(os.path.isfile(folder / name) for name in self.files):
                return folder
        return None

    def advice(self, root: str | Path) -> str:
        """Return what a user can do who has not got the files."""
        return (
            f"Unpack {self.name} into {root}, or name the folder that holds\n{self.folder}/ "
            "with --data.root or ONELAYER_DATA, or a server with --data.mirror;\n"
            "or train on built-in images with --data.source synthetic."
        )

    def missing(self, root: str | Path, why: str) -> InputError:
        """Return the error that says that the data set is not in ``root``, why, and what to do."""
        return InputError(f"there is no {self.title} in {root}: {why}.\n{self.advice(root)}")


def mirror_urls(mirrors: str | list[str] | None, archive: Archive) -> tuple[str, ...]:
    """Return the archive's URL on each mirror: http, https or file, of it or of its folder.

    Raises:
        InputError: one of them is no such URL.
    """
    several = mirrors if isinstance(mirrors, list | tuple) else [mirrors]
    return tuple(_archive_url(mirror, archive) for mirror in several if mirror is not None)


def _archive_url(mirror: str, archive: Archive) -> str:
    try:
        url = urlsplit(mirror)
        legal = url.scheme == "file" or (url.scheme in ("http", "https") and url.netloc)
    except (AttributeError, ValueError):  # no text; brackets that are no IPv6 address
        legal = False
    if not legal:
        raise InputError(
            f"mirror = {mirror!r} is no URL of {archive.name}, or of a folder that holds it:\n"
            "it starts with http://, https:// or file:///."
        )
    if url.path.endswith(archive.name):
        return mirror
    return url._replace(path=f"{url.path.rstrip('/')}/{archive.name}").geturl()


def obtain(
    archive: Archive, root: str | Path, mirrors: str | list[str] | None = None, seconds: float = 600
) -> Path:
    """Download an archive and unpack its files below ``root``, unless they are there.

    Several processes may do so at once: one downloads, the others wait and find its result. The
    folder gets its name when all of it is there.

    Args:
        archive: what to download.
        root: folder to hold the archive's folder; made if need be.
        mirrors: as for :func:`mirror_urls`; asked before the archive's own sources.
        seconds: that the download should take; see above.

    Returns:
        The folder with the files.

    Raises:
        InputError: no source gives the archive; ``root`` cannot be written or has no room; a mirror
            is no URL.
    """
    urls = mirror_urls(mirrors, archive) + archive.urls
    root = at_home(root)
    waiting = f"Another process is downloading into {root}: waiting for it."
    try:
        root.mkdir(parents=True, exist_ok=True)
        with alone(root / f".{archive.name}.lock", waiting):
            return archive.find(root) or _download(archive, root, urls, archive.size / seconds)
    except OSError as error:
        raise InputError(
            f"cannot write to {root}: {error.strerror or error}.\n{archive.advice(root)}"
        ) from None


def _download(archive: Archive, root: Path, urls: Sequence[str], pace: float) -> Path:
    partial, unpacked = root / f".{archive.name}.part", root / f".{archive.folder}.part"
    shutil.rmtree(unpacked, ignore_errors=True)  # what a process left that was killed here
    partial.touch()
    room = 2.2 * archive.size - partial.stat().st_size  # the rest of the archive, and its content
    if (free := shutil.disk_usage(root).free) < room:
        raise InputError(
            f"{root} has {free / 1e6:.0f} MB free, and {archive.title} needs {room / 1e6:.0f} MB: "
            "make room, or use another --data.root."
        )
    print(f"Downloading {archive.title} ({archive.size / 1e6:.0f} MB) to {root}", file=sys.stderr)
    _fetch(archive, partial, urls, pace)
    _unpack(partial, unpacked, archive)
    folder = unpacked.rename(root / archive.folder)
    partial.unlink()
    return folder


# ---- the sources


class _SourceError(Exception):
    """Why a source did not give the archive, in a few words."""


class _TooSlowError(_SourceError): ...


def _fetch(archive: Archive, partial: Path, urls: Sequence[str], pace: float) -> None:
    """Complete the partial file from the first source that can, at this many bytes a second."""
    faults = []
    attempts = [(url, pace) for url in urls]
    for url, least in attempts:
        try:
            return _complete(archive, partial, url, least)
        except _SourceError as fault:
            print(f"{url}: {fault}", file=sys.stderr)
            if isinstance(fault, _TooSlowError):
                attempts.append((url, least / 6))
            else:
                faults.append(f"{url}: {fault}\n")
    received = partial.stat().st_size / 1e6
    kept = f" ({received:.0f} MB are kept for the next attempt)" if received > 1 else ""
    raise InputError(
        f"cannot download {archive.title}{kept}:\n{''.join(faults)}{archive.advice(partial.parent)}"
    )


def _complete(archive: Archive, partial: Path, url: str, pace: float) -> None:
    """Receive what the partial file lacks, and check its digest."""
    with partial.open("r+b") as file:
        begin = file.seek(0, os.SEEK_END)
        with tqdm(total=archive.size, initial=begin, unit="B", unit_scale=True, delay=0.5) as bar:
            for position, chunk in _chunks(url, begin, archive.size, pace):
                file.seek(position)  # before the end if the server began anew
                file.write(chunk)
                bar.update(position + len(chunk) - bar.n)
        file.seek(0)
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if md5 == archive.md5:
            return
        file.truncate(0)
    if begin == 0:
        raise _SourceError(f"it is another file: MD5 {archive.md5} expected, {md5} found")
    _complete(archive, partial, url, pace)  # another source's bytes may have been the wrong ones


def _chunks(url: str, begin: int, size: int, pace: float) -> Iterator[tuple[int, bytes]]:
    """Give a source's bytes, each chunk with its position, from ``begin`` to ``size`` at most."""
    if begin >= size:
        return
    headers = {"User-Agent": "onelayer"} | ({"Range": f"bytes={begin}-"} if begin else {})
    try:
        with urlopen(Request(url, headers=headers), timeout=_SILENCE) as response:
            position = mark = _first_position(response, begin, size)
            since = time.monotonic()
            while position < size and (chunk := response.read1(min(_CHUNK, size - position))):
                yield position, chunk
                position += len(chunk)
                if (elapsed := time.monotonic() - since) > _WINDOW:
                    if (speed := (position - mark) / elapsed) < pace:
                        raise _TooSlowError(
                            f"too slow: {speed / 1e3:.3g} kB/s where {pace / 1e3:.3g} are needed "
                            "(--data.download_seconds)"
                        )
                    since, mark = time.monotonic(), position
        if position < size:
            raise _SourceError(f"it ended after {position:,} of {size:,} bytes")
    except (OSError, HTTPException, ValueError) as error:
        raise _SourceError(_explain(error)) from None


def _first_position(response: Any, asked: int, size: int) -> int:
    """Return where the answer begins: at 0 where the server does not know ranges."""
    total = response.headers.get("Content-Length", "*")
    if response.status == 206:
        total = response.headers.get("Content-Range", "*").rpartition("/")[2]
    if total not in ("*", str(size)):
        raise _SourceError(f"it is another file, of {total} and not {size} bytes")
    return asked if response.status == 206 else 0


def _explain(error: Exception) -> str:
    if isinstance(error, HTTPError):
        error.close()
        return f"the server answers {error.code} {error.reason}"
    reason = getattr(error, "reason", None)  # a URLError's, which wraps what happened
    error = reason if isinstance(reason, Exception) else error
    if isinstance(error, TimeoutError):
        return f"it was silent for {_SILENCE:g} s"
    if isinstance(error, socket.gaierror):
        return "no network, or no such server"
    return " ".join(str(error).split())[:200] or type(error).__name__


def _unpack(path: Path, folder: Path, archive: Archive) -> None:
    """Write the archive's wanted files into a new folder, and nothing else in it."""
    folder.mkdir()
    wanted = {f"{archive.folder}/{name}": folder / name for name in archive.files}
    with tarfile.open(path, "r:gz") as tar:
        for member in tar:
            if member.name in wanted and member.isreg() and (file := tar.extractfile(member)):
                wanted[member.name].write_bytes(file.read())
