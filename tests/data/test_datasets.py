"""DatasetDataModule: torchvision's data sets and any other, read once, as bytes where it can be."""

import gzip
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset
from torchvision import transforms
from torchvision.datasets import CIFAR100, SVHN, FakeData, FashionMNIST, ImageFolder

from onelayer.__main__ import main
from onelayer.core.errors import InputError
from onelayer.data.datasets import DatasetDataModule
from onelayer.data.features import measure, standardise
from onelayer.data.sources.datasets import HuggingFace, read_dataset
from onelayer.training.module import load_network

QUIET = "--trainer.enable_progress_bar=false"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def fashion(folder, n=60, seed=0):
    """Files as FashionMNIST has them, of a few images whose brightness tells the class."""
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for part, count in (("train", n), ("t10k", n // 2)):
        y = (np.arange(count) % 10).astype(np.uint8)
        x = (rng.integers(0, 60, (count, 28, 28)) + 19 * y[:, None, None]).astype(np.uint8)
        for kind, values in (("images-idx3", x), ("labels-idx1", y)):
            head = b"\0\0\x08" + bytes([values.ndim])
            head += b"".join(size.to_bytes(4, "big") for size in values.shape)
            (raw / f"{part}-{kind}-ubyte").write_bytes(head + values.tobytes())
            with gzip.open(raw / f"{part}-{kind}-ubyte.gz", "wb") as file:
                file.write(head + values.tobytes())
    return folder


class Samples(Dataset):
    """Whatever samples it is given."""

    def __init__(self, samples, classes=None):
        self.samples = samples
        if classes:
            self.classes = classes

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, i):
        return self.samples[i]


def test_fashion_mnist_trains_from_the_command_line_and_predicts_images(here, capfd):
    fashion(here / "data")
    typed = ["--data=DatasetDataModule", "--data.batch_size=10"]
    for split, train in (("train", "true"), ("test", "false")):
        typed += [
            f"--data.{split}=torchvision.datasets.FashionMNIST", f"--data.{split}.root=data",
            f"--data.{split}.train={train}",
        ]  # fmt: skip
    assert main(["fit", *typed, "--schedule.step_size=20", QUIET]) == 0
    assert "linear softmax, FashionMNIST, 40 updates" in capfd.readouterr().out
    assert main(["test", "--ckpt_path=last", QUIET]) == 0
    assert "FashionMNIST, test split" in capfd.readouterr().out
    (here / "photos").mkdir()
    for i in (0, 5):
        Image.fromarray(FashionMNIST("data").data[i].numpy()).save(here / "photos" / f"{i}.png")
    assert main(["predict", "--ckpt_path=last", "--data.predict=photos", QUIET]) == 0
    lines = (here / "predictions.csv").read_text().splitlines()
    assert lines[0].startswith("file,class,probability,T-shirt/top,Trouser")
    network = load_network("lightning_logs/fit/version_0/checkpoints/last.ckpt")
    X = FashionMNIST("data").data[[0, 5]].flatten(1) / 255
    P = network.predict_proba(((X - network.mean) / network.std).float())
    shown = [[float(p) for p in line.split(",")[3:]] for line in lines[1:]]
    np.testing.assert_allclose(shown, P, atol=1e-5)


def cifar_100(folder):
    """Files as CIFAR-100 has them; the arguments of its splits, the images and labels to train."""
    (folder / "cifar-100-python").mkdir(parents=True)
    x = np.random.default_rng(0).integers(0, 256, (200, 3, 32, 32), dtype=np.uint8)
    y = np.arange(200) % 100
    content = {"data": x.reshape(200, -1), "fine_labels": y.tolist()}
    names = {"fine_label_names": [f"class {k}" for k in range(100)]}
    for name, values in (("train", content), ("test", content), ("meta", names)):
        (folder / "cifar-100-python" / name).write_bytes(pickle.dumps(values))
    return ("train=true", "train=false"), x, y


def svhn(folder):
    """Files as SVHN has them, where the digit 0 is labelled 10."""
    folder.mkdir()
    x = np.random.default_rng(0).integers(0, 256, (40, 3, 32, 32), dtype=np.uint8)
    y = np.arange(40) % 10
    content = {"X": x.transpose(2, 3, 1, 0), "y": np.where(y == 0, 10, y)[:, None]}
    for name in ("train", "test"):
        scipy.io.savemat(folder / f"{name}_32x32.mat", content)
    return ("split=train", "split=test"), x, y


@pytest.mark.filterwarnings("ignore:.* rows of the test split are also in the train split")
@pytest.mark.parametrize(
    ("kind", "write", "names"),
    [(CIFAR100, cifar_100, [f"class {k}" for k in range(100)]), (SVHN, svhn, list("0123456789"))],
)
def test_torchvisions_cifar_100_and_svhn_train(here, monkeypatch, capfd, kind, write, names):
    checked = f"{kind.__module__}.check_integrity"
    monkeypatch.setattr(checked, lambda path, md5: Path(path).is_file())
    splits, x, y = write(here / "data")
    given = DatasetDataModule(kind("data"), val_size=0)
    assert given.labels("train").tolist() == y.tolist()
    assert (list(given.classes), given.shape) == (names, (3, 32, 32))
    assert torch.equal(given.table("train").x, torch.from_numpy(x).flatten(1))
    typed = ["--data=DatasetDataModule", "--data.batch_size=10", "--data.val_size=0"]
    for split, argument in zip(("train", "test"), splits, strict=True):
        typed += [
            f"--data.{split}=torchvision.datasets.{kind.__name__}", f"--data.{split}.root=data",
            f"--data.{split}.{argument}",
        ]  # fmt: skip
    assert main(["fit", *typed, "--schedule.step_size=10", "--trainer.logger=false", QUIET]) == 0
    assert f"linear softmax, {kind.__name__}, 20 updates" in capfd.readouterr().out


@pytest.mark.parametrize("transform", [None, transforms.ToTensor()])
def test_images_stay_bytes_with_and_without_to_tensor(transform):
    dataset = FakeData(30, (3, 32, 32), num_classes=10, transform=transform)
    table = read_dataset(dataset, "x", "y")
    assert table.x.dtype == torch.uint8
    assert table.shape == (3, 32, 32)
    given = DatasetDataModule(dataset, batch_size=5, val_size=0)
    X, _ = given.tensors("train")
    plain = torch.stack([transforms.ToTensor()(image) for image, _ in FakeData(30, (3, 32, 32))])
    x = (plain.flatten(1) * 255).round().byte()
    assert torch.equal(X, standardise(x, measure(x)))


def test_a_value_that_is_no_byte_makes_all_of_them_floats():
    rows = [torch.tensor([0.0, 1 / 255]), torch.tensor([0.5, -3.0]), torch.tensor([1.0, 0.2])]
    table = read_dataset(Samples([(row, i % 2) for i, row in enumerate(rows)]), "x", "y")
    assert table.x.dtype == torch.float32
    torch.testing.assert_close(table.x, torch.stack(rows))


def test_a_folder_of_images_has_its_folders_for_classes(here):
    for name, level in (("cat", 20), ("dog", 200)):
        (here / "pets" / name).mkdir(parents=True)
        for i in range(6):
            Image.new("L", (5, 4), level + i).convert("RGB").save(here / "pets" / name / f"{i}.png")
    given = DatasetDataModule(ImageFolder("pets"), batch_size=3, val_size=2)
    given.setup("fit")
    assert given.classes == ["cat", "dog"]
    assert given.shape == (3, 4, 5)
    assert given.name == "ImageFolder"
    assert given.tensors("val")[1].tolist() == [0, 1]


def test_a_hundred_classes_shaped_as_cifar_100():
    pixels = torch.randint(256, (300, 3, 32, 32), dtype=torch.uint8)
    given = DatasetDataModule(Samples([(x, i % 100) for i, x in enumerate(pixels)]), val_size=100)
    given.setup("fit")
    assert len(given.classes) == 100
    assert torch.bincount(given.tensors("val")[1], minlength=100).tolist() == [1] * 100


def test_samples_that_are_dicts_as_hugging_face_gives_them(monkeypatch):
    samples = [{"img": Image.new("L", (2, 2), 9 * i), "fine": i % 3} for i in range(9)]
    features = {"fine": SimpleNamespace(names=["a", "b", "c"])}

    class Data(list):
        pass

    found = Data(samples)
    found.features = features
    monkeypatch.setitem(
        sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_, **__: found)
    )
    given = DatasetDataModule(HuggingFace("cifar100", "train"), x="img", y="fine", val_size=0)
    assert list(given.classes) == ["a", "b", "c"]
    assert given.labels("train").tolist() == [0, 1, 2] * 3


