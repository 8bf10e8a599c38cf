"""Downloading, against a server on loopback that is healthy, or is not; and being killed."""

import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from onelayer.core.errors import InputError
from onelayer.data import cifar10, fetch
from onelayer.data.cifar10 import CIFAR10, Published, download, load
from tests.data.tiny import TRAIN, Tiny, make_tiny, md5, tar_of

LINUX = sys.platform == "linux"


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return make_tiny()


# ---- the server


class Server(ThreadingHTTPServer):
    """Answers according to the first part of the path, until it is stopped."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, archive: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.archive = archive
        self.requests: Counter[str] = Counter()
        self.stopped = threading.Event()

    def url(self, kind: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{kind}"

    def handle_error(self, request: object, address: object) -> None:
        pass  # clients that go away


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        kind = self.path.split("/")[1]
        self.server.requests[kind] += 1
        getattr(self, kind)(self.server.archive)

    def log_message(self, *_: object) -> None:
        pass

    def begin(self, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def healthy(self, archive: bytes) -> None:
        self.begin(len(archive))
        self.wfile.write(archive)

    def moved(self, archive: bytes) -> None:
        self.send_response(302)
        self.send_header("Location", self.path.replace("moved", "healthy"))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def silent(self, archive: bytes) -> None:
        self.server.stopped.wait()

    def stops(self, archive: bytes) -> None:
        self.begin(len(archive))
        self.wfile.write(archive[: len(archive) // 2])
        self.wfile.flush()
        self.server.stopped.wait()

    def drips(self, archive: bytes) -> None:
        self.begin(len(archive))
        for byte in archive:
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
            if self.server.stopped.wait(0.05):
                break

    def short(self, archive: bytes) -> None:
        self.begin(len(archive))
        self.wfile.write(archive[:-100])

    def busy(self, archive: bytes) -> None:
        self.send_error(503)

    def absent(self, archive: bytes) -> None:
        self.send_error(404)

    def altered(self, archive: bytes) -> None:
        self.healthy(archive[:-1] + b"!")

    def page(self, archive: bytes) -> None:
        self.healthy(b"<html>Please log in to the network.</html>")


@pytest.fixture(scope="module")
def server(tiny: Tiny) -> Iterator[Server]:
    server = Server(tiny.archive)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    environment = pytest.MonkeyPatch()
    environment.setenv("no_proxy", "*")
    yield server
    environment.undo()
    server.stopped.set()
    server.shutdown()
    thread.join()
    server.server_close()


def unused_port() -> int:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        return server.server_port


def visible(root: Path) -> list[str]:
    """What a user sees below a root, and what is hidden but for the lock."""
    return sorted(path.name for path in root.iterdir() if path.name != ".cifar-10.lock")


def assert_complete(root: Path, tiny: Tiny) -> None:
    assert visible(root) == [CIFAR10.folder]
    found = {path.name: path.read_bytes() for path in (root / CIFAR10.folder).iterdir()}
    assert found == tiny.contents
    assert len(load(root, TRAIN, tiny.published)) == 30


# ---- success


def test_a_download_is_complete_and_shown_and_not_repeated(
    tmp_path: Path, server: Server, tiny: Tiny, capfd: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "new" / "root"
    before = server.requests["healthy"]
    folder = download(root, server.url("moved"), published=tiny.published)
    assert folder == root / CIFAR10.folder
    assert_complete(root, tiny)
    assert oct(folder.stat().st_mode)[-3:] == oct(root.stat().st_mode)[-3:]
    out, err = capfd.readouterr()
    assert out == ""
    assert "Downloading http://127.0.0.1" in err
    assert "100%" in err  # torchvision's progress bar
    after = server.requests["healthy"]
    assert after > before

    assert download(root, server.url("healthy"), published=tiny.published) == folder
    assert server.requests["healthy"] == after
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("ending", ["", "/", "/cifar-10-python.tar.gz"])
def test_a_mirror_can_be_a_folder(tmp_path: Path, tiny: Tiny, ending: str) -> None:
    mirror = tmp_path / "a mirror"
    mirror.mkdir()
    (mirror / CIFAR10.archive).write_bytes(tiny.archive)
    url = mirror.as_uri() + ending
    download(tmp_path / "root", url, published=tiny.published)
    assert_complete(tmp_path / "root", tiny)
    assert (mirror / CIFAR10.archive).read_bytes() == tiny.archive


def test_what_is_there_is_never_replaced(tmp_path: Path, tiny: Tiny) -> None:
    folder = tiny.write(tmp_path)
    (folder / "data_batch_1").write_bytes(b"damaged")
    assert download(tmp_path, "file:///nowhere", published=tiny.published) == folder
    assert (folder / "data_batch_1").read_bytes() == b"damaged"


# ---- faults

LIMITS = {"timeout": 30.0, "silence": 1.0}


def assert_short_and_helpful(error: InputError, url: str) -> None:
    message = str(error)
    assert f"cannot download CIFAR-10 from {url}" in message
    for advice in ("ONELAYER_DATA", "--data.root", "--data.mirror", "--data.source synthetic"):
        assert advice in message
    assert len(message.splitlines()) <= 5


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the child does is done here: to start Python takes seconds."""
    monkeypatch.setattr(fetch, "_ask_child", lambda order: fetch.attempt(order, pytest.fail))
    yield
    socket.setdefaulttimeout(None)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("silent", "silent for 1 s"),
        ("stops", "silent for 1 s"),
        ("short", "only {short} of the archive's {size} bytes"),
        ("page", "only 42 of the archive's {size} bytes"),
        ("busy", "the server answers 503 Service Unavailable"),
        ("absent", "the server answers 404 Not Found"),
        ("altered", "another file: MD5 {md5} expected, .* found"),
        ("refuses", "Connection refused"),
    ],
)
def test_a_fault_is_a_short_error(
    tmp_path: Path,
    server: Server,
    tiny: Tiny,
    kind: str,
    reason: str,
) -> None:
    base = server.url(kind)
    if kind == "refuses":
        base = f"http://127.0.0.1:{unused_port()}/{kind}"
    with pytest.raises(InputError) as caught:
        download(tmp_path / "root", base, **LIMITS, published=tiny.published)
    size = len(tiny.archive)
    parts = {"short": f"{size - 100:,}", "size": f"{size:,}", "md5": md5(tiny.archive)}
    assert re.search(reason.format(**parts), str(caught.value))
    assert_short_and_helpful(caught.value, f"{base}/{CIFAR10.archive}")
    assert visible(tmp_path / "root") == []


