"""Figures: what a reader finds in them."""

import math

import pytest

from onelayer.study import plots
from onelayer.study.plots import plot_curves, title_of
from onelayer.training.records import Row, write_rows


def rows(splits=("train", "val"), members=(0,), diverged=()):
    return [
        Row(step, split, m, 0.1, m, 0.01, math.nan if m in diverged and step else 2.0, 1.5, 0.25)
        for step in (0, 10, 20)
        for split in splits
        for m in members
    ]


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


def test_where_all_have_diverged_the_legend_says_so(tmp_path, figures):
    write_rows(tmp_path / "curves.csv", rows(diverged=(0,)), append=False)
    plot_curves(tmp_path / "curves.csv", tmp_path / "curves.png")
    ((_, axes),) = figures
    assert labels(axes.flat[0]) == ["training: all diverged", "validation: all diverged"]


def test_the_built_in_images_are_told_in_the_title():
    assert title_of(rows(), "synthetic", "run") == "run, built-in synthetic images, NOT CIFAR-10"
