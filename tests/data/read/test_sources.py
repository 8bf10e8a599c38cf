"""Labelled images, and what every source keeps to."""

from pathlib import Path

import pytest
import torch

from onelayer.core.errors import InputError
from onelayer.data.read import Labelled, Source, concatenate
from onelayer.data.read.batches import CIFAR10Files
from onelayer.data.read.shapes import Shapes
from onelayer.data.split import Pool
from tests.data.test_features import random_bytes
from tests.data.tiny import IMAGES, make_tiny


def test_images_are_cut_and_joined() -> None:
    images = Labelled(random_bytes(7, 5), torch.arange(7))
    parts = [images[:2], images[2:3], images[3:]]
    assert [len(part) for part in parts] == [2, 1, 4]
    whole = concatenate(parts)
    assert torch.equal(whole.x, images.x)
    assert torch.equal(whole.y, images.y)


def test_a_copy_holds_no_more_than_itself() -> None:
    part = Labelled(random_bytes(100, 5), torch.arange(100))[:2].copy()
    assert part.x.untyped_storage().nbytes() == 10
    assert part.y.untyped_storage().nbytes() == 16


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.int32), torch.zeros(2, dtype=torch.int64), "uint8"),
        (torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(2), "int64"),
        (torch.zeros(2, 3, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), r"\(2, 3\)"),
        (torch.zeros(6, dtype=torch.uint8), torch.zeros(6, dtype=torch.int64), r"\(6,\)"),
    ],
)
def test_what_is_no_image_is_refused(x: torch.Tensor, y: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Labelled(x, y)


# ---- sources


@pytest.fixture(params=["files", "shapes"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    if request.param == "shapes":
        return Shapes(3, IMAGES)
    tiny = make_tiny()
    tiny.write(tmp_path)
    return CIFAR10Files(tmp_path, tiny.published)


@pytest.mark.parametrize(("pool", "size"), [("train", 5 * IMAGES), ("test", IMAGES)])
def test_any_rows_of_a_pool_are_those_of_all(source: Source, pool: Pool, size: int) -> None:
    assert source.size(pool) == size
    everything = source.read(pool, range(size))
    assert everything.x.shape == (size, 3 * 32 * 32)
    assert int(everything.y.max()) < len(source.classes)
    for rows in (range(1), range(size - 1, size), range(2, size - 1), range(IMAGES)):
        part = source.read(pool, rows)
        assert torch.equal(part.x, everything.x[rows.start : rows.stop])
        assert torch.equal(part.y, everything.y[rows.start : rows.stop])
