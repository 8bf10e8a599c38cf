"""Finding, verifying and reading CIFAR-10's files; nothing hostile is ever executed."""

import pickle
import pickletools
import re
from pathlib import Path

import pytest
import torch

from onelayer.core.errors import InputError
from onelayer.data.read import batches as cifar10
from onelayer.data.read.batches import CIFAR10, load, verify
from tests.data.tiny import Tiny, batch_file, labels, make_tiny, md5, pixels


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
    ours = load(data_root, "test_batch")
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


def test_a_file_is_read_without_the_others(tmp_path: Path, tiny: Tiny) -> None:
    folder = tiny.write(tmp_path)
    for root in (tmp_path, folder):
        for name in set(tiny.contents) - {"data_batch_3"}:
            (folder / name).unlink(missing_ok=True)
        images = load(root, "data_batch_3", tiny.published)
        assert torch.equal(images.x, torch.from_numpy(pixels(2)))
        assert images.y.tolist() == labels(2)
        verify(root, "data_batch_3", tiny.published)


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
        load(tmp_path, "data_batch_2", tiny.published)
    with pytest.raises(InputError, match=re.escape(str(caught.value))):
        verify(tmp_path, "data_batch_2", tiny.published)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert tiny.published.files["data_batch_2"] in message
    found = md5(path.read_bytes()) if path.is_file() else "found:    "
    assert found in message
    assert "remove" in message
    assert len(message.splitlines()) <= 5
    load(tmp_path, "data_batch_1", tiny.published)  # the others are whole


@pytest.mark.parametrize("folders", ["nothing", "empty", "other"])
def test_an_empty_root_says_where_to_put_the_files(tmp_path: Path, folders: str) -> None:
    if folders != "nothing":
        (tmp_path / "data" / CIFAR10.folder).mkdir(parents=True)
    if folders == "other":
        (tmp_path / "data" / CIFAR10.folder / "readme.html").write_text("hello")
    with pytest.raises(InputError) as caught:
        load(tmp_path / "data", "test_batch")
    message = str(caught.value)
    assert str(tmp_path / "data") in message
    for advice in ("ONELAYER_DATA", "--data.root", "--data.mirror", "--data.source synthetic"):
        assert advice in message
    assert len(message.splitlines()) <= 5


# ---- hostile pickles


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_hostile_file_in_place_of_a_batch_is_not_unpickled(tmp_path: Path, tiny: Tiny) -> None:
    victim = tmp_path / "victim"
    hostile = pickle.dumps(Touch(victim))
    pickle.loads(hostile)
    victim.unlink()  # it does work
    (tiny.write(tmp_path) / "test_batch").write_bytes(hostile)
    with pytest.raises(InputError, match="altered"):
        load(tmp_path, "test_batch", tiny.published)
    assert not victim.exists()


def test_the_tiny_files_hold_what_cifar10s_hold(data_root: Path) -> None:
    def opcodes(content: bytes) -> set[str]:
        return {opcode.name for opcode, _, _ in pickletools.genops(content)}

    real = opcodes((data_root / CIFAR10.folder / "test_batch").read_bytes())
    made = opcodes(batch_file(pixels(1), labels(1)))
    assert made <= real
    assert real - made <= {"LONG_BINPUT"}  # the real one remembers more texts
