"""Figures: what a reader finds in them."""

import math

import pytest

from onelayer.study import plots
from onelayer.study.plan import aggregate, choose
from onelayer.study.plots import plot_curves, plot_search, title_of
from onelayer.training.records import Row, write_rows


def rows(splits=("train", "val"), members=(0,), diverged=(), l2s=(0.1,)):
    """Networks of each λ in turn; the accuracies are 0.25, 0.26 and so on by λ."""
    k = len(l2s)

    def row(step, split, m):
        cost = math.nan if m in diverged and step else 2.0
        return Row(step, split, m, l2s[m % k], m // k, 0.01, cost, 1.5, 0.25 + 0.01 * (m % k))

    return [row(step, split, m) for step in (0, 10, 20) for split in splits for m in members]


@pytest.fixture
def figures(monkeypatch):
    """The figures that are made."""
    made, make = [], plots.new_figure

    def spy(*arguments):
        made.append(make(*arguments))
        return made[-1]

    monkeypatch.setattr(plots, "new_figure", spy)
    return made


def labels(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


@pytest.mark.parametrize(
    ("splits", "expected"),
    [(("train", "val"), ["training", "validation"]), (("train",), ["training"])],
)
def test_every_chart_counts_updates_and_has_a_line_for_each_split(
    tmp_path, figures, splits, expected
):
    write_rows(tmp_path / "curves.csv", rows(splits), append=False)
    plot_curves(tmp_path / "curves.csv", tmp_path / "curves.png")
    ((_, axes),) = figures
    assert [labels(axis) for axis in axes.flat] == [expected] * 3 + [["learning rate"]]
    assert {axis.get_xlabel() for axis in axes.flat} == {"updates"}
    assert [line.get_xdata().tolist() for line in axes.flat[2].lines] == [[0, 10, 20]] * len(splits)
    assert axes.flat[2].lines[0].get_ydata().tolist() == [25.0] * 3
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_a_diverged_network_is_left_out_and_counted(tmp_path, figures):
    write_rows(tmp_path / "curves.csv", rows(members=(0, 1, 2), diverged=(1,)), append=False)
    plot_curves(tmp_path / "curves.csv", tmp_path / "curves.png", title="run")
    ((figure, axes),) = figures
    assert figure.get_suptitle() == "run, mean ± std of 2 networks, 1 diverged"
    assert axes.flat[0].lines[0].get_ydata().tolist() == [2.0] * 3


def test_a_sweep_has_a_line_per_l2_and_marks_the_best_on_validation(tmp_path, figures):
    write_rows(tmp_path / "curves.csv", rows(members=range(4), l2s=(0.0, 0.1)), append=False)
    plot_curves(tmp_path / "curves.csv", tmp_path / "curves.png", title="run")
    ((figure, axes),) = figures
    accuracy = axes.flat[2]
    assert labels(accuracy) == ["λ = 0", "λ = 0.1, best on validation"]
    assert [line.get_ydata().tolist() for line in accuracy.lines] == [
        [y] * 3 for y in (25, 25, 26, 26)
    ]
    assert [line.get_linestyle() for line in accuracy.lines] == ["--", "-"] * 2
    assert len({line.get_color() for line in accuracy.lines}) == 2
    assert len(accuracy.collections) == 4  # bands over the seeds
    assert figure.get_suptitle() == "run, 2 λ, each mean ± std of 2 seeds, training dashed"


def test_without_validation_no_l2_is_called_the_best(tmp_path, figures):
    write_rows(tmp_path / "curves.csv", rows(("train",), range(2), l2s=(0.0, 0.1)), append=False)
    plot_curves(tmp_path / "curves.csv", tmp_path / "curves.png")
    ((_, axes),) = figures
    assert labels(axes.flat[2]) == ["λ = 0", "λ = 0.1"]


def test_more_than_eight_l2_have_a_scale_of_colours(tmp_path, figures):
    l2s = (0.0, *(10.0**-i for i in range(8)))
    write_rows(tmp_path / "curves.csv", rows(members=range(9), l2s=l2s), append=False)
    plot_curves(tmp_path / "curves.csv", tmp_path / "curves.png")
    ((figure, axes),) = figures
    assert [axis.get_ylabel() for axis in figure.axes[4:]] == ["λ (0 at the lower end)"]
    assert labels(axes.flat[2]) == ["λ = 1e-07, best on validation"]
    assert len(axes.flat[2].lines) == 18


def test_where_all_have_diverged_the_legend_says_so(tmp_path, figures):
    write_rows(tmp_path / "curves.csv", rows(diverged=(0,)), append=False)
    plot_curves(tmp_path / "curves.csv", tmp_path / "curves.png")
    ((_, axes),) = figures
    assert labels(axes.flat[0]) == ["training: all diverged", "validation: all diverged"]


def found(accuracies):
    """Rows and candidates of a search: two λ of each setting, hidden 1, 2 and so on."""
    rows = [
        {
            "stage": 1, "index": i, "hidden": 1 + i // 2, "l2": 10.0 ** -(1 + i % 2), "seed": 0,
            "val_accuracy": accuracy - 0.01 * (i % 2), "diverged": False,
        }
        for i, accuracy in enumerate(a for a in accuracies for _ in range(2))
    ]  # fmt: skip
    return rows, aggregate(rows, 100)


@pytest.mark.parametrize("number", [3, 10])
def test_a_search_shows_every_setting_with_its_best_l2_the_best_in_colour(
    tmp_path, figures, number
):
    rows, candidates = found([0.3 + 0.01 * i for i in range(number)])
    best = choose(candidates, "best")
    plot_search(rows, candidates, best, best, tmp_path / "search.png", "")
    ((figure, axes),) = figures
    axis, beside = axes.flat
    names = [text.get_text() for text in beside.get_yticklabels()]
    assert names == [f"hidden={h}, λ = 0.1" for h in range(number, 0, -1)]
    *lines, _, _ = axis.lines  # the last are the marks of the best and of the choice
    assert [line.get_ydata().tolist() for line in lines[-1:]] == [
        pytest.approx([100 * best.mean - 1, 100 * best.mean])
    ]
    assert len({line.get_color() for line in lines}) == min(number, 9)
    assert labels(axis) == ["best mean", "chosen"]
    assert figure.get_suptitle() == f"search for λ, hidden, {2 * number} networks"


def test_of_very_many_settings_a_search_shows_the_best(tmp_path, figures):
    rows, candidates = found([0.3 + 0.01 * i for i in range(50)])
    best = choose(candidates, "best")
    plot_search(rows, candidates, best, best, tmp_path / "search.png", "")
    ((_, axes),) = figures
    assert len(axes[0, 1].get_yticklabels()) == 40
    assert axes[0, 1].get_title() == "the best λ of each setting; 10 others are not shown"


def test_the_built_in_images_are_told_in_the_title():
    assert title_of(rows(), "synthetic", "run") == "run, built-in synthetic images, NOT CIFAR-10"
