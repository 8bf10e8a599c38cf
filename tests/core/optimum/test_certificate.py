"""The certificate against numpy, and against a twin of it that is wrong on purpose."""

import numpy as np
import pytest
import torch

from onelayer.core.errors import InputError
from onelayer.core.optimum.certificate import certify
from onelayer.core.optimum.data import Samples
from onelayer.core.optimum.solve import solve

λ = 0.03
LAMBDA = torch.tensor([λ], dtype=torch.float64)


def problem(n=60, d=5, k=3, seed=0):
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(n, d, generator=g, dtype=torch.float64) + 1
    y = (X[:, :k] + torch.randn(n, k, generator=g, dtype=torch.float64)).argmax(1)
    W, b = torch.randn(1, k, d, generator=g).double(), torch.randn(1, k, generator=g).double()
    return X, y, W, b


def softmax(Z):
    E = np.exp(Z - Z.max(1, keepdims=True))
    return E / E.sum(1, keepdims=True)


def gap_in_numpy(X, y, W, b, error=None):
    """J(W, b) - D(P), each written out; ``error`` plants a mistake in one of them."""
    X, y, W, b = (np.asarray(T) for T in (X, y, W[0], b[0]))
    n, k = len(X), len(W)
    Y = np.eye(k)[y]
    J = np.mean(-np.log(softmax(X @ W.T + b)[np.arange(n), y])) + λ * (W**2).sum()
    if error == "penalised bias":
        J += λ * (b**2).sum()
    best = b.copy()
    for step in range(300 if error != "unbalanced" else 0):  # to Σ G = 0
        P = softmax(X @ W.T + best)
        G = P.mean(0) - Y.mean(0)
        S = np.diag(P.mean(0)) - P.T @ P / n
        best -= np.log(1 + G / Y.mean(0)) if step < 280 else np.linalg.pinv(S) @ G
    P = softmax(X @ W.T + best)
    H = -(P * np.log(P)).sum(1)
    if error == "entropy":
        H = -np.log((P**2).sum(1))
    A = (P - Y).T @ X / n
    D = H.mean() - (A**2).sum() / ((2 if error == "half" else 4) * λ)
    return J - D


def test_it_is_the_difference_of_cost_and_dual_in_numpy():
    X, y, W, b = problem()
    cost, gap, bias, excess = certify(Samples(X, y), W, b, LAMBDA)
    assert float(gap) == pytest.approx(gap_in_numpy(X, y, W, b), rel=1e-10)
    balanced = certify(Samples(X, y), W, bias, LAMBDA)
    assert float(balanced.gap) == pytest.approx(gap_in_numpy(X, y, W, bias), rel=1e-10)
    assert float(cost - excess) == pytest.approx(float(balanced.cost), rel=1e-14)
    optimum = solve(X, y, [λ], 1e-12).cost
    assert cost - gap <= optimum
    assert optimum <= cost


@pytest.mark.parametrize("error", ["penalised bias", "half", "entropy", "unbalanced"])
def test_a_planted_error_is_another_number(error):
    X, y, W, b = problem()
    gap = float(certify(Samples(X, y), W, b, LAMBDA).gap)
    assert gap_in_numpy(X, y, W, b, error) != pytest.approx(gap, rel=1e-3)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 8.0])
def test_the_best_bias_is_found_from_far_away(scale):
    X, y, W, _ = problem(seed=3)
    b = torch.tensor([[20.0, -15.0, 3.0]]).double()
    bias = certify(Samples(X, y), scale * W, b, LAMBDA).bias
    P = (X @ (scale * W[0]).T + bias).softmax(1)
    shares = torch.bincount(y) / len(y)
    assert torch.allclose(P.mean(0), shares.double(), atol=1e-12)


def test_members_and_chunks_do_not_matter(monkeypatch):
    X, y, W, b = problem()
    many = torch.cat([W, 0.1 * W, 3 * W]), torch.cat([b, b, 0 * b])
    λs = torch.tensor([0.1, 0.01, 0.5]).double()
    whole = certify(Samples(X, y), *many, λs)
    monkeypatch.setattr("onelayer.core.optimum.data.CHUNK", 30)
    monkeypatch.setattr("onelayer.core.optimum.data.LITTLE", 0)
    monkeypatch.setattr("onelayer.core.optimum.data.SHARE", 1e-9)
    for ours, theirs in zip(certify(Samples(X, y), *many, λs), whole, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10)


def test_a_diverged_network_has_none():
    X, y, W, b = problem()
    with pytest.raises(InputError, match="diverged"):
        certify(Samples(X, y), W * torch.nan, b, LAMBDA)
