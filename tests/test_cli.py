"""The command line: what a user types, what comes back, what a mistake costs."""

import csv
import io
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.utilities.exceptions import SIGTERMException
from PIL import Image

from onelayer.__main__ import main
from onelayer.cli.app import OneLayerCLI
from onelayer.core import gradcheck
from onelayer.data.features import Statistics, standardise
from onelayer.data.read.images import read_image
from onelayer.training.checkpoint import load_network
from onelayer.training.curves import Curves
from onelayer.training.module import OneLayer
from tests.study.tiny import TINY

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.yaml"))
OTHERS = {"search", "solve", "widths"}  # test_search, test_solve and test_widths have them
FIT_CONFIGS = [config for config in CONFIGS if config.stem not in OTHERS]
SMALL = [
    "--data.source=synthetic", "--data.limit=60", "--data.val_size=200", "--data.batch_size=10",
    "--schedule.step_size=10", "--model.hidden=3",
]  # fmt: skip


@pytest.fixture(autouse=True)
def built_in_images_alone(monkeypatch):
    monkeypatch.setenv("ONELAYER_OFFLINE", "1")
    monkeypatch.delenv("ONELAYER_DATA", raising=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A short run made through the command line: its folder."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "small.yaml").write_text("model:\n  l2: [0.0, 0.1]\n")
        assert main(["fit", "-c", "small.yaml", *SMALL]) == 0
    return folder / "lightning_logs" / "small" / "version_0"


def test_fit_leaves_all_that_a_run_leaves(finished):
    assert {p.name for p in finished.iterdir()} >= {
        "config.yaml", "curves.csv", "curves.png", "summary.json", "checkpoints",
    }  # fmt: skip
    assert any(p.name.startswith("events.out.tfevents") for p in finished.iterdir())
    assert (finished / "checkpoints" / "last.ckpt").is_file()
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["dataset"] == "synthetic"
    assert (summary["hidden"], summary["steps"]) == (3, 20)
    for member in summary["members"]:
        for split in ("train", "val", "test"):
            assert set(member[split]) == {"cost", "loss", "accuracy"}


def test_fit_ends_with_a_table_and_names_the_built_in_images(capfd):
    small = [arg for arg in SMALL if "source" not in arg]
    assert main(["fit", "--data.source=auto", *small]) == 0
    captured = capfd.readouterr()
    assert captured.err.count("BUILT-IN SYNTHETIC IMAGES") == 1
    for words in ("3 hidden units, synthetic, 20 updates", "train", "not of CIFAR-10"):
        assert words in captured.out


@pytest.mark.parametrize("command", ["validate", "test"])
@pytest.mark.parametrize("typed", ["--data", "--data.source"])
def test_a_checkpoint_can_be_measured_again_on_its_own_splits(capfd, finished, command, typed):
    data = [arg for arg in SMALL if arg.startswith(typed)]
    checkpoint = str(finished / "checkpoints" / "last.ckpt")
    assert main([command, *data, "--ckpt_path", checkpoint]) == 0
    split = {"validate": "val", "test": "test"}[command]
    members = json.loads((finished / "summary.json").read_text())["members"]
    out = capfd.readouterr().out
    lines = out[out.index("3 hidden units, synthetic") :].splitlines()
    assert split in lines[0]
    for line, member in zip(lines[2:], members, strict=False):
        figures = member[split]
        assert line.split() == [
            f"{member['l2']:g}", "1", f"{100 * figures['accuracy']:.2f}",
            f"{figures['cost']:.4f}", f"{figures['loss']:.4f}",
        ]  # fmt: skip
    assert "not of CIFAR-10" in lines[4]


def test_a_split_that_is_typed_counts(capfd, finished):
    checkpoint = str(finished / "checkpoints" / "last.ckpt")
    measure = ["test", "--data.source=synthetic", "--ckpt_path", checkpoint]
    assert main(measure) == main([*measure, "--data.limit=61"]) == 0
    of_60, of_61 = re.findall(r"cost +loss\n.*", capfd.readouterr().out)
    assert of_60 != of_61


def test_options_count_over_a_config_wherever_they_stand(here):
    (here / "small.yaml").write_text("model:\n  hidden: 5\n")
    assert main(["fit", *SMALL, "-c", "small.yaml"]) == 0
    run = here / "lightning_logs" / "small" / "version_0"
    assert json.loads((run / "summary.json").read_text())["hidden"] == 3


def test_without_a_logger_nothing_is_written(here):
    config = here / "config.yaml"
    config.write_text("model:\n  l2: 0.1\n")
    assert main(["fit", "-c", "config.yaml", *SMALL, "--trainer.logger=false"]) == 0
    assert list(here.iterdir()) == [config]
    assert config.read_text() == "model:\n  l2: 0.1\n"


@pytest.mark.parametrize(
    "options",
    [
        ["--trainer.barebones=true"],
        [
            "--trainer.enable_checkpointing=false", "--trainer.overfit_batches=2",
            "--trainer.gradient_clip_val=1", "--trainer.accumulate_grad_batches=2",
            "--trainer.callbacks+=RichProgressBar",
        ],
        [
            "--trainer.log_every_n_steps=0",
            "--trainer.callbacks+=TQDMProgressBar", "--trainer.callbacks.refresh_rate=5",
            "--trainer.callbacks+=GradientAccumulationScheduler",
            "--trainer.callbacks.scheduling={0: 2}",
            "--trainer.callbacks+=Timer", "--trainer.callbacks.duration=00:00:10:00",
        ],
    ],
    ids=["barebones", "flags", "callbacks"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:You requested to overfit")
def test_options_of_lightnings_are_taken(here, options, capsys):
    assert main(["fit", *SMALL, *options]) == 0
    assert "3 hidden units" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--trainer.profiler=simple", "--trainer.callbacks+=ModelSummary",
             "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss",
             "--trainer.callbacks.verbose=true"],
            ["Profiler Report", "Trainable params", "Metric val/loss improved"],
        ),
        ([], []),
    ],
    ids=["asked", "nothing"],
)  # fmt: skip
def test_what_is_asked_of_lightning_is_printed_and_nothing_else(options, said):
    """Lightning prints through the handlers of its logger."""
    stream = io.StringIO()
    handler, logger = logging.StreamHandler(stream), logging.getLogger("lightning.pytorch")
    logger.addHandler(handler)
    try:
        assert main(["fit", *SMALL, *options]) == 0
    finally:
        logger.removeHandler(handler)
    assert all(words in stream.getvalue() for words in said)
    assert said or not stream.getvalue()


