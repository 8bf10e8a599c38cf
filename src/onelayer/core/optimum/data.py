"""The samples that a solver learns from: in chunks, weighted, perhaps shared by processes.

Axes as in :mod:`onelayer.core.formulas`: m member, n sample, d input, k class. Logits of a chunk
lie in memory as (m, k, n).
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.distributed import all_gather, all_reduce, get_world_size

from onelayer.core import formulas
from onelayer.core.checks import check_labels
from onelayer.core.errors import InputError

CHUNK = 2**20  # logits of a chunk, at most: 4 MB in float32
BYTES = 2**26  # features of a chunk, where they must be copied
SHARE = 0.75  # largest share of the features' float32 size that per-member buffers may use
LITTLE = 2**26  # bytes that they may use in any case


class Samples:
    """Features X (n, d), labels y (n,), and the weight of each sample for each member.

    The weights of a member sum to 1: 1/n each, or a row of ``weights``.

    Args:
        X: a tensor, or anything with a tensor's shape, dtype, device, ``split`` and
            ``index_select``.
        y: labels, int64, on the device of X.
        k: number of classes; by default the largest label + 1.
        weights: (g, n), finite and not negative; each row is scaled to sum to 1.
        row: the row of ``weights`` that each member uses (m,).
        shared: X and y are one process's shard: sums are added over all processes.
        bias: whether the networks have a bias; otherwise theirs is 0.
        groups: what a row of ``weights`` stands for in messages: a ``member`` or a ``fold``.

    Raises:
        InputError: shapes, dtypes, numbers or labels that nothing can be learned from.
    """

    def __init__(
        self,
        X: Any,
        y: Tensor,
        k: int | None = None,
        weights: Tensor | None = None,
        row: Tensor | None = None,
        shared: bool = False,
        bias: bool = True,
        groups: str = "member",
    ) -> None:
        check_samples(X, y)
        check_labels(y, k)
        self.X, self.y, self.shared, self.bias = X, y, shared, bias
        self.k = k or int(self._largest(y.max())) + 1
        self.n = self._count(len(y))
        self.row, self.groups = row, groups
        self.weights = None if weights is None else self._normalised(weights)
        self.shares = self._shares()
        self._check_classes()

    @property
    def d(self) -> int:
        """Number of input features."""
        return int(self.X.shape[1])

    @property
    def shard(self) -> int:
        """Samples of one process, rounded up: the same in each, so that all decide the same."""
        return -(-self.n // (get_world_size() if self.shared else 1))

    def at_once(self, each: float) -> int:
        """Return how many members of ``each`` bytes fit beside the features; 0: not even one.

        The total then stays within about two and a half times the features in float32.
        """
        return int(max(SHARE * 4 * self.d * self.shard, LITTLE) / each)

    def total(self, sums: Tensor) -> Tensor:
        """Add sums over all processes, in place."""
        if self.shared:
            all_reduce(sums)
        return sums

    def totals(self, *sums: Tensor) -> None:
        """Apply :meth:`total` to several sums of one dtype, in one message."""
        if self.shared:
            flat = self.total(torch.cat([each.flatten() for each in sums]))
            for each, added in zip(sums, flat.split([s.numel() for s in sums]), strict=True):
                each.copy_(added.view_as(each))

    def chunks(self, units: int, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Yield indices and features (n', d) in a dtype; each sample has ``units`` logits."""
        size = max(1, CHUNK // units)
        if not isinstance(self.X, Tensor) or self.X.dtype != dtype:
            size = min(size, max(1, BYTES // (self.d * dtype.itemsize)))
        start = 0
        for X in self.X.split(size):
            yield slice(start, start + len(X)), formulas.cast(X, dtype)
            start += len(X)

    def weight(self, at: slice, members: Tensor, dtype: torch.dtype) -> Tensor | float:
        """Return the weights of a chunk for some members: (m, 1, n'), or 1/n for all."""
        if self.weights is None:
            return 1 / self.n
        return self.weights[:, at][self._rows(members)].unsqueeze(1).to(dtype)

    def class_shares(self, members: Tensor) -> Tensor:
        """Return ȳ, the weight of each class for each member (m, k)."""
        if self.weights is None:
            return self.shares.expand(len(members), -1)
        return self.shares[self._rows(members)]

    def class_sums(self, members: Tensor) -> Tensor:
        """Return ``Σ w y xᵀ`` (m, k, d), with one-hot labels y, in float64."""
        if self.weights is None:
            return self._class_sums.expand(len(members), -1, -1)
        return self._class_sums[self._rows(members)]

    @cached_property
    def _class_sums(self) -> Tensor:
        groups = 1 if self.weights is None else len(self.weights)
        dtype = torch.float64 if self.X.dtype == torch.float64 else torch.float32
        sums = torch.zeros(groups, self.k, self.d, dtype=torch.float64, device=self.y.device)
        for at, X in self.chunks(groups * self.k, dtype):
            w = 1 / self.n if self.weights is None else self.weights[:, None, at].to(dtype)
            Y = torch.zeros(groups, self.k, len(X), dtype=dtype, device=X.device)
            Y.scatter_(1, self.y[at].expand(groups, 1, -1), torch.ones_like(Y[:, :1]) * w)
            sums += (Y.view(-1, len(X)) @ X).view_as(sums)
        return self.total(sums)

    def sample(self, most: int) -> Samples:
        """Return about ``most`` of the samples, drawn the same each time, without weights."""
        every = max(1, self.n // most)
        few = copy(self)
        few.weights = few.row = None
        if every > 1:
            index = spread(len(self.y), every, self.y.device)
            few.X, few.y = self.X.index_select(0, index), self.y[index]
            few.n = self._count(len(index))
        return few

    def gathered(self, X: Tensor) -> Tensor:
        """Return the samples X (n, d) of all processes, laid end to end."""
        if not self.shared:
            return X
        counts = [X.new_zeros(1, dtype=torch.int64) for _ in range(get_world_size())]
        all_gather(counts, torch.full_like(counts[0], len(X)))
        most = max(map(int, counts))
        shards = [X.new_zeros(most, X.shape[1]) for _ in counts]
        all_gather(shards, torch.cat([X, X.new_zeros(most - len(X), X.shape[1])]))
        return torch.cat([shard[: int(n)] for shard, n in zip(shards, counts, strict=True)])

    def _rows(self, members: Tensor) -> Tensor:
        return members if self.row is None else self.row[members]

    def _name(self, row: int) -> str:
        """Return what a row of the weights is called in messages."""
        if self.groups == "member" and self.row is not None:
            row = int((self.row == row).nonzero()[0])
        return f"{self.groups} {row}"

    def _count(self, n: int) -> int:
        return int(self.total(torch.tensor(float(n), dtype=torch.float64)))

    def _largest(self, value: Tensor) -> Tensor:
        if self.shared:
            all_reduce(value, torch.distributed.ReduceOp.MAX)
        return value

    def _normalised(self, weights: Tensor) -> Tensor:
        weights = weights.double()
        total = self.total(weights.sum(1, keepdim=True))
        if not bool((total > 0).all()):
            row = int((~(total > 0)).nonzero()[0, 0])
            raise InputError(
                f"the sample weights of {self._name(row)} are all zero: at least one sample needs "
                "a weight above zero."
            )
        return weights / total

    def _shares(self) -> Tensor:
        """Return the weight of each class in each row of ``weights`` (g, k)."""
        if self.weights is None:
            counts = torch.bincount(self.y, minlength=self.k).double()
            return self.total(counts).view(1, -1) / self.n
        shares = self.weights.new_zeros(len(self.weights), self.k)
        return self.total(shares.index_add_(1, self.y, self.weights))

    def _check_classes(self) -> None:
        if self.k < 2:
            raise InputError(
                "y has one class only: a classifier needs at least two. Check the labels."
            )
        missing = (~(self.shares > 0)).nonzero()
        if len(missing):
            row, k = missing[0].tolist()
            if self.weights is None:
                raise InputError(
                    f"class {k} has no sample: its bias would go to minus infinity.\n"
                    "Number the classes 0, 1, … without a gap."
                )
            raise InputError(
                f"class {k} has no sample with a weight above 0 for {self._name(row)}: its bias "
                "would go to minus infinity.\nChoose fewer folds, or other weights."
            )


def spread(n: int, every: int, device: torch.device) -> Tensor:
    """Draw one of every ``every`` samples at random: samples may repeat a pattern."""
    starts = torch.arange(0, n, every)
    jump = torch.randint(every, starts.shape, generator=torch.Generator().manual_seed(0))
    return (starts + jump).clamp_(max=n - 1).to(device)


def check_samples(X: Any, y: Tensor) -> None:
    """Raise :class:`InputError` unless X is floating and finite (n, d) and y int64 (n,)."""
    if not isinstance(y, Tensor) or not hasattr(X, "split") or not hasattr(X, "device"):
        kinds = f"a {type(X).__name__} and a {type(y).__name__}"
        raise InputError(f"X and y must be tensors, not {kinds}. Convert with torch.from_numpy.")
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
