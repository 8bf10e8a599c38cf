"""Data of one's own from the command line: --data names a class, d and k come from the data."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from onelayer.__main__ import main
from onelayer.training.checkpoint import load_network, read_checkpoint
from tests.support.own import NAMES, arrays

pytest.importorskip("sklearn")

from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

QUIET = "--trainer.enable_progress_bar=false"
SHORT = ["--schedule.step_size=10", QUIET]
THEIRS = ["--data=tests.support.own.Theirs"]
pytestmark = pytest.mark.filterwarnings(
    "ignore:The '.*_dataloader' does not have many workers", "ignore:The number of training batches"
)


def run(name="fit", version=0):
    return Path("lightning_logs") / name / f"version_{version}"


def summary(name="fit", version=0):
    return json.loads((run(name, version) / "summary.json").read_text())


def bits(checkpoint):
    return read_checkpoint(checkpoint)["state_dict"]


def save_digits(n=600):
    """scikit-learn's digits with names, 64 features of 10 classes."""
    digits = load_digits()
    names = np.array(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    )
    X, y = digits.data.astype(np.float32), digits.target
    np.savez("digits.npz", X=X[:n], y=y[:n], classes=names)
    np.savez("digits_test.npz", X=X[n : n + 200], y=y[n : n + 200], classes=names)
    np.savez("new.npz", X=X[n + 200 : n + 210])
    return names


DIGITS = ["--data=ArraysDataModule", "--data.train=digits.npz", "--data.test=digits_test.npz"]


# ---- a data module that knows nothing of ours


def test_a_foreign_data_module_trains_resumes_is_tested_and_predicts(capfd):
    words = ["--model.l2=[0.0,0.1]", *THEIRS, *SHORT]
    assert main(["fit", "--data.n=70", *words]) == 0
    out, members = capfd.readouterr().out, summary()["members"]
    assert "linear softmax, Theirs, 20 updates" in out
    assert all(
        set(m[s]) == {"cost", "loss", "accuracy"} for m in members for s in m if s in "trainvaltest"
    )
    assert {"train", "val", "test"} <= members[0].keys()
    with (run() / "curves.csv").open() as file:
        steps = sorted({int(row["step"]) for row in csv.DictReader(file) if row["split"] == "val"})
    assert steps == list(range(0, 21, 2))
    saved = yaml.safe_load((run() / "config.yaml").read_text())
    assert (saved["model"]["inputs"], saved["model"]["classes"]) == (6, 4)
    assert main(["fit", "--ckpt_path", str(run()), "--trainer.max_steps=40"]) == 0
    assert summary()["steps"] == 40
    assert main(["test", *THEIRS, "--ckpt_path=last", QUIET]) == 0
    capfd.readouterr()
    assert main(["predict", *THEIRS, "--ckpt_path=last", QUIET]) == 0
    assert "40 rows, classified by" in capfd.readouterr().out
    with open("predictions.csv") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["row", "class", "probability", "0", "1", "2", "3"]
    assert [row[0] for row in rows[1:]] == [str(i) for i in range(40)]


def test_its_splits_are_measured_as_its_loaders_give_them():
    from tests.support.own import Theirs

    assert main(["fit", *THEIRS, *SHORT]) == 0
    network, data = load_network(run() / "checkpoints/last.ckpt"), Theirs()
    data.setup("fit")
    for split in ("train", "val"):
        X, y = getattr(data, split).tensors
        mine = network.evaluate(X.flatten(1), y)
        kept = summary()["members"][0][split]
        assert kept == pytest.approx({name: float(value[0]) for name, value in mine.items()})


def test_measuring_by_a_shuffling_loader_changes_no_bit_of_the_training():
    for n, every in enumerate((1, 5)):
        torch.manual_seed(0)
        assert main(["fit", *THEIRS, *SHORT, f"--curves.per_cycle={every}"]) == 0
        assert summary(version=n)["steps"] == 20
    one, five = (bits(run(version=n) / "checkpoints/last.ckpt") for n in (0, 1))
    assert torch.equal(one["W"], five["W"])


