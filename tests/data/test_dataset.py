"""DatasetDataModule: torchvision's data sets and any other, read once, as bytes where it can be."""

import gzip
import pickle
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset
from torchvision import transforms
from torchvision.datasets import CIFAR100, SVHN, FakeData, FashionMNIST, ImageFolder

from onelayer.__main__ import main
from onelayer.core.errors import InputError
from onelayer.data.dataset import DatasetDataModule
from onelayer.data.features import measure, standardise
from onelayer.data.read.images import read_image
from onelayer.data.read.samples import HuggingFace, read_dataset
from onelayer.training.checkpoint import load_network

QUIET = "--trainer.enable_progress_bar=false"


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
        pytest.importorskip("scipy.io").savemat(folder / f"{name}_32x32.mat", content)
    return ("split=train", "split=test"), x, y


@pytest.mark.filterwarnings("ignore:.* in the test split and also in the train split")
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


def test_image_files_are_refused_where_a_transform_has_normalised_the_images(here):
    steps = [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.25] * 3)]
    Image.new("RGB", (8, 8)).save("a.png")
    for n, legal in ((1, True), (2, False)):
        dataset = FakeData(30, (3, 8, 8), num_classes=3, transform=transforms.Compose(steps[:n]))
        trained = DatasetDataModule(dataset, batch_size=5, val_size=0)
        given = DatasetDataModule(predict="a.png")
        given.load_state_dict(trained.state_dict())
        if legal:
            assert len(given.predict_dataloader()) == 1
        else:
            with pytest.raises(InputError, match="without the transform that normalises"):
                given.predict_dataloader()


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


class Augmented(Samples):
    """Another sample each time it is asked, one of two in 32."""

    def __getitem__(self, i):
        x, y = super().__getitem__(i)
        return transforms.functional.hflip(x) if torch.rand(()) < 0.1 else x, y


def test_a_random_transform_is_refused_in_training_and_warned_about_elsewhere():
    pixels = torch.randint(256, (40, 3, 4, 4), dtype=torch.uint8)
    samples = [(x, i % 2) for i, x in enumerate(pixels)]
    random, fixed = Augmented(samples), Samples(samples)
    given = DatasetDataModule(random, batch_size=4)
    with pytest.raises(InputError, match="its transform is random") as caught:
        given.setup("fit")
    assert "--data.flip, --data.shift or --data.transform" in str(caught.value)
    given = DatasetDataModule(fixed, val=random, batch_size=4)
    with pytest.warns(UserWarning, match="Augmented: sample .* its transform is random"):
        given.table("val")


def test_looking_for_random_transforms_leaves_the_random_states_alone():
    samples = [(torch.tensor([i, torch.nan]), i % 2) for i in range(4)]
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    read_dataset(Samples(samples), "x", "y")  # NaN is the same as NaN
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy, np.ndarray.tolist])
def test_arrays_with_the_channels_last_are_turned_round_and_told(kind):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 9, 3), dtype=np.uint8)
    dataset = Samples([(kind(x), i % 2) for i, x in enumerate(pixels)])
    with pytest.warns(UserWarning, match=r"\(8, 9, 3\) were read as images \(height, width, ch"):
        table = read_dataset(dataset, "x", "y")
    assert table.shape == (3, 8, 9)
    expected = torch.from_numpy(pixels).permute(0, 3, 1, 2).flatten(1)
    assert torch.equal(table.x, expected.to(table.x.dtype))
    image = Samples([(Image.new("RGB", (3, 9)), i % 2) for i in range(4)])
    assert read_dataset(image, "x", "y").shape == (3, 9, 3)  # of an image nothing is guessed


@pytest.mark.parametrize("mode", ["L", "RGB", "I;16", "P", "1", "LA", "RGBA"])
def test_a_dataset_and_files_to_predict_are_read_by_the_same_rules(here, mode):
    deep = np.random.default_rng(0).integers(20000, 40000, (9, 9)).astype(np.uint16)
    grey = Image.fromarray((deep // 257).astype(np.uint8))
    image = Image.fromarray(deep) if mode == "I;16" else grey.convert(mode)
    image.save("a.png")
    read = Image.open("a.png")
    table = read_dataset(Samples([(read, 0), (read, 1)]), "x", "y")
    assert table.shape[0] == (3 if mode in ("RGB", "P", "RGBA") else 1)
    assert torch.equal(table.x[0], read_image(Path("a.png"), table.shape))


def test_a_folder_of_images_is_read_as_files_to_predict_are(here):
    """torchvision's own reader makes 16 bits white, and leaves photos lying on their side."""
    deep = np.random.default_rng(0).integers(20000, 40000, (6, 6)).astype(np.uint16)
    red = Image.new("RGB", (6, 6))
    red.paste((255, 0, 0), (0, 0, 6, 3))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    for name, image in (("deep", Image.fromarray(deep)), ("photo", red)):
        (here / "folder" / name).mkdir(parents=True)
        image.save(here / "folder" / name / "a.png", exif=exif)
    folder = ImageFolder("folder")
    table = read_dataset(folder, "x", "y")
    for row, (path, _) in zip(table.x, folder.samples, strict=True):
        assert torch.equal(row, read_image(Path(path), (3, 6, 6)))
    assert folder[0][0].convert("L").getextrema() == (255, 255)  # the Dataset itself is as it was


def test_without_hugging_faces_library_the_extra_is_named(monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"onelayer\[datasets\]"):
        HuggingFace("cifar100", "train")
    typed = [f"--data.train{word}" for word in ("=onelayer.HuggingFace", ".path=x", ".split=train")]
    assert main(["fit", "--data=DatasetDataModule", *typed]) == 2
    assert "onelayer[datasets]" in capfd.readouterr().err


@pytest.fixture
def saved(here, monkeypatch):
    """Hugging Face's own files: saved to disk, with splits and without, and a bare Parquet."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", here / "cache")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 4, 4, 3), dtype=np.uint8)
    y = np.arange(24) % 3
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee", "cat"])}
    )
    given = {"img": [Image.fromarray(x) for x in pixels], "label": y.tolist()}
    made = datasets.Dataset.from_dict(given, features=features)
    (here / "bare").mkdir()
    made.to_parquet("bare/train-00000-of-00001.parquet")
    made.save_to_disk("alone")
    datasets.DatasetDict({"train": made}).save_to_disk("splits")
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).flatten(1), y


@pytest.mark.parametrize("folder", ["alone", "splits", "bare"])
def test_files_of_hugging_face_are_read_by_its_own_library(saved, folder):
    x, y = saved
    given = DatasetDataModule(HuggingFace(folder, "train"), x="img", batch_size=4, val_size=0)
    given.setup("fit")
    assert torch.equal(given.table("train").x, x)
    assert given.labels("train").tolist() == y.tolist()
    assert (given.classes, given.shape, given.name) == (["ant", "bee", "cat"], (3, 4, 4), folder)
    if folder == "splits":
        with pytest.raises(InputError, match="splits has no split 'test': it has train"):
            HuggingFace(folder, "test")


def test_a_bare_parquet_of_images_is_told_how_it_is_read(saved, capfd):
    file = "bare/train-00000-of-00001.parquet"
    typed = ["--data.batch_size=4", "--schedule.step_size=5", "--trainer.logger=false", QUIET]
    assert main(["fit", "--data=ArraysDataModule", f"--data.train={file}", *typed]) == 2
    advice = capfd.readouterr().err.splitlines()[-1].replace("LABEL", "label").split()
    assert main(["fit", *advice, *typed]) == 0


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
