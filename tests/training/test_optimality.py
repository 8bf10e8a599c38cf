"""How far a training stopped from the optimum."""

import pytest
import torch

from onelayer import OneLayer, TriangularLR, solve
from onelayer.training.optimality import format_gaps, gaps
from tests.support.small import CLASSES, PIXELS, SmallData, trainer


def test_the_gap_of_a_training_is_above_what_the_optimum_leaves(tmp_path):
    data = SmallData()
    model = OneLayer(l2=[0.0, 0.05], inputs=PIXELS, classes=CLASSES)
    trainer(tmp_path, 40, [TriangularLR(step_size=20, cycles=1)]).fit(model, datamodule=data)
    cost, gap = gaps(model, data)
    assert cost[0].isnan()
    assert gap[0].isnan()
    X, y = data.tensors("train")
    left = cost[1] - solve(X, y, [0.05], 1e-9).cost
    assert float(cost[1]) == pytest.approx(float(model.evaluate(X, y)["cost"][1]), rel=1e-5)
    assert 1e-6 < left <= gap[1]
    words = format_gaps(model, data)
    assert "over the training split" in words
    assert "none of l2 = 0" in words
    assert f"{float(gap[1]):.1e}" in words


def test_a_network_that_learned_from_more_is_judged_by_more():
    data = SmallData()
    (X, y), (X_, y_) = data.tensors("train"), data.tensors("val")
    path = solve(torch.cat([X, X_]), torch.cat([y, y_]), [0.05])
    model = OneLayer(l2=0.05, inputs=PIXELS, classes=CLASSES)
    model.W.data, model.b.data = path.W.float(), path.b.float()
    assert gaps(model, data)[1] > 1e-4
    model.learned_from = ["train", "val"]
    assert gaps(model, data)[1] <= 1e-6
    assert "training and validation" in format_gaps(model, data)


def test_what_has_no_certificate_is_told_in_words():
    data = SmallData()
    data.splits["train"].y.clamp_(max=1)
    model = OneLayer(l2=0.05, inputs=PIXELS, classes=CLASSES)
    assert "unknown (class 2 has no sample" in format_gaps(model, data)
    model.W.data.fill_(torch.nan)
    assert "diverged" in format_gaps(model, SmallData())
