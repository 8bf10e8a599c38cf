"""Weights of one network as an image: the template of each class, or of each hidden unit."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from onelayer.training.files import atomic_write

MOST = 100  # units in an image
GAP, LINE = 3, 14  # pixels between tiles, and for a name below each


def is_picture(shape: Sequence[int], inputs: int) -> bool:
    """Return whether d inputs are the pixels of an image (channels, height, width)."""
    return len(shape) == 3 and int(np.prod(shape)) == inputs


def picture(W: Tensor, shape: Sequence[int], names: Sequence[str] = ()) -> NDArray[np.uint8]:
    """Return weights (units, d) as an image (height, width, 3), each unit scaled to its own range.

    Args:
        W: weights, a row per unit; the first hundred are shown.
        shape: channels, height and width of an image; channels other than 1 or 3 are shown side by
            side in grey.
        names: one per unit, written below its tile, or none.
    """
    tiles = _tiles(W[:MOST].detach().cpu().float().numpy(), shape)
    count, height, width, _ = tiles.shape
    columns = 5 if count <= 10 else min(10, count)
    rows = -(-count // columns)
    line = LINE if names else 0
    high, wide = height + line + GAP, width + GAP
    sheet = Image.new("RGB", (columns * wide + GAP, rows * high + GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for i, tile in enumerate(tiles):
        x, y = GAP + i % columns * wide, GAP + i // columns * high
        sheet.paste(Image.fromarray(tile), (x, y))
        if names:
            draw.text((x, y + height + 1), names[i], fill="black")
    return np.asarray(sheet)


def picture_of(network: Any, member: int | str = "best") -> NDArray[np.uint8] | None:
    """Return the picture of the first chosen network whose weights are finite.

    Return None if there is none, or if samples are not images.
    """
    shape, finite = network.samples.get("shape", ()), network.finite_members().tolist()
    index = next((m for m in network.choose(member).members if finite[m]), None)
    if index is None or not is_picture(shape, network.inputs):
        return None
    return picture(network.weights[0][index], shape, () if network.hidden else network.classes)


def save_picture(sheet: NDArray[np.uint8], path: str | Path) -> None:
    """Write a picture as a PNG, complete or not at all."""
    content = io.BytesIO()
    Image.fromarray(sheet).save(content, format="png")
    atomic_write(path, content.getbuffer())


def _tiles(W: NDArray[np.float32], shape: Sequence[int]) -> NDArray[np.uint8]:
    """Return the units (n, height, width, 3) in bytes; a few small images are enlarged."""
    low, high = W.min(1, keepdims=True), W.max(1, keepdims=True)
    scaled = 255 * (W - low) / np.maximum(high - low, np.finfo(W.dtype).tiny)
    tiles = scaled.astype(np.uint8).reshape(len(W), *shape)
    if shape[0] not in (1, 3):
        tiles = tiles.transpose(0, 2, 1, 3).reshape(len(W), 1, shape[1], -1)
        shape = (1, shape[1], tiles.shape[-1])
    tiles = np.broadcast_to(tiles, (len(W), 3, *shape[1:])).transpose(0, 2, 3, 1)
    large = max(1, 64 // shape[1]) if len(W) <= 10 else 1
    return np.ascontiguousarray(tiles.repeat(large, 1).repeat(large, 2))
