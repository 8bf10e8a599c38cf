"""Pillow's images to bytes: one rule for files to predict and Datasets to train on."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What a file may hold, whatever its name: for others Pillow would run other programs."""
_GREY = ("1", "L", "LA", "La")


def open_image(path: str | Path) -> Any:
    """Read an image file as :func:`in_bytes` has it.

    Raises:
        ValueError: it is no regular file, or its pixels have 32 bits.
        Exception: whatever Pillow's decoders raise for a damaged file.
    """
    from PIL import Image

    if not Path(path).is_file():  # a named pipe would be waited for
        raise ValueError("it is no regular file")
    with _only_bombs_are_errors(), Image.open(path, formats=FORMATS) as image:
        image.load()
        return in_bytes(image)


@contextmanager
def _only_bombs_are_errors() -> Iterator[None]:
    """Refuse images that would fill the memory, of which Pillow only warns."""
    from PIL import Image

    with warnings.catch_warnings(action="ignore"):
        warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
        yield


def in_bytes(image: Any) -> Any:
    """Return an image of Pillow's with 8 bits a pixel: grey, L, or coloured, RGB.

    It is turned as its camera says. Grey of 16 bits is divided by 257, which makes 65535 white;
    transparency is left out.

    Raises:
        ValueError: its pixels are floats or 32-bit numbers, for which there is no white.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        image = _of_sixteen_bits(image)  # such PNGs are I in older versions of Pillow
    image = _upright(image)
    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"its pixels are {image.mode}, numbers of 32 bits: 8 or 16 bits are needed. Scale them "
            "to 0 to 255 first"
        )
    if image.mode in ("L", "RGB"):
        return image
    # through RGBA, as a palette may hold transparency, which RGB alone would warn of
    return image.convert("RGBA").convert("L" if image.mode in _GREY else "RGB")


def _of_sixteen_bits(image: Any) -> Any:
    from PIL import Image

    pixels = np.asarray(image).astype(np.uint32)
    made = Image.fromarray(((pixels + 128) // 257).astype(np.uint8))
    made.info = dict(image.info)  # with how the camera was held
    return made


def _upright(image: Any) -> Any:
    """Return an image turned as its EXIF block says; as it is, where that block is damaged."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # whatever the block makes Pillow do
        return image
