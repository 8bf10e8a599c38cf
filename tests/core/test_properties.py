"""Cost, gradients, every update and the solver have the properties of tests.support.properties."""

import pytest
import torch

from onelayer.core.autograd import cost
from onelayer.core.optimum.solve import solve
from onelayer.core.update import FusedUpdate, RecordedUpdate
from tests.support.cases import linear_problem, population
from tests.support.properties import (
    JUDGES,
    assert_a_weight_of_two_is_a_repeated_sample,
    assert_one_member_is_a_single_run,
    assert_order_of_samples_is_irrelevant,
)

L2 = 0.1


def costs(X, y, parameters, weight):
    return [cost(X, y, parameters, L2, weight=weight).unsqueeze(1)]


def gradients(X, y, parameters, weight):
    leaves = [p.detach().requires_grad_() for p in parameters]
    return torch.autograd.grad(cost(X, y, leaves, L2, weight=weight).sum(), leaves)


def updated(kind):
    def update(X, y, parameters, weight):
        moved = [p.detach().clone() for p in parameters]
        w = None if weight is None else weight * (len(y) / weight.sum())
        kind(moved, L2)(X, y, 0.2, weight=w)
        return moved

    return update


FUNCTIONS = {
    "cost": costs, "gradients": gradients,
    "fused": updated(FusedUpdate), "recorded": updated(RecordedUpdate),
}  # fmt: skip


@pytest.mark.parametrize("judge", JUDGES)
@pytest.mark.parametrize("hidden", [0, 5])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_property_holds(recorded, name, hidden, judge):
    X, y, parameters = population(3, hidden, n=12)
    judge(FUNCTIONS[name], X, y, [p.detach() for p in parameters])


def minimum(X, y, parameters, weight):
    """Solve for the λ that the first bias of each member stands for."""
    found = solve(X, y, parameters[-1][:, 0], 1e-12, weight=weight, polished=True)
    return [found.W, found.b]


@pytest.mark.parametrize("judge", [assert_one_member_is_a_single_run,
                                   assert_order_of_samples_is_irrelevant,
                                   assert_a_weight_of_two_is_a_repeated_sample])  # fmt: skip
def test_a_property_holds_for_the_minimum(judge):
    X, y = linear_problem(60, 4)
    λ = torch.tensor([[0.05], [0.1], [0.2]], dtype=X.dtype)
    judge(minimum, X, y, [λ])
