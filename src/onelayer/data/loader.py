"""Batches by index out of resident data, in an order that is a pure function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import SequentialSampler

from onelayer.core.errors import InputError
from onelayer.data.streams import permutation

Batch = tuple[Tensor, Tensor]
"""Features (n, d) and labels (n,)."""

_CHECK_ROWS = 4096


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """Return the order in which an epoch visits ``n`` samples: a permutation, int64 (n,).

    A pure function of its arguments, the same on every machine; other pairs (seed, epoch) give
    independent orders.

    Raises:
        InputError: a negative seed or epoch.
    """
    return torch.from_numpy(permutation(n, seed, epoch))


def check_batch(X: Tensor, y: Tensor, classes: int | None = None) -> None:
    """Refuse data that would train silently wrong. For where data enters, not for every step.

    Args:
        X: features, floating (n, d).
        y: labels, int64 (n,).
        classes: how many there are; by default only negative labels are refused.

    Raises:
        InputError: other dtypes or shapes, no sample, a NaN or infinite feature, a label outside
            0 … classes - 1; naming the shapes, or the first bad row and its value.
    """
    shapes = f"X {X.dtype} {tuple(X.shape)} and y {y.dtype} {tuple(y.shape)}"
    if X.ndim != 2 or y.ndim != 1 or len(X) != len(y) or X.numel() == 0:
        raise InputError(f"a batch is X (n, d) and y (n,) with n, d >= 1, not {shapes}.")
    if not X.is_floating_point() or y.dtype != torch.int64:
        raise InputError(f"features are floating and labels int64, not {shapes}.")
    wrong = y < 0 if classes is None else (y < 0) | (y >= classes)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        legal = "0 or more" if classes is None else f"0 to {classes - 1}"
        raise InputError(
            f"y[{row}] = {int(y[row])} is no label: labels are whole numbers, {legal}."
        )
    for i, chunk in enumerate(X.split(_CHECK_ROWS)):
        # A finite sum has finite terms and costs one pass; finite terms may still overflow.
        if not chunk.sum().isfinite() and len(bad := (~chunk.isfinite()).nonzero()):
            row, column = bad[0].tolist()
            raise InputError(
                f"X[{i * _CHECK_ROWS + row}, {column}] = {float(chunk[row, column])}: "
                "every feature must be a finite number."
            )


class Block:
    """The batches of consecutive updates, as indices into the resident data.

    Attributes:
        step: number of updates done before the first of these.
        X: features, (n, d): all of them.
        y: labels (n,).
        batches: for each update, the rows of its batch, int64, on the device of ``X``. Of several
            processes each has its share, which is empty where a batch has fewer rows than there
            are processes.
        sizes: for each update, the size of its batch over all processes.

    It has a length, the number of updates, and iterating gives each update's ``(X, y)``. Not a
    dataclass: Lightning would look inside and copy it.
    """

    __slots__ = ("X", "batches", "sizes", "step", "y")

    def __init__(
        self, step: int, X: Tensor, y: Tensor, batches: Sequence[Tensor], sizes: Sequence[int]
    ) -> None:
        self.step, self.X, self.y = step, X, y
        self.batches, self.sizes = batches, sizes

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        for rows in self.batches:
            yield self.X.index_select(0, rows), self.y.index_select(0, rows)

    def to(self, device: torch.device | str) -> Block:
        """Return the block on ``device``: itself where it is there, else with only its own rows."""
        device = torch.device(device)
        here = self.X.device
        if here.type == device.type and device.index in (None, here.index):
            return self
        rows = torch.cat(list(self.batches))
        X, y = self.X.index_select(0, rows).to(device), self.y.index_select(0, rows).to(device)
        batches = torch.arange(len(rows), device=device).split([len(b) for b in self.batches])
        return Block(self.step, X, y, batches, self.sizes)


class _Following(NamedTuple):
    step: Callable[[], int]
    stop: Callable[[int], int]


class _Sampler:
    """What Lightning looks for, to say which epoch begins."""

    def __init__(self, loader: ResidentLoader) -> None:
        self._loader = loader

    def set_epoch(self, epoch: int) -> None:
        self._loader.set_epoch(epoch)


class _InOrder(_Sampler, SequentialSampler):
    """By its class Lightning knows that evaluation is not shuffled."""


class ResidentLoader:
    """A data loader over tensors in memory: no workers, no copies but the batch itself.

    Every Lightning model can use it. Its state says exactly where an epoch was left, and
    with :meth:`follow` it needs none.

    Args:
        X: features (n, d), floating.
        y: labels (n,), int64.
        batch_size: samples per update, over all processes; the last batch may be smaller.
        seed: of the order.
        shuffle: a new order every epoch; otherwise always 0 … n-1.
        rank: of this process. It gets the rows ``rank::world_size`` of every batch, so that all
            have equally many batches and an epoch holds each sample once.
        world_size: number of processes.
        classes: if given, labels from this number on are refused.

    Raises:
        InputError: a batch size outside 1 … n or below the world size, a negative seed, and all
            that :func:`check_batch` refuses.
    """

    def __init__(
        self,
        X: Tensor,
        y: Tensor,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        classes: int | None = None,
    ) -> None:
        check_batch(X, y, classes)
        if not world_size <= batch_size <= len(X):
            raise InputError(
                f"batch_size = {batch_size} does not fit {len(X)} samples: it is a whole number "
                f"from {world_size} (the number of processes) to {len(X)}."
            )
        if not 0 <= rank < world_size:
            raise InputError(f"rank = {rank} of {world_size} processes: ranks start at 0.")
        if seed < 0:
            raise InputError(f"seed = {seed}: it must be 0 or more.")
        self.X, self.y = X, y
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self.rank, self.world_size = rank, world_size
        self.sampler = _Sampler(self) if shuffle else _InOrder(self)
        self.batch_sampler = None  # Lightning looks here first
        self._following: _Following | None = None
        self._epoch = 0
        self._position = 0  # batches given out in this epoch
        self._resume = False  # whether the next iteration begins at the position
        self._order: tuple[int, Tensor] | None = None  # of the last epoch asked for

    def __len__(self) -> int:
        """Return the number of updates in an epoch."""
        return -(-len(self.X) // self.batch_size)

    def __iter__(self) -> Iterator[Batch | Block]:
        # A generator: nothing is read, and nothing decided, before the first batch is asked for.
        # Lightning makes iterators before it restores state and before hooks call `follow`.
        yield from self._batches() if self._following is None else self._blocks(self._following)

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch; a position in this very epoch stays."""
        if epoch != self._epoch:
            self._epoch, self._position = epoch, 0

    def follow(self, step: Callable[[], int], stop: Callable[[int], int]) -> None:
        """From now on give :class:`Block` objects, placed by the number of updates alone.

        Each begins at the update ``step()`` says and ends before update ``stop(step())`` or at the
        end of the epoch of the data (``step() // len(self)``), where the iteration ends, too.
        Neither set_epoch nor loaded state has a say, so resuming is exact wherever the number
        of updates is.

        Args:
            step: number of updates done so far.
            stop: given that number, one that is greater, which the block must not go beyond.
        """
        self._following = _Following(step, stop)

    def state_dict(self) -> dict[str, int]:
        """Return epoch and position: the batches of the epoch given out so far."""
        if self._following:
            epoch, position = divmod(self._following.step(), len(self))
            return {"epoch": epoch, "position": position}
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on in mid-epoch, unless another epoch is set before the first batch is asked for.

        Raises:
            InputError: a position beyond the epoch's end: the batch size or the data have changed.
        """
        epoch, position = state["epoch"], state["position"]
        if not 0 <= position <= len(self):
            raise InputError(
                f"the checkpoint stands at batch {position} of an epoch, which has {len(self)} "
                "batches here: resume with the batch size and the data it was made with."
            )
        self._epoch, self._position, self._resume = epoch, position, True

    def to(self, device: torch.device | str) -> ResidentLoader:
        """Move the resident data, and return the loader."""
        self.X, self.y = self.X.to(device), self.y.to(device)
        self._order = None
        return self

    def _batches(self) -> Iterator[Batch]:
        epoch, first = self._epoch, self._position if self._resume else 0
        self._resume = False
        for position in range(first, len(self)):
            (rows,) = self._rows(epoch, position, position + 1)
            # before the yield: Lightning saves state while it works on the batch
            self._position = position + 1
            yield self.X.index_select(0, rows), self.y.index_select(0, rows)

    def _blocks(self, following: _Following) -> Iterator[Block]:
        epoch = following.step() // len(self)
        start, end = epoch * len(self), (epoch + 1) * len(self)
        while (step := following.step()) < end:
            stop = following.stop(step)
            if stop <= step:
                raise ValueError(f"stop({step}) = {stop}: a block must end after it begins.")
            first, last = step - start, min(stop, end) - start
            sizes = [
                min(self.batch_size, len(self.X) - i * self.batch_size) for i in range(first, last)
            ]
            yield Block(step, self.X, self.y, self._rows(epoch, first, last), sizes)

    def _rows(self, epoch: int, first: int, last: int) -> list[Tensor]:
        """Return this process's rows of the batches ``first … last - 1`` of an epoch."""
        if self._order is None or self._order[0] != epoch:
            n = len(self.X)
            order = epoch_order(n, self.seed, epoch) if self.shuffle else torch.arange(n)
            self._order = epoch, order.to(self.X.device)
        rows = self._order[1][first * self.batch_size : last * self.batch_size]
        return [batch[self.rank :: self.world_size] for batch in rows.split(self.batch_size)]
