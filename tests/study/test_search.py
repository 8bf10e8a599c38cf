"""``onelayer search`` on tiny data: what it leaves, and what kills and company cannot change."""

import csv
import json

import pytest
import yaml
from PIL import Image

from onelayer.__main__ import main
from onelayer.data.cifar10 import CIFAR10DataModule
from onelayer.study import search
from tests.study.tiny import AXES, FIGURES, TINY, read_database, read_trials
from tests.support.processes import command


def trials(database):
    return read_database(f"sqlite:///{database}")


def test_a_search_leaves_all_that_it_promises(undisturbed):
    with (undisturbed / "search.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 4 * 2
    assert {row["diverged"] for row in rows} == {"False"}
    with Image.open(undisturbed / "search.png") as picture:
        assert min(picture.size) > 400
    database = trials(undisturbed / "search.db")
    assert len(database) == 16
    for row in rows:
        kept = database[int(row["stage"]), int(row["index"]), int(row["seed"])]
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


def test_a_search_for_l2_alone_keeps_what_it_always_kept(undisturbed):
    """Older trial databases go on, and who reads the files finds the same names."""
    found = json.loads((undisturbed / "search.json").read_text())
    figures = ["train_cost", "train_loss", "train_accuracy", "val_cost", "val_loss", "val_accuracy"]
    header = (undisturbed / "search.csv").read_text().splitlines()[0]
    assert header.split(",") == ["stage", "index", "l2", "seed", *figures, "diverged"]
    assert list(found) == ["settings", "candidates", "best", "one_se", "rule", "l2", "final"]
    assert list(found["best"]) == ["stage", "index", "l2", "mean", "error", "seeds", "loss"]
    assert found["settings"] == {
        "model.hidden": 2, "search.stages": 2, "search.number": 4, "search.l2_min": 1e-5,
        "search.l2_max": 0.1, "search.grid": False, "search.top": 2, "search.seeds": [0, 1],
        "search.seed": 0, "data.source": "synthetic", "data.train_batches": [1, 2, 3, 4, 5],
        "data.val_batches": None, "data.val_size": 100, "data.limit": 40, "data.batch_size": 10,
        "data.seed": 0, "schedule.base_lr": 1e-5, "schedule.max_lr": 0.1, "schedule.step_size": 3,
        "schedule.cycles": 1, "schedule.mode": "triangular", "schedule.gamma": 1.0,
    }  # fmt: skip
    first, *_ = read_trials(f"sqlite:///{undisturbed / 'search.db'}")
    assert list(first.params) == ["l2"]
    assert set(first.user_attrs) == {"stage", "index", "group", "seed", *figures}


# ---- other arguments beside λ


def rows_of(folder):
    with (folder / "search.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_setting_is_searched_as_if_it_were_alone(over_settings, undisturbed):
    rows = rows_of(over_settings)
    assert len(rows) == 2 * 4 * 4 * 2
    assert list(rows[0])[:6] == ["stage", "index", "flip", "hidden", "l2", "seed"]
    assert len({row["val_loss"] for row in rows}) == len(rows)  # no argument is ignored
    first = [row for row in rows if (row["flip"], row["hidden"]) == ("False", "2")]
    for row in first:
        del row["flip"], row["hidden"]
    assert first == rows_of(undisturbed)  # to the same bits
    database = read_trials(f"sqlite:///{over_settings / 'search.db'}")
    tried = [(trial.params["flip"], trial.params["hidden"]) for trial in database]
    assert {one: tried.count(one) for one in tried} == dict.fromkeys(
        [(flip, hidden) for flip in (False, True) for hidden in (2, 3)], 2 * 4 * 2
    )


def test_the_chosen_setting_is_trained_and_written(over_settings, tmp_path, monkeypatch):
    found = json.loads((over_settings / "search.json").read_text())
    best = max(found["candidates"], key=lambda c: c["mean"])
    assert found["best"]["mean"] == best["mean"]
    chosen = {name: found["best"][name] for name in ("flip", "hidden")}
    assert {name: found[name] for name in chosen} == chosen
    best = yaml.safe_load((over_settings / "best.yaml").read_text())
    typed = {"flip": best["data"]["flip"], "hidden": best["model"]["hidden"]}
    assert typed == chosen
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "-c", str(over_settings / "best.yaml")]) == 0
    ours = json.loads((tmp_path / "lightning_logs/best/version_0/summary.json").read_text())
    assert ours["members"] == found["final"]["members"]
    with Image.open(over_settings / "search.png") as picture:
        assert min(picture.size) > 400


