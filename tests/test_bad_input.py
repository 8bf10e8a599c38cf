"""Whatever is wrong with the input: exit code 2, a few lines that help, and nothing left behind."""

import pickle
import re
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from onelayer.__main__ import main
from onelayer.core.errors import InputError
from onelayer.data.cifar10 import CIFAR10DataModule
from onelayer.data.read import download
from onelayer.study.figures import plot_curves
from onelayer.training.records import read_rows
from tests.support.published import (
    Tiny,
    Touch,
    damage_empty,
    damage_flip,
    damage_remove,
    damage_truncate,
    make_tiny,
)
from tests.support.server import FAST, Server, serving

DATA = [
    "--data.source=synthetic", "--data.limit=60", "--data.val_size=200", "--data.batch_size=10",
    "--trainer.enable_progress_bar=false",
]  # fmt: skip
FIT = ["fit", *DATA, "--schedule.step_size=10", "--model.hidden=3", "--checkpoints.every=10"]
FILES = [
    "fit", "--data.root=root", "--data.download=true", "--data.val_size=6", "--data.batch_size=6",
    "--schedule.step_size=2", "--model.hidden=3", "--trainer.enable_progress_bar=false",
]  # fmt: skip
RUN = Path("lightning_logs/fit/version_0")
LAST, PREVIOUS = (RUN / "checkpoints" / f"{name}.ckpt" for name in ("last", "previous"))
WHAT_TO_DO = ["--data.root", "ONELAYER_DATA", "--data.mirror", "--data.source synthetic"]


# ---- what is made once


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return make_tiny()


@pytest.fixture(scope="module")
def server(tiny: Tiny) -> Iterator[Server]:
    with serving(tiny) as server:
        yield server


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run of 20 updates: previous.ckpt is after 10 of them."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(FIT) == 0
    return folder / RUN


@dataclass
class Place:
    """An empty working folder, and what a row may want in it."""

    folder: Path
    patch: pytest.MonkeyPatch
    request: pytest.FixtureRequest

    @property
    def tiny(self) -> Tiny:
        """The small data set, from now on the one that is published."""
        tiny = self.request.getfixturevalue("tiny")
        self.patch.setattr(CIFAR10DataModule, "published", tiny.published)
        return tiny

    def files(self) -> Path:
        """The folder of its files, all whole."""
        return self.tiny.write(self.folder / "root")

    def server(self, kind: str) -> str:
        """An option with the URL of a server of that kind; a download may be tried."""
        assert self.tiny
        (self.folder / "root").mkdir()
        self.patch.setenv("ONELAYER_OFFLINE", "0")
        for name, seconds in FAST.items():
            self.patch.setattr(download, name, seconds)
        return f"--data.mirror={self.request.getfixturevalue('server').url(kind)}"

    def run(self) -> Path:
        """The finished run's folder."""
        return shutil.copytree(self.request.getfixturevalue("finished"), self.folder / RUN)

    @property
    def marker(self) -> Path:
        """The file that hostile pickles would make."""
        return self.folder / "executed"


@pytest.fixture
def place(tmp_path, monkeypatch, request) -> Place:
    monkeypatch.setenv("ONELAYER_OFFLINE", "1")
    monkeypatch.delenv("ONELAYER_DATA", raising=False)
    return Place(tmp_path, monkeypatch, request)


# ---- what is asked of every row


def tree(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder but a download's own: its lock, and what it has received."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if not path.name.startswith(".cifar-10-")
    }


def refused(act: Callable[[], int], told: list[str], folder: Path, capfd) -> None:
    """Code 2, at most five lines that say all of ``told``, and every file as it was."""
    before = tree(folder)
    capfd.readouterr()
    assert act() == 2
    error = capfd.readouterr().err
    message = [
        line for line in error.splitlines() if line.strip() and not re.search(r"\d%|^http", line)
    ]
    assert len(message) <= 5, error
    assert "Traceback" not in error
    for part in told:
        assert part in error
    assert tree(folder) == before


