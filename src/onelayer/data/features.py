"""Standardised features, as floats in memory or as they lie there, and their statistics."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import psutil
import torch
from torch import Tensor

from onelayer.core.checks import check_dense
from onelayer.core.errors import InputError

# Of a chunk. Fewer than torch spreads over its threads: as fast as all of them on an idle machine,
# many times faster on a busy one.
_NUMBERS = 30_720
_DEVICE_NUMBERS = 500 * _NUMBERS  # a GPU wants few and large ones
_MEASURED = 2**20  # numbers whose statistics are taken at once: 8 MB of float64

Standard = Literal["feature", "none", "unit"]
"""How: each feature by its mean and deviation, not at all, or rows to length 1."""


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
    """Mean and standard deviation, float64 (d,) each: of bytes, as of pixels scaled to [0, 1].

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
        """Return whether the numbers are the same, bit for bit."""
        return torch.equal(self.mean, other.mean) and torch.equal(self.std, other.std)


def no_statistics(d: int) -> Statistics:
    """Return those that leave features (n, d) as they are: mean 0 and standard deviation 1."""
    return Statistics(torch.zeros(d, dtype=torch.float64), torch.ones(d, dtype=torch.float64))


def measure(
    x: Tensor, rows: Tensor | None = None, paging: Callable[[bool], None] | None = None
) -> Statistics:
    """Measure each feature over the rows of ``x`` (n, d), 1 ≤ n: bytes or floating.

    The sums of bytes are whole numbers, hence exact for up to 10 million rows: the result depends
    neither on their order nor on the machine. Those of floats are float64, of chunks whose means
    and squared deviations are joined as Chan, Golub and LeVeque do, which loses no digit where a
    mean is large beside its deviation. No float copy of the whole is made.

    Args:
        x: (n, d).
        rows: of ``x``, ascending, int64; all by default.
        paging: as :class:`RawFeatures` takes it.
    """
    if len(x) == 0:
        raise InputError("there is no image to take the mean and standard deviation of.")
    size = min(_rows(x, _NUMBERS), 250) if x.dtype == torch.uint8 else _rows(x, _MEASURED)
    chunks = raw_chunks(x, rows, size, paging)
    return _measure_bytes(chunks) if x.dtype == torch.uint8 else _measure_floats(chunks)


def _measure_bytes(chunks: Iterable[Tensor]) -> Statistics:
    """Measure bytes in chunks of at most 258 rows."""
    n, total, squares = 0, torch.zeros(()), torch.zeros(())
    for chunk in chunks:
        values = chunk.float()  # whole numbers, exact up to 2^24, which 258 squares reach
        n += len(values)
        total = total + values.sum(0).double()
        squares = squares + values.square_().sum(0).double()
    total, squares = total.cpu().long(), squares.cpu().long()
    # Σ(x - x̄)² = (nΣx² - (Σx)²) / n, exactly 0 for a constant pixel; int64 holds it to n = 1.1e7.
    scatter = (n * squares - total.square()).double() / n
    std = (scatter / max(n - 1, 1)).sqrt() / 255
    return Statistics(total.double() / n / 255, std.where(scatter > 0, 1.0))


def _measure_floats(chunks: Iterable[Tensor]) -> Statistics:
    n, mean, scatter = 0, torch.zeros(()), torch.zeros(())
    low, high = torch.full((), math.inf), torch.full((), -math.inf)
    for chunk in chunks:
        values = chunk.double()
        least, most = values.aminmax(dim=0)
        low, high = low.to(least).minimum(least), high.to(most).maximum(most)
        n_own, own = len(values), values.mean(0)
        shift = own - mean
        n, before = n + n_own, n
        scatter = scatter + (values - own).square_().sum(0)
        scatter += shift.square() * (before * n_own / n)
        mean = mean + shift * (n_own / n)
    std = (scatter / max(n - 1, 1)).sqrt()
    varies = (low < high) & (std > 0)
    # a feature that never varies has no rounding in its mean, nor a deviation of rounding alone
    return Statistics(mean.where(low < high, low).cpu(), std.where(varies, 1.0).cpu())


