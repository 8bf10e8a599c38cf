"""Ensembles: figures of mean probabilities, against means by hand."""

import json

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from onelayer.__main__ import main
from onelayer.core.errors import InputError
from onelayer.training.module import OneLayer
from onelayer.training.results import Results
from onelayer.training.schedule import TriangularLR
from onelayer.training.summary import format_split, format_summary
from tests.support.own import Theirs, arrays
from tests.support.small import CLASSES, PIXELS, SmallData, fit, warned

pytestmark = pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")


def trained(folder, model, data=None, results=None, **kwargs):
    """A module trained and tested, and the summary that it leaves."""
    callbacks = [results or Results(), TriangularLR(0.01, 0.3, step_size=10)]
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
    _, columns, _, row, error, words = format_summary(summary).splitlines()
    assert error == "±: standard deviation over seeds"
    assert columns.split()[:5] == ["l2", "seeds", "train", "val", "test"]
    (one,) = summary["ensembles"]
    accuracies = [f"{100 * one[split]['accuracy']:.2f}" for split in ("val", "test")]
    loss = f"{one['val']['loss']:.4f}"
    assert row.split() == ["ensemble", "-", *accuracies, "-", loss]
    assert words == "ensemble: mean class probabilities of a λ's networks"


@pytest.mark.parametrize("steps", [[], [200, 400]])
def test_the_widest_table_fits_80_columns(steps):
    """Ten seeds, diverged ones, snapshots and accuracies of 100 %."""
    figures = {"cost": 12.5, "loss": 12.5, "accuracy": 1.0}
    members = [
        {"l2": 6.31e-05, "seed": seed, **({"step": 400} if steps else {}),
         **{split: {**figures, "accuracy": seed % 2} for split in ("train", "val", "test")}}
        for seed in range(10)
    ]  # fmt: skip
    members[3]["diverged"] = True
    ensembles = [
        {"l2": 6.31e-05, **more, "val": figures, "test": figures}
        for more in ({}, {"snapshots": steps})
    ]
    summary = {"dataset": "cifar10", "hidden": 50, "steps": 19200, "seconds": 1234.5,
               "members": members, "ensembles": ensembles}  # fmt: skip
    lines = format_summary(summary).splitlines()
    assert "diverged and left out: 1 of l2 = 6.31e-05" in lines
    lines += format_split(members, "test", ensembles).splitlines()
    assert max(map(len, lines)) <= 80


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


SHAPE = (1, 3, 4)


class Images(SmallData):
    """The same rows, as images of three lines of four pixels."""

    shape = SHAPE


def both_ways(model, X):
    """Each network's probabilities (m, n, k), the mean over rows X and their mirror images."""
    flipped = X.reshape(-1, *SHAPE)[..., [3, 2, 1, 0]].reshape(len(X), -1)
    return (model(X).softmax(-1) + model(flipped).softmax(-1)).detach() / 2


@pytest.mark.parametrize("seeds", [0, [0, 1]])
def test_mirror_images_join_the_ensemble_and_leave_single_figures_alone(tmp_path, seeds):
    model = OneLayer(4, seeds=seeds, inputs=PIXELS, classes=CLASSES)
    report = Results(mirror=True)
    model, summary = trained(tmp_path, model, Images(), results=report)
    (one,) = summary["ensembles"]
    assert one["mirror"] is True
    for split in ("val", "test"):
        X, y = Images().tensors(split)
        assert one[split] == pytest.approx(by_hand(both_ways(model, X).mean(0), y))
        singly = model.evaluate(X, y)["accuracy"].tolist()
        assert [member[split]["accuracy"] for member in summary["members"]] == singly
    assert report.report["networks"].endswith(", over each image and its mirror image")
    assert report.report["accuracy"] == pytest.approx(one["test"]["accuracy"])
    assert "over images and their mirror images" in format_summary(summary)


def test_predictions_take_mirror_images_too(tmp_path):
    model = OneLayer(4, seeds=[0, 1], inputs=PIXELS, classes=CLASSES)
    X, _ = Images().tensors("test")
    expected = both_ways(model, X)
    torch.testing.assert_close(model.predict_proba(X, mirror=SHAPE), expected.mean(0))
    torch.testing.assert_close(model.predict_proba(X, 1, mirror=SHAPE), expected[1])
    with pytest.raises(InputError, match="only images can be flipped"):
        model.predict_proba(X, mirror=(3, 4))


def test_what_is_no_image_has_no_mirror_image(tmp_path, capfd):
    X, y = arrays()
    np.savez("rows.npz", X=X, y=y)
    fit = ["fit", "--data", "onelayer.ArraysDataModule", "--data.train", "rows.npz"]
    assert main([*fit, "--trainer.max_steps=2", "--test.mirror=true"]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "only images can be flipped" in line
    assert "(6,)" in line
    assert not (tmp_path / "lightning_logs").exists()


def test_the_command_line_tests_and_predicts_with_mirror_images(tmp_path, capfd):
    small = ["--data.source=synthetic", "--data.limit=60", "--data.val_size=50"]
    fit = ["fit", *small, "--data.batch_size=10", "--schedule.step_size=5"]
    assert main([*fit, "--model.hidden=3", "--test.mirror=true"]) == 0
    out, _ = (line for line in capfd.readouterr().out.splitlines() if "ensemble" in line)
    run = tmp_path / "lightning_logs" / "fit" / "version_0"
    kept = json.loads((run / "summary.json").read_text())["ensembles"][0]["test"]["accuracy"]
    again = ["--ckpt_path", str(run), "--test.mirror", "true"]
    assert main(["test", *again]) == 0
    printed = capfd.readouterr().out
    assert out.split()[3] == f"{100 * kept:.2f}"
    assert f" ensemble        {100 * kept:.2f} " in printed
    np.savez("bytes.npz", X=np.zeros((3, 3072), np.uint8))
    assert main(["predict", *again, "--data.predict", "bytes.npz"]) == 0
    assert "seed=0), over each image and its mirror image: pred" in capfd.readouterr().out
