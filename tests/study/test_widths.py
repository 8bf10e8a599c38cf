"""How far one layer goes: a row for each width, and what the section shows of them."""

import json

import pytest
from PIL import Image

from onelayer.__main__ import main
from onelayer.study.comparison_figures import plot_widths
from onelayer.study.plan import Repeat
from onelayer.study.report import Report
from onelayer.study.widths import KINDS, best_width, width_row, widths_table

SHORT = [
    "--data.source=synthetic", "--data.limit=60", "--data.val_size=60", "--data.batch_size=20",
    "--schedule.step_size=2", "--final.seeds=[0,1]", "--final.step_size=2",
    "--final.val_size=60", "--final.batch_size=20", "--final.cycles=1", "--search.number=2",
]  # fmt: skip


def test_the_shipped_config_makes_a_row(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--model.hidden=3", "--data.flip=true", "--data.shift=2", "--output=out"]
    assert main(["search", "-c", "widths", *SHORT, *options]) == 0
    found = json.loads((tmp_path / "out" / "search.json").read_text())
    assert found["settings"]["trainer.precision"] == "bf16-mixed"
    row = width_row(3, True, found)
    assert row["parameters"] == 3 * 3073 + 10 * 4
    assert row["networks"] == 2
    tests = [member["test"]["accuracy"] for member in found["final"]["members"]]
    assert row["test"] == pytest.approx(sum(tests) / 2)
    assert 0 <= row["test_ensemble"] <= 1
    assert row["l2"] in {candidate["l2"] for candidate in found["candidates"]}


def made_up(hidden, augmented, accuracy, test=None):
    figures = {"accuracy": accuracy, "cost": 1.0, "loss": 1.0}
    other = {**figures, "accuracy": accuracy if test is None else test}
    members = [{"l2": 0.1, "train": figures, "val": figures, "test": other} for _ in range(2)]
    final = {"members": members, "steps": 4, "seconds": 2.0 + hidden}
    return width_row(hidden, augmented, {"l2": 0.1, "final": final})


def test_the_best_width_is_validations():
    rows = [made_up(0, False, 0.4, test=0.9), made_up(5, True, 0.6), made_up(9, False, 0.5)]
    assert best_width(rows) is rows[1]


def test_a_width_whose_networks_diverged_is_told():
    members = [{"l2": 0.1, "train": {"accuracy": 0.1}, "diverged": True}]
    row = width_row(5, True, {"l2": 0.1, "final": {"members": members, "steps": 4, "seconds": 2}})
    assert row["networks"] == 0
    assert row["test"] is None
    assert "| diverged |" in widths_table([row])


@pytest.mark.usefixtures("drawn")
def test_table_and_picture(tmp_path):
    rows = [made_up(h, a, 0.3 + h / 100) for a in (False, True) for h in (0, 5, 20)]
    table = widths_table(rows).splitlines()
    assert len(table) == 2 + 6
    assert "| 20 | flipped and shifted | 61,670 | 0.1 | 50.00 ± 0.00 |" in table[-1]
    plot_widths(rows, KINDS, tmp_path / "widths.png", "synthetic")
    with Image.open(tmp_path / "widths.png") as picture:
        assert min(picture.size) > 400


def test_every_row_of_a_report_is_a_search_of_its_own(tmp_path):
    report = Report(
        tmp_path, {"source": "synthetic", "limit": 60},
        Repeat(str(tmp_path), [0, 1], widths=[0, 3]), schedule={"step_size": 2},
    )  # fmt: skip
    finds = [find for *_, find in report._widths()]
    assert len({report._folder(find) for find in finds}) == 4
    assert str(finds[3]).startswith("onelayer search -c widths --model.hidden 3")
    assert "--data.flip true --data.shift 2" in str(finds[3])
