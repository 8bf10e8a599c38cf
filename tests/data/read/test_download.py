"""Downloading from servers on loopback that are healthy, or are not; and being killed."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from onelayer.core.errors import InputError
from onelayer.data.read import download
from onelayer.data.read.batches import CIFAR10, load
from onelayer.data.read.download import mirror_urls, obtain
from tests.data.tiny import Tiny, make_tiny, md5, tar_of

FAST = {"_SILENCE": 0.5, "_WINDOW": 0.3}  # seconds
PART = f".{CIFAR10.name}.part"


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return make_tiny()


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in FAST.items():
        monkeypatch.setattr(download, name, value)


# ---- the server


class Server(ThreadingHTTPServer):
    """Answers according to the first part of the path, until it is stopped."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, archive: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.archive = archive
        self.asked: list[tuple[str, int]] = []  # which kind, from which byte on
        self.stopped = threading.Event()

    def url(self, kind: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{kind}"

    def handle_error(self, request: object, address: object) -> None:
        pass  # clients that go away


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        kind = self.path.split("/")[1]
        begin = int(re.findall(r"\d+", self.headers.get("Range", "0"))[0])
        self.server.asked.append((kind, begin))
        getattr(self, kind)(self.server.archive, begin)

    def log_message(self, *_: object) -> None:
        pass

    def begin(self, begin: int, size: int) -> None:
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{size - 1}/{size}")
        self.send_header("Content-Length", str(size - begin))
        self.end_headers()

    def healthy(self, archive: bytes, begin: int) -> None:
        self.begin(begin, len(archive))
        self.wfile.write(archive[begin:])

    def no_ranges(self, archive: bytes, begin: int) -> None:
        self.healthy(archive, 0)

    def other_range(self, archive: bytes, begin: int) -> None:
        self.healthy(archive, begin and begin - 1)

    def moved(self, archive: bytes, begin: int) -> None:
        self.send_response(302)
        self.send_header("Location", self.path.replace("moved", "healthy"))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def silent(self, archive: bytes, begin: int) -> None:
        self.server.stopped.wait()

    def stops(self, archive: bytes, begin: int) -> None:
        self.begin(begin, len(archive))
        self.wfile.write(archive[begin : len(archive) // 2])
        self.wfile.flush()
        self.server.stopped.wait()

    def drips(self, archive: bytes, begin: int) -> None:
        self.pour(archive, begin, 1)

    def throttled(self, archive: bytes, begin: int) -> None:
        self.pour(archive, begin, 1000)

    def pour(self, archive: bytes, begin: int, step: int) -> None:
        """Send that many bytes every 20 ms."""
        self.begin(begin, len(archive))
        for position in range(begin, len(archive), step):
            self.wfile.write(archive[position : position + step])
            self.wfile.flush()
            if self.server.stopped.wait(0.02):
                break

    def short(self, archive: bytes, begin: int) -> None:
        self.begin(begin, len(archive))
        self.wfile.write(archive[begin:-100])

    def busy(self, archive: bytes, begin: int) -> None:
        self.send_error(503)

    def altered(self, archive: bytes, begin: int) -> None:
        self.healthy(archive[:-1] + b"!", begin)

    def page(self, archive: bytes, begin: int) -> None:
        self.no_ranges(b"<html>Please log in to the network.</html>", 0)

    def endless(self, archive: bytes, begin: int) -> None:
        self.send_response(200)
        self.end_headers()
        while not self.server.stopped.is_set():
            self.wfile.write(bytes(2**16))


@contextmanager
def serving(tiny: Tiny) -> Iterator[Server]:
    """A server of the archive, until the end of the context."""
    with Server(tiny.archive) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "*")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.stopped.set()
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def server(tiny: Tiny) -> Iterator[Server]:
    with serving(tiny) as server:
        yield server


@pytest.fixture
def asked(server: Server) -> list[tuple[str, int]]:
    """What the server is asked for during the test."""
    server.asked.clear()
    return server.asked


def visible(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if not path.name.startswith("."))


def assert_complete(root: Path, tiny: Tiny) -> None:
    assert {path.name for path in root.iterdir()} <= {CIFAR10.folder, f".{CIFAR10.name}.lock"}
    found = {path.name: path.read_bytes() for path in (root / CIFAR10.folder).iterdir()}
    assert found == tiny.contents
    assert len(load(root, "data_batch_5", tiny.published)) == 6


# ---- success


def test_a_download_is_complete_and_shown_and_not_repeated(
    tmp_path: Path, server: Server, tiny: Tiny, asked: list, capfd: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "new" / "root"
    for _ in range(2):
        folder = obtain(tiny.published, root, server.url("moved"))
        assert folder == root / CIFAR10.folder
        assert_complete(root, tiny)
        assert asked == [("moved", 0), ("healthy", 0)]
    assert oct(folder.stat().st_mode)[-3:] == oct(root.stat().st_mode)[-3:]
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("Downloading CIFAR-10") == 1


def test_mirrors_are_the_archive_or_its_folder() -> None:
    for folder in ("file:///a%20b", "https://x/y"):
        url = f"{folder}/{CIFAR10.name}"
        assert mirror_urls([folder, f"{folder}/", url], CIFAR10) == (url,) * 3
    assert mirror_urls(CIFAR10.urls[1], CIFAR10) == (CIFAR10.urls[1],)  # with ?download=1
    assert mirror_urls("http://x/y?key=1", CIFAR10) == (f"http://x/y/{CIFAR10.name}?key=1",)
    assert mirror_urls(None, CIFAR10) == ()


@pytest.mark.parametrize("mirror", ["ftp://x/y", "/data/mirror", "", "http://[x/", "http:///x", 5])
def test_a_mirror_that_is_no_url_is_refused(tmp_path: Path, mirror: str) -> None:
    for mirrors in (mirror, ["http://x", mirror]):
        with pytest.raises(InputError, match=r"no URL of cifar-10-python\.tar\.gz"):
            obtain(CIFAR10, tmp_path / "root", mirrors)
    assert not (tmp_path / "root").exists()


def test_what_is_there_is_never_replaced(tmp_path: Path, tiny: Tiny) -> None:
    folder = tiny.write(tmp_path)
    (folder / "data_batch_1").write_bytes(b"damaged")
    assert obtain(tiny.published, tmp_path, "file:///nowhere") == folder
    assert (folder / "data_batch_1").read_bytes() == b"damaged"


# ---- several sources

REASONS = {
    "silent": "it was silent for 0.5 s",
    "stops": "it was silent for 0.5 s",
    "short": "it ended after {short} of {size} bytes",
    "busy": "the server answers 503 Service Unavailable",
    "altered": "another file: MD5 {md5} expected, .* found",
    "endless": "another file: MD5 {md5} expected, .* found",
    "page": "another file, of 42 and not ",
    "file:///nowhere": "No such file",
    "http://127.0.0.1:9": "Connection refused",
}


@pytest.mark.parametrize(("kind", "reason"), REASONS.items())
def test_a_source_that_fails_is_named_and_the_next_serves(
    tmp_path: Path,
    server: Server,
    tiny: Tiny,
    kind: str,
    reason: str,
    capfd: pytest.CaptureFixture[str],
) -> None:
    url = kind if ":" in kind else server.url(kind)
    size = len(tiny.archive)
    reason = reason.format(short=f"{size - 100:,}", size=f"{size:,}", md5=md5(tiny.archive))
    with pytest.raises(InputError) as caught:
        obtain(tiny.published, tmp_path, url, 60)
    title, fault, *advice = str(caught.value).splitlines()
    assert title.startswith("cannot download CIFAR-10")
    assert re.search(f"^{url}/{CIFAR10.name}: .*{reason}", fault)
    for word in ("ONELAYER_DATA", "--data.root", "--data.mirror", "--data.source synthetic"):
        assert word in "\n".join(advice)
    assert len(advice) == 3
    assert visible(tmp_path) == []
    assert (tmp_path / PART).stat().st_size <= size

    capfd.readouterr()
    obtain(replace(tiny.published, urls=(server.url("healthy"),)), tmp_path, url, 60)
    assert_complete(tmp_path, tiny)
    (line,) = (line for line in capfd.readouterr().err.splitlines() if line.startswith(url))
    assert re.search(reason, line) or kind in ("short", "stops")  # of which nothing was left


def test_a_slow_source_is_left_and_the_next_goes_on(
    tmp_path: Path, server: Server, tiny: Tiny, asked: list
) -> None:
    begin = time.monotonic()
    seconds = len(tiny.archive) / 100_000  # throttled sends half as many in a second
    mirrors = [server.url(kind) for kind in ("throttled", "busy", "healthy")]
    obtain(tiny.published, tmp_path, mirrors, seconds)
    assert time.monotonic() - begin < 3
    assert_complete(tmp_path, tiny)
    assert [kind for kind, _ in asked] == ["throttled", "busy", "healthy"]
    assert asked[0][1] == 0 < asked[1][1] == asked[2][1] < len(tiny.archive)


def test_where_all_are_slow_one_is_taken_that_is_not_much_slower_than_wanted(
    tmp_path: Path, server: Server, tiny: Tiny, asked: list, capfd: pytest.CaptureFixture[str]
) -> None:
    mirrors = [server.url(kind) for kind in ("drips", "throttled", "busy")]
    obtain(tiny.published, tmp_path, mirrors, len(tiny.archive) / 100_000)
    assert_complete(tmp_path, tiny)
    kinds = ["drips", "throttled", "busy", "drips", "throttled"]
    assert [kind for kind, _ in asked] == kinds
    error = capfd.readouterr().err
    reason = r"too slow: 0.0\d+ kB/s where 100 are needed \(--data.download_seconds\)"
    assert re.search(f"drips/{CIFAR10.name}: {reason}", error)
    assert "100%" in error  # the bar


@pytest.mark.parametrize("kind", ["no_ranges", "healthy"])
def test_another_sources_wrong_bytes_are_discarded(
    tmp_path: Path, server: Server, tiny: Tiny, asked: list, kind: str
) -> None:
    (tmp_path / PART).write_bytes(bytes(1000))
    obtain(tiny.published, tmp_path, server.url(kind))
    assert_complete(tmp_path, tiny)
    assert asked == [("no_ranges", 1000)] if kind == "no_ranges" else [(kind, 1000), (kind, 0)]


@pytest.mark.parametrize("size", [0, 1, -1, 10**6])
def test_a_partial_file_of_any_size_is_completed(
    tmp_path: Path, server: Server, tiny: Tiny, size: int
) -> None:
    content = (tiny.archive + bytes(10**6))[: size % len(tiny.archive) if size < 0 else size]
    (tmp_path / PART).write_bytes(content)
    obtain(tiny.published, tmp_path, [server.url("other_range"), server.url("healthy")])
    assert_complete(tmp_path, tiny)


def test_a_complete_partial_file_needs_no_server(tmp_path: Path, tiny: Tiny) -> None:
    (tmp_path / PART).write_bytes(tiny.archive)
    obtain(tiny.published, tmp_path, "http://127.0.0.1:9")
    assert_complete(tmp_path, tiny)


# ---- the disk


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
    if sys.platform != "linux":
        pytest.skip("/proc is Linux's")
    return Path("/proc/onelayer")


@pytest.mark.parametrize("root_of", [not_a_folder, below_a_file, read_only, kernels])
def test_where_nothing_can_be_written_the_network_is_not_tried(
    tmp_path: Path, server: Server, tiny: Tiny, asked: list, root_of: Callable[[Path], Path]
) -> None:
    root = root_of(tmp_path)
    with pytest.raises(InputError) as caught:
        obtain(tiny.published, root, server.url("healthy"))
    assert f"cannot write to {root}" in str(caught.value)
    assert "ONELAYER_DATA" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 5
    assert asked == []


def test_a_disk_without_room_is_told_before_the_network(
    tmp_path: Path, server: Server, asked: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match="has 100 MB free, and CIFAR-10 needs 375 MB"):
        obtain(CIFAR10, tmp_path, server.url("healthy"))
    assert asked == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_not_the_servers_fault(tmp_path: Path, server: Server, tiny: Tiny) -> None:
    (tmp_path / PART).symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"cannot write to .*: No space left on device"):
        obtain(tiny.published, tmp_path, server.url("healthy"))


def test_a_folder_in_the_way_is_not_replaced(tmp_path: Path, server: Server, tiny: Tiny) -> None:
    mine = tmp_path / CIFAR10.folder / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(InputError, match=r"cannot write to .*: .*not empty"):
        obtain(tiny.published, tmp_path, server.url("healthy"))
    assert mine.read_text() == "mine"
    assert visible(tmp_path) == [CIFAR10.folder]


def test_only_wanted_files_are_unpacked(tmp_path: Path) -> None:
    name = f"{CIFAR10.folder}/test_batch"
    link = tarfile.TarInfo(name)
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    content = io.BytesIO(tar_of({"../escape": b"", f"{CIFAR10.folder}/readme": b"", name: b"1"}))
    with tarfile.open(fileobj=content, mode="r:gz") as old:
        members = [(member, old.extractfile(member)) for member in old]
        with tarfile.open(tmp_path / "archive", "w:gz") as tar:
            for member, file in [*members, (link, None)]:
                tar.addfile(member, file)
    download._unpack(tmp_path / "archive", tmp_path / "folder", CIFAR10)
    assert {path.name for path in tmp_path.rglob("*")} == {"archive", "folder", "test_batch"}
    assert (tmp_path / "folder" / "test_batch").read_bytes() == b"1"


# ---- several processes, and kills

OBTAIN = """
import sys
from pathlib import Path
from onelayer.data.read.download import obtain
from tests.data.tiny import make_tiny
obtain(make_tiny().published, Path(sys.argv[1]), sys.argv[2])
"""


def start(root: Path, mirror: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", OBTAIN, str(root), mirror],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_several_at_once_all_succeed_with_one_download(
    tmp_path: Path, server: Server, tiny: Tiny, asked: list
) -> None:
    with ThreadPoolExecutor() as pool:
        other = pool.submit(start(tmp_path, server.url("throttled")).communicate)
        while not asked:
            time.sleep(0.01)
        obtain(tiny.published, tmp_path, server.url("healthy"))
        assert "Downloading" in other.result()[1]
    assert asked == [("throttled", 0)]
    assert_complete(tmp_path, tiny)


def test_a_killed_download_goes_on_at_the_next_start(
    tmp_path: Path, server: Server, tiny: Tiny, asked: list
) -> None:
    process = start(tmp_path, server.url("throttled"))
    part = tmp_path / PART
    while not (part.is_file() and part.stat().st_size > 20_000):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    (tmp_path / f".{CIFAR10.folder}.part").mkdir()  # as if it had been unpacking
    received = part.stat().st_size
    assert visible(tmp_path) == []
    obtain(tiny.published, tmp_path, server.url("healthy"))
    assert asked == [("throttled", 0), ("healthy", received)]
    assert_complete(tmp_path, tiny)
