"""ArraysDataModule: what it reads, how it splits and standardises, and what it refuses."""

import io
import pickle
import warnings
import zipfile
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from lightning.pytorch import LightningModule
from PIL import Image

from onelayer.data.arrays import ArraysDataModule
from onelayer.data.augment import mirror
from onelayer.data.features import RawFeatures, measure, standardise
from onelayer.data.read import formats as files
from onelayer.data.read.formats import read_table
from onelayer.data.split import Splits, stratified
from onelayer.data.table import Columns
from onelayer.training.module import OneLayer
from tests.support.own import NAMES, arrays
from tests.support.small import trainer

pytest.importorskip("pandas")
pytest.importorskip("pyarrow")

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from tests.support.tables import data, refused, write

N, D, K = 120, 6, 4


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.pt", "a.safetensors", "a.csv", "a.parquet"])
def test_every_format_gives_the_same_standardised_splits(name):
    X, y = arrays(N, D, K)
    given = data(write(name, X, y))
    given.setup("fit")
    reference = data((X, y))
    for split in ("train", "val"):
        (X_, y_), (Xr, yr) = given.tensors(split), reference.tensors(split)
        assert torch.equal(y_, yr)
        torch.testing.assert_close(X_.split(len(y_)).__iter__().__next__(), Xr)
    assert given.classes == ["0", "1", "2", "3"]
    assert given.tensors("test") is None
    assert isinstance(given, Splits)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.uint8, np.int64])
