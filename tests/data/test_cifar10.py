"""Finding, verifying and decoding CIFAR-10's files; nothing hostile is ever executed."""

import pickle
import pickletools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from onelayer.core.errors import InputError
from onelayer.data import cifar10
from onelayer.data.cifar10 import CIFAR10, decode, load
from tests.data.tiny import (
    IMAGES,
    TRAIN,
    Tiny,
    batch_file,
    labels,
    make_tiny,
    md5,
    pixels,
    python3_batch_file,
)


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return make_tiny()


# ---- what is published


def test_digests_are_torchvisions() -> None:
    from torchvision.datasets import CIFAR10 as THEIRS

    lists = [*THEIRS.train_list, *THEIRS.test_list, [THEIRS.meta["filename"], THEIRS.meta["md5"]]]
    assert dict(CIFAR10.files) == dict(lists)
    assert (CIFAR10.urls[-1], CIFAR10.name) == (THEIRS.url, THEIRS.filename)
    assert (CIFAR10.md5, CIFAR10.folder) == (THEIRS.tgz_md5, THEIRS.base_folder)


def test_class_names_are_the_files(data_root: Path) -> None:
    meta = pickle.loads((data_root / CIFAR10.folder / "batches.meta").read_bytes())
    assert list(cifar10.CLASS_NAMES) == meta["label_names"]


def test_the_real_images_are_torchvisions(data_root: Path) -> None:
    from torchvision.datasets import CIFAR10 as THEIRS

    theirs = THEIRS(str(data_root), train=False)
    ours = load(data_root, ["test_batch"])
    planes = torch.from_numpy(theirs.data).permute(0, 3, 1, 2).reshape(10_000, 3072)
    assert torch.equal(ours.x, planes)
    assert ours.y.tolist() == theirs.targets


# ---- finding


def test_the_root_is_the_folder_or_the_one_above(tmp_path: Path, tiny: Tiny) -> None:
    assert CIFAR10.find(tmp_path) is None
    assert CIFAR10.find(tmp_path / "nowhere") is None
    folder = tmp_path / "data" / CIFAR10.folder
    folder.mkdir(parents=True)
    assert CIFAR10.find(tmp_path / "data") is None  # an empty folder is none
    folder.rmdir()
    assert tiny.write(tmp_path / "data") == folder
    assert CIFAR10.find(tmp_path / "data") == CIFAR10.find(folder) == folder
    assert CIFAR10.find(tmp_path) is None


def test_a_home_folder_is_expanded(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert CIFAR10.find("~/sets") is None
    assert CIFAR10.find("~") is None
    folder = tiny.write(tmp_path / "sets")
    assert CIFAR10.find("~/sets") == folder


# ---- loading


def test_files_are_read_in_the_order_asked_for(tmp_path: Path, tiny: Tiny) -> None:
    tiny.write(tmp_path)
    images = load(tmp_path, ["data_batch_3", "data_batch_1", "test_batch"], tiny.published)
    assert torch.equal(images.x, torch.from_numpy(np.concatenate([pixels(i) for i in (2, 0, 5)])))
    assert images.y.tolist() == labels(2) + labels(0) + labels(5)


def damage_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def damage_swap(path: Path) -> None:
    path.write_bytes((path.parent / "data_batch_1").read_bytes())


def damage_remove(path: Path) -> None:
    path.unlink()


def damage_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage",
    [damage_truncate, damage_empty, damage_flip, damage_swap, damage_remove, damage_folder],
)
def test_a_damaged_file_is_named_with_both_digests(tmp_path, tiny: Tiny, damage) -> None:
    path = tiny.write(tmp_path) / "data_batch_2"
    damage(path)
    with pytest.raises(InputError) as caught:
        load(tmp_path, ["data_batch_1", "data_batch_2"], tiny.published)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert tiny.published.files["data_batch_2"] in message
    found = md5(path.read_bytes()) if path.is_file() else "found:    "
    assert found in message
    assert "remove" in message
    assert len(message.splitlines()) <= 5
    load(tmp_path, ["data_batch_1"], tiny.published)  # the others are whole


