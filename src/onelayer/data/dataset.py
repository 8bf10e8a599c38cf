"""Any torch Dataset, read into memory once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch.utils.data import Dataset

from onelayer.data.adapter import name_of
from onelayer.data.arrays import Given
from onelayer.data.augment import Augment, Border
from onelayer.data.features import Standard
from onelayer.data.read.samples import read_dataset
from onelayer.data.resident import ResidentDataModule
from onelayer.data.split import VAL_SIZE, warn_of_val_size


class DatasetDataModule(ResidentDataModule):
    """Any map-style torch Dataset, such as torchvision's, read into memory once.

    A sample is a pair (features, label) or a dict; images of PIL are kept as bytes, and so are
    floats that stand for bytes, as torchvision's ToTensor makes them. Images as arrays are (c,
    height, width). The names of the classes are the Dataset's ``classes``.

    Args:
        train: Dataset to train on; typed as a class path with its own arguments.
        val: the same to validate on. By default val_size of train are.
        test: the same to test on.
        predict: image files or folders to classify, or a table as ArraysDataModule takes it.
        x: key of the features where samples are dicts.
        y: key of the label.
        classes: names of the classes, if the Dataset has none.
        val_size: samples, or their share, that are cut off train, of each class its share.
        standardise: feature for mean 0 and deviation 1 of each, as in the training split; unit for
            rows of length 1; none.
        batch_size: samples of an update, over all processes.
        seed: seed of the order of batches and of the validation split; 0 or more.
        flip: whether half of the training images, drawn anew in every epoch, are mirrored.
        shift: pixels that training images are shifted by at most, up or down and left or right.
        border: pixels at the other side: the image's own, mirrored, or zeros.
        transform: changes each training image (colours, height, width), pixels from 0 to 1: a
            transform of torchvision.transforms.v2, or any other module, by class path. Slower by
            far than flip and shift.

    Raises:
        InputError: a value out of its range; and, when they are read, for samples that would train
            silently wrong: naming the first.
    """

    def __init__(
        self,
        train: Dataset | None = None,  # type: ignore[type-arg]  # jsonargparse knows it by its name
        val: Dataset | None = None,  # type: ignore[type-arg]  # jsonargparse knows it by its name
        test: Dataset | None = None,  # type: ignore[type-arg]  # jsonargparse knows it by its name
        predict: Given = None,
        x: str = "image",
        y: str = "label",
        classes: list[str] | None = None,
        val_size: int | float = VAL_SIZE,
        standardise: Standard = "feature",
        batch_size: int = 100,
        seed: int = 0,
        flip: bool = False,
        shift: int = 0,
        border: Border = "reflect",
        transform: Callable[[Any], Any] | None = None,
    ) -> None:
        given = {"train": train, "val": val, "test": test}
        if val is not None:
            warn_of_val_size(val_size, VAL_SIZE, "val")
        super().__init__(
            {
                name: partial(read_dataset, dataset, x, y, trains=name == "train")
                for name, dataset in given.items()
                if dataset is not None
            },
            "dataset" if train is None else name_of(train),
            batch_size,
            seed,
            val_size,
            standardise,
            classes,
            predict=predict,
            augment=Augment(flip, shift, border, transform),
        )
        self.x, self.y = x, y

    def state_dict(self) -> dict[str, Any]:
        """Return what a run is resumed with, what predictions need, and the names of the keys."""
        return {**super().state_dict(), "keys": {"x": self.x, "y": self.y}}
