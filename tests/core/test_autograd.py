"""The custom Functions against torch's own autograd, and their limits."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from onelayer.core import formulas
from onelayer.core.autograd import cost, hidden_cost, linear_cost
from onelayer.core.errors import InputError
from tests.support.cases import population


def reference(X, y, parameters, l2):
    """Each member by itself, with torch's layers."""
    result = []
    for i, lam in enumerate(l2):
        *hidden, W, b = (p[i] for p in parameters)
        H = F.relu(F.linear(X, *hidden)) if hidden else X
        penalty = W.square().sum() + (hidden[0].square().sum() if hidden else 0)
        result.append(F.cross_entropy(F.linear(H, W, b), y) + lam * penalty)
    return torch.stack(result)


@settings(max_examples=100, deadline=None)
@given(
    m=st.integers(1, 4),
    hidden=st.integers(0, 5),
    d=st.integers(1, 20),
    k=st.integers(2, 8),
    n=st.integers(1, 12),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    l2=st.floats(0, 100) | st.floats(0, 1e-3),
    seed=st.integers(0, 1000),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    as_convolution=st.booleans(),
    columns_first=st.booleans(),
)
def test_cost_and_gradients_are_those_of_autograd(
    m, hidden, d, k, n, dtype, l2, seed, scale, as_convolution, columns_first
):
    X, y, parameters = population(m, hidden, d, k, n, dtype, seed)
    X = scale * (X.T.contiguous().T if columns_first else X)
    X.requires_grad_()
    l2s = [l2 / (i + 1) for i in range(m)]
    upstream = torch.linspace(0.5, 2, m, dtype=dtype)
    wanted = [X, *parameters]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formulas, "MANY_ROWS", 1 if as_convolution else 1000)
        ours = cost(X, y, parameters, l2s)
        gradients = torch.autograd.grad((ours * upstream).sum(), wanted)
    theirs = reference(X, y, parameters, l2s)
    tolerance = {torch.float32: 2e-4, torch.float64: 1e-11}[dtype]
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    expected = torch.autograd.grad((theirs * upstream).sum(), wanted)
    for a, b in zip(gradients, expected, strict=True):
        size = max(1.0, float(b.abs().max()))
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * size)


def by_hand(X, y, parameters, l2, w):
    """Return the weighted cost and gradients of one network, in numpy, by the equations."""
    *hidden, W, b = (p.detach().numpy() for p in parameters)
    H = np.maximum(0, X @ hidden[0].T + hidden[1]) if hidden else X
    Z = H @ W.T + b
    P = np.exp(Z - Z.max(1, keepdims=True))
    P /= P.sum(1, keepdims=True)
    Y = np.eye(W.shape[0])[y]
    w = w / w.sum()
    penalty = sum((V**2).sum() for V in [W, *hidden[:1]])
    J = -(w * np.log(P[np.arange(len(y)), y])).sum() + l2 * penalty
    G = w[:, None] * (P - Y)
    last = [G.T @ H + 2 * l2 * W, G.sum(0)]
    if not hidden:
        return J, last
    D = G @ W * (H > 0)
    return J, [D.T @ X + 2 * l2 * hidden[0], D.sum(0), *last]


@pytest.mark.parametrize("shape", [(6,), (2, 6)], ids=["of all members", "of each member"])
@pytest.mark.parametrize("hidden", [0, 5])
def test_weighted_cost_and_gradients_are_those_of_numpy(hidden, shape):
    X, y, parameters = population(2, hidden)
    weight, l2 = 3 * torch.rand(shape, generator=torch.Generator().manual_seed(1)), [0.1, 0.5]
    weight = weight.double()
    J = cost(X, y, parameters, l2, weight=weight)
    gradients = torch.autograd.grad(J.sum(), parameters)
    for i in range(2):
        w = weight.expand(2, 6)[i].numpy()
        own = [p[i] for p in parameters]
        expected, wanted = by_hand(X.numpy(), y.numpy(), own, l2[i], w)
        assert J[i].item() == pytest.approx(expected, rel=1e-13)
        for ours, theirs in zip(gradients, wanted, strict=True):
            np.testing.assert_allclose(ours[i].numpy(), theirs, rtol=1e-11, atol=1e-14)


