"""The in-place update against the gradient, and the figures of a split."""

import math

import pytest
import torch

from onelayer.core import formulas
from onelayer.core.network import initial_parameters
from tests.support.cases import population


@pytest.mark.parametrize("hidden", [0, 5])
@pytest.mark.parametrize("per_member", [True, False])
@pytest.mark.parametrize("rate_on_device", [True, False])
def test_descending_is_subtracting_the_gradient(hidden, per_member, rate_on_device):
    X, y, parameters = population(3, hidden)
    parameters = [p.detach() for p in parameters]
    l2 = torch.tensor([0.0, 0.1, 0.2], dtype=X.dtype) if per_member else 0.1
    lr = torch.tensor([0.05], dtype=X.dtype) if rate_on_device else 0.05
    inputs, Z = formulas.forward(X, parameters)
    gradients = formulas.gradients(formulas.residual(Z, y), inputs, parameters, l2)
    expected = [p - 0.05 * g for p, g in zip(parameters, gradients, strict=True)]
    formulas.descend_(X, y, parameters, l2, lr)
    for ours, wanted in zip(parameters, expected, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-13, atol=1e-14)


def test_a_known_gradient():
    """One sample, zero weights: P = 1/k, so ∂b = P - Y and ∂W = (P - Y) xᵀ."""
    x = torch.tensor([[1.0, 2.0]])
    W, b = torch.zeros(1, 4, 2), torch.zeros(1, 4)
    inputs, Z = formulas.forward(x, (W, b))
    dW, db = formulas.gradients(formulas.residual(Z, torch.tensor([3])), inputs, (W, b), 0.0)
    assert db.tolist() == [[0.25, 0.25, 0.25, -0.75]]
    assert dW.tolist() == [[[0.25, 0.5], [0.25, 0.5], [0.25, 0.5], [-0.75, -1.5]]]


def test_the_slope_of_the_relu_at_zero_is_zero():
    D = torch.ones(1, 1, 3)
    H = torch.tensor([[[0.0, 1e-30, 2.0]]])
    assert formulas.relu_mask(D, H).tolist() == [[[0.0, 1.0, 1.0]]]


def test_measure_counts_what_is_right_and_calls_nan_wrong():
    X = torch.eye(3)
    W = torch.stack([torch.eye(3), torch.eye(3).flip(0), torch.full((3, 3), math.nan)])
    loss, correct = formulas.measure(X, torch.arange(3), (W, torch.zeros(3, 3)))
    assert correct.sum(1).tolist() == [3, 1, 0]
    assert loss[0].sum().item() == pytest.approx(3 * math.log(1 + 2 / math.e))
    assert loss[2].isnan().all()


def test_shards_of_a_batch_add_up_to_its_gradient():
    X, y, parameters = population(2, 5)
    inputs, Z = formulas.forward(X, parameters)
    whole = formulas.gradients(formulas.residual(Z, y), inputs, parameters, 0.0)
    total = [torch.zeros_like(p) for p in parameters]
    for rank in range(2):
        inputs, Z = formulas.forward(X[rank::2], parameters)
        G = formulas.residual(Z, y[rank::2], n=len(y))
        shard = formulas.gradients(G, inputs, parameters, 0.0)
        total = [t + s for t, s in zip(total, shard, strict=True)]
    for a, b in zip(whole, total, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("hidden", [0, 7])
def test_many_rows_give_the_logits_of_few(hidden):
    """Many rows go another way, see formulas.MANY_ROWS."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(formulas.MANY_ROWS + 3, 40, generator=generator)
    start = initial_parameters([0, 1], hidden, inputs=40).values()
    parameters = [p.float() + 0.1 for p in start]
    few = torch.cat([formulas.logits(x, parameters) for x in X.split(100)], dim=1)
    many = formulas.logits(X, parameters)
    assert many.shape == few.shape == (2, len(X), 10)
    assert torch.allclose(many, few, rtol=1e-5, atol=1e-5)