def command(act: Callable[[], object]) -> int:
    """Do as the command line does with what a Python call raises."""
    try:
        act()
    except InputError as error:
        print(f"onelayer: error: {error}", file=sys.stderr)
        return 2
    return 0


@dataclass(frozen=True)
class Row:
    """What is typed, what the message must name, and what is made ready before.

    ``ready`` may return more words to type.
    """

    name: str
    typed: list[str]
    told: list[str]
    ready: Callable[[Place], str | None] = field(default=lambda place: None)


# ---- data files


def damaged(name: str, damage: Callable[[Path], object]) -> Row:
    def ready(place: Place) -> None:
        damage(place.files() / "data_batch_2")

    expected = make_tiny().published.files["data_batch_2"]
    told = ["data_batch_2", f"MD5 expected: {expected}", "MD5 found:", "Bring a whole copy", "root"]
    return Row(f"data-{name}", FILES, told, ready)


def damage_hostile(path: Path) -> None:
    path.write_bytes(pickle.dumps(Touch(path.parents[2] / "executed")))


def a_test_split_damaged(place: Place) -> None:
    damage_flip(place.files() / "test_batch")


def a_test_split_damaged_since(place: Place) -> None:
    folder = place.files()
    assert main(FILES) == 0
    damage_flip(folder / "test_batch")


def an_empty_folder(place: Place) -> None:
    (place.folder / "root" / place.tiny.published.folder).mkdir(parents=True)


def a_file_for_a_root(place: Place) -> None:
    place.patch.setenv("ONELAYER_OFFLINE", "0")
    (place.folder / "root").write_text("")


def a_read_only_root(place: Place) -> str:
    mirror = place.server("healthy")
    root = place.folder / "root"
    root.chmod(0o500)
    try:
        (root / "probe").touch()
    except PermissionError:
        return mirror
    (root / "probe").unlink()
    pytest.skip("this user, root, may write everywhere: chmod has no effect")


def a_variable_that_names_nothing(place: Place) -> None:
    place.patch.setenv("ONELAYER_DATA", "not/there")


def served(kind: str, why: str) -> Row:
    told = ["cannot download CIFAR-10", f"/{kind}/cifar-10-python.tar.gz: {why}", *WHAT_TO_DO]
    return Row(f"server-{kind}", FILES, told, lambda place: place.server(kind))


# Several sources, several processes that download at once, and a download or an unpacking that is
# killed, are in tests/data/read/test_download.py; all damages in tests/data/read/test_batches.py.
DATA_FILES = [
    damaged("flipped-bit", damage_flip),
    damaged("missing", damage_remove),
    damaged("hostile-pickle", damage_hostile),
    Row(
        "data-test-batch-before-training",
        FILES,
        ["test_batch", "MD5 expected:", "Bring a whole copy"],
        a_test_split_damaged,
    ),
    Row(
        "data-test-batch",
        ["test", *FILES[1:5], FILES[-1], f"--ckpt_path={LAST}"],
        ["test_batch", "MD5 expected:", "Bring a whole copy"],
        a_test_split_damaged_since,
    ),
    Row("data-empty-folder", FILES, ["no CIFAR-10 in root", *WHAT_TO_DO], an_empty_folder),
    Row("data-root-a-file", FILES, ["cannot write to root", *WHAT_TO_DO], a_file_for_a_root),
    Row("data-root-read-only", FILES, ["cannot write to root", *WHAT_TO_DO], a_read_only_root),
    Row("data-download-false", [*FILES, "--data.download=false"], ["download is false"]),
    Row("data-root-mistyped", ["fit", "--data.root=rot"], ["rot", "--data.download true"]),
    Row("data-variable", ["fit"], ["not/there", *WHAT_TO_DO], a_variable_that_names_nothing),
    Row("data-mirror", [*FILES, "--data.mirror=/x"], ["mirror = '/x'", "http://", "file:///"]),
    served("silent", "it was silent for 0.5 s"),
    served("short", "it ended after"),
    served("busy", "the server answers 503"),
]