def test_a_checkpoint_never_imports_somebody_elses_class_by_itself(capfd):
    assert main(["fit", *THEIRS, *SHORT]) == 0
    for command in ("test", "validate", "predict"):
        capfd.readouterr()
        assert main([command, "--ckpt_path=last"]) == 2
        error = capfd.readouterr().err
        assert "type --data tests.support.own.Theirs" in error
        assert len(error.strip().splitlines()) <= 5


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("nosuch.Data", "No module named 'nosuch'"),
        ("tests.support.own.Thiers", "no attribute 'Thiers'"),
        ("tests.support.own.NoModule", "is no LightningDataModule"),
        ("Arrays", "there is no data module 'Arrays'"),
    ],
)
def test_a_class_that_is_none_is_told_with_those_there_are(capfd, name, told):
    assert main(["fit", "--data", name]) == 2
    error = capfd.readouterr().err
    assert told in error
    assert "ArraysDataModule" in error
    assert len(error.strip().splitlines()) <= 5


def test_a_config_may_name_the_class_and_cifars_options_in_another_are_left_out():
    with open("mine.yaml", "w") as file:
        yaml.safe_dump({"data": {"class_path": THEIRS[0][7:], "init_args": {"n": 60}}}, file)
    assert main(["fit", "-c", "one_cycle", "-c", "mine.yaml", *SHORT]) == 0
    assert summary("one_cycle+mine")["dataset"] == "Theirs"
    saved = yaml.safe_load((run("one_cycle+mine") / "config.yaml").read_text())
    assert saved["data"]["init_args"]["n"] == 60


# ---- arrays: scikit-learn's digits as .npz with names


def test_digits_train_with_their_names_and_nothing_else_need_be_typed(capfd):
    names = save_digits()
    assert main(["fit", *DIGITS, "--schedule.step_size=150", QUIET]) == 0
    figures = summary()["members"][0]
    assert summary()["dataset"] == "digits"
    reference = LogisticRegression(max_iter=2000)
    train, test = np.load("digits.npz"), np.load("digits_test.npz")
    scale = train["X"].std(0).clip(1e-9) + (train["X"].std(0) == 0)
    reference.fit(train["X"] / scale, train["y"])
    theirs = reference.score(test["X"] / scale, test["y"])
    assert figures["test"]["accuracy"] > theirs - 0.04
    capfd.readouterr()
    assert main(["test", "--ckpt_path=last", QUIET]) == 0
    assert f"{100 * figures['test']['accuracy']:.2f}" in capfd.readouterr().out
    assert main(["validate", "--ckpt_path=last", QUIET]) == 0
    assert f"{100 * figures['val']['accuracy']:.2f}" in capfd.readouterr().out
    assert main(["predict", "--ckpt_path=last", "--data.predict=new.npz", QUIET]) == 0
    with open("predictions.csv") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[3:] == names.tolist()
    network = load_network(run() / "checkpoints/last.ckpt")
    X = (torch.from_numpy(np.load("new.npz")["X"]).double() - network.mean) / network.std
    P = network.predict_proba(X.float())
    assert [row["class"] for row in rows] == [names[k] for k in P.argmax(1)]
    assert [float(row["nine"]) for row in rows] == pytest.approx(P[:, 9].tolist(), abs=1e-6)


def test_a_run_that_was_moved_without_its_config_predicts_all_the_same(capfd, tmp_path):
    save_digits()
    assert main(["fit", *DIGITS, *SHORT]) == 0
    shutil.copy(run() / "checkpoints/last.ckpt", "kept.ckpt")
    shutil.rmtree("lightning_logs")
    (tmp_path / "digits.npz").unlink()
    capfd.readouterr()
    predict = ["predict", "--ckpt_path=kept.ckpt", "--data.predict=new.npz", QUIET]
    assert main(predict) == 0
    assert main(["test", "--ckpt_path=kept.ckpt", "--data.test=digits_test.npz", QUIET]) == 0
    assert "linear softmax, digits, test split" in capfd.readouterr().out
    assert main(["test", "--ckpt_path=kept.ckpt", QUIET]) == 2
    assert "nothing to test on: set data.test" in capfd.readouterr().err
    np.savez("wide.npz", X=np.ones((3, 65), dtype=np.float32))
    assert main([*predict[:2], "--data.predict=wide.npz", QUIET]) == 2
    assert "wide.npz has 65 features, and the network was trained on 64" in capfd.readouterr().err


