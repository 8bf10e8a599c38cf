"""What a search tries and chooses: a pure function of its settings and of validation."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onelayer.core.errors import InputError
from onelayer.study.plan import (
    Candidate,
    Final,
    Plan,
    aggregate,
    best_of_each,
    choose,
    draw_l2,
    groups_of,
    next_ranges,
    plan_stage,
    ranking,
    standard_error,
    top_range,
)

SMALL, LARGE = (("hidden", 2),), (("hidden", 9),)


def candidate(l2, mean, error=0.01, stage=1, index=0, setting=()):
    return Candidate(stage, index, l2, mean, error, 1, setting)


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


def test_settings_are_every_combination_of_the_axes_and_one_without_axes():
    plan = Plan(max_lr=[0.05, 0.1], flip=[False, True])
    assert plan.settings() == [
        (("flip", flip), ("max_lr", rate)) for flip in (False, True) for rate in (0.05, 0.1)
    ]
    assert Plan().settings() == [()]
    assert plan.as_dict().keys() - Plan().as_dict().keys() == {"max_lr", "flip"}


def test_every_setting_has_groups_of_its_own_and_the_same_l2_in_the_same_range():
    plan = Plan(number=3, seeds=[0, 1], hidden=[2, 9])
    ranges = dict.fromkeys(plan.settings(), (1e-4, 1e-3))
    networks = plan_stage(plan, 2, ranges, members=4)
    assert len({p.key for p in networks}) == len(networks) == 12
    for group in groups_of(networks):
        assert len({p.setting for p in group}) == 1
        assert len(group) <= 4
    small, large = ([p for p in networks if p.setting == s] for s in (SMALL, LARGE))
    assert [p.l2 for p in small] == [p.l2 for p in large]
    alone = plan_stage(Plan(number=3, seeds=[0, 1]), 2, {(): (1e-4, 1e-3)}, members=4)
    assert [(p.key, p.group, p.l2) for p in small] == [(p.key, p.group, p.l2) for p in alone]


def test_a_setting_without_a_range_is_left_out_and_changes_no_other():
    plan = Plan(number=3, hidden=[2, 9])
    both = plan_stage(plan, 2, dict.fromkeys(plan.settings(), (1e-4, 1e-3)), members=2)
    assert plan_stage(plan, 2, {LARGE: (1e-4, 1e-3)}, members=2) == both[3:]


def test_every_setting_goes_on_from_its_own_best_and_one_that_diverged_ends():
    plan = Plan(top=2, hidden=[2, 9, 50])
    candidates = [candidate(10.0**-i, 0.5 - abs(i - 3) / 100, setting=SMALL) for i in range(1, 5)]
    candidates += [candidate(10.0**-i, 0.3 + i / 100, setting=LARGE) for i in range(1, 5)]
    assert next_ranges(plan, candidates) == {SMALL: (1e-3, 1e-2), LARGE: (1e-4, 1e-3)}


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


def test_the_best_mean_chooses_the_setting_and_the_rule_among_its_own_l2():
    candidates = [
        candidate(1e-4, 0.50, setting=LARGE),
        candidate(1e-3, 0.495, setting=LARGE),
        candidate(1e-2, 0.48, setting=LARGE),
        candidate(1e-1, 0.499, setting=SMALL),  # within one standard error, and of another setting
    ]
    assert choose(candidates, "best") == candidates[0]
    assert choose(candidates, "one_se") == candidates[1]
    assert best_of_each(candidates) == [candidates[0], candidates[3]]


def test_a_setting_is_in_the_rows_that_make_a_candidate_and_in_its_own():
    row = {
        "stage": 1,
        "index": 4,
        "hidden": 9,
        "l2": 0.1,
        "val_loss": 1.0,
        "val_accuracy": 0.5,
        "diverged": False,
    }
    (found,) = aggregate([row], 100)
    assert found.setting == LARGE
    assert list(found.row()) == ["stage", "index", "hidden", "l2", "mean", "error", "seeds", "loss"]
    assert "hidden" not in candidate(0.1, 0.5).row()


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
        ({"hidden": []}, r"search.hidden must list one value or more, or be null, not \[\]"),
        ({"hidden": 50}, "search.hidden must list .*, not 50"),
        ({"hidden": [5, -1]}, "search.hidden must be a whole number >= 0, not -1"),
        ({"max_lr": [0.1, 0.1]}, r"search.max_lr must list different values, not \[0.1, 0.1\]"),
        ({"max_lr": [math.nan]}, "search.max_lr must be a finite number >= 0, not nan"),
        ({"dropout": [0.0, 1.0]}, "search.dropout .*1, not 1.0"),
        ({"label_smoothing": [-0.1]}, "search.label_smoothing .*, not -0.1"),
        ({"flip": [False, 1]}, "search.flip must be one of False, True, not 1"),
        (
            {"hidden": [*range(60)], "max_lr": [0.1, 0.2, 0.3], "number": 100},
            "search.hidden, search.max_lr make 180 settings of 100 λ each",
        ),
    ],
)
def test_settings_that_make_no_search_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        Plan(**arguments)


@pytest.mark.parametrize(("read", "kept"), [(50.0, 50), (50, 50), (0.2, 0.2), (None, None)])
def test_a_whole_val_size_of_the_final_training_is_a_count(read, kept):
    assert repr(Final(val_size=read).val_size) == repr(kept)
