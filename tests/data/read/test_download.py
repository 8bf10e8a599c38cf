"""Downloading from servers on loopback that are healthy, or are not; and being killed."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from onelayer.core.errors import InputError
from onelayer.data.read import download
from onelayer.data.read.batches import CIFAR10, load
from onelayer.data.read.download import mirror_urls, obtain
from tests.support.published import make_tiny, md5, tar_of
from tests.support.server import FAST, serving

PART = f".{CIFAR10.name}.part"


@pytest.fixture(scope="module")
def tiny():
    return make_tiny()


@pytest.fixture(scope="module")
def server(tiny):
    with serving(tiny) as server:
        yield server


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    for name, value in FAST.items():
        monkeypatch.setattr(download, name, value)


@pytest.fixture
def asked(server):
    """What the server is asked for during the test: which kind, from which byte on."""
    server.asked.clear()
    return server.asked


def visible(root):
    return sorted(path.name for path in root.iterdir() if not path.name.startswith("."))


def assert_complete(root, tiny):
    assert {path.name for path in root.iterdir()} <= {CIFAR10.folder, f".{CIFAR10.name}.lock"}
    found = {path.name: path.read_bytes() for path in (root / CIFAR10.folder).iterdir()}
    assert found == tiny.contents
    assert len(load(root, "data_batch_5", tiny.published)) == 6


# ---- success


def test_a_download_is_complete_and_shown_and_not_repeated(tmp_path, server, tiny, asked, capfd):
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


def test_mirrors_are_the_archive_or_its_folder():
    for folder in ("file:///a%20b", "https://x/y"):
        url = f"{folder}/{CIFAR10.name}"
        assert mirror_urls([folder, f"{folder}/", url], CIFAR10) == (url,) * 3
    assert mirror_urls(CIFAR10.urls[1], CIFAR10) == (CIFAR10.urls[1],)  # with ?download=1
    assert mirror_urls("http://x/y?key=1", CIFAR10) == (f"http://x/y/{CIFAR10.name}?key=1",)
    assert mirror_urls(None, CIFAR10) == ()


@pytest.mark.parametrize("mirror", ["ftp://x/y", "/data/mirror", "", "http://[x/", "http:///x"])
def test_a_mirror_that_is_no_url_is_refused(tmp_path, mirror):
    for mirrors in (mirror, ["http://x", mirror]):
        with pytest.raises(InputError, match=r"no URL of cifar-10-python\.tar\.gz"):
            obtain(CIFAR10, tmp_path / "root", mirrors)
    assert not (tmp_path / "root").exists()


def test_what_is_there_is_never_replaced(tmp_path, tiny):
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
    tmp_path, server, tiny, kind, reason, capfd
):
    url = kind if ":" in kind else server.url(kind)
    size = len(tiny.archive)
    reason = reason.format(short=f"{size - 100:,}", size=f"{size:,}", md5=md5(tiny.archive))
    with pytest.raises(InputError) as caught:
        obtain(tiny.published, tmp_path, url)
    title, fault, *advice = str(caught.value).splitlines()
    assert title.startswith("cannot download CIFAR-10")
    assert re.search(f"^{url}/{CIFAR10.name}: .*{reason}", fault)
    for word in ("ONELAYER_DATA", "--data.root", "--data.mirror", "--data.source synthetic"):
        assert word in "\n".join(advice)
    assert len(advice) == 3
    assert visible(tmp_path) == []
    assert (tmp_path / PART).stat().st_size <= size

    capfd.readouterr()
    obtain(replace(tiny.published, urls=(server.url("healthy"),)), tmp_path, url)
    assert_complete(tmp_path, tiny)
    (line,) = (line for line in capfd.readouterr().err.splitlines() if line.startswith(url))
    assert re.search(reason, line) or kind in ("short", "stops")  # of which nothing was left


def test_a_slow_source_is_left_and_the_next_goes_on(tmp_path, server, tiny, asked, capfd):
    begin = time.monotonic()
    mirrors = [server.url(kind) for kind in ("throttled", "busy", "healthy")]
    obtain(tiny.published, tmp_path, mirrors)  # throttled sends 50 kB/s, half of the least
    assert time.monotonic() - begin < 3
    assert_complete(tmp_path, tiny)
    assert [kind for kind, _ in asked] == ["throttled", "busy", "healthy"]
    assert asked[0][1] == 0 < asked[1][1] == asked[2][1] < len(tiny.archive)
    assert re.search(r"too slow: \d+(\.\d+)? kB/s", capfd.readouterr().err)


def test_the_last_source_may_be_slow(tmp_path, server, tiny, asked, capfd):
    mirrors = [server.url(kind) for kind in ("drips", "throttled")]
    obtain(tiny.published, tmp_path, mirrors)
    assert_complete(tmp_path, tiny)
    assert [kind for kind, _ in asked] == ["drips", "throttled"]
    assert "100%" in capfd.readouterr().err  # the bar


@pytest.mark.parametrize("kind", ["no_ranges", "healthy"])
def test_another_sources_wrong_bytes_are_discarded(tmp_path, server, tiny, asked, kind):
    (tmp_path / PART).write_bytes(bytes(1000))
    obtain(tiny.published, tmp_path, server.url(kind))
    assert_complete(tmp_path, tiny)
    assert asked == [("no_ranges", 1000)] if kind == "no_ranges" else [(kind, 1000), (kind, 0)]


@pytest.mark.parametrize("size", [0, 1, -1, 10**6])
def test_a_partial_file_of_any_size_is_completed(tmp_path, server, tiny, size):
    content = (tiny.archive + bytes(10**6))[: size % len(tiny.archive) if size < 0 else size]
    (tmp_path / PART).write_bytes(content)
    obtain(tiny.published, tmp_path, [server.url("other_range"), server.url("healthy")])
    assert_complete(tmp_path, tiny)


def test_a_complete_partial_file_needs_no_server(tmp_path, tiny):
    (tmp_path / PART).write_bytes(tiny.archive)
    obtain(tiny.published, tmp_path, "http://127.0.0.1:9")
    assert_complete(tmp_path, tiny)


# ---- the disk


@pytest.mark.parametrize("below", ["file", "file/root", "read-only/root", "/proc/onelayer"])
def test_where_nothing_can_be_written_the_network_is_not_tried(
    tmp_path, server, tiny, asked, below
):
    (tmp_path / "file").write_text("")
    (tmp_path / "read-only").mkdir(mode=0o500)
    if "read-only" in below and os.access(tmp_path / "read-only", os.W_OK):
        pytest.skip("this user, root, may write everywhere: chmod has no effect")
    if below.startswith("/proc") and sys.platform != "linux":
        pytest.skip("/proc is Linux's")
    root = tmp_path / below
    with pytest.raises(InputError) as caught:
        obtain(tiny.published, root, server.url("healthy"))
    assert f"cannot write to {root}" in str(caught.value)
    assert "ONELAYER_DATA" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 5
    assert asked == []


def test_a_disk_without_room_is_told_before_the_network(tmp_path, server, asked, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match="has 100 MB free, and CIFAR-10 needs 375 MB"):
        obtain(CIFAR10, tmp_path, server.url("healthy"))
    assert asked == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_not_the_servers_fault(tmp_path, server, tiny):
    (tmp_path / PART).symlink_to("/dev/full")
    with pytest.raises(InputError, match=r"cannot write to .*: No space left on device"):
        obtain(tiny.published, tmp_path, server.url("healthy"))


def test_a_folder_in_the_way_is_not_replaced(tmp_path, server, tiny):
    mine = tmp_path / CIFAR10.folder / "thesis.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(InputError, match=r"cannot write to .*: .*not empty"):
        obtain(tiny.published, tmp_path, server.url("healthy"))
    assert mine.read_text() == "mine"
    assert visible(tmp_path) == [CIFAR10.folder]


def test_only_wanted_files_are_unpacked(tmp_path):
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
from tests.support.published import make_tiny
obtain(make_tiny().published, Path(sys.argv[1]), sys.argv[2])
"""


def start(root, mirror):
    return subprocess.Popen(
        [sys.executable, "-c", OBTAIN, str(root), mirror],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path.cwd()), *sys.path])},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_several_at_once_all_succeed_with_one_download(tmp_path, server, tiny, asked):
    with ThreadPoolExecutor() as pool:
        other = pool.submit(start(tmp_path, server.url("throttled")).communicate)
        while not asked:
            time.sleep(0.01)
        obtain(tiny.published, tmp_path, server.url("healthy"))
        assert "Downloading" in other.result()[1]
    assert asked == [("throttled", 0)]
    assert_complete(tmp_path, tiny)


def test_a_killed_download_goes_on_at_the_next_start(tmp_path, server, tiny, asked):
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