def test_figures_need_no_backend(here):
    done = subprocess.run(
        [sys.executable, "-m", "onelayer", "fit", *SMALL],
        env={**os.environ, "MPLBACKEND": "nonsense"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with Image.open(here / "lightning_logs/fit/version_0/curves.png") as picture:
        assert min(picture.size) > 500
        assert len(np.unique(np.asarray(picture))) > 10  # drawn


@pytest.mark.parametrize(
    ("hook", "told"),
    [
        ("on_train_start", "onelayer: interrupted\n"),  # nothing is saved yet
        ("on_test_end", "onelayer: stopped after 20 updates. To go on: onelayer fit"),
    ],
)
def test_ctrl_c_names_a_checkpoint_only_where_one_is(capfd, monkeypatch, hook, told):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Curves, hook, interrupt)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(signal, "signal", lambda *_: signal.SIG_DFL)  # Lightning ignores it for good
        assert main(["fit", *SMALL, "--trainer.enable_progress_bar=false"]) == 130
    error = capfd.readouterr().err
    assert told in error
    assert ("last.ckpt" in error) == ("To go on" in told)


def sigterm(*_):
    signal.raise_signal(signal.SIGTERM)


def exit_of_sigterm(*_):
    raise SIGTERMException


@pytest.mark.parametrize(
    ("hook", "act"), [("on_train_start", sigterm), ("on_test_end", exit_of_sigterm)]
)
def test_sigterm_that_only_lightning_hears_is_answered(capfd, monkeypatch, hook, act):
    """It makes an exit without a code of it, that is, success."""
    monkeypatch.setattr(Curves, hook, act)
    assert main(["fit", *SMALL, "--trainer.enable_progress_bar=false"]) == 143
    error = capfd.readouterr().err
    assert "onelayer: stopped after" in error
    assert "last.ckpt" in error


def test_sigterm_during_a_search_is_answered(capfd, monkeypatch):
    monkeypatch.setattr(OneLayer, "on_train_epoch_start", sigterm)
    assert main(["search", *TINY]) == 143
    assert "onelayer: interrupted: the same command goes on from there" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("encoding", "bar"), [("ascii", "RichProgressBar"), ("latin-1", "TQDMProgressBar")]
)
def test_a_terminal_that_cannot_show_a_sign_ends_nothing(monkeypatch, encoding, bar):
    output = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", output)
    words = ["fit", *SMALL, "--model.seeds=[0,1]", f"--trainer.callbacks+={bar}"]
    assert main(words) == 0
    assert ("+-" if encoding == "ascii" else "±") in output.buffer.getvalue().decode(encoding)
    assert len([*Path().glob("lightning_logs/fit/*/curves.png")]) == 1
    with pytest.raises(SystemExit) as end:
        main(["search", "--help"])
    assert end.value.code == 0
    output.flush()
    assert "The lambda to try" in output.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize("name", ["stderr", "stdout"])
