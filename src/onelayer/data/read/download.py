"""Downloads of an archive: sources in order, resumed by Range, checked by MD5, unpacked.

All sources hold the same bytes. What one of them has sent is kept when the next one is tried, or
when the process is killed, and the download continues there.
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

SILENCE = 10.0  # seconds without a byte after which the next source is tried
WINDOW = 5.0  # seconds over which the speed is measured
SLOWEST = 100e3  # bytes per second; a slower source is left, unless it is the last one
_CHUNK = 2**16  # bytes received at a time, at most


@dataclass(frozen=True)
class Archive:
    """A published gzipped tar of one folder, and its sources.

    Attributes:
        title: name of the data set, for messages.
        urls: sources of the archive, in the order in which they are tried.
        name: file name of the archive.
        md5: digest of the archive.
        size: bytes of the archive.
        folder: name of the folder, in the archive and on disk.
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
            # Path.is_file raises for a folder without permission to search it
            if any(os.path.isfile(folder / name) for name in self.files):
                return folder
        return None

    def advice(self, root: str | Path) -> str:
        """Return how a user can get the files by other means."""
        return (
            f"Unpack {self.name} into {root}, or name the folder that holds\n{self.folder}/ "
            "with --data.root or ONELAYER_DATA, or a server with --data.mirror;\n"
            "or train on built-in images with --data.source synthetic."
        )

    def missing(self, root: str | Path, why: str) -> InputError:
        """Return the error for a ``root`` without the data set."""
        return InputError(f"there is no {self.title} in {root}: {why}.\n{self.advice(root)}")


def mirror_urls(mirrors: str | Sequence[str] | None, archive: Archive) -> tuple[str, ...]:
    """Return the archive's URL on each mirror, which is a URL of the archive or of its folder.

    Raises:
        InputError: a mirror is not a http, https or file URL.
    """
    several = [] if mirrors is None else [mirrors] if isinstance(mirrors, str) else mirrors
    return tuple(_archive_url(mirror, archive) for mirror in several)


def _archive_url(mirror: str, archive: Archive) -> str:
    if not re.match(r"https?://\w|file:/", mirror):
        raise InputError(
            f"mirror = {mirror!r} is no URL of {archive.name}, or of a folder that holds it:\n"
            "it starts with http://, https:// or file:///."
        )
    url = urlsplit(mirror)
    if url.path.endswith(archive.name):
        return mirror
    return url._replace(path=f"{url.path.rstrip('/')}/{archive.name}").geturl()


def obtain(archive: Archive, root: str | Path, mirrors: str | Sequence[str] | None = None) -> Path:
    """Download an archive and unpack its files below ``root``, unless they are there.

    One process at a time downloads into a folder; others wait and use its result. The folder gets
    its name when all its files are complete.

    Args:
        archive: archive to download.
        root: folder to hold the archive's folder; made if need be.
        mirrors: URLs as for :func:`mirror_urls`, tried before the archive's own sources.

    Returns:
        The folder with the files.

    Raises:
        InputError: no source gives the archive; ``root`` cannot be written or is full.
    """
    urls = mirror_urls(mirrors, archive) + archive.urls
    root = at_home(root)
    waiting = f"Another process is downloading into {root}: waiting for it."
    try:
        root.mkdir(parents=True, exist_ok=True)
        with alone(root / f".{archive.name}.lock", waiting):
            return archive.find(root) or _download(archive, root, urls)
    except OSError as error:
        raise InputError(
            f"cannot write to {root}: {error.strerror or error}.\n{archive.advice(root)}"
        ) from None


