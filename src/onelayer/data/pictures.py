"""Image files to pixels, for predictions."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from onelayer.core.checks import at_home
from onelayer.core.errors import InputError
from onelayer.data.features import Statistics, standardise
from onelayer.data.naming import shown
from onelayer.data.read import SIDE
from onelayer.data.read.images import open_image

_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_BATCH = 500
BICUBIC = 3  # PIL.Image.Resampling.BICUBIC, without importing Pillow before it is needed
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


def read_image(path: Path, shape: tuple[int, ...] = (3, SIDE, SIDE)) -> Tensor:
    """Read an image file as CIFAR-10 would hold it: uint8 (3072,), planes red, green, blue.

    Any size, and any format with 8 or 16 bits a pixel (:func:`open_image`); resized, bicubic and
    antialiased.

    Args:
        path: of the file.
        shape: of the result before it is laid flat: 3 colours, or 1 grey, height and width.

    Raises:
        InputError: the file cannot be read as an image.
    """
    colours, height, width = shape
    try:
        image = open_image(path).convert("RGB" if colours == 3 else "L")
        small = image.resize((width, height), BICUBIC)
    except Exception as error:  # PIL's decoders raise whatever a damaged file makes them
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"images: {shown(path)} cannot be read as an image: {reason}.") from None
    return torch.from_numpy(np.array(small)).view(height, width, -1).permute(2, 0, 1).flatten()


class PictureLoader:
    """Batches ``(X, names)`` of image files, standardised as they are asked for.

    Files that cannot be read are left out, and warned about.

    Attributes:
        unreadable: how many.

    Raises:
        InputError: no file can be read as an image.
    """

    def __init__(
        self,
        paths: list[Path],
        statistics: Statistics,
        shape: tuple[int, ...] = (3, SIDE, SIDE),
        unit: bool = False,
    ) -> None:
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise InputError(
                f"images cannot be classified: the network was trained on samples {tuple(shape)}, "
                "which are no pictures of 1 or 3 colours."
            )
        found, reasons = dict[str, Tensor](), list[str]()
        for path in paths:
            try:
                found[str(path)] = read_image(path, shape)
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
        self.names, self.statistics, self.unit = list(found), statistics, unit

    def __len__(self) -> int:
        return -(-len(self.x) // _BATCH)

    def __iter__(self) -> Iterator[tuple[Tensor, list[str]]]:
        for i, x in enumerate(self.x.split(_BATCH)):
            yield (
                standardise(x, self.statistics, unit=self.unit),
                self.names[i * _BATCH :][: len(x)],
            )
