"""onelayer range: what it prints, and what it leaves."""

import csv

import pytest

from onelayer.__main__ import main

TINY = [
    "range", "--data.source=synthetic", "--data.limit=60", "--data.val_size=200",
    "--data.batch_size=10", "--range.steps=40", "--range.points=8", "--range.max_lr=0.5",
]  # fmt: skip


@pytest.mark.usefixtures("drawn")
def test_it_leaves_a_table_and_a_picture_and_says_what_to_type(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([*TINY, "--model.l2=[0.0,0.1]", "--model.seeds=[0,1]"]) == 0
    said = capsys.readouterr().out
    option = next(line for line in said.splitlines() if line.startswith("--schedule.base_lr"))
    folder = tmp_path / "lightning_logs" / "range"
    assert {path.name for path in folder.iterdir()} >= {"range.csv", "range.png"}
    with (folder / "range.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["l2"] for row in rows} == {"0.0", "0.1"}
    assert [float(row["lr"]) for row in rows] == sorted(float(row["lr"]) for row in rows)
    typed = [*TINY[1:5], "--schedule.step_size=5", *option.split()]
    assert main(["fit", *typed, "--trainer.enable_progress_bar=false"]) == 0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--range.min_lr=1", "min_lr must be below max_lr"),
        ("--range.points=1", "points must be a whole number from 2 to 40"),
        ("--data.val_size=0", "a range test needs a validation split"),
    ],
)
def test_what_makes_no_test_is_refused_and_leaves_nothing(
    tmp_path, monkeypatch, capsys, option, message
):
    monkeypatch.chdir(tmp_path)
    assert main([*TINY, option]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