def _download(archive: Archive, root: Path, urls: Sequence[str]) -> Path:
    partial, unpacked = root / f".{archive.name}.part", root / f".{archive.folder}.part"
    shutil.rmtree(unpacked, ignore_errors=True)  # left by a process that was killed
    partial.touch()
    room = 2.2 * archive.size - partial.stat().st_size  # rest of the archive, and its content
    if (free := shutil.disk_usage(root).free) < room:
        raise InputError(
            f"{root} has {free / 1e6:.0f} MB free, and {archive.title} needs {room / 1e6:.0f} MB: "
            "make room, or use another --data.root."
        )
    print(f"Downloading {archive.title} ({archive.size / 1e6:.0f} MB) to {root}", file=sys.stderr)
    _fetch(archive, partial, urls)
    _unpack(partial, unpacked, archive)
    folder = unpacked.rename(root / archive.folder)
    partial.unlink()
    return folder


# ---- the sources


class _SourceError(Exception):
    """A source did not give the archive; the message is a few words."""


def _fetch(archive: Archive, partial: Path, urls: Sequence[str]) -> None:
    """Complete the partial file from the first source that can."""
    faults = []
    for url in urls:
        try:
            return _complete(archive, partial, url, 0 if url == urls[-1] else SLOWEST)
        except _SourceError as fault:
            print(f"{url}: {fault}", file=sys.stderr)
            faults.append(f"{url}: {fault}\n")
    received = partial.stat().st_size / 1e6
    kept = f" ({received:.0f} MB are kept for the next attempt)" if received > 1 else ""
    raise InputError(
        f"cannot download {archive.title}{kept}:\n{''.join(faults)}{archive.advice(partial.parent)}"
    )


def _complete(archive: Archive, partial: Path, url: str, slowest: float) -> None:
    """Append the missing bytes to the partial file, and check its digest."""
    with partial.open("r+b") as file:
        begin = file.seek(0, os.SEEK_END)
        with tqdm(total=archive.size, initial=begin, unit="B", unit_scale=True, delay=0.5) as bar:
            for position, chunk in _chunks(url, begin, archive.size, slowest):
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
    _complete(archive, partial, url, slowest)  # the bytes before may have been the wrong ones


def _chunks(url: str, begin: int, size: int, slowest: float) -> Iterator[tuple[int, bytes]]:
    """Give a source's bytes, each chunk with its position, from ``begin`` to ``size`` at most."""
    if begin >= size:
        return
    headers = {"User-Agent": "onelayer"} | ({"Range": f"bytes={begin}-"} if begin else {})
    try:
        with urlopen(Request(url, headers=headers), timeout=SILENCE) as response:
            position = mark = _first_position(response, begin, size)
            since = time.monotonic()
            while position < size and (chunk := response.read1(min(_CHUNK, size - position))):
                yield position, chunk
                position += len(chunk)
                if (elapsed := time.monotonic() - since) > WINDOW:
                    if (speed := (position - mark) / elapsed) < slowest:
                        raise _SourceError(f"too slow: {speed / 1e3:.3g} kB/s")
                    since, mark = time.monotonic(), position
        if position < size:
            raise _SourceError(f"it ended after {position:,} of {size:,} bytes")
    except (OSError, HTTPException, ValueError) as error:
        raise _SourceError(_explain(error)) from None


def _first_position(response: Any, asked: int, size: int) -> int:
    """Return the position of the first byte: 0 if the server does not support ranges."""
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
    reason = getattr(error, "reason", None)  # a URLError wraps the cause
    error = reason if isinstance(reason, Exception) else error
    if isinstance(error, TimeoutError):
        return f"it was silent for {SILENCE:g} s"
    if isinstance(error, socket.gaierror):
        return "no network, or no such server"
    return " ".join(str(error).split())[:200] or type(error).__name__


def _unpack(path: Path, folder: Path, archive: Archive) -> None:
    """Write the archive's wanted files, and no others, into a new folder."""
    folder.mkdir()
    wanted = {f"{archive.folder}/{name}": folder / name for name in archive.files}
    with tarfile.open(path, "r:gz") as tar:
        for member in tar:
            if member.name in wanted and member.isreg() and (file := tar.extractfile(member)):
                wanted[member.name].write_bytes(file.read())
