"""TriangularLR as a callback: any module, warnings about mid-cycle, refusals."""

import csv
import re
import warnings
from pathlib import Path

import pytest
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger

from onelayer.core.errors import InputError
from onelayer.training.module import OneLayer
from onelayer.training.schedule import TriangularLR
from tests.support.small import CLASSES, PIXELS, Plain, SmallData, fit, trainer


@pytest.mark.parametrize("mode", ["triangular", "triangular2", "exp_range"])
def test_sets_every_group_of_any_module_before_each_update(tmp_path, mode):
    schedule = TriangularLR(0.01, 0.3, step_size=5, cycles=2, mode=mode, gamma=0.9)
    model = Plain()
    trainer(tmp_path, schedule.total_steps, [schedule]).fit(model, SmallData().train_dataloader())
    assert model.rates == [[schedule.rate(t)] * 2 for t in range(20)]
    assert model.rates[5] == [schedule.max_lr] * 2 or mode == "exp_range"


def test_accumulated_batches_share_the_rate_of_their_update(tmp_path):
    schedule = TriangularLR(0.0, 1.0, step_size=4)
    model = Plain()
    run = trainer(tmp_path, 4, [schedule], accumulate_grad_batches=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.fit(model, SmallData().train_dataloader())
    assert [group[0] for group in model.rates] == [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75]


def test_logs_lr_against_the_number_of_updates(tmp_path):
    schedule = TriangularLR(0.0, 1.0, step_size=4)
    logger = CSVLogger(tmp_path)
    trainer(tmp_path, 8, [schedule], logger=logger).fit(Plain(), SmallData().train_dataloader())
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        logged = {int(row["step"]): float(row["lr"]) for row in csv.DictReader(file)}
    assert logged == {t: schedule.rate(t) for t in range(9)}


def test_lightnings_own_monitor_sees_the_rate_of_every_update(tmp_path):
    schedule, logger = TriangularLR(0.0, 1.0, step_size=4), CSVLogger(tmp_path)
    model = OneLayer(inputs=PIXELS, classes=CLASSES)
    callbacks = [schedule, LearningRateMonitor(logging_interval="step")]
    fit(tmp_path, model, callbacks=callbacks, logger=logger, max_steps=16)
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["lr-SGD"]]
    assert [float(row["lr-SGD"]) for row in rows] == [schedule.rate(t) for t in range(16)]


def mid_cycle_warnings(run, model):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run.fit(model, datamodule=SmallData())
    return [str(w.message) for w in caught if "mid-cycle" in str(w.message)]


@pytest.mark.parametrize("limit", [{"max_steps": 25}, {"max_epochs": 3}])
def test_a_stop_in_mid_cycle_is_warned_about_with_both_numbers(tmp_path, limit):
    updates = 25 if "max_steps" in limit else 24
    model = OneLayer(inputs=PIXELS, classes=CLASSES)
    run = trainer(tmp_path, callbacks=[TriangularLR(step_size=10)], **limit)
    (warning,) = mid_cycle_warnings(run, model)
    assert re.search(f"{updates} updates are .* cycles of 20 .*=20 or 40", warning)


def test_where_steps_and_epochs_are_limited_the_sooner_counts(tmp_path):
    model = OneLayer(inputs=PIXELS, classes=CLASSES)
    run = trainer(tmp_path, callbacks=[TriangularLR(step_size=10)], max_epochs=3)
    run.fit_loop.epoch_loop.max_steps = 30
    (warning,) = mid_cycle_warnings(run, model)
    assert "24 updates" in warning


def test_whole_cycles_are_not_warned_about(tmp_path):
    model = OneLayer(inputs=PIXELS, classes=CLASSES)
    run = trainer(tmp_path, 40, [TriangularLR(step_size=10, cycles=2)])
    assert mid_cycle_warnings(run, model) == []


def test_two_schedules_are_refused(tmp_path):
    with pytest.raises(RuntimeError, match="more than one stateful callback of type `Triangular"):
        fit(tmp_path, callbacks=[TriangularLR(), TriangularLR(max_lr=0.2)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step_size": 0}, "step_size must be .* not 0"),
        ({"base_lr": 0.5}, "base_lr must be <= max_lr, but 0.5 > 0.1"),
        ({"max_lr": float("nan")}, "max_lr .* not nan"),
        ({"cycles": 0}, "cycles must be a whole number from 1 to .*, not 0"),
        ({"cycles": 1.5}, "cycles .* not 1.5"),
        ({"mode": "cosine"}, "mode must be one of triangular, .* not 'cosine'"),
    ],
)
def test_values_that_make_no_schedule_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        TriangularLR(**arguments)