def _rows(x: Tensor, numbers: int) -> int:
    """How many rows of ``x`` (n, d) have about so many numbers."""
    return max(1, numbers // max(1, x.shape[1]))


def standardise(
    x: Tensor, statistics: Statistics, dtype: torch.dtype = torch.float32, unit: bool = False
) -> Tensor:
    """Return ``(x - mean) / std``, (n, d), of ``x`` (n, d) on their device; of bytes, x/255.

    The bits are the same on every device. Beside the result only a small chunk is in memory.

    Args:
        x: bytes or floats.
        statistics: of bytes scaled to [0, 1].
        dtype: of the result.
        unit: whether each row is divided by its length first; a row of zeros stays.

    Raises:
        InputError: another number of features than the statistics have.
    """
    return _Standardiser(statistics, dtype, x.device, x.dtype, unit)(x)


class _Standardiser:
    """:func:`standardise` for one device, where the statistics then lie already."""

    def __init__(
        self,
        statistics: Statistics,
        dtype: torch.dtype,
        device: torch.device,
        given: torch.dtype = torch.uint8,
        unit: bool = False,
    ) -> None:
        work = torch.promote_types(dtype, torch.float32)  # half precision only at the very end
        if given.is_floating_point:
            work = torch.promote_types(work, given)
        # Times 255, so that no division by a scalar is left: CUDA multiplies by its reciprocal.
        scale = 1 if given.is_floating_point else 255
        self.mean = (statistics.mean * scale).to(work).to(device)
        self.std = (statistics.std * scale).to(work).to(device)
        self.dtype, self.unit = dtype, unit

    def __call__(self, x: Tensor) -> Tensor:
        if x.ndim != 2 or x.shape[1:] != self.mean.shape:
            raise InputError(
                f"features of shape {tuple(x.shape)} do not fit statistics of "
                f"{len(self.mean)} features: they must be (n, {len(self.mean)})."
            )
        out = torch.empty(x.shape, dtype=self.dtype, device=x.device)
        rows = _rows(x, _NUMBERS if x.device.type == "cpu" else _DEVICE_NUMBERS)
        for source, target in zip(x.split(rows), out.split(rows), strict=True):
            target.copy_(self._chunk(source.to(self.mean.dtype)))
        return out

    def _chunk(self, x: Tensor) -> Tensor:
        if self.unit:
            length: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
            return x.div(length.where(length > 0, 1.0))
        return x.sub(self.mean).div_(self.std)


class RawFeatures:
    """Features (n, d) that stay as they are until they are used: bytes, half precision, a file.

    Whatever is taken out is standardised then, to the same bits.

    Args:
        x: (n', d), uint8 or floating; of a file, a tensor that is mapped to it.
        statistics: as :func:`standardise` takes them, and ``dtype`` and ``unit``.
        rows: which rows of ``x``, ascending, int64 (n,); all by default.
        paging: told whether rows are about to be read in order, where ``x`` is a file's.
    """

    def __init__(
        self,
        x: Tensor,
        statistics: Statistics,
        dtype: torch.dtype,
        unit: bool = False,
        rows: Tensor | None = None,
        paging: Callable[[bool], None] | None = None,
    ) -> None:
        self.x, self.statistics, self.dtype, self.unit = x, statistics, dtype, unit
        self.rows, self.paging = rows, paging
        self.shape = x.shape if rows is None else torch.Size((len(rows), x.shape[1]))
        self.device = x.device
        self._standardise = _Standardiser(statistics, dtype, x.device, x.dtype, unit)

    def __len__(self) -> int:
        return self.shape[0]

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """Return these rows, standardised."""
        if self.rows is not None:
            index = self.rows[index]
        if self.paging is None:
            return self._standardise(self.x.index_select(dim, index))
        self.paging(False)
        ordered, order = index.sort()  # as they lie on the disk
        out = torch.empty(len(index), self.x.shape[1], dtype=self.dtype)
        out[order] = self._standardise(self.x.index_select(dim, ordered))
        return out

    def split(self, size: int) -> Iterator[Tensor]:
        """Give chunks of rows, standardised one at a time."""
        return map(self._standardise, raw_chunks(self.x, self.rows, size, self.paging))

    def to(self, device: torch.device | str) -> RawFeatures:
        """Return the same on a device; a file stays where it is, and its batches are moved."""
        x = self.x if self.paging else self.x.to(device)
        if x is self.x:
            return self
        rows = None if self.rows is None else self.rows.to(device)
        return RawFeatures(x, self.statistics, self.dtype, self.unit, rows)


def raw_chunks(
    x: Tensor,
    rows: Tensor | None,
    size: int,
    paging: Callable[[bool], None] | None = None,
) -> Iterator[Tensor]:
    """Give ``x`` (n', d), or its ``rows``, ascending, in chunks of ``size`` rows."""
    if paging:
        paging(True)
    if rows is None:
        yield from x.split(size)
    else:
        for chunk in rows.split(size):
            yield x.index_select(0, chunk)


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
        """Return these features on a device."""
        return Joined([piece.to(device) for piece in self.pieces])


def features(x: Tensor, statistics: Statistics, dtype: torch.dtype, unit: bool = False) -> Features:
    """Return standardised features: in ``dtype``, or smaller where that needs too much memory.

    Too much is more than half of a GPU's free memory. Bytes and half precision then stay as they
    are. Wider features become half precision, with a warning: it keeps three digits.
    """
    if x.numel() * dtype.itemsize <= room_on_gpu(x.device) / 2:
        return standardise(x, statistics, dtype, unit)
    if x.dtype.itemsize <= 2:
        return RawFeatures(x, statistics, dtype, unit)
    warnings.warn("the features are kept in half precision: the GPU has no room.", stacklevel=2)
    half = standardise(x, statistics, torch.float16, unit)
    return RawFeatures(half, no_statistics(x.shape[1]), dtype)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def room_on_gpu(device: torch.device) -> float:
    """Bytes free on a GPU; without limit for a host, whose memory is paged."""
    return free_memory(device) if device.type == "cuda" else math.inf
