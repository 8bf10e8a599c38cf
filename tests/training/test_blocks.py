"""Blocks of updates and one update at a time: nobody can tell the difference.

The second is Lightning's own way with an ordinary module. What it does is taken for right.
"""

import math
import time
from datetime import timedelta

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from onelayer.data.loader import ResidentLoader
from onelayer.training.curves import Curves
from onelayer.training.module import OneLayer
from onelayer.training.observer import Observer
from onelayer.training.saving import Checkpoints
from onelayer.training.schedule import TriangularLR
from tests.support.lightning import QUIET, Lines, reason_of
from tests.support.small import CLASSES, PIXELS, SAFELY, SmallData, trainer

pytestmark = QUIET


class Seen(Observer):
    """What happens when: every validation, every epoch, the batch at some updates."""

    def __init__(self):
        self.validations, self.epochs, self.batches = [], [], []

    def next_due(self, step):
        return (step // 9 + 1) * 9

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step % 9 == 0 or trainer.is_last_batch:
            X, y = batch
            rows = (len(X), float(X.sum()), int(y.sum()))
            last = trainer.is_last_batch
            self.batches.append(
                (trainer.global_step, batch_idx, last, rows, float(outputs["loss"]))
            )

    def on_validation_end(self, trainer, *_):
        if not trainer.sanity_checking:
            loss = float(trainer.callback_metrics["val/loss"])
            self.validations.append((trainer.global_step, trainer.current_epoch, loss))

    def on_train_epoch_end(self, trainer, *_):
        self.epochs.append((trainer.global_step, trainer.current_epoch, trainer.is_last_batch))


def train(folder, fused, flags, callbacks=()):
    """Train for 133 updates, 40 in an epoch, and return all that it left."""
    model = OneLayer(4, l2=[0.01, 0.1], inputs=PIXELS, classes=CLASSES, fused=fused)
    data = SmallData(n=280, batch_size=7, dtype=torch.float64)
    seen, lines = Seen(), Lines()
    stop = EarlyStopping("val/loss", patience=6, mode="min", check_on_train_epoch_end=False)
    saver = ModelCheckpoint(
        folder, filename="{step}-{val/loss:.8f}", auto_insert_metric_name=False,
        monitor="val/loss", save_top_k=2, every_n_train_steps=8,
    )  # fmt: skip
    more = flags.pop("callbacks", list)()
    run = trainer(
        folder, 133, [TriangularLR(0.01, 0.3, step_size=20), seen, stop, saver, *more],
        logger=lines, precision="64-true", enable_checkpointing=True,
        **{"log_every_n_steps": 13, **flags},
    )  # fmt: skip
    run.fit(model, datamodule=data)
    files = {path.name for path in folder.glob("*.ckpt")} if not run.fast_dev_run else set()
    rows = next(c for c in run.callbacks if isinstance(c, Curves)).rows
    return run, model, seen, lines.lines, files, rows


def close(a, b):
    """Equal but for the rounding of float64, numbers within tuples, lists and dicts included."""
    if isinstance(a, float):
        return a == pytest.approx(b, rel=1e-10, abs=1e-12)
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(close, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key]) for key in a)
    return a == b


FLAGS = {
    "as it is": {},
    "val_check_interval 0.25": {"val_check_interval": 0.25},
    "val_check_interval 0.3, which does not divide the epoch": {"val_check_interval": 0.3},
    "val_check_interval 20": {"val_check_interval": 20},
    "val_check_interval 28 across epochs": {
        "val_check_interval": 28,
        "check_val_every_n_epoch": None,
    },
    "limit_train_batches 12": {"limit_train_batches": 12},
    "limit_train_batches 0.5": {"limit_train_batches": 0.5},
    "check_val_every_n_epoch 2": {"check_val_every_n_epoch": 2},
    "max_epochs 2": {"max_epochs": 2},
    "min_steps": {"min_steps": 100},
    "limit_val_batches 1": {"limit_val_batches": 1},
    "fast_dev_run 3": {"fast_dev_run": 3},
    "overfit_batches 10": {"overfit_batches": 10},
    "overfit_batches 0.5": {"overfit_batches": 0.5},
    "log_every_n_steps 1": {"log_every_n_steps": 1},
    "a callback that monitors the training split": {
        "callbacks": lambda: [ModelCheckpoint(monitor="train/cost", every_n_train_steps=13)]
    },
    "a callback that logs the rate": {
        "callbacks": lambda: [lightning_callbacks.LearningRateMonitor("step")]
    },
}


