"""A cost that is NaN or infinite: named, marked, and the end of a training of that one network."""

import csv
import json
import warnings

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from onelayer.core.errors import DivergedError
from onelayer.study.figures import read_rows, title_of
from onelayer.training.checkpoint import read_checkpoint
from onelayer.training.curves import Curves
from onelayer.training.divergence import Divergence
from onelayer.training.folder import LAST
from onelayer.training.module import OneLayer
from onelayer.training.results import Results
from onelayer.training.saving import Checkpoints
from onelayer.training.schedule import TriangularLR
from onelayer.training.summary import format_summary
from tests.support.small import CLASSES, PIXELS, SmallData, fit, warned

SMALL = {"inputs": PIXELS, "classes": CLASSES}
TOO_HIGH = {"base_lr": 1e-3, "max_lr": 1e9, "step_size": 40}


def test_a_single_network_stops_and_its_last_good_checkpoint_stays(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="run", default_hp_metric=False)
    callbacks = [TriangularLR(**TOO_HIGH), Curves(per_cycle=8), Checkpoints(every=1)]
    model = OneLayer(4, l2=0.5, seeds=3, **SMALL)
    with pytest.raises(DivergedError) as caught:
        fit(tmp_path, model, callbacks=callbacks, max_steps=80, logger=logger)
    checkpoint = tmp_path / "run" / "version_0" / "checkpoints" / LAST
    first, *rest = str(caught.value).splitlines()
    assert "member 0 (l2=0.5, seed=3): its train cost is " in first
    assert "after update 10, at learning rate 2.5e+08" in first
    assert "after update 0 it was" in first
    assert rest[-1] == f"The last good checkpoint is kept: {checkpoint}"
    content = read_checkpoint(checkpoint)
    assert 0 < content["global_step"] < 10
    assert all(w.isfinite().all() for w in content["state_dict"].values())


def test_a_network_that_ends_far_above_its_start_is_warned_about_though_finite(tmp_path):
    model = OneLayer(4, l2=[0.0, 0.1], seeds=3, **SMALL)
    high = TriangularLR(base_lr=1e-3, max_lr=1000.0, step_size=2)
    with warned("member 0 (l2=0, seed=3) has blown up: its train cost was "):
        fit(tmp_path, model, callbacks=[high], max_steps=2)
    low = TriangularLR(base_lr=1e-3, max_lr=0.01, step_size=2)
    fit(tmp_path, OneLayer(4, seeds=3, **SMALL), callbacks=[low], max_steps=4)  # warnings fail


@pytest.fixture
def population(tmp_path):
    """A run whose first member diverges at once, and that is measured to the end."""
    model = OneLayer(4, l2=[0.0, 0.1], seeds=[0, 1], **SMALL)
    with torch.no_grad():
        model.weights[0][0] = float("nan")
    logger = TensorBoardLogger(tmp_path, name="run", default_hp_metric=False)
    results = Results()
    with warned("diverged: member 0 (l2=0, seed=0)"):
        fit(tmp_path, model, callbacks=[TriangularLR(step_size=10), results], max_steps=20,
            logger=logger)  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.trainer.test(model, SmallData(), verbose=False)
    return tmp_path / "run" / "version_0", results, model


def test_a_population_goes_on_and_marks_the_one_that_diverged(population):
    folder, results, _ = population
    summary = json.loads((folder / "summary.json").read_text())
    assert summary == results.summary
    assert [m.get("diverged", False) for m in summary["members"]] == [True, False, False, False]
    assert summary["members"][0]["test"]["cost"] is None
    table = format_summary(summary).splitlines()
    assert "1/2" in table[2]
    assert "diverged and left out: 1 of l2 = " in table[-2]
    assert "diverged" not in table[3]
    assert "nan" not in "\n".join(table)
    rows = read_rows(folder / "curves.csv")
    assert "each mean ± std of 2 seeds, training dashed, 1 diverged" in title_of(
        rows, "small", "run"
    )
    with (folder / "curves.csv").open() as file:
        assert {row["cost"] for row in csv.DictReader(file) if row["member"] == "0"} == {"nan"}


def test_what_is_monitored_is_of_the_l2_of_which_none_diverged(population):
    _, results, model = population
    costs = [member["test"]["cost"] for member in results.summary["members"][2:]]
    assert float(model.trainer.callback_metrics["test/cost"]) == pytest.approx(sum(costs) / 2)


def test_what_is_predicted_is_the_mean_of_those_that_did_not_diverge(population):
    *_, model = population
    X, _ = SmallData().tensors("test")
    P = model(X).softmax(-1)
    assert torch.allclose(model.predict_proba(X, "all"), P[1:].mean(0))
    assert torch.allclose(model.predict_proba(X), P[2:].mean(0))


def test_all_may_diverge_where_nobody_wants_to_stop(tmp_path):
    curves = Curves(per_cycle=8)
    callbacks = [TriangularLR(**TOO_HIGH), curves, Divergence(stop=False)]
    model = fit(tmp_path, OneLayer(4, **SMALL), callbacks=callbacks, max_steps=80)
    assert model.trainer.global_step == 80
    assert not torch.tensor([row.cost for row in curves.rows[-2:]]).isfinite().any()
