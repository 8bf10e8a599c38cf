"""Image files to pixels, for predictions."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from onelayer.core.errors import InputError
from onelayer.data.features import Statistics, standardise
from onelayer.data.sources import PIXELS, SIDE

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_BATCH = 500


def find_images(names: Iterable[str]) -> list[Path]:
    """List the named image files and those below the named folders, each folder's by name.

    Raises:
        InputError: a name that does not exist, a folder without images, no name at all.
    """
    found: list[Path] = []
    for path in (Path(name).expanduser() for name in names):
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
        raise InputError("images names nothing: give image files or folders, --data.images PATH.")
    return found


def read_image(path: Path) -> Tensor:
    """Read an image file as CIFAR-10 would hold it: uint8 (3072,), planes red, green, blue.

    Any size and 8-bit colour format; resized to 32x32, bicubic and antialiased.

    Raises:
        InputError: the file cannot be read as an image.
    """
    from PIL import Image, ImageOps

    try:
        # PIL only warns of images that would fill the memory
        with warnings.catch_warnings(action="error"), Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"its pixels are {image.mode}, and 8-bit ones are needed")
            image.load()
            # through RGBA, as a palette may hold transparency, which RGB alone would warn of
            upright = ImageOps.exif_transpose(image).convert("RGBA").convert("RGB")
            small = upright.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    except Exception as error:  # PIL's decoders raise whatever a damaged file makes them
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"images: {path} cannot be read as an image: {reason}.") from None
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).reshape(PIXELS)


class PictureLoader:
    """Batches ``(X, names)`` of image files, standardised as they are asked for.

    Raises:
        InputError: a file cannot be read as an image.
    """

    def __init__(self, paths: list[Path], statistics: Statistics) -> None:
        self.x = torch.stack([read_image(path) for path in paths])
        self.names, self.statistics = [str(path) for path in paths], statistics

    def __len__(self) -> int:
        return -(-len(self.x) // _BATCH)

    def __iter__(self) -> Iterator[tuple[Tensor, list[str]]]:
        for i, x in enumerate(self.x.split(_BATCH)):
            yield standardise(x, self.statistics), self.names[i * _BATCH :][: len(x)]