# ---- values


def value(option: str, *told: str) -> Row:
    return Row(f"value-{option}", [*FIT, f"--{option}"], list(told))


VALUES = [
    value("data.batch_size=0", "batch_size must be", ">= 1", "0"),
    value("data.batch_size=61", "batch_size must be", "from 1 to 60", "61"),
    value("data.val_size=50000", "val_size must be", "0 to 49999", "50000"),
    value("data.val_batches=[1]", "--data.val_size has no effect", "val_batches is [1]"),
    value("model.seeds=-1", "seeds must be", "from 0 to", "-1"),
    value("model.seeds=[0,18446744073709551616]", "seeds must be", "18446744073709551615"),
    value("model.l2=nan", "model.l2", "float", "nan"),
    value("model.l2=.nan", "l2 must be a finite number >= 0", "nan"),
    value("model.l2=[0.1,-.inf]", "l2 must be a finite number >= 0", "-inf"),
    value("model.init_std=.nan", "init_std must be a finite number >= 0", "nan"),
    value("model.hidden=-1", "hidden must be", ">= 0", "-1"),
    value("schedule.step_size=0", "step_size must be", "from 1 to", "not 0"),
    value(f"schedule.step_size={10**400}", "step_size must be", "1 to 1000000000000000"),
    value("schedule.max_lr=1e-9", "base_lr must be <= max_lr", "1e-05 > 1e-09"),
    value("checkpoints.every=0", "every must be", ">= 1", "0"),
    value("trainer.max_steps=-5", "max_steps", "-1", "-5"),
    value("trainer.accelerator=abacus", "abacus", "cpu"),
    value("trainer.strategy=ddp_spawn", "ddp_spawn", "use ddp"),
    value("trainer.val_check_interval=10000", "val_check_interval"),
    value("seed_everything=-1", "-1 is not in bounds"),
    Row(
        "value-nothing-to-validate-on",
        ["validate", *DATA, "--data.val_size=0", f"--ckpt_path={LAST}"],
        ["no split to validate on", "val_size is 0"],
        lambda place: place.run() and None,
    ),
]


# ---- configuration files


def config(name: str, content: bytes, *told: str) -> Row:
    def ready(place: Place) -> None:
        (place.folder / "bad.yaml").write_bytes(content)

    return Row(f"config-{name}", ["fit", "-c", "bad.yaml"], list(told), ready)


CONFIGS = [
    config("empty", b"", "bad.yaml: it is empty", "must be a mapping"),
    config("only-a-comment", b"# nothing\n", "bad.yaml: it is empty", "must be a mapping"),
    config("tab", b"model:\n\thidden: 3\n", "bad.yaml", "line 2", "cannot start any token"),
    config("unknown-key", b"frobnicate: 1\n", "does not accept option 'frobnicate'"),
    config("misspelt-key", b"model:\n  hiden: 3\n", "'model.hiden'", "Did you mean model.hidden?"),
    config(
        "duplicate-key",
        b"model:\n  l2: 0\n  l2: 1\n",
        "bad.yaml",
        "line 3",
        "'l2' stands here twice",
    ),
    config("not-utf-8", b"model: \xff\xfe\n", "bad.yaml: it is not UTF-8", "byte 7"),
    config("a-list", b"[1, 2]", "bad.yaml: it is empty, or no mapping", "must be a mapping"),
    config("a-section-left-empty", b"model:\n", "bad.yaml: it is empty", "must be a mapping"),
    config("a-section-that-is-none", b"data: 3\n", "bad.yaml: data is 3", "must be a mapping"),
    config("a-key-that-is-a-list", b"? [a]\n: 3\n", "bad.yaml", "unhashable"),
    config("no-such-day", b"model:\n  l2: 2024-13-01\n", "bad.yaml", "model.l2", "2024-13-01"),
    Row("config-not-named", ["fit", "-c"], ["--config", "expected one argument"]),
    config("wrong-type", b"model:\n  hidden: many\n", "model.hidden", "int", "many"),
    Row("config-missing", ["fit", "-c", "none.yaml"], ["no config 'none.yaml'", "three_cycles"]),
    Row("config-a-folder", ["fit", "-c", "."], ["config .", "a folder"]),
]