def test_features_of_every_dtype_have_mean_0_and_deviation_1(dtype):
    X, y = arrays(N, D, K)
    X = (20 * (X - X.min())).clip(0, 255).astype(dtype)
    given = data((X, y), val_size=0)
    X_, _ = given.tensors("train")
    assert X_.dtype == torch.float32
    torch.testing.assert_close(X_.mean(0), torch.zeros(D), atol=1e-5, rtol=0)
    torch.testing.assert_close(X_.std(0), torch.ones(D))
    scale = 255 if dtype == np.uint8 else 1
    expected = (X.astype(np.float64) - X.astype(np.float64).mean(0)) / X.astype(np.float64).std(
        0, ddof=1
    )
    np.testing.assert_allclose(X_.numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(
        given.statistics.mean * scale, X.astype(np.float64).mean(0), rtol=1e-12
    )


def test_unit_gives_rows_of_length_1_and_none_leaves_them():
    X, y = arrays(N, D, K)
    X[3] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unit, _ = data((X, y), val_size=0, standardise="unit").tensors("train")
        none, _ = data((X, y), val_size=0, standardise="none").tensors("train")
    np.testing.assert_array_equal(none, X)
    lengths = torch.linalg.vector_norm(unit, dim=1)
    assert lengths[3] == 0
    torch.testing.assert_close(lengths[4:], torch.ones(N - 4))
    np.testing.assert_allclose(
        unit[4:], X[4:] / np.linalg.norm(X[4:], axis=1, keepdims=True), atol=1e-6
    )


@pytest.mark.parametrize("offset", [0.0, 1e6, -1e9])
def test_statistics_of_floats_lose_nothing_to_a_large_mean(offset):
    X = np.random.default_rng(0).normal(size=(5000, 700)) + offset  # several chunks
    X[:, 5] = 0.1 + offset
    found = measure(torch.from_numpy(X))
    exact = (X - offset).std(0, ddof=1)
    std, mean = found.std.numpy(), found.mean.numpy()
    np.testing.assert_allclose(np.delete(std, 5), np.delete(exact, 5), rtol=1e-6)
    np.testing.assert_allclose(mean, X.mean(0), rtol=1e-13, atol=1e-13)
    assert found.std[5] == 1
    assert standardise(torch.from_numpy(X[:, :]), found)[:, 5].eq(0).all()


def test_a_validation_split_has_of_each_class_its_share_and_depends_on_the_seed_alone():
    y = np.repeat(np.arange(4), [400, 200, 100, 20])
    X = np.arange(len(y), dtype=np.float32)[:, None] * np.ones((1, 2), np.float32)
    chosen = []
    for size, seed in ((0.25, 0), (180, 0), (180, 1)):
        given = data((X, y), val_size=size, seed=seed, standardise="none")
        X_, y_ = given.tensors("val")
        assert torch.bincount(y_).tolist() == [100, 50, 25, 5]
        left = given.tensors("train")[0][:, 0]
        assert sorted([*X_[:, 0].tolist(), *left.tolist()]) == X[:, 0].tolist()
        chosen.append(X_[:, 0].tolist())
    assert chosen[0] == chosen[1] != chosen[2]


def test_a_class_of_one_row_stays_in_the_training_split():
    train, val = stratified(np.array([0] * 50 + [1]), 25, seed=3)
    assert 50 in train
    assert len(val) == 25


def test_groups_are_kept_together():
    X, y = arrays(400, D, K)
    speaker = np.random.default_rng(1).integers(0, 60, 400).astype(str)
    given = data(write("a.npz", X, y, who=speaker), val_size=0.25, groups="who")
    rows = {split: given.rows_of(split).numpy() for split in ("train", "val")}
    assert not set(speaker[rows["train"]]) & set(speaker[rows["val"]])
    assert abs(len(rows["val"]) - 100) <= 8
    assert abs(np.bincount(y[rows["val"]]) - 25).max() <= 8


def test_names_of_classes_are_strings_given_ones_or_the_numbers():
    X, y = arrays(N, D, K)
    assert data((X, NAMES[y])).classes == NAMES.tolist()
    assert data((X, y), classes=NAMES.tolist()).classes == NAMES.tolist()
    assert data((X, 3 * y + 5)).classes == ["5", "8", "11", "14"]
    assert data(write("a.npz", X, y, class_names=NAMES)).classes == NAMES.tolist()
    _, codes = data((X, 3 * y + 5), val_size=0).tensors("train")
    assert torch.equal(codes, torch.from_numpy(y))


def test_columns_are_named_and_a_list_of_numbers_is_one():
    X, y = arrays(N, 3, K)
    table = pa.table({"e": list(X), "label": NAMES[y], "id": np.arange(N)})
    pa.parquet.write_table(table, "a.parquet")
    one = data("a.parquet", x="e", y="label")
    assert one.shape == (3,)
    pa.csv.write_csv(
        pa.table({"a": X[:, 0], "b": X[:, 1], "label": y, "id": np.arange(N)}), "a.csv"
    )
    two = data("a.csv", x=["a", "b"], y="label", standardise="none", val_size=0)
    np.testing.assert_allclose(two.tensors("train")[0], X[:, :2], rtol=1e-6)


def test_files_of_their_own_for_validation_and_test():
    X, y = arrays(N, D, K)
    files = {
        split: write(f"{split}.npz", X[i::3], y[i::3])
        for i, split in enumerate(("train", "val", "test"))
    }
    given = ArraysDataModule(**files, batch_size=10)
    given.setup("fit")
    assert [given.size(split) for split in files] == [40, 40, 40]
    expected = measure(torch.from_numpy(X[0::3]))
    torch.testing.assert_close(
        given.tensors("test")[0], standardise(torch.from_numpy(X[2::3]), expected)
    )


@pytest.mark.parametrize("gigabytes", [1.0, 1e-9], ids=["in memory", "mapped"])
def test_rows_in_two_splits_are_counted_in_a_warning(gigabytes):
    X, y = arrays(N, D, K)
    test = write("test.npy", np.concatenate([X[:7], X[:3] + 1]), y[:10])
    given = data(write("train.npy", X, y), test=test, val_size=0, max_memory=gigabytes)
    with pytest.warns(UserWarning, match="^7 rows are in the test split and also in the train"):
        given.setup("fit")


# ---- more than memory


@pytest.mark.parametrize("standard", ["feature", "none", "unit"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.uint8])
def test_a_mapped_file_gives_the_bits_of_one_in_memory(standard, dtype):
    X, y = arrays(N, D, K)
    files = write("a.npy", (30 * np.abs(X)).astype(dtype), y)
    mapped, resident = (
        data(files, standardise=standard, max_memory=gigabytes) for gigabytes in (1e-9, 1.0)
    )
    for given in (mapped, resident):
        given.setup("fit")
    for split in ("train", "val"):
        (X, y_), (Xr, yr) = mapped.tensors(split), resident.tensors(split)
        assert isinstance(X, RawFeatures)
        assert isinstance(Xr, torch.Tensor)
        assert torch.equal(y_, yr)
        rows = torch.tensor([9, 3, 3, 0, 17])
        assert torch.equal(X.index_select(0, rows), Xr[rows])
        assert torch.equal(torch.cat(list(X.split(7))), Xr)
    for (A, a), (B, b) in zip(mapped.train_dataloader(), resident.train_dataloader(), strict=True):
        assert torch.equal(A, B)
        assert torch.equal(a, b)
    assert torch.equal(mapped.statistics.std, resident.statistics.std)


def test_images_of_arrays_are_flipped_in_training_in_memory_or_mapped():
    X, y = arrays(N, 3 * 4 * 5, K)
    files = write("a.npy", X.reshape(N, 3, 4, 5), y)

    def epoch(gigabytes, **options):
        module = data(files, max_memory=gigabytes, **options)
        module.setup("fit")
        return module, torch.cat([X for X, _ in module.train_dataloader()])

    resident, changed = epoch(1.0, flip=True)
    plain, given = epoch(1.0)
    mirrored = mirror(given, (3, 4, 5))
    told = (changed == given).all(1), (changed == mirrored).all(1)
    assert (told[0] ^ told[1]).all()
    assert told[0].any()
    assert told[1].any()
    assert torch.equal(epoch(1e-9, flip=True)[1], changed)
    assert torch.equal(resident.tensors("val")[0], plain.tensors("val")[0])
    refused(lambda: data((X, y), shift=1).setup("fit"), "data.shift needs images")


# ---- what is refused


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.pt", "a.safetensors", "a.csv", "a.parquet"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_named(name, value):
    X, y = arrays(N, D, K)
    X[17, 4] = value
    row = 19 if name.endswith("csv") else 17
    column = "column 'x4'" if name.endswith(("csv", "parquet")) else "column 4"
    given = data(write(name, X, y))
    refused(lambda: given.setup("fit"), f"{name}: row {row}, {column} is {value}", "finite number")


def test_a_test_split_is_looked_through_before_the_training():
    X, y = arrays(N, D, K)
    bad = X.copy()
    bad[2, 1] = np.nan
    given = data(write("a.npz", X, y), test=write("t.npz", bad, y))
    refused(lambda: given.setup("fit"), "t.npz: row 2, column 1 is nan")
    given = data(write("a.npz", X, y), test=write("t.npz", X + 1, np.where(y == 2, 9, y)))
    refused(given.verify_test, "t.npz: row 2 has the label '9'", "Theirs are 0, 1, 2, 3")
    given = data(write("a.npz", X, y), test=write("t.npz", X[:, :5], y))
    refused(given.verify_test, "t.npz has 5 features, and a.npz has 6")


def test_a_class_that_only_another_split_has():
    X, y = arrays(N, D, K)
    kept = y != 3
    given = data((X[kept], y[kept]), test=(X + 1, y), classes=NAMES.tolist(), val_size=0)
    refused(given.verify_test, "row 3 is of class 'doum'", "only the test split has")


def hostile():
    class Touch:
        def __reduce__(self):
            return Path.touch, (Path("executed"),)

    return Touch()


def claim():
    """Write an .npz of a few bytes whose features are said to be 218 TiB."""
    head, labels = io.BytesIO(), io.BytesIO()
    described = {"descr": "<f4", "fortran_order": False, "shape": (60, 10**12)}
    np.lib.format.write_array_header_1_0(head, described)
    np.save(labels, np.arange(60) % 3)
    with zipfile.ZipFile("a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("X.npy", head.getvalue() + b"\0" * 100)
        archive.writestr("y.npy", labels.getvalue())


def objects():
    np.save("X.npy", np.array([[hostile()]], dtype=object))
    np.save("y.npy", [1])


def content(name, what, *told):
    """A file of bytes or text."""
    what = what if isinstance(what, bytes) else what.encode()
    return lambda: Path(name).write_bytes(what), name, told


def csv(what, *told):
    return content("a.csv", what, *told)


def npz(X, y, *told):
    return lambda: np.savez("a.npz", X=X, y=y), "a.npz", told


def parquet(columns, *told):
    return lambda: pa.parquet.write_table(pa.table(columns), "a.parquet"), "a.parquet", told


ONES, KL = np.ones((9, 3)), ["k", "l"]
FAULTS = {
    # text
    "csv-text": csv("a,b,y\n1,2,0\n3,red,1\n", "a.csv: row 3, column 'b' is 'red'", "are numbers"),
    "csv-gap": csv("a,b,y\n1,2,0\n3,,1\n", "row 3, column 'b' is nan"),
    "csv-no-label": csv("a,b\n1,2\n", "no column 'y'", "a, b", "--data.y"),
    "csv-ragged": csv("a,y\n1,2\n1,2,3\n", "no whole .csv"),
    "csv-head-alone": csv("a,y\n", "a.csv is empty"),
    "blank-in-a-csv": csv("a,y\n" + "0.5,1\n" * 60 + "0.5,\n", "column 'y', row 62, is blank"),
    "a-name-twice": csv("a,a,y\n1,2,k\n3,4,l\n", "a.csv has 2 columns called 'a'"),
    "no-head": csv("1.5,2,k\n3,4,l\n", "no column 'y'", "this one looks like data"),
    "latin-1-head": csv(
        "größe,y\n1,k\n2,l\n".encode("latin-1"), "line 1 is not UTF-8: b'gr\\xf6\\xdfe", "iconv"
    ),
    "latin-1": csv("a,y\n1,k\n2,grün\n".encode("latin-1"), "a.csv: line 3 is not UTF-8"),
    "semicolons": csv("a;b;y\n1,5;2;k\n", "separated by ';'", "pandas.read_csv('a.csv'"),
    # Parquet
    "blank-in-a-nullable-column": parquet(
        {"x": np.arange(62) + 0.5, "y": [*[0, 1] * 30, None, 1]},
        "column 'y', row 60, is None: labels are whole numbers or strings, and none is missing",
    ),
    "null-in-a-list": parquet(
        {"e": [[1.0, 2.0], [3.0, None]], "y": KL}, "column 'e', row 1 has a list with a gap"
    ),
    "nested-lists": parquet(
        {"e": [[[1.0, 2.0]], [[3.0, 4.0]]], "y": KL}, "column 'e' has lists of list<", "flat"
    ),
    "lists-of-two-lengths": parquet(
        {"e": [[1.0, 2.0], [3.0]], "y": KL}, "column 'e', row 1 has 1 numbers, and row 0 has 2"
    ),
    "no-list": parquet({"e": [[1.0, 2.0], None], "y": KL}, "column 'e', row 1 has 0 numbers"),
    # arrays
    "claims": (
        claim, "a.npz",
        ["a.npz is damaged: X.npy should hold 240000000000000 bytes, and holds 228"],
    ),
    "one-hot": npz(ONES, np.eye(9), "'y' has the shape (9, 9)", "y.argmax(1)"),
    "channels-first-or-last": npz(
        np.ones((6, 3, 9, 3)), np.arange(6) % 2, "images (3, 9, 3)", "of the three, or the last"
    ),
    "no-rows": npz(ONES[:0], np.ones(0, int), "a.npz is empty"),
    "one-class": npz(ONES, np.ones(9, int), "one class only, 1"),
    "unequal": npz(ONES, np.ones(8, int), "y is (8,)", "9 rows"),
    "float-labels": npz(ONES, np.arange(9.0), "'y'[0] = 0.0 is a float", "astype(int)"),
    "text-features": npz(np.array([["a"], ["b"]]), np.arange(2), "'X' is an array of <U1", "float"),
    "wrong-key": (
        lambda: np.savez("a.npz", features=ONES, y=np.arange(9)), "a.npz",
        ["a.npz has no 'X'", "features, y", "--data.x"],
    ),
    "objects": npz(
        np.ones((2, 3)), np.array([hostile(), 1], dtype=object),
        "a.npz: 'y' is an array of objects", "nothing of it was run",
    ),
    "objects-npy": (objects, ["X.npy", "y.npy"], ["X.npy is an array of objects"]),
    "npy-alone": (
        lambda: np.save("a.npy", np.ones((3, 2))), "a.npy", ["features alone", "a_y.npy"],
    ),
    "pickle": content("a.pt", pickle.dumps(hostile()), "a.pt", "nothing of it was run"),
    "pickle-in-zip": (
        lambda: torch.save({"X": torch.ones(2, 3), "y": hostile()}, "a.pt"), "a.pt",
        ["a.pt holds pickled code", "nothing of it was run"],
    ),
    # files that are none, and other formats
    "an-empty-file": content("a.npz", b"", "a.npz is empty"),
    "cut-short": content("a.npz", b"PK\x03\x04", "no whole .npz"),
    "no-file": (lambda: None, "a.npz", ["there is no file a.npz"]),
    "a-folder": (lambda: Path("a.npz").mkdir(), "a.npz", ["a.npz is no file"]),
    "another-ending": content("a.xls", b"x", "a.xls", ".npz", ".csv"),
    **{
        f"instead-of{suffix}": content(f"a{suffix}", b"x", told)
        for suffix, told in {
            ".h5": "h5py", ".tsv": "sep='\\t'", ".gz": "gunzip", ".pth": "rename it to .pt",
            ".pkl": "never read", ".xlsx": "as .csv", ".mat": "loadmat", ".jsonl": ".parquet",
        }.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_files_are_refused_and_nothing_in_them_is_run(fault):
    prepare, name, told = FAULTS[fault]
    prepare()
    refused(lambda: data(name, val_size=0, batch_size=1).setup("fit"), *told)
    assert not Path("executed").exists()


def test_an_array_that_fits_no_memory_is_refused_before_it_is_unpacked(monkeypatch):
    X, y = arrays(N, D, K)
    write("a.npz", X, y)
    write("a.parquet", X, y)
    free = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free._replace(available=1000))
    for name, told in (("a.npz", "X.npy needs 0.0 GB"), ("a.parquet", "120 rows of 7 columns")):
        refused(lambda name=name: data(name).setup("fit"), told, "[X.npy,y.npy]")


def test_a_first_line_of_numbers_is_refused_where_it_would_be_lost():
    Path("a.csv").write_text("1.5,2,1\n3,4,5\n")
    refused(lambda: read_table("a.csv", Columns(), False), "its first line is 1.5, 2, 1")
    Path("a.csv").write_text("400.5,401,402.25\n3,4,5\n")  # of a spectrum
    assert read_table("a.csv", Columns(), False).x.tolist() == [[3, 4, 5]]
    Path("a.csv").write_text("0,1,y\n3,4,k\n")
    assert read_table("a.csv", Columns()).columns == ["0", "1"]


def test_whole_labels_may_be_objects():
    X, y = arrays(N, D, K)
    assert data((X, y.astype(object)), val_size=0).labels("train").tolist() == y.tolist()
    mixed = y.astype(object)
    mixed[7] = "ash"
    given = data((X, mixed))
    refused(lambda: given.setup("fit"), "row 7, is 'ash' (str)", "in one way")


@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.list_(pa.float64(), 3)])
def test_lists_of_float64_keep_their_digits(kind):
    rows = [[1 / 3, i, 0.1] for i in range(6)]
    parquet({"e": pa.array(rows, kind), "y": KL * 3})[0]()
    assert data("a.parquet").table("train").x.tolist() == rows


@pytest.mark.skipif(np.longdouble == np.float64, reason="it is double precision here")
@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_long_doubles_become_doubles(name):
    X, y = arrays(N, D, K)
    table = data(write(name, X.astype(np.longdouble), y)).table("train")
    assert table.x.dtype == torch.float64


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.pt"])
@pytest.mark.parametrize("colours", [1, 3, 4])
def test_images_with_the_channels_last_are_turned_round_and_told(name, colours):
    X, y = arrays(N, 8 * 9 * colours, K)
    last = X.reshape(N, colours, 8, 9).transpose(0, 2, 3, 1)
    with pytest.warns(UserWarning, match=rf"\(8, 9, {colours}\) were read as images \(height"):
        found = data(write(name, last, y)).table("train")
    assert found.shape == (colours, 8, 9)
    np.testing.assert_array_equal(found.x, X)


@pytest.mark.parametrize("shape", [(512, 1, 1), (64, 4, 4), (1, 9, 1), (3, 9, 9), (3, 3, 3)])
def test_images_and_maps_with_the_channels_first_stay(shape):
    X, y = arrays(N, int(np.prod(shape)), K)
    table = data((X.reshape(N, *shape), y)).table("train")
    assert table.shape == shape
    np.testing.assert_array_equal(table.x, X)


def test_a_large_file_of_images_with_the_channels_last_is_told_how_to_turn_it(monkeypatch):
    monkeypatch.setattr(files, "_COPIED", 1000)
    X, y = arrays(N, 8 * 9 * 3, K)
    given = data(write("a.npy", X.reshape(N, 8, 9, 3), y))
    refused(lambda: given.setup("fit"), "a.npy", "(8, 9, 3)", "transpose(0, 3, 1, 2)")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"val_size": 1.5}, "val_size must be"),
        ({"val_size": -1}, "val_size must be"),
        ({"val_size": N}, f"less than the {N} rows"),
        ({"standardise": "l2"}, "standardise must be one of feature, none, unit"),
        ({"max_memory": 0}, "max_memory must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"classes": ["a", "a", "b", "c"]}, "classes must not repeat a name"),
        ({"classes": ["a", "b"]}, "row 2 has the label '2'"),
    ],
)
def test_values_out_of_range_are_named(options, told):
    X, y = arrays(N, D, K)
    refused(lambda: data((X, y), **options).setup("fit"), told)


