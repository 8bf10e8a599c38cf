"""``onelayer solve`` from its words to its files, cut and run again, and what it refuses."""

import csv
import errno
import json
import os
import signal
import sys
from itertools import takewhile

import numpy as np
import pytest
import torch
import yaml

from onelayer import CIFAR10DataModule, load_network, solve
from onelayer.__main__ import main
from onelayer.configs import find_config
from onelayer.data.augment import mirror
from onelayer.data.features import Joined
from onelayer.study import resumable_solve
from onelayer.study.l2_path import Grid, stratified
from onelayer.training.optimality import joined
from tests.support.processes import Forked, command, ranks

TINY = [
    "solve", "--data.source=synthetic", "--data.limit=60", "--data.val_size=60",
    "--solve.l2=[0.1,1.0]",
]  # fmt: skip


@pytest.fixture(scope="module")
def solved(tmp_path_factory):
    """A path of two λ, solved once for several tests."""
    folder = tmp_path_factory.mktemp("solve")
    assert main([*TINY, f"--output={folder / 'run'}"]) == 0
    return folder / "run"


def test_the_shipped_config_is_understood():
    shipped = yaml.safe_load(find_config("solve").read_text(encoding="utf-8"))
    assert len(Grid(**shipped["solve"]).values()) == 20


def test_it_leaves_figures_and_networks(solved):
    summary = json.loads((solved / "summary.json").read_text())
    assert [member["l2"] for member in summary["members"]] == [0.1, 1.0]
    assert all(0 <= member["gap"] <= 1e-6 for member in summary["members"])
    assert summary["final"]["gap"] <= 1e-6
    assert summary["final"]["l2"] == summary["l2"]
    with (solved / "path.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_accuracy"]) for row in rows] == [
        member["val_accuracy"] for member in summary["members"]
    ]
    assert (solved / "path.png").is_file()
    path, last = (load_network(solved / "checkpoints" / f"{n}.ckpt") for n in ("path", "last"))
    assert [member.l2 for member in path.members] == [0.1, 1.0]
    assert path.validation["accuracy"] == [m["val_accuracy"] for m in summary["members"]]
    assert [member.l2 for member in last.members] == [summary["l2"]]
    assert last.learned_from == ["train", "val"]
    assert sorted(p.name for p in (solved / "checkpoints").iterdir()) == ["last.ckpt", "path.ckpt"]


@pytest.mark.parametrize("name", ["path", "last"])
def test_its_networks_are_tested_with_their_gaps(solved, name, capsys):
    assert main(["test", f"--ckpt_path={solved}/checkpoints/{name}.ckpt"]) == 0
    lines = capsys.readouterr().out.splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("distance to the minimum"))
    gaps = [
        float(line.split()[-1]) for line in takewhile(str.strip, lines[head + 2 :]) if "e-" in line
    ]
    assert len(gaps) == (2 if name == "path" else 1)
    assert all(gap <= 1e-6 for gap in gaps)


def test_it_is_measured_once(solved, capsys):
    before = (solved / "summary.json").stat().st_mtime_ns
    assert main([*TINY, f"--output={solved}"]) == 0
    assert "nothing was left to do" in capsys.readouterr().out
    assert (solved / "summary.json").stat().st_mtime_ns == before


def test_a_folder_of_other_settings_is_refused(solved, capsys):
    assert main([*TINY, "--solve.gap=1e-3", f"--output={solved}"]) == 2
    error = capsys.readouterr().err
    assert "gap is 0.001 here but 1e-06" in error
    assert len(error.splitlines()) == 2


def same(run, other):
    """Whether two runs left the same figures, all but seconds."""
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (run, other))
    del ours["seconds"], theirs["seconds"]
    curves = [(folder / "path.csv").read_bytes() for folder in (run, other)]
    return ours == theirs and curves[0] == curves[1]