def test_a_finished_search_over_settings_trains_nothing_and_other_values_are_another(
    over_settings, capsys, monkeypatch
):
    monkeypatch.setattr(search.Search, "train", lambda *_: pytest.fail("trained again"))
    again = ["search", *TINY, *AXES, "--output", str(over_settings)]
    assert main(again) == 0
    assert "stage  flip hidden " in capsys.readouterr().out
    assert main([*again, "--schedule.max_lr=0.1", "--model.hidden=7"]) == 0  # an axis replaces it
    assert main([*again, "--search.hidden=[2,4]"]) == 2
    assert "search.hidden is [2, 4] here but [2, 3] in the trial" in capsys.readouterr().err
    assert main(["search", *TINY, "--output", str(over_settings)]) == 2
    assert "search.hidden is None here but [2, 3] in the trial database" in capsys.readouterr().err


def test_a_setting_that_diverges_is_named_and_searched_no_further(tmp_path, capsys):
    output = ["--output", str(tmp_path / "out")]
    assert main(["search", *TINY, *output, "--search.max_lr=[0.1,1e15]", "--search.number=2"]) == 0
    rows = rows_of(tmp_path / "out")
    assert {(row["stage"], row["max_lr"]) for row in rows} == {
        ("1", "0.1"), ("1", "1000000000000000.0"), ("2", "0.1"),
    }  # fmt: skip
    assert "diverged, and no choice: max_lr=1000000000000000.0 l2 = " in capsys.readouterr().out


def test_an_argument_is_searched_or_holds_for_every_network(tmp_path):
    output = ["--output", str(tmp_path / "out"), "--search.stages=1", "--search.number=1"]
    both = ["--model.dropout=0.5", "--search.label_smoothing=[0.1]", "--model.label_smoothing=0.7"]
    assert main(["search", *TINY, *output, *both]) == 0
    best = yaml.safe_load((tmp_path / "out" / "best.yaml").read_text())
    assert (best["model"]["dropout"], best["model"]["label_smoothing"]) == (0.5, 0.1)
    found = json.loads((tmp_path / "out" / "search.json").read_text())
    assert found["settings"]["model.dropout"] == 0.5
    assert "model.label_smoothing" not in found["settings"]
    assert found["label_smoothing"] == 0.1
    assert "dropout" not in found


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
    assert "search.number is 5 here but 4 in the trial database" in capsys.readouterr().err
    assert main(["search", *TINY, "--data.seed=3", "--output", str(undisturbed)]) == 2
    assert "data.seed is 3 here but 0 in the trial database" in capsys.readouterr().err


def test_two_processes_share_the_trials_and_train_none_twice(undisturbed, tmp_path):
    words = ["search", *TINY, "--output", "out"]
    processes = [command(words, folder=tmp_path) for _ in range(2)]
    assert [p.wait() for p in processes] == [0, 0], [p.err for p in processes]
    assert trials(tmp_path / "out" / "search.db") == trials(undisturbed / "search.db")
    everything = read_trials(f"sqlite:///{tmp_path / 'out' / 'search.db'}")
    assert len(everything) == 16  # none failed, none entered twice


def test_a_search_reads_no_test_split_before_lambda_is_chosen(tmp_path, monkeypatch):
    read = CIFAR10DataModule._read

    def no_test(module, split):
        assert split != "test"
        return read(module, split)

    monkeypatch.setattr(CIFAR10DataModule, "_read", no_test)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError):  # the final networks are tested
        main(["search", *TINY, "--output=out"])
    assert len(trials("out/search.db")) == 16


def test_a_search_whose_networks_all_diverge_ends_with_a_clear_error(tmp_path, capsys):
    output = tmp_path / "what?x=1"
    wild = ["--schedule.max_lr=1e15", "--search.stages=1", "--output", str(output)]
    assert main(["search", *TINY, *wild]) == 2
    assert "every network of the search diverged" in capsys.readouterr().err
    with (output / "search.csv").open() as file:
        assert {row["diverged"] for row in csv.DictReader(file)} == {"True"}
    assert list(tmp_path.rglob("*.db")) == [output / "search.db"]
