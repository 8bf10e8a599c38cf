"""The progress line, as a terminal of 80 or 120 columns shows it."""

import fcntl
import os
import pty
import re
import struct
import sys
import termios
import threading
import warnings
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import pytest
from lightning.pytorch import callbacks

from onelayer.__main__ import main
from onelayer.training import progress
from onelayer.training.module import OneLayer
from onelayer.training.progress import Bar, ProgressLine
from onelayer.training.schedule import TriangularLR
from tests.support.small import CLASSES, PIXELS, SmallData, images, trainer


@pytest.fixture(params=[80, 120])
def columns(request):
    return request.param


@contextmanager
def terminal(monkeypatch, columns):
    """Replace standard error by a terminal; the list gets all that it shows at the end."""
    reader, writer = pty.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    chunks, shown = [], []

    def read():
        try:
            while chunk := os.read(reader, 65536):
                chunks.append(chunk)
        except OSError:  # Linux: the other end is closed
            pass

    thread = threading.Thread(target=read)
    thread.start()
    try:
        with open(writer, "w", encoding="utf-8") as file, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", file)
            patch.setattr(progress, "INTERVAL", 0.0)  # draw every time
            yield shown
    finally:
        thread.join()
        os.close(reader)
        shown += b"".join(chunks).decode().replace("\r\n", "\n").split("\n")


def drawn(lines, columns):
    """Every state of the only line with a bar, checked for what a bar must not do."""
    (line,) = [line for line in lines if "%" in line or "updates" in line]
    states = [state for state in line.split("\r") if state.strip()]
    assert max(map(len, states)) < columns
    assert not [state for state in states if re.search(r"Epoch|v_num|it/s|-2", state)]
    assert line.endswith(" \r")  # cleared in the end
    return states


def model():
    return OneLayer(l2=0.01, inputs=PIXELS, classes=CLASSES)


def test_one_line_shows_updates_time_and_accuracies(tmp_path, monkeypatch, columns):
    with terminal(monkeypatch, columns) as lines:
        run = trainer(tmp_path, 40, [TriangularLR(0.01, 0.3, 10, cycles=2), ProgressLine()],
                      enable_progress_bar=True)  # fmt: skip
        run.fit(model(), datamodule=SmallData())
        accuracy = run.progress_bar_metrics["val/accuracy"]
    last = drawn(lines, columns)[-1]
    assert re.match(r"fit 100% \|█+\| 40/40 updates, 00:00 left, train \d+\.\d\d %", last)
    assert last.endswith(f"val {100 * accuracy:.2f} %")


def test_the_line_ends_no_block(tmp_path, monkeypatch):
    """300 updates in blocks of at most 100: the line is drawn after each, and once at the end."""
    line = ProgressLine()
    assert line.next_due(7) == float("inf")
    with terminal(monkeypatch, 80) as lines:
        run = trainer(tmp_path, 300, [line], enable_progress_bar=True)
        run.fit(model(), datamodule=SmallData(3000))
    counts = [int(re.search(r"(\d+)/300", state)[1]) for state in drawn(lines, 80)]
    assert counts[-1] == 300
    assert min(b - a for a, b in pairwise([0, *dict.fromkeys(counts)])) >= 75  # an epoch has 375


def test_a_resumed_run_counts_from_its_first_update(tmp_path, monkeypatch):
    run = trainer(tmp_path, 24, [])
    run.fit(model(), datamodule=SmallData())
    run.save_checkpoint(tmp_path / "last.ckpt")
    with terminal(monkeypatch, 80) as lines:
        again = trainer(tmp_path, 40, [ProgressLine()], enable_progress_bar=True)
        again.fit(model(), datamodule=SmallData(), ckpt_path=tmp_path / "last.ckpt")
    assert "40/40 updates" in drawn(lines, 80)[-1]


def test_a_run_without_a_known_end(tmp_path, monkeypatch):
    with terminal(monkeypatch, 80) as lines:
        stop = callbacks.EarlyStopping("val/accuracy", mode="min", patience=1)
        run = trainer(tmp_path, max_epochs=-1, callbacks=[stop, ProgressLine()],
                      enable_progress_bar=True)  # fmt: skip
        run.fit(model(), datamodule=SmallData())
    assert re.match(r"fit \d+ updates in 00:0\d, train", drawn(lines, 80)[-1])


