"""Weights of the samples: solve, certificate and a layer without a bias, against numpy."""

import numpy as np
import pytest
import torch

from onelayer.core.errors import InputError
from onelayer.core.optimum.certificate import certify
from onelayer.core.optimum.data import Samples
from onelayer.core.optimum.solve import solve
from tests.support.cases import linear_problem as problem

L2 = [0.003, 0.03]
λ = 0.03
LAMBDA = torch.tensor([λ], dtype=torch.float64)
X, y = problem(n=90)
COUNTS = torch.randint(0, 4, (90,), generator=torch.Generator().manual_seed(1))
WEIGHT = COUNTS.double()


def softmax(Z):
    E = np.exp(Z - Z.max(1, keepdims=True))
    return E / E.sum(1, keepdims=True)


def gap_in_numpy(W, b, w, error=None, bias=True):
    """J(W, b) - D(P) with weights, each written out; ``error`` plants a mistake in one of them."""
    X_, y_, W, b, w = (np.asarray(T) for T in (X, y, W[0], b[0], w))
    w = w / (len(w) if error == "mean of the batch" else w.sum())
    plain = np.full_like(w, 1 / len(w))
    Y = np.eye(len(W))[y_]
    loss = -np.log(softmax(X_ @ W.T + b)[np.arange(len(X_)), y_])
    J = ((plain if error == "plain loss" else w) * loss).sum() + λ * (W**2).sum()
    best = b.copy()
    for step in range(300 if bias else 0):  # to Σ G = 0
        P = softmax(X_ @ W.T + best)
        p = w @ P
        S = np.diag(p) - P.T @ (w[:, None] * P)
        best -= np.log(1 + (p - w @ Y) / (w @ Y)) if step < 280 else np.linalg.pinv(S) @ (p - w @ Y)
    P = softmax(X_ @ W.T + best)
    H = -(P * np.log(P)).sum(1)
    A = ((plain if error == "plain G" else w)[:, None] * (P - Y)).T @ X_
    D = ((plain if error == "plain entropy" else w) * H).sum() - (A**2).sum() / (4 * λ)
    return J - D


def network(k=3, d=6):
    g = torch.Generator().manual_seed(5)
    return 0.2 * torch.randn(1, k, d, generator=g).double(), torch.randn(1, k, generator=g).double()


def weighted(bias=True):
    return Samples(X, y, weights=WEIGHT.unsqueeze(0), bias=bias)


def test_the_certificate_is_cost_less_dual_in_numpy():
    W, b = network()
    found = certify(weighted(), W, b, LAMBDA)
    assert float(found.gap) == pytest.approx(gap_in_numpy(W, b, WEIGHT), rel=1e-10)
    optimum = solve(X, y, [λ], 1e-12, weight=WEIGHT).cost
    assert found.cost - found.gap <= optimum <= found.cost


@pytest.mark.parametrize("error", ["mean of the batch", "plain loss", "plain G", "plain entropy"])
def test_a_planted_error_is_another_number(error):
    W, b = network()
    gap = float(certify(weighted(), W, b, LAMBDA).gap)
    assert gap_in_numpy(W, b, WEIGHT, error) != pytest.approx(gap, rel=1e-5)


def test_the_certificate_without_a_bias():
    W, b = network()
    found = certify(weighted(bias=False), W, 0 * b, LAMBDA)
    expected = gap_in_numpy(W, 0 * b, WEIGHT, bias=False)
    assert float(found.gap) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("bias", [True, False])
def test_integer_weights_are_repeated_samples(bias):
    repeated = X.repeat_interleave(COUNTS, 0), y.repeat_interleave(COUNTS)
    ours = solve(X, y, L2, 1e-15, weight=WEIGHT, bias=bias)
    theirs = solve(*repeated, L2, 1e-15, bias=bias)
    assert torch.allclose(ours.cost, theirs.cost, rtol=0, atol=1e-12)
    assert torch.allclose(ours.W, theirs.W, rtol=0, atol=1e-7)  # ‖W - W*‖² ≤ gap / λ
    again = solve(X, y, L2, 1e-15, weight=7 * WEIGHT, bias=bias)
    assert torch.allclose(again.cost, ours.cost, rtol=0, atol=1e-12)


def test_polished_weights_do_not_depend_on_the_start():
    """A start may have a shift of all classes, which no Newton direction changes."""
    first = solve(X, y, λ, 1e-10, weight=WEIGHT, polished=True)
    shifted = first.W + 1e-8, first.b + 3.0
    again = solve(X, y, λ, 1e-10, weight=WEIGHT, polished=True, start=shifted)
    assert torch.allclose(again.W, first.W, rtol=0, atol=1e-13)
    assert torch.allclose(again.b, first.b, rtol=0, atol=1e-12)