def test_a_silent_and_a_dripping_server_end_in_time(
    tmp_path: Path, server: Server, tiny: Tiny, capfd: pytest.CaptureFixture[str]
) -> None:
    def attempt(kind: str) -> tuple[InputError, float]:
        begin = time.monotonic()
        with pytest.raises(InputError) as caught:
            download(tmp_path / kind, server.url(kind), **LIMITS, published=tiny.published)
        return caught.value, time.monotonic() - begin

    kinds = ["silent", "drips"]
    with ThreadPoolExecutor() as pool:
        (silent, soon), (drips, later) = pool.map(attempt, kinds)
    assert "silent for 1 s" in str(silent)
    # it would take an hour: told after a tenth of the limit
    assert re.search(r"too slow: 0 of [\d,]+ bytes in [3-9] s, and the limit is 30 s", str(drips))
    assert max(soon, later) < 30  # most of it to start Python
    for kind, error in zip(kinds, (silent, drips), strict=True):
        assert_short_and_helpful(error, f"{server.url(kind)}/{CIFAR10.archive}")
        assert visible(tmp_path / kind) == []
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("size", "done", "limit", "told"),
    [
        (1000, 999, 0.4, (0.4, 1.5)),  # the pace looks well to the end
        (1000, 0, 4.0, (0.4, 2.0)),
        (1000, 10, 4.0, (0.4, 2.0)),  # a hundredth after a tenth of the time
    ],
)
def test_the_time_is_limited(
    tmp_path: Path, tiny: Tiny, size: int, done: int, limit: float, told: tuple[float, float]
) -> None:
    archive = tmp_path / "archive"
    archive.write_bytes(bytes(done))
    slow = replace(order(tmp_path, b"", tiny.published), size=size, seconds=limit)
    reasons: list[str] = []
    begin = time.monotonic()
    fetch._watch(archive, slow, reasons.append, threading.Event())
    assert told[0] <= time.monotonic() - begin < told[1]
    (reason,) = reasons
    assert f"{done} of 1,000 bytes" in reason
    assert f"the limit is {limit:g} s (--data.download_seconds)" in reason


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Put a program in the place of the child's Python."""
    program = folder / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))