@pytest.mark.filterwarnings("ignore:You are using LearningRateMonitor")
@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_blocks_are_the_training_of_one_update_at_a_time(tmp_path, flags):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    run, model, seen, lines, files, rows = train(tmp_path / "a", True, dict(flags))
    run_, model_, seen_, lines_, files_, rows_ = train(tmp_path / "b", False, dict(flags))
    assert reason_of(run) is None
    assert reason_of(run_) == "model.fused is false"
    for a, b in zip(model.weights, model_.weights, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert run.global_step == run_.global_step > 0
    assert run.current_epoch == run_.current_epoch
    assert close(seen.validations, seen_.validations)
    assert seen.epochs == seen_.epochs
    # Of the batches between two that somebody waits for, blocks may show more ends, never fewer.
    shown = {line[0]: line for line in seen.batches}
    assert all(close(shown[line[0]], line) for line in seen_.batches)
    assert close(sorted(lines, key=str), sorted(lines_, key=str)) or close(lines, lines_)
    assert files == files_
    assert close([tuple(row) for row in rows], [tuple(row) for row in rows_])
    assert close(dict(run.callback_metrics).keys(), dict(run_.callback_metrics).keys())


@pytest.mark.parametrize("fused", [True, False])
def test_max_time_ends_a_training(tmp_path, fused):
    model = OneLayer(inputs=PIXELS, classes=CLASSES, fused=fused)
    run = trainer(tmp_path, -1, [], max_time=timedelta(seconds=0.5), max_epochs=-1)
    begin = time.monotonic()
    run.fit(model, datamodule=SmallData())
    assert time.monotonic() - begin < 20
    assert run.global_step > 0
    assert (reason_of(run) is None) is fused


@pytest.mark.parametrize("fused", [True, False])
def test_several_loggers_have_the_same_lines(tmp_path, fused):
    loggers = [Lines(), Lines(), CSVLogger(tmp_path)]
    model = OneLayer(inputs=PIXELS, classes=CLASSES, fused=fused)
    run = trainer(tmp_path, 40, [TriangularLR(step_size=20)], logger=loggers)
    run.fit(model, datamodule=SmallData())
    assert loggers[0].lines == loggers[1].lines
    assert [m["lr"] for _, m in loggers[0].lines if "lr" in m] == [
        TriangularLR(step_size=20).rate(step) for step in range(41)
    ]


# ---- resuming


@pytest.mark.parametrize("first", [True, False], ids=["from blocks", "from one at a time"])
def test_a_run_is_resumed_to_the_same_figures_from_every_update(tmp_path, first):
    """By Lightning's own ModelCheckpoint; in the same way to the same bits."""

    def run(fused, ckpt=None, callbacks=()):
        model = OneLayer(4, inputs=PIXELS, classes=CLASSES, fused=fused)
        run = trainer(
            tmp_path, 27, [TriangularLR(0.01, 0.3, step_size=5), *callbacks],
            precision="64-true", enable_checkpointing=bool(callbacks),
        )  # fmt: skip
        run.fit(model, datamodule=SmallData(dtype=torch.float64), ckpt_path=ckpt, **SAFELY)
        assert (reason_of(run) is None) is fused
        return [w.detach().clone() for w in model.weights]

    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = run(first, callbacks=[saver])
    assert len(list(tmp_path.glob("step=*.ckpt"))) == 27
    for step in (1, 7, 8, 9, 13, 16, 26):  # an epoch has 8
        path = tmp_path / f"step={step}.ckpt"
        for fused in (True, False):
            weights = run(fused, path)
            for a, b in zip(weights, whole, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
                assert fused != first or torch.equal(a, b), path.name


def test_batch_idx_is_right_after_resuming_in_mid_epoch(tmp_path):
    for steps, ckpt in ((5, None), (8, "last")):
        seen = Seen()
        run = trainer(tmp_path, steps, [TriangularLR(step_size=4), Checkpoints(), seen])
        model = OneLayer(inputs=PIXELS, classes=CLASSES)
        run.fit(model, datamodule=SmallData(), ckpt_path=ckpt, **SAFELY)
    assert [line[:3] for line in seen.batches] == [(8, 7, True)]


# ---- who can tell the difference


class Own(Callback):
    def on_train_batch_end(self, *_):
        pass


class AtEpochs(Callback):
    def on_train_epoch_end(self, *_):
        pass


class Momentum(OneLayer):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class Adam(OneLayer):
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters())


class Groups(OneLayer):
    def configure_optimizers(self):
        return torch.optim.SGD([{"params": [p]} for p in self.parameters()], lr=0.1)


class Scheduled(OneLayer):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


class Frozen(OneLayer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.weights[1].requires_grad_(False)


class OwnStep(OneLayer):
    def training_step(self, batch, batch_idx):
        return 2 * super().training_step(batch, batch_idx)


class OwnHook(OneLayer):
    def on_after_backward(self):
        pass


class Hooked(OneLayer):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.weights[0].register_hook(lambda gradient: None)


class Transfer(SmallData):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch


class Plain(SmallData):
    def train_dataloader(self):
        return DataLoader(TensorDataset(*self.tensors("train")), batch_size=8)


REASONS = [
    ({}, "blocks"),
    ({"callbacks": [AtEpochs()]}, "blocks"),
    ({"callbacks": [Own()]}, "Own wants every batch"),
    ({"model": Momentum}, "momentum"),
    ({"model": Adam}, "the optimizer is Adam"),
    ({"model": Groups}, "one group"),
    ({"model": Scheduled}, "a scheduler"),
    ({"model": Frozen}, "frozen"),
    ({"model": OwnStep}, "OwnStep has a training_step of its own"),
    ({"model": OwnHook}, "OwnHook has a on_after_backward of its own"),
    ({"model": Hooked}, "a hook is registered"),
    ({"data": Transfer}, "Transfer has an on_after_batch_transfer of its own"),
    ({"data": Plain}, "a DataLoader, not a ResidentLoader"),
    ({"gradient_clip_val": 0.5}, "clipped"),
    ({"accumulate_grad_batches": 2}, "accumulated"),
    ({"detect_anomaly": True}, "anomaly"),
    ({"reload_dataloaders_every_n_epochs": 1}, "made anew"),
    ({"val_check_interval": timedelta(hours=1)}, "a time"),
    ({"profiler": "pytorch"}, "PyTorchProfiler counts batches"),
    ({"profiler": "simple"}, "blocks"),
]


@pytest.mark.filterwarnings("ignore:two callbacks set", "ignore:Trying to infer", "ignore:Profiler")
@pytest.mark.parametrize(("given", "words"), REASONS, ids=[words for _, words in REASONS])
def test_one_line_says_why_there_are_no_blocks(tmp_path, caplog, given, words):
    given = dict(given)
    model = given.pop("model", OneLayer)(inputs=PIXELS, classes=CLASSES)
    data = given.pop("data", SmallData)()
    run = trainer(tmp_path, 16, [TriangularLR(step_size=8), *given.pop("callbacks", [])], **given)
    with caplog.at_level("INFO"):
        run.fit(model, datamodule=data)
    lines = [m for m in caplog.messages if m.startswith("one update at a time")]
    if words == "blocks":
        assert (lines, reason_of(run)) == ([], None)
    else:
        assert len(lines) == 1
        assert words in lines[0]
    assert run.global_step == 16


def test_a_parameter_that_is_frozen_between_epochs_stays(tmp_path):
    class Freeze(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                pl_module.W.requires_grad_(False)
                self.W, self.b = pl_module.W.clone(), pl_module.b.clone()

    model, freeze = OneLayer(inputs=PIXELS, classes=CLASSES), Freeze()
    run = trainer(tmp_path, 24, [TriangularLR(step_size=12), freeze])
    run.fit(model, datamodule=SmallData())
    assert reason_of(run) is None
    assert torch.equal(model.W, freeze.W)
    assert not torch.equal(model.b, freeze.b)
    assert run.global_step == 24


class Fail(Observer):
    def next_due(self, step):
        return 5 if step < 5 else math.inf

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 5:
            raise InterruptedError


def test_the_module_has_its_own_hooks_back_however_a_training_ends(tmp_path):
    for callbacks in ([], [Fail()]):
        model = OneLayer(inputs=PIXELS, classes=CLASSES)
        own = set(vars(model))
        run = trainer(tmp_path, 10, [TriangularLR(step_size=5), *callbacks])
        try:
            run.fit(model, datamodule=SmallData())
        except InterruptedError:
            assert run.global_step == 5
        assert {name for name in vars(model) if "step" in name or name == "backward"} <= own
        assert model.automatic_optimization
        torch.save(model, tmp_path / "model.pt")
        torch.save(run, tmp_path / "trainer.pt")


def test_the_loader_serves_any_module_and_any_loop(tmp_path):
    class Somebody(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(PIXELS, CLASSES)

        def training_step(self, batch, batch_idx):
            return torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    trainer(tmp_path, 20).fit(Somebody(), ResidentLoader(*SmallData().tensors("train"), 8))