# ---- the command line

SEARCH = ["search", *DATA[:4], "--search.number=2", "--final.batch_size=10", "--output=out"]
PREDICT = ["predict", f"--ckpt_path={LAST}", "--data.images=photos"]


def a_finished_run(place: Place) -> None:
    place.run()
    (place.folder / "photos").mkdir()


def a_file_of_that_name(place: Place) -> None:
    (place.folder / "out").write_text("")


def a_table(place: Place) -> None:
    np.savez(place.folder / "X.npz", X=np.eye(9, dtype=np.float32), y=np.arange(9) % 2)


def slurm(place: Place) -> None:
    for name, value in {"NTASKS": "4", "JOB_ID": "7", "JOB_NAME": "train"}.items():
        place.patch.setenv(f"SLURM_{name}", value)


def a_home_of_nobody(place: Place) -> None:
    place.patch.setenv("ONELAYER_DATA", "~nobody-here/data")


COMMANDS = [
    Row("slurm-tasks", FIT, ["--ntasks=4", "unset SLURM_NTASKS"], slurm),
    Row("home-of-nobody", FIT, ["~nobody-here/data", "no such user"], a_home_of_nobody),
    Row("home-of-nobody-root", [*FIT, "--data.root=~nobody-here"], ["~nobody-here", "no such"]),
    Row(
        "two-schedules",
        [*FIT, "--trainer.callbacks+=onelayer.training.schedule.TriangularLR"],
        ["has a TriangularLR", "Set schedule.…"],
    ),
    Row(
        "monitor-unknown",
        [*FIT, "--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val_los"],
        ["EarlyStopping monitors 'val_los'", "Did you mean val/loss?"],
    ),
    Row(
        "monitor-without-class-weights",
        [
            *FIT,
            "--trainer.callbacks+=EarlyStopping",
            "--trainer.callbacks.monitor=val/balanced_accuracy",
        ],
        ["EarlyStopping monitors 'val/balanced_accuracy'", "What is: train/cost"],
    ),
    Row(
        "monitor-of-no-split",
        [
            *FIT,
            "--data.val_size=0",
            "--trainer.callbacks+=ModelCheckpoint",
            "--trainer.callbacks.monitor=val/loss",
        ],
        ["ModelCheckpoint monitors 'val/loss'", "What is: train/cost"],
    ),
    Row("model-of-other-images", [*FIT, "--model.inputs=5"], ["model.inputs is 5", "3072"]),
    Row("model-of-other-classes", [*FIT, "--model.classes=3"], ["model.classes is 3", "have 10"]),
    Row("half-precision", [*FIT, "--trainer.precision=16-true"], ["16-true", "bf16-mixed"]),
    Row(
        "package-not-installed",
        [*FIT, "--trainer.accelerator=tpu"],
        ["torch_xla", "is its package installed?"],
    ),
    Row(
        "root-of-the-runs-a-file",
        [*FIT, "--trainer.default_root_dir=out"],
        ["out/lightning_logs", "Not a directory"],
        a_file_of_that_name,
    ),
    Row(
        "predict-into-no-folder",
        [*PREDICT, "--output=nowhere/a.csv"],
        ["nowhere/a.csv", "needs the folder nowhere"],
        a_finished_run,
    ),
    Row(
        "predict-into-a-folder",
        [*PREDICT, "--output=photos"],
        ["photos is a folder"],
        a_finished_run,
    ),
    Row(
        "predict-in-processes",
        [*PREDICT, "--trainer.accelerator=cpu", "--trainer.devices=2"],
        ["predict works in one process", "trainer.devices"],
        a_finished_run,
    ),
    Row("predict-several", [*PREDICT, "more.png"], ["more.png", "'[a,b]'"], a_finished_run),
    Row("search-output-a-file", SEARCH, ["out", "File exists"], a_file_of_that_name),
    Row(
        "search-final-batch-size",
        [*SEARCH, "--final.batch_size=5000"],
        ["of the final training", "batch_size", "not 5000"],
    ),
    Row(
        "search-without-validation",
        [*SEARCH, "--data.val_size=0"],
        ["needs a validation split", "data.val_size"],
    ),
    Row("search-final-seeds", [*SEARCH, "--final.seeds=[]"], ["of the final training", "seeds"]),
    Row(
        "search-axis-empty", [*SEARCH, "--search.hidden=[]"], ["search.hidden must list one", "[]"]
    ),
    Row("search-axis-twice", [*SEARCH, "--search.max_lr=[1,1]"], ["search.max_lr", "different"]),
    Row("search-axis-negative", [*SEARCH, "--search.hidden=[5,-1]"], ["search.hidden", "not -1"]),
    Row("search-axis-one", [*SEARCH, "--search.dropout=[0,1]"], ["search.dropout", "below 1"]),
    Row("search-axis-no-flip", [*SEARCH, "--search.flip=[2]"], ["search.flip", "bool"]),
    Row("search-axis-a-number", [*SEARCH, "--search.hidden=5"], ["search.hidden", "list"]),
    Row(
        "search-smoothing",
        [*SEARCH, "--model.label_smoothing=1"],
        ["of the search: label_smoothing", "not 1"],
    ),
    Row(
        "search-rates-below-the-base",
        [*SEARCH, "--schedule.base_lr=0.01", "--search.max_lr=[0.1,0.001]"],
        ["base_lr must be <= max_lr", "0.001"],
    ),
    Row(
        "search-dropout-of-the-linear-network",
        [*SEARCH, "--search.hidden=[0,5]", "--search.dropout=[0,0.2]"],
        ["of the search, hidden=0 dropout=0.2: dropout is 0.2", "no hidden units"],
    ),
    Row(
        "search-flips-of-no-images",
        [
            *["search", "--data=ArraysDataModule", "--data.train=X.npz", "--output=out"],
            "--search.flip=[false,true]",
        ],
        ["search.flip", "ArraysDataModule"],
        a_table,
    ),
    Row("search-storage", [*SEARCH, "--storage=mysql://x/y"], ["SQLite", "PostgreSQL"]),
    Row(
        "option-misspelt",
        ["fit", "--model.hiden=3"],
        ["--model.hiden", "Did you mean model.hidden?"],
    ),
    Row(
        "option-abbreviated",
        ["fit", "--model.hid=3"],
        ["--model.hid", "Did you mean model.hidden?"],
    ),
    Row("option-unknown", ["fit", "--frobnicate=3"], ["unrecognized", "--frobnicate"]),
    Row("option-wrong-type", ["fit", "--model.hidden=x"], ["model.hidden", "int", "x"]),
    Row("option-without-value", ["fit", "--model.hidden"], ["--model.hidden", "expected one"]),
    Row("subcommand-misspelt", ["fti"], ["'fti'", "did you mean 'fit'?", "subcommands: fit, "]),
    Row("subcommand-late", ["--model.hidden=3", "fit"], ["subcommand comes first"]),
    Row("gradcheck-hidden", ["gradcheck", "--hidden=0"], ["--hidden must be", "from 1 to 10000"]),
    Row("gradcheck-abbreviated", ["gradcheck", "--hid=3"], ["--hid"]),
    Row("search-misspelt", ["search", "--search.sedes=3"], ["--search.sedes"]),
    Row("checkpoint-not-named", ["test", *DATA], ["needs --ckpt_path", "last for the newest"]),
    Row(
        "resume-last-of-nothing",
        [*FIT, "--ckpt_path", "last"],
        ["no run with a checkpoint", "onelayer fit"],
    ),
]


