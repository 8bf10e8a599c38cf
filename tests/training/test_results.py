"""Results: summary.json and the closing table."""

import json

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from onelayer.training.curves import Curves
from onelayer.training.module import OneLayer
from onelayer.training.results import Results
from onelayer.training.schedule import TriangularLR
from onelayer.training.summary import format_summary
from onelayer.training.trainer import run_logger
from tests.support.small import CLASSES, PIXELS, SmallData, fit


def test_the_summary_holds_every_members_final_figures(tmp_path):
    results, curves = Results(), Curves()
    model = OneLayer(4, l2=[0.0, 0.1], seeds=[0, 3], inputs=PIXELS, classes=CLASSES)
    logger = TensorBoardLogger(tmp_path, name="run")
    fit(tmp_path, model, callbacks=[results, curves, TriangularLR(step_size=10)], logger=logger,
        max_steps=20)  # fmt: skip
    model.trainer.test(model, SmallData(), verbose=False)
    summary = json.loads((tmp_path / "run" / "version_0" / "summary.json").read_text())
    assert summary == results.summary
    assert {k: summary[k] for k in ("dataset", "hidden", "steps")} == {
        "dataset": "small", "hidden": 4, "steps": 20,
    }  # fmt: skip
    assert summary["seconds"] > 0
    for split in ("train", "val", "test"):
        figures = model.evaluate(*SmallData().tensors(split))
        for i, member in enumerate(summary["members"]):
            assert member[split] == pytest.approx({k: float(v[i]) for k, v in figures.items()})
    assert [row.split for row in curves.rows[-4:]] == ["test"] * 4


def test_tensorboard_has_the_final_figures_of_the_fifth_training_in_a_process(
    tmp_path, monkeypatch
):
    """TensorBoard numbers its files in a process, and reads number 10 before number 9."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(9))
    model = OneLayer(inputs=PIXELS, classes=CLASSES)
    logger = run_logger(tmp_path / "run", tmp_path)
    fit(tmp_path, model, callbacks=[Results(), Curves()], logger=logger, max_steps=2)
    model.trainer.test(model, SmallData(), verbose=False)
    read = EventAccumulator(str(tmp_path / "run")).Reload()
    assert [len(read.Scalars(tag)) for tag in ("cost/val", "test/accuracy")] == [2, 1]


def test_the_table_has_a_line_per_l2_with_mean_and_deviation_over_seeds():
    def member(l2, seed, accuracy):
        figures = {"cost": 2.0, "loss": 1.5, "accuracy": accuracy}
        return {"l2": l2, "seed": seed, "train": figures, "val": figures, "test": figures}

    summary = {
        "dataset": "cifar10", "hidden": 50, "steps": 4800, "seconds": 12.3,
        "members": [member(0.1, 0, 0.4), member(0.1, 1, 0.5), member(0.0, 0, 0.3)],
    }  # fmt: skip
    table = format_summary(summary)
    assert table.count("45.00 ± 7.07") == 3
    assert " ".join(table.splitlines()[3].split()) == "0 1 30.00 30.00 30.00 2.0000 1.5000"


def test_without_test_figures_the_column_is_empty():
    member = {"l2": 0.0, "seed": 0, "train": {"cost": 1.0, "loss": 1.0, "accuracy": 0.5}}
    summary = {"dataset": "x", "hidden": 0, "steps": 1, "seconds": 0.1, "members": [member]}
    assert " ".join(format_summary(summary).splitlines()[2].split()) == "0 1 50.00 - - - -"
