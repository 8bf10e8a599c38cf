"""Batches of samples to classify: rows of a table, or image files."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from onelayer.core.errors import InputError
from onelayer.data.backbone import Extractor
from onelayer.data.features import Statistics, standardise
from onelayer.data.read.images import read_image

_BATCH = 500  # samples
_NAMED = 5  # unreadable files that a warning names


class PredictLoader:
    """Batches X (n, d) in order, standardised one at a time; with names, pairs (X, names).

    Args:
        x: features (n, d), uint8 or floating.
        statistics: mean and standard deviation that the network was trained with.
        unit: whether each row is divided by its length.
        names: names of the samples, such as files.

    Attributes:
        unreadable: number of files that were left out.
    """

    unreadable = 0

    def __init__(
        self,
        x: Tensor,
        statistics: Statistics,
        unit: bool = False,
        names: Sequence[str] | None = None,
    ) -> None:
        self.x, self.statistics, self.unit, self.names = x, statistics, unit, names

    def __len__(self) -> int:
        return -(-len(self.x) // _BATCH)

    def __iter__(self) -> Iterator[Any]:
        for i, x in enumerate(self.x.split(_BATCH)):
            X = standardise(x, self.statistics, unit=self.unit)
            yield X if self.names is None else (X, self.names[i * _BATCH :][: len(x)])


def load_images(
    paths: Sequence[Path], statistics: Statistics, shape: tuple[int, ...], unit: bool = False
) -> PredictLoader:
    """Read image files as images of a shape; leave out those that cannot be read, with a warning.

    Raises:
        InputError: no file can be read as an image, or the network was not trained on images.
    """
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise InputError(
            f"images cannot be classified: the network was trained on samples {tuple(shape)}, "
            "which are no images of 1 or 3 colours."
        )
    found, reasons = dict[str, Tensor](), list[str]()
    for path in paths:
        try:
            found[str(path)] = read_image(path, shape)
        except InputError as error:
            reasons.append(str(error).removeprefix("images: "))
    _tell(reasons, len(paths), bool(found))
    loader = PredictLoader(torch.stack(list(found.values())), statistics, unit, list(found))
    loader.unreadable = len(reasons)
    return loader


def load_features(
    paths: Sequence[Path], extractor: Extractor, statistics: Statistics, unit: bool = False
) -> PredictLoader:
    """Return the features of image files, as those that the network was trained on.

    Files that cannot be read are left out, with a warning.

    Raises:
        InputError: no file can be read as an image, or the backbone gives other features.
    """
    found, names, reasons = list[Tensor](), list[str](), list[str]()
    for read, features, faults in extractor.batches(paths):
        found += [features] if read else []
        names += map(str, read)
        reasons += faults
    _tell(reasons, len(paths), bool(found))
    loader = PredictLoader(torch.cat(found), statistics, unit, names)
    loader.unreadable = len(reasons)
    return loader


def _tell(reasons: Sequence[str], count: int, any_read: bool) -> None:
    """Warn about files that were left out; refuse if none is left."""
    if not reasons:
        return
    more = [f"and {len(reasons) - _NAMED} more."] if len(reasons) > _NAMED else []
    said = "\n".join([*reasons[:_NAMED], *more])
    if not any_read:
        raise InputError(f"images: {said}\nNothing is left to predict.")
    warnings.warn(f"left out, {len(reasons)} of {count}:\n{said}", stacklevel=3)