def test_stopped_after_any_round_it_ends_with_the_same_bits(tmp_path, solved, monkeypatch):
    saves, save = [], resumable_solve.ResumableSolver.save

    def stop(work):
        save(work)
        saves.append([part.state.round for part in work.parts.values() if part.state])
        if len(saves) % 5 == 0:
            raise KeyboardInterrupt

    monkeypatch.setattr(resumable_solve.ResumableSolver, "save", stop)
    codes = []
    while not codes or codes[-1] == 130:
        codes.append(main([*TINY, f"--output={tmp_path}"]))
        assert len(codes) < 20
    assert codes[-1] == 0
    assert len(codes) > 2
    assert saves == sorted(saves)  # no round is repeated
    assert same(tmp_path, solved)


def killed_within_a_round(words):
    """Run a command that is killed in the third round."""
    follow = resumable_solve.ResumableSolver._follow

    def within_a_round(solver, part, now, bar):
        follow(solver, part, now, bar)
        if len(part.curve) == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    resumable_solve.ResumableSolver._follow = within_a_round
    return main(words)


def test_killed_within_a_round_it_ends_with_the_same_bits(tmp_path, solved):
    words = [*TINY, f"--output={tmp_path}"]
    with Forked(killed_within_a_round, words, folder=tmp_path) as process:
        assert process.wait() == -signal.SIGKILL
    assert main(words) == 0
    assert same(tmp_path, solved)


def test_the_same_command_gives_the_same_bits(tmp_path):
    for name in "abc":
        assert main([*TINY, "--solve.folds=3", f"--output={tmp_path / name}"]) == 0
    assert same(tmp_path / "a", tmp_path / "b")
    assert same(tmp_path / "a", tmp_path / "c")