# ---- checkpoints


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def foreign_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("letter.txt", "Dear all")


def pickled_code(path: Path) -> None:
    torch.save({"state_dict": {}, "code": Touch(path.parents[4] / "executed")}, path)


def bare_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Touch(path.parents[4] / "executed")))


def other_tensors(path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, path)


def weights_alone(path: Path) -> None:
    torch.save({"state_dict": torch.load(path, weights_only=True)["state_dict"]}, path)


def another_network(path: Path) -> None:
    content = torch.load(path, weights_only=True)
    other = {"state_dict": {"layer.weight": torch.zeros(3, 3)}, "hyper_parameters": {}}
    torch.save({**content, **other}, path)


def checkpoint(command: str, damage: Callable[[Path], object], *told: str) -> Row:
    def ready(place: Place) -> None:
        damage(place.run() / "checkpoints" / "last.ckpt")

    typed = {"fit": [*FIT, f"--ckpt_path={LAST}"], "test": ["test", *DATA, f"--ckpt_path={LAST}"]}
    name = f"{command}-checkpoint-{damage.__name__}"
    return Row(name.replace("_", "-"), typed[command], list(told), ready)


def unreadable(command: str, name: str, *told: str) -> Row:
    typed = FIT if command == "fit" else ["test", *DATA]
    return Row(
        f"{command}-checkpoint-{name or 'empty-name'}", [*typed, "--ckpt_path", name], list(told)
    )


