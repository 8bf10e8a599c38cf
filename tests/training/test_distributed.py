"""Two processes on the CPU train what one trains, and neither outlives the other."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from onelayer.__main__ import main
from onelayer.training.checkpoint import read_checkpoint
from onelayer.training.folder import LAST

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
            command = [sys.executable, "-m", "onelayer", *fit_, *options]
            subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=200)
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


def children(pid):
    """The processes of ours that this one has started."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    started = [int(c) for thread in threads for c in (thread / "children").read_text().split()]
    return [p for p in started if b"onelayer" in Path(f"/proc/{p}/cmdline").read_bytes()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_a_killed_process_ends_the_other_and_what_was_saved_is_whole(tmp_path):
    command = [sys.executable, "-m", "onelayer", *FIT, *TWO]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    last = tmp_path / "lightning_logs" / "fit" / "version_0" / "checkpoints" / LAST
    try:
        end = time.monotonic() + 120
        while not last.is_file():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.1)
        (rank_1,) = children(process.pid)
        os.kill(rank_1, signal.SIGKILL)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode not in (0, None)
    assert "Traceback" not in err
    assert "go" in err.splitlines()[-1]
    assert read_checkpoint(last)["global_step"] % 50 == 0

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert main([*FIT, "--ckpt_path=last"]) == 2