def test_folds_choose_and_all_rows_learn(tmp_path):
    assert main([*TINY, "--solve.folds=3", f"--output={tmp_path}"]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["best"]["seeds"] == 3
    path, last = (load_network(tmp_path / "checkpoints" / f"{n}.ckpt") for n in ("path", "last"))
    chosen = [member.l2 for member in path.members].index(summary["l2"])
    assert torch.equal(last.W[0], path.W[chosen])
    assert path.learned_from == ["train", "val"]


@pytest.mark.parametrize("folds", [0, 2])
def test_mirror_images_are_learned_from_too(folds, tmp_path, capsys):
    asked = [*TINY, "--data.flip=true", f"--solve.folds={folds}"]
    assert main([*asked, f"--output={tmp_path}"]) == 0
    data = CIFAR10DataModule(source="synthetic", limit=60, val_size=60)
    X, y, _ = joined(data, ["train", "val"] if folds else ["train"])
    X = X.index_select(0, torch.arange(len(y)))
    path = solve(torch.cat([X, mirror(X, (3, 32, 32))]), torch.cat([y, y]), [0.1, 1.0], 1e-8)
    found = load_network(tmp_path / "checkpoints" / "path.ckpt")
    torch.testing.assert_close(found.W.double(), path.W, atol=1e-3, rtol=0.01)
    capsys.readouterr()
    assert main(["test", f"--ckpt_path={tmp_path}/checkpoints/path.ckpt"]) == 0
    gaps = [line.split()[-1] for line in capsys.readouterr().out.splitlines() if "e-" in line]
    assert len(gaps) == 2
    assert all(float(gap) <= 1e-6 for gap in gaps)


def test_images_without_number_have_no_optimum(tmp_path, capsys):
    assert main([*TINY, "--data.shift=1", f"--output={tmp_path}"]) == 2
    assert "data.shift" in capsys.readouterr().err


def test_processes_share_the_rows(tmp_path, solved):
    words = [*TINY, "--solve.gap=1e-2", f"--output={tmp_path}"]
    processes = [command(words, folder=tmp_path, environment=rank) for rank in ranks(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert "test" in processes[0].out
    assert processes[1].out == ""
    ours, theirs = (json.loads((run / "summary.json").read_text()) for run in (tmp_path, solved))
    assert ours["final"]["cost"] == pytest.approx(theirs["final"]["cost"], abs=1e-2)
    assert ours["final"]["gap"] <= 1e-2
    assert ours["l2"] == theirs["l2"]


def test_of_every_class_each_fold_has_as_many():
    y = torch.tensor([0] * 10 + [1] * 25 + [2] * 7)
    folds = stratified(y, 3, seed=1)
    counts = torch.stack([torch.bincount(y[folds == fold], minlength=3) for fold in range(3)])
    assert (counts.amax(0) - counts.amin(0)).max() <= 1
    assert not torch.equal(folds, stratified(y, 3, seed=2))


def test_joined_features_are_their_concatenation():
    pieces = torch.randn(5, 3), torch.randn(4, 3)
    both, X = Joined(pieces), torch.cat(pieces)
    index = torch.tensor([8, 0, 4, 5, 5])
    assert torch.equal(both.index_select(0, index), X[index])
    assert torch.equal(torch.cat(list(both.split(2))), X)
    assert both.shape == X.shape


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--solve.l2=[0.0]", "not 0: without a penalty"),
        ("--solve.l2=[-1.0]", "number > 0"),
        ("--solve.l2_min=0", "l2_min must be"),
        ("--solve.l2_max=1e-9", "l2_min must be <= solve.l2_max"),
        ("--solve.number=0", "number must be"),
        ("--solve.gap=0", "gap must be"),
        ("--solve.folds=1", "folds must be 0, or 2 or more"),
        ("--solve.rule=worst", "rule must be one of"),
        ("--data.val_size=0", "validation split"),
    ],
)
def test_bad_options_are_named(option, words, tmp_path, capsys):
    words_ = [w for w in TINY if w.split("=")[0] != option.split("=")[0]]
    assert main([*words_, option, f"--output={tmp_path / 'x'}"]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) <= 4
    assert not (tmp_path / "x").exists()


def test_lambdas_are_spaced_evenly_in_their_logarithm():
    assert Grid(number=3, l2_min=1e-4, l2_max=1e-2).values() == pytest.approx([1e-4, 1e-3, 1e-2])
    assert Grid(number=1).values() == [1e-5]
    assert Grid(l2=[0.3, 0.1]).values() == [0.3, 0.1]


def test_data_of_ones_own_are_solved_too(tmp_path, monkeypatch, capsys):
    """Without a test split: the network is refitted, and measured nowhere else."""
    monkeypatch.chdir(tmp_path)
    g = np.random.default_rng(0)
    y = np.array(["cat", "dog", "owl"])[g.integers(0, 3, 90)]
    np.savez("own.npz", X=g.normal(size=(90, 5)), y=y)
    words = [
        "solve",
        "--data",
        "ArraysDataModule",
        "--data.train",
        "own.npz",
        "--solve.l2=[0.01,0.1]",
    ]
    assert main([*words, "--data.val_size=30"]) == 0
    said = capsys.readouterr().out
    assert "linear softmax, own" in said
    assert ", test " not in said
    network = load_network("lightning_logs/solve/checkpoints/last.ckpt")
    assert (network.inputs, network.classes) == (5, ["cat", "dog", "owl"])
    predict = ["predict", "--ckpt_path=lightning_logs/solve", "--data.predict=own.npz"]
    assert main(predict) == 0
    with open("predictions.csv") as file:
        assert set(csv.DictReader(file).fieldnames) >= {"cat", "dog", "owl"}


def test_a_closed_stderr_ends_no_solve(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stderr", None)
    assert main([*TINY, "--output=out"]) == 0
    assert (tmp_path / "out" / "summary.json").is_file()


def test_after_a_full_disk_a_solve_advises_what_it_has(tmp_path, monkeypatch, capsys):
    def full(path, content):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("onelayer.training.checkpoint.atomic_write", full)
    assert main([*TINY, "--output=out"]) == 2
    error = capsys.readouterr().err
    assert "No space left on device" in error
    assert "run the same command again" in error
    assert "--ckpt_path" not in error
