"""Figures: what a reader finds in them."""

import math

import pytest

from onelayer.study import plots
from onelayer.study.plots import plot_curves, title_of
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


def test_the_built_in_images_are_told_in_the_title():
    assert title_of(rows(), "synthetic", "run") == "run, built-in synthetic images, NOT CIFAR-10"