@pytest.mark.parametrize("folders", ["nothing", "empty", "other"])
def test_an_empty_root_says_where_to_put_the_files(tmp_path: Path, folders: str) -> None:
    if folders != "nothing":
        (tmp_path / "data" / CIFAR10.folder).mkdir(parents=True)
    if folders == "other":
        (tmp_path / "data" / CIFAR10.folder / "readme.html").write_text("hello")
    with pytest.raises(InputError) as caught:
        load(tmp_path / "data", TRAIN)
    message = str(caught.value)
    assert str(tmp_path / "data") in message
    for advice in ("ONELAYER_DATA", "--data.root", "--data.mirror", "--data.source synthetic"):
        assert advice in message
    assert len(message.splitlines()) <= 5


def test_the_bytes_that_are_checked_are_those_that_are_decoded(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write(tmp_path)
    evil = batch_file(pixels(99), labels(99))
    read = Path.read_bytes

    def read_then_replace(path: Path) -> bytes:
        content = read(path)
        path.write_bytes(evil)
        return content

    monkeypatch.setattr(Path, "read_bytes", read_then_replace)
    images = load(tmp_path, ["test_batch"], tiny.published)
    assert torch.equal(images.x, torch.from_numpy(pixels(5)))
    with pytest.raises(InputError, match="altered"):
        load(tmp_path, ["test_batch"], tiny.published)


# ---- hostile pickles


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class Run:
    """Runs Python when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return exec, (f"open({str(self.path)!r}, 'w').close()",)


def stack_build(path: Path) -> bytes:
    """Try to reach os.system through attributes of an admitted name."""
    return b"cnumpy\nndarray\n}(U\x08__init__cos\nsystem\nubU\x04" + b"true" + b"\x85R."


def posix_system(path: Path) -> bytes:
    return b"cposix\nsystem\n(U" + bytes([len(f"touch {path}")]) + f"touch {path}".encode() + b"tR."


def dotted(path: Path) -> bytes:
    """Protocol 4 may name attributes of attributes."""
    code = f"open({str(path)!r}, 'w').close()"
    return pickle.PROTO + b"\x04" + b"\x8c\x05numpy\x8c\x0fndarray.__new__\x93." + code.encode()


def extension(path: Path) -> bytes:
    return b"\x80\x02\x82\x01)R."


def persistent(path: Path) -> bytes:
    return b"\x80\x02U\x01aQ."


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("hostile", [Touch, Run])
def test_a_pickle_that_would_act_does_not(tmp_path: Path, hostile, protocol: int) -> None:
    victim = tmp_path / "victim"
    content = pickle.dumps({b"data": hostile(victim), b"labels": labels(0)}, protocol)
    pickle.loads(content)
    assert victim.exists()  # it does work
    victim.unlink()
    with pytest.raises(InputError, match="no batch file"):
        decode(content, IMAGES)
    assert not victim.exists()


@pytest.mark.parametrize("hostile", [stack_build, posix_system, dotted, extension, persistent])
def test_no_opcode_reaches_further(tmp_path: Path, hostile) -> None:
    victim = tmp_path / "v"
    with pytest.raises(InputError, match="no batch file"):
        decode(hostile(victim), IMAGES)
    assert not victim.exists()


def test_a_hostile_file_in_place_of_a_batch_is_not_even_decoded(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    hostile = pickle.dumps(Touch(victim))
    (tiny.write(tmp_path) / "test_batch").write_bytes(hostile)
    with monkeypatch.context() as patch:
        patch.setattr(cifar10, "decode", pytest.fail)
        with pytest.raises(InputError, match="altered"):
            load(tmp_path, ["test_batch"], tiny.published)
    fooled = replace(tiny.published, files={"test_batch": md5(hostile)})  # as if MD5 were broken
    with pytest.raises(InputError, match=r"test_batch is no batch file .* asks for"):
        load(tmp_path, ["test_batch"], fooled)
    assert not victim.exists()


# ---- decoding


@pytest.mark.parametrize("write", [batch_file, python3_batch_file])
def test_python_2s_and_3s_files_are_decoded(write) -> None:
    images = decode(write(pixels(1), labels(1)), IMAGES)
    assert torch.equal(images.x, torch.from_numpy(pixels(1)))
    assert images.y.tolist() == labels(1)


def test_the_tiny_files_hold_what_cifar10s_hold(data_root: Path) -> None:
    def opcodes(content: bytes) -> set[str]:
        return {opcode.name for opcode, _, _ in pickletools.genops(content)}

    real = opcodes((data_root / CIFAR10.folder / "test_batch").read_bytes())
    made = opcodes(batch_file(pixels(1), labels(1)))
    assert made <= real
    assert real - made <= {"LONG_BINPUT"}  # the real one remembers more texts


X = pixels(1)
Y = labels(1)


@pytest.mark.parametrize(
    ("batch", "reason"),
    [
        ([], "no dict"),
        ({}, "data"),
        ({b"data": X}, "labels"),
        ({b"labels": Y}, "data"),
        ({b"data": X.tolist(), b"labels": Y}, "state"),
        ({b"data": X.astype(np.int8), b"labels": Y}, "uint8"),
        ({b"data": X.astype(np.float32), b"labels": Y}, "uint8"),
        ({b"data": X[:-1], b"labels": Y}, "3072"),
        ({b"data": X[:, :-1], b"labels": Y}, "3072"),
        ({b"data": X.reshape(-1), b"labels": Y}, "3072"),
        ({b"data": np.asfortranarray(X), b"labels": Y}, "row by row"),
        ({b"data": X, b"labels": Y[:-1]}, "list of 6"),
        ({b"data": X, b"labels": tuple(Y)}, "list of 6"),
        ({b"data": X, b"labels": [*Y[:3], 10, *Y[4:]]}, "label 3 is 10"),
        ({b"data": X, b"labels": [*Y[:3], -1, *Y[4:]]}, "label 3 is -1"),
        ({b"data": X, b"labels": [*Y[:3], -100, *Y[4:]]}, "label 3 is -100"),
        ({b"data": X, b"labels": [*Y[:3], True, *Y[4:]]}, "label 3 is bool"),
        ({b"data": X, b"labels": [*Y[:3], 1.0, *Y[4:]]}, "label 3 is float"),
        ({b"data": X, b"labels": [*Y[:3], "cat", *Y[4:]]}, "label 3 is str"),
    ],
)
def test_what_is_no_batch_is_refused(batch: object, reason: str) -> None:
    with pytest.raises(InputError, match=f"the name is no batch file of CIFAR-10 .*{reason}"):
        decode(pickle.dumps(batch, 4), IMAGES, "the name")


def refused_or_whole(content: bytes) -> None:
    """The only two outcomes that random bytes may have."""
    try:
        images = decode(content, IMAGES)
    except InputError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017
        assert len(str(error)) < 400  # noqa: PT017
    else:
        assert images.x.shape == (IMAGES, 3072)
        assert 0 <= int(images.y.min()) <= int(images.y.max()) <= 9


@given(st.binary(max_size=200))
@example(b"\x80\x05N\x96\xff\xff\xff\xff\xff\xff\xff\x7f.")  # a bytearray of 2^63 bytes
@example(b"Nr\xff\xff\xff\xff.")  # a memory of 2^32 slots
@example(b"(" * 10_000)
@example(b"]" * 100 + b"a" * 99 + b".")
@example(b"I" + b"9" * 5000 + b"\n.")
def test_random_bytes_are_refused(content: bytes) -> None:
    refused_or_whole(content)


ORIGINALS = [batch_file(X, Y), python3_batch_file(X, Y)]
places = st.integers(0, 10**6)
# the pickle's own words, before and after the pixels
words = st.one_of(st.integers(0, 260), st.integers(-60, -1), places)
changes = st.lists(st.tuples(words, st.binary(max_size=6), st.integers(0, 6)), max_size=5)


@given(original=st.sampled_from(ORIGINALS), changes=changes)
def test_damaged_files_are_refused_or_still_images(original: bytes, changes) -> None:
    content = bytearray(original)
    for place, new, length in changes:
        at = place % max(len(content), 1)
        content[at : at + length] = new
    refused_or_whole(bytes(content))


@pytest.mark.parametrize("end", [0, 1, 2, 50, 250, 5000, -1])
def test_truncated_files_are_refused(end: int) -> None:
    for original in ORIGINALS:
        with pytest.raises(InputError):
            decode(original[:end], IMAGES)


def test_other_sets_can_be_published(tmp_path: Path) -> None:
    content = batch_file(pixels(3, 2), labels(3, 2))
    other = replace(CIFAR10, folder="f", files={"b": md5(content)}, images=2)
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "b").write_bytes(content)
    assert len(load(tmp_path, ["b", "b"], other)) == 4
