"""Image files and Pillow images to bytes, by one rule for training and prediction."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onelayer.core.checks import at_home
from onelayer.core.errors import InputError
from onelayer.data.naming import shown
from onelayer.data.read import SIDE

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # Pillow runs programs for others
_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_GREY = ("1", "L", "LA", "La")
_BICUBIC = 3  # PIL.Image.Resampling.BICUBIC, without importing Pillow before it is needed


def find_images(names: Iterable[str | Path]) -> list[Path]:
    """List the named image files and those below the named folders, sorted by name in each folder.

    Raises:
        InputError: a path does not exist, a folder holds no image, or no path is given.
    """
    found: list[Path] = []
    for path in (at_home(name) for name in names):
        if not path.exists():
            raise InputError(f"images: {path} does not exist.")
        below = [path]
        if path.is_dir():
            files = (f for f in path.rglob("*") if f.suffix.lower() in _SUFFIXES and f.is_file())
            below = sorted(file for file in files if not file.name.startswith("."))
        if not below:
            known = " ".join(sorted(_SUFFIXES))
            raise InputError(f"images: the folder {path} holds no image file ({known}).")
        found += below
    if not found:
        raise InputError(
            "no images are given: name image files or folders with --data.images PATH."
        )
    return found


def read_image(path: Path, shape: tuple[int, ...] = (3, SIDE, SIDE)) -> Tensor:
    """Read an image file of any size, one colour plane after the other, uint8 (d,).

    The image is resized (bicubic, antialiased).

    Args:
        path: file of the image.
        shape: 3 colours, or 1 grey, height and width.

    Raises:
        InputError: the file cannot be read as an image.
    """
    colours, height, width = shape
    try:
        image = open_image(path).convert("RGB" if colours == 3 else "L")
        return to_planes(image.resize((width, height), _BICUBIC)).flatten()
    except Exception as error:  # Pillow's decoders raise anything for a damaged file
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"images: {shown(path)} cannot be read as an image: {reason}.") from None


def open_image(path: str | Path) -> Any:
    """Open an image file with 8 bits a pixel, as :func:`in_bytes` returns it.

    Raises:
        ValueError: it is not a regular file, or its pixels have 32 bits.
        Exception: raised by Pillow's decoders for a damaged file or a decompression bomb.
    """
    from PIL import Image

    if not Path(path).is_file():  # opening a named pipe would wait for ever
        raise ValueError("it is no regular file")
    with warnings.catch_warnings(action="ignore"):
        warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
        with Image.open(path, formats=FORMATS) as image:
            image.load()
            return in_bytes(image)


def to_planes(image: Any) -> Tensor:
    """Return a Pillow image, L or RGB, as uint8 (colours, height, width)."""
    pixels = torch.from_numpy(np.array(image))
    return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def in_bytes(image: Any) -> Any:
    """Return a Pillow image with 8 bits a pixel: grey, L, or coloured, RGB.

    It is turned upright by its EXIF block. Grey of 16 bits is divided by 257, which makes 65535
    white; transparency is dropped.

    Raises:
        ValueError: its pixels are numbers of 32 bits, which have no white.
    """
    from PIL import Image, ImageOps

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        pixels = np.asarray(image).astype(np.uint32)  # older versions of Pillow call such PNGs I
        made = Image.fromarray(((pixels + 128) // 257).astype(np.uint8))
        made.info = dict(image.info)  # holds the EXIF block
        image = made
    with suppress(Exception):  # a damaged EXIF block makes Pillow raise anything
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        raise ValueError(
            f"its pixels are {image.mode}, numbers of 32 bits: 8 or 16 bits are needed. Scale them "
            "to 0 to 255 first"
        )
    if image.mode in ("L", "RGB"):
        return image
    # through RGBA, as a palette may hold transparency, which RGB alone would warn of
    return image.convert("RGBA").convert("L" if image.mode in _GREY else "RGB")
