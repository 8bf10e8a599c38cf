"""Figures: what a reader finds in them."""

import math
from itertools import pairwise

import pytest

from onelayer.study import comparison_figures
from onelayer.study import figures as style
from onelayer.study.comparison_figures import plot_path, plot_search
from onelayer.study.figures import PlotCurves, plot_curves, plot_test, title_of
from onelayer.study.plan import aggregate, choose
from onelayer.training.module import OneLayer
from onelayer.training.records import Row, write_rows

pytestmark = pytest.mark.usefixtures("drawn")


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
    made, make = [], style.new_figure

    def spy(*arguments):
        made.append(make(*arguments))
        return made[-1]

    for module in (style, comparison_figures):
        monkeypatch.setattr(module, "new_figure", spy)
    return made


def labels(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize(
    ("splits", "expected"),
    [(("train", "val"), ["training", "validation"]), (("train",), ["training"])],
)
def test_every_chart_counts_updates_and_has_a_line_for_each_split(
    tmp_path, figures, splits, expected
):
    write_rows(tmp_path / "curves.csv", rows(splits), append=False)
    plot_curves(tmp_path / "curves.csv", tmp_path / "curves.png")
    ((figure, axes),) = figures
    assert legend(figure) == expected
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
    assert legend(figure) == ["λ = 0", "λ = 0.1, best on validation"]
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
    ((figure, _),) = figures
    assert legend(figure) == ["λ = 0", "λ = 0.1"]


def test_more_than_eight_l2_have_a_scale_of_colours(tmp_path, figures):
    l2s = (0.0, *(10.0**-i for i in range(8)))
    write_rows(tmp_path / "curves.csv", rows(members=range(9), l2s=l2s), append=False)
    plot_curves(tmp_path / "curves.csv", tmp_path / "curves.png")
    ((figure, axes),) = figures
    assert [axis.get_ylabel() for axis in figure.axes[4:]] == ["λ (0 at the lower end)"]
    assert legend(figure) == ["λ = 1e-07, best on validation"]
    assert len(axes.flat[2].lines) == 18


def test_where_all_have_diverged_the_legend_says_so(tmp_path, figures):
    write_rows(tmp_path / "curves.csv", rows(diverged=(0,)), append=False)
    plot_curves(tmp_path / "curves.csv", tmp_path / "curves.png")
    ((figure, _),) = figures
    assert legend(figure) == ["training: all diverged", "validation: all diverged"]


def found(accuracies):
    """Rows and candidates of a search: two λ of each setting, hidden 1, 2 and so on."""
    rows = [
        {
            "stage": 1, "index": i, "hidden": 1 + i // 2, "l2": 10.0 ** -(1 + i % 2), "seed": 0,
            "val_loss": 1.0, "val_accuracy": accuracy - 0.01 * (i % 2), "diverged": False,
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


def test_a_sweeps_legend_hides_no_line_and_lists_l2_in_order(tmp_path, figures):
    """The best of four λ is the second; the accuracies are made to fall after it."""
    best = [
        r._replace(accuracy=0.9) if r.l2 == 0.01 and r.split == "val" else r
        for r in rows(members=range(4), l2s=(0.001, 0.01, 0.1, 1.0))
    ]
    write_rows(tmp_path / "curves.csv", best, append=False)
    plot_curves(tmp_path / "curves.csv", tmp_path / "curves.png", title="50 hidden units, small")
    ((figure, axes),) = figures
    found = ["λ = 0.001", "λ = 0.01, best on validation", "λ = 0.1", "λ = 1"]
    assert legend(figure) == found
    assert not any(axis.get_legend() for axis in axes.flat)
    bottom = min(axis.get_tightbbox().y0 for axis in axes.flat)
    assert figure.legends[0].get_window_extent().y1 <= bottom


def test_the_title_of_a_runs_curves_is_no_folder(tmp_path, monkeypatch, figures):
    from types import SimpleNamespace

    write_rows(tmp_path / "curves.csv", rows(), append=False)
    monkeypatch.setattr(style, "run_folder", lambda _: tmp_path)
    summary = {"members": [{}], "dataset": "small", "hidden": 50}
    trainer = SimpleNamespace(callbacks=[], lightning_module=OneLayer(inputs=12, classes=3))
    PlotCurves().on_summary(trainer, summary)
    ((figure, _),) = figures
    assert figure.get_suptitle() == "50 hidden units, small"


@pytest.mark.parametrize("l2s", [(0.004, 0.005, 0.006), [10.0**-i for i in range(12)]])
def test_labels_of_l2_do_not_overlap(tmp_path, figures, l2s):
    row = {"cost": 1.0, "train_loss": 0.9, "train_accuracy": 0.5, "val_accuracy": 0.4}
    found = [{"l2": l2, "val_error": 0.01, **row} for l2 in l2s]
    plot_path(found, [[0.1] * len(l2s)] * 2, l2s[0], 1e-6, tmp_path / "path.png")
    ((_, axes),) = figures
    boxes = [
        text.get_window_extent()
        for text in axes[0, 0].get_xticklabels() + axes[0, 0].get_xticklabels(minor=True)
        if text.get_text() and 0 <= axes[0, 0].transAxes.inverted().transform(
            (text.get_window_extent().x0 + text.get_window_extent().width / 2, 0))[0] <= 1
    ]  # fmt: skip
    boxes.sort(key=lambda box: box.x0)
    assert len(boxes) >= 2
    assert all(a.x1 < b.x0 for a, b in pairwise(boxes))


def test_a_few_bad_l2_do_not_take_the_height(tmp_path, figures):
    found = [
        {"stage": 1, "index": i, "l2": 10.0 ** (i / 4 - 5), "seed": 0, "diverged": False,
         "val_loss": 1.0, "val_accuracy": 0.1 if i > 16 else 0.5 + 0.001 * i}
        for i in range(19)
    ]  # fmt: skip
    candidates = aggregate(found, 5000)
    best = choose(candidates, "best")
    plot_search(found, candidates, best, best, tmp_path / "search.png", "")
    ((_, axes),) = figures
    low, high = axes[0, 0].get_ylim()
    assert low > 40
    assert high > 100 * best.mean
    assert "2 λ below the chart" in labels(axes[0, 0])


@pytest.mark.parametrize("k", [10, 100])
def test_a_test_report_names_classes_and_its_bars_do_not_overlap(tmp_path, figures, k):
    bins = [{"samples": 5, "confidence": c, "accuracy": c} for c in (0.19, 0.21, 0.3, 0.999)]
    report = {
        "classes": [{"class": f"class {i}"} for i in range(k)], "samples": 20, "accuracy": 0.5,
        "confusion": [[1] * k] * k, "bins": bins, "calibration_error": 0.1,
        "networks": "the network", "dataset": "x",
    }  # fmt: skip
    plot_test(report, tmp_path / "test.png")
    ((_, axes),) = figures
    names = [text.get_text() for text in axes[0, 0].get_yticklabels()]
    assert names[:2] == ["class 0", "class 1" if k == 10 else "class 2"]
    bars = sorted((bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes[0, 1].patches)
    assert all(a[1] < b[0] for a, b in pairwise(bars))
