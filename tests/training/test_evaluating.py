"""trainer.validate and trainer.test: other data, several loaders, what they return and leave."""

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

from onelayer.core.errors import InputError
from onelayer.data.arrays import ArraysDataModule
from onelayer.data.cifar10 import CIFAR10DataModule
from onelayer.training.curves import Curves
from onelayer.training.module import OneLayer
from onelayer.training.results import Results
from onelayer.training.schedule import TriangularLR
from tests.support.own import arrays
from tests.support.small import SmallData, fit, trainer, warned

pytestmark = pytest.mark.filterwarnings(
    "ignore:The '.*_dataloader' does not have many workers",
    "ignore:The number of training batches",
    "ignore:Be aware that when using `ckpt_path`",
    "ignore:You defined a `validation_step` but have no",
    "ignore:training stops in mid-cycle",
)
SIZES = {"inputs": 6, "classes": 4}


def rows(n=120, scale=1.0, shift=0.0, seed=0):
    X, y = arrays(n, seed=seed)
    return scale * X + shift, y


def trained(tmp_path, data, callbacks=()):
    model = OneLayer(**SIZES)
    callbacks = [TriangularLR(0.01, 0.3, step_size=10), *callbacks]
    return fit(tmp_path, model, data, callbacks, max_steps=20)


# ---- tensors that are kept


@pytest.mark.parametrize("kind", ["cifar", "arrays"])
def test_data_that_an_evaluation_has_made_ready_can_be_differentiated_through(tmp_path, kind):
    data = ArraysDataModule(rows(), test=rows(40, seed=1))
    if kind == "cifar":
        data = CIFAR10DataModule(source="synthetic", limit=20, val_size=200)
    d, k = data.shape, len(data.classes)
    model = OneLayer(inputs=int(torch.Size(d).numel()), classes=k)
    run = trainer(tmp_path)
    run.test(model, datamodule=data, verbose=False)
    run.validate(model, datamodule=data, verbose=False)
    for split in ("test", "val", "train"):
        X, y = data.tensors(split)
        assert not X.is_inference()
        assert not y.is_inference()
        model.cost(X, y).sum().backward()
        torch.nn.Linear(X.shape[1], k)(X).sum().backward()
    assert not data.statistics.mean.is_inference()


# ---- what trainer.test returns


def test_trainer_test_returns_the_same_figures_with_results_as_without(tmp_path, capfd):
    found = []
    for callbacks in ([], [Results()]):
        data = ArraysDataModule(rows(), test=rows(40, seed=1), batch_size=20)
        model = trained(tmp_path, data, callbacks)
        found += model.trainer.test(model, datamodule=data)
        assert "test/accuracy" in capfd.readouterr().out
    assert found[0] == found[1]
    assert set(found[0]) == {"test/cost", "test/loss", "test/accuracy"}


# ---- other data than those that were trained on


def test_a_network_is_tested_by_its_own_mean_and_deviation(tmp_path):
    test = rows(80, seed=1)
    data = ArraysDataModule(rows(), test=test, batch_size=20)
    model = trained(tmp_path, data)
    model.trainer.save_checkpoint(tmp_path / "a.ckpt")
    right = trainer(tmp_path).test(model, datamodule=data, verbose=False)
    for arguments in ({}, {"ckpt_path": tmp_path / "a.ckpt"}):
        other = ArraysDataModule(rows(scale=9.0, shift=30.0), test=test, batch_size=20)
        found = trainer(tmp_path).test(model, datamodule=other, verbose=False, **arguments)
        assert found == right
        assert trainer(tmp_path).test(model, datamodule=data, verbose=False) == right


def test_rows_alone_are_tested_and_predicted_by_a_network_in_memory(tmp_path):
    X, y = rows(80, seed=1)
    data = ArraysDataModule(rows(), test=(X, y), batch_size=20, standardise="unit")
    model = trained(tmp_path, data)
    right = trainer(tmp_path).test(model, datamodule=data, verbose=False)
    np.savez(tmp_path / "new.npz", X=X)
    other = ArraysDataModule(test=(X, y))
    assert trainer(tmp_path).test(model, datamodule=other, verbose=False) == right
    new = ArraysDataModule(predict=str(tmp_path / "new.npz"))
    P = trainer(tmp_path).predict(model, datamodule=new)[0]
    assert torch.allclose(P, model.predict_proba(data.tensors("test")[0]))


@pytest.mark.parametrize("way", ["test", "validate"])
def test_data_of_another_class_that_are_standardised_otherwise_are_refused(tmp_path, way):
    model = trained(tmp_path, ArraysDataModule(rows(), test=rows(40, seed=1), batch_size=20))
    model.trainer.save_checkpoint(tmp_path / "a.ckpt")
    other = SmallData()
    other.classes = ("a", "b", "c", "d")
    other.splits = {name: type(part)(part.x[:, :6], part.y) for name, part in other.splits.items()}
    other.statistics = type(other.statistics)(other.statistics.mean[:6], other.statistics.std[:6])
    for arguments in ({}, {"ckpt_path": tmp_path / "a.ckpt"}):
        with pytest.raises(InputError, match="but the network was trained with others"):
            getattr(trainer(tmp_path), way)(model, datamodule=other, verbose=False, **arguments)


