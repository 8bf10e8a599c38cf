"""Weights of samples and classes in training: what is minimised, measured, saved and refused."""

import csv
import json

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

from onelayer import load_network, solve
from onelayer.core.errors import InputError
from onelayer.data.arrays import ArraysDataModule
from onelayer.data.loader import epoch_order
from onelayer.training.curves import Curves
from onelayer.training.module import OneLayer
from onelayer.training.optimality import gaps
from onelayer.training.results import Results
from onelayer.training.schedule import TriangularLR
from tests.support.own import arrays
from tests.support.resuming import Case, assert_resumes
from tests.support.small import fit, trainer

D, K = 6, 4
pytestmark = pytest.mark.filterwarnings(
    "ignore:The '.*_dataloader' does not have many workers",
    "ignore:The number of training batches",
    "ignore:You defined a `validation_step` but have no",
    "ignore:.* rows are in the test split and also in the val split",
)


def table(n=160, seed=0):
    """Return X (n, d), y (n,) of classes of unlike size, and weights (n,)."""
    X, y = arrays(n, D, K, seed=seed)
    kept = (y != 3) | (np.arange(n) % 3 == 0)
    X, y = X[kept], y[kept]
    return X, y, np.random.default_rng(seed).uniform(0, 3, len(y))


def module(data=None, **arguments):
    return OneLayer(**{"inputs": D, "classes": K, **arguments})


def of_class(y, given):
    if given == "balanced":
        return 1 / np.bincount(y, minlength=K)[y]
    return np.array([(given or {}).get(str(label), 1.0) for label in y])


def by_hand(data, y, w, l2, steps, smoothing, hidden):
    """Plain SGD with torch's layers; each batch's loss is divided by its number of samples."""
    X = data.tensors("train")[0]
    model = module(hidden=hidden, l2=l2, label_smoothing=smoothing)
    parameters = [p[0].detach().clone().requires_grad_() for p in model.weights]
    per_epoch = -(-len(X) // data.batch_size)
    for t in range(steps):
        epoch, at = divmod(t, per_epoch)
        rows = epoch_order(len(X), data.seed, epoch).split(data.batch_size)[at]
        *first, W, b = parameters
        H = torch.relu(X[rows] @ first[0].T + first[1]) if first else X[rows]
        losses = torch.nn.functional.cross_entropy(
            H @ W.T + b, y[rows], reduction="none", label_smoothing=smoothing
        )
        J = (w[rows] * losses).mean() + l2 * sum((V**2).sum() for V in [W, *first[:1]])
        for p, g in zip(parameters, torch.autograd.grad(J, parameters), strict=True):
            p.data -= 0.1 * g
    return parameters


CLASS_WEIGHTS = [None, "balanced", {"0": 3.0, "2": 0.0}]


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "autograd"])
@pytest.mark.parametrize("hidden", [0, 5])
@pytest.mark.parametrize("class_weight", CLASS_WEIGHTS, ids=["samples", "balanced", "by name"])
def test_training_minimises_the_weighted_cost(tmp_path, fused, hidden, class_weight):
    X, y, v = table()
    data = ArraysDataModule((X, y, v), val_size=0, batch_size=16)
    model = module(
        hidden=hidden, l2=0.01, lr=0.1, label_smoothing=0.1, fused=fused, class_weight=class_weight
    )
    fit(tmp_path, model, data, callbacks=[], max_steps=12)
    w = v * of_class(y, class_weight)
    if class_weight == "balanced":  # counts are those of repeated samples
        w = v / np.bincount(y, v, K)[y]
    w = torch.from_numpy(w / w.mean()).float()
    expected = by_hand(data, torch.from_numpy(y), w, 0.01, 12, 0.1, hidden)
    for ours, wanted in zip(model.weights, expected, strict=True):
        torch.testing.assert_close(ours[0].detach(), wanted.detach(), rtol=1e-4, atol=1e-6)


def test_equal_weights_are_none(tmp_path):
    X, y, _ = table()
    plain = fit(tmp_path, module(), ArraysDataModule((X, y), val_size=0), [], max_steps=12)
    five = np.full(len(y), 5.0)
    for data, given in [((X, y, five), None), ((X, y), dict.fromkeys("0123", 7.0))]:
        same = module(class_weight=given)
        fit(tmp_path, same, ArraysDataModule(data, val_size=0), [], max_steps=12)
        for ours, wanted in zip(same.weights, plain.weights, strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-7)