@pytest.mark.parametrize("data", [DIGITS, [*DIGITS, "--data.standardise=unit"]], ids=len)
def test_a_run_taken_up_at_an_earlier_checkpoint_ends_with_the_same_bits(data):
    """By the run's own config alone; kills are in benchmarks/own_data.py."""
    save_digits()
    assert main(["fit", *data, *SHORT, "--checkpoints.every=7", "--model.l2=[0.0,0.01]"]) == 0
    last, previous = (run() / "checkpoints" / f"{name}.ckpt" for name in ("last", "previous"))
    whole, curves = bits(last), (run() / "curves.csv").read_text()
    shutil.copy(previous, last)
    (run() / "summary.json").unlink()
    assert main(["fit", f"--ckpt_path={run()}"]) == 0
    again = bits(last)
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    assert (run() / "curves.csv").read_text() == curves


def test_images_in_a_table_are_changed_by_options(capfd):
    digits = load_digits()
    np.savez("images.npz", X=digits.images[:300, None].astype(np.float32), y=digits.target[:300])
    words = ["--data=ArraysDataModule", "--data.train=images.npz", "--data.batch_size=8"]
    assert main(["fit", *words, *SHORT, "--data.flip=true", "--data.shift=1"]) == 0
    assert main(["fit", f"--ckpt_path={run()}", "--trainer.max_steps=60"]) == 0
    again = ["fit", f"--ckpt_path={run()}", "--trainer.max_steps=80"]
    assert main([*again, "--data.shift=2"]) == 2
    assert "shift is 2 here but 1 in the checkpoint" in capfd.readouterr().err
    save_digits()
    assert main(["fit", *DIGITS, *SHORT, "--data.flip=true"]) == 2
    assert "data.flip needs images" in capfd.readouterr().err


@pytest.mark.usefixtures("drawn")
@pytest.mark.parametrize(("k", "d", "hidden"), [(2, 1, 0), (1000, 3, 4)])
def test_few_and_many_classes_and_one_feature_train(k, d, hidden):
    X, y = arrays(n=3 * k + 30, d=d, k=k)
    np.savez("a.npz", X=X, y=y)
    words = ["--data=ArraysDataModule", "--data.train=a.npz", "--data.batch_size=16"]
    assert main(["fit", *words, *SHORT, f"--model.hidden={hidden}", "--data.val_size=20"]) == 0
    assert load_network(run() / "checkpoints/last.ckpt").weights[-1].shape == (1, k)


def test_wide_features_train():
    X, y = arrays(n=40, d=20_000, k=2, dtype=np.float16)
    np.save("X.npy", X)
    np.save("y.npy", NAMES[y])
    words = ["--data=ArraysDataModule", "--data.train=[X.npy,y.npy]", "--data.batch_size=8"]
    assert main(["fit", *words, *SHORT]) == 0
    assert load_network(run() / "checkpoints/last.ckpt").inputs == 20_000
    assert read_checkpoint(run() / "checkpoints/last.ckpt")["data_module"]["classes"] == [
        "ash",
        "birch",
    ]


# ---- search


PLAN = [
    "--search.stages=1", "--search.number=3", "--search.seeds=[0]", "--search.top=1",
    "--final.seeds=[0]", "--final.step_size=5", "--final.cycles=1", "--schedule.step_size=5",
    "--schedule.cycles=1", "--model.hidden=0", "--output=out",
]  # fmt: skip


@pytest.mark.parametrize("data", [DIGITS, THEIRS], ids=["arrays", "foreign"])
def test_a_search_takes_the_data_in_the_same_way(capfd, data):
    save_digits()
    assert main(["search", *PLAN, *data]) == 0
    found = json.loads(Path("out/search.json").read_text())
    assert len(found["candidates"]) == 3
    assert set(found["final"]["members"][0]) >= {"train", "val", "test"}
    best = yaml.safe_load(Path("out/best.yaml").read_text())
    assert best["data"]["class_path"].endswith(data[0].rpartition(".")[2].removeprefix("--data="))
    assert "digits.npz" not in str(best)
    capfd.readouterr()
    assert main(["search", *PLAN, *data]) == 0  # finished: trains nothing again
    assert json.loads(Path("out/search.json").read_text()) == found