def test_weights_of_one_keep_the_optimum():
    plain, ones = (solve(X, y, L2, 1e-14, weight=w) for w in (None, torch.ones(90)))
    assert torch.allclose(plain.cost, ones.cost, rtol=0, atol=1e-13)


def test_a_row_for_each_member():
    rows = torch.stack([WEIGHT, torch.ones(90).double(), WEIGHT])
    path = solve(X, y, [0.01, 0.1, 0.1], 1e-13, weight=rows)
    one = solve(X, y, 0.1, 1e-13, weight=rows[1:])
    for i, (l2, w) in enumerate(zip([0.01, 0.1, 0.1], rows, strict=True)):
        alone = solve(X, y, l2, 1e-13, weight=w)
        assert torch.allclose(path.cost[i], alone.cost[0], rtol=0, atol=1e-12)
    assert torch.allclose(one.cost, path.cost[1:], rtol=0, atol=1e-12)
    assert one.l2.tolist() == [0.1, 0.1]


def test_folds_of_weighted_samples():
    folds = torch.arange(90) % 3
    path = solve(X, y, L2, 1e-13, weight=WEIGHT, folds=folds)
    for i, (l2, fold) in enumerate(zip(path.l2, path.fold, strict=True)):
        alone = solve(X, y, float(l2), 1e-13, weight=WEIGHT * (folds != fold))
        assert torch.allclose(path.cost[i], alone.cost[0], rtol=0, atol=1e-12)


def test_without_a_bias_it_is_scikit_learns():
    linear_model = pytest.importorskip("sklearn.linear_model")
    ours = solve(X, y, λ, 1e-18, weight=WEIGHT, bias=False)
    C = 1 / (2 * λ * float(WEIGHT.sum()))
    theirs = linear_model.LogisticRegression(
        C=C, fit_intercept=False, solver="newton-cholesky", tol=1e-13, max_iter=1000
    ).fit(X.numpy(), y.numpy(), WEIGHT.numpy())
    assert not ours.b.any()
    assert np.allclose(ours.W[0].numpy(), theirs.coef_, rtol=0, atol=1e-7)


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_few_weights_and_every_method(small, bias, monkeypatch):
    """The curvature's subset may miss all samples of a member; Newton's method may be inexact."""
    monkeypatch.setattr("onelayer.core.optimum.descent.CURVATURE_SAMPLES", 10)
    if not small:
        monkeypatch.setattr("onelayer.core.optimum.descent.SMALL", 0)
    few = torch.zeros(90)
    few[[int((y == k).nonzero()[0]) for k in range(3)]] = 1.0
    path = solve(X, y, [1e-3, 1e-3], 1e-14, weight=torch.stack([few, WEIGHT.float()]), bias=bias)
    assert (path.gap <= 1e-14).all()


NEGATIVE, ENDLESS, CLASS = WEIGHT.clone(), WEIGHT.clone(), WEIGHT * (y != 1)
NEGATIVE[3], ENDLESS[3] = -1.0, torch.inf


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"weight": NEGATIVE}, "weight has the value -1.0: weights are .* zero or larger"),
        ({"weight": ENDLESS}, "weight has the value inf"),
        ({"weight": WEIGHT * torch.nan}, "weight has the value nan"),
        ({"weight": 0 * WEIGHT}, "weights of member 0 are all zero"),
        ({"weight": torch.stack([WEIGHT, 0 * WEIGHT])}, "weights of member 1 are all zero"),
        ({"weight": WEIGHT[1:]}, r"weight has shape \(89,\), but there are 90 samples"),
        ({"weight": torch.ones(2, 90), "l2": [0.1, 0.2, 0.3]}, "2 rows, but l2 lists 3"),
        ({"weight": torch.ones(2, 90), "folds": torch.arange(90) % 2}, "folds make members"),
        ({"weight": WEIGHT.numpy()}, "must be a tensor, not a ndarray"),
        ({"weight": CLASS}, "class 1 has no sample with a weight above 0"),
        ({"weight": torch.stack([WEIGHT, WEIGHT, CLASS])}, "class 1 .* for member 2"),
        ({"weight": WEIGHT.to(torch.complex64)}, "complex"),
    ],
)
def test_other_weights_are_refused(arguments, words):
    with pytest.raises(InputError, match=words):
        solve(**{"X": X, "y": y, "l2": 0.1, **arguments})