@pytest.mark.parametrize("method", ["validate", "test", "predict"])
def test_evaluation_counts_batches(tmp_path, monkeypatch, columns, method):
    class Data(SmallData):
        predict_dataloader = SmallData.test_dataloader

    with terminal(monkeypatch, columns) as lines:
        run = trainer(tmp_path, 8, [ProgressLine()], enable_progress_bar=True)
        options = {} if method == "predict" else {"verbose": False}
        getattr(run, method)(model(), datamodule=Data(), **options)
    assert re.match(method + r" 100% \|█+\| 2/2 batches, 00:00 left", drawn(lines, columns)[-1])


def test_a_warning_stands_on_a_line_of_its_own(monkeypatch):
    from onelayer.cli.messages import quiet

    with terminal(monkeypatch, 80) as lines, quiet(), Bar("fit", 10, "updates") as bar:
        bar.show(3, now=True)
        sys.stderr.write(warnings.formatwarning("careful", UserWarning, "", 0))
        bar.show(10, now=True)
    assert next(line.split("\r")[-1] for line in lines) == "onelayer: warning: careful"


@pytest.fixture
def tiny():
    """Words that name tiny files of data, in a folder of their own."""
    for name, n, seed in (("train", 60, 1), ("val", 30, 2)):
        part = images(n, seed)
        np.savez(f"{name}.npz", X=part.x.numpy().astype("f4"), y=part.y.numpy())
    return ["--data", "ArraysDataModule", "--data.train=train.npz", "--data.val=val.npz",
            "--data.batch_size=10"]  # fmt: skip


def test_range_search_and_solve(monkeypatch, tiny, capsys):
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: None)  # slow
    commands = {
        "range": ["--range.steps=40", "--range.points=4"],
        "search": [
            "--model.hidden=0", "--search.stages=2", "--search.number=2", "--search.grid=true",
            "--search.members=1",
            "--schedule.step_size=5", "--final.step_size=5", "--final.cycles=1",
            "--final.seeds=[0]",
        ],
        "solve": ["--solve.l2=[0.1,1.0]", "--solve.gap=1e-3"],
    }  # fmt: skip
    shown = {}
    for command, words in commands.items():
        with terminal(monkeypatch, 80) as lines:
            assert main([command, *tiny, *words]) == 0
        shown[command] = "\r".join(lines).split("\r")
        assert max(map(len, shown[command])) < 80
        assert not [s for s in shown[command] if re.search(r"Epoch|v_num|it/s", s)]
    # range: every update, or fewer where all losses rose; search: two stages of two runs of ten
    assert [s for s in shown["range"] if re.match(r"range +\d+% \|.*/40 updates, ", s)]
    assert [s for s in shown["search"] if re.match(r"search 1/2 .* 5/40 |.* 10/40 updates", s)]
    assert [s for s in shown["search"] if "search 2/2 100%" in s and "40/40 updates" in s]
    assert [s for s in shown["search"] if "best val" in s]
    assert "as before: both ends are still among the best" in capsys.readouterr().out
    assert [s for s in shown["solve"] if re.match(r"path 100% .* 2/2 λ, ", s)]


@pytest.mark.parametrize("given", [None, "TQDMProgressBar", "RichProgressBar"])
def test_an_installed_package_chooses_no_bar(monkeypatch, tiny, given):
    """Lightning draws with Rich wherever that is installed; ours gives way to the user's alone."""
    from onelayer.cli.app import OneLayerCLI

    bars = []
    monkeypatch.setattr(
        OneLayerCLI, "fit", lambda self, **_: bars.append(self.trainer.progress_bar_callback)
    )
    monkeypatch.setattr(OneLayerCLI, "after_fit", lambda self: None)
    words = [] if given is None else [f"--trainer.callbacks+={given}"]
    assert main(["fit", *tiny, "--trainer.max_steps=2", *words]) == 0
    assert [type(bar).__name__ for bar in bars] == [given or "ProgressLine"]
