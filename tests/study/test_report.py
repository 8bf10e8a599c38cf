"""The report: every exercise with its figures, and what is finished is not trained again."""

import re

import pytest

from onelayer.__main__ import main
from onelayer.study import report
from onelayer.training.module import OneLayer

QUICK = [
    "report", "--data.source=synthetic", "--data.limit=200", "--step_size=4", "--seeds=[0,1]",
    "--search.number=3", "--search.stages=1", "--output=docs", "--runs=runs",
]  # fmt: skip


def member(accuracy):
    figures = {"cost": 2.0, "loss": 1.5, "accuracy": accuracy}
    return {"l2": 0.0, "seed": 0, "test": figures}


@pytest.mark.parametrize(("published", "within"), [(48.0, "yes"), (56.0, "yes"), (59.3, "no")])
def test_a_published_figure_within_two_deviations_is_said_to_be(published, within):
    """Ours are 40 and 50: mean 45, standard deviation 7.07."""
    row = report._row("an exercise", "linear", "test", published, None, [member(0.4), member(0.5)])
    assert row.endswith(f"| {published:g} |  | 45.00 ± 7.07 | {within} |")


@pytest.mark.filterwarnings("ignore:training stops in mid-cycle")
def test_the_report_has_every_exercise_and_repeats_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(QUICK) == 0
    text = (tmp_path / "docs" / "report.md").read_text()
    headings = re.findall(r"^## (.*)", text, re.MULTILINE)
    for part in ("Gradients", "Results", "overfit", "one cycle", "three cycles", "final", "Search"):
        assert any(part in heading for heading in headings), part
    assert "built-in synthetic images, not of CIFAR-10" in text
    pictures = re.findall(r"!\[.+\]\((.+\.png)\)", text)
    assert sorted(pictures) == sorted(p.name for p in (tmp_path / "docs").glob("*.png"))
    assert text.count("Made by") >= len(pictures)
    table = [line for line in text.splitlines() if re.search(r"\| (train|val|test) \|", line)]
    assert len(table) == 30  # four trainings and the search's, two networks, three splits
    assert all(" ± " in line for line in table)

    monkeypatch.setattr(OneLayer, "update", lambda *_: pytest.fail("trained again"))
    assert main(QUICK) == 0
    assert (tmp_path / "docs" / "report.md").read_text() == text
