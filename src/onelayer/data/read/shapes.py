"""The built-in image set: ten classes of drawn shapes, for machines without CIFAR-10.

Laid out as CIFAR-10: 32x32 RGB in batches of 10,000. Position, size, tilt, colours, contrast,
lighting and noise vary; most shapes are brighter than their ground, some darker, so that a template
per class (the linear layer) explains far less than a hidden layer does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from onelayer.core.checks import check_whole
from onelayer.data.random import words
from onelayer.data.read import PIXELS, SIDE
from onelayer.data.read.batches import read_pieces
from onelayer.data.split import Split
from onelayer.data.table import Array, Table

Floats = NDArray[np.floating[Any]]  # float32 throughout

TEST = 0
"""The stream of the test images; training batch i is stream i."""

_CHUNK = 250  # images drawn at a time, and the unit in which a stream is cut: 1 MB a plane
_DRAWS = 16  # random numbers that describe one image, before its noise

# How much an image varies; lengths in half image sides, brightness from 0 to 1.
_SHIFT = 0.2
_SIZE = (0.3, 0.8)
_TILT = 0.175  # tangent of half the angle: 20 degrees, so that a plus never is a saltire
_CONTRAST = (0.08, 0.7)
_BRIGHTER = 0.88  # share of the shapes that are brighter than their ground
_TINT = 0.25
_LIGHT = 0.3
_NOISE = 0.25

# Each shape: negative inside, the distance to the outline near it, in units of its size. Only
# + - * / sqrt, abs, min and max, here and below: IEEE fixes their bits on every machine.


def _disc(u: Floats, v: Floats) -> Floats:
    return np.sqrt(u * u + v * v) - 0.9


def _triangle(u: Floats, v: Floats) -> Floats:
    return np.asarray(np.maximum(0.866 * np.abs(u) - 0.5 * v - 0.45, v - 0.55))


def _plus(u: Floats, v: Floats) -> Floats:
    a, b = np.abs(u), np.abs(v)
    return np.maximum(np.maximum(a, b) - 0.95, np.minimum(a, b) - 0.27)


def _crescent(u: Floats, v: Floats) -> Floats:
    w = u - 0.45
    return np.maximum(_disc(u, v), 0.75 - np.sqrt(w * w + v * v))


_SHAPES: dict[str, Callable[[Floats, Floats], Floats]] = {
    "disc": _disc,
    "ring": lambda u, v: np.abs(np.sqrt(u * u + v * v) - 0.72) - 0.2,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) - 0.8,
    "frame": lambda u, v: np.abs(np.maximum(np.abs(u), np.abs(v)) - 0.7) - 0.17,
    "triangle": _triangle,
    "plus": _plus,
    "saltire": lambda u, v: _plus((u + v) * 0.7071, (u - v) * 0.7071),
    "bar": lambda u, v: np.maximum(np.abs(u) - 1.0, np.abs(v) - 0.32),
    "pair": lambda u, v: np.maximum(np.abs(np.abs(u) - 0.55) - 0.25, np.abs(v) - 0.9),
    "crescent": _crescent,
}

CLASS_NAMES = tuple(_SHAPES)


@dataclass(frozen=True)
class Shapes:
    """The built-in set: five batches to train on, and a test batch, of ``images`` each.

    Another ``seed``, 0 or more, gives other images.
    """

    seed: int = 0
    images: int = 10_000

    classes = CLASS_NAMES

    def read(self, pool: Split, pieces: Sequence[range]) -> Table:
        """Draw these images of a pool."""
        first = TEST if pool == "test" else 1
        return read_pieces(pieces, self.images, lambda i, n: make(n, self.seed, first + i))


def make(n: int, seed: int, stream: int = TEST) -> Table:
    """Draw the first ``n`` images of a stream.

    Fewer are the beginning of more, and the bits are the same on every platform.

    Args:
        n: how many.
        seed: of the whole set, 0 or more; another seed, other images.
        stream: ``TEST``, or the number of a training batch; streams share no image.

    Raises:
        InputError: ``n`` below 1, a negative seed or stream.
    """
    check_whole("n", n, 1)
    chunks = range(-(-n // _CHUNK))
    # numpy leaves the interpreter free while it computes; a chunk knows nothing of the others.
    with ThreadPoolExecutor(min(len(chunks), os.cpu_count() or 1, 8)) as pool:
        x, y = zip(*pool.map(lambda chunk: _draw(seed, stream, chunk), chunks), strict=True)
    where = "the built-in images"
    return Table(
        torch.from_numpy(np.concatenate(x)[:n]), np.concatenate(y)[:n], None, CLASS_NAMES, where,
        shape=(3, SIDE, SIDE),
    )  # fmt: skip


def _draw(seed: int, stream: int, chunk: int) -> tuple[Array, Array]:
    """Draw the images ``[chunk * _CHUNK, (chunk + 1) * _CHUNK)`` of a stream."""
    raw = words(_CHUNK * (_DRAWS + PIXELS // 8), seed, stream, chunk)
    draws, bits = raw[: _CHUNK * _DRAWS], raw[_CHUNK * _DRAWS :]
    # 24 bits make a float32 in [0, 1) exactly; each draw is a column (_CHUNK, 1).
    uniform = (draws >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
    kind, right, down, size, tilt, contrast, polarity, level, *tints, light_x, light_y = (
        uniform.reshape(_DRAWS, _CHUNK, 1)
    )
    y = (kind * len(_SHAPES)).astype(np.int64).squeeze(1)
    size = _between(*_SIZE, size)
    at_x, at_y = _pixel_grid()

    # Each pixel's coordinates (u, v) in the shape's own frame: shifted, turned, scaled.
    dx, dy = at_x - _between(-_SHIFT, _SHIFT, right), at_y - _between(-_SHIFT, _SHIFT, down)
    t = _between(-_TILT, _TILT, tilt)
    cos, sin = (1 - t * t) / (1 + t * t) / size, 2 * t / (1 + t * t) / size
    u, v = dx * cos + dy * sin, dy * cos - dx * sin
    distance = np.empty_like(u)
    for label, shape in enumerate(_SHAPES.values()):
        rows = y == label
        distance[rows] = shape(u[rows], v[rows])
    cover = np.clip(0.5 - distance * size * (SIDE / 2), 0, 1)  # share of the pixel inside

    contrast = _between(*_CONTRAST, contrast)
    middle = 0.5 + 0.8 * (level - 0.5) * (1 - contrast)
    half = np.where(polarity < _BRIGHTER, contrast, -contrast) / 2
    light = at_x * _between(-_LIGHT, _LIGHT, light_x) + at_y * _between(-_LIGHT, _LIGHT, light_y)
    image = _between(-_NOISE, _NOISE, bits.view(np.uint8).astype(np.float32) / 255)
    image = image.reshape(_CHUNK, 3, -1)
    for plane in range(3):
        ground = middle - half + _between(-_TINT, _TINT, tints[plane])
        figure = middle + half + _between(-_TINT, _TINT, tints[3 + plane])
        image[:, plane] += cover * (figure - ground) + ground + light
    levels = np.clip(np.rint(image * 255), 0, 255).astype(np.uint8).reshape(_CHUNK, PIXELS)
    return levels, y


def _between(low: float, high: float, share: Floats) -> Floats:
    return low + (high - low) * share


def _pixel_grid() -> tuple[Floats, Floats]:
    """Return the coordinates of pixel centres, (1, 1024) each: x right and y down, from -1 to 1."""
    line = ((np.arange(SIDE) * 2 + 1 - SIDE) / SIDE).astype(np.float32)
    return np.tile(line, SIDE)[None], np.repeat(line, SIDE)[None]
