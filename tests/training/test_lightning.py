"""What Lightning promises of any module: every Trainer flag, every callback that it ships.

docs/lightning.md has a line for each; here it is tried, and the line's word compared.
"""

import inspect
import re
from datetime import timedelta
from functools import cache
from pathlib import Path

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer, callbacks
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import AsyncCheckpointIO
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.tuner import Tuner
from torch.utils.data import DataLoader, TensorDataset

from onelayer import load_network
from onelayer.core.errors import InputError
from onelayer.data.loader import ResidentLoader
from onelayer.training.module import OneLayer
from onelayer.training.observer import Observer
from onelayer.training.saving import Checkpoints
from onelayer.training.schedule import TriangularLR
from tests.support.lightning import QUIET, Lines, reason_of
from tests.support.small import CLASSES, PIXELS, SAFELY, SmallData, trainer, warned

pytestmark = [
    *QUIET,
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but"),
    pytest.mark.filterwarnings("ignore:.*was called without a model"),
    pytest.mark.filterwarnings("ignore:.*configured with multiple `ModelCheckpoint`"),
]
DOCS = Path(__file__).parents[2] / "docs" / "lightning.md"
STEPS = 16  # two epochs of eight updates
BLOCKS, ONE, REFUSED = "blocks", "one at a time", "refused"


