"""Features of a folder of images, by a backbone: one .npz, made shard by shard."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from onelayer.core.checks import at_home, check_among, check_same, check_whole
from onelayer.core.errors import InputError
from onelayer.data.backbone import BATCH, Backbone, Extractor
from onelayer.data.naming import NOT_CLASSES
from onelayer.data.read.images import find_images
from onelayer.training.files import atomic_write, write_json
from onelayer.training.progress import Bar

SHARD = 1024  # images of a shard: what a stopped run does again, at most
PARTS = ".parts"  # ending of the folder of shards
DTYPES = ("float16", "float32")


@dataclass(frozen=True)
class Extraction:
    """A folder of images to make features of.

    Args:
        backbone: the backbone.
        images: folder of images; its subfolders are the classes, if it has any.
        output: .npz file to write.
        dtype: float16 or float32.
        batch_size: images at once.
        device: cpu, cuda, …; auto for a GPU if there is one.
        shard: images of a shard.
    """

    backbone: Backbone
    images: Path
    output: Path
    dtype: str = "float32"
    batch_size: int = BATCH
    device: str = "auto"
    shard: int = SHARD

    def __post_init__(self) -> None:
        check_among("--dtype", self.dtype, DTYPES)
        check_whole("--batch_size", self.batch_size, 1)
        check_whole("--shard", self.shard, 1)
        if self.output.suffix != ".npz" or self.output.is_dir():
            raise InputError(f"--output is {self.output}. Name a file that ends in .npz.")
        if not self.images.is_dir():
            raise InputError(f"--images {self.images} is no folder. Name a folder of images.")

    def run(self) -> list[str]:
        """Write the file, or the rest of it; return why files were left out.

        Raises:
            InputError: no image can be read, some images are in a folder of a class and others are
                not, or shards are there of another backbone or other images.
        """
        images, folder = at_home(self.images), self.output.with_name(self.output.name + PARTS)
        paths = find_images([images])
        names = [path.relative_to(images).as_posix() for path in paths]
        labels = labels_of(names, images)
        extractor = Extractor(self.backbone, _device(self.device))
        settings = {
            "backbone": str(extractor.backbone), "dtype": self.dtype, "shard": self.shard,
            "images": names,
        }  # fmt: skip
        _claim(folder, settings)
        self._make_shards(extractor, paths, folder)
        faults = self._join(folder, paths, names, labels, extractor.backbone)
        shutil.rmtree(folder)
        return faults

    def _make_shards(self, extractor: Extractor, paths: Sequence[Path], folder: Path) -> None:
        bar = Bar("features", len(paths), "images")
        try:
            for start in range(0, len(paths), self.shard):
                path, piece = _shard(folder, start), paths[start : start + self.shard]
                if path.is_file():
                    bar.skip(start + len(piece))
                    continue
                X, read, faults = list[Any](), list[int](), list[str]()
                index = {one: start + i for i, one in enumerate(piece)}
                for done, features, left_out in extractor.batches(piece, self.batch_size):
                    X += [features] if done else []
                    read += [index[one] for one in done]
                    faults += left_out
                    bar.update(len(done) + len(left_out))
                content = {"index": np.array(read, dtype=np.int64), "faults": np.array(faults, str)}
                if X:
                    content["X"] = self._typed(torch.cat(X))
                atomic_write(path, _npz(content))
        finally:
            bar.close()

    def _typed(self, X: torch.Tensor) -> Any:
        X = X.to(getattr(torch, self.dtype))
        if not X.isfinite().all():
            raise InputError("float16 holds numbers up to 65504, and a feature is larger. "
                             "Set --dtype to float32.")  # fmt: skip
        return X.numpy()

    def _join(
        self,
        folder: Path,
        paths: Sequence[Path],
        names: Sequence[str],
        labels: Sequence[str] | None,
        backbone: Backbone,
    ) -> list[str]:
        """Write the shards as one file; return why files were left out."""
        shards = [_read(_shard(folder, i)) for i in range(0, len(paths), self.shard)]
        faults = [str(fault) for shard in shards for fault in shard["faults"]]
        index = np.concatenate([shard["index"] for shard in shards])
        if not len(index):
            raise InputError(f"no image in {self.images} can be read: {faults[0]}")
        content = {
            "X": np.concatenate([shard["X"] for shard in shards if "X" in shard]),
            "files": np.array([names[i] for i in index]),
            "backbone": np.array(str(backbone)),
        }
        if labels is not None:
            y = np.array([labels[i] for i in index])
            content |= {"y": y, "classes": np.unique(y)}
        atomic_write(self.output, _npz(content))
        return faults


def labels_of(names: Sequence[str], where: Path) -> list[str] | None:
    """Return the class of each file: its first folder; None if there are no folders.

    Raises:
        InputError: some files are in a folder and others are not.
    """
    inside = ["/" in name for name in names]
    if not any(inside):
        return None
    if not all(inside):
        loose = names[inside.index(False)]
        raise InputError(
            f"{where} has images in folders of classes, and {loose} in none. Move it to a folder."
        )
    labels = [name.partition("/")[0] for name in names]
    if found := sorted(set(labels) & set(NOT_CLASSES)):
        raise InputError(
            f"{where} has a class {found[0]!r}, which is a folder that another program has left.\n"
            "Delete the folder."
        )
    return labels


def _claim(folder: Path, settings: dict[str, Any]) -> None:
    """Write what the shards are of, or refuse shards of something else."""
    path = folder / "settings.json"
    if not path.is_file():
        write_json(path, settings)
        return
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        kept = {}
    listed, before = settings["images"], kept.pop("images", None)
    advice = f"To begin anew, delete {folder}."
    others = {name: value for name, value in settings.items() if name != "images"}
    check_same(str(folder), others, kept, advice)
    if before != listed:
        raise InputError(f"{folder} has features of other images than those there now.\n{advice}")


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name} cannot be used. Choose auto, cpu or cuda.") from error
    return device


def _shard(folder: Path, start: int) -> Path:
    return folder / f"{start:09d}.npz"


def _read(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def _npz(content: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **content)
    return file.getvalue()
