"""Rows that train, validate and test: arithmetic of ranges, before any data is read."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from onelayer.data.random import permutation

if TYPE_CHECKING:
    from torch import Tensor

    from onelayer.data.features import Features, Statistics

VAL_SIZE = 0.1  # share of a table's rows
Split = Literal["train", "val", "test"]
"""Purpose of rows. Those to validate on are cut off "train" if there is no "val"."""


@runtime_checkable
class Splits(Protocol):
    """Interface of data for training; ``classes`` are the meanings of the labels 0, 1, …."""

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


def warn_of_val_size(size: float, usual: float, instead: str) -> None:
    """Warn that a number of rows to validate on has no effect, as ``instead`` validates."""
    if size not in (usual, 0):
        warnings.warn(
            f"data.val_size = {size} has no effect: data.{instead} is what validates. Set one of "
            "them.",
            stacklevel=3,
        )


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


def stratified(
    y: NDArray[np.int64], count: int, seed: int, groups: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut rows to validate on off those to train on, both ascending; of each class its share.

    Every class keeps a row to train on. Rows of one group stay together: then the number and the
    shares are met as nearly as random groups, taken one after the other, allow.

    Args:
        y: labels (n,).
        count: rows to validate on.
        seed: of the choice.
        groups: of each row the number of its group (n,).

    >>> train, val = stratified(np.repeat([0, 1], [8, 4]), 3, seed=0)
    >>> np.bincount(np.repeat([0, 1], [8, 4])[val]).tolist()
    [2, 1]
    """
    order = permutation(len(y), seed, *_CUT)
    sizes = np.bincount(y)
    wanted = _shares(sizes, count)
    if groups is None:
        ranks = _ranks(y[order])
        chosen = order[ranks < wanted[y[order]]]
    else:
        chosen = np.flatnonzero(np.isin(groups, _choose_groups(y, groups, order, wanted)))
    mask = np.zeros(len(y), dtype=bool)
    mask[chosen] = True
    return np.flatnonzero(~mask), np.flatnonzero(mask)


_CUT = (0, 2)  # the stream of the choice, which is no epoch's


def _shares(sizes: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """How many of each class: in proportion, by largest remainder, and never all of it."""
    exact: NDArray[np.float64] = sizes * (count / max(1, sizes.sum()))
    shares: NDArray[np.int64] = np.minimum(exact.astype(np.int64), np.maximum(sizes - 1, 0))
    for k in np.argsort(shares - exact, kind="stable"):
        if shares.sum() < count and shares[k] < sizes[k] - 1:
            shares[k] += 1
    return shares


def _ranks(y: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of equal labels before each label."""
    order = np.argsort(y, kind="stable")
    starts = np.searchsorted(y[order], y[order])
    ranks = np.empty(len(y), dtype=np.int64)
    ranks[order] = np.arange(len(y)) - starts
    return ranks


def _choose_groups(
    y: NDArray[np.int64],
    groups: NDArray[np.int64],
    order: NDArray[np.int64],
    wanted: NDArray[np.int64],
) -> list[int]:
    """Random groups, each taken where it brings the classes' counts nearer to the wanted ones."""
    k, left = len(wanted), np.bincount(y)
    by_group = np.argsort(groups, kind="stable")
    bounds = np.searchsorted(groups[by_group], np.arange(groups.max() + 2))
    have, chosen = np.zeros(k, dtype=np.int64), list[int]()
    for group in dict.fromkeys(groups[order].tolist()):
        own = np.bincount(y[by_group[bounds[group] : bounds[group + 1]]], minlength=k)
        nearer = np.abs(wanted - have - own).sum() < np.abs(wanted - have).sum()
        if nearer and ((left > own) | (own == 0)).all():
            have, left = have + own, left - own
            chosen.append(group)
    return chosen
