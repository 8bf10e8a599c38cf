"""The rows of a data set as a solver reads them: in chunks, weighted, maybe shared by processes.

Axes as in :mod:`onelayer.core.formulas`: m member, n sample, d input, k class. Logits of a chunk
lie in memory as (m, k, n).
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from typing import Any

import torch
from torch import Tensor
from torch.distributed import all_gather, all_reduce, get_world_size

from onelayer.core import formulas
from onelayer.core.checks import check_labels
from onelayer.core.errors import InputError

CHUNK = 2**20
"""Logits of a chunk, most: 4 MB in float32."""
BYTES = 2**26
"""Features of a chunk, most bytes, where they are not rows of a tensor as they lie in memory."""

SHARE = 0.75
"""Of the features in float32: what is kept of members, logits above all, may take."""
LITTLE = 2**26
"""Bytes that they may take in any case."""


class Rows:
    """Features X (n, d) and labels y (n,), read in chunks, and the weight of each row.

    A member's weights sum to 1: they are 1/n, or, with folds, 0 for the rows of the fold that it
    leaves out and the same for all others.

    Args:
        X: a tensor, or what has its shape, dtype, device, ``split`` and ``index_select``.
        y: labels, int64, on the device of X.
        k: classes; by default as many as there are labels.
        folds: of each row, int64 (n,), where members leave out rows.
        left_out: the fold that each member leaves out (m,).
        shared: X and y are this process's share of the rows: sums are added over all processes.

    Raises:
        InputError: for shapes, dtypes, numbers or labels that nothing can be learned from.
    """

    def __init__(
        self,
        X: Any,
        y: Tensor,
        k: int | None = None,
        folds: Tensor | None = None,
        left_out: Tensor | None = None,
        shared: bool = False,
    ) -> None:
        check_rows(X, y)
        check_labels(y, k)
        self.X, self.y, self.shared = X, y, shared
        self.folds, self.left_out = folds, left_out
        self.k = k or int(self._most(y.max())) + 1
        self.n = int(self.total(torch.tensor(float(len(y)), dtype=torch.float64)))
        self.counts = self._count()
        self._check_classes()

    def at_once(self, each: float) -> int:
        """How many members of ``each`` bytes fit beside the features; 0: not even one.

        All together then stay within about two and a half times the features in float32.
        """
        return int(max(SHARE * 4 * self.d * self.share, LITTLE) / each)

    @property
    def share(self) -> int:
        """Rows of a process: the same number in each, so that all decide the same."""
        return -(-self.n // (get_world_size() if self.shared else 1))

    def shares(self, members: Tensor) -> Tensor:
        """Share ȳ of each class among the rows that a member learns from (m, k)."""
        counts = self.counts.sum(0, keepdim=True)
        if self.left_out is not None:
            counts = counts - self.counts[self.left_out[members]]
        return (counts / counts.sum(1, keepdim=True)).expand(len(members), -1)

    @property
    def d(self) -> int:
        """Input features."""
        return int(self.X.shape[1])

    def total(self, sums: Tensor) -> Tensor:
        """Sums over this process's rows, added over all processes, in place."""
        if self.shared:
            all_reduce(sums)
        return sums

    def totals(self, *sums: Tensor) -> None:
        """:meth:`total` of several sums of one dtype, in one message."""
        if self.shared:
            flat = self.total(torch.cat([each.flatten() for each in sums]))
            for each, whole in zip(sums, flat.split([s.numel() for s in sums]), strict=True):
                each.copy_(whole.view_as(each))

    def chunks(self, units: int, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Rows and their features in a dtype; ``units`` numbers are made of each row."""
        size = max(1, CHUNK // units)
        if not isinstance(self.X, Tensor) or self.X.dtype != dtype:
            size = min(size, max(1, BYTES // (self.d * dtype.itemsize)))
        start = 0
        for X in self.X.split(size):
            yield slice(start, start + len(X)), formulas.cast(X, dtype)
            start += len(X)

    def weight(self, rows: slice, members: Tensor, dtype: torch.dtype) -> Tensor | float:
        """Of each row in each member's mean: (m, 1, n), or 1/n."""
        if self.folds is None or self.left_out is None:
            return 1 / self.n
        out = self.left_out[members].view(-1, 1, 1)
        learned = self.counts.sum() - self.counts.sum(1)[out]
        return ((self.folds[rows] != out) / learned).to(dtype)

    def some(self, most: int) -> Rows:
        """About so many of the rows, for what needs no labels."""
        every = max(1, self.n // most)
        if every == 1:
            return self
        index = spread(len(self.y), every, self.y.device)
        few = copy(self)
        few.X, few.y = self.X.index_select(0, index), self.y[index]
        few.n = int(self.total(torch.tensor(float(len(index)), dtype=torch.float64)))
        return few

    def gathered(self, X: Tensor) -> Tensor:
        """Rows X (n, d) of all processes, laid end to end."""
        if not self.shared:
            return X
        counts = [X.new_zeros(1, dtype=torch.int64) for _ in range(get_world_size())]
        all_gather(counts, torch.full_like(counts[0], len(X)))
        most = max(map(int, counts))
        parts = [X.new_zeros(most, X.shape[1]) for _ in counts]
        all_gather(parts, torch.cat([X, X.new_zeros(most - len(X), X.shape[1])]))
        return torch.cat([part[: int(n)] for part, n in zip(parts, counts, strict=True)])

    def _most(self, value: Tensor) -> Tensor:
        if self.shared:
            all_reduce(value, torch.distributed.ReduceOp.MAX)
        return value

    def _count(self) -> Tensor:
        """Rows of each class in each fold (f, k)."""
        folds = torch.zeros_like(self.y) if self.folds is None else self.folds
        number = int(self._most(folds.max())) + 1
        counts = torch.bincount(folds * self.k + self.y, minlength=number * self.k)
        return self.total(counts.double()).view(number, self.k)

    def _check_classes(self) -> None:
        if self.k < 2:
            raise InputError("y has one class only: there is nothing to tell apart.")
        learned = self.counts
        if self.folds is not None:
            learned = self.counts.sum(0) - self.counts
        missing = (learned == 0).nonzero()
        if len(missing):
            fold, k = missing[0].tolist()
            where = "" if self.folds is None else f" to learn from without fold {fold}"
            raise InputError(
                f"class {k} has no row{where}: its bias would go to minus infinity.\n"
                + ("Number the classes without a gap." if not where else "Choose fewer folds.")
            )


def spread(n: int, every: int, device: torch.device) -> Tensor:
    """One of every so many of n rows, at random, the same each time: rows may repeat a pattern."""
    starts = torch.arange(0, n, every)
    jump = torch.randint(every, starts.shape, generator=torch.Generator().manual_seed(0))
    return (starts + jump).clamp_(max=n - 1).to(device)


def check_rows(X: Any, y: Tensor) -> None:
    """Raise :class:`InputError` unless X is floating and finite (n, d) and y int64 (n,)."""
    if not isinstance(y, Tensor) or not hasattr(X, "split") or not hasattr(X, "device"):
        kinds = f"a {type(X).__name__} and a {type(y).__name__}"
        raise InputError(f"X and y must be tensors, not {kinds}: torch.from_numpy makes them.")
    given = f"X {X.dtype} {tuple(X.shape)} and y {y.dtype} {tuple(y.shape)}"
    if len(X.shape) != 2 or y.shape != X.shape[:1] or not len(y) or not X.shape[1]:
        raise InputError(f"X must be (n, d) and y (n,) with n, d >= 1, not {given}.")
    if not X.dtype.is_floating_point or y.dtype != torch.int64:
        raise InputError(f"X must be floating point and y int64, not {given}.")
    start = 0
    for chunk in X.split(max(1, BYTES // (4 * X.shape[1]))):
        # A finite sum has finite terms; finite terms may still overflow.
        if not chunk.sum(dtype=torch.float32).isfinite() and len(
            bad := (~chunk.isfinite()).nonzero()
        ):
            row, column = bad[0].tolist()
            raise InputError(
                f"X[{start + row}, {column}] = {float(chunk[row, column])}: "
                "every feature must be a finite number."
            )
        start += len(chunk)
