"""The download itself, in a process of its own, ``python -m onelayer.data.fetch``.

torchvision has no time limits, and a thread that waits for a server cannot be stopped; a process
can. The parent writes an :class:`Order` to its stdin and reads one line of JSON from its stdout;
progress goes to stderr. The end of stdin means that the parent is gone, and ends it.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import os
import socket
import subprocess
import sys
import tarfile
import threading
import time
import urllib.error
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit
from urllib.request import url2pathname

_START = 120  # seconds granted for starting Python and for unpacking, beyond the download's own
_TRIAL = 0.1  # share of the time limit after which a hopeless pace ends the download


class FetchError(Exception):
    """Why there is no archive, in a few words."""


@dataclass(frozen=True)
class Order:
    """What to fetch, and what it must be.

    Attributes:
        url: of the archive; http, https or file.
        scratch: an existing empty folder, to work and to leave the result in.
        archive: name of the archive, a gzipped tar.
        md5: of the archive.
        size: of the archive, in bytes.
        folder: in the archive and in the result.
        files: the wanted files of that folder and their MD5s.
        seconds: that the download may take.
        silence: seconds without a byte after which the server is given up.
    """

    url: str
    scratch: str
    archive: str
    md5: str
    size: int
    folder: str
    files: dict[str, str]
    seconds: float
    silence: float


def run(order: Order) -> Path:
    """Download, verify and unpack; over a network, in a child process.

    Returns:
        The folder with the verified files, in the scratch folder.

    Raises:
        FetchError: it failed, in whatever way.
    """
    local = order.url.startswith("file:")
    fault = attempt(order, give_up=_never) if local else _ask_child(order)
    if fault:
        raise FetchError(fault)
    return Path(order.scratch, order.folder)


def _ask_child(order: Order) -> str | None:
    """Return why a child process could not carry out the order, or None if it could."""
    # The child must find what this process finds, however that came about.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        bufsize=0,  # nothing is left to flush to a child that is gone
        start_new_session=True,  # Ctrl+C is for the parent, which ends the child
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(json.dumps(asdict(order)).encode() + b"\n")
            # and left open: its end would end the child
            child.wait(order.seconds + _START)
            answer = child.stdout.readline()
        except subprocess.TimeoutExpired:
            return f"it was not done after {order.seconds + _START:g} s"
        except BrokenPipeError:
            answer = b""
        finally:
            child.kill()
    if not answer:
        return f"the process that downloads ended with exit code {child.returncode}"
    fault: str | None = json.loads(answer)["fault"]
    return fault


def main() -> None:
    """Carry out the order on stdin, and say how it went on stdout."""
    # Other code's prints must not mix with the answer.
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def reply(fault: str | None) -> None:
        answer.write(json.dumps({"fault": fault}) + "\n")
        answer.flush()

    def give_up(fault: str) -> NoReturn:
        reply(fault)
        os._exit(1)

    line = sys.stdin.readline()
    if not line:  # the parent was ended before it could ask
        return
    threading.Thread(target=_end_with_parent, daemon=True).start()
    reply(attempt(Order(**json.loads(line)), give_up))


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def attempt(order: Order, give_up: Callable[[str], None]) -> str | None:
    """Carry out an order.

    Args:
        order: see there.
        give_up: called from another thread, with the reason, when a download must end at once.

    Returns:
        Why it failed, in a line, or None if it did not.
    """
    try:
        if order.url.startswith("file:"):
            archive = Path(url2pathname(urlsplit(order.url).path))
            _check_archive(archive, order)
        else:
            archive = _download(order, give_up)
        _unpack(archive, order)
    except Exception as error:  # whatever it is, the user gets a line and not a traceback
        return _explain(error, order)
    return None


def _never(fault: str) -> None:
    raise AssertionError(fault)


def _download(order: Order, give_up: Callable[[str], None]) -> Path:
    """Download the archive into the scratch folder, and check its MD5."""
    from torchvision.datasets.utils import download_url

    archive = Path(order.scratch, order.archive)
    socket.setdefaulttimeout(order.silence)
    finished = threading.Event()
    threading.Thread(target=_watch, args=(archive, order, give_up, finished), daemon=True).start()
    try:
        download_url(order.url, order.scratch, order.archive, order.md5)
    except (RuntimeError, ConnectionError, http.client.HTTPException):
        if archive.is_file():
            _check_archive(archive, order)  # says more than torchvision
        raise
    finally:
        finished.set()
    return archive


def _watch(
    archive: Path, order: Order, give_up: Callable[[str], None], finished: threading.Event
) -> None:
    """Give up when the time is over, or when the pace says that it will not do."""
    begin = time.monotonic()
    while not finished.wait(0.1):
        seconds = time.monotonic() - begin
        done = archive.stat().st_size if archive.is_file() else 0
        hopeless = done / seconds < 0.5 * order.size / order.seconds
        if seconds > order.seconds or (seconds > _TRIAL * order.seconds and hopeless):
            give_up(
                f"the server is too slow: {done:,} of {order.size:,} bytes in {seconds:.0f} s, "
                f"and the limit is {order.seconds:g} s (--data.download_seconds)"
            )
            return


def _check_archive(archive: Path, order: Order) -> None:
    size = archive.stat().st_size
    if size < order.size:
        raise FetchError(f"there are only {size:,} of the archive's {order.size:,} bytes")
    with archive.open("rb") as file:
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if md5 != order.md5:
        raise FetchError(f"it is another file: MD5 {order.md5} expected, {md5} found")


def _unpack(archive: Path, order: Order) -> None:
    """Write the wanted files of the archive, each verified, and nothing else in it."""
    target = Path(order.scratch, order.folder)
    target.mkdir()
    missing = dict(order.files)
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            name = member.name.removeprefix(f"{order.folder}/")
            if name not in missing or not member.isreg():
                continue
            content = tar.extractfile(member)
            assert content is not None  # as the member is a file
            data = content.read()
            if hashlib.md5(data, usedforsecurity=False).hexdigest() != missing.pop(name):
                raise FetchError(f"{member.name} in the archive is altered")
            with (target / name).open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # on the disk before the folder gets its final name
    if missing:
        raise FetchError(f"the archive lacks {', '.join(missing)}")


def _explain(error: Exception, order: Order) -> str:
    """Say what happened in a line."""
    if isinstance(error, FetchError):
        return str(error)
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, Exception):
        error = error.reason
    if isinstance(error, TimeoutError):
        return f"the server was silent for {order.silence:g} s"
    if isinstance(error, socket.gaierror):
        return f"no network, or no such server ({error.strerror})"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full"
    if isinstance(error, OSError) and error.strerror:
        name = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{name}"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


if __name__ == "__main__":
    main()
