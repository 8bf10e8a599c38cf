"""CIFAR-10, or built-in images laid out alike, as a resident data module."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from lightning.pytorch.trainer.states import TrainerFn

from onelayer.core.checks import check_among, check_same, check_whole
from onelayer.core.errors import InputError
from onelayer.data.augment import Augment, Border
from onelayer.data.classes import Classes
from onelayer.data.read import SIDE, batches
from onelayer.data.read.download import mirror_urls, obtain
from onelayer.data.read.shapes import Shapes
from onelayer.data.resident import ResidentDataModule
from onelayer.data.split import Split, split_rows, warn_of_val_size
from onelayer.data.table import Table

_VAL_SIZE = 5000  # images


class CIFAR10DataModule(ResidentDataModule):
    """CIFAR-10, or a built-in set laid out alike, standardised and in memory.

    Args:
        root: folder that holds cifar-10-batches-py/. By default the environment variable
            ONELAYER_DATA, else "data".
        source: cifar10; synthetic, images of ten shapes drawn on the fly, which need no files; or
            auto, CIFAR-10 where it is there or to be had and the built-in images otherwise.
        train_batches: numbers, from 1 to 5, of the training batches of 10,000 images to train on.
        val_batches: numbers of those to validate on. By default none: the last val_size images of
            the training batches validate.
        val_size: images to validate on if no val_batches are named; 0 for none.
        limit: number of images to keep of each split. By default all.
        batch_size: images of an update, over all processes.
        seed: seed of the order of the batches, and of the built-in images; 0 or more.
        mirror: URL (http, https, file) of cifar-10-python.tar.gz or of a folder that holds it, or
            several; tried before the known sources.
        download: whether to download CIFAR-10 into the root if it is missing. By default only if
            root is not given.
        images: image files, or folders of them, to predict.
        predict: file of samples to predict: .npz, .npy, .pt, .safetensors, .csv or .parquet.
        flip: whether to flip half of the training images, drawn anew in every epoch, left to right.
        shift: pixels to shift training images by, at most, in each direction.
        border: pixels that come in at the other side: the image's own, reflected, or zeros.
        transform: change of each training image (3, 32, 32), pixels from 0 to 1: a transform of
            torchvision.transforms.v2, or any other module, by class path. Slower by far.

    Raises:
        InputError: naming the argument, its value and its range.
    """

    published = batches.CIFAR10
    """Digests of the files, and the number of images in a batch, of the built-in set too."""

    decisive = ("train_batches", "val_batches", "val_size", "limit", "batch_size", "seed")
    locations = ("root", "mirror", "download", "images", "predict")
    verified = True

    def __init__(
        self,
        root: str | None = None,
        source: Literal["cifar10", "synthetic", "auto"] = "cifar10",
        train_batches: list[int] = [1, 2, 3, 4, 5],  # noqa: B006 - shown as it is by --help
        val_batches: list[int] | None = None,
        val_size: int = _VAL_SIZE,
        limit: int | None = None,
        batch_size: int = 100,
        seed: int = 0,
        mirror: str | list[str] | None = None,
        download: bool | None = None,
        images: str | list[str] | None = None,
        predict: str | list[str] | None = None,
        flip: bool = False,
        shift: int = 0,
        border: Border = "reflect",
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        root = os.fspath(root) if root is not None else None
        check_among("source", source, ("cifar10", "synthetic", "auto"))
        check_among("download", download, (True, False, None))
        _check_batches("train_batches", train_batches)
        n = self.published.images
        most = n * len(train_batches) - 1
        check_whole("val_size", val_size, 0, most if val_batches is None else None)
        if val_batches is not None:
            _check_batches("val_batches", val_batches)
            if both := sorted(set(train_batches) & set(val_batches)):
                raise InputError(f"train_batches and val_batches share {both}: splits must not.")
            warn_of_val_size(val_size, _VAL_SIZE, "val_batches")
        if limit is not None:
            check_whole("limit", limit, 1)
        mirror_urls(mirror, self.published)  # refuses what is no URL

        self.source, self.root = source, batches.root_folder(root)
        self.mirror, self.download = mirror, download
        self.train_batches, self.limit = list(train_batches), limit
        self.val_batches = None if val_batches is None else list(val_batches)
        self.images = [images] if isinstance(images, str) else list(images or [])
        val = _rows(val_batches, n) if val_batches else val_size
        self.splits = split_rows(_rows(train_batches, n), val, [range(n)], limit)
        super().__init__(
            {split: partial(self._read, split) for split, rows in self.splits.items() if rows},
            "",
            batch_size,
            seed,
            val_size,
            predict=predict,
            augment=Augment(flip, shift, border, transform),
        )
        if predict is None:
            self.predicted = self.images
        self.save_hyperparameters(ignore=["transform"])
        self._settle(self._here())
        self._open = source == "auto"  # whether the data set may still become another
        self.augment.check(self.shape)

    def __str__(self) -> str:
        sizes = ", ".join(f"{split} {self.size(split)}" for split in self.splits)
        return f"{type(self).__name__}({self.name}: {sizes} images; batches of {self.batch_size})"

    def size(self, split: Split) -> int:
        """Return the number of images of a split, before any is read."""
        return sum(map(len, self.splits[split]))

    def _read(self, split: Split) -> Table:
        pool: Split = "test" if split == "test" else "train"
        return self.data_set.read(pool, self.splits[split])

    # ---- the data set

    def _here(self) -> str:
        """Return the data set that the source means on this machine now."""
        if self.source != "auto":
            return self.source
        return "cifar10" if self.published.find(self.root) else "synthetic"

    def _settle(self, name: str) -> None:
        """Use this data set from now on."""
        self._open = False
        if name != self.name:
            self.data_set = (
                batches.CIFAR10Files(self.root, self.published)
                if name == "cifar10"
                else Shapes(self.seed, self.published.images)
            )
            self._forget()
            self._name, self._whose, self._kind, self._dtype = name, name, "bytes", "uint8"
            self._shape, self._classes = (3, SIDE, SIDE), Classes(self.data_set.classes, True)

    def prepare_data(self) -> None:
        """Download CIFAR-10 if it is missing; for source auto, warn if that fails.

        Raises:
            InputError: CIFAR-10 is not to be had, and source is cifar10.
        """
        if self._runs(TrainerFn.PREDICTING) or (self.name != "cifar10" and not self._open):
            return
        try:
            if not self.published.find(self.root):
                self._download()
            self._settle("cifar10")
        except InputError as error:
            if not self._open:
                raise
            bar = "!" * 80
            print(
                f"{bar}\n{error}\n\nTraining on the BUILT-IN SYNTHETIC IMAGES instead. "
                f"Results are theirs, not CIFAR-10's.\n{bar}",
                file=sys.stderr,
            )
            self._settle("synthetic")  # tried only once

    def _download(self) -> None:
        why = None
        if self.download is False:
            why = "download is false, so it is not downloaded"
        elif self.download is None and self.hparams["root"] is not None:
            why = "to download it into a root that is given, say --data.download true"
        elif os.environ.get("ONELAYER_OFFLINE", "0") not in ("", "0"):
            why = "ONELAYER_OFFLINE is set, so it is not downloaded"
        if why:
            raise self.published.missing(self.root, why)
        obtain(self.published, self.root, self.mirror)

    def verify_test(self) -> None:
        """Raise :class:`InputError` now, not after the training, if the test split is missing."""
        self.prepare_data()
        if self.name == "cifar10":
            batches.verify(self.root, batches.TEST_BATCH, self.published)

    def setup(self, stage: str) -> None:
        """Settle the data set, and read the splits that ``stage`` needs, or find the images."""
        name = self._here() if self._open else self.name
        if self.trainer is not None and self.trainer.world_size > 1:
            name = self.trainer.strategy.broadcast(name)  # rank 0 decides for all machines
        self._settle(name)
        super().setup(stage)

    def _take_name(self, name: str) -> None:
        judged = self.source == "auto" and not self._runs(TrainerFn.FITTING)
        if judged or self._runs(TrainerFn.PREDICTING):
            check_among("the checkpoint's dataset", name, ("cifar10", "synthetic"))
            self._settle(name)
        check_same("the checkpoint", {"dataset": self.name}, {"dataset": name}, "Use its data.")


def _rows(numbers: Sequence[int], n: int) -> list[range]:
    """Return the rows of the training batches 1 to 5, of n images each."""
    return [range((i - 1) * n, i * n) for i in numbers]


def _check_batches(name: str, value: Any) -> None:
    legal = isinstance(value, list | tuple) and len(value) > 0
    if not legal or not all(type(i) is int and 1 <= i <= 5 for i in value):
        raise InputError(f"{name} must list one or more of the batches 1 to 5, not {value!r}.")
    if len(set(value)) < len(value):
        raise InputError(f"{name} must not repeat a batch, not {value!r}.")
