"""Images changed on their way into a batch: flips, shifts, and other people's transforms.

What happens to a row is a pure function of (seed, epoch, row): all networks of a population see the
same pixels, a run that is resumed goes on with the same bits, and a GPU has those of a CPU. Only
batches to train on are changed. Rows are changed as a batch has them, standardised.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from onelayer.core.checks import check_among, check_whole
from onelayer.core.errors import InputError, first_line
from onelayer.data.features import Features, Statistics, free_memory
from onelayer.data.random import philox

STREAM = 0xF119  # of Philox, for flips and shifts alone
TRANSFORM_STREAM = 0x72A5  # of Philox, for the seeds of transforms

WHOLE = 0.25
"""Share of the free memory that the images of a whole split, made ready, may take."""
READY_AFTER = 1  # epochs after which that is worth its time
_IMAGES = 64  # worked on at a time: as many as a CPU's caches hold

Border = Literal["reflect", "zero"]
"""Pixels at the border of a shifted image: its own, reflected, or zeros."""

Shape = tuple[int, ...]
"""Channels, height and width of an image."""


class Augmentation(Protocol):
    """Something that takes rows to train on, of one batch or several, and changes their images."""

    def __call__(self, X: Features, rows: Tensor, epoch: int) -> Tensor:
        """Return the rows of X (n', d) that have the numbers ``rows`` (n,), changed (n, d)."""


def mirror(X: Tensor, shape: Shape) -> Tensor:
    """Return the mirror images, left and right exchanged, of X (n, d), which are ``shape`` each.

    Args:
        X: flattened images (n, d).
        shape: colours, height, width; their product is d.
    """
    return X.view(-1, *shape).flip(-1).flatten(1)


class Mirrored:
    """Features (n, d) of images as their mirror images; nothing is copied before it is used."""

    def __init__(self, X: Features, shape: Shape) -> None:
        self.X, self.image = X, shape
        self.shape, self.dtype, self.device = X.shape, X.dtype, X.device

    def __len__(self) -> int:
        return len(self.X)

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """Return these rows."""
        return mirror(self.X.index_select(dim, index), self.image)

    def split(self, size: int) -> Iterator[Tensor]:
        """Give chunks of rows, in order."""
        return (mirror(chunk, self.image) for chunk in self.X.split(size))

    def to(self, device: torch.device | str) -> Mirrored:
        """Return the same on a device."""
        return Mirrored(self.X.to(device), self.image)


class FlipAndShift:
    """Flip half of the images left to right, and shift each by a few pixels either way.

    An image is widened by s pixels at every side and laid beside its mirror image; the changed
    image is a window of these pixels. After :data:`READY_AFTER` epochs all images are kept so: for
    CIFAR-10 that takes 2.5 times the features' memory. Before that, or if so much is not free or
    the features are not a tensor, the images of each batch are widened.

    Args:
        shape: colours, height, width.
        rows: number of images.
        seed: seed of the draws.
        flip: whether an image is flipped, with probability 1/2.
        shift: s: an image is shifted by -s to s pixels, down and to the right, all equally likely.
        border: pixels that come in at the other side.
    """

    def __init__(
        self,
        shape: Shape,
        rows: int,
        seed: int,
        flip: bool = False,
        shift: int = 0,
        border: Border = "reflect",
    ) -> None:
        self.shape, self.rows, self.seed = shape, rows, seed
        colours, height, width = shape
        sides = 1 + flip, colours, height + 2 * shift, width + 2 * shift
        self._widened = torch.Size(sides)
        # the pixel that each of the widened image and of its mirror image is; d for a zero
        d = math.prod(shape)
        wide = torch.arange(d).view(shape).double()
        self._zeros = border == "zero" and shift > 0
        if self._zeros:
            wide = pad(wide, (shift,) * 4, "constant", d)
        elif shift:
            wide = pad(wide, (shift,) * 4, "reflect")
        self._sources = torch.stack([wide, wide.flip(-1)])[: 1 + flip].long().flatten()
        # first pixel of the window of each way: shifted down by 1, the window lies 1 higher
        shifts = torch.arange(-shift, shift + 1)
        flips, downs, rights = torch.cartesian_prod(torch.arange(1 + flip), shifts, shifts).T
        places = torch.arange(self._widened.numel()).view(self._widened)
        self._starts = places[flips, 0, shift - downs, shift - rights]
        self._ways = torch.empty(0, dtype=torch.int64)  # of each row, this epoch's
        self._epoch, self._epochs = -1, 0  # the present one, and how many there were
        self._whole: tuple[Features, Tensor] | None = None  # the features, and all of them widened

    def __call__(self, X: Features, rows: Tensor, epoch: int) -> Tensor:
        """Return these rows, changed."""
        if epoch != self._epoch or self._ways.device != rows.device:
            self._begin(X, epoch, rows.device)
        ways = self._ways.index_select(0, rows)
        if self._whole and self._whole[0] is X:
            wide = self._whole[1]
        else:
            wide = self._widen(X.index_select(0, rows))
            rows = torch.arange(len(rows), device=rows.device)
        first = self._starts.index_select(0, ways).add_(rows, alpha=self._widened.numel())
        return self._windows(wide).index_select(0, first).flatten(1)

    def _widen(self, X: Tensor, out: Tensor | None = None) -> Tensor:
        """Return X (n, d) widened, each image before its mirror image, (n, pixels)."""
        return torch.index_select(pad(X, (0, 1)) if self._zeros else X, 1, self._sources, out=out)

    def _begin(self, X: Features, epoch: int, device: torch.device) -> None:
        self._ways, self._epoch = self.ways(epoch).to(device), epoch
        self._sources, self._starts = self._sources.to(device), self._starts.to(device)
        if self._whole and self._whole[0] is not X:
            self._whole = None
        if self._epochs >= READY_AFTER and not self._whole and isinstance(X, Tensor):
            self._make_ready(X)
        self._epochs += 1

    def _make_ready(self, X: Tensor) -> None:
        """Widen all images if there is room."""
        numbers = self._widened.numel()
        if len(X) * numbers * X.element_size() > WHOLE * free_memory(X.device):
            return
        try:
            wide = X.new_empty(len(X), numbers)
        except RuntimeError:  # no such memory in one piece, or not for this process
            return
        for some, result in zip(X.split(_IMAGES), wide.split(_IMAGES), strict=True):
            self._widen(some, out=result)
        self._whole = X, wide

    def _windows(self, wide: Tensor) -> Tensor:
        """Return each window of widened images, by its first pixel, (pixels, *shape)."""
        _, _, height, width = self._widened
        steps = height * width, width, 1
        length = 1 + sum((n - 1) * step for n, step in zip(self.shape, steps, strict=True))
        return wide.as_strided((wide.numel() - length + 1, *self.shape), (1, *steps))

    def ways(self, epoch: int) -> Tensor:
        """Return the change of each row in an epoch, int64 (rows,).

        It is ``flip (2s + 1)² + down (2s + 1) + right``, with down and right counted from -s.
        """
        drawn = philox(self.rows, self.seed, STREAM, epoch)
        # The product with 32 random bits, less its fraction: equally likely, but for 1 in 10^8.
        way = ((drawn >> np.uint64(32)) * np.uint64(len(self._starts))) >> np.uint64(32)
        return torch.from_numpy(way.astype(np.int64))


class Transformed:
    """Images changed one by one by a transform that draws from torch's generator.

    It gets an image (colours, height, width) with pixels as torchvision's transforms have them,
    0 to 1, and returns one of the same shape. The generator is seeded anew for each row, and left
    as it was.

    Args:
        transform: such as one of torchvision.transforms.v2.
        shape: colours, height, width.
        rows: how many there are.
        seed: of the draws.
        statistics: those that the rows are standardised with.
        before: what changes them before.
    """

    def __init__(
        self,
        transform: Any,
        shape: Shape,
        rows: int,
        seed: int,
        statistics: Statistics,
        before: Augmentation | None = None,
    ) -> None:
        self.before = before
        self.transform, self.shape, self.rows, self.seed = transform, shape, rows, seed
        self.mean, self.std = statistics.mean, statistics.std
        self._seeds, self._epoch = philox(rows, seed, TRANSFORM_STREAM, 0), 0  # of each row
        with torch.random.fork_rng([]):  # refused now, not in the midst of a training
            self._one(torch.full(shape, 0.5), 0)

    def __call__(self, X: Features, rows: Tensor, epoch: int) -> Tensor:
        """Return these rows, changed."""
        batch = self.before(X, rows, epoch) if self.before else X.index_select(0, rows)
        mean, std = (T.to(batch.device, batch.dtype) for T in (self.mean, self.std))
        images = (batch * std + mean).view(-1, *self.shape)
        if epoch != self._epoch:
            self._seeds = philox(self.rows, self.seed, TRANSFORM_STREAM, epoch)
            self._epoch = epoch
        seeds = self._seeds[rows.cpu().numpy()]
        devices = [batch.device] if batch.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            changed = [
                self._one(image, int(seed)) for image, seed in zip(images, seeds, strict=True)
            ]
        return torch.stack(changed).flatten(1).sub_(mean).div_(std)

    def _one(self, image: Tensor, seed: int) -> Tensor:
        torch.manual_seed(seed)
        kind = type(self.transform).__name__
        try:
            changed = self.transform(image)
        except Exception as error:  # whatever somebody's code may raise
            raise InputError(
                f"data.transform {kind} failed on an image {tuple(image.shape)}: "
                f"{type(error).__name__}: {first_line(error)}"
            ) from error
        if not isinstance(changed, Tensor) or changed.shape != image.shape:
            made = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
            raise InputError(
                f"data.transform {kind} made {made} of an image "
                f"{tuple(image.shape)}: it must return one of the same shape."
            )
        return changed.to(image.dtype)


def _lost(image: Tensor) -> Tensor:
    raise InputError("a checkpoint does not keep a transform: name it again, data.transform.")


@dataclass(frozen=True)
class Augment:
    """Augmentation of the images of training batches.

    Args:
        flip: whether half of them, drawn anew in every epoch, are mirrored left to right.
        shift: each is shifted by up to so many pixels, up or down and left or right.
        border: what comes in at the other side.
        transform: called for each image, after these.

    Raises:
        InputError: naming the argument and what is legal.
    """

    flip: bool = False
    shift: int = 0
    border: Border = "reflect"
    transform: Any = None

    def __post_init__(self) -> None:
        check_among("flip", self.flip, (True, False))
        check_whole("shift", self.shift, 0)
        check_among("border", self.border, ("reflect", "zero"))
        if self.transform is not None and not callable(self.transform):
            raise InputError(f"transform must be something to call, not {self.transform!r}.")

    def check(self, shape: Shape) -> None:
        """Raise :class:`InputError` unless images of this shape can be augmented so."""
        asked = [name for name, value in self.settings().items() if name != "border" and value]
        if asked and len(shape) != 3:
            raise InputError(
                f"data.{asked[0]} needs images (colours, height, width), and a sample of these "
                f"data has the shape {shape}: leave it out."
            )
        if asked:
            check_whole("shift", self.shift, 0, min(shape[1:]) - 1)

    def settings(self) -> dict[str, Any]:
        """Return the arguments that a run must be resumed with; {} without augmentation."""
        found: dict[str, Any] = {"flip": True} if self.flip else {}
        if self.shift:
            found |= {"shift": self.shift, "border": self.border}
        if self.transform is not None:
            found["transformed_by"] = repr(self.transform)
        return found

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Augment:
        """Return the augmentation that has these :meth:`settings`.

        Raises:
            InputError: they were changed.
        """
        known = {k: settings[k] for k in ("flip", "shift", "border") if k in settings}
        return cls(**known, transform=_lost if "transformed_by" in settings else None)

    def changes(
        self, shape: Shape, rows: int, seed: int, statistics: Statistics
    ) -> Augmentation | None:
        """Return what changes the batches of a split of so many rows; None where nothing does."""
        self.check(shape)
        made: Augmentation | None = None
        if self.flip or self.shift:
            made = FlipAndShift(shape, rows, seed, self.flip, self.shift, self.border)
        if self.transform is not None:
            made = Transformed(self.transform, shape, rows, seed, statistics, made)
        return made