WHOLE = f"This one is complete: --ckpt_path {PREVIOUS} (after 10 updates)"
CHECKPOINTS = [
    row
    for command in ("fit", "test")
    for row in [
        checkpoint(command, truncate, f"{LAST} is not a complete checkpoint", WHOLE),
        checkpoint(command, damage_empty, f"{LAST} is not a complete checkpoint", WHOLE),
        checkpoint(command, damage_flip, f"{LAST} is not a complete checkpoint", "checksum", WHOLE),
        checkpoint(command, damage_remove, f"there is no checkpoint {LAST}", WHOLE),
        checkpoint(command, foreign_zip, f"{LAST} is not a complete checkpoint", WHOLE),
        checkpoint(command, bare_pickle, f"{LAST} is not a complete checkpoint", WHOLE),
        checkpoint(command, pickled_code, f"{LAST} has pickled code", "It was not loaded", WHOLE),
        checkpoint(
            command, other_tensors, f"{LAST} is not a Lightning checkpoint", "state_dict", WHOLE
        ),
        checkpoint(
            command,
            weights_alone,
            f"{LAST} is not a Lightning checkpoint",
            "global_step",
            "last.ckpt",
        ),
        checkpoint(
            command, another_network, "not a checkpoint of OneLayer", "W is missing", "onelayer fit"
        ),
        unreadable(command, "nowhere.ckpt", "there is no checkpoint nowhere.ckpt"),
        unreadable(
            command,
            "https://example.org/a.ckpt",
            "not loaded from a URL",
            "Download https://example.org/a.ckpt first",
        ),
        unreadable(command, "", "no checkpoint in the folder", "Choose a run's"),
    ]
]


def resumed(option: str, *told: str) -> Row:
    """A run resumed from last.ckpt with one option changed: both values are named."""
    typed = [*FIT, "--ckpt_path=last", f"--{option}"]
    return Row(f"resume-{option}", typed, list(told), lambda place: place.run() and None)


RESUMED = [
    resumed("model.l2=0.1", "model.l2", "0.1", "0.0", "new run"),
    resumed("model.seeds=[0,1]", "model.seeds", "[0, 1]", "0 in the checkpoint", "new run"),
    resumed("model.hidden=4", "model.hidden", "4", "3", "new run"),
    resumed("data.batch_size=5", "batch_size is 5 here but 10 in", "new run"),
    resumed("data.seed=1", "seed is 1 here but 0 in", "new run"),
    resumed("schedule.step_size=5", "schedule.step_size", "5", "10", "new run"),
    resumed("schedule.max_lr=0.2", "schedule.max_lr", "0.2", "0.1", "new run"),
]