def test_a_zip_bomb_of_another_key_is_not_unpacked():
    X, y = arrays(N, D, K)
    write("a.npz", X, y)
    with zipfile.ZipFile("a.npz", "a") as archive:
        archive.writestr("huge.npy", b"no array at all")
    assert len(data("a.npz", val_size=0).tensors("train")[1]) == N


# ---- predictions


class Echo(LightningModule):
    """Predicts what it is given."""

    def predict_step(self, batch):
        return batch


@pytest.mark.parametrize("given", [lambda X: X, lambda X: (X,), torch.from_numpy, pd.DataFrame])
def test_arrays_in_python_are_predicted(tmp_path, given):
    X, y = arrays(N, D, K)
    trained = data((X, y), val_size=0)
    module = data((X, y), val_size=0, predict=given(X))
    found = trainer(tmp_path).predict(Echo(), module)
    assert torch.equal(torch.cat(found), trained.tensors("train")[0])


def test_image_files_are_predicted_only_if_pixels_from_0_to_1_were_trained_on(tmp_path):
    X, y = arrays(N, 3 * 4 * 4, K)
    pixels = (X - X.min()) / (X.max() - X.min())
    Image.new("RGB", (4, 4), (10, 20, 30)).save("a.png")
    for images, legal in ((pixels, True), ((255 * pixels).astype(np.uint8), True), (X, False)):
        trained = data((images.reshape(N, 3, 4, 4), y))
        given = data(None, predict="a.png")
        given.load_state_dict(trained.state_dict())
        if legal:
            ((x, names),) = given.predict_dataloader()
            expected = torch.tensor([10, 20, 30]).repeat_interleave(16) / 255
            statistics = trained.statistics
            torch.testing.assert_close(
                x[0].double(), (expected - statistics.mean) / statistics.std, rtol=1e-5, atol=1e-5
            )
            assert names == ["a.png"]
        else:
            refused(given.predict_dataloader, "image files cannot be classified", "numbers other")


