"""An archive from the first of several sources that sends it, verified and unpacked.

All sources hold the same bytes, and one digest judges them all. So what one has sent is kept when
it is left for the next, or when the process is killed, and the download goes on from there.

Slow servers: a source whose pace would not do the whole archive in the time limit is left for the
next. Where no source does it, those that sent something are asked once more, the fastest first,
and may take up to ``_PATIENCE`` times as long: a slow home connection gets its data.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from filelock import FileLock, Timeout
from tqdm import tqdm

from onelayer.core.errors import InputError

_SILENCE = 10.0  # seconds without an answer or a byte after which a source is left
_WINDOW = 5.0  # seconds over which a source's pace is judged
_PATIENCE = 6  # how many times the time limit a source may take if all are slow
_BAR_AFTER = 0.5  # seconds of a download after which a bar shows its progress
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
        """Return the folder that holds any of the files: below ``root``, or ``root`` itself.

        None where there is no such folder. Whether the files are whole is for their reader to say.
        """
        root = Path(root).expanduser()
        for folder in (root / self.folder, root):
            # not Path.is_file, which raises where the folder may not be searched
            if any(os.path.isfile(folder / name) for name in self.files):
                return folder
        return None

    def missing(self, root: str | Path, why: str) -> InputError:
        """Return the error that says that the data set is not in ``root``, why, and what to do."""
        return InputError(f"there is no {self.title} in {root}: {why}.\n{self.advice(root)}")

    def advice(self, root: str | Path) -> str:
        """Return what a user can do who has not got the files."""
        return (
            f"Unpack {self.name} into {root}, or name the folder that holds\n{self.folder}/ "
            "with --data.root or ONELAYER_DATA, or a server with --data.mirror;\n"
            "or train on built-in images with --data.source synthetic."
        )


def mirror_urls(mirrors: str | list[str] | None, archive: Archive) -> tuple[str, ...]:
    """Return the archive's URL on each mirror.

    Args:
        mirrors: one or several URLs (http, https, file), of the archive or of its folder.
        archive: what is looked for.

    Raises:
        InputError: one of them is no such URL.
    """
    if mirrors is None:
        return ()
    several = list(mirrors) if isinstance(mirrors, list | tuple) else [mirrors]
    return tuple(_archive_url(mirror, archive) for mirror in several)


def _archive_url(mirror: str, archive: Archive) -> str:
    try:
        parts = urlsplit(mirror)
        legal = parts.scheme == "file" or (parts.scheme in ("http", "https") and parts.netloc)
    except (AttributeError, ValueError):  # no text; brackets that are no IPv6 address
        legal = False
    if not legal:
        raise InputError(
            f"mirror = {mirror!r} is no URL of {archive.name}, or of a folder that holds it:\n"
            "it starts with http://, https:// or file:///."
        )
    if parts.path.endswith(archive.name):
        return mirror
    return parts._replace(path=f"{parts.path.rstrip('/')}/{archive.name}").geturl()


def obtain(
    archive: Archive,
    root: str | Path,
    mirrors: str | list[str] | None = None,
    seconds: float = 600.0,
) -> Path:
    """Download an archive and unpack its files below ``root``, unless they are there.

    Several processes may do so at once: one downloads, the others wait and find its result. The
    folder gets its name when all of it is there; a download that was ended goes on where it was.

    Args:
        archive: what to download.
        root: folder to hold the archive's folder; made if need be.
        mirrors: as for :func:`mirror_urls`; asked before the archive's own sources.
        seconds: that the download should take; see above.

    Returns:
        The folder with the files.

    Raises:
        InputError: no source gives the archive, naming each and its reason; ``root`` cannot be
            written or has no room; a mirror is no URL.
    """
    urls = mirror_urls(mirrors, archive) + archive.urls
    root = Path(root).expanduser()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root, archive):
            return archive.find(root) or _download(archive, root, urls, seconds)
    except OSError as error:
        raise InputError(
            f"cannot write to {root}: {error.strerror or error}.\n{archive.advice(root)}"
        ) from None


@contextmanager
def _lock(root: Path, archive: Archive) -> Iterator[None]:
    """Hold the lock of the downloads of this archive into ``root``; wait for it if need be."""
    lock = FileLock(root / f".{archive.name}.lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        print(f"Another process is downloading into {root}: waiting for it.", file=sys.stderr)
        lock.acquire()
    except NotImplementedError as error:  # a file system without locks
        raise OSError(str(error)) from None
    try:
        yield
    finally:
        lock.release()


def _download(archive: Archive, root: Path, urls: Sequence[str], seconds: float) -> Path:
    """Download and unpack into ``root``, whose lock is held."""
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
    _fetch(archive, partial, urls, archive.size / seconds)
    _unpack(partial, unpacked, archive)
    folder = unpacked.rename(root / archive.folder)
    partial.unlink()
    return folder


# ---- the sources


class _SourceError(Exception):
    """Why a source did not give the archive, in a few words.

    Attributes:
        speed: bytes a second of what it sent.
    """

    def __init__(self, reason: str, speed: float = 0.0) -> None:
        super().__init__(reason)
        self.speed = speed


def _fetch(archive: Archive, partial: Path, urls: Sequence[str], pace: float) -> None:
    """Complete the partial file from the first source that can, at this pace if any does it.

    Raises:
        InputError: none could; naming each and its reason.
    """
    faults: dict[str, _SourceError] = {}
    for slowest in (pace, pace / _PATIENCE):
        for url in urls:
            try:
                return _complete(archive, partial, url, slowest)
            except _SourceError as fault:
                print(f"{url}: {fault}", file=sys.stderr)
                faults[url] = fault
        urls = [url for url in urls if faults[url].speed > 0]
        urls = sorted(urls, key=lambda url: faults[url].speed, reverse=True)
    received = partial.stat().st_size / 1e6
    kept = f" ({received:.0f} MB are kept for the next attempt)" if received > 1 else ""
    lines = "\n".join(f"{url}: {fault}" for url, fault in faults.items())
    raise InputError(
        f"cannot download {archive.title}{kept}:\n{lines}\n{archive.advice(partial.parent)}"
    )


def _complete(archive: Archive, partial: Path, url: str, pace: float) -> None:
    """Receive what the partial file lacks, and check its digest."""
    with partial.open("r+b") as file:
        begin = file.seek(0, os.SEEK_END)
        with tqdm(
            total=archive.size, initial=begin, unit="B", unit_scale=True, delay=_BAR_AFTER
        ) as bar:
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
    """Give a source's bytes, each chunk with its position, from ``begin`` to ``size`` at most.

    From 0 where the server does not know ranges.

    Raises:
        _SourceError: it does not send all of them at this pace, in bytes a second.
    """
    if begin >= size:
        return
    first = position = begin
    since = start = time.monotonic()
    headers = {"User-Agent": "onelayer"} | ({"Range": f"bytes={begin}-"} if begin else {})
    try:
        with urlopen(Request(url, headers=headers), timeout=_SILENCE) as response:
            first = position = mark = _first_position(response, begin, size)
            since = time.monotonic()
            while position < size and (chunk := response.read1(min(_CHUNK, size - position))):
                yield position, chunk
                position += len(chunk)
                if (elapsed := time.monotonic() - since) > _WINDOW:
                    if (speed := (position - mark) / elapsed) < pace:
                        raise _SourceError(
                            f"too slow: {speed / 1e3:.3g} kB/s where {pace / 1e3:.3g} are needed "
                            "(--data.download_seconds)"
                        )
                    since, mark = time.monotonic(), position
        if position < size:
            raise _SourceError(f"it ended after {position:,} of {size:,} bytes")
    except (_SourceError, OSError, HTTPException, ValueError) as error:
        speed = (position - first) / (time.monotonic() - start + 1e-9)
        raise _SourceError(_explain(error), speed) from None


def _first_position(response: Any, asked: int, size: int) -> int:
    """Return where the answer begins, if it is of a file of this size and from there on."""
    position, total = 0, response.headers.get("Content-Length", "*")
    if response.status == 206:
        content = response.headers.get("Content-Range", "nothing")
        parts = re.fullmatch(rf"bytes {asked}-\d+/(\d+|\*)", content)
        if parts is None:
            raise _SourceError(f"it was asked for the bytes from {asked} on, and sends {content}")
        position, total = asked, parts[1]
    if total not in ("*", str(size)):
        raise _SourceError(f"it is another file, of {total} and not {size} bytes")
    return position


def _explain(error: Exception) -> str:
    """Say in a few words what went wrong."""
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


# ---- the archive


def _unpack(path: Path, folder: Path, archive: Archive) -> None:
    """Write the archive's wanted files into a new folder, and nothing else in it."""
    folder.mkdir()
    wanted = {f"{archive.folder}/{name}": folder / name for name in archive.files}
    with tarfile.open(path, "r:gz") as tar:
        for member in tar:
            if member.name in wanted and member.isreg():
                source = tar.extractfile(member)
                assert source is not None  # as the member is a file
                with wanted[member.name].open("wb") as target:
                    shutil.copyfileobj(source, target)
                    target.flush()
                    os.fsync(target.fileno())  # on the disk before the folder gets its name
