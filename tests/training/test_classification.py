"""TestReport: the figures that people look at, against scikit-learn's, in every place they go."""

import json

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from onelayer.data.arrays import ArraysDataModule
from onelayer.study.figures import PlotCurves
from onelayer.training.classification import BINS
from onelayer.training.module import OneLayer
from onelayer.training.results import Results
from onelayer.training.schedule import TriangularLR
from onelayer.training.summary import format_report
from tests.support.own import Theirs, arrays
from tests.support.small import SmallData, fit, trainer

pytest.importorskip("sklearn")

from sklearn.metrics import (
    balanced_accuracy_score,
    confusion_matrix,
    precision_recall_fscore_support,
)

pytestmark = pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")


def train_and_test(tmp_path, k=7, l2=0.0, logger=False, data=None):
    """A network trained and tested on k classes, its data and its report."""
    if data is None:
        X, y = arrays(40 * k, 5, k)
        half = 20 * k
        train, test = (X[:half], y[:half]), (X[half:] + 0.5, y[half:])
        data = ArraysDataModule(train, test=test, val_size=0.2, batch_size=16)
    report = Results()
    schedule = TriangularLR(0.01, 0.3, step_size=10)
    callbacks = [schedule, report, PlotCurves()]
    model = OneLayer(0, l2=l2, inputs=5, classes=k)
    fit(tmp_path, model, data, callbacks, max_steps=20, logger=logger)
    model.trainer.test(model, data, verbose=False)
    return model, data, report.report


@pytest.mark.parametrize("k", [2, 7])
def test_its_figures_are_those_of_scikit_learn(tmp_path, k):
    model, data, report = train_and_test(tmp_path, k)
    X, y = data.tensors("test")
    P = model.predict_proba(X)
    guess = P.argmax(1)
    assert report["confusion"] == confusion_matrix(y, guess).tolist()
    assert report["samples"] == len(y)
    assert report["accuracy"] == pytest.approx(float((guess == y).double().mean()))
    assert report["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(y, guess))
    columns = precision_recall_fscore_support(y, guess, zero_division=np.nan)
    for name, values in zip(("precision", "recall", "f1", "samples"), columns, strict=True):
        kept = [one[name] if one[name] is not None else np.nan for one in report["classes"]]
        if name != "f1":
            assert kept == pytest.approx(values.tolist(), nan_ok=True)
    assert [one["class"] for one in report["classes"]] == [str(i) for i in range(k)]
    first_five = (P.topk(min(5, k), 1).indices == y[:, None]).any(1).double().mean()
    assert report["top5_accuracy"] == (pytest.approx(float(first_five)) if k > 5 else None)


def test_the_calibration_error_is_the_mean_gap_of_its_bins(tmp_path):
    model, data, report = train_and_test(tmp_path)
    X, y = data.tensors("test")
    confidence, guess = model.predict_proba(X).max(1)
    place = (confidence * BINS).long().clamp(max=BINS - 1)
    gaps = [
        float((guess == y)[place == b].sum() - confidence[place == b].sum()) for b in range(BINS)
    ]
    expected = sum(map(abs, gaps)) / len(y)
    assert report["calibration_error"] == pytest.approx(expected, abs=1e-5)
    by_bins = sum(
        one["samples"] * abs(one["accuracy"] - one["confidence"]) for one in report["bins"]
    )
    assert by_bins / len(y) == pytest.approx(expected, abs=1e-5)


def test_a_population_is_looked_at_by_the_networks_best_on_validation(tmp_path):
    model, data, report = train_and_test(tmp_path, l2=[3.0, 0.0])
    X, y = data.tensors("test")
    (chosen,) = model.choose("best").members
    assert f"network {chosen} " in report["networks"]
    best = model.predict_proba(X, member=chosen).argmax(1)
    assert report["confusion"] == confusion_matrix(y, best).tolist()


def test_a_class_that_no_test_row_has_has_no_recall_and_counts_for_none(tmp_path):
    X, y = arrays(120, 5, 3)
    kept = y != 1
    data = ArraysDataModule((X, y), test=(X[kept] + 0.1, y[kept]), val_size=0.2, batch_size=16)
    _, _, report = train_and_test(tmp_path, 3, data=data)
    assert report["classes"][1]["recall"] is None
    recalls = [report["classes"][k]["recall"] for k in (0, 2)]
    assert report["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    assert "  - " in format_report(report)


@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.usefixtures("drawn")
def test_it_is_left_as_json_as_a_picture_and_in_tensorboard(tmp_path):
    _, _, report = train_and_test(tmp_path, logger=TensorBoardLogger(tmp_path, name="run"))
    folder = tmp_path / "run" / "version_0"
    assert json.loads((folder / "test.json").read_text()) == report
    with Image.open(folder / "test.png") as picture:
        assert min(picture.size) > 400
    events = EventAccumulator(str(folder), size_guidance={"images": 0}).Reload()
    for name in ("top5_accuracy", "balanced_accuracy", "calibration_error"):
        (event,) = events.Scalars(f"test/{name}")
        assert event.value == pytest.approx(report[name])
    (image,) = events.Images("test")
    assert image.encoded_image_string == (folder / "test.png").read_bytes()


def test_a_foreign_loaders_batches_count_the_same(tmp_path):
    report, model = Results(), OneLayer(0, inputs=6, classes=4)
    data = Theirs()
    data.setup("test")
    X, y = data.test.tensors
    run = trainer(tmp_path, callbacks=[report])
    run.test(model, data, verbose=False)
    guess = model.predict_proba(X.flatten(1)).argmax(1)
    assert report.report["confusion"] == confusion_matrix(y, guess).tolist()


def test_networks_that_know_nothing_leave_no_report(tmp_path):
    report, model = Results(), OneLayer(0, inputs=12, classes=3)
    with torch.no_grad():
        model.weights[0].fill_(torch.nan)
    trainer(tmp_path, callbacks=[report]).test(model, SmallData(), verbose=False)
    assert report.report is None


def test_many_classes_are_shown_by_the_worst():
    classes = [
        {"class": f"c{i}", "samples": 1, "precision": 1.0, "recall": 1.0, "f1": i / 100}
        for i in range(100)
    ]
    report = {
        "networks": "the network", "balanced_accuracy": 0.5, "top5_accuracy": None,
        "calibration_error": 0.1, "classes": classes,
    }  # fmt: skip
    lines = format_report(report).splitlines()
    assert len(lines) == 33
    assert "the 30 of lowest F1" in lines[2]
    assert lines[3].startswith("c0 ")
