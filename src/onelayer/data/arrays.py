"""Features of your own, in files or arrays."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from onelayer.data.augment import Augment, Border
from onelayer.data.features import Standard
from onelayer.data.read.formats import name_of, read_table
from onelayer.data.resident import ResidentDataModule
from onelayer.data.split import VAL_SIZE, warn_of_val_size
from onelayer.data.table import Columns

Given = str | list[str] | None
"""A file, or two .npy; in Python also arrays (X, y)."""


class ArraysDataModule(ResidentDataModule):
    """Features and labels from .npz, .npy, .pt, .safetensors, .csv or .parquet files, or arrays.

    Features (n, d) are float16, float32, float64 or uint8, and of images (n, c, height, width);
    labels (n,) are whole numbers or strings. Names of classes are the strings, or, of whole
    numbers, an array "classes" of the file, or ``classes``, or the numbers.

    Args:
        train: file to train on, or two .npy, of features and of labels; or arrays (X, y).
        val: the same to validate on. By default val_size of train are.
        test: the same to test on.
        predict: the same, without labels, to classify; or image files and folders.
        x: key or column of the features, or several columns. By default the key X; of a .csv or
            .parquet a column X of lists, or else all columns that no other argument names.
        y: key or column of the labels.
        groups: key or column of groups that the validation split must not tear apart, such as
            patients or speakers.
        weight: key or column of the weights of the samples, 0 or more. They multiply losses, not
            accuracies, and are scaled so that the training split has mean weight 1.
        classes: names of the classes; a label that is a whole number is a place among them.
        val_size: rows, or their share, that are cut off train, of each class its share.
        standardise: feature for mean 0 and deviation 1 of each, as in the training split; unit for
            rows of length 1; none.
        batch_size: rows of an update, over all processes.
        seed: seed of the order of batches and of the validation split; 0 or more.
        max_memory: gigabytes that the features of an .npy may take in memory; of a larger one each
            batch is read from the file.
        flip: whether half of the training images, drawn anew in every epoch, are mirrored.
        shift: pixels that training images are shifted by at most, up or down and left or right.
        border: pixels at the other side: the image's own, mirrored, or zeros.
        transform: changes each training image (c, height, width), bytes as pixels from 0 to 1 and
            floats as given, or rows of length 1 where standardise is unit: a transform of
            torchvision.transforms.v2, or any other module, by class path. Slower by far than flip
            and shift.
        backbone: network that turns image files to predict into features. Default: the one that
            made the features trained on. A class path must be given, as a checkpoint never imports
            it by itself.

    Raises:
        InputError: a value out of its range; and, when they are read, for data that would train
            silently wrong: naming file, row and column.
    """

    def __init__(
        self,
        train: Given = None,
        val: Given = None,
        test: Given = None,
        predict: Given = None,
        x: str | list[str] | None = None,
        y: str = "y",
        groups: str | None = None,
        classes: list[str] | None = None,
        val_size: int | float = VAL_SIZE,
        standardise: Standard = "feature",
        batch_size: int = 100,
        seed: int = 0,
        max_memory: float = 1.0,
        flip: bool = False,
        shift: int = 0,
        border: Border = "reflect",
        transform: Callable[[Any], Any] | None = None,
        backbone: str | None = None,
        weight: str | None = None,
    ) -> None:
        columns = Columns(x, y, groups, weight)
        if val is not None:
            warn_of_val_size(val_size, VAL_SIZE, "val")
        given: dict[str, Any] = {"train": train, "val": val, "test": test}
        super().__init__(
            {
                name: partial(read_table, what, columns)
                for name, what in given.items()
                if what is not None
            },
            name_of(train),
            batch_size,
            seed,
            val_size,
            standardise,
            classes,
            max_memory,
            predict,
            columns,
            Augment(flip, shift, border, transform),
        )
        self.x, self.y, self.groups, self.backbone, self.weight = x, y, groups, backbone, weight

    def state_dict(self) -> dict[str, Any]:
        """Return what a run is resumed with, what predictions need, and the names of columns."""
        state = super().state_dict()
        x = list(self.x) if isinstance(self.x, list | tuple) else self.x
        keys = {"x": x, "y": self.y, "groups": self.groups}
        return {**state, "keys": keys | ({"weight": self.weight} if self.weight else {})}
