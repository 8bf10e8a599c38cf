"""Initial parameters: one member's do not depend on the others."""

import pytest
import torch

from onelayer.core.network import initial_parameters


@pytest.mark.parametrize("hidden", [0, 7])
def test_a_member_depends_on_its_own_seed_alone(hidden):
    alone = initial_parameters([5], hidden, inputs=30)
    among = initial_parameters([3, 5, 0], hidden, inputs=30)
    for name, value in alone.items():
        assert torch.equal(value[0], among[name][1])


def test_weights_have_variance_one_over_fan_in_and_biases_are_zero():
    parameters = initial_parameters([0], hidden=50)
    assert parameters["W1"].std().item() == pytest.approx(3072**-0.5, rel=0.02)
    assert parameters["W2"].std().item() == pytest.approx(50**-0.5, rel=0.1)
    assert not parameters["b1"].any()
    assert not parameters["b2"].any()


def test_the_deviation_can_be_set():
    parameters = initial_parameters([0], hidden=0, init_std=0.01)
    assert parameters["W"].std().item() == pytest.approx(0.01, rel=0.02)
