"""Tables: what a reader finds in them."""

import pytest

from onelayer.study.formatting import Result, format_candidates, format_path, main_table
from onelayer.study.plan import aggregate, choose
from onelayer.study.published import Published


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
            "val_loss": 1.0, "diverged": i % 12 == 0,
            "val_accuracy": (0.3 if i >= 12 else 0.5) + 0.01 * (i % 12),
        }
        for i in range(24)
    ]  # fmt: skip
    candidates = aggregate(rows, 100)
    best, one_se = choose(candidates, "best"), choose(candidates, "one_se")
    head, *lines = format_candidates(rows, candidates, best, one_se, best, "best").splitlines()
    assert head.split() == ["stage", "flip", "l2", "seeds", "val", "accuracy"]
    assert [line.split()[1] for line in lines[:11]] == ["false"] * 10 + ["true"]
    assert lines[0].endswith("best, one_se, <- chosen (end)")
    assert lines[-6:-4] == [
        f"diverged, and no choice: flip={flip} l2 = 1.000e-09" for flip in ("false", "true")
    ]


def path_of(l2s, chosen, listed=None):
    """A summary of a solve, with the widest figures that there are."""
    row = {"cost": 12.34567, "gap": 7e4, "iterations": 1000, "train_accuracy": 1.0,
           "val_accuracy": 0.5, "val_error": 0.05}  # fmt: skip
    final = {"l2": chosen, "cost": 1.5, "gap": 1e-7, "test": {"accuracy": 1.0}}
    return {
        "settings": {"l2": listed}, "dataset": "cifar10", "seconds": 1234.5, "final": final,
        "members": [{"l2": l2, **row} for l2 in l2s], "l2": chosen,
        "best": {"l2": chosen}, "one_se": {"l2": chosen},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("chosen", "listed", "words"),
    [
        (0.1, None, "the chosen l2 = 0.1 is the largest that was tried: raise --solve.l2_max"),
        (
            6.31e-5,
            None,
            "the chosen l2 = 6.31e-05 is the smallest that was tried: lower --solve.l2_min",
        ),
        (0.1, [0.1], "l2 = 0.1 is the largest that was tried: give larger --solve.l2"),
        (0.01, None, None),
    ],
)
def test_a_solve_warns_of_an_l2_at_the_end_of_its_grid(chosen, listed, words):
    lines = format_path(path_of([6.31e-5, 0.01, 0.1], chosen, listed)).splitlines()
    assert max(map(len, lines)) <= 80
    warnings = [line for line in lines if "that was tried" in line]
    assert len(warnings) == (words is not None)
    assert not warnings or warnings[0].endswith(words)
    marked = [line for line in lines if "<- chosen (end)" in line]
    assert len(marked) == (words is not None)


@pytest.mark.parametrize(
    ("accuracies", "gone", "words"),
    [
        ([0.1, 0.2, 0.9], [], "the chosen l2 = 0.1 is the largest that was tried: raise"),
        ([0.9, 0.2, 0.1], [], "the chosen l2 = 0.001 is the smallest that was tried: lower"),
        ([0.1, 0.9, 0.2], [2], None),  # the larger was tried, and diverged
        ([0.1, 0.9, 0.2], [], None),
    ],
)
def test_a_search_warns_of_an_l2_at_the_end_of_what_it_tried(accuracies, gone, words):
    rows = [
        {
            "stage": 1,
            "index": i,
            "l2": (0.001, 0.01, 0.1)[i],
            "val_accuracy": p,
            "val_loss": 1.0,
            "diverged": i in gone,
        }
        for i, p in enumerate(accuracies)
    ]
    candidates = aggregate(rows, 100)
    best = choose(candidates, "best")
    text = format_candidates(rows, candidates, best, best, best, "best")
    assert ("that was tried" in text) == (words is not None)
    assert words is None or f"{words} --search.l2_" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "not over seeds (there is one)" in text
