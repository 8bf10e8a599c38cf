"""Any map-style torch Dataset as a table: every sample read once, kept as bytes where it can be."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from onelayer.core.errors import InputError, first_line
from onelayer.data.read.convert import is_channels_last, labels, warn_of_channels_last
from onelayer.data.read.images import in_bytes, open_image, to_planes
from onelayer.data.table import Array, Table

_LOOKED_AT = 32  # samples that are read twice


def read_dataset(dataset: Any, x: str, y: str, labelled: bool = True, trains: bool = True) -> Table:
    """Read all samples of a Dataset, with a progress bar where there is a terminal.

    Args:
        dataset: with ``len`` and numbered samples: pairs (features, label), or dicts.
        x: key of the features in a dict.
        y: key of the label.
        labelled: whether labels are needed.
        trains: whether it is trained on: then its transform must not be random.

    Raises:
        InputError: an item is not a sample, or not of the first one's shape; naming its number.
    """
    where = type(dataset).__name__
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise InputError(
            f"{where} is no map-style Dataset: len(dataset) and dataset[i] are needed."
        )
    dataset = _with_our_reader(dataset)
    _check_fixed(dataset, x, y, where, trains)
    rows, values, scaled = list[Tensor](), list[Any](), False
    numbers = range(len(dataset))
    for i in tqdm(numbers, f"reading {where}", disable=None, file=sys.stderr, leave=False):
        sample = _sample(dataset, i, x, y, where)
        if not i:
            shape, scaled = sample.shape, sample.x.is_floating_point()
            if tuple(sample.x.shape) != shape:
                warn_of_channels_last(shape, where)
        if sample.shape != shape:
            raise InputError(
                f"{where}: sample {i} has the shape {sample.shape}, and the first {shape}: all "
                "must be alike.\nResize them with a transform of the Dataset."
            )
        rows.append(_compact(sample.x.flatten()) if scaled else sample.x.flatten())
        values.append(sample.label)
    if not values:
        raise InputError(f"{where} is empty: it has no sample.")
    y_ = _label_array(values, f"{where}: label") if labelled else None
    names = class_names(dataset, y) if labelled else None
    return Table(_stacked(rows, scaled), y_, None, names, where, shape=sample.image)


def _with_our_reader(dataset: Any) -> Any:
    """Return a folder of torchvision's that reads its files as predict does; others as given.

    Its own reader makes images of 16 bits white, and does not turn photos.
    """
    folder: Any = sys.modules.get("torchvision.datasets.folder")
    if folder is None or getattr(dataset, "loader", None) is not folder.default_loader:
        return dataset
    dataset = copy(dataset)
    dataset.loader = lambda path: open_image(path).convert("RGB")
    return dataset


def _check_fixed(dataset: Any, x: str, y: str, where: str, trains: bool) -> None:
    """Refuse, or warn of, a transform that gives another sample each time it is asked.

    Every sample is read once: what is random would be frozen.
    """

    def read(seed: int) -> list[_Sample]:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        return [_sample(dataset, i, x, y, where) for i in range(min(len(dataset), _LOOKED_AT))]

    with isolate_rng(include_cuda=False):
        once, again = read(1), read(2)
    pairs = enumerate(zip(once, again, strict=True))
    changed = [i for i, (a, b) in pairs if not _equal(a.x, b.x) or str(a.label) != str(b.label)]
    if not changed:
        return
    told = (
        f"{where}: sample {changed[0]} is another one each time it is read: its transform is "
        "random.\nEvery sample is read once, and would be frozen as it was then."
    )
    if trains:
        raise InputError(
            f"{told}\nGive the Dataset a fixed transform, and change training images with "
            "--data.flip, --data.shift or --data.transform."
        )
    warnings.warn(f"{told}\nGive the Dataset a fixed transform.", stacklevel=2)


def _equal(A: Tensor, B: Tensor) -> bool:
    return A.shape == B.shape and bool(((A == B) | (A.isnan() & B.isnan())).all())


class HuggingFace(Dataset[Any]):
    """A data set of the Hugging Face Hub, or in files that its library ``datasets`` reads.

    Args:
        path: name of the data set, or a folder: of files, or what ``save_to_disk`` wrote.
        split: train, test and the like; ignored if the folder holds only one.
        name: of the configuration, if there are several.

    Raises:
        InputError: the library is not installed, or the folder has no such split.
    """

    def __init__(self, path: str, split: str, name: str | None = None) -> None:
        try:
            import datasets  # type: ignore[import-not-found,import-untyped,unused-ignore]
        except ImportError as error:
            raise InputError(
                f"{path}: datasets reads it, and is not installed:\n"
                'pip install "onelayer[datasets]"'
            ) from error
        if any((Path(path) / kept).is_file() for kept in ("state.json", "dataset_dict.json")):
            self.data = _split_of(datasets.load_from_disk(path), split, path)
        else:
            self.data = datasets.load_dataset(path, name, split=split)
        self.features = self.data.features
        self.name = f"{Path(path).name}/{name}" if name else Path(path).name

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> Any:
        return self.data[i]


def _split_of(saved: Any, split: str, path: str) -> Any:
    if not isinstance(saved, Mapping):
        return saved
    if split not in saved:
        raise InputError(f"{path} has no split {split!r}: it has {', '.join(saved)}.")
    return saved[split]


class _Sample(NamedTuple):
    """Features, images as (c, height, width); the label; and the shape as the Dataset has it."""

    x: Tensor
    label: Any
    shape: tuple[int, ...]

    @property
    def image(self) -> tuple[int, ...]:
        """Return channels, height and width; () if the sample is not an image."""
        return tuple(self.x.shape) if self.x.ndim == 3 else ()


def _sample(dataset: Any, i: int, x: str, y: str, where: str) -> _Sample:
    try:
        given = dataset[i]
    except Exception as error:  # whatever somebody else's code, or a damaged file, raises
        raise InputError(f"{where}: sample {i} cannot be read: {first_line(error)}.") from error
    where = f"{where}: sample {i}"
    features, label = _pair(given, x, y, where)
    tensor = _tensor(features, where)
    shape = tuple(tensor.shape)
    if tensor.ndim == 3 and not _is_picture(features) and is_channels_last(shape, where):
        tensor = tensor.permute(2, 0, 1)
    return _Sample(tensor, label, shape)


def _is_picture(value: Any) -> bool:
    """Return whether a sample is a Pillow image."""
    return hasattr(value, "convert") and hasattr(value, "mode")


def _pair(sample: Any, x: str, y: str, where: str) -> tuple[Any, Any]:
    if isinstance(sample, Mapping):
        for argument, key in (("x", x), ("y", y)):
            if key not in sample:
                keys = ", ".join(map(str, sample))
                raise InputError(
                    f"{where} has no {key!r}: it has {keys}.\nSay which with --data.{argument} KEY."
                )
        return sample[x], sample[y]
    if not isinstance(sample, tuple | list) or len(sample) < 2:
        raise InputError(
            f"{where} is a {type(sample).__name__}: a pair (features, label) or a dict is needed."
        )
    return sample[0], sample[1]


def _tensor(value: Any, where: str) -> Tensor:
    """Return a sample as a tensor; images become (c, height, width), Pillow's as bytes."""
    if _is_picture(value):
        try:
            return to_planes(in_bytes(value))
        except ValueError as error:
            raise InputError(f"{where}: {first_line(error)}.") from error
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{where} is a {type(value).__name__}: images, tensors or arrays of numbers are needed."
        ) from error
    return tensor if tensor.ndim else tensor.unsqueeze(0)


