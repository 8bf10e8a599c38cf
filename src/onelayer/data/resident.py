"""A data set in memory for Lightning: splits, statistics, standardised tensors, loaders, state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from onelayer.core.checks import check_same, check_whole
from onelayer.core.errors import InputError
from onelayer.data.augment import Augment, Augmentation
from onelayer.data.features import Features, Statistics, features, measure
from onelayer.data.loader import ResidentLoader
from onelayer.data.read import Labelled, Source, concatenate
from onelayer.data.split import Split, pool_of

_EVALUATION_BATCH = 5000
_NEEDED: dict[str, tuple[Split, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
}


class ResidentDataModule(LightningDataModule):
    """Images of any source, standardised and in memory.

    Pixels are scaled to [0, 1] and standardised with the mean and standard deviation of the
    training split, which checkpoints carry. Loaders give batches by index, in an order that is a
    pure function of the seed and the epoch.

    Args:
        data_set: where the images come from.
        splits: the rows of each split, as :func:`onelayer.data.split.split_rows` gives them.
        batch_size: images of an update, over all processes.
        seed: of the order of the batches, 0 or more.
        augment: what is changed in the images of the training batches.
    """

    decisive: tuple[str, ...] = ("batch_size", "seed")
    """The arguments that decide which images come when: a run is resumed with the same."""

    def __init__(
        self,
        data_set: Source,
        splits: Mapping[Split, Sequence[range]],
        batch_size: int = 100,
        seed: int = 0,
        augment: Augment = Augment(),  # noqa: B008 - it is frozen
    ) -> None:
        super().__init__()
        check_whole("batch_size", batch_size, 1)
        check_whole("seed", seed, 0)
        self.augment = augment
        self.data_set, self.splits = data_set, splits
        self.batch_size, self.seed = batch_size, seed
        self._begun = False  # whether there were batches to train on since the setup
        self._statistics: Statistics | None = None
        self._taught: dict[str, Any] | None = None  # the state that a network in memory has
        self._images: dict[Split, Labelled] = {}
        self._tensors: dict[tuple[Split, torch.dtype], tuple[Features, Tensor]] = {}
        self._augmentation_of: tuple[tuple[Augment, int, int], Augmentation | None] | None = None

    def __str__(self) -> str:
        # Lightning's own would load all of it and ask for torch's loaders.
        sizes = ", ".join(f"{split} {self.size(split)}" for split in self.splits)
        return f"{type(self).__name__}({self.name}: {sizes} images; batches of {self.batch_size})"

    @property
    def name(self) -> str:  # type: ignore[override]  # Lightning's is None and never used
        """Of the data set."""
        return self.data_set.name

    @property
    def classes(self) -> Sequence[str]:
        """What the labels 0, 1, … mean."""
        return self.data_set.classes

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample; its product is d."""
        return self.data_set.shape

    def check_batch_size(self) -> None:
        """Raise :class:`InputError` for a batch larger than the training split."""
        check_whole("batch_size", self.batch_size, 1, self.size("train"))

    def setup(self, stage: str) -> None:
        """Read the splits that ``stage`` needs.

        Raises:
            InputError: they cannot be read, or are too small.
        """
        self._begun = False
        if stage == "fit":
            self.check_batch_size()
            self.augment.check(self.shape)
        elif stage == "validate" and not self.size("val"):
            raise InputError("there is no split to validate on: val_size is 0.")
        for split in _NEEDED.get(stage, ()):
            if not any(made == split for made, _ in self._tensors):
                self.labelled(split)

    # ---- splits

    def size(self, split: Split) -> int:
        """Return how many images a split has, before any is read."""
        return sum(map(len, self.splits[split]))

    @torch.inference_mode(False)
    def labelled(self, split: Split) -> Labelled | None:
        """Return a split as given, read anew once it has been standardised; None if empty."""
        if split not in self._images and self.size(split):
            self._images[split] = self._read(split)
        return self._images.get(split)

    def _read(self, split: Split) -> Labelled:
        rows, pool = self.splits[split], pool_of(split)
        return concatenate([self.data_set.read(pool, piece) for piece in rows])

    def _standardised(
        self, split: Split, device: torch.device, dtype: torch.dtype
    ) -> tuple[Features, Tensor] | None:
        images = self.labelled(split)
        if images is None:
            return None
        return features(images.x.to(device), self.statistics, dtype), images.y

    @torch.inference_mode(False)
    def tensors(self, split: Split) -> tuple[Features, Tensor] | None:
        """Return a standardised split: X (n, d) and y (n,), made once and kept; None if empty.

        On the trainer's device if there is a trainer, and float64 where its precision is 64-true.
        The bytes it is made of are dropped, unless a GPU has no room for more than them: then X is
        :class:`~onelayer.data.features.RawFeatures`.
        """
        device, dtype = torch.device("cpu"), torch.float32
        if self.trainer is not None:
            device = self.trainer.strategy.root_device
            dtype = torch.float64 if self.trainer.precision == "64-true" else dtype
        if (split, dtype) not in self._tensors:
            made = self._standardised(split, device, dtype)
            if made is None:
                return None
            self._tensors[split, dtype] = made
            self._images.pop(split, None)
        X, y = self._tensors[split, dtype]
        X = X.to(device)
        self._tensors[split, dtype] = X, y.to(X.device)  # a file's stay in host memory
        return self._tensors[split, dtype]

    # ---- statistics and checkpoints

    @property
    @torch.inference_mode(False)
    def statistics(self) -> Statistics:
        """Mean and standard deviation of the training split, or those of the loaded checkpoint."""
        if self._statistics is None:
            self._statistics = self._measure()
        return self._statistics

    def _measure(self) -> Statistics:
        images = self.labelled("train")
        assert images is not None
        return measure(images.x)

    def state_dict(self) -> dict[str, Any]:
        """Return what predictions need, and what the run must be resumed with."""
        return {
            "mean": self.statistics.mean,
            "std": self.statistics.std,
            "dataset": self.name,
            "arguments": self._arguments(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the checkpoint's statistics.

        Raises:
            InputError: the run to resume had other data or another order, or the network to judge
                was trained on another data set; naming both values.
        """
        for key, kind in (("mean", Tensor), ("std", Tensor), ("dataset", str), ("arguments", dict)):
            if not isinstance(state, dict) or not isinstance(state.get(key), kind):
                raise InputError(f"the checkpoint's data have no {key}: it is damaged.")
        here, saved, advice = {"dataset": self.name}, {"dataset": state["dataset"]}, "Use its data."
        # A checkpoint that comes later in a fit is Lightning's own, of a search of a batch size.
        if self._runs(TrainerFn.FITTING) and not self._begun:
            here, saved = here | self._arguments(), saved | state["arguments"]
            advice = "Use the same data, or start a new run, without --ckpt_path."
        check_same("the checkpoint", here, saved, advice)
        if not self._runs(TrainerFn.FITTING):
            self.augment = Augment.of(state["arguments"])  # its cost is judged by what it learned
        statistics = Statistics(state["mean"].cpu(), state["std"].cpu())
        if self._statistics is None or not statistics.equal(self._statistics):
            self._forget_tensors()
        self._statistics = statistics

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

    def _forget_tensors(self) -> None:
        self._tensors.clear()
        self._augmentation_of = None

    def _arguments(self) -> dict[str, Any]:
        """Return what decides which images come when, in types that checkpoints may hold."""
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
        """What changes images: the same for all trainings, as it keeps what it has made ready."""
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
        tensors = self.tensors(split)
        assert tensors is not None
        return ResidentLoader(*tensors, batch_size, **options)
