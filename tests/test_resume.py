"""A run that is killed anywhere ends, once resumed, with the very bits of one that was not."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from onelayer.__main__ import main
from onelayer.training.folder import PREVIOUS
from tests.support.soak import FIT

REPOSITORY = Path(__file__).resolve().parents[1]


def test_kills_change_no_bit():
    """A short soak; make soak runs longer ones."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.soak", "--chains=2", "--seed=7"],
        cwd=REPOSITORY, env=os.environ, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fit chains: 1" in done.stdout
    assert "search chains: 1" in done.stdout
    assert int(re.search(r"kills in all: (\d+)", done.stdout)[1]) >= 4


@pytest.fixture
def finished(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert main(FIT) == 0
    capfd.readouterr()
    return tmp_path / "lightning_logs" / "fit" / "version_0"


def test_a_finished_run_resumed_does_nothing(finished, capfd):
    def files():
        return {
            path.name: path.read_bytes()
            for path in finished.rglob("*")
            if path.is_file() and "tfevents" not in path.name and path.suffix != ".png"
        }

    before = files()
    assert main([*FIT, "--ckpt_path=last"]) == 0
    assert "nothing was left to do" in capfd.readouterr().out
    assert files() == before
    assert [p.name for p in finished.parent.iterdir()] == ["version_0"]


def test_a_finished_run_taken_up_at_an_earlier_checkpoint_is_finished_again(finished, capfd):
    summary = json.loads((finished / "summary.json").read_text())
    curves = (finished / "curves.csv").read_text()
    assert main([*FIT, f"--ckpt_path={finished / 'checkpoints' / PREVIOUS}"]) == 0
    assert "nothing was left to do" not in capfd.readouterr().out
    again = json.loads((finished / "summary.json").read_text())
    assert again["members"] == summary["members"]
    assert (finished / "curves.csv").read_text() == curves


def test_a_run_killed_between_training_and_test_gets_its_test_figures(tmp_path, monkeypatch):
    """There is nothing left to train then, so no hook of a training's start is called."""
    monkeypatch.chdir(tmp_path)
    fit = [
        "fit", "--data.source=synthetic", "--data.limit=60", "--data.val_size=200",
        "--data.batch_size=30", "--schedule.step_size=5", "--trainer.enable_progress_bar=false",
    ]  # fmt: skip
    with monkeypatch.context() as killed:
        killed.setattr(Trainer, "test", lambda *_, **__: sys.exit(9))
        with pytest.raises(SystemExit):
            main(fit)
    assert main([*fit, "--ckpt_path=last"]) == 0
    (summary,) = tmp_path.glob("lightning_logs/fit/*/summary.json")
    assert set(json.loads(summary.read_text())["members"][0]["test"]) == {
        "cost",
        "loss",
        "accuracy",
    }