@pytest.mark.parametrize("kept", ["state.json", "dataset_dict.json"])
def test_a_folder_that_hugging_face_has_saved_is_read(here, monkeypatch, kept):
    (here / "saved").mkdir()
    (here / "saved" / kept).touch()
    one = SimpleNamespace(features={"label": SimpleNamespace(names=["a", "b"])})
    found = one if kept == "state.json" else {"train": one}
    stand_in = SimpleNamespace(load_from_disk=lambda path: found)  # load_dataset refuses the folder
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    assert HuggingFace("saved", "train").data is one
    if kept != "state.json":
        with pytest.raises(InputError, match="saved has no split 'test': it has train"):
            HuggingFace("saved", "test")


def test_without_hugging_faces_library_the_extra_is_named(monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"onelayer\[datasets\]"):
        HuggingFace("cifar100", "train")
    typed = [f"--data.train{word}" for word in ("=onelayer.HuggingFace", ".path=x", ".split=train")]
    assert main(["fit", "--data=DatasetDataModule", *typed]) == 2
    assert "onelayer[datasets]" in capfd.readouterr().err


class Broken(Samples):
    def __getitem__(self, i):
        if i == 2:
            raise OSError("the disk is full of holes")
        return super().__getitem__(i)


class Stream(IterableDataset):
    def __iter__(self):
        yield from ()