@pytest.mark.parametrize(
    "row",
    [*DATA_FILES, *VALUES, *CONFIGS, *COMMANDS, *CHECKPOINTS, *RESUMED],
    ids=lambda row: row.name,
)
def test_a_command_with_bad_input_is_refused(row: Row, place: Place, capfd) -> None:
    more = row.ready(place)
    typed = [*row.typed, *([more] if more else [])]
    refused(lambda: main(typed), row.told, place.folder, capfd)
    assert not place.marker.exists()


# ---- what a run has left


def cut_line(text: bytes) -> bytes:
    return text[:-30]


def cut_number(text: bytes) -> bytes:
    """The last number is a number still."""
    return text.rstrip()[:-1]


def cut_all(text: bytes) -> bytes:
    return b""


def cut_rows(text: bytes) -> bytes:
    return text.splitlines(keepends=True)[0]


def lose_bytes(text: bytes) -> bytes:
    lines = text.splitlines(keepends=True)
    return b"".join([*lines[:3], lines[3][5:], *lines[4:]])


def not_text(text: bytes) -> bytes:
    return b"\xff" + text


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (cut_line, "cut short: its last line, 24, is not whole"),
        (cut_number, "cut short: its last line, 24, is not whole"),
        (cut_all, "its first line is '', and it must be"),
        (cut_rows, "no figures"),
        (lose_bytes, "line 4: "),
        (not_text, "cannot read the curves"),
    ],
)
@pytest.mark.parametrize(
    "read", [read_rows, lambda path: plot_curves(path, "curves.png")], ids=["rows", "figure"]
)
def test_damaged_curves_are_refused(read, damage, why, place: Place, capfd) -> None:
    path = place.run() / "curves.csv"
    path.write_bytes(damage(path.read_bytes()))
    refused(lambda: command(lambda: read(path)), [str(path), why], place.folder, capfd)
    path.unlink()
    refused(lambda: command(lambda: read(path)), [str(path), "No such file"], place.folder, capfd)


@pytest.mark.parametrize("damage", [damage_truncate, damage_flip])
def test_a_run_with_damaged_tensorboard_files_is_resumed(damage, place: Place, finished) -> None:
    run = place.run()
    (run / "summary.json").unlink()  # as it was killed before its end
    for path in run.glob("*tfevents*"):
        damage(path)
    assert main([*FIT, f"--ckpt_path={PREVIOUS}"]) == 0
    ours, theirs = (
        torch.load(path, weights_only=True)["state_dict"]
        for path in (place.folder / LAST, finished / "checkpoints" / "last.ckpt")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    curves = place.folder / RUN / "curves.csv"
    assert curves.read_bytes() == (finished / "curves.csv").read_bytes()


# ---- the same without the fault


def test_the_same_command_is_good_without_the_fault(place: Place, tiny: Tiny) -> None:
    assert main([*FILES, place.server("healthy")]) == 0
    assert {path.name for path in (place.folder / "root").iterdir()} >= {tiny.published.folder}
    assert (place.folder / LAST).is_file()


def test_a_checkpoint_from_elsewhere_starts_a_run_of_its_own(place: Place, finished) -> None:
    """Not one in whatever folder is above."""
    copy = place.folder / "downloads" / "copy.ckpt"
    copy.parent.mkdir()
    shutil.copyfile(finished / "checkpoints" / "previous.ckpt", copy)
    assert main([*FIT, "--ckpt_path=downloads/copy.ckpt"]) == 0
    assert {path.name for path in place.folder.iterdir()} == {"downloads", "lightning_logs"}
    assert [path.name for path in copy.parent.iterdir()] == ["copy.ckpt"]
    assert (place.folder / RUN / "config.yaml").is_file()
    curves = place.folder / RUN / "curves.csv"
    assert curves.read_bytes() == (finished / "curves.csv").read_bytes()
