"""The resident data module: tables in memory, cut into splits, standardised, and their loaders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from onelayer.core.checks import check_among, check_positive, check_same, check_whole
from onelayer.core.errors import InputError, first_line
from onelayer.data.augment import Augment, Augmentation
from onelayer.data.backbone import Backbone, Extractor
from onelayer.data.classes import Classes
from onelayer.data.features import (
    Features,
    RawFeatures,
    Standard,
    Statistics,
    features,
    measure,
    no_statistics,
)
from onelayer.data.loader import ResidentLoader
from onelayer.data.naming import match
from onelayer.data.predict import PredictLoader, load_features, load_images
from onelayer.data.read.formats import SUFFIXES, read_table
from onelayer.data.read.images import find_images
from onelayer.data.split import VAL_SIZE, Split
from onelayer.data.split_tables import SPLITS, SplitTables
from onelayer.data.table import Columns, Table

STANDARDS = ("feature", "none", "unit")
_NEEDED: dict[str, tuple[Split, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
}
_EVALUATION_BATCH = 5000  # samples


class ResidentDataModule(SplitTables, LightningDataModule):
    """Tables of features and labels, standardised, in memory or mapped.

    Features are standardised with the mean and standard deviation of the training split, which
    checkpoints carry. Loaders give batches by index, in an order that is a pure function of the
    seed and the epoch. A table is read when it is first needed.

    Args:
        readers: functions that read the tables, by train, val and test.
        name: name of the data.
        batch_size: samples of an update, over all processes.
        seed: seed of the order of the batches, and of the validation split; 0 or more.
        val_size: rows, or their share, to cut off train if there is no val.
        standardise: feature, none or unit.
        classes: names of the classes; a label that is a whole number is then an index of them.
        max_memory: gigabytes that the features of an .npy may take in memory.
        predict: samples to classify: a table, or image files and folders.
        columns: names of the columns of that table.
        augment: changes to the images of the training batches.
    """

    decisive: tuple[str, ...] = ("batch_size", "seed", "standardise", "val_size", "rows")
    """Arguments that decide which samples come when; ``rows`` is a checksum of the samples. A run
    is resumed with the same."""
    locations: tuple[str, ...] = ("train", "val", "test", "predict", "max_memory")
    """Arguments that say where data lie, and change no result."""

    def __init__(
        self,
        readers: Mapping[str, Callable[[], Table]],
        name: str,
        batch_size: int = 100,
        seed: int = 0,
        val_size: float = VAL_SIZE,
        standardise: Standard = "feature",
        classes: Sequence[str] | None = None,
        max_memory: float = 1.0,
        predict: Any = None,
        columns: Columns = Columns(),  # noqa: B008 - it is frozen
        augment: Augment = Augment(),  # noqa: B008 - it is frozen
    ) -> None:
        LightningDataModule.__init__(self)
        check_whole("batch_size", batch_size, 1)
        check_among("standardise", standardise, STANDARDS)
        check_positive("max_memory", max_memory)
        self._name, self.batch_size, self.augment = name, batch_size, augment
        self.standardise, self.max_memory = standardise, max_memory
        self.predicted: Any = [predict] if isinstance(predict, str | Path) else predict
        if predict is not None:
            readers = {**readers, "predict": partial(read_table, predict, columns, labelled=False)}
        self._begun = False  # whether there were batches to train on since the setup
        self._taught: dict[str, Any] | None = None  # the state that a network in memory has
        SplitTables.__init__(self, readers, val_size, seed, classes)

    def _forget(self) -> None:
        super()._forget()
        self._statistics: Statistics | None = None
        self._forget_tensors()

    def _changed(self) -> None:
        super()._changed()
        self._forget_tensors()

    def _forget_tensors(self) -> None:
        self._tensors: dict[tuple[Split, torch.dtype], tuple[Features, Tensor]] = {}
        self._augmentation_of: tuple[tuple[Augment, int, int], Augmentation | None] | None = None

    def __repr__(self) -> str:
        """Return the class, the data and the order of batches."""
        sizes = f"batch_size={self.batch_size}, seed={self.seed}"
        return f"{type(self).__name__}({self.name}, {sizes}, val_size={self.val_size:g})"

    def __str__(self) -> str:
        # Lightning's own would load all of it and require torch's loaders.
        there = [split for split in SPLITS if self._table_of(split) in self.readers]
        return f"{type(self).__name__}({self.name}: {', '.join(there)})"

    @property
    def name(self) -> str:  # type: ignore[override]  # Lightning's is None and never used
        """Name of the data."""
        return self._name

    # ---- checks before a run

    def setup(self, stage: str) -> None:
        """Read the tables that ``stage`` needs, and refuse what would train silently wrong.

        Raises:
            InputError: naming file, row and column.
        """
        self._begun = False
        if stage == "predict":
            find_images(self.predicted) if self._are_images() else self.table("predict")
        elif stage == "fit":
            self.check_batch_size()
            self._check_all()
            self.augment.check(self.shape)
            self.sample_weights("train")  # refuses those that are all 0
        elif stage == "validate" and not self.size("val"):
            raise InputError("there is no split to validate on: data.val_size is 0. Set data.val.")
        made = {split for split, _ in self._tensors}
        for split in _NEEDED.get(stage, ()):
            if split not in made and (split == "test" or self.size(split)):
                self.table(self._table_of(split))

    def check_batch_size(self) -> None:
        """Raise :class:`InputError` for a batch larger than the training split."""
        check_whole("batch_size", self.batch_size, 1, self.size("train"))

    def verify_test(self) -> None:
        """Refuse now, not after the training, a test split that cannot be measured."""
        self._check_all()

    # ---- features

    @torch.inference_mode(False)
    def labelled(self, split: Split) -> tuple[Tensor, Tensor] | None:
        """Return a split's features as they were given, and its labels; None if it is empty."""
        if not self.size(split):
            return None
        table, rows = self.table(self._table_of(split)), self.rows_of(split)
        x = table.x if len(rows) == len(table) else table.x[rows]
        return x, self.labels(split)

    @torch.inference_mode(False)
    def tensors(self, split: Split) -> tuple[Features, Tensor] | None:
        """Return a standardised split: X (n, d) and y (n,), made once and kept; None if empty.

        On the trainer's device if there is a trainer, and float64 if its precision is 64-true. The
        table that X is made of is dropped, unless X is :class:`~onelayer.data.features.RawFeatures`
        because a GPU has no room for more or the table is mapped.
        """
        double = self.trainer is not None and self.trainer.precision == "64-true"
        device, dtype = self._device(), torch.float64 if double else torch.float32
        if (split, dtype) not in self._tensors:
            if not self.size(split):
                return None
            self._tensors[split, dtype] = self._standardised(split, device, dtype)
            self._drop(self._table_of(split))
        X, y = self._tensors[split, dtype]
        X = X.to(device)
        self._tensors[split, dtype] = X, y.to(X.device)  # a file's stay in host memory
        return self._tensors[split, dtype]

    def _device(self) -> torch.device:
        return torch.device("cpu") if self.trainer is None else self.trainer.strategy.root_device

    def _standardised(
        self, split: Split, device: torch.device, dtype: torch.dtype
    ) -> tuple[Features, Tensor]:
        unit = self.standardise == "unit"
        table, y = self.table(self._table_of(split)), self.labels(split)
        self._check_fits(table, len(self.statistics.mean))
        if not self._checked:
            self._hashes_of(self._table_of(split))  # refuses what is not finite
        if self._is_mapped(table):
            rows = None if self.size(split) == len(table) else self.rows_of(split)
            return RawFeatures(table.x, self.statistics, dtype, unit, rows, table.mapped), y
        x, y = self.labelled(split)  # type: ignore[misc]  # it is not empty
        return features(x.to(device), self.statistics, dtype, unit), y

    def _is_mapped(self, table: Table) -> bool:
        """Return whether a table stays in its file, as it would take more than max_memory."""
        needed = table.x.numel() * max(table.x.itemsize, torch.float32.itemsize)
        return table.mapped is not None and needed > self.max_memory * 1e9

    def _drop(self, name: str) -> None:
        """Free a table once all its splits are standardised."""
        made = {split for split, _ in self._tensors}
        if all(s in made for s in SPLITS if self._table_of(s) == name and self.size(s)):
            self._tables.pop(name, None)

    @property
    @torch.inference_mode(False)
    def statistics(self) -> Statistics:
        """Mean and standard deviation of the training split, or those of the loaded checkpoint."""
        if self._statistics is None:
            table = self.table("train")
            rows = None if self.size("train") == len(table) else self.rows_of("train")
            self._statistics = (
                measure(table.x, rows, table.mapped)
                if self.standardise == "feature"
                else no_statistics(table.x.shape[1])
            )
        return self._statistics

    # ---- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Return what predictions need, and what the run must be resumed with."""
        settled = self._settled()
        return {
            "mean": self.statistics.mean,
            "std": self.statistics.std,
            "dataset": self.name,
            "arguments": self._arguments(),
            "classes": list(settled.names),
            "places": settled.given,
            "shape": list(self.shape),
            "columns": self.columns,
            "kind": self._kind,
            "dtype": self._dtype,
            **({} if self._backbone is None else {"backbone": str(self._backbone)}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore statistics and names from the checkpoint, in the checkpoint's order.

        Raises:
            InputError: the run to resume had other data or another order, or the network was
                trained on another data set or other names; naming both values.
        """
        try:
            self._restore(state)
        except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"the checkpoint's data are damaged: {first_line(error)}. Use another checkpoint."
            ) from error

    def _restore(self, state: dict[str, Any]) -> None:
        fits = self._runs(TrainerFn.FITTING)
        self._take_name(state["dataset"])
        self._take_columns(state.get("columns"), "the checkpoint")
        self._take_classes_of(state, fits)
        if fits and not self._begun:  # later calls come from Lightning's batch size finder
            advice = "Use the same data, or start a new run, without --ckpt_path."
            check_same("the checkpoint", self._arguments(), state["arguments"], advice)
        if not fits:
            self._take_settings(state)
        statistics = Statistics(state["mean"].cpu(), state["std"].cpu())
        if self._statistics is None or not statistics.equal(self._statistics):
            self._forget_tensors()
        self._statistics = statistics

    def _take_name(self, name: str) -> None:
        """Take the checkpoint's name of the data: their rows tell other data, not a file's name."""
        self._name = name

    def _take_classes_of(self, state: dict[str, Any], fits: bool) -> None:
        if "classes" not in state:  # as in earlier checkpoints of CIFAR-10
            return
        if fits:
            match(self.classes, state["classes"], "classes", "the training data", "the checkpoint")
        else:
            self._shape = tuple(state["shape"])
        self._take_classes(Classes(state["classes"], state["places"]))

    def _take_settings(self, state: dict[str, Any]) -> None:
        """Take what the network learned with, to judge it by."""
        self.augment = Augment.of(state["arguments"])
        self._kind = state.get("kind", self._kind)
        self._dtype = state.get("dtype", self._dtype)
        if "backbone" in state:
            self._backbone = Backbone.read(state["backbone"], "the checkpoint")
        kept = state["arguments"].get("standardise", self.standardise)
        check_among("the checkpoint's standardise", kept, STANDARDS)
        self.standardise = kept

    def _take_from_network(self) -> None:
        """Take over what a network in memory learned with, as from its checkpoint.

        Raises:
            InputError: as :meth:`load_state_dict`.
        """
        if self.trainer is None or self._runs(TrainerFn.FITTING):
            return
        network = getattr(self.trainer, "lightning_module", None)
        own = (getattr(network, "data_state", None) or {}).get(type(self).__qualname__)
        if own is not None and own is not self._taught:
            self.load_state_dict(own)
            self._taught = own

    def teach(self) -> dict[str, Any]:
        """Return the state that a network learns with, for tests on another data module."""
        self._taught = self.state_dict()
        return {type(self).__qualname__: self._taught}

    def _arguments(self) -> dict[str, Any]:
        """Return what decides which samples come when, in types that checkpoints may hold."""
        processes = 1 if self.trainer is None else self.trainer.world_size
        decisive = {name: getattr(self, name) for name in self.decisive}
        return {**decisive, **self.augment.settings(), "processes": processes}

    def _runs(self, function: TrainerFn) -> bool:
        return self.trainer is not None and self.trainer.state.fn == function

    # ---- loaders

    def train_dataloader(self) -> ResidentLoader:
        """Return the shuffled batches of the training split, this process's share of each."""
        self._begun = True
        rank, world = 0, 1
        if self.trainer is not None:
            rank, world = self.trainer.global_rank, self.trainer.world_size
        augment = self._augmentation()
        return self._loader(
            "train", self.batch_size, seed=self.seed, rank=rank, world_size=world, augment=augment
        )

    def _augmentation(self) -> Augmentation | None:
        """Return the changes of images, the same object for all runs: it keeps widened images."""
        n = self.size("train")
        asked = self.augment, self.seed, n
        if self._augmentation_of is None or self._augmentation_of[0] != asked:
            made = self.augment.changes(self.shape, n, self.seed, self.statistics)
            self._augmentation_of = asked, made
        return self._augmentation_of[1]

    @torch.inference_mode(False)
    def val_dataloader(self) -> ResidentLoader | list[ResidentLoader]:
        """Return the validation split in order, all of it in every process; empty without one."""
        return self._in_order("val") if self.size("val") else []

    def test_dataloader(self) -> ResidentLoader:
        """Return the test split in order, all of it in every process."""
        return self._in_order("test")

    @torch.inference_mode(False)
    def _in_order(self, split: Split) -> ResidentLoader:
        self._take_from_network()
        return self._loader(split, min(_EVALUATION_BATCH, self.size(split)), shuffle=False)

    def _loader(self, split: Split, batch_size: int, **options: Any) -> ResidentLoader:
        X, y = self.tensors(split)  # type: ignore[misc]  # it is not empty
        weight = self.sample_weights(split)
        weight = None if weight is None else weight.to(X.device, X.dtype)
        return ResidentLoader(X, y, batch_size, checked=True, weight=weight, **options)

    def predict_dataloader(self) -> PredictLoader:
        """Return batches of samples to classify: X (n, d), or pairs (X, names) of image files.

        Raises:
            InputError: they are not what the network was trained on.
        """
        self._take_from_network()
        unit = self.standardise == "unit"
        if self._are_images():
            if self._backbone is not None:
                extractor = Extractor(self._allowed(self._backbone), self._device())
                return load_features(find_images(self.predicted), extractor, self.statistics, unit)
            if self._kind == "numbers":
                raise InputError(
                    "image files cannot be classified: the network was trained on numbers other "
                    "than pixels from 0 to 1, such as a transform's.\nGive the samples to predict "
                    "as a table of such numbers, or train without the transform that normalises: "
                    "data.standardise does that."
                )
            return load_images(find_images(self.predicted), self.statistics, self.shape, unit)
        table = self.table("predict")
        self._check_fits(table, len(self.statistics.mean))
        for _ in table.chunks():  # refuses what is not finite
            pass
        return PredictLoader(table.x, self.statistics, unit)

    def _allowed(self, backbone: Backbone) -> Backbone:
        """Return a backbone; a checkpoint may not import a class by itself."""
        given = getattr(self, "backbone", None)
        if given not in (None, backbone.name):
            raise InputError(
                f"data.backbone is {given}, and the network was trained on features of "
                f"{backbone.words}.\nUse that backbone, or leave data.backbone out."
            )
        if backbone.is_class and given is None:
            raise InputError(
                f"the features were made by {backbone.words}, a class that no checkpoint may "
                f"import by itself.\nIf you trust it, add --data.backbone {backbone.name}"
            )
        return backbone

    def _are_images(self) -> bool:
        """Return whether image files or folders are to be classified, not a table."""
        given = self.predicted
        return isinstance(given, list | tuple) and all(
            isinstance(name, str | Path) and not str(name).lower().endswith(SUFFIXES)
            for name in given
        )
