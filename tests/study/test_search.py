"""``onelayer search`` on tiny data: what it leaves, and what kills and company cannot change."""

import csv
import json
import subprocess
import sys
import threading

import pytest
import yaml
from PIL import Image

from onelayer.__main__ import main
from onelayer.data.datamodule import CIFAR10DataModule
from onelayer.study import search
from onelayer.study.data import sealed
from tests.study.tiny import FIGURES, TINY, read_ledger, read_trials


def trials(database):
    return read_ledger(f"sqlite:///{database}")


def test_a_search_leaves_all_that_it_promises(undisturbed):
    with (undisturbed / "search.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 4 * 2
    assert {row["diverged"] for row in rows} == {"False"}
    with Image.open(undisturbed / "search.png") as picture:
        assert min(picture.size) > 400
    ledger = trials(undisturbed / "search.db")
    assert len(ledger) == 16
    for row in rows:
        kept = ledger[int(row["stage"]), int(row["index"]), int(row["seed"])]
        assert [float(row["l2"]), *(float(row[name]) for name in FIGURES)] == [kept[0], *kept[2:]]
    found = json.loads((undisturbed / "search.json").read_text())
    assert [m["seed"] for m in found["final"]["members"]] == [0, 1]
    assert all("test" in m for m in found["final"]["members"])


def test_the_second_stage_lies_within_the_best_of_the_first(undisturbed):
    with (undisturbed / "search.csv").open() as file:
        rows = list(csv.DictReader(file))
    means = {}
    for row in (row for row in rows if row["stage"] == "1"):
        means.setdefault(float(row["l2"]), []).append(float(row["val_accuracy"]))
    best = sorted(means, key=lambda l2: (-sum(means[l2]), -l2))[:2]
    second = {float(row["l2"]) for row in rows if row["stage"] == "2"}
    assert min(best) <= min(second) <= max(second) <= max(best)


def test_best_yaml_is_run_by_fit_as_it_is(undisturbed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "-c", str(undisturbed / "best.yaml")]) == 0
    ours = json.loads((tmp_path / "lightning_logs/best/version_0/summary.json").read_text())
    final = json.loads((undisturbed / "search.json").read_text())["final"]
    assert ours["members"] == final["members"]
    assert yaml.safe_load((undisturbed / "best.yaml").read_text())["model"]["seeds"] == [0, 1]


def test_searched_again_it_trains_nothing_and_says_the_same(undisturbed, capsys, monkeypatch):
    before = trials(undisturbed / "search.db")
    monkeypatch.setattr(search.Search, "train", lambda *_: pytest.fail("trained again"))
    assert main(["search", *TINY, "--output", str(undisturbed)]) == 0
    assert trials(undisturbed / "search.db") == before
    assert "<- chosen" in capsys.readouterr().out


def test_another_rule_needs_no_training_of_the_stages(undisturbed, monkeypatch):
    monkeypatch.setattr(search.Search, "train", lambda *_: pytest.fail("trained again"))
    assert main(["search", *TINY, "--search.rule=best", "--output", str(undisturbed)]) == 0
    found = json.loads((undisturbed / "search.json").read_text())
    assert found["l2"] == found["best"]["l2"]


def test_a_ledger_of_another_setting_is_refused_by_name(undisturbed, capsys):
    assert main(["search", *TINY, "--search.number=5", "--output", str(undisturbed)]) == 2
    assert "search.number is 5 here but 4 in the ledger" in capsys.readouterr().err
    assert main(["search", *TINY, "--data.seed=3", "--output", str(undisturbed)]) == 2
    assert "data.seed is 3 here but 0 in the ledger" in capsys.readouterr().err


def test_two_processes_share_the_trials_and_train_none_twice(undisturbed, tmp_path):
    command = [sys.executable, "-m", "onelayer", "search", *TINY, "--output", "out"]
    processes = [
        subprocess.Popen(command, cwd=tmp_path, env=None, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [""] * 2

    def read(i):
        outputs[i] = processes[i].communicate(timeout=200)[0]

    readers = [threading.Thread(target=read, args=(i,)) for i in range(2)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert [p.returncode for p in processes] == [0, 0], outputs
    assert trials(tmp_path / "out" / "search.db") == trials(undisturbed / "search.db")
    everything = read_trials(f"sqlite:///{tmp_path / 'out' / 'search.db'}")
    assert len(everything) == 16  # none failed, none entered twice


def test_the_test_split_is_sealed_from_the_search():
    data = sealed(CIFAR10DataModule(source="synthetic", limit=20))
    for use in (lambda: data.labelled("test"), data.test_dataloader, lambda: data.tensors("test")):
        with pytest.raises(PermissionError, match="sealed"):
            use()
    assert CIFAR10DataModule(source="synthetic", limit=20).labelled("test") is not None


def test_a_search_whose_networks_all_diverge_ends_with_a_clear_error(tmp_path, capsys):
    output = tmp_path / "what?x=1"
    wild = ["--schedule.max_lr=1e15", "--search.stages=1", "--output", str(output)]
    assert main(["search", *TINY, *wild]) == 2
    assert "every network of the search diverged" in capsys.readouterr().err
    with (output / "search.csv").open() as file:
        assert {row["diverged"] for row in csv.DictReader(file)} == {"True"}
    assert list(tmp_path.rglob("*.db")) == [output / "search.db"]