@pytest.mark.parametrize("script", ["exit 3", "kill -9 $$"])
def test_a_child_that_dies_is_reported(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    stand_in(tmp_path, monkeypatch, script)
    code = "3" if script == "exit 3" else "-9"
    with pytest.raises(InputError, match=f"ended with exit code {code}"):
        download(tmp_path / "root", "http://nowhere", published=tiny.published)
    assert visible(tmp_path / "root") == []


def test_a_child_that_hangs_is_ended(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch, f"echo $$ > {tmp_path}/pid; exec sleep 60")
    monkeypatch.setattr(fetch, "_START", 0.5)
    with pytest.raises(InputError, match="not done after 1 s"):
        download(tmp_path / "root", "http://nowhere", 0.5, published=tiny.published)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


@pytest.mark.parametrize("mirror", ["ftp://x/y", "/data/mirror", "mirror", "", "http://[x/"])
def test_a_mirror_that_is_no_url_is_refused(tmp_path: Path, mirror: str) -> None:
    with pytest.raises(InputError, match=r"no URL.*cifar-10-python\.tar\.gz"):
        download(tmp_path / "root", mirror)
    assert not (tmp_path / "root").exists()


def test_a_mirror_folder_without_the_archive(tmp_path: Path, tiny: Tiny) -> None:
    with pytest.raises(InputError, match="No such file"):
        download(tmp_path / "root", tmp_path.as_uri(), published=tiny.published)
    assert visible(tmp_path / "root") == []


def not_a_folder(folder: Path) -> Path:
    (folder / "file").write_text("")
    return folder / "file"


def below_a_file(folder: Path) -> Path:
    return not_a_folder(folder) / "root"


def read_only(folder: Path) -> Path:
    folder.chmod(0o500)
    if os.access(folder, os.W_OK):
        pytest.skip("this user, root, may write everywhere: chmod has no effect")
    return folder / "root"


def kernels(folder: Path) -> Path:
    if not LINUX:
        pytest.skip("/proc is Linux's")
    return Path("/proc/onelayer")


@pytest.mark.parametrize("root_of", [not_a_folder, below_a_file, read_only, kernels])
def test_where_nothing_can_be_written_the_network_is_not_tried(
    tmp_path: Path, server: Server, tiny: Tiny, root_of: Callable[[Path], Path]
) -> None:
    before = server.requests.total()
    root = root_of(tmp_path)
    with pytest.raises(InputError) as caught:
        download(root, server.url("healthy"), published=tiny.published)
    assert f"cannot write to {root}" in str(caught.value)
    assert "ONELAYER_DATA" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 5
    assert server.requests.total() == before


def test_a_disk_without_room_is_told_before_the_network(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = server.requests.total()
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match="has 100 MB free, and CIFAR-10 needs 375 MB"):
        download(tmp_path, server.url("healthy"))
    assert server.requests.total() == before
    assert visible(tmp_path) == []


def test_a_folder_in_the_way_is_not_replaced(tmp_path: Path, tiny: Tiny) -> None:
    (tmp_path / CIFAR10.archive).write_bytes(tiny.archive)
    mine = tmp_path / "root" / CIFAR10.folder / "thesis.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(InputError, match=r"cannot write to .*root: .*not empty"):
        download(tmp_path / "root", tmp_path.as_uri(), published=tiny.published)
    assert mine.read_text() == "mine"
    assert visible(tmp_path / "root") == [CIFAR10.folder]


# ---- the archive's content


def order(folder: Path, archive: bytes, published: Published) -> fetch.Order:
    return fetch.Order(
        url="http://nowhere",
        scratch=str(folder),
        archive=published.archive,
        md5=md5(archive),
        size=len(archive),
        folder=published.folder,
        files=dict(published.files),
        seconds=1,
        silence=1,
    )


def unpack(folder: Path, archive: bytes, published: Published) -> None:
    (folder / "archive").write_bytes(archive)
    fetch._unpack(folder / "archive", order(folder, archive, published))


def test_only_the_wanted_files_are_unpacked(tmp_path: Path, tiny: Tiny) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    unpack(scratch, tiny.archive, tiny.published)
    unpacked = {path.name for path in (scratch / CIFAR10.folder).iterdir()}
    assert unpacked == set(tiny.published.files)
    assert {path.name for path in tmp_path.iterdir()} == {"scratch"}  # and no ../escape


def test_an_archive_that_lacks_a_file_is_refused(tmp_path: Path, tiny: Tiny) -> None:
    files = {f"{CIFAR10.folder}/{name}": tiny.contents[name] for name in TRAIN}
    with pytest.raises(fetch.FetchError, match=r"lacks test_batch, batches\.meta"):
        unpack(tmp_path, tar_of(files), tiny.published)


def test_an_altered_file_in_the_archive_is_refused(tmp_path: Path, tiny: Tiny) -> None:
    files = {f"{CIFAR10.folder}/{name}": content for name, content in tiny.contents.items()}
    files[f"{CIFAR10.folder}/data_batch_4"] += b"x"
    with pytest.raises(fetch.FetchError, match="data_batch_4 in the archive is altered"):
        unpack(tmp_path, tar_of(files), tiny.published)
    assert not (tmp_path / CIFAR10.folder / "data_batch_4").exists()


def test_a_link_in_the_archive_is_not_followed(tmp_path: Path, tiny: Tiny) -> None:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz") as tar:
        link = tarfile.TarInfo(f"{CIFAR10.folder}/test_batch")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    with pytest.raises(fetch.FetchError, match="lacks"):
        unpack(tmp_path, target.getvalue(), replace(tiny.published, files={"test_batch": "0"}))
    assert list((tmp_path / CIFAR10.folder).iterdir()) == []


# ---- several processes, and kills

DOWNLOAD = """
import json, sys
from onelayer.data.cifar10 import Published, download
root, mirror, published = sys.argv[1:]
download(root, mirror, published=Published(**json.loads(published)))
"""


def start_download(root: Path, mirror: str, published: Published) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", DOWNLOAD, str(root), mirror, json.dumps(asdict(published))],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_at_once_both_succeed_with_one_download(
    tmp_path: Path, server: Server, tiny: Tiny
) -> None:
    before = server.requests["healthy"]
    processes = [start_download(tmp_path, server.url("healthy"), tiny.published) for _ in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    assert server.requests["healthy"] == before + 2  # torchvision asks twice for one download
    assert sum("Downloading" in error for error in errors) == 1
    assert_complete(tmp_path, tiny)


def children(process: subprocess.Popen[str]) -> list[int]:
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in path.read_text().split()]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.002)