def test_batches_estimate_the_weighted_gradient_without_bias():
    """The mean of the batches' gradients is the gradient of all, as weights have mean 1."""
    X, y, parameters = population(2, 5, n=12)
    weight = 2 * torch.rand(12, generator=torch.Generator().manual_seed(1)).double()
    weight *= 12 / weight.sum()
    of_all = torch.autograd.grad(cost(X, y, parameters, 0.1, weight=weight).sum(), parameters)
    of_batches = [
        torch.autograd.grad(
            cost(X[rows], y[rows], parameters, 0.1, n=4, weight=weight[rows]).sum(), parameters
        )
        for rows in torch.arange(12).split(4)
    ]
    for whole, *parts in zip(of_all, *of_batches, strict=True):
        torch.testing.assert_close(torch.stack(parts).mean(0), whole, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(5), r"weight has shape \(5,\), but there are 6 samples"),
        (torch.tensor([1.0, -1, 1, 1, 1, 1]), r"the value -1\.0: weights are finite"),
        (torch.full((6,), torch.nan), "the value nan"),
        (torch.zeros(6), "all zero"),
        (torch.ones(6, requires_grad=True), r"Pass weight\.detach"),
    ],
)
def test_weights_that_mean_nothing_are_refused(weight, message):
    X, y, (W, b) = population(1, 0)
    with pytest.raises(InputError, match=message):
        linear_cost(X, y, W, b, weight=weight)


@pytest.mark.parametrize("hidden", [0, 5])
def test_gradcheck_accepts(hidden):
    X, y, parameters = population(2, hidden)
    assert torch.autograd.gradcheck(lambda *p: cost(X, y, p, [0.1, 0.5]), parameters)


@pytest.mark.parametrize("hidden", [0, 5])
@pytest.mark.parametrize("upstream_needs_gradient", [False, True])
def test_second_derivative_raises_instead_of_lying(hidden, upstream_needs_gradient):
    X, y, parameters = population(1, hidden)
    J = cost(X, y, parameters)
    J = J.square() if upstream_needs_gradient else J
    (first,) = torch.autograd.grad(J.sum(), parameters[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        (J.sum() + first.square().sum()).backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_huge_logits_stay_finite(dtype, sign):
    X = torch.eye(3, dtype=dtype)
    W = (sign * 1e4 * torch.eye(3, dtype=dtype)).unsqueeze(0).requires_grad_()
    b = torch.zeros(1, 3, dtype=dtype, requires_grad=True)
    J = linear_cost(X, torch.tensor([1, 2, 0]), W, b)
    J.sum().backward()
    assert J.item() == pytest.approx(1e4 if sign > 0 else math.log(2), rel=1e-3)
    assert W.grad.isfinite().all()
    assert b.grad.isfinite().all()


def test_a_bias_is_an_unpenalised_column_of_ones():
    X, y, (W, b) = population(2, 0)
    with_ones = torch.cat([X, torch.ones(len(X), 1, dtype=X.dtype)], 1)
    joined = torch.cat([W, b.unsqueeze(2)], 2)
    torch.testing.assert_close(
        linear_cost(X, y, W, b, 0.0),
        linear_cost(with_ones, y, joined, torch.zeros_like(b), 0.0),
    )
    shifted = linear_cost(X, y, W, b, 0.3) - linear_cost(X, y, W, b, 0.0)
    torch.testing.assert_close(shifted, 0.3 * W.square().sum((1, 2)))


@pytest.mark.parametrize("hidden", [0, 5])
@pytest.mark.parametrize("low", [torch.bfloat16, torch.float16])
def test_autocast_runs_the_products_low_and_returns_full_gradients(hidden, low):
    X, y, parameters = population(2, hidden, dtype=torch.float32, d=64)
    with torch.autocast("cpu", dtype=low):
        J = cost(X, y, parameters, 0.01)
    full = cost(X, y, parameters, 0.01)
    assert J.dtype == torch.float32
    assert not torch.equal(J, full)
    torch.testing.assert_close(J, full, rtol=0.05, atol=0.05)
    for a, b in zip(
        torch.autograd.grad(J.sum(), parameters),
        torch.autograd.grad(full.sum(), parameters),
        strict=True,
    ):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.1, atol=0.05)


def test_autocast_leaves_float64_alone():
    X, y, parameters = population(1, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        J = cost(X, y, parameters)
    torch.testing.assert_close(J, cost(X, y, parameters), rtol=0, atol=0)


@pytest.mark.parametrize("hidden", [0, 5])
@pytest.mark.parametrize("label", [-1, -100, 4])
def test_a_label_that_is_no_class_is_named_with_its_row(hidden, label):
    X, y, parameters = population(1, hidden)
    y[2] = label
    with pytest.raises(InputError, match=rf"y\[2\] = {label} is no label.* 0 to 3"):
        cost(X, y, parameters)


def test_shapes_that_do_not_fit_are_named():
    X, y, (W1, b1, W2, b2) = population(2, 5)
    with pytest.raises(InputError, match=r"width 6 .*\(2, 5, 7\)"):
        hidden_cost(X[:, :6], y, W1, b1, W2, b2)
    with pytest.raises(InputError, match=r"\(6, 7\) and y torch.int64 \(5,\)"):
        hidden_cost(X, y[:5], W1, b1, W2, b2)
    with pytest.raises(InputError, match=r"width 5 .*\(2, 4, 4\)"):
        hidden_cost(X, y, W1, b1, W2[:, :, :4], b2)
    with pytest.raises(InputError, match="int64"):
        hidden_cost(X, y.int(), W1, b1, W2, b2)
