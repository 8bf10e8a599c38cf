"""Standardised features in memory, as floats or as bytes, and the statistics that make them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from onelayer.core.checks import check_dense
from onelayer.core.errors import InputError

# Of a chunk. Fewer numbers than torch spreads over its threads: as fast as all of them on an idle
# machine, many times faster on a busy one.
_ROWS = 10
_DEVICE_ROWS = 5000  # a GPU wants few and large ones


class Features(Protocol):
    """Features (n, d) in memory: a tensor, or what has these of a tensor's attributes."""

    @property
    def shape(self) -> torch.Size: ...  # noqa: D102
    @property
    def dtype(self) -> torch.dtype: ...  # noqa: D102
    @property
    def device(self) -> torch.device: ...  # noqa: D102

    def __len__(self) -> int: ...

    def index_select(self, dim: int, index: Tensor, /) -> Tensor:
        """Return the rows ``index``; ``dim`` is 0."""

    def split(self, size: int, /) -> Any:
        """Give tensors of ``size`` rows, in order; the last may have fewer."""

    def to(self, device: torch.device | str, /) -> Any:
        """Return the same on a device."""


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation, float64 (d,) each, of pixels scaled to [0, 1].

    The latter is unbiased as ``torch.std``, and 1 where a feature never varies.

    Raises:
        InputError: a number that is not finite, a deviation that is not above 0, other shapes.
    """

    mean: Tensor
    std: Tensor

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            value = getattr(self, name)
            if not isinstance(value, Tensor) or value.ndim != 1 or value.shape != self.mean.shape:
                raise InputError(f"{name} must be a tensor (d,), not {str(value)[:40]!r}.")
            check_dense(name, value)
            wrong = ~value.isfinite() if name == "mean" else ~(value.isfinite() & (value > 0))
            if wrong.any():
                i = int(wrong.nonzero()[0])
                legal = "finite" if name == "mean" else "finite and above 0"
                raise InputError(f"{name}[{i}] = {float(value[i])} must be {legal}.")

    def equal(self, other: Statistics) -> bool:
        """Whether the numbers are the same, bit for bit."""
        return torch.equal(self.mean, other.mean) and torch.equal(self.std, other.std)


def measure(x: Tensor) -> Statistics:
    """Measure each pixel over the images ``x``, uint8 (n, d), 1 ≤ n ≤ 10 million.

    The sums are whole numbers, hence exact: the result depends neither on the order of the images
    nor on the machine, and no float copy of the images is made.
    """
    n = len(x)
    if n == 0:
        raise InputError("there is no image to take the mean and standard deviation of.")
    total = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    squares = torch.zeros_like(total)
    for chunk in x.split(_ROWS):
        values = chunk.float()  # whole numbers, exact up to 2^24, which 258 squares reach
        total += values.sum(0)
        squares += values.square_().sum(0)
    total, squares = total.cpu().long(), squares.cpu().long()
    # Σ(x - x̄)² = (nΣx² - (Σx)²) / n, exactly 0 for a constant pixel; int64 holds it to n = 1.1e7.
    scatter = (n * squares - total.square()).double() / n
    std = (scatter / max(n - 1, 1)).sqrt() / 255
    return Statistics(total.double() / n / 255, std.where(scatter > 0, 1.0))


def standardise(x: Tensor, statistics: Statistics, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return ``(x/255 - mean) / std``, (n, d), of bytes ``x`` (n, d) on their device.

    The bits are the same on every device. Beside the result only a small chunk is in memory.

    Raises:
        InputError: another number of features than the statistics have.
    """
    return _Standardiser(statistics, dtype, x.device)(x)


