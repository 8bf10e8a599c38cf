"""A data set in memory for Lightning: splits, statistics, standardised tensors, loaders, state."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.trainer.states import TrainerFn

from onelayer.core.checks import check_among, check_positive, check_whole
from onelayer.core.errors import InputError
from onelayer.data.augment import Augment, Border
from onelayer.data.pictures import PictureLoader, find_images
from onelayer.data.read import Source
from onelayer.data.read import batches as cifar10
from onelayer.data.read.batches import CIFAR10Files
from onelayer.data.read.download import mirror_urls, obtain
from onelayer.data.read.formats import read_table
from onelayer.data.read.shapes import Shapes
from onelayer.data.resident import ResidentDataModule
from onelayer.data.rows import RowLoader
from onelayer.data.split import split_rows, warn_of_val_size
from onelayer.data.table import Columns

_VAL_SIZE = 5000  # images


class CIFAR10DataModule(ResidentDataModule):
    """CIFAR-10, or a built-in set laid out alike, standardised and in memory.

    Args:
        root: folder that holds cifar-10-batches-py/. By default the environment variable
            ONELAYER_DATA, else "data".
        source: cifar10; synthetic, images of ten shapes drawn on the fly, which need no files; or
            auto, CIFAR-10 where it is there or to be had and the built-in images otherwise.
        train_batches: which of the training batches 1 to 5, of 10,000 images each, train.
        val_batches: which of them validate. By default none: the last val_size images of the
            training batches do.
        val_size: how many images validate if no val_batches are named; 0 for none.
        limit: keep only the first so many images of each split. By default all.
        batch_size: images of an update, over all processes.
        seed: of the order of the batches, and of the built-in images; 0 or more.
        mirror: URL (http, https, file) of cifar-10-python.tar.gz or of a folder that holds it, or
            several; asked before the sources that are known.
        download: whether to download CIFAR-10 into the root where it is missing. By default only
            if no root is given: one that is given holds the files, or is mistyped.
        images: image files, or folders of them, to predict.
        predict: file of samples to predict: .npz, .npy, .pt, .safetensors, .csv or .parquet.
        download_seconds: that a download should take. A source too slow for it is left for the
            next, and asked again, for less, when all have been tried.
        flip: whether half of the training images, drawn anew in every epoch, are mirrored.
        shift: pixels that training images are shifted by at most, up or down and left or right.
        border: what comes in at the other side: the image's own pixels, mirrored, or zeros.
        transform: changes each training image (3, 32, 32), pixels from 0 to 1: a transform of
            torchvision.transforms.v2, or any other module, by class path. Slower by far.

    Raises:
        InputError: naming the argument, its value and its range.
    """

    published = cifar10.CIFAR10
    """What the files must be, and how many images a batch holds, of the built-in set too."""

    decisive = ("train_batches", "val_batches", "val_size", "limit", "batch_size", "seed")

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
        download_seconds: float = 600.0,
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
        if val_batches is not None:
            _check_batches("val_batches", val_batches)
            if both := sorted(set(train_batches) & set(val_batches)):
                raise InputError(f"train_batches and val_batches share {both}: splits must not.")
        n = self.published.images
        most = n * len(train_batches) - 1
        check_whole("val_size", val_size, 0, most if val_batches is None else None)
        if val_batches is not None:
            warn_of_val_size(val_size, _VAL_SIZE, "val_batches")
        if limit is not None:
            check_whole("limit", limit, 1)
        check_whole("seed", seed, 0)
        check_positive("download_seconds", download_seconds)
        mirror_urls(mirror, self.published)  # refuses what is none

        self.source, self.root = source, cifar10.root_folder(root)
        val = _rows(val_batches, n) if val_batches else val_size
        splits = split_rows(_rows(train_batches, n), val, [range(n)], limit)
        augment = Augment(flip, shift, border, transform)
        super().__init__(self._source(self._here(), seed), splits, batch_size, seed, augment)
        augment.check(self.shape)
        self.save_hyperparameters(ignore=["transform"])
        self.mirror, self.download, self.download_seconds = mirror, download, download_seconds
        self.train_batches = list(train_batches)
        self.val_batches = None if val_batches is None else list(val_batches)
        self.val_size, self.limit = val_size, limit
        self.images = [images] if isinstance(images, str) else list(images or [])
        self.predicted = predict
        self._open = source == "auto"  # whether the data set may still become another

    # ---- which data set

    def _here(self) -> str:
        """Return which data set the source comes to, here and now."""
        if self.source != "auto":
            return self.source
        return "cifar10" if self.published.find(self.root) else "synthetic"

    def _source(self, name: str, seed: int) -> Source:
        if name == "cifar10":
            return CIFAR10Files(self.root, self.published)
        return Shapes(seed, self.published.images)

    def _settle(self, name: str) -> None:
        """Let the data set be this one from now on."""
        self._open = False
        if name != self.name:
            self.data_set = self._source(name, self.seed)
            self._images.clear()
            self._forget_tensors()
            self._statistics = None

    def prepare_data(self) -> None:
        """Have CIFAR-10 on disk, or, for source auto, say loudly that it is not to be had.

        Raises:
            InputError: it is not, and source is cifar10.
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
                f"Figures are theirs, not CIFAR-10's.\n{bar}",
                file=sys.stderr,
            )
            self._settle("synthetic")  # asked again, it neither tries nor says it again

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
        obtain(self.published, self.root, self.mirror, self.download_seconds)

    def verify_test(self) -> None:
        """Raise :class:`InputError` now, not after the training, if the test split is missing."""
        self.prepare_data()
        if self.name == "cifar10":
            cifar10.verify(self.root, cifar10.TEST_BATCH, self.published)

    def setup(self, stage: str) -> None:
        """Settle the data set, and read the splits that ``stage`` needs, or find the images."""
        name = self._here() if self._open else self.name
        if self.trainer is not None and self.trainer.world_size > 1:
            # what rank 0 has decided, also where another machine's disk tells otherwise
            name = self.trainer.strategy.broadcast(name)
        self._settle(name)
        if stage == "predict" and self.predicted is None:
            find_images(self.images)
        super().setup(stage)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the checkpoint's statistics, and its data set where that is open."""
        judged = self.source == "auto" and not self._runs(TrainerFn.FITTING)
        if judged or self._runs(TrainerFn.PREDICTING):
            name = state.get("dataset") if isinstance(state, dict) else state
            check_among("the checkpoint's dataset", name, ("cifar10", "synthetic"))
            self._settle(str(name))
        super().load_state_dict(state)

    def predict_dataloader(self) -> PictureLoader | RowLoader:
        """Return batches ``(X, names)`` of the image files, or X (n, 3072) of a table's bytes."""
        self._take_from_network()
        if self.predicted is not None:
            table = read_table(self.predicted, Columns(), labelled=False)
            if table.x.dtype != torch.uint8:
                raise InputError(
                    f"{table.where} holds {table.x.dtype}: the network was trained on bytes, uint8 "
                    "(n, 3072), the red plane first."
                )
            return RowLoader(table, self.statistics)
        return PictureLoader(find_images(self.images), self.statistics)


LOCATION_ARGUMENTS = ("root", "mirror", "download", "download_seconds", "images", "predict")
"""The arguments of CIFAR10DataModule that say where images come from, and change no figure."""


def _rows(batches: Sequence[int], n: int) -> list[range]:
    """Return the rows of the training batches 1 to 5, of n images each."""
    return [range((i - 1) * n, i * n) for i in batches]


def _check_batches(name: str, value: Any) -> None:
    legal = isinstance(value, list | tuple) and len(value) > 0
    if not legal or not all(type(i) is int and 1 <= i <= 5 for i in value):
        raise InputError(f"{name} must list one or more of the batches 1 to 5, not {value!r}.")
    if len(set(value)) < len(value):
        raise InputError(f"{name} must not repeat a batch, not {value!r}.")
