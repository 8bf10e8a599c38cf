"""What a search tries and chooses: a pure function of its settings and of validation."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onelayer.core.errors import InputError
from onelayer.study.plan import (
    Candidate,
    Plan,
    choose,
    draw_l2,
    next_ranges,
    plan_stage,
    ranking,
    standard_error,
    top_range,
)


def candidate(l2, mean, error=0.01, stage=1, index=0):
    return Candidate(stage, index, l2, mean, error, 1)


@given(st.integers(0, 99), st.integers(1, 5), st.integers(0, 99))
def test_a_draw_depends_on_seed_stage_and_index_alone_and_stays_in_range(seed, stage, index):
    plan = Plan(seed=seed)
    l2 = draw_l2(plan, stage, index, 1e-5, 1e-1)
    assert 1e-5 <= l2 <= 1e-1
    assert l2 == draw_l2(Plan(seed=seed, number=7), stage, index, 1e-5, 1e-1)
    assert l2 != draw_l2(Plan(seed=seed + 1), stage, index, 1e-5, 1e-1)
    assert l2 != draw_l2(plan, stage + 1, index, 1e-5, 1e-1)


def test_draws_are_uniform_in_log_l2():
    logs = [math.log10(draw_l2(Plan(), 1, i, 1e-5, 1e-1)) for i in range(2000)]
    for quarter in range(4):
        share = sum(-5 + quarter <= value < -4 + quarter for value in logs) / len(logs)
        assert share == pytest.approx(0.25, abs=0.04)


def test_a_grid_is_even_in_log_l2_and_holds_both_ends():
    plan = Plan(grid=True, number=5)
    grid = [draw_l2(plan, 1, i, 1e-5, 1e-1) for i in range(5)]
    assert grid == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2, 1e-1])


def test_groups_hold_whole_l2_within_the_limit():
    plan = plan_stage(Plan(number=7, seeds=[0, 1]), 2, {(): (1e-4, 1e-3)}, members=5)
    assert len(plan) == 14
    groups = {}
    for planned in plan:
        groups.setdefault(planned.group, []).append(planned)
    assert [len(group) for group in groups.values()] == [4, 4, 4, 2]
    assert all({p.seed for p in group} == {0, 1} for group in groups.values())
    one_at_a_time = plan_stage(Plan(number=3, seeds=[0, 1]), 1, {(): (1e-4, 1e-3)}, members=1)
    assert {planned.group for planned in one_at_a_time} == {0, 1, 2}


def test_the_next_range_spans_the_best_so_far():
    candidates = [candidate(10.0**-i, 0.5 - abs(i - 3) / 100) for i in range(1, 8)]
    assert top_range(candidates, 3) == (pytest.approx(1e-4), pytest.approx(1e-2))
    assert top_range(candidates, 99) == (pytest.approx(1e-7), pytest.approx(1e-1))


@pytest.mark.parametrize(("axis", "remedy"), [(None, "schedule"), ([0.1, 9.0], "search")])
def test_without_a_candidate_it_says_what_to_do(axis, remedy):
    with pytest.raises(InputError, match="every network of the search diverged") as caught:
        next_ranges(Plan(max_lr=axis), [])
    assert f"Lower {remedy}.max_lr" in str(caught.value)


def test_the_rules():
    candidates = [candidate(1e-4, 0.50), candidate(1e-3, 0.495), candidate(1e-2, 0.48)]
    assert choose(candidates, "best").l2 == 1e-4
    assert choose(candidates, "one_se").l2 == 1e-3
    assert [c.l2 for c in ranking(candidates)] == [1e-4, 1e-3, 1e-2]
    assert ranking([candidate(1e-3, 0.5), candidate(1e-2, 0.5)])[0].l2 == 1e-2


def test_the_standard_error_is_that_of_the_validation_images_and_the_seeds():
    assert standard_error([0.52], 5000) == pytest.approx(0.00707, rel=1e-3)
    two = standard_error([0.50, 0.54], 5000)
    assert two == pytest.approx(math.sqrt(0.52 * 0.48 / 5000 + 0.0008 / 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"l2_min": 0.0}, "l2_min must be a finite number > 0, not 0.0"),
        ({"l2_max": math.inf}, "l2_max .* not inf"),
        ({"l2_min": math.nan}, "l2_min .* not nan"),
        ({"l2_min": 0.1, "l2_max": 0.01}, "l2_min must be <= search.l2_max, but 0.1 > 0.01"),
        ({"stages": 0}, "stages must be .* from 1 to 10000, not 0"),
        ({"number": 1.5}, "number .* not 1.5"),
        ({"top": 0}, "top must be .* from 1 to"),
        ({"seeds": []}, "seeds must list different seeds"),
        ({"seeds": [0, 0]}, "different seeds"),
        ({"number": 10**20}, "number must be a whole number from 1 to 10000"),
        ({"seeds": [-1]}, "seeds must be a whole number from 0"),
        ({"seeds": [2**64]}, "seeds must be a whole number from 0"),
        ({"rule": "luck"}, "rule must be one of one_se, best, not 'luck'"),
        ({"members": 0}, "members must be .* >= 1, not 0"),
    ],
)
def test_settings_that_make_no_search_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        Plan(**arguments)
