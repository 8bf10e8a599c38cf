"""A run that is killed anywhere ends, once resumed, with the very bits of one that was not."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer

from onelayer.__main__ import main
from onelayer.training.checkpoint import read_checkpoint
from onelayer.training.folder import PREVIOUS
from tests.support import own, soak
from tests.support.processes import Forked
from tests.support.soak import FIT

QUIET = "--trainer.enable_progress_bar=false"
TINY = [
    "fit", "--data.source=synthetic", "--data.limit=60", "--data.val_size=30",
    "--data.batch_size=10", "--schedule.step_size=6", QUIET,
]  # fmt: skip


def test_kills_change_no_bit(tmp_path):
    """A short soak; make soak runs longer ones."""
    done = Forked(soak.main, ["--chains=2", "--seed=7"], folder=tmp_path)
    assert done.wait(300) == 0, done.out + done.err
    assert "fit chains: 1" in done.out
    assert "search chains: 1" in done.out
    assert int(re.search(r"kills in all: (\d+)", done.out)[1]) >= 4


@pytest.fixture(scope="module", params=[FIT], ids=["fit"])
def runs(tmp_path_factory, request):
    """A folder with a finished run, made once."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(request.param) == 0
    return folder / "lightning_logs"


@pytest.fixture
def finished(runs, tmp_path, monkeypatch):
    """A copy of the finished run, in the working folder."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(runs, tmp_path / "lightning_logs") / "fit" / "version_0"


two_cycles = pytest.mark.parametrize("runs", [[*TINY, "--schedule.cycles=2"]], indirect=True)


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


# ---- a longer end


def bits(run):
    return read_checkpoint(run / "checkpoints" / "last.ckpt")["state_dict"]


@two_cycles
@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--schedule.cycles=3"], "cycles: 2 -> 3, so the run goes on from update 24 to update 36"),
        (["--trainer.max_epochs=5"], "max_epochs: 5, so the run goes on from update 24 to the end"),
    ],
)
@pytest.mark.filterwarnings("ignore:training stops in mid-cycle")
def test_a_finished_run_is_extended(finished, capfd, options, words):
    assert main([*TINY, "--schedule.cycles=2", *options]) == 0  # never stopped
    run, whole = finished, finished.with_name("version_1")
    capfd.readouterr()
    assert main(["fit", "--ckpt_path", str(run), *options]) == 0
    assert words in capfd.readouterr().out
    for name, value in bits(whole).items():
        assert torch.equal(bits(run)[name], value), name
    assert (run / "curves.csv").read_text() == (whole / "curves.csv").read_text()
    capfd.readouterr()
    assert main(["fit", "--ckpt_path", str(run)]) == 0  # to the end that its config has now
    assert "nothing was left to do" in capfd.readouterr().out
    assert yaml.safe_load((run / "config.yaml").read_text())["ckpt_path"] is None


@two_cycles
def test_other_rates_and_less_than_was_trained_are_refused(finished, capfd):
    config = finished / "config.yaml"
    before = config.read_text()
    for option, words in {
        "cycles=1": "cycles is 1, which ends after 12 updates, but the checkpoint has 24.",
        "max_lr=0.2": "schedule.max_lr is 0.2 here but 0.1 in the checkpoint",
        "step_size=7": "schedule.step_size is 7 here but 6 in the checkpoint",
        "mode=triangular2": "schedule.mode is 'triangular2' here but 'triangular'",
    }.items():
        capfd.readouterr()
        assert main(["fit", "--ckpt_path=last", f"--schedule.{option}"]) == 2
        error = capfd.readouterr().err
        assert words in error
        assert "start a new run" in error
        assert config.read_text() == before


@pytest.mark.filterwarnings(
    "ignore:training stops in mid-cycle", "ignore:The '.*_dataloader' does not have many workers",
    "ignore:The number of training batches",
)  # fmt: skip
def test_a_renamed_data_module_is_resumed_by_its_new_name(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    source = Path(own.__file__).read_text()
    (tmp_path / "before_it.py").write_text(source)
    fit = ["fit", "--data=before_it.Theirs", "--data.n=60", "--schedule.step_size=5", QUIET]
    assert main(fit) == 0
    (tmp_path / "before_it.py").unlink()
    sys.modules.pop("before_it")
    (tmp_path / "after_it.py").write_text(source.replace("class Theirs", "class Renamed"))
    words = ["--data=after_it.Renamed", "--trainer.max_steps=14"]
    assert main(["fit", "--ckpt_path=last", *words]) == 0
    run = tmp_path / "lightning_logs/fit/version_0"
    assert read_checkpoint(run / "checkpoints/last.ckpt")["global_step"] == 14
    saved = yaml.safe_load((run / "config.yaml").read_text())["data"]
    assert saved["class_path"] == "after_it.Renamed"
    assert saved["init_args"]["n"] == 60
    assert "not resumable" not in capfd.readouterr().err
