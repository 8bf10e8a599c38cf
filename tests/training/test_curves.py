"""Curves: when it measures, what it writes, what others can monitor."""

import csv
import os

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from onelayer.core.errors import InputError
from onelayer.training.curves import Curves
from onelayer.training.module import OneLayer
from onelayer.training.records import Row, last_figures, read_rows, write_rows
from onelayer.training.schedule import TriangularLR
from tests.support.small import CLASSES, PIXELS, SmallData, fit

SMALL = {"inputs": PIXELS, "classes": CLASSES}


@pytest.mark.parametrize(("step_size", "per_cycle"), [(10, 10), (7, 10), (12, 5)])
def test_measures_evenly_within_each_cycle_at_its_ends_and_at_the_last_update(
    tmp_path, step_size, per_cycle
):
    curves = Curves(per_cycle=per_cycle)
    schedule = TriangularLR(0.01, 0.1, step_size=step_size, cycles=2)
    fit(tmp_path, callbacks=[curves, schedule], max_steps=2 * schedule.cycle + 3)
    steps = [row.step for row in curves.rows if row.split == "val"]
    cycle = [-(-i * schedule.cycle // per_cycle) for i in range(per_cycle)]
    third = [2 * schedule.cycle + s for s in cycle if s < 3] + [2 * schedule.cycle + 3]
    assert steps == cycle + [schedule.cycle + s for s in cycle] + third
    assert [row.step for row in curves.rows if row.split == "train"] == steps


def test_without_a_schedule_measures_each_epoch(tmp_path):
    curves = Curves()
    fit(tmp_path, callbacks=[curves], max_steps=20)
    assert [row.step for row in curves.rows if row.split == "val"] == [0, 8, 16, 20]


def test_rows_hold_each_member_over_the_whole_split_with_the_rate_of_that_update(tmp_path):
    curves, schedule = Curves(), TriangularLR(0.01, 0.3, step_size=10)
    model = OneLayer(4, l2=[0.0, 0.1], seeds=[0, 1], **SMALL)
    fit(tmp_path, model, callbacks=[curves, schedule], max_steps=20)
    final = last_figures(curves.rows, "train")
    figures = model.evaluate(*SmallData().tensors("train"))
    assert [row.accuracy for row in final] == figures["accuracy"].tolist()
    assert [row.cost for row in final] == figures["cost"].tolist()
    assert [(r.member, r.l2, r.seed) for r in final] == [
        (0, 0.0, 0), (1, 0.0, 1), (2, 0.1, 0), (3, 0.1, 1),
    ]  # fmt: skip
    assert {row.step: row.lr for row in curves.rows} == {
        row.step: schedule.rate(row.step) for row in curves.rows
    }


def test_files_hold_the_same_figures(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="run", default_hp_metric=False)
    curves = Curves()
    model = OneLayer(4, l2=[0.0, 0.1], **SMALL)
    fit(
        tmp_path, model, callbacks=[curves, TriangularLR(step_size=10)], logger=logger, max_steps=20
    )
    folder = tmp_path / "run" / "version_0"
    assert read_rows(folder / "curves.csv") == curves.rows

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    rates = {e.step: e.value for e in events.Scalars("lr")}
    assert set(range(0, 21, 2)) <= set(rates)


def test_other_loggers_have_the_figures_of_the_best_l2(tmp_path):
    curves, logger = Curves(), CSVLogger(tmp_path, name="run")
    model = OneLayer(4, l2=[0.0, 3.0], seeds=[0, 1], **SMALL)
    fit(tmp_path, model, callbacks=[curves], logger=logger, max_steps=16)
    with (tmp_path / "run" / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [0, 8, 16]
    for name in ("cost", "loss", "accuracy"):
        for split in ("train", "val"):
            last = last_figures(curves.rows, split)
            best = [getattr(last[member], name) for member in model.choose("best").members]
            assert float(rows[-1][f"{split}/{name}"]) == pytest.approx(sum(best) / 2, rel=1e-6)


def test_other_callbacks_can_monitor_the_validation_figures(tmp_path):
    stopper = EarlyStopping("val/accuracy", mode="max", patience=0, min_delta=1.0)
    model = fit(tmp_path, callbacks=[stopper], max_steps=80)
    assert model.trainer.global_step == 16  # of 80: the second epoch did not gain 100 points


def test_numbers_survive_the_file_exactly(tmp_path):
    rows = [Row(3, "val", 0, 1e-3, 7, 0.1 + 0.2, 1 / 3, float("inf"), 0.5)]
    write_rows(tmp_path / "curves.csv", rows, append=False)
    write_rows(tmp_path / "curves.csv", rows, append=True)
    assert read_rows(tmp_path / "curves.csv") == rows * 2


@pytest.mark.parametrize("arguments", [{"per_cycle": 0}, {"per_epoch": 1.5}])
def test_bad_values_are_refused(arguments):
    with pytest.raises(InputError, match="must be a whole number >= 1"):
        Curves(**arguments)


class Counting(OneLayer):
    """Notes how many rows each measurement had."""

    def evaluate(self, X, y):
        self.counts.append(len(y))
        return super().evaluate(X, y)


def counted(tmp_path, curves, callbacks=(), max_steps=40, per=10):
    """A training on 60 rows by batches of 8, and the rows of each measurement, train and val."""
    model = Counting(4, l2=0.01, **SMALL)
    model.counts = []
    schedule = TriangularLR(0.01, 0.3, step_size=per)
    fit(tmp_path, model, callbacks=[curves, schedule, *callbacks], max_steps=max_steps)
    return model, list(zip(model.counts[::2], model.counts[1::2], strict=True))


@pytest.mark.parametrize(
    ("train_rows", "least", "between"),
    [
        (None, 1, 60),
        (7, 1, 7),  # no more than that
        (10_000, 1, 10),  # a third of 4 updates' 8 rows each, of 7.5 batches in an epoch of 60 rows
        (10_000, 25, 25),
        (10_000, 1000, 60),
    ],
)
def test_measurements_between_the_first_and_the_last_are_of_some_rows(
    tmp_path, monkeypatch, train_rows, least, between
):
    monkeypatch.setattr("onelayer.training.curves.LEAST_ROWS", least)
    curves = Curves(per_cycle=5, train_rows=train_rows)
    _, counts = counted(tmp_path, curves)
    assert counts == [(60, 30), *[(between, 30)] * 9, (60, 30)]


def test_the_rows_measured_on_the_way_are_always_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr("onelayer.training.curves.LEAST_ROWS", 1)
    drawn = []
    for seed in (0, 1):
        curves = Curves(per_cycle=5, train_rows=7)
        fit(tmp_path, OneLayer(seeds=seed, **SMALL), callbacks=[curves], max_steps=8)
        drawn.append(curves._some.tolist())
    assert drawn[0] == drawn[1] == sorted(set(drawn[0]))
    assert drawn[0] != list(range(7))


def test_the_last_measurement_is_whole_where_something_ends_the_training_early(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("onelayer.training.curves.LEAST_ROWS", 1)

    class Stop(Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = trainer.global_step == 8

    logger = TensorBoardLogger(tmp_path, name="", version="run", default_hp_metric=False)
    curves = Curves(per_cycle=5, train_rows=7)
    model = OneLayer(4, l2=0.01, **SMALL)
    callbacks = [curves, TriangularLR(0.01, 0.3, step_size=10), Stop()]
    fit(tmp_path, model, callbacks=callbacks, logger=logger, max_steps=40)
    (last,) = [row for row in curves.rows if (row.step, row.split) == (8, "train")]
    assert last.cost == float(model.evaluate(*SmallData().tensors("train"))["cost"])
    assert read_rows(tmp_path / "run" / "curves.csv") == curves.rows


def test_a_kill_while_curves_are_written_anew_leaves_them_whole(tmp_path, monkeypatch):
    """As the figures of a test are joined, when no training follows that would mend the file."""
    path = tmp_path / "curves.csv"
    row = Row(0, "train", 0, 0.0, 0, 0.1, 1.0, 1.0, 0.5)
    write_rows(path, [row], append=False)
    whole = path.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_rows(path, [row, row._replace(step=1)], append=False)
    assert path.read_bytes() == whole
