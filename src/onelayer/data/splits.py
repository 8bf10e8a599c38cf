"""Which rows train, validate and test: arithmetic of ranges, before any data is read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from onelayer.data.features import Features, Statistics

Split = Literal["train", "val", "test"]
"""What rows are for. Training and validation rows come from the pool "train"."""

Pool = Literal["train", "test"]
"""The two sets of images in which a data set is published."""


@runtime_checkable
class Splits(Protocol):
    """What training asks of a data module; ``classes`` are what the labels 0, 1, … mean."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def classes(self) -> Sequence[str]: ...  # noqa: D102

    def tensors(self, split: Split) -> tuple[Features, Tensor] | None:
        """Return a split's features (n, d) and labels (n,); None where there is no such split."""


@runtime_checkable
class Standardised(Splits, Protocol):
    """Splits of standardised features; the network keeps ``statistics`` (d,) for new samples."""

    @property
    def statistics(self) -> Statistics: ...  # noqa: D102


def pool_of(split: Split) -> Pool:
    """Return the pool that a split is cut from."""
    return "test" if split == "test" else "train"


def take(pieces: Sequence[range], start: int, stop: int) -> list[range]:
    """Return the rows ``start … stop - 1`` of pieces laid end to end; there may be fewer.

    >>> take([range(30, 40), range(10, 20)], 7, 15)
    [range(37, 40), range(10, 15)]
    """
    taken = []
    for piece in pieces:
        taken.append(piece[max(start, 0) : max(stop, 0)])
        start, stop = start - len(piece), stop - len(piece)
    return [piece for piece in taken if piece]


def split_rows(
    train: Sequence[range],
    val: Sequence[range] | int,
    test: Sequence[range],
    limit: int | None = None,
) -> dict[Split, list[range]]:
    """Return the rows of each split, in order; no rows, no split.

    Args:
        train: rows of the pool "train" to train and validate on.
        val: other rows of it to validate on, or how many of the last of ``train`` do.
        test: rows of the pool "test".
        limit: keep only the first so many rows of each split.

    >>> split_rows([range(10)], 3, [range(5)], limit=4)
    {'train': [range(0, 4)], 'val': [range(7, 10)], 'test': [range(0, 4)]}
    """
    if isinstance(val, int):
        total = sum(map(len, train))
        train, val = take(train, 0, total - val), take(train, total - val, total)
    splits: dict[Split, Sequence[range]] = {"train": train, "val": val, "test": test}
    return {
        name: take(rows, 0, sum(map(len, rows)) if limit is None else limit)
        for name, rows in splits.items()
    }


def in_batches(rows: range, size: int) -> Iterator[tuple[int, range]]:
    """Give, for each batch of ``size`` rows that ``rows`` touch, its number and rows within it.

    >>> list(in_batches(range(8, 25), 10))
    [(0, range(8, 10)), (1, range(0, 10)), (2, range(0, 5))]
    """
    for number in range(rows.start // size, -(-rows.stop // size)):
        first = number * size
        yield number, range(max(rows.start - first, 0), min(rows.stop - first, size))