def test_loss_is_weighted_and_accuracy_is_not(tmp_path):
    metrics = pytest.importorskip("sklearn.metrics")
    (X, y, v), (Xt, yt, vt) = table(), table(100, seed=1)
    data = ArraysDataModule((X, y, v), val=(Xt, yt, vt), test=(Xt + 0, yt, vt))
    model = module(l2=[0.01, 0.1], seeds=[0, 1], class_weight="balanced")
    curves, results = Curves(), Results()
    callbacks = [TriangularLR(0.01, 0.3, step_size=10), curves, results]
    fit(tmp_path, model, data, callbacks, max_steps=20, logger=True)
    (tested,) = model.trainer.test(model, datamodule=data, verbose=False)

    Z = model(data.tensors("val")[0]).detach().double()
    labels = torch.from_numpy(yt)
    w = torch.from_numpy(vt) * model.class_weights.double()[labels]
    for i, member in enumerate(results.summary["members"]):
        losses = torch.nn.functional.cross_entropy(Z[i], labels, reduction="none")
        guessed = Z[i].argmax(1).numpy()
        expected = {
            "loss": float((w * losses).sum() / w.sum()),
            "accuracy": float((guessed == yt).mean()),
            "balanced_accuracy": metrics.balanced_accuracy_score(yt, guessed),
        }
        for split in ("val", "test"):
            assert member[split] == pytest.approx(
                {**expected, "cost": member[split]["cost"]}, rel=1e-5
            )
            penalty = member["l2"] * float(model.weights[0][i].detach().square().sum())
            assert member[split]["cost"] == pytest.approx(expected["loss"] + penalty, rel=1e-5)
    assert tested["test/balanced_accuracy"] == pytest.approx(
        float(np.mean([m["test"]["balanced_accuracy"] for m in _best(model, results)])), rel=1e-6
    )
    assert results.summary["ensembles"][0]["test"].keys() == {
        "loss", "accuracy", "balanced_accuracy"
    }  # fmt: skip
    assert "balanced accuracy in %" in str(results)
    assert max(map(len, str(results).splitlines())) <= 80
    folder = tmp_path / "lightning_logs" / "version_0"
    with (folder / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(0 <= float(row["balanced_accuracy"]) <= 1 for row in rows)
    kept = json.loads((folder / "summary.json").read_text())
    assert kept["members"][0]["val"]["balanced_accuracy"] > 0


def _best(model, results):
    return [results.summary["members"][m] for m in model.choose("best").members]


def test_curves_have_no_balanced_accuracy_without_class_weights(tmp_path):
    X, y, v = table()
    curves = Curves()
    data = ArraysDataModule((X, y, v))
    fit(tmp_path, module(), data, [curves], max_steps=8, logger=True)
    head = (tmp_path / "lightning_logs/version_0/curves.csv").read_text().splitlines()[0]
    assert head == "step,split,member,l2,seed,lr,cost,loss,accuracy"


def test_a_checkpoint_keeps_the_class_weights(tmp_path):
    X, y, v = table()
    data = ArraysDataModule((X, y, v))
    model = module(class_weight={"1": 4})
    fit(tmp_path, model, data, [TriangularLR(0.01, 0.3, step_size=5)], max_steps=10)
    model.trainer.save_checkpoint(tmp_path / "a.ckpt")
    network = load_network(tmp_path / "a.ckpt")
    X_, y_ = data.tensors("val")
    weight = data.sample_weights("val")
    assert network.class_weight == {"1": 4}
    for name, value in model.evaluate(X_, y_, weight).items():
        assert torch.equal(network.evaluate(X_, y_, weight)[name], value)


@pytest.mark.filterwarnings("ignore:training stops in mid-cycle")
def test_a_resumed_run_with_weights_has_the_same_bits(tmp_path):
    X, y, v = table()

    case = Case(
        lambda: {"datamodule": ArraysDataModule((X, y, v), batch_size=16)},
        {"inputs": D, "classes": K, "class_weight": "balanced", "seeds": [0, 1]},
        lambda folder: [
            TriangularLR(0.01, 0.3, step_size=5),
            ModelCheckpoint(folder / "kept", every_n_train_steps=7, save_top_k=-1),
        ],
    )
    assert_resumes(case, tmp_path, {"max_steps": 20})


def test_other_weights_are_other_data(tmp_path):
    X, y, v = table()
    model = fit(tmp_path, module(), ArraysDataModule((X, y, v)), [], max_steps=5)
    model.trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(InputError, match="rows is"):
        fit(tmp_path, module(), ArraysDataModule((X, y, v + 1)), [], ckpt_path=tmp_path / "a.ckpt")


@pytest.mark.parametrize("class_weight", CLASS_WEIGHTS[:2], ids=["samples", "balanced"])
def test_the_certificate_is_that_of_the_weighted_cost(tmp_path, class_weight):
    X, y, v = table()
    data = ArraysDataModule((X, y, v), val_size=0)
    model = module(l2=0.05, class_weight=class_weight)
    fit(tmp_path, model, data, [], max_steps=1)
    X_, y_ = data.tensors("train")
    weight = model.sample_weight(y_, data.sample_weights("train"))
    best = solve(X_, y_, 0.05, 1e-8, weight=weight)
    with torch.no_grad():
        model.weights[0].copy_(best.W)
        model.weights[1].copy_(best.b)
    cost, gap = gaps(model, data)
    assert float(gap) < 1e-6
    assert float(cost) == pytest.approx(float(best.cost), abs=1e-6)
    assert float(cost) == pytest.approx(float(model.evaluate(X_, y_, weight=data.sample_weights(
        "train"))["cost"]), abs=1e-6)  # fmt: skip


class Triples(LightningDataModule):
    """Any data module whose batches are (X, y, weight)."""

    def __init__(self, *tensors):
        super().__init__()
        self.tensors_of = tensors

    def train_dataloader(self):
        return DataLoader(TensorDataset(*self.tensors_of), batch_size=16)

    val_dataloader = train_dataloader


def test_batches_of_any_loader_may_have_weights(tmp_path):
    X, y, v = table()
    X, y, w = torch.from_numpy(X).float(), torch.from_numpy(y), torch.from_numpy(v / v.mean())
    model = module(lr=0.1)
    fit(tmp_path, model, Triples(X, y, w.float()), [], max_steps=5)
    expected = module(lr=0.1)
    for rows in torch.arange(len(y)).split(16)[:5]:
        J = expected.cost(X[rows], y[rows], weight=w[rows].float()).sum()
        for p, g in zip(expected.weights, torch.autograd.grad(J, expected.weights), strict=True):
            p.data -= 0.1 * g
    for ours, wanted in zip(model.weights, expected.weights, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-7)
    with pytest.raises(InputError, match=r"third item must be the weights .* not torch.int64"):
        fit(tmp_path, module(), Triples(X, y, y), [], max_steps=1)
    with pytest.raises(InputError, match="weight has the value -1"):
        fit(tmp_path, module(), Triples(X, y, torch.full((len(y),), -1.0)), [], max_steps=1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("balance", "must be balanced, or a mapping"),
        ({}, "must be balanced, or a mapping"),
        ({"0": -1}, "class_weight of 0 must be a finite number >= 0, not -1"),
        ({"0": float("nan")}, "class_weight of 0 must be a finite number"),
        ({"cat": 2}, "has the class 'cat', which is none of 0, 1, 2, 3"),
        (dict.fromkeys("0123", 0), "gives every training sample weight 0"),
    ],
)
def test_class_weights_that_mean_nothing_are_refused(tmp_path, given, message):
    X, y, _ = table()
    with pytest.raises(InputError, match=message):
        fit(tmp_path, module(class_weight=given), ArraysDataModule((X, y)), [], max_steps=1)


def test_class_weights_need_the_training_labels(tmp_path):
    X, y, _ = table()
    X, y = torch.from_numpy(X).float(), torch.from_numpy(y)
    model = module(class_weight="balanced", lr=0.1)
    loader = DataLoader(TensorDataset(X, y), batch_size=16)
    with pytest.raises(InputError, match="needs the labels of the training split"):
        trainer(tmp_path, 2).fit(model, loader)
    model.learn_class_weights(y)
    trainer(tmp_path, 2).fit(model, loader)
    assert float(model.class_weights[y].mean()) == pytest.approx(1, rel=1e-6)
