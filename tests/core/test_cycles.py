"""Cyclical rates against values listed by hand and against torch's CyclicLR."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onelayer.core.cycles import check_cycle, cyclical, exp_range, triangular, triangular2
from onelayer.core.errors import InputError

OURS = {"triangular": triangular, "triangular2": triangular2, "exp_range": exp_range}


def cyclic_lr(mode, base_lr, max_lr, step_size, steps, gamma):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=base_lr)
    scheduler = torch.optim.lr_scheduler.CyclicLR(
        optimizer, base_lr, max_lr, step_size_up=step_size, mode=mode, gamma=gamma,
        cycle_momentum=False,
    )  # fmt: skip
    for _ in range(steps):
        yield scheduler.get_last_lr()[0]
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("mode", OURS)
@pytest.mark.parametrize("step_size", [5, 7, 500, 833])
def test_equal_to_cyclic_lr_over_ten_thousand_updates(mode, step_size):
    gamma = {"gamma": 0.9995} if mode == "exp_range" else {}
    theirs = cyclic_lr(mode, 1e-5, 1e-1, step_size, 10_000, gamma.get("gamma", 1.0))
    errors = [
        abs(OURS[mode](t, 1e-5, 1e-1, step_size, **gamma) - lr) for t, lr in enumerate(theirs)
    ]
    assert len(errors) == 10_000
    assert max(errors) <= 2e-12


def test_by_hand():
    assert triangular(0, 1e-5, 1e-1, 500) == 1e-5
    assert triangular(250, 1e-5, 1e-1, 500) == pytest.approx(0.050005)
    assert triangular(500, 1e-5, 1e-1, 500) == 1e-1
    assert triangular(1000, 1e-5, 1e-1, 500) == 1e-5
    assert triangular2(1500, 0.0, 1.0, 500) == 0.5
    assert exp_range(2, 0.0, 1.0, 4, gamma=0.5) == 0.125


@pytest.mark.parametrize("mode", OURS)
def test_a_schedule_is_its_mode_with_the_arguments_closed_over(mode):
    gamma = {"gamma": 0.9} if mode == "exp_range" else {}
    rate = cyclical(mode, 1e-5, 1e-1, 7, 0.9)
    assert [rate(t) for t in range(50)] == [
        OURS[mode](t, 1e-5, 1e-1, 7, **gamma) for t in range(50)
    ]


def test_another_mode_is_refused():
    with pytest.raises(InputError, match=r"mode must be one of triangular, .* not 'cosine'"):
        cyclical("cosine", 1e-5, 1e-1, 7)


@given(t=st.integers(0, 10**15), step_size=st.integers(1, 10**6))
def test_no_drift_at_any_step(t, step_size):
    cycle = 2 * step_size
    assert triangular(t, 0.1, 0.7, step_size) == triangular(t % cycle, 0.1, 0.7, step_size)
    assert 0.1 <= triangular(t, 0.1, 0.7, step_size) <= 0.7


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"step_size": 0}, "step_size must be .* from 1 to .*, not 0"),
        ({"step_size": 2.5}, "step_size .* not 2.5"),
        ({"base_lr": 0.2}, "base_lr must be <= max_lr, but 0.2 > 0.1"),
        ({"base_lr": -0.1}, "base_lr must be .* >= 0, not -0.1"),
        ({"max_lr": math.nan}, "max_lr must be a finite number .* not nan"),
        ({"max_lr": math.inf}, "max_lr must be a finite number .* not inf"),
        ({"gamma": 0.0}, r"gamma must be in \(0, 1\], not 0.0"),
        ({"gamma": 1.5}, "gamma .* not 1.5"),
    ],
)
def test_values_that_make_no_cycle_are_refused(arguments, names):
    good = {"base_lr": 1e-5, "max_lr": 0.1, "step_size": 500, "gamma": 1.0}
    check_cycle(**good)
    with pytest.raises(InputError, match=names):
        check_cycle(**{**good, **arguments})
    with pytest.raises(InputError, match=names):
        cyclical("triangular", **{**good, **arguments})