def _compact(x: Tensor) -> Tensor:
    """Return a sample as bytes if they hold all of it, as pixels x/255 from 0 to 1."""
    if not x.is_floating_point():
        return x
    found = (x * 255).round_().clamp_(0, 255).byte()
    return found if torch.equal(found.to(x.dtype).div_(255), x) else x


def _stacked(rows: Sequence[Tensor], scaled: bool) -> Tensor:
    """Return rows as features (n, d): bytes if all are, else float32.

    Args:
        rows: rows (d,), made compact.
        scaled: whether bytes stand for pixels from 0 to 1.
    """
    if all(row.dtype == torch.uint8 for row in rows):
        return torch.stack(list(rows))
    scale = 255 if scaled else 1
    return torch.stack(
        [row.float() / scale if row.dtype == torch.uint8 else row.float() for row in rows]
    )


def _label_array(values: list[Any], where: str) -> Array:
    plain = [value.item() if hasattr(value, "item") else value for value in values]
    return labels(np.array(plain), where)


def class_names(dataset: Any, y: str) -> list[str] | None:
    """Return the names of the classes, as torchvision and Hugging Face keep them, or None."""
    names = getattr(dataset, "classes", None)
    features = getattr(dataset, "features", None)
    if names is None and isinstance(features, Mapping):
        names = getattr(features.get(y), "names", None)
    return None if names is None else [str(name) for name in names]