def test_a_closed_stderr_or_stdout_ends_nothing(monkeypatch, name):
    monkeypatch.setattr(sys, name, None)
    assert main(["fit", *SMALL, "--trainer.callbacks+=TQDMProgressBar"]) == 0
    assert len([*Path().glob("lightning_logs/fit/*/curves.png")]) == 1


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--model.lambda=0.1", "model.l2"),
        ("--reg=0.1", "model.l2"),
        ("--weight-decay=0.1", "model.l2? A weight_decay is twice an l2."),
        ("--lr=0.1", "schedule.max_lr?"),
        ("--epochs=3", "trainer.max_epochs"),
        ("--max_steps=3", "trainer.max_steps"),
        ("--batch-size=3", "data.batch_size"),
        ("--resume=run", "ckpt_path"),
        ("--modle.hidden=3", "model.hidden"),
    ],
)
def test_what_other_programs_call_an_option_is_understood(typed, meant, capfd):
    assert main(["fit", typed]) == 2
    assert f"Did you mean {meant}" in capfd.readouterr().err


def test_predict_writes_files_classes_and_probabilities(finished, here):
    for i in range(3):
        Image.new("RGB", (40, 50), (80 * i, 10, 200)).save(here / f"{i}.png")
    checkpoint = str(finished / "checkpoints" / "last.ckpt")
    arguments = ["--ckpt_path", checkpoint, "--data.images", ".", "--output", "out.csv"]
    assert main(["predict", *arguments]) == 0
    with (here / "out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [Path(row["file"]).name for row in rows] == ["0.png", "1.png", "2.png"]
    for row in rows:
        classes = list(row)[3:]
        assert len(classes) == 10
        assert sum(float(row[c]) for c in classes) == pytest.approx(1, abs=1e-5)
        assert row["class"] == max(classes, key=lambda c: float(row[c]))
        assert float(row["probability"]) == max(float(row[c]) for c in classes)


def test_predict_takes_a_table_of_bytes_laid_out_as_the_images_are(finished, capfd):
    x = np.random.default_rng(0).integers(0, 256, (5, 3072), dtype=np.uint8)
    np.savez("new.npz", X=x)
    predict = ["predict", f"--ckpt_path={finished}", "--data.predict=new.npz"]
    assert main(predict) == 0
    assert "5 rows, classified by" in capfd.readouterr().out
    with open("predictions.csv") as file:
        rows = list(csv.DictReader(file))
    network = load_network(finished / "checkpoints" / "last.ckpt")
    X = standardise(torch.from_numpy(x), Statistics(network.mean, network.std))
    P = network.predict_proba(X)
    assert [row["row"] for row in rows] == [str(i) for i in range(5)]
    assert [row["class"] for row in rows] == [list(rows[0])[3 + k] for k in P.argmax(1)]
    assert [float(row["probability"]) for row in rows] == pytest.approx(P.amax(1).tolist())
    np.savez("new.npz", X=x.astype(np.float32))
    assert main(predict) == 2
    error = capfd.readouterr().err
    assert "new.npz holds torch.float32: the network was trained on bytes, uint8 (n, 3072)" in error


def test_predict_takes_what_a_shell_makes_of_a_pattern_and_leaves_out_what_it_cannot_read(
    finished, here, capfd
):
    """Exit code 1 then; a name is never a spreadsheet's formula."""
    for name in ("a", "=1+1", "b"):
        Image.new("RGB", (32, 32), (80, 10, 200)).save(here / f"{name}.png")
    (here / "bad.png").write_bytes(b"no image")
    Path(os.fsdecode(b"\xff.png")).write_bytes(Path("a.png").read_bytes())
    names = sorted(path.name for path in here.iterdir())
    options = ["--ckpt_path", str(finished)]
    with pytest.warns(UserWarning, match=r"left out, 1 of 5:\nbad\.png cannot be read as an image"):
        assert main(["predict", "--data.images", *names, *options]) == 1
    assert "4 images, classified by" in capfd.readouterr().out
    with Path("predictions.csv").open(errors="surrogateescape") as file:
        found = [row["file"] for row in csv.DictReader(file)]
    assert found == ["./=1+1.png", "a.png", "b.png", os.fsdecode(b"\xff.png")]
    assert main(["predict", "--data.images", "bad.png", *options]) == 2
    assert "Nothing is left to predict" in capfd.readouterr().err


def test_predict_replaces_predictions_and_nothing_else(finished, here, capfd):
    Image.new("RGB", (32, 32)).save("a.png")
    predict = ["predict", "--ckpt_path", str(finished), "--data.images", "a.png"]
    assert main([*predict, "--output=a.csv"]) == main([*predict, "--output=a.csv"]) == 0
    Path("marks.csv").write_text("name,mark\n")
    assert main([*predict, "--output=marks.csv"]) == 2
    assert "marks.csv is there and holds no predictions" in capfd.readouterr().err
    assert Path("marks.csv").read_text() == "name,mark\n"


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ([], r"network \d \(l2=\S+, seed=0\), the best on validation: "),
        (["--member=1"], r"network 1 \(l2=0.1, seed=0\): "),
        (["--member=all"], "the mean of all 2 networks: "),
    ],
)
def test_predict_says_which_networks_answered(finished, here, capfd, typed, said):
    Image.new("RGB", (40, 50), (80, 10, 200)).save(here / "a.png")
    checkpoint = str(finished / "checkpoints" / "last.ckpt")
    assert main(["predict", "--ckpt_path", checkpoint, "--data.images", ".", *typed]) == 0
    assert re.search(f"1 images, classified by {said}predictions.csv", capfd.readouterr().out)
    with (here / "predictions.csv").open() as file:
        (row,) = csv.DictReader(file)
    network = load_network(checkpoint)
    X = standardise(read_image(here / "a.png")[None], Statistics(network.mean, network.std))
    member = {"1": 1}.get(typed[0][-1], "all") if typed else "best"
    P = network.predict_proba(X, member)[0].tolist()
    assert [float(p) for p in list(row.values())[3:]] == pytest.approx(P, abs=1e-6)


