"""Curves: when it looks, what it writes, what others can monitor."""

import csv

import pytest
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
def test_looks_evenly_within_each_cycle_at_its_ends_and_at_the_last_update(
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


def test_without_a_schedule_looks_each_epoch(tmp_path):
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
