"""A run goes on from any checkpoint that Lightning can write, and ends with the same bits."""

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    OnExceptionCheckpoint,
)
from torch.utils.data import DataLoader, TensorDataset

from onelayer.core.errors import InputError
from onelayer.data.arrays import ArraysDataModule
from onelayer.data.cifar10 import CIFAR10DataModule
from onelayer.data.loader import ResidentLoader
from onelayer.training.observer import Observer
from onelayer.training.resume import Place, place_of, settle
from onelayer.training.saving import Checkpoints
from onelayer.training.schedule import TriangularLR
from tests.support.resuming import Case, Interrupt, assert_resumes
from tests.support.small import SmallData, images, warned

# 60 images in batches of 10: an epoch is 6 updates. 15 updates end in mid-epoch.
SCHEDULE = {"base_lr": 0.01, "max_lr": 0.3, "step_size": 10, "cycles": 3}


class Own(LightningDataModule):
    """A DataLoader that shuffles by torch's global random state, or by a generator of its own."""

    def __init__(self, generator=None):
        super().__init__()
        self.generator = generator and torch.Generator().manual_seed(5)

    def _loader(self, n, seed, **options):
        part = images(n, seed)
        return DataLoader(TensorDataset(part.x.float() / 255, part.y), 10, **options)

    def train_dataloader(self):
        return self._loader(60, 1, shuffle=True, generator=self.generator)

    def val_dataloader(self):
        return self._loader(30, 2)


def small(**options):
    return {"datamodule": SmallData(60, **{"batch_size": 10, **options})}