def test_snapshots_are_tested_and_predict_together(here, capfd):
    small = [*SMALL, "--schedule.cycles=3", "--trainer.enable_progress_bar=false"]
    assert main(["fit", *small, "--snapshots.last=2"]) == 0
    said = capfd.readouterr().out
    assert "snapshots: mean class probabilities of a λ's networks at the ends of 2 cycles" in said
    run = here / "lightning_logs" / "fit" / "version_0"
    [found] = json.loads((run / "summary.json").read_text())["ensembles"]
    paths = f"[{run}/checkpoints/cycle_2.ckpt,{run}/checkpoints/cycle_3.ckpt]"
    assert main(["test", "--ckpt_path", paths, "--output=out"]) == 0
    assert "callbacks" not in capfd.readouterr().err  # Lightning's note on those of the checkpoint
    assert json.loads(Path("out/test.json").read_text())["accuracy"] == found["test"]["accuracy"]
    Image.new("RGB", (40, 50), (80, 10, 200)).save("a.png")
    capfd.readouterr()
    assert main(["predict", "--ckpt_path", paths, "--data.images=a.png"]) == 0
    assert "the mean of the 2 networks of l2=0 at the ends of 2 cycles" in capfd.readouterr().out
    assert main(["fit", *small, "--ckpt_path", paths]) == 2
    assert "resumes from one checkpoint" in capfd.readouterr().err


def test_a_network_that_there_is_not_predicts_nothing(finished, here, capfd):
    Image.new("RGB", (40, 50), (80, 10, 200)).save(here / "a.png")
    checkpoint = str(finished / "checkpoints" / "last.ckpt")
    words = ["predict", "--ckpt_path", checkpoint, "--data.images", ".", "--member", "2"]
    assert main(words) == 2
    assert "number of a network, 0 to 1, not 2" in capfd.readouterr().err
    assert not (here / "predictions.csv").exists()