class _Standardiser:
    """:func:`standardise` for one device, where the statistics then lie already."""

    def __init__(self, statistics: Statistics, dtype: torch.dtype, device: torch.device) -> None:
        work = torch.promote_types(dtype, torch.float32)  # half precision only at the very end
        # Times 255, so that no division by a scalar is left: CUDA multiplies by its reciprocal.
        self.mean = (statistics.mean * 255).to(work).to(device)
        self.std = (statistics.std * 255).to(work).to(device)
        self.dtype = dtype

    def __call__(self, x: Tensor) -> Tensor:
        if x.ndim != 2 or x.shape[1:] != self.mean.shape:
            raise InputError(
                f"images of shape {tuple(x.shape)} do not fit statistics of "
                f"{len(self.mean)} features: images are (n, {len(self.mean)})."
            )
        out = torch.empty(x.shape, dtype=self.dtype, device=x.device)
        rows = _ROWS if x.device.type == "cpu" else _DEVICE_ROWS
        for source, target in zip(x.split(rows), out.split(rows), strict=True):
            target.copy_(source.to(self.mean.dtype).sub_(self.mean).div_(self.std))
        return out


class ByteFeatures:
    """Features that lie in memory as bytes (n, d), a quarter of float32's, until they are used.

    Whatever is taken out is standardised then, to the same bits.
    """

    def __init__(self, x: Tensor, statistics: Statistics, dtype: torch.dtype) -> None:
        self.x, self.statistics, self.dtype = x, statistics, dtype
        self.shape, self.device = x.shape, x.device
        self._standardise = _Standardiser(statistics, dtype, x.device)

    def __len__(self) -> int:
        return len(self.x)

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """Return these rows, standardised."""
        return self._standardise(self.x.index_select(dim, index))

    def split(self, size: int) -> Iterator[Tensor]:
        """Give chunks of rows, standardised one at a time."""
        return map(self._standardise, self.x.split(size))

    def to(self, device: torch.device | str) -> ByteFeatures:
        """Return the same on a device."""
        x = self.x.to(device)
        return self if x is self.x else ByteFeatures(x, self.statistics, self.dtype)


class SomeRows:
    """Some rows of features (n, d), taken out a chunk at a time: nothing is copied before."""

    def __init__(self, X: Features, rows: Tensor) -> None:
        self.X, self.rows = X, rows

    def __len__(self) -> int:
        return len(self.rows)

    def split(self, size: int) -> Iterator[Tensor]:
        """Give chunks of rows, in order."""
        return (self.X.index_select(0, rows) for rows in self.rows.split(size))

    def to(self, device: torch.device | str) -> SomeRows:
        """Return the same on a device."""
        return SomeRows(self.X.to(device), self.rows.to(device))


class Joined:
    """Features laid end to end, such as those of two splits; none is copied before it is used."""

    def __init__(self, pieces: Sequence[Features]) -> None:
        self.pieces = list(pieces)
        self.dtype, self.device = pieces[0].dtype, pieces[0].device
        self.shape = torch.Size((sum(map(len, pieces)), pieces[0].shape[1]))

    def __len__(self) -> int:
        return self.shape[0]

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """Return these rows."""
        out = torch.empty(len(index), self.shape[1], dtype=self.dtype, device=self.device)
        start = 0
        for piece in self.pieces:
            here = ((index >= start) & (index < start + len(piece))).nonzero().squeeze(1)
            if len(here):
                out[here] = piece.index_select(0, index[here] - start)
            start += len(piece)
        return out

    def split(self, size: int) -> Iterator[Tensor]:
        """Give chunks of rows, in order."""
        for rows in torch.arange(len(self), device=self.device).split(size):
            yield self.index_select(0, rows)

    def to(self, device: torch.device | str) -> Joined:
        """Return the same on a device."""
        return Joined([piece.to(device) for piece in self.pieces])


def features(x: Tensor, statistics: Statistics, dtype: torch.dtype) -> Features:
    """Return standardised features, as bytes where they need more than half of the free memory."""
    needed = x.numel() * dtype.itemsize
    if needed <= free_memory(x.device) / 2:
        return standardise(x, statistics, dtype)
    return ByteFeatures(x, statistics, dtype)


def free_memory(device: torch.device) -> float:
    """Bytes free on a GPU; of a host, whose memory is paged, as many as one likes."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf
