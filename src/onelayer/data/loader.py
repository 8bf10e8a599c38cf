"""Batches by index out of resident data, in an order that is a pure function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import SequentialSampler

from onelayer.core.checks import (
    check_labels,
    check_pair,
    check_same,
    check_weight,
    check_whole,
)
from onelayer.core.errors import InputError
from onelayer.data.augment import Augmentation
from onelayer.data.features import Features
from onelayer.data.random import permutation

Batch = tuple[Tensor, ...]
"""Features (n, d) and labels (n,), and weights (n,) if samples have any."""

AT_A_TIME = 2**23
"""Bytes of features that are taken out, and changed, at a time: a few batches, or one."""

_CHECK_ROWS = 4096


def epoch_order(n: int, seed: int, epoch: int) -> Tensor:
    """Return the order in which an epoch visits ``n`` samples: a permutation, int64 (n,)."""
    return torch.from_numpy(permutation(n, seed, epoch))


def check_batch(X: Features, y: Tensor, classes: int | None = None) -> None:
    """Refuse data that would train silently wrong. For where data enters, not for every step.

    Raises:
        InputError: other dtypes or shapes than floating X (n, d) and int64 y (n,), no sample, a NaN
            or infinite feature, a label below 0 or, if ``classes`` is given, from there on.
    """
    check_pair(X, y)
    check_labels(y, classes)
    check_finite(X)


def check_finite(X: Features) -> None:
    """Raise :class:`InputError`, naming the first, for a NaN or infinite feature in X (n, d)."""
    for i, chunk in enumerate(X.split(_CHECK_ROWS)):
        # A finite sum has finite terms and costs one pass; finite terms may still overflow.
        if not chunk.sum().isfinite() and len(bad := (~chunk.isfinite()).nonzero()):
            row, column = bad[0].tolist()
            raise InputError(
                f"X[{i * _CHECK_ROWS + row}, {column}] = {float(chunk[row, column])}: "
                "every feature must be a finite number."
            )


class _Sampler:
    """Object by which Lightning sets the epoch."""

    def __init__(self, loader: ResidentLoader) -> None:
        self.set_epoch = loader.set_epoch


class _InOrder(_Sampler, SequentialSampler):
    """By its class Lightning knows that a loader is not shuffled."""


class ResidentLoader:
    """Batches ``(X, y)`` of tensors in memory, for any Lightning module or any loop.

    With ``weight`` batches are ``(X, y, weight)``.

    Its state says exactly where an epoch was left: the rest is then the same, batch for batch.

    Args:
        X: features (n, d), floating.
        y: labels (n,), int64.
        batch_size: samples per update, over all processes; the last batch may be smaller.
        seed: of the order.
        shuffle: a new order every epoch; otherwise always 0 … n-1. Lightning's overfit_batches
            needs False with a module other than OneLayer, whose trainings see to it themselves.
        rank: of this process, which gets the rows ``rank::world_size`` of every batch. By default
            what torch.distributed says when an epoch begins.
        world_size: number of processes; by default the same.
        classes: if given, labels from this number on are refused.
        augment: changes to the images of each batch.
        checked: whether X and y were checked already, where they were read.
        weight: weights of the samples (n,), not negative.

    Raises:
        InputError: a value out of its range, or what :func:`check_batch` refuses.
    """

    advice = "Resume with the data and the batch size of the run, or start a new run."

    def __init__(
        self,
        X: Features,
        y: Tensor,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = True,
        rank: int | None = None,
        world_size: int | None = None,
        classes: int | None = None,
        augment: Augmentation | None = None,
        checked: bool = False,
        weight: Tensor | None = None,
    ) -> None:
        if not checked:
            check_batch(X, y, classes)
            if weight is not None:
                check_weight(weight, len(y))
        if (rank is None) != (world_size is None):
            raise InputError(f"rank = {rank} and world_size = {world_size}: give both or neither.")
        if rank is not None and world_size is not None:
            check_whole("rank", rank, 0, world_size - 1)
        check_whole("seed", seed, 0)
        self.X, self.y, self.augment, self.weight = X, y, augment, weight
        self.batch_size, self.seed, self.shuffle = batch_size, seed, shuffle
        self._processes = None if rank is None or world_size is None else (rank, world_size)
        self._check_batch_size()
        self._epoch = 0
        self._position = 0  # batches given out in this epoch
        self._resume = False  # whether the next iteration begins at the position

    def __len__(self) -> int:
        return -(-len(self.X) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        # A generator: nothing is read, and nothing decided, before the first batch is asked for.
        # Lightning makes an iterator before it restores state.
        epoch, first = self._epoch, self._position if self._resume else 0
        self._resume = False
        self._check_batch_size()
        rows = self._rows(epoch)
        rank, world_size = self.processes
        batches = rows.split(self.batch_size)[first:]
        together = self._together()
        for start in range(0, len(batches), together):
            own = [batch[rank::world_size] for batch in batches[start : start + together]]
            for position, batch in enumerate(self._taken(own, epoch), first + start):
                # before the yield: Lightning saves state while it works on the batch
                self._position = position + 1
                yield batch

    def _together(self) -> int:
        """How many batches are taken out of the features at a time."""
        return max(1, AT_A_TIME // (self.batch_size * self.X.shape[1] * self.X.dtype.itemsize))

    def _taken(self, batches: list[Tensor], epoch: int) -> Iterator[Batch]:
        """Take the rows of several batches out at once: each call to torch costs time."""
        rows, sizes = torch.cat(batches), [len(batch) for batch in batches]
        take = self.augment
        X = take(self.X, rows, epoch) if take else self.X.index_select(0, rows)
        values = [self.y] if self.weight is None else [self.y, self.weight]
        others = [value.index_select(0, rows).split(sizes) for value in values]
        return zip(X.split(sizes), *others, strict=True)

    @property
    def sampler(self) -> _Sampler:
        """Object that sets the epoch; a SequentialSampler if the order is always the same."""
        return _Sampler(self) if self.shuffle else _InOrder(self)

    @property
    def batch_sampler(self) -> None:
        """None: Lightning reads it before ``sampler`` to find ``set_epoch``."""

    @property
    def processes(self) -> tuple[int, int]:
        """Rank and world size: as given, else as torch.distributed has them now."""
        if self._processes is not None:
            return self._processes
        if dist.is_available() and dist.is_initialized():
            return dist.get_rank(), dist.get_world_size()
        return 0, 1

    def last_batch_size(self) -> int:
        """Return the size, over all processes, of the batch given out last in this epoch."""
        start = (self._position - 1) * self.batch_size
        return min(self.batch_size, len(self.X) - start)

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch; a position in this very epoch stays."""
        if epoch != self._epoch:
            self._epoch, self._position = epoch, 0

    def state_dict(self) -> dict[str, int]:
        """Return what decides the order, and the place in it: epoch, and its batches given out."""
        return {
            **{name: getattr(self, name) for name in ("batch_size", "seed", "shuffle")},
            "samples": len(self.X),
            "epoch": self._epoch,
            "position": self._position,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on in mid-epoch, unless another epoch is set before the first batch is asked for.

        Raises:
            InputError: other batches than those of the state, or a position beyond the epoch's end.
        """
        if not isinstance(state, dict):
            raise InputError(f"the checkpoint's state of a loader is {state!r}: it is damaged.")
        epoch, position = state.get("epoch", -1), state.get("position", -1)
        check_whole("the checkpoint's epoch of the batches", epoch, 0)
        check_whole("the checkpoint's position in it", position, 0)
        # Not shuffle, which a trainer may still turn off: see onelayer.training.resume.
        here: dict[str, Any] = {"samples": len(self.X)}
        here |= {"batch_size": self.batch_size, "seed": self.seed}
        saved = {name: state.get(name, value) for name, value in here.items()}
        check_same("the checkpoint", here, saved, self.advice, section="loader")
        if position > len(self):
            raise InputError(
                f"the checkpoint stands at batch {position} of an epoch, which has {len(self)} "
                f"batches here.\n{self.advice}"
            )
        self._epoch, self._position, self._resume = epoch, position, True

    def to(self, device: torch.device | str) -> ResidentLoader:
        """Move the resident data, and return the loader."""
        self.X, self.y = self.X.to(device), self.y.to(device)
        self.weight = None if self.weight is None else self.weight.to(device)
        return self

    def _check_batch_size(self) -> None:
        _, least = self.processes  # every process has a share of each batch
        check_whole("batch_size", self.batch_size, least, len(self.X))

    def _rows(self, epoch: int) -> Tensor:
        """Return the order of an epoch, int64 (n,), on the data's device."""
        n = len(self.X)
        order = epoch_order(n, self.seed, epoch) if self.shuffle else torch.arange(n)
        return order.to(self.X.device)