def test_a_network_that_was_never_trained_is_tested_on_any_data(tmp_path):
    model = OneLayer(**SIZES)
    for scale in (1.0, 9.0):
        data = ArraysDataModule(rows(scale=scale), test=rows(40, scale, seed=1))
        trainer(tmp_path).test(model, datamodule=data, verbose=False)


# ---- several loaders


def loader(seed, wrong=False):
    X, y = arrays(60, seed=seed)
    y = 3 - y if wrong else y
    return DataLoader(TensorDataset(torch.from_numpy(X), torch.from_numpy(y)), batch_size=20)


class Several(LightningDataModule):
    """Two loaders to validate and to test, as a list or a dict; the second has wrong labels."""

    def __init__(self, kind=list):
        super().__init__()
        self.kind = kind

    def made(self):
        pair = [loader(1), loader(2, wrong=True)]
        return pair if self.kind is list else {"one": pair[0], "two": pair[1]}

    def train_dataloader(self):
        return loader(0)

    val_dataloader = test_dataloader = made


@pytest.mark.parametrize("kind", [list, dict])
def test_of_several_loaders_the_first_gives_the_figures_and_each_is_logged(tmp_path, kind):
    results, curves = Results(), Curves()
    with warned("there are several val loaders"):
        model = trained(tmp_path, Several(kind), [results, curves])
    with warned("there are several test loaders"):
        found = model.trainer.test(model, datamodule=Several(kind), verbose=False)
    measured = {
        seed: model.evaluate_batches(loader(seed, wrong))["accuracy"].item()
        for seed, wrong in ((1, False), (2, True))
    }
    assert measured[1] > 0.8 > 0.2 > measured[2]
    for returned in found:
        assert returned["test/accuracy"] == measured[1]
        assert returned["test/accuracy/dataloader_idx_1"] == measured[2]
    [member] = results.summary["members"]
    assert member["val"]["accuracy"] == member["test"]["accuracy"] == measured[1]
    assert results.report["samples"] == 60
    assert results.report["accuracy"] == measured[1]
    assert [row.accuracy for row in curves.rows if row.split == "val"][-1] == measured[1]
    with warned("there are several val loaders"):
        metrics = model.trainer.validate(model, datamodule=Several(kind), verbose=False)[0]
    assert metrics["val/accuracy/dataloader_idx_1"] == measured[2]


def test_several_training_loaders_are_refused_before_the_first_update(tmp_path):
    class Both(Several):
        def train_dataloader(self):
            return self.made()

        def val_dataloader(self):
            return loader(1)

    for kind in (list, dict):
        with pytest.raises(InputError, match="returns 2 loaders"):
            trained(tmp_path, Both(kind))
        model, run = OneLayer(**SIZES), trainer(tmp_path)
        with pytest.raises(InputError, match="a batch must be a pair"):
            run.fit(model, Both(kind).made())
        assert run.global_step == 0


# ---- loaders without a data module


@pytest.mark.parametrize("steps", [6, 7])
def test_loaders_without_a_data_module_leave_validations_figures_or_the_reason(tmp_path, steps):
    results = Results()
    model = OneLayer(**SIZES)
    callbacks = [TriangularLR(0.01, 0.3, step_size=1), results]
    run = trainer(tmp_path, steps, callbacks)
    run.fit(model, loader(0), loader(1))
    [member] = results.summary["members"]
    if steps == 6:  # two epochs: Lightning has validated after the last update
        figures = model.evaluate_batches(loader(1))
        assert member["val"] == pytest.approx({k: float(v[0]) for k, v in figures.items()})
        assert "train not measured" in str(results)
    else:
        assert "val" not in member
        assert "train and val not measured" in str(results)
    [found] = run.test(model, loader(1), verbose=False)
    assert found["test/accuracy"] == results.summary["members"][0]["test"]["accuracy"]


def test_a_network_of_other_features_says_how_to_make_it(tmp_path):
    run = trainer(tmp_path)
    with pytest.raises(InputError, match=r"(?s)have 6 features.*inputs=6"):
        run.fit(OneLayer(), loader(0))


@pytest.mark.filterwarnings("ignore")
def test_a_compiled_training_step_is_not_compiled_for_each_update(tmp_path):
    torch._dynamo.reset()
    model = OneLayer(**SIZES)
    run = trainer(tmp_path, 30, [TriangularLR(0.01, 0.3, step_size=15)])
    names = ("fail_on_recompile_limit_hit", "fail_on_cache_limit_hit")  # the latter in torch 2.6
    strict = next(name for name in names if hasattr(torch._dynamo.config, name))
    with torch._dynamo.config.patch({strict: True}):
        compiled = torch.compile(model, backend="eager")
        run.fit(compiled, datamodule=ArraysDataModule(rows(), batch_size=27))
    assert run.global_step == 30
