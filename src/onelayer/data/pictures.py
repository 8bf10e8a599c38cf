"""Image files to pixels, for predictions."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onelayer.core.checks import at_home
from onelayer.core.errors import InputError
from onelayer.data.features import Statistics, standardise
from onelayer.data.sources import PIXELS, SIDE

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What a file may hold, whatever its name: for others Pillow would run other programs."""
_BATCH = 500
_NAMED = 5
"""Files that cannot be read of which a warning says why."""


def find_images(names: Iterable[str]) -> list[Path]:
    """List the named image files and those below the named folders, each folder's by name.

    Raises:
        InputError: a name that does not exist, a folder without images, no name at all.
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
        raise InputError("images names nothing: give image files or folders, --data.images PATH.")
    return found


def read_image(path: Path) -> Tensor:
    """Read an image file as CIFAR-10 would hold it: uint8 (3072,), planes red, green, blue.

    Any size and 8-bit colour format; turned as its camera says, unless that is not to be read;
    resized to 32x32, bicubic and antialiased.

    Raises:
        InputError: the file cannot be read as an image.
    """
    from PIL import Image

    try:
        with _only_bombs_are_errors(), Image.open(path, formats=FORMATS) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"its pixels are {image.mode}, and 8-bit ones are needed")
            image.load()
            # through RGBA, as a palette may hold transparency, which RGB alone would warn of
            small = (
                _upright(image)
                .convert("RGBA")
                .convert("RGB")
                .resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            )
    except Exception as error:  # PIL's decoders raise whatever a damaged file makes them
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"images: {path} cannot be read as an image: {reason}.") from None
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).reshape(PIXELS)


@contextmanager
def _only_bombs_are_errors() -> Iterator[None]:
    """Refuse images that would fill the memory, of which Pillow only warns."""
    from PIL import Image

    with warnings.catch_warnings(action="ignore"):
        warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
        yield


def _upright(image: Any) -> Any:
    """An image turned as its EXIF block says; as it is, where that block is damaged."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # whatever the block makes Pillow do
        return image


class PictureLoader:
    """Batches ``(X, names)`` of image files, standardised as they are asked for.

    Files that cannot be read are left out, and warned about.

    Attributes:
        unreadable: how many.

    Raises:
        InputError: no file can be read as an image.
    """

    def __init__(self, paths: list[Path], statistics: Statistics) -> None:
        found, reasons = dict[str, Tensor](), list[str]()
        for path in paths:
            try:
                found[str(path)] = read_image(path)
            except InputError as error:
                reasons.append(str(error).removeprefix("images: "))
        self.unreadable = len(reasons)
        if reasons:
            more = [f"and {len(reasons) - _NAMED} more."] if len(reasons) > _NAMED else []
            said = "\n".join([*reasons[:_NAMED], *more])
            if not found:
                raise InputError(f"images: {said}\nNothing is left to predict.")
            warnings.warn(f"left out, {len(reasons)} of {len(paths)}:\n{said}", stacklevel=2)
        self.x = torch.stack(list(found.values()))
        self.names, self.statistics = list(found), statistics

    def __len__(self) -> int:
        return -(-len(self.x) // _BATCH)

    def __iter__(self) -> Iterator[tuple[Tensor, list[str]]]:
        for i, x in enumerate(self.x.split(_BATCH)):
            yield standardise(x, self.statistics), self.names[i * _BATCH :][: len(x)]