def test_output_is_the_folder_of_a_run_and_resumes(here, finished, capfd):
    """It ends as the run without --output, also when another folder takes over in mid-run."""
    (here / "small.yaml").write_text("model:\n  l2: [0.0, 0.1]\n")
    config, ends = ["fit", "-c", "small.yaml", *SMALL], []
    with pytest.warns(UserWarning, match="mid-cycle"):
        assert main([*config, "--trainer.max_steps=14", "--output=runs/a"]) == 0
    config_yaml = Path("runs/a/config.yaml").read_text()
    assert main([*config, "--ckpt_path=runs/a", "--output=runs/b"]) == 0
    assert "\nresuming runs/a/checkpoints/last.ckpt after 14" in f"\n{capfd.readouterr().out}"
    assert Path("runs/a/config.yaml").read_text() == config_yaml
    assert main(["fit", "--ckpt_path=last", "--output=runs/a", "--trainer.max_steps=20"]) == 0
    assert "run: runs/a (" in capfd.readouterr().out
    assert not Path("lightning_logs").exists()
    for run in (finished, Path("runs/a"), Path("runs/b")):
        assert (run / "curves.png").is_file()
        ends.append(torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"])
    for name, value in ends[0].items():
        assert torch.equal(ends[1][name], value)
        assert torch.equal(ends[2][name], value)
    assert (Path("runs/a/curves.csv").read_text()) == (finished / "curves.csv").read_text()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--output=finished"], "finished has another run's checkpoints, config.yaml, curves.csv"),
        (["--output=finished", "--ckpt_path=other"], "finished has another run's"),
        (["--output=new", "--ckpt_path=last"], "there is no checkpoint new"),
        (["--output=new", "--trainer.logger=false"], "--output new has no effect: there is no"),
        (["--output=new", "--trainer.logger=CSVLogger"], "--output new has no effect: the run is"),
        (["--output=new/er", "--data.batch_size=1000"], "batch_size"),
    ],
)
def test_an_output_that_fit_cannot_use_is_refused_and_leaves_nothing(
    finished, here, capfd, options, told
):
    for name in ("finished", "other"):
        shutil.copytree(finished, name)
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    assert main(["fit", *SMALL, "--model.l2=[0,0.1]", *options]) == 2
    assert told in capfd.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*")} == before


def test_validate_writes_its_results_to_output(finished, capfd):
    assert main(["validate", f"--ckpt_path={finished}", "--output=out"]) == 0
    found = json.loads(Path("out/validate.json").read_text())
    summary = json.loads((finished / "summary.json").read_text())
    assert found["dataset"] == summary["dataset"]
    for member, kept in zip(found["members"], summary["members"], strict=True):
        assert member["val"] == pytest.approx(kept["val"])


@pytest.mark.parametrize("config", FIT_CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_is_understood(config, monkeypatch):
    seen = []
    monkeypatch.setattr(OneLayerCLI, "_run_subcommand", lambda cli, name: seen.append(cli.trainer))
    assert main(["fit", "-c", str(config)]) == 0
    settings = yaml.safe_load(config.read_text())
    schedule = settings.get("schedule", {})
    whole = 2 * schedule.get("step_size", 500) * schedule.get("cycles", 1)
    assert seen[0].max_steps == settings.get("trainer", {}).get("max_steps", whole)


def test_gradcheck_prints_a_table_or_json(capfd):
    assert main(["gradcheck", "--hidden", "5", "--json"]) == 0
    content = json.loads(capfd.readouterr().out)
    assert content["passed"]
    assert {check["parameter"] for check in content["checks"]} == {
        "W", "b", "W1", "b1", "W2", "b2", "all",
    }  # fmt: skip


def test_gradcheck_exits_1_when_a_bound_is_missed(capfd, monkeypatch):
    monkeypatch.setitem(gradcheck.BOUNDS, "central", 1e-30)
    assert main(["gradcheck", "--hidden", "5"]) == 1
    assert "MISSED" in capfd.readouterr().out


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyError("x")])
def test_a_full_disk_is_said_once(error, monkeypatch, capfd):
    """TensorBoard writes in a thread, whose errors the main thread raises again."""

    def fail(*_):
        raise error

    monkeypatch.setattr("tensorboard.summary.writer.record_writer.RecordWriter.write", fail)
    if isinstance(error, KeyError):  # another fault is not kept quiet
        with pytest.raises(KeyError):
            main(["fit", *SMALL])
        assert "Traceback" in capfd.readouterr().err
        return
    assert main(["fit", *SMALL]) == 2
    print("the caller's output goes on", flush=True)
    out, err = capfd.readouterr()
    assert "the caller's output goes on" in out
    said = [x for x in err.splitlines() if not x.startswith("INFO")]
    assert len(said) == 1
    assert "No space left on device" in said[0]


def test_gradcheck_fits_80_columns_and_shows_pairs(capfd):
    assert main(["gradcheck", "--hidden", "5", "--show"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    pairs = [line.split("]")[1].split() for line in lines if re.match(r"[Wb][12]?\[\d", line)]
    assert len(pairs) == 20
    for analytic, numerical, error in pairs:
        assert float(analytic) == pytest.approx(float(numerical), rel=1e-5)
        assert float(error) < 1e-6
