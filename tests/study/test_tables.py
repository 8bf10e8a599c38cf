"""Tables: what a reader finds in them."""

import pytest

from onelayer.study.plan import aggregate, choose
from onelayer.study.published import Published
from onelayer.study.tables import Result, format_candidates, main_table


def member(accuracy):
    return {"l2": 0.0, "seed": 0, "test": {"cost": 2.0, "loss": 1.5, "accuracy": accuracy}}


@pytest.mark.parametrize(("published", "within"), [(48.0, "yes"), (56.0, "yes"), (59.3, "no")])
def test_a_published_figure_within_two_deviations_is_said_to_be(published, within):
    """Ours are 40 and 50: mean 45, standard deviation 7.07."""
    theirs = Published("an exercise", {"test": published})
    table = main_table([Result("an exercise", "hidden 50", [member(0.4), member(0.5)], theirs)])
    assert table.endswith(f"| test | {published:g} |  | 45.00 ± 7.07 | {within} |")
    alone = main_table([Result("an exercise", "linear", [member(0.4), member(0.5)], None)])
    assert alone.endswith("| test |  |  | 45.00 ± 7.07 |  |")


def test_a_search_shows_the_best_of_every_setting_and_what_diverged_by_setting():
    rows = [
        {
            "stage": 1, "index": i, "flip": i >= 12, "l2": 10.0 ** (i % 12 - 9),
            "val_accuracy": (0.3 if i >= 12 else 0.5) + 0.01 * (i % 12), "diverged": i % 12 == 0,
        }
        for i in range(24)
    ]  # fmt: skip
    candidates = aggregate(rows, 100)
    best, one_se = choose(candidates, "best"), choose(candidates, "one_se")
    head, *lines = format_candidates(rows, candidates, best, one_se, best, "best").splitlines()
    assert head.split() == ["stage", "flip", "l2", "seeds", "val", "accuracy"]
    assert [line.split()[1] for line in lines[:11]] == ["false"] * 10 + ["true"]
    assert lines[0].endswith("best, one_se, <- chosen")
    assert lines[-3:-1] == [
        f"diverged, and no choice: flip={flip} l2 = 1.000e-09" for flip in ("false", "true")
    ]
