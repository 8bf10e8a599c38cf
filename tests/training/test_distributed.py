"""Two processes on the CPU train what one trains, and neither outlives the other."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from lightning import Trainer

from onelayer.__main__ import main
from onelayer.data.loader import ResidentLoader
from onelayer.training.checkpoint import read_checkpoint
from onelayer.training.folder import LAST
from onelayer.training.module import OneLayer
from tests.support.processes import Forked, command, ranks

FIT = [
    "fit", "--data.source=synthetic", "--data.limit=100", "--data.val_size=50",
    "--data.batch_size=10", "--schedule.step_size=1000000", "--checkpoints.every=50",
    "--model.hidden=4", "--trainer.enable_progress_bar=false",
]  # fmt: skip
TWO = ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp"]


def test_two_processes_train_what_one_does(tmp_path, monkeypatch):
    # Batches of 7: shares of 4 and 3, and a last batch of 2.
    fit_ = ["fit", "--data.source=synthetic", "--data.limit=100", "--data.val_size=50",
            "--data.batch_size=7", "--schedule.step_size=20", "--schedule.max_lr=0.02",
            "--model.hidden=4", "--model.l2=[0.01,0.1]", "--model.seeds=[0,1]",
            "--trainer.precision=64-true", "--trainer.enable_progress_bar=false"]  # fmt: skip
    checkpoints, summaries = [], []
    for name, options in (("one", []), ("two", TWO)):
        folder = tmp_path / name
        folder.mkdir()
        if options:
            words = [*fit_, *options]
            processes = [command(words, folder=folder, environment=rank) for rank in ranks(2)]
            assert [process.wait() for process in processes] == [0, 0], processes[0].err
        else:
            monkeypatch.chdir(folder)
            assert main(fit_) == 0
        run = folder / "lightning_logs" / "fit" / "version_0"
        checkpoints.append(read_checkpoint(run / "checkpoints" / LAST))
        summaries.append(json.loads((run / "summary.json").read_text()))
    single, double = checkpoints
    assert double["global_step"] == single["global_step"] == 40
    for name, value in single["state_dict"].items():
        difference = (double["state_dict"][name] - value).norm()
        assert difference <= 1e-10 * value.norm(), name
    rows = [checkpoint["callbacks"]["Curves"]["rows"] for checkpoint in checkpoints]
    assert len(rows[0]) == len(rows[1]) == 2 * 4 * 11
    for ours, theirs in zip(*rows, strict=True):
        assert ours[:5] == theirs[:5]
        assert ours[5:] == pytest.approx(theirs[5:], rel=1e-10)
    for ours, theirs in zip(summaries[0]["members"], summaries[1]["members"], strict=True):
        assert ours["test"] == pytest.approx(theirs["test"], rel=1e-10)


def train(devices, path):
    """Train in blocks, then one update at a time, and save the weights of both."""
    g = torch.Generator().manual_seed(0)
    X = torch.randn(50, 12, generator=g, dtype=torch.float64)
    y = torch.randint(3, (50,), generator=g)
    weights = []
    for fused in (True, False):
        model = OneLayer(4, l2=[0.0, 0.1], lr=0.1, inputs=12, classes=3, fused=fused)
        trainer = Trainer(
            max_epochs=3, accelerator="cpu", devices=devices, precision="64-true", logger=False,
            strategy="ddp" if devices > 1 else "auto", enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(model, ResidentLoader(X, y, 7))
        weights += [w.detach().clone() for w in model.weights]
    if trainer.is_global_zero:
        torch.save(weights, path)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`")
def test_a_loader_uses_its_share_of_each_batch_in_every_process(tmp_path):
    """Batches have 7 samples, the last has 1: one process has no sample of it."""
    paths = [tmp_path / f"{n}.pt" for n in (1, 2)]
    train(1, paths[0])
    processes = [Forked(train, 2, paths[1], folder=tmp_path, environment=r) for r in ranks(2)]
    assert [process.wait() for process in processes] == [0, 0], processes[0].err
    weights = [torch.load(path, weights_only=True) for path in paths]
    assert len(weights[0]) == 8
    for one, two in zip(*weights, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-10, atol=1e-12)


def children(pid):
    """The processes of ours that this one has started."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    started = [int(c) for thread in threads for c in (thread / "children").read_text().split()]
    return [p for p in started if b"onelayer" in Path(f"/proc/{p}/cmdline").read_bytes()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_a_killed_process_ends_the_other_and_what_was_saved_is_whole(tmp_path):
    last = tmp_path / "lightning_logs" / "fit" / "version_0" / "checkpoints" / LAST
    with command([*FIT, *TWO], folder=tmp_path) as process:
        end = time.monotonic() + 120
        while not last.is_file():
            assert process.is_alive, process.err
            assert time.monotonic() < end
            time.sleep(0.1)
        (rank_1,) = children(process.pid)
        os.kill(rank_1, signal.SIGKILL)
        assert process.wait(60) != 0
    assert "Traceback" not in process.err
    assert "go" in process.err.splitlines()[-1]
    assert read_checkpoint(last)["global_step"] % 50 == 0

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        one = ["--trainer.devices=1", "--trainer.strategy=auto"]
        assert main([*FIT, *one, "--ckpt_path=last"]) == 2