def test_a_search_of_other_rows_is_another_one(capfd):
    save_digits()
    assert main(["search", *PLAN, *DIGITS]) == 0
    save_digits(500)
    assert main(["search", *PLAN, *DIGITS]) == 2
    assert "rows is" in capfd.readouterr().err


HOSTILE = ["\x1b]0;title\x07\x1b[31mcat", "=cmd|'/C calc'!A0", "-1", "+x\n# head"]


@pytest.mark.usefixtures("drawn")
def test_hostile_names_reach_neither_the_terminal_nor_a_formula(capfd):
    X, y = arrays()
    np.savez("t.npz", X=X, y=y, classes=np.array(HOSTILE))
    np.savez("u.npz", X=X, y=y, classes=np.array([*HOSTILE[:3], "\x1b[2J"]))
    words = ["--data=ArraysDataModule", "--data.train=t.npz", "--data.batch_size=10", *SHORT]
    assert main(["fit", *words]) == 0
    assert main(["test", "--ckpt_path=last", "--data.test=t.npz", QUIET]) == 0
    assert main(["test", "--ckpt_path=last", "--data.test=u.npz", QUIET]) == 2
    assert main(["predict", "--ckpt_path=last", "--data.predict=t.npz", QUIET]) == 0
    said = "".join(capfd.readouterr())
    assert "\x1b" not in said
    assert "\n# head" not in said
    assert r"the label '\x1b[2J'" in said
    with open("predictions.csv", newline="") as file:
        rows = list(csv.reader(file))
    written = [r"\x1b]0;title\x07\x1b[31mcat", "'=cmd|'/C calc'!A0", "-1", r"'+x\n# head"]
    assert rows[0][3:] == written
    assert {row[1] for row in rows[1:]} <= set(written)
    assert load_network(run() / "checkpoints/last.ckpt").classes == HOSTILE


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["--data.standardise=l2"], "'unit']. Got value: l2"),
        (["--data.limit=3"], "limit"),
        (["--data.batch_size=541"], "batch_size must be a whole number from 1 to 540"),
    ],
)
def test_a_mistake_is_a_few_lines_and_leaves_nothing(capfd, typed, told):
    save_digits()
    assert main(["fit", *DIGITS, *SHORT, *typed]) == 2
    error = capfd.readouterr().err
    assert told in error
    assert len(error.strip().splitlines()) <= 5
    assert not Path("lightning_logs").exists()


# ---- what other commands have left


def test_a_printed_config_can_be_used_as_it_is(capfd):
    save_digits()
    with pytest.raises(SystemExit):
        main(["fit", *DIGITS, *SHORT, "--print_config"])
    printed = capfd.readouterr().out
    assert {yaml.safe_load(printed)["model"][name] for name in ("inputs", "classes")} == {None}
    Path("c.yaml").write_text(printed)
    assert main(["fit", "-c", "c.yaml"]) == 0
    saved = yaml.safe_load((run("c") / "config.yaml").read_text())
    assert (saved["model"]["inputs"], saved["model"]["classes"]) == (64, 10)
    assert "does not use" not in capfd.readouterr().err


@pytest.mark.filterwarnings("ignore:training stops in mid-cycle")
def test_what_solve_and_search_leave_is_tested_where_their_data_lie(capfd):
    save_digits()
    assert main(["solve", *DIGITS, "--solve.l2=[0.1]", "--output=solved"]) == 0
    words = ["--search.number=2", "--search.stages=1", "--final.seeds=[0]", "--model.hidden=2"]
    words += ["--schedule.step_size=3", "--final.step_size=3", "--final.cycles=1"]
    assert main(["search", *DIGITS, *words, "--output=searched"]) == 0
    (final,) = Path("searched").glob("final-*")
    for folder, figures in ((Path("solved"), "final"), (final, "members")):
        capfd.readouterr()
        assert main(["test", "--ckpt_path", str(folder), QUIET]) == 0
        kept = json.loads((folder / "summary.json").read_text())[figures]
        accuracy = (kept[0] if isinstance(kept, list) else kept)["test"]["accuracy"]
        assert f"{100 * accuracy:.2f}" in capfd.readouterr().out
