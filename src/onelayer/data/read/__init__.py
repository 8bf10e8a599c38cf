"""Data sets before they are in memory: one file per kind, each a :class:`Source`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from onelayer.core.errors import InputError
from onelayer.data.split import Pool, in_batches

SIDE = 32
PIXELS = 3 * SIDE * SIDE
"""3072: the red plane, the green, the blue, each row by row, as CIFAR-10 stores an image."""


@dataclass(frozen=True)
class Labelled:
    """Labelled rows: ``x`` uint8 or floating (n, d), and ``y`` int64 (n,), their classes from 0.

    Raises:
        InputError: other dtypes, or shapes that do not fit.
    """

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        x, y = self.x, self.y
        fits = (x.dtype == torch.uint8 or x.dtype.is_floating_point) and y.dtype == torch.int64
        if not fits or x.ndim != 2 or y.shape != x.shape[:1]:
            raise InputError(
                "features are uint8 or floating (n, d) and labels int64 (n,), not "
                f"{x.dtype} {tuple(x.shape)} and {y.dtype} {tuple(y.shape)}."
            )

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice) -> Labelled:
        """Return these rows, as views of the same memory."""
        return Labelled(self.x[rows], self.y[rows])

    def copy(self) -> Labelled:
        """Return the images in memory of their own, so that what they were cut from can go."""
        return Labelled(self.x.clone(), self.y.clone())


class Source(Protocol):
    """A data set: what is known of it before it is read, and how to read some of it.

    ``classes`` are what the labels 0, 1, … mean, ``shape`` is colours, height and width.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def classes(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102

    def size(self, pool: Pool) -> int:
        """Return how many images a pool has."""

    def read(self, pool: Pool, rows: range) -> Labelled:
        """Read these images of a pool, and hold no others; InputError if they cannot be had."""


def concatenate(pieces: Sequence[Labelled]) -> Labelled:
    """Return all images, in order; a single piece comes back as it is."""
    if len(pieces) == 1:
        return pieces[0]
    return Labelled(torch.cat([piece.x for piece in pieces]), torch.cat([p.y for p in pieces]))


def read_batches(rows: range, size: int, read: Callable[[int, int], Labelled]) -> Labelled:
    """Read rows of a pool that lies in batches of ``size``.

    ``read(i, n)`` gives the first n images of batch i, from 0, or more of them.
    """
    pieces = []
    for number, wanted in in_batches(rows, size):
        batch = read(number, wanted.stop)
        whole = wanted == range(len(batch))
        pieces.append(batch if whole else batch[wanted.start : wanted.stop].copy())
    return concatenate(pieces)