SAMPLES = [(torch.ones(3), 0), (torch.zeros(3), 1), (torch.ones(3), 1)]


@pytest.mark.parametrize(
    ("dataset", "told"),
    [
        (
            Samples([*SAMPLES, (torch.ones(4), 1)]),
            r"sample 3 has the shape \(4,\), and the first \(3",
        ),
        (Samples([(torch.ones(3),)] * 3), "sample 0 is a tuple: a pair"),
        (Samples([{"image": 1, "fine": 2}]), "no 'label': it has image, fine"),
        (Samples([("words", 1)]), "sample 0 is a str: images"),
        (Samples([(torch.ones(3), 0.5)] * 3), "is a float: labels"),
        (Samples([]), "Samples is empty"),
        (Samples(SAMPLES[:1] * 3), "one class only"),
        (Broken(SAMPLES), "sample 2 cannot be read: the disk is full"),
        (Stream(), "Stream is no map-style Dataset"),
        (
            Samples([(torch.tensor([1.0, torch.inf]), i % 2) for i in range(4)]),
            "row 0, column 1 is inf",
        ),
    ],
)
def test_what_would_train_wrong_is_refused(dataset, told):
    with pytest.raises(InputError, match=told) as caught:
        DatasetDataModule(dataset, val_size=0, batch_size=1).setup("fit")
    assert len(str(caught.value).splitlines()) <= 5


def test_a_dataset_that_does_not_find_its_files_is_told_in_a_line(here, capfd):
    typed = ["--data.train=torchvision.datasets.FashionMNIST", "--data.train.root=nowhere"]
    assert main(["fit", "--data=DatasetDataModule", *typed]) == 2
    error = capfd.readouterr().err
    assert "Dataset not found" in error
    assert len(error.strip().splitlines()) <= 5