@pytest.mark.parametrize("name", ["a.npz", "a.pt", "a.safetensors", "a.csv", "a.parquet"])
def test_a_column_of_weights_is_read_scaled_and_no_feature(name):
    X, y = arrays(N, D, K)
    w = np.linspace(0, 4, N)
    given = data(write(name, X, y, w=w), weight="w", batch_size=7)
    reference = data((X, y, w), batch_size=7)
    for split in ("train", "val"):
        torch.testing.assert_close(given.tensors(split)[0], reference.tensors(split)[0])
        assert torch.equal(given.sample_weights(split), reference.sample_weights(split))
    train, rows = given.sample_weights("train"), given.rows_of("train").numpy()
    assert float(train.mean()) == pytest.approx(1)
    torch.testing.assert_close(train, torch.from_numpy(w[rows] / w[rows].mean()).float())
    assert {len(batch) for batch in given.train_dataloader()} == {3}
    _, _, first = next(iter(given.val_dataloader()))
    assert torch.equal(first, given.sample_weights("val"))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (np.where(np.arange(N) == 7, -1.0, 1.0), "row 9, is -1: weights are finite numbers"),
        (np.where(np.arange(N) == 7, np.inf, 1.0), "row 9, is inf: weights are finite"),
        (np.zeros(N), "all weights of the training split are 0"),
    ],
    ids=["negative", "infinite", "zero"],
)
def test_weights_that_mean_nothing_are_refused(weights, message):
    X, y = arrays(N, D, K)
    given = data(write("a.csv", X, y, w=weights), weight="w")
    refused(lambda: given.setup("fit"), message)