def loaders(**options):
    data = SmallData(60, 10)
    loader = ResidentLoader(*data.tensors("train"), **{"batch_size": 10, **options})
    return {"train_dataloaders": loader, "val_dataloaders": data.val_dataloader()}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Makers of the data of a fit, by name, and the size of an image."""
    folder = tmp_path_factory.mktemp("data")
    for name, n, seed in (("train", 60, 1), ("val", 30, 2)):
        part = images(n, seed)
        np.savez(folder / f"{name}.npz", X=part.x.numpy().astype("f4"), y=part.y.numpy())
    files = {name: str(folder / f"{name}.npz") for name in ("train", "val")}
    cifar = {"source": "synthetic", "limit": 60, "val_size": 30, "batch_size": 10}
    return {
        "resident": small,
        "loaders": loaders,
        "cifar10": lambda: {"datamodule": CIFAR10DataModule(**cifar)},
        "arrays": lambda: {"datamodule": ArraysDataModule(**files, batch_size=10)},
        "own": lambda: {"datamodule": Own()},
        "own, with a generator": lambda: {"datamodule": Own(generator=True)},
    }


def saving(name, **options):
    """A maker of a schedule and a ModelCheckpoint that keeps all that it saves."""
    options = {"save_top_k": -1, **options}

    def callbacks(folder):
        names = {"dirpath": folder, "filename": f"{name}-{{epoch}}-{{step}}"}
        return [TriangularLR(**SCHEDULE), ModelCheckpoint(**names, **options)]

    return callbacks


def ours(folder):
    return [TriangularLR(**SCHEDULE), Checkpoints(every=4, dirpath=folder)]


STEPS = saving("steps", every_n_train_steps=4)  # 12 is the end of an epoch
KINDS = {
    "every epoch": (saving("epoch"), {}),
    "after validation": (saving("val", save_on_train_epoch_end=False), {}),
    "validation in mid-epoch": (
        saving("val", save_on_train_epoch_end=False),
        {"val_check_interval": 4},
    ),
    "monitored": (saving("best", monitor="val/accuracy"), {}),
    "every n updates": (STEPS, {}),
    "every n updates, validated": (STEPS, {"val_check_interval": 3}),
    "save_last": (saving("top", save_top_k=1, save_last=True), {}),
    "Checkpoints": (ours, {}),
    "accumulated": (saving("steps", every_n_train_steps=1), {"accumulate_grad_batches": 4}),
}
MID, EPOCHS = ({"max_steps": 15}, {"max_steps": 20}), ({"max_epochs": 2}, {"max_epochs": 3})


@pytest.mark.parametrize(
    ("kind", "fused", "ends"),
    [
        ("every epoch", True, MID), ("every epoch", False, EPOCHS),
        ("after validation", True, EPOCHS),
        ("validation in mid-epoch", True, MID),
        ("monitored", False, MID),
        ("every n updates", False, EPOCHS),
        ("every n updates, validated", True, MID),
        ("save_last", True, MID),
        ("Checkpoints", True, MID), ("Checkpoints", False, MID),
        ("accumulated", False, MID),
    ],
)  # fmt: skip
def test_a_longer_run_from_every_kind_of_checkpoint(tmp_path, kind, fused, ends):
    """Each kind once, and those that everybody uses in blocks and by one update at a time."""
    callbacks, options = KINDS[kind]
    if "accumulate_grad_batches" in options:
        ends = {"max_steps": 3}, {"max_steps": 7}
    case = Case(small, {"fused": fused}, callbacks, saves=True, **options)
    assert_resumes(case, tmp_path, *ends)


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        ("loaders", ({"max_steps": 12},)), ("loaders", EPOCHS),
        ("cifar10", (EPOCHS[0],)),
        ("arrays", (EPOCHS[0], MID[1])),
        ("own", MID),
        ("own, with a generator", (MID[0], EPOCHS[1])),
    ],
)  # fmt: skip
def test_every_data_module(tmp_path, data, name, ends):
    sizes = {"inputs": 3072, "classes": 10} if name == "cifar10" else {}
    few = saving("steps", every_n_train_steps=10)  # in mid-epoch; the fit's end is saved, too
    case = Case(data[name], sizes, few, saves=True)
    assert_resumes(case, tmp_path, *ends)


@pytest.mark.parametrize(
    ("callbacks", "end"),
    [
        (STEPS, {"max_steps": 15}), (saving("epoch"), {"max_steps": 12}),
        (ours, {"max_epochs": 2}), (ours, {"max_steps": 15}),
    ],
)  # fmt: skip
def test_the_same_end(tmp_path, callbacks, end):
    assert_resumes(Case(small, {}, callbacks, saves=True), tmp_path, end)


# ---- other ends


class Stop(Observer):
    """Ends a fit as Timer does, for max_time: by should_stop, after any update."""

    def next_due(self, step):
        return 15 if step < 15 else super().next_due(step)

    def on_train_batch_end(self, trainer, *_):
        trainer.should_stop |= trainer.global_step == 15


def test_a_fit_ended_by_time(tmp_path):
    case = Case(small, {}, lambda folder: [*STEPS(folder), Stop()], saves=True)
    assert_resumes(case, tmp_path, MID[1], goes_on=Case(small, {}, STEPS))


def stopping(monitor, **options):
    return lambda folder: [
        *saving("steps", every_n_train_steps=20)(folder),
        EarlyStopping(monitor, mode="max", patience=2, **options),
    ]


@pytest.mark.parametrize(
    ("monitor", "options"),
    [("val/accuracy", {"val_check_interval": 3}), ("train/accuracy", {})],
)
def test_a_fit_ended_by_early_stopping(tmp_path, monitor, options):
    """Resumed before, it stops there again; resumed at its end, it stays there."""
    case = Case(small, {}, stopping(monitor), saves=True, **options)
    assert_resumes(case, tmp_path / "again", {"max_epochs": 20})
    longer = Case(small, {}, saving("none", every_n_epochs=9), **options)
    assert_resumes(case, tmp_path / "on", {"max_epochs": 20}, {"max_steps": 30}, goes_on=longer)


def test_a_run_that_early_stopping_ended_says_so(tmp_path):
    case = Case(small, {}, stopping("val/accuracy"), saves=True)
    first = case.run(tmp_path, {"max_epochs": 20})
    assert first.steps < 120
    with warned("EarlyStopping on val/accuracy had ended this run"):
        again = case.run(
            tmp_path / "again", {"max_epochs": 20}, tmp_path / "after.ckpt", quiet=False
        )
    assert again.steps == first.steps


@pytest.mark.parametrize(
    ("hook", "step", "fused"),
    [
        ("on_train_batch_start", 8, False), ("on_before_zero_grad", 8, False),
        ("on_train_batch_start", 12, False), ("on_train_batch_end", 8, False),
        ("on_train_batch_end", 12, True), ("on_validation_batch_end", 12, True),
        ("on_validation_end", 12, False), ("on_train_epoch_end", 12, True),
        ("on_train_epoch_start", 12, True),
    ],
)  # fmt: skip
def test_a_fit_ended_by_an_exception(tmp_path, hook, step, fused):
    def callbacks(folder):
        saver = OnExceptionCheckpoint(folder, "exception")
        return [TriangularLR(**SCHEDULE), Interrupt(hook, step), saver]

    model = {"fused": fused}
    options = {"limit_val_batches": 2} if hook.startswith("on_validation") else {}
    goes_on = Case(small, model, lambda folder: [TriangularLR(**SCHEDULE)], **options)
    case = Case(small, model, callbacks, **options)
    assert_resumes(case, tmp_path, {"max_steps": 27}, goes_on=goes_on)


def test_a_run_that_goes_on_several_times(tmp_path):
    case = Case(small, {}, ours, saves=False)
    path = None
    for end in ({"max_steps": 5}, {"max_steps": 6}, {"max_epochs": 2}, {"max_steps": 15}):
        chained = case.run(tmp_path, end, path)
        path = tmp_path / "last.ckpt"
    chained = case.run(tmp_path, {"max_steps": 27}, path)
    whole = case.run(tmp_path / "whole", {"max_steps": 27})
    whole.log = chained.log = []
    assert not list(chained.differences(whole))


# ---- refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"batch_size": 12}, "loader.batch_size is 12 here but 10"),
        ({"seed": 3}, "loader.seed is 3 here but 0"),
        ({"shuffle": False}, "loader.shuffle is False here but True"),
    ],
)
def test_other_batches_are_refused(tmp_path, options, words):
    end = {"max_epochs": 2} if "seed" in options else {"max_steps": 15}
    Case(loaders, {}, ours).run(tmp_path, end)
    other = Case(lambda: loaders(**options), {}, ours)
    with pytest.raises(InputError, match=f"{words} in the checkpoint.*\n.*start a new run"):
        other.run(tmp_path, {"max_steps": 27}, tmp_path / "last.ckpt")


def test_fewer_batches_in_an_epoch_are_refused(tmp_path):
    Case(loaders, {}, ours).run(tmp_path, {"max_steps": 15})
    with pytest.raises(InputError, match=r"after 15 batches, .* but an epoch has 2 batches here"):
        Case(loaders, {}, ours, limit_train_batches=2).run(
            tmp_path, {"max_steps": 27}, tmp_path / "last.ckpt"
        )


def test_accumulation_that_changes_is_refused_in_mid_epoch(tmp_path):
    def callbacks(folder):
        return [*STEPS(folder), GradientAccumulationScheduler({0: 1, 3: 2})]

    case = Case(small, {}, callbacks, saves=True)
    case.run(tmp_path, {"max_steps": 8})
    with pytest.raises(InputError, match="Resume from the end of an epoch"):
        case.run(tmp_path, {"max_steps": 27}, tmp_path / "after.ckpt")


# ---- the place


def loops(ready, started, processed, batches, last):
    """Lightning's counters of epochs and of batches in the last epoch."""
    epochs = {"ready": ready, "started": started, "processed": processed, "completed": processed}
    counts = dict.fromkeys(epochs, batches)
    return {
        "epoch_progress": {"total": epochs, "current": dict(epochs)},
        "epoch_loop.batch_progress": {
            "total": dict(counts), "current": counts, "is_last_batch": last,
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("counters", "place"),
    [
        ((0, 0, 0, 0, False), (0, 0)),  # before the first batch
        ((3, 3, 2, 4, False), (2, 4)),  # after a batch
        ((3, 3, 2, 6, True), (2, 6)),  # after the last batch, or its validation
        ((3, 3, 3, 6, True), (3, 0)),  # in on_train_epoch_end, or after the fit
        ((4, 3, 3, 6, True), (3, 0)),  # in on_train_epoch_start
        ((3, 3, 3, 4, False), (2, 4)),  # after a fit that ended in mid-epoch
    ],
)
def test_the_place_follows_from_the_counters(counters, place):
    state = loops(*counters)
    found = place_of(state)
    assert found[:2] == place
    settle(state, found)
    again = place_of(state)
    assert again == found  # where a run goes on, and is saved at once


def test_batches_after_the_last_update_are_trained_on_again():
    assert place_of(loops(3, 3, 2, 7, False), accumulate=4) == Place(2, 4, False, True)


def test_counters_that_contradict_each_other_are_refused():
    with pytest.raises(InputError, match="counts do not agree"):
        place_of(loops(5, 5, 2, 4, False))
