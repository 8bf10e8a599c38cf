"""CIFAR-10's files and the built-in images: found, verified and read; nothing is executed."""

import pickle
import pickletools
import re

import pytest
import torch
from torchvision.datasets import CIFAR10 as THEIRS

from onelayer.core.errors import InputError
from onelayer.data.read import batches
from onelayer.data.read.batches import CIFAR10, CIFAR10Files, load, verify
from onelayer.data.read.shapes import Shapes
from tests.support.published import (
    DAMAGES,
    IMAGES,
    Touch,
    batch_file,
    labels,
    make_tiny,
    md5,
    pixels,
)


@pytest.fixture(scope="module")
def tiny():
    return make_tiny()


# ---- what is published


def test_digests_are_torchvisions():
    lists = [*THEIRS.train_list, *THEIRS.test_list, [THEIRS.meta["filename"], THEIRS.meta["md5"]]]
    assert dict(CIFAR10.files) == dict(lists)
    assert (CIFAR10.urls[-1], CIFAR10.name) == (THEIRS.url, THEIRS.filename)
    assert (CIFAR10.md5, CIFAR10.folder) == (THEIRS.tgz_md5, THEIRS.base_folder)


def test_names_and_images_are_those_of_the_real_files(data_root):
    meta = pickle.loads((data_root / CIFAR10.folder / "batches.meta").read_bytes())
    assert list(batches.CLASS_NAMES) == meta["label_names"]
    theirs, ours = THEIRS(str(data_root), train=False), load(data_root, "test_batch")
    planes = torch.from_numpy(theirs.data).permute(0, 3, 1, 2).reshape(10_000, 3072)
    assert torch.equal(ours.x, planes)
    assert ours.labels.tolist() == theirs.targets


# ---- finding


def test_the_root_is_the_folder_or_the_one_above(tmp_path, tiny, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for root in (tmp_path, tmp_path / "nowhere", "~/data", "~"):
        assert CIFAR10.find(root) is None
    folder = tmp_path / "data" / CIFAR10.folder
    folder.mkdir(parents=True)
    assert CIFAR10.find(tmp_path / "data") is None  # an empty folder is none
    folder.rmdir()
    assert tiny.write(tmp_path / "data") == folder
    for root in (tmp_path / "data", folder, "~/data"):
        assert CIFAR10.find(root) == folder
    assert CIFAR10.find(tmp_path) is None


@pytest.mark.parametrize("folders", ["nothing", "empty", "other"])
def test_an_empty_root_says_where_to_put_the_files(tmp_path, folders):
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


# ---- reading


def test_a_file_is_read_without_the_others(tmp_path, tiny):
    folder = tiny.write(tmp_path)
    for root in (tmp_path, folder):
        for name in set(tiny.contents) - {"data_batch_3"}:
            (folder / name).unlink(missing_ok=True)
        images = load(root, "data_batch_3", tiny.published)
        assert torch.equal(images.x, torch.from_numpy(pixels(2)))
        assert images.labels.tolist() == labels(2)
        verify(root, "data_batch_3", tiny.published)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_named_with_both_digests(tmp_path, tiny, damage):
    path = tiny.write(tmp_path) / "data_batch_2"
    damage(path)
    with pytest.raises(InputError) as caught:
        load(tmp_path, "data_batch_2", tiny.published)
    with pytest.raises(InputError, match=re.escape(str(caught.value))):
        verify(tmp_path, "data_batch_2", tiny.published)
    message = str(caught.value)
    assert message.startswith(str(path))
    found = md5(path.read_bytes()) if path.is_file() else "found:    "
    for part in (tiny.published.files["data_batch_2"], found, "remove"):
        assert part in message
    assert len(message.splitlines()) <= 5
    load(tmp_path, "data_batch_1", tiny.published)  # the others are whole


def test_a_hostile_file_in_place_of_a_batch_is_not_unpickled(tmp_path, tiny):
    victim = tmp_path / "victim"
    hostile = pickle.dumps(Touch(victim))
    pickle.loads(hostile)
    victim.unlink()  # it does work
    (tiny.write(tmp_path) / "test_batch").write_bytes(hostile)
    with pytest.raises(InputError, match="altered"):
        load(tmp_path, "test_batch", tiny.published)
    assert not victim.exists()


def test_the_tiny_files_hold_what_cifar10s_hold(data_root):
    def opcodes(content):
        return {opcode.name for opcode, _, _ in pickletools.genops(content)}

    real = opcodes((data_root / CIFAR10.folder / "test_batch").read_bytes())
    made = opcodes(batch_file(pixels(1), labels(1)))
    assert made <= real
    assert real - made <= {"LONG_BINPUT"}  # the real one remembers more texts


@pytest.mark.parametrize("kind", ["files", "shapes"])
@pytest.mark.parametrize(("pool", "size"), [("train", 5 * IMAGES), ("test", IMAGES)])
def test_any_rows_of_a_pool_are_those_of_all(tmp_path, tiny, kind, pool, size):
    tiny.write(tmp_path)
    source = Shapes(3, IMAGES) if kind == "shapes" else CIFAR10Files(tmp_path, tiny.published)
    everything = source.read(pool, [range(size)])
    assert everything.x.shape == (size, 3 * 32 * 32)
    assert everything.shape == (3, 32, 32)
    assert everything.labels.max() < len(source.classes)
    first, middle, last = range(1), range(2, size - 1), range(size - 1, size)
    for pieces in ([first], [last], [middle], [range(IMAGES)], [last, first, middle]):
        part, rows = source.read(pool, pieces), [row for piece in pieces for row in piece]
        assert torch.equal(part.x, everything.x[rows])
        assert part.labels.tolist() == everything.labels[rows].tolist()
        assert part.x.untyped_storage().nbytes() == len(rows) * 3072  # no more than itself