@pytest.mark.parametrize("argument", ["weight", "groups"])
@pytest.mark.parametrize("given", ["arrays", "npy"])
def test_a_name_that_arrays_cannot_have_is_refused(argument, given):
    X, y = arrays(N, D, K)
    np.save("X.npy", X)
    np.save("y.npy", y)
    train = (X, y) if given == "arrays" else ["X.npy", "y.npy"]
    made = data(train, **{argument: "w"})
    refused(lambda: made.setup("fit"), f"data.{argument} is 'w', the name of a key or column")


def test_more_arrays_than_a_table_has_are_refused():
    X, y = arrays(N, D, K)
    made = data((X, y, y, y))
    refused(
        lambda: made.setup("fit"), "4 arrays were given: a table is X, (X, y) or (X, y, weight)"
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_a_test_reads_no_table_twice(tmp_path, weighted):
    """Weights are kept when a table is read, so that it is not read again for them."""
    X, y = arrays(N, D, K)
    table = (X, y, np.ones(N)) if weighted else (X, y)
    fitted = data(table, test=table, val_size=20)
    model = OneLayer(inputs=D, classes=K)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer(tmp_path, 2).fit(model, datamodule=fitted)
        model.trainer.save_checkpoint("a.ckpt")
        given, read = data(table, test=table), []
        for name, reader in list(given.readers.items()):
            given.readers[name] = lambda name=name, reader=reader: (read.append(name), reader())[1]
        trainer(tmp_path, 2).test(OneLayer(inputs=D, classes=K), datamodule=given,
                                  ckpt_path="a.ckpt", verbose=False)  # fmt: skip
    assert sorted(read) == ["test", "train"]
