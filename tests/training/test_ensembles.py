"""Ensembles: figures of mean probabilities, against means by hand."""

import json

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from onelayer.training.module import OneLayer
from onelayer.training.results import Results, format_summary
from onelayer.training.schedule import TriangularLR
from tests.support.own import Theirs
from tests.support.small import CLASSES, PIXELS, SmallData, fit, warned

pytestmark = pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")


def trained(folder, model, data=None, callbacks=(), **kwargs):
    """A module trained and tested, and the summary that it leaves."""
    callbacks = [Results(), TriangularLR(0.01, 0.3, step_size=10), *callbacks]
    logger = TensorBoardLogger(folder, name="run")
    fit(folder, model, data, callbacks, kwargs.pop("max_steps", 20), logger=logger, **kwargs)
    model.trainer.test(model, data or SmallData(), verbose=False)
    (path,) = (folder / "run").glob("*/summary.json")
    return model, json.loads(path.read_text())


def by_hand(P, y):
    """Loss and accuracy of mean probabilities (n, k)."""
    loss = -P[torch.arange(len(y)), y].log().mean()
    return {"loss": float(loss), "accuracy": float((P.argmax(1) == y).double().mean())}


def test_the_networks_of_a_l2_are_measured_together_too(tmp_path):
    model = OneLayer(4, l2=[0.0, 0.1], seeds=[0, 1, 2], inputs=PIXELS, classes=CLASSES)
    model, summary = trained(tmp_path, model)
    assert [one["l2"] for one in summary["ensembles"]] == [0.0, 0.1]
    for split in ("val", "test"):
        X, y = SmallData().tensors(split)
        P = model(X).softmax(-1).detach()
        for one, own in zip(summary["ensembles"], (P[:3], P[3:]), strict=True):
            assert one["networks"] == 3
            assert one[split] == pytest.approx(by_hand(own.mean(0), y))


def test_their_figure_stands_beside_the_mean(tmp_path):
    model = OneLayer(4, seeds=[0, 1, 2], inputs=PIXELS, classes=CLASSES)
    _, summary = trained(tmp_path, model)
    _, columns, row, words = format_summary(summary).splitlines()
    assert columns.split()[:7] == ["l2", "seeds", "train", "val", "ensemble", "test", "ensemble"]
    (one,) = summary["ensembles"]
    cells = row.split()
    for split, place in (("val", 8), ("test", 12)):
        assert cells[place] == f"{100 * one[split]['accuracy']:.2f}"
    assert words.startswith("ensemble: accuracy of the mean of the class probabilities")


def test_single_networks_have_no_ensemble(tmp_path):
    model = OneLayer(4, l2=[0.0, 0.1], inputs=PIXELS, classes=CLASSES)
    _, summary = trained(tmp_path, model)
    assert "ensembles" not in summary
    assert "ensemble" not in format_summary(summary)


def test_a_network_that_diverged_is_left_out(tmp_path):
    model = OneLayer(4, seeds=[0, 1, 2], inputs=PIXELS, classes=CLASSES)
    with torch.no_grad():
        model.W2[1].fill_(torch.nan)
    with warned("diverged: member 1"):
        model, summary = trained(tmp_path, model)
    (one,) = summary["ensembles"]
    X, y = SmallData().tensors("test")
    P = model(X).softmax(-1).detach()[[0, 2]].mean(0)
    assert one["networks"] == 2
    assert one["test"] == pytest.approx(by_hand(P, y))


def test_a_foreign_loaders_batches_count_the_same(tmp_path):
    model, data = OneLayer(0, seeds=[0, 1], inputs=6, classes=4), Theirs()
    model, summary = trained(tmp_path, model, data, max_steps=4)
    (one,) = summary["ensembles"]
    for split in ("val", "test"):
        X, y = getattr(data, split).tensors
        P = model(X.flatten(1).float()).softmax(-1).detach().mean(0)
        assert one[split] == pytest.approx(by_hand(P, y))
