"""The gradient check passes as it is, and catches every error that we can plant."""

import pytest
import torch

from onelayer.core import autograd, formulas
from onelayer.core.gradcheck import BOUNDS, check_gradients, comparable_parameters, relative_error


@pytest.fixture
def batch():
    g = torch.Generator().manual_seed(0)
    X = torch.randn(20, 12, dtype=torch.float64, generator=g)
    return X, torch.randint(10, (20,), generator=g)


def failed(batch):
    checks = check_gradients(*batch, hidden=6, members=(1, 2))
    return {(c.network, c.members, c.parameter) for c in checks if not c.passed}


def test_every_parameter_of_both_networks_passes_every_judge(batch):
    checks = check_gradients(*batch, hidden=6, members=(1, 2))
    assert [c for c in checks if not c.passed] == []
    plain, both = (1, 2), (2,)
    networks = {
        "linear": (["W", "b"], plain),
        "linear, s=0.1": (["W", "b"], both),
        "hidden 6": (["W1", "b1", "W2", "b2"], plain),
        "hidden 6, p=0.2, s=0.1": (["W1", "b1", "W2", "b2"], both),
        "linear, weighted": (["W", "b"], both),
        "hidden 6, weighted": (["W1", "b1", "W2", "b2"], both),
    }
    assert {(c.network, c.members, c.parameter, c.judge) for c in checks} == {
        (network, m, name, judge)
        for network, (names, sizes) in networks.items()
        for m in sizes
        for name, judges in [*((n, BOUNDS) for n in names), ("all", ["torch gradcheck"])]
        for judge in judges
    }


def test_dropped_one_over_n(batch, monkeypatch):
    right = formulas.residual
    monkeypatch.setattr(formulas, "residual", lambda Z, y, n, *rest: right(Z, y, 1, *rest))
    assert {("linear", 1, "W"), ("hidden 6", 1, "W1"), ("linear", 2, "all")} <= failed(batch)


def test_lambda_for_two_lambda(batch, monkeypatch):
    right = formulas.weight_gradient
    monkeypatch.setattr(formulas, "weight_gradient", lambda D, A, W, l2: right(D, A, W, l2 / 2))
    assert {("linear", 1, "W"), ("hidden 6", 1, "W1"), ("hidden 6", 1, "W2")} <= failed(batch)


def test_penalised_bias(batch, monkeypatch):
    monkeypatch.setattr(formulas, "bias_gradient", lambda D, b: D.sum(1) + 0.2 * b)
    assert {("linear", 1, "b"), ("hidden 6", 1, "b1"), ("hidden 6", 1, "b2")} <= failed(batch)


@pytest.mark.parametrize(
    "mask", [lambda D, H: D * (H >= 0), lambda D, H: D], ids=["mask H >= 0", "no mask"]
)
def test_wrong_mask(batch, monkeypatch, mask):
    monkeypatch.setattr(formulas, "relu_mask", mask)
    assert {("hidden 6", 1, "W1"), ("hidden 6", 1, "b1")} <= failed(batch)
    assert not any(network.startswith("linear") for network, *_ in failed(batch))


def test_dropped_units_get_a_gradient(batch, monkeypatch):
    right = formulas.residuals
    monkeypatch.setattr(formulas, "residuals", lambda G, inputs, ps, mask: right(G, inputs, ps))
    assert {network for network, *_ in failed(batch)} == {"hidden 6, p=0.2, s=0.1"}


def test_labels_left_as_they_are(batch, monkeypatch):
    right = formulas.residual
    monkeypatch.setattr(formulas, "residual", lambda Z, y, n, s, w: right(Z, y, n, 0.0, w))
    assert {network for network, *_ in failed(batch)} == {
        "linear, s=0.1",
        "hidden 6, p=0.2, s=0.1",
    }


@pytest.mark.parametrize(
    "wrong",
    [lambda w: None, lambda w: w.mean(0), lambda w: w / w.max(-1, keepdim=True).values],
    ids=["ignored", "of all members", "another total"],
)
def test_wrong_weights(batch, monkeypatch, wrong):
    right = formulas.residual

    def residual(Z, y, n, s, w):
        return right(Z, y, n, s, w if w is None else wrong(w))

    monkeypatch.setattr(formulas, "residual", residual)
    assert {network for network, *_ in failed(batch)} == {"linear, weighted", "hidden 6, weighted"}


def test_members_averaged_instead_of_summed(batch, monkeypatch):
    right = formulas.residual
    monkeypatch.setattr(formulas, "residual", lambda Z, *rest: right(Z, *rest) / len(Z))
    found = failed(batch)
    assert {("linear", 2, "W"), ("hidden 6", 2, "W1")} <= found
    assert not any(members == 1 for _, members, _ in found)


def test_upstream_gradient_ignored(batch, monkeypatch):
    right = autograd._SoftmaxCost.backward
    backward = staticmethod(lambda ctx, upstream: right(ctx, torch.ones_like(upstream)))
    monkeypatch.setattr(autograd._SoftmaxCost, "backward", backward)
    assert {("linear", 1, "W"), ("hidden 6", 2, "W1")} <= failed(batch)


def test_points_compared_are_away_from_the_kink(batch):
    X, y = batch
    parameters = comparable_parameters(X, y, 6, 0.1, torch.Generator().manual_seed(1))
    before = X @ parameters["W1"].T + parameters["b1"]
    assert before.abs().min() >= 1e-3
    assert (before < 0).any()


def test_relative_error_is_the_reports():
    a, b = torch.tensor([1.0, 0.0, 1e-12]), torch.tensor([3.0, 0.0, 0.0])
    assert relative_error(a, b) == 0.5
    assert relative_error(a[1:], b[1:]) == pytest.approx(1e-3)