@pytest.mark.skipif(not LINUX, reason="looks for the child in /proc")
def test_a_download_killed_leaves_nothing_visible_and_the_next_succeeds(
    tmp_path: Path, server: Server, tiny: Tiny
) -> None:
    root = tmp_path / "root"
    process = start_download(root, server.url("stops"), tiny.published)
    wait_for(lambda: begun(root, CIFAR10.archive))
    (child,) = children(process)
    kill(process)
    wait_for(lambda: not alive(child), 10)  # by itself
    assert_only_leftovers(root, CIFAR10.archive)
    (tmp_path / CIFAR10.archive).write_bytes(tiny.archive)
    download(root, tmp_path.as_uri(), published=tiny.published)
    assert_complete(root, tiny)


def test_an_extraction_killed_leaves_nothing_visible_and_the_next_succeeds(tmp_path: Path) -> None:
    large = make_tiny({"zzz": os.urandom(2**20) * 60})  # takes a while to unpack
    (tmp_path / CIFAR10.archive).write_bytes(large.archive)
    root = tmp_path / "root"
    process = start_download(root, tmp_path.as_uri(), large.published)
    wait_for(lambda: begun(root, CIFAR10.folder))
    kill(process)
    assert_only_leftovers(root, CIFAR10.folder)
    download(root, tmp_path.as_uri(), published=large.published)
    assert_complete(root, large)


def begun(root: Path, name: str) -> bool:
    return any(path.stat().st_size for path in root.glob(f".cifar-10-part-*/{name}"))


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL


def assert_only_leftovers(root: Path, name: str) -> None:
    assert begun(root, name)
    assert cifar10.find(root) is None
    (leftover,) = visible(root)
    assert leftover.startswith(".cifar-10-part-")
