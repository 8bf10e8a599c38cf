"""Every logger: two runs lie apart, each can be loaded, and goes on where it was stopped."""

import csv
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from onelayer.__main__ import main
from onelayer.training.checkpoint import read_checkpoint
from onelayer.training.folder import LAST
from onelayer.training.records import read_rows

FIT = [
    "fit", "--data.source=synthetic", "--data.limit=60", "--data.val_size=200",
    "--data.batch_size=30", "--schedule.step_size=10", "--model.hidden=3",
    "--trainer.enable_progress_bar=false", "--checkpoints.every=7",
]  # fmt: skip
LOGGERS = {
    "tensorboard": [],
    "csv": ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=csv"],
    "wandb": ["--trainer.logger=WandbLogger", "--trainer.logger.offline=true"],
    "mlflow": ["--trainer.logger=MLFlowLogger", "--trainer.logger.tracking_uri=sqlite:///runs.db"],
}


@pytest.fixture(params=LOGGERS)
def logger(request, monkeypatch):
    if request.param in ("wandb", "mlflow"):
        pytest.importorskip(request.param, reason="pip install -e '.[loggers]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield LOGGERS[request.param]
    if request.param == "wandb":
        import wandb

        wandb.finish()


def runs():
    return sorted(path.parent for path in Path().glob("**/summary.json"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:(?s).*Pydantic V2:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:training stops in mid-cycle", "ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore:There is a wandb run already in progress")
def test_runs_lie_apart_and_go_on(logger):
    config = Path("config.yaml")
    config.write_text("model:\n  l2: 0.1\n")
    words = [*FIT, "-c", "config.yaml", *logger]
    assert main(words) == 0
    finish()
    (first,) = runs()
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}
    assert main([*words, "--trainer.max_steps=14"]) == 0
    finish()
    assert len(runs()) == 2
    assert config.read_text() == "model:\n  l2: 0.1\n"
    (second,) = (run for run in runs() if run != first)
    for run in (first, second):
        assert "l2: 0.1" in (run / "config.yaml").read_text()
        assert {path.name for path in run.iterdir()} >= {"checkpoints", "curves.csv", "curves.png"}
    assert before.items() <= {p: p.read_bytes() for p in first.rglob("*") if p.is_file()}.items()

    last = second / "checkpoints" / LAST
    assert main([*words, "--ckpt_path", str(last)]) == 0
    finish()
    whole, rest = (read_checkpoint(newest(LAST, i)) for i in ("first", "last"))
    assert whole["global_step"] == rest["global_step"] == 20
    for name, value in whole["state_dict"].items():
        assert (value == rest["state_dict"][name]).all()
    steps = [row.step for row in read_rows(newest("curves.csv", "last"))]
    assert steps == sorted(steps)
    assert steps[-1] == 20


@pytest.mark.parametrize("kind", ["tensorboard", "csv"])
def test_a_version_that_another_process_takes_meanwhile_is_not_shared(kind, monkeypatch):
    """Both loggers look for the next version, and make its folder later."""
    of_csv = kind == "csv"
    logger = CSVLogger if of_csv else TensorBoardLogger
    next_version = logger._get_next_version
    seen = []

    def others_are_quicker(self):
        version = next_version(self)
        if not seen:
            Path(self.root_dir, f"version_{version}").mkdir(parents=True)
        seen.append(version)
        return version

    monkeypatch.setattr(logger, "_get_next_version", others_are_quicker)
    assert main([*FIT, *LOGGERS[kind]]) == 0
    assert [run.name for run in runs()] == ["version_1"]
    assert list(Path(runs()[0].parent, "version_0").iterdir()) == []


def newest(name, which):
    """The oldest or the newest file of a name below this folder."""
    files = sorted(Path().glob(f"**/{name}"), key=lambda path: path.stat().st_mtime)
    return files[{"first": 0, "last": -1}[which]]


def finish():
    """What a process of its own would do at its end."""
    import sys

    if "wandb" in sys.modules:
        sys.modules["wandb"].finish()


def test_csv_has_the_rate_and_the_curves():
    assert main([*FIT, *LOGGERS["csv"], "--trainer.log_every_n_steps=5"]) == 0
    with Path("csv/lightning_logs/version_0/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows if row["lr"]] == [0, 5, 10, 15, 20]
    assert any(row["val/accuracy"] for row in rows)


@pytest.mark.parametrize(
    "typed", [["--trainer.logger=CSVLogger"], ["--trainer.logger", "CSVLogger"]]
)
def test_the_bare_name_of_a_logger_is_enough(typed, tmp_path):
    assert main([*FIT, *typed]) == 0
    run = tmp_path / "lightning_logs" / "fit" / "version_0"
    assert {path.name for path in run.iterdir()} >= {"metrics.csv", "curves.csv", "checkpoints"}
    assert main([*FIT, *typed, "--ckpt_path=last", "--trainer.max_steps=40"]) == 0
    resumed = {path.name for path in run.parent.iterdir()} - {"version_0"}
    assert resumed == {"version_1"}  # a new folder, as with Lightning's loggers


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:(?s).*Pydantic V2:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_mlflow_by_its_bare_name_is_told_the_rates_and_the_data(monkeypatch):
    pytest.importorskip("mlflow", reason="pip install -e '.[loggers]'")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main([*FIT, "--trainer.logger=MLFlowLogger"]) == 0
    with closing(sqlite3.connect("mlflow.db")) as database:
        told = dict(database.execute("select key, value from params").fetchall())
    expected = {"max_lr": "0.1", "base_lr": "1e-05", "step_size": "10", "cycles": "1"}
    expected |= {"data": "synthetic", "batch_size": "30", "hidden": "3"}
    assert expected.items() <= told.items()
    assert "lr" not in told