class Hooks(Callback):
    """Counts the hooks of every batch, and keeps the batches."""

    def __init__(self):
        self.batches, self.counts = [], {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append((batch_idx, len(batch[0])))

    def _count(self, name):
        self.counts[name] = self.counts.get(name, 0) + 1

    def on_before_backward(self, *_):
        self._count("on_before_backward")

    def on_after_backward(self, *_):
        self._count("on_after_backward")

    def on_before_optimizer_step(self, *_):
        self._count("on_before_optimizer_step")

    def on_before_zero_grad(self, *_):
        self._count("on_before_zero_grad")


def fitted(tmp_path, *more, model=None, data=None, steps=STEPS, **flags):
    """A training with these callbacks and flags; its trainer and its module."""
    model = model or OneLayer(l2=0.01, inputs=PIXELS, classes=CLASSES)
    schedule = [TriangularLR(0.01, 0.3, step_size=STEPS // 2)]
    run = trainer(tmp_path, steps, [*schedule, *more], **flags)
    run.fit(model, datamodule=data or SmallData())
    return run, model


# ---- the Trainer's flags


@cache
def weights_without(folder):
    """Return the weights of a run without further flags; it leaves no file."""
    return [*fitted(folder)[1].weights]


def same_as_without(run, model, tmp_path):
    expected = weights_without(tmp_path.parent)
    assert all(torch.equal(a, b) for a, b in zip(model.weights, expected, strict=True))


def ends_after(count):
    def check(run, model, tmp_path):
        assert run.global_step == count

    return check


def gradients_are_clipped(run, model, tmp_path):
    _, free = fitted(tmp_path / "free", model=OneLayer(inputs=PIXELS, classes=CLASSES, fused=False))
    assert model.W.norm() < free.W.norm()


def validates(times):
    def check(run, model, tmp_path):
        assert run.seen.count == times

    return check


def hooks_are_called(run, model, tmp_path):
    (hooks,) = (c for c in run.callbacks if isinstance(c, Hooks))
    assert hooks.batches == [(i, 8 if i < 7 else 4) for i in range(8)] * 2
    assert len(hooks.counts) == 4
    assert set(hooks.counts.values()) == {STEPS}


class Validations(Callback):
    def __init__(self):
        self.count = 0

    def on_validation_end(self, trainer, *_):
        trainer.seen = self
        self.count += not trainer.sanity_checking


def scheme(name):
    def check(run, model, tmp_path):
        assert type(run.profiler).__name__ == name

    return check


def evaluates_one_batch(run, model, path):
    run.test(model, datamodule=SmallData(), verbose=False)
    assert run.num_test_batches == [1]


def predicts_one_batch(run, model, path):
    loader = DataLoader(TensorDataset(SmallData().tensors("test")[0]), batch_size=7)
    assert len(run.predict(model, loader)) == 1


FLAGS = {
    "strategy": ({"strategy": SingleDeviceStrategy(torch.device("cpu"))}, BLOCKS, same_as_without),
    "precision": ({"precision": "bf16-mixed"}, BLOCKS, ends_after(STEPS)),
    "logger": ({"logger": Lines}, BLOCKS, same_as_without),
    "callbacks": ({"callbacks": Hooks}, ONE, hooks_are_called),
    "fast_dev_run": ({"fast_dev_run": 3}, BLOCKS, ends_after(3)),
    "max_epochs": ({"max_epochs": 1}, BLOCKS, ends_after(8)),
    "min_epochs": ({"min_epochs": 1}, BLOCKS, ends_after(STEPS)),
    "max_steps": ({"steps": 5}, BLOCKS, ends_after(5)),
    "min_steps": ({"min_steps": 9}, BLOCKS, ends_after(STEPS)),
    "max_time": ({"max_time": timedelta(hours=1)}, BLOCKS, same_as_without),
    "limit_train_batches": ({"limit_train_batches": 3, "max_epochs": 2}, BLOCKS, ends_after(6)),
    "limit_val_batches": ({"limit_val_batches": 1, "callbacks": Validations}, BLOCKS, validates(2)),
    "limit_test_batches": ({"limit_test_batches": 1}, BLOCKS, evaluates_one_batch),
    "limit_predict_batches": ({"limit_predict_batches": 1}, BLOCKS, predicts_one_batch),
    "overfit_batches": ({"overfit_batches": 2, "max_epochs": 3}, BLOCKS, ends_after(6)),
    "val_check_interval": (
        {"val_check_interval": 3, "callbacks": Validations}, BLOCKS, validates(4)
    ),
    "check_val_every_n_epoch": (
        {"check_val_every_n_epoch": 2, "callbacks": Validations}, BLOCKS, validates(1)
    ),
    "num_sanity_val_steps": (
        {"num_sanity_val_steps": 1, "callbacks": Validations}, BLOCKS, validates(2)
    ),
    "log_every_n_steps": ({"log_every_n_steps": 3}, BLOCKS, same_as_without),
    "enable_checkpointing": ({"enable_checkpointing": True}, BLOCKS, same_as_without),
    "enable_progress_bar": ({"enable_progress_bar": True}, BLOCKS, same_as_without),
    "enable_model_summary": ({"enable_model_summary": True}, BLOCKS, same_as_without),
    "accumulate_grad_batches": (
        {"accumulate_grad_batches": 2, "max_epochs": 2}, ONE, ends_after(8)
    ),
    "gradient_clip_val": ({"gradient_clip_val": 1e-3}, ONE, gradients_are_clipped),
    "gradient_clip_algorithm": (
        {"gradient_clip_val": 1e-4, "gradient_clip_algorithm": "value"}, ONE, gradients_are_clipped
    ),
    "deterministic": ({"deterministic": True}, BLOCKS, same_as_without),
    "benchmark": ({"benchmark": True}, BLOCKS, same_as_without),
    "inference_mode": ({"inference_mode": False}, BLOCKS, same_as_without),
    "use_distributed_sampler": ({"use_distributed_sampler": False}, BLOCKS, same_as_without),
    "profiler": ({"profiler": "simple"}, BLOCKS, scheme("SimpleProfiler")),
    "detect_anomaly": ({"detect_anomaly": True}, ONE, ends_after(STEPS)),
    "barebones": ({"barebones": True}, BLOCKS, same_as_without),
    "plugins": ({"plugins": AsyncCheckpointIO}, BLOCKS, same_as_without),
    "sync_batchnorm": ({"sync_batchnorm": True}, BLOCKS, same_as_without),
    "reload_dataloaders_every_n_epochs": (
        {"reload_dataloaders_every_n_epochs": 1}, ONE, ends_after(STEPS)
    ),
    "enable_autolog_hparams": ({"enable_autolog_hparams": False}, BLOCKS, same_as_without),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Detected call of", "ignore:.*anomaly", "ignore:Trying to infer")
@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_of_the_trainer(tmp_path, name):
    flags, way, check = FLAGS[name]
    flags = {k: v() if inspect.isclass(v) else v for k, v in flags.items()}
    more = [flags.pop("callbacks")] if "callbacks" in flags else []
    if name == "barebones":
        run = Trainer(barebones=True, max_steps=STEPS, accelerator="cpu", devices=1,
                      callbacks=[TriangularLR(0.01, 0.3, step_size=STEPS // 2)])  # fmt: skip
        model = OneLayer(l2=0.01, inputs=PIXELS, classes=CLASSES)
        run.fit(model, datamodule=SmallData())
    else:
        run, model = fitted(tmp_path, *more, **flags)
    assert way_of(run) == way == documented(name)
    check(run, model, tmp_path)


EVERY_RUN = {  # flags that each run of these tests passes, or that have one value on one machine
    "accelerator", "devices", "num_nodes", "default_root_dir", "model_registry",
    "enable_autolog_hparams",
}  # fmt: skip


def way_of(run):
    return ONE if reason_of(run) else BLOCKS


def documented(name):
    """What the page says of a flag or callback: the second column of its line."""
    lines = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    rows = {}
    for line in lines:
        names, word, *_ = (cell.strip() for cell in line.strip("|").split("|"))
        rows |= dict.fromkeys(re.findall(r"`(\w+)", names), word)
    return rows[name]


def test_the_page_has_every_flag_and_every_callback():
    flags = {name for name in inspect.signature(Trainer.__init__).parameters if name != "self"}
    assert flags - set(FLAGS) <= EVERY_RUN
    bases = {"Callback", "Checkpoint", "ProgressBar"}
    assert set(callbacks.__all__) - bases <= set(CALLBACKS)
    for name in (*FLAGS, *CALLBACKS):
        assert documented(name) in (BLOCKS, ONE, REFUSED)


# ---- the callbacks that Lightning ships


class Freeze(callbacks.BaseFinetuning):
    """Freezes b before training, and lets it go in the second epoch."""

    def freeze_before_training(self, pl_module):
        pl_module.b.requires_grad_(False)

    def finetune_function(self, pl_module, epoch, optimizer):
        self.b = getattr(self, "b", {}) | {epoch: pl_module.b.detach().clone()}
        pl_module.b.requires_grad_(epoch > 0)


class Predictions(callbacks.BasePredictionWriter):
    def write_on_epoch_end(self, trainer, pl_module, predictions, batch_indices):
        self.written = torch.cat(predictions)


def writes(run, model, callback):
    run.predict(model, DataLoader(TensorDataset(SmallData().tensors("test")[0]), batch_size=7))
    assert callback.written.shape == (30, CLASSES)


def freezes(run, model, callback):
    assert callback.b[0].abs().sum() == callback.b[1].abs().sum() == 0
    assert model.b.abs().sum() > 0


def averages_every_update(run, model, callback):
    assert int(callback._average_model.n_averaged) == STEPS


def prunes(run, model, callback):
    assert (model.W == 0).float().mean() >= 0.5


def counts_samples(run, model, callback):
    assert callback._samples[RunningStage.TRAINING] == 2 * 60


def saves(run, model, callback):
    assert Path(callback.best_model_path).is_file()


def finds_a_rate(run, model, callback):
    losses = callback.optimal_lr.results["loss"]
    assert len(losses) > 5
    assert all(loss == loss for loss in losses)


def finds_a_size(run, model, callback):
    assert callback.optimal_batch_size >= 2


def logs_the_coming_rates(run, model, callback):
    schedule = TriangularLR(0.01, 0.3, step_size=STEPS // 2)
    lines = [(step, m["lr-SGD"]) for step, m in run.logger.lines if "lr-SGD" in m]
    assert lines == [(t, pytest.approx(schedule.rate(t))) for t in range(STEPS)]


def accumulates(run, model, callback):
    assert run.global_step == 8 + 4


def sees_every_batch(run, model, callback):
    assert callback.seen == STEPS


def logs_the_device(run, model, callback):
    assert any("DeviceStatsMonitor" in name for _, m in run.logger.lines for name in m)


def counts_the_parameters(run, model, callback):
    assert callback._summary(run, model).total_parameters == CLASSES * (PIXELS + 1)


def fills_its_bar(run, model, callback):
    assert callback.train_progress_bar.n == 8


def ends_its_bar(run, model, callback):
    assert callback.progress.finished


def averages_the_loss(run, model, callback):
    assert 0 < float(callback.running_mean.compute()) < float("inf")


def saves_after_an_exception(run, model, callback):
    callback.on_exception(run, model, RuntimeError())
    assert load_network(callback.ckpt_path).W.equal(model.W)


def judges_the_loss(run, model, callback):
    assert torch.isfinite(callback.best_score)


def takes_the_time(run, model, callback):
    assert callback.time_elapsed("train") > 0


def averages_the_last_epochs(run, model, callback):
    assert int(callback.n_averaged) > 0


def counting_lambda():
    made = callbacks.LambdaCallback(on_train_batch_end=lambda *_: vars(made).update(
        seen=vars(made).get("seen", 0) + 1))  # fmt: skip
    return made


CALLBACKS = {
    "BackboneFinetuning": (callbacks.BackboneFinetuning, REFUSED, None, {}),
    "BaseFinetuning": (Freeze, ONE, freezes, {}),
    "BasePredictionWriter": (lambda: Predictions("epoch"), BLOCKS, writes, {}),
    "BatchSizeFinder": (
        lambda: callbacks.BatchSizeFinder(max_trials=1), BLOCKS, finds_a_size,
        {"enable_checkpointing": True},
    ),
    "DeviceStatsMonitor": (
        lambda: callbacks.DeviceStatsMonitor(), ONE, logs_the_device, {"logger": Lines}
    ),
    "EarlyStopping": (lambda: callbacks.EarlyStopping("val/loss"), BLOCKS, judges_the_loss, {}),
    "GradientAccumulationScheduler": (
        lambda: callbacks.GradientAccumulationScheduler({1: 2}), ONE, accumulates,
        {"max_epochs": 2},
    ),
    "LambdaCallback": (counting_lambda, ONE, sees_every_batch, {}),
    "LearningRateFinder": (
        lambda: callbacks.LearningRateFinder(num_training_steps=10), BLOCKS, finds_a_rate,
        {"enable_checkpointing": True},
    ),
    "LearningRateMonitor": (
        lambda: callbacks.LearningRateMonitor("step"), BLOCKS, logs_the_coming_rates,
        {"logger": Lines},
    ),
    "ModelCheckpoint": (
        lambda: ModelCheckpoint(monitor="val/loss"), BLOCKS, saves, {"enable_checkpointing": True}
    ),
    "ModelPruning": (None, ONE, prunes, {}),
    "ModelSummary": (callbacks.ModelSummary, BLOCKS, counts_the_parameters, {}),
    "OnExceptionCheckpoint": (
        None, BLOCKS, saves_after_an_exception, {"enable_checkpointing": True}
    ),
    "RichModelSummary": (callbacks.RichModelSummary, BLOCKS, counts_the_parameters, {}),
    "RichProgressBar": (
        callbacks.RichProgressBar, BLOCKS, ends_its_bar, {"enable_progress_bar": True}
    ),
    "StochasticWeightAveraging": (
        lambda: callbacks.StochasticWeightAveraging(0.1, swa_epoch_start=1), ONE,
        averages_the_last_epochs,
        {"max_epochs": 2},
    ),
    "SpikeDetection": (None, ONE, averages_the_loss, {}),
    "ThroughputMonitor": (
        lambda: callbacks.ThroughputMonitor(lambda batch: len(batch[0])), ONE, counts_samples,
        {"logger": Lines},
    ),
    "Timer": (lambda: callbacks.Timer("00:01:00:00"), BLOCKS, takes_the_time, {}),
    "TQDMProgressBar": (
        callbacks.TQDMProgressBar, BLOCKS, fills_its_bar, {"enable_progress_bar": True}
    ),
    "EMAWeightAveraging": (
        lambda: callbacks.EMAWeightAveraging(decay=0.5), ONE, averages_every_update, {}
    ),
    "WeightAveraging": (callbacks.WeightAveraging, ONE, averages_every_update, {}),
}  # fmt: skip
IGNORED = (
    "ignore:You are using LearningRateMonitor",
    "ignore:two callbacks set the learning rate",
    "ignore:.*lr_scheduler.step",
    "ignore:Swapping scheduler",
    "ignore:.*in eval mode",
    "ignore:Trying to infer",
    "ignore:.*torch.utils._pytree",
    "ignore:When using the `ThroughputMonitor`",
    "ignore:.fit.ckpt_path=",
)


def made(name, tmp_path, model):
    if name == "ModelPruning":
        return callbacks.ModelPruning("l1_unstructured", [(model, "W")], amount=0.5)
    if name == "OnExceptionCheckpoint":
        return callbacks.OnExceptionCheckpoint(tmp_path)
    if name == "SpikeDetection":
        return callbacks.SpikeDetection(exclude_batches_path=str(tmp_path / "spikes.json"))
    return CALLBACKS[name][0]()


@pytest.mark.filterwarnings(*IGNORED)
@pytest.mark.parametrize("name", CALLBACKS)
def test_a_callback_of_lightnings(tmp_path, name):
    _, way, check, flags = CALLBACKS[name]
    assert documented(name) == way
    flags = {k: v() if inspect.isclass(v) else v for k, v in flags.items()}
    model = OneLayer(l2=0.01, inputs=PIXELS, classes=CLASSES)
    if way == REFUSED:
        with pytest.raises((MisconfigurationException, AttributeError), match="backbone"):
            fitted(tmp_path, made(name, tmp_path, model), model=model, **flags)
        return
    callback = made(name, tmp_path, model)
    run, model = fitted(tmp_path, callback, model=model, **flags)
    assert way_of(run) == way
    check(run, model, callback)


# ---- what else was found not to hold


def resident(split="train", **options):
    return ResidentLoader(*SmallData().tensors(split), 8, **options)


def small(kind=OneLayer, **arguments):
    return kind(inputs=PIXELS, classes=CLASSES, **arguments)


@pytest.mark.parametrize("fused", [True, False])
def test_validation_runs_with_loaders_alone(tmp_path, fused):
    """Nobody measures the splits of a training without a data module but Lightning."""
    seen, model = Validations(), small(fused=fused)
    saver = ModelCheckpoint(tmp_path, monitor="val/accuracy", mode="max")
    run = trainer(tmp_path, 16, [seen, saver], enable_checkpointing=True, val_check_interval=4)
    run.fit(model, resident(), resident("val", shuffle=False))
    assert seen.count == 4
    assert saver.best_model_score == run.callback_metrics["val/accuracy"] or saver.best_k_models


def test_a_module_may_validate_in_its_own_way(tmp_path):
    class Own(OneLayer):
        def validation_step(self, batch, batch_idx):
            self.log("mine", 3.0)

    run, _ = fitted(tmp_path, model=small(Own), num_sanity_val_steps=2)
    assert run.callback_metrics["mine"] == run.logged_metrics["mine"] == 3
    assert reason_of(run) is None


def test_early_stopping_counts_figures_of_the_very_epoch(tmp_path):
    stop = callbacks.EarlyStopping("train/cost", patience=1, min_delta=0.0)
    run, _ = fitted(tmp_path, stop, steps=80)  # the cost falls all the time
    assert run.global_step == 80
    worse = callbacks.EarlyStopping("train/cost", patience=2, mode="max")
    run, _ = fitted(tmp_path, worse, steps=80)
    assert run.global_step == 8 * 3


def test_a_checkpoint_after_validation_is_saved(tmp_path):
    saver = ModelCheckpoint(tmp_path, save_on_train_epoch_end=False)
    fitted(tmp_path, saver, enable_checkpointing=True)
    assert Path(saver.best_model_path).is_file()


def test_what_a_training_step_logs_counts_updates(tmp_path):
    class Logs(OneLayer):
        def training_step(self, batch, batch_idx):
            cost = super().training_step(batch, batch_idx)
            self.log("mine", cost)
            return cost

    run, _ = fitted(tmp_path, model=small(Logs), logger=Lines(), log_every_n_steps=4)
    assert [step for step, m in run.logger.lines if "mine" in m] == [3, 7, 11, 15]


def test_the_bar_ends_at_the_epochs_last_batch(tmp_path):
    bar = callbacks.TQDMProgressBar(refresh_rate=3)
    run, _ = fitted(tmp_path, bar, enable_progress_bar=True)
    assert (bar.train_progress_bar.n, bar.train_progress_bar.total) == (8, 8)
    assert "train/accuracy" in bar.get_metrics(run, run.lightning_module)


def test_the_rich_bar_ends_at_the_epochs_last_batch(tmp_path):
    bar = callbacks.RichProgressBar(refresh_rate=3)
    fitted(tmp_path, bar, enable_progress_bar=True, max_epochs=1)
    task = bar.train_progress_bar
    assert (task.completed, task.total) == (8, 8)


def test_minus_one_ends_the_epoch(tmp_path):
    class Ends(OneLayer):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx == 2 else None

    run, _ = fitted(tmp_path, model=small(Ends), max_epochs=3)
    assert (run.global_step, run.current_epoch) == (6, 3)


def test_overfitting_sees_the_same_batches_every_epoch(tmp_path):
    class Rows(Observer):
        def __init__(self):
            self.sums = []

        def next_due(self, step):
            return step + 1

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.sums.append(float(batch[0].sum()))

    rows = Rows()
    run = trainer(tmp_path, callbacks=[rows], overfit_batches=2, max_epochs=3)
    run.fit(small(), resident())
    assert len(rows.sums) == 6
    assert rows.sums[:2] * 3 == rows.sums


@pytest.mark.filterwarnings("ignore:Swapping scheduler", "ignore:.*lr_scheduler.step")
def test_two_masters_of_the_rate_are_told(tmp_path):
    with warned("two callbacks set the learning rate: TriangularLR had set"):
        fitted(tmp_path, callbacks.StochasticWeightAveraging(0.1, swa_epoch_start=1), max_epochs=3)


@pytest.mark.filterwarnings("ignore:.*Anomaly", "ignore:Error detected")
def test_anomalies_are_detected(tmp_path):
    model = small()
    with torch.no_grad():
        model.W[0, 0, 0] = float("nan")
    with pytest.raises(RuntimeError, match="nan"):
        trainer(tmp_path, 4, [], detect_anomaly=True).fit(model, resident())


def test_hooks_may_be_overridden_without_super(tmp_path):
    class Forgets(OneLayer):
        def setup(self, stage):
            pass

        def on_train_start(self):
            pass

        def on_fit_start(self):
            pass

        def on_validation_epoch_start(self):
            pass

    run, model = fitted(tmp_path, model=small(Forgets))
    assert torch.equal(model.mean, SmallData().statistics.mean)
    assert reason_of(run) is None


@pytest.mark.parametrize("own", [True, False], ids=["Checkpoints", "ModelCheckpoint beside it"])
def test_checkpoints_are_found_by_lightnings_words(tmp_path, own):
    best = [] if own else [ModelCheckpoint(tmp_path / "best", monitor="val/loss", filename="best")]
    run, model = fitted(tmp_path, *best, Checkpoints(every=5), enable_checkpointing=True)
    assert run.checkpoint_callback is (best or [run.checkpoint_callback])[0]
    wanted = tmp_path / "best" / "best.ckpt" if best else tmp_path / "checkpoints" / "last.ckpt"
    assert run.checkpoint_callback.best_model_path == str(wanted)
    data = SmallData()
    for arguments in ({}, {"ckpt_path": "best"}, {"ckpt_path": "last"}):
        if own or arguments != {"ckpt_path": "last"}:
            (figures,) = run.test(datamodule=data, verbose=False, **arguments, **SAFELY)
            assert figures["test/loss"] == pytest.approx(
                float(model.evaluate(*data.tensors("test"))["loss"])
            )
    again = trainer(tmp_path, 24, [TriangularLR(0.01, 0.3, step_size=8), Checkpoints(every=5)])
    again.fit(small(l2=0.01), datamodule=data, ckpt_path="last", **SAFELY)
    assert again.fit_loop.epoch_loop.batch_progress.total.ready == 24
    assert again.global_step == 24


def test_predictions_of_features_alone_and_of_pairs(tmp_path):
    run, model = fitted(tmp_path)
    X, y = SmallData().tensors("test")
    for data in (TensorDataset(X), TensorDataset(X, y)):
        P = torch.cat(run.predict(model, DataLoader(data, batch_size=7)))
        torch.testing.assert_close(P, model.predict_proba(X))


def test_predictions_over_several_loaders(tmp_path):
    run, model = fitted(tmp_path)
    X, _ = SmallData().tensors("test")
    loaders = [DataLoader(TensorDataset(part), batch_size=7) for part in (X, X[:10])]
    first, second = (torch.cat(P) for P in run.predict(model, loaders))
    torch.testing.assert_close(first, model.predict_proba(X))
    torch.testing.assert_close(second, first[:10])


@pytest.mark.parametrize(
    "batch",
    [
        torch.zeros(PIXELS),
        torch.zeros(2, PIXELS + 1),
        torch.zeros(2, PIXELS, dtype=torch.uint8),
        {"X": torch.zeros(2, PIXELS)},
    ],
)
def test_what_cannot_be_predicted_is_refused(tmp_path, batch):
    with pytest.raises(InputError, match=r"X must be floating point \(n, 12\), not"):
        trainer(tmp_path, callbacks=[]).predict(small(), [batch])


@pytest.mark.filterwarnings(*IGNORED)
@pytest.mark.parametrize("trial", ["fast_dev_run", "LearningRateFinder", "BatchSizeFinder"])
def test_a_trial_leaves_no_file(tmp_path, monkeypatch, trial):
    """Not even in the folder where everything is left that has no other."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "curves.csv").write_text("somebody's own")
    flags = {"fast_dev_run": 2} if trial == "fast_dev_run" else {}
    callback = [] if flags else [CALLBACKS[trial][0]()]
    fitted(tmp_path, *callback, logger=True, enable_checkpointing=True, **flags)
    assert (tmp_path / "curves.csv").read_text() == "somebody's own"
    runs = [] if flags else ["lightning_logs"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.csv", *runs]


@pytest.mark.filterwarnings("ignore:.*this fit will run with no optimizer")
def test_a_training_without_an_optimizer_changes_nothing(tmp_path):
    class Fixed(OneLayer):
        def configure_optimizers(self):
            return None

    run = trainer(tmp_path, callbacks=[], max_epochs=1)
    model = small(Fixed)
    before = model.W.detach().clone()
    run.fit(model, datamodule=SmallData())
    assert torch.equal(model.W, before)
    assert reason_of(run) == "the optimizer is _MockOptimizer"


def test_a_trainer_may_go_on_to_another_module(tmp_path):
    """A trainer keeps the callbacks of the modules that it trained."""
    run, _ = fitted(tmp_path)
    other = Other()
    run.fit(other, datamodule=SmallData())
    run.test(other, datamodule=SmallData(), verbose=False)
    again = Trainer(accelerator="cpu", devices=1, max_steps=STEPS, logger=False,
                    callbacks=[callbacks.ModelSummary()], enable_progress_bar=False,
                    default_root_dir=tmp_path / "again", enable_checkpointing=False)  # fmt: skip
    again.validate(small(), datamodule=SmallData(), verbose=False)
    again.fit(other, datamodule=SmallData())
    assert (again.global_step, other.seen) == (STEPS, STEPS)


class Other(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.seen = torch.nn.Linear(PIXELS, CLASSES), 0

    def training_step(self, batch, batch_idx):
        self.seen += 1
        return self.layer(batch[0]).square().mean()

    def validation_step(self, batch, batch_idx):
        pass

    test_step = validation_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_loader_without_a_length(tmp_path):
    class Endless(torch.utils.data.IterableDataset):
        def __iter__(self):
            X, y = SmallData().tensors("train")
            return iter(zip(X, y, strict=True))

    class Data(SmallData):
        def train_dataloader(self):
            return DataLoader(Endless(), batch_size=8)

    run = trainer(tmp_path, callbacks=[], max_epochs=2)
    run.fit(small(), datamodule=Data())
    curves = next(c for c in run.callbacks if type(c).__name__ == "Curves")
    assert sorted({row.step for row in curves.rows}) == [0, 8, 16]


def test_a_subclass_with_arguments_of_its_own(tmp_path, monkeypatch):
    from lightning.pytorch.cli import LightningCLI

    class Mine(OneLayer):
        def __init__(self, width: int = 3):
            super().__init__(hidden=width, inputs=PIXELS, classes=CLASSES)
            self.save_hyperparameters()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["onelayer"])  # Lightning warns where pytest has its own
    words = ["fit", "--seed_everything=1", "--model.width=5",
             "--trainer.max_steps=8", "--trainer.logger=false",
             "--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]  # fmt: skip
    cli = LightningCLI(Mine, SmallCLIData, args=words, save_config_callback=None)
    assert cli.model.W1.shape == (1, 5, PIXELS)
    assert cli.trainer.global_step == 8


@pytest.mark.filterwarnings("ignore:model.lr = 0.5 has no effect")
def test_a_subclass_may_take_an_object(tmp_path):
    """Nobody asked for it in the checkpoint: there it could not be pickled, or not be loaded."""

    class Mine(OneLayer):
        def __init__(self, rate, function):
            super().__init__(inputs=PIXELS, classes=CLASSES, lr=rate)
            self.function = function

    saver = ModelCheckpoint(tmp_path, save_last=True)
    mine = Mine(0.5, lambda X: X)
    fitted(tmp_path, saver, model=mine, enable_checkpointing=True)
    loaded = Mine.load_from_checkpoint(saver.last_model_path, function=abs, **SAFELY)
    assert torch.equal(loaded.W, mine.W.cpu())
    assert loaded.lr == 0.5


@pytest.mark.filterwarnings("ignore:Trying to infer")
def test_a_subclass_may_have_its_batch_size_found(tmp_path):
    class Mine(OneLayer):
        def __init__(self, batch_size):
            super().__init__(inputs=PIXELS, classes=CLASSES)
            self.save_hyperparameters()

        def train_dataloader(self):
            return DataLoader(TensorDataset(*SmallData().tensors("train")), self.hparams.batch_size)

        def val_dataloader(self):
            return resident("val", shuffle=False)

    mine = Mine(2)
    run = trainer(tmp_path, callbacks=[], max_epochs=1)
    assert Tuner(run).scale_batch_size(mine, max_trials=3) == mine.hparams.batch_size > 2
    run.fit(mine)
    assert run.global_step == -(-60 // mine.hparams.batch_size)


class SmallCLIData(SmallData):
    def __init__(self, batch_size: int = 8):
        super().__init__(batch_size=batch_size)


@pytest.mark.parametrize("stop", [11, 16])
def test_a_float64_run_is_resumed_to_the_same_bits(tmp_path, stop):
    """Lightning restores weights before it makes the module float64."""
    ends = []
    for name, parts in (("whole", [20]), ("resumed", [stop, 20])):
        for steps in parts:
            saver = Checkpoints(dirpath=str(tmp_path / name))
            run = trainer(
                tmp_path, steps, [TriangularLR(0.01, 0.3, step_size=8), saver],
                precision="64-true",
            )  # fmt: skip
            model, last = small(l2=0.01), tmp_path / name / "last.ckpt"
            data = SmallData(dtype=torch.float64)
            run.fit(model, datamodule=data, ckpt_path=last if last.exists() else None, **SAFELY)
        ends.append([w.detach().clone() for w in model.weights])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
