"""Names of columns, classes and groups, and the index of pandas: kept, compared, refused."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from onelayer.__main__ import main
from onelayer.core.errors import InputError
from onelayer.data.arrays import ArraysDataModule
from onelayer.data.dataset import DatasetDataModule
from onelayer.data.naming import match
from onelayer.data.read.formats import read_table
from onelayer.data.table import Columns
from onelayer.training.checkpoint import load_network, read_checkpoint
from onelayer.training.module import OneLayer
from tests.support.own import NAMES, Theirs, arrays
from tests.support.small import SAFELY, trainer

pytest.importorskip("pandas")
pytest.importorskip("pyarrow")

import pandas as pd

from tests.support.tables import data, refused, write

N, D, K = 120, 3, 4
COLUMNS = ["a", "b", "c"]
QUIET = "--trainer.enable_progress_bar=false"
SHORT = ["--data.batch_size=10", "--schedule.step_size=10", QUIET]
LAST = Path("lightning_logs/fit/version_0/checkpoints/last.ckpt")
pytestmark = pytest.mark.filterwarnings(
    "ignore:The '.*_dataloader' does not have many workers",
    "ignore:The number of training batches",
    "ignore:data.val_size = .* has no effect",  # given for every table here
)


def frame(seed=0, columns=COLUMNS, n=N):
    """Rows whose columns stand in an order, with labels."""
    X, y = arrays(n, D, K, seed)
    return pd.DataFrame(dict(zip(COLUMNS, X.T, strict=True)))[columns].assign(y=NAMES[y])


def save(name, table, index=False):
    to = table.to_csv if name.endswith(".csv") else table.to_parquet
    to(name, index=index)
    return name


def tensors(module, split="test"):
    module.setup("fit")
    return module.tensors(split)


# ---- columns


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize("split", ["val", "test"])
def test_columns_in_another_order_are_matched_by_name(ending, split):
    train = save(f"train.{ending}", frame())
    same, other = (
        save(f"{name}.{ending}", frame(1, columns))
        for name, columns in (("same", COLUMNS), ("other", ["c", "a", "b"]))
    )
    (X, y), (Xo, yo) = (tensors(data(train, **{split: f}), split) for f in (same, other))
    assert torch.equal(X, Xo)
    assert torch.equal(y, yo)


def test_a_frame_in_python_has_its_columns_too():
    train, test = frame(), frame(1, ["c", "a", "b"])
    given = [(t.drop(columns="y"), t["y"]) for t in (train, test, frame(1))]
    X, Xo = (tensors(data(given[0], test=test))[0] for test in given[1:])
    assert torch.equal(X, Xo)


def test_a_column_that_is_missing_or_unknown_is_refused_by_name():
    train = save("train.csv", frame())
    test = save("test.csv", frame(1).rename(columns={"b": "d"}))
    given = data(train, test=test)
    refused(
        given.verify_test,
        "test.csv has other columns than train.csv: missing: b; unknown: d",
        "--data.x",
    )
    more = save("more.csv", frame(1).assign(id=0.5))
    refused(data(train, test=more).verify_test, "more.csv", "unknown: id")
    assert tensors(data(train, test=more, x=COLUMNS))[0].shape == (N, D)


def test_the_command_line_matches_columns_with_those_of_a_checkpoint(capfd):
    train, other = save("train.csv", frame()), save("other.csv", frame(1, ["c", "a", "b"]))
    same = save("same.csv", frame(1))
    words = ["--data=ArraysDataModule", f"--data.train={train}", f"--data.test={same}"]
    assert main(["fit", *words, *SHORT, "--schedule.step_size=50"]) == 0
    network = load_network(LAST)
    assert network.columns == COLUMNS
    assert network.classes == NAMES.tolist()
    assert network.hparams["classes"] == network.outputs == K
    assert read_checkpoint(LAST)["data_module"]["columns"] == COLUMNS
    said = []
    for file in (same, other):
        capfd.readouterr()
        assert main(["test", "--ckpt_path=last", f"--data.test={file}", QUIET]) == 0
        said.append(capfd.readouterr().out)
        assert main(["predict", "--ckpt_path=last", f"--data.predict={file}", QUIET]) == 0
        said.append(Path("predictions.csv").read_text())
    assert said[:2] == said[2:]
    capfd.readouterr()
    less = save("less.csv", frame(1).drop(columns="b"))
    assert main(["predict", "--ckpt_path=last", f"--data.predict={less}", QUIET]) == 2
    assert "less.csv has other columns than the checkpoint: missing: b" in capfd.readouterr().err


# ---- the index of pandas, and other columns that are no features


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize("name", [None, "patient"])
def test_the_index_that_pandas_writes_is_left_out_and_told(ending, name):
    table = frame().set_index(pd.Index(np.random.default_rng(0).permutation(N), name=name))
    file = save(f"t.{ending}", table, index=True)
    if name and ending == "csv":  # an ordinary column there: warned of as one that counts
        with pytest.warns(UserWarning, match="column 'patient' has 120 distinct whole numbers"):
            data(file).setup("fit")
        return
    given = data(file)
    with pytest.warns(UserWarning, match=r"the column '.*' was left out: it is the index"):
        given.setup("fit")
    assert given.columns == COLUMNS


@pytest.mark.parametrize("name", ["Unnamed: 0", "Unnamed: 0.1"])
def test_an_index_that_was_read_as_a_column_is_left_out_unless_it_is_asked_for(name):
    table = frame().assign(**{name: np.arange(N) * 0.5})
    file = save("t.csv", table)
    with pytest.warns(UserWarning, match=f"'{name}' was left out"):
        assert data(file).columns == COLUMNS
    assert data(file, x=["a", name]).columns == ["a", name]


def test_a_column_that_counts_the_rows_is_warned_about_and_others_are_not():
    ids = np.random.default_rng(0).permutation(2 * N)[:N]
    with pytest.warns(UserWarning, match="column 'id' has 120 distinct whole numbers"):
        data(save("t.csv", frame().assign(id=ids))).setup("fit")
    X, y = arrays(N, D, K)
    X[:, 1] = ids
    with pytest.warns(UserWarning, match=r"column 1 has 120 distinct whole numbers"):
        data((X, y)).setup("fit")
    rare = {"year": 1900 + ids % 100, "price": 97 * ids, "time": 0.5 * ids}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data(save("u.csv", frame().assign(**rare))).setup("fit")


def test_a_column_called_x_is_one_of_many_unless_it_holds_lists_or_is_asked_for():
    table = frame().rename(columns={"a": "X"})
    file = save("t.csv", table)
    assert data(file).columns == ["X", "b", "c"]
    assert data(file, x="X").columns == ["X"]
    assert data(file, x=["X"]).columns == ["X"]
    lists = pd.DataFrame({"X": list(arrays(N, 5, K)[0]), "id": "text", "y": frame()["y"]})
    assert data(save("t.parquet", lists)).shape == (5,)


# ---- classes


@pytest.mark.parametrize("split", ["val", "test"])
def test_whole_labels_mean_the_classes_of_their_own_table(split):
    X, y = arrays(N, D, K)
    train = write("train.npz", X, y, classes=NAMES)
    Xt, yt = arrays(40, D, K, 1)
    kept = yt > 0
    other = write("other.npz", Xt[kept], yt[kept] - 1, classes=NAMES[1:])
    _, found = tensors(data(train, **{split: other}), split)
    assert found.tolist() == yt[kept].tolist()
    backwards = write("back.npz", Xt, K - 1 - yt, classes=NAMES[::-1])
    _, found = tensors(data(train, **{split: backwards}), split)
    assert found.tolist() == yt.tolist()


def test_classes_that_are_given_are_matched_by_name_as_well():
    X, y = arrays(N, D, K)
    given = data(write("a.npz", X, y, classes=NAMES), classes=NAMES[::-1].tolist(), val_size=0)
    assert given.labels("train").tolist() == (K - 1 - y).tolist()
    given = data("a.npz", classes=["one", "two", "three", "four"])
    refused(lambda: given.setup("fit"), "row 0 has the label 'ash'", "one, two, three, four")


def test_a_class_of_another_name_is_refused():
    X, y = arrays(N, D, K)
    train = write("train.npz", X, y, classes=NAMES)
    test = write("test.npz", X + 1, y, classes=["ash", "birch", "larch", "doum"])
    refused(data(train, test=test).verify_test, "test.npz: row 2 has the label 'larch'", "cedar")


class Folder(Dataset):
    """As ImageFolder numbers its folders."""

    def __init__(self, y, classes):
        self.y, self.classes = y, classes

    def __len__(self):
        return len(self.y)

    def __getitem__(self, i):
        return torch.tensor([float(self.y[i]), float(i)]), self.y[i]


def test_the_folders_of_a_test_set_are_matched_by_name():
    train, test = Folder([0, 1, 2] * 4, ["ant", "bee", "cat"]), Folder([0, 1], ["bee", "cat"])
    given = DatasetDataModule(train, test=test, val_size=0, batch_size=2)
    assert given.labels("test").tolist() == [1, 2]
    left = Folder([0, 1, 2] * 4, [".ipynb_checkpoints", "bee", "cat"])
    given = DatasetDataModule(left, val_size=0, batch_size=2)
    refused(lambda: given.setup("fit"), "'.ipynb_checkpoints'", "Delete the folder")


@pytest.mark.parametrize("blank", ["", " "])
def test_a_blank_label_is_refused_with_its_row(blank):
    table = frame()
    table.loc[17, "y"] = blank
    save("t.csv", table)
    refused(lambda: data("t.csv").setup("fit"), "t.csv: column 'y', row 19, is blank")
    X, _ = arrays(N, D, K)
    given = data((X, table["y"].to_numpy(dtype=str)))
    refused(lambda: given.setup("fit"), "'y', row 17, is blank")


def test_names_that_differ_by_blanks_or_case_only_are_warned_about():
    table = frame()
    table.loc[17, "y"] = "Ash "
    with pytest.warns(UserWarning, match=r"classes 'Ash ' and 'ash' differ by blanks or case only"):
        data(save("t.csv", table)).setup("fit")
    with pytest.warns(UserWarning, match="the columns 'b' and 'B ' differ by blanks"):
        data(save("u.csv", frame().assign(**{"B ": 0.5}))).setup("fit")


def test_groups_that_two_files_share_are_warned_about():
    X, y = arrays(N, D, K)
    who = np.arange(N) // 5
    files = {
        split: write(f"{split}.npz", X[i::3], y[i::3], who=who[i::3].astype(kind))
        for i, (split, kind) in enumerate((("train", int), ("val", int), ("test", str)))
    }
    with pytest.warns(UserWarning, match="groups are in") as caught:
        data(**files, groups="who", val_size=0).setup("fit")
    said = [str(one.message) for one in caught]
    assert [text.partition(":")[0] for text in said] == [
        "24 groups are in the val split and also in the train split",
        "24 groups are in the test split and also in the train split",
        "24 groups are in the test split and also in the val split",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data(write("all.npz", X, y, who=who), groups="who").setup("fit")


# ---- checkpoints


def test_a_run_is_not_resumed_with_other_features_or_classes(capfd):
    X, y = arrays(N, D, K)
    write("t.npz", X, y, classes=NAMES)
    words = ["--data=ArraysDataModule", "--data.train=t.npz", *SHORT, "--checkpoints.every=7"]
    assert main(["fit", *words]) == 0
    resume = ["fit", f"--ckpt_path={LAST.with_name('previous.ckpt')}"]
    for features, names, told in (
        (X + (np.arange(N) == 30)[:, None], NAMES, "rows is"),
        (X, ["ash", "birch", "cedar", "dune"], "other classes than the checkpoint: missing: doum"),
    ):
        write("t.npz", features.astype(np.float32), y, classes=names)
        capfd.readouterr()
        assert main(resume) == 2
        assert told in capfd.readouterr().err
    write("t.npz", X, y, classes=NAMES)
    assert main(resume) == 0


def test_a_run_resumed_with_columns_in_another_order_ends_with_the_same_bits():
    save("t.csv", frame())
    words = ["--data=ArraysDataModule", "--data.train=t.csv", *SHORT, "--checkpoints.every=7"]
    assert main(["fit", *words]) == 0
    whole = read_checkpoint(LAST)["state_dict"]
    shutil.copy(LAST.with_name("previous.ckpt"), LAST)
    (LAST.parents[1] / "summary.json").unlink()
    save("t.csv", frame(columns=["c", "a", "b"]))
    assert main(["fit", f"--ckpt_path={LAST}"]) == 0
    again = read_checkpoint(LAST)["state_dict"]
    assert all(torch.equal(again[name], whole[name]) for name in whole)


class Named(Theirs):
    """Theirs, with names of the classes in some order."""

    def __init__(self, classes):
        super().__init__()
        self.classes = classes


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_a_data_module_with_other_names_than_the_networks_is_refused(tmp_path, stage):
    model, run = OneLayer(inputs=6, classes=4), trainer(tmp_path, max_steps=4)
    run.fit(model, datamodule=Named(NAMES.tolist()))
    assert model.classes == NAMES.tolist()
    for names, told in (
        (NAMES[::-1].tolist(), "Named has its classes in another order than the network: doum"),
        (["ash", "birch", "cedar", "dune"], "missing: doum; unknown: dune"),
    ):
        with pytest.raises(InputError, match=told):
            getattr(run, stage)(model, datamodule=Named(names), **SAFELY)
    getattr(run, stage)(model, datamodule=Theirs(), **SAFELY)
    assert model.classes == NAMES.tolist()


def test_the_matcher_reorders_and_names_what_differs():
    assert match(["c", "a"], ["a", "c"], "columns", "t", "u") == [1, 0]
    with pytest.raises(InputError, match="t has other columns than u: missing: a; unknown: b"):
        match(["b"], ["a"], "columns", "t", "u")


# ---- what the data are called


@pytest.mark.parametrize(
    ("file", "name"),
    [("pets/train.npz", "pets"), ("pets/X.npy", "pets"), ("pets/dogs_train.csv", "dogs")],
)
def test_data_are_called_by_their_folder_where_the_file_tells_the_split(file, name):
    assert ArraysDataModule(file).name == name


def test_a_table_without_names_is_not_read_again_for_a_checkpoint(tmp_path, monkeypatch):
    X, y = arrays(N, D, K)
    given, read = data(write("t.npz", X, y)), []
    reader = given.readers["train"]
    given.readers["train"] = lambda: (read.append(1), reader())[1]
    trainer(tmp_path, max_steps=10).fit(OneLayer(inputs=D, classes=K), datamodule=given)
    for _ in range(2):
        given.state_dict()
    assert given.columns is None
    assert len(read) == 1


def test_names_of_earlier_data_are_forgotten_where_later_ones_have_none(tmp_path):
    model = OneLayer(inputs=6, classes=4)
    for module, names in ((Named(NAMES.tolist()), NAMES.tolist()), (Theirs(), list("0123"))):
        trainer(tmp_path, max_steps=4).fit(model, datamodule=module)
        assert model.classes == names


def write_labels(path, labels):
    rows = "".join(f"{i % 3},{i % 5},{labels[i % len(labels)]}\n" for i in range(12))
    path.write_text(f"a,b,y\n{rows}")


def test_groups_of_a_csv_that_differ_by_a_zero_are_two(tmp_path):
    rows = "".join(f"{i % 3},{i},{i % 2},{'007' if i < 6 else '7'}\n" for i in range(12))
    (tmp_path / "train.csv").write_text(f"a,b,y,g\n{rows}")
    table = read_table(str(tmp_path / "train.csv"), Columns(None, "y", "g"))
    assert set(table.groups) == {"007", "7"}


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["007", "070", "700"], ["007", "070", "700"]),  # zeros in front are kept
        (["10", "9", "-2"], ["-2", "9", "10"]),
        (["True", "False"], ["False", "True"]),
        (["2026-01-01", "cat"], ["2026-01-01", "cat"]),
    ],
)
def test_class_names_of_a_csv_are_as_they_are_written(tmp_path, labels, names):
    write_labels(tmp_path / "train.csv", labels)
    data = ArraysDataModule(str(tmp_path / "train.csv"), val_size=3, batch_size=3)
    data.setup("fit")
    assert list(data.classes) == names


def test_truth_values_are_classes_of_these_names():
    y = np.arange(12) % 2 == 1
    X = np.random.default_rng(0).normal(size=(12, 2))
    data = ArraysDataModule((X, y), val_size=3, batch_size=3)
    data.setup("fit")
    assert list(data.classes) == ["False", "True"]
