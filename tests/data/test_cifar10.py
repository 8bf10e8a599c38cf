"""CIFAR10DataModule: splits, statistics, what checkpoints carry, loaders, and what is refused."""

import math
import re
import subprocess
import sys
import weakref
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.callbacks import BatchSizeFinder
from PIL import Image

from onelayer.core.errors import InputError
from onelayer.data.cifar10 import CIFAR10DataModule
from onelayer.data.features import measure, standardise
from onelayer.data.loader import ResidentLoader
from onelayer.data.read import batches as published
from onelayer.data.read import shapes
from onelayer.data.resident import ResidentDataModule
from onelayer.data.split import Splits
from tests.support.processes import Forked
from tests.support.published import IMAGES, labels, make_tiny, pixels
from tests.support.small import SAFELY, trainer

# Every data module here is given a val_size, also where batches validate.
pytestmark = pytest.mark.filterwarnings("ignore:data.val_size = .* has no effect")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    for name in ("ONELAYER_DATA", "ONELAYER_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def tiny():
    return make_tiny()


@pytest.fixture(autouse=True)
def small_batches(tiny, monkeypatch):
    """Batch files of 6 images instead of 10,000; of the built-in set, too."""
    monkeypatch.setattr(CIFAR10DataModule, "published", tiny.published)


@pytest.fixture
def root(tmp_path, tiny):
    tiny.write(tmp_path / "root")
    return str(tmp_path / "root")


def data(root=None, stage=None, **arguments):
    module = CIFAR10DataModule(root, **{"val_size": 4, "batch_size": 3, **arguments})
    if stage:
        module.setup(stage)
    return module


def images(*numbers):
    """Features and labels of batch files 1 to 5, and 6 for the test batch."""
    x = torch.cat([torch.from_numpy(pixels(i - 1)) for i in numbers])
    return x, torch.tensor([label for i in numbers for label in labels(i - 1)])


def same(module, split, expected, rows=slice(None)):
    x, y = module.labelled(split)
    return torch.equal(x, expected[0][rows]) and torch.equal(y, expected[1][rows])


ALL = images(1, 2, 3, 4, 5)


# ---- splits


@pytest.mark.parametrize(
    ("arguments", "train", "val"),
    [
        ({}, (ALL, slice(26)), (ALL, slice(26, 30))),
        ({"val_size": 6}, (images(1, 2, 3, 4),), (images(5),)),
        ({"val_size": 9}, (ALL, slice(21)), (ALL, slice(21, 30))),
        ({"val_size": 29}, (ALL, slice(1)), (ALL, slice(1, 30))),
        ({"val_size": 0}, (ALL,), None),
        ({"train_batches": [4, 2]}, (images(4, 2), slice(8)), (images(2), slice(2, 6))),
        ({"train_batches": [1], "val_batches": [2]}, (images(1),), (images(2),)),
        ({"train_batches": [3], "val_batches": [5, 1]}, (images(3),), (images(5, 1),)),
        ({"limit": 3}, (ALL, slice(3)), (ALL, slice(26, 29))),
        ({"limit": 100}, (ALL, slice(26)), (ALL, slice(26, 30))),
        (
            {"train_batches": [1], "val_batches": [2], "limit": 2},
            (images(1), slice(2)),
            (images(2), slice(2)),
        ),
    ],
)
def test_splits_are_cut_as_described(root, arguments, train, val):
    module = data(root, "fit", **{"batch_size": 1, **arguments})
    assert same(module, "train", *train)
    assert module.labelled("val") is None if val is None else same(module, "val", *val)
    module.setup("test")
    assert same(module, "test", images(6), slice(arguments.get("limit")))


def test_files_that_train_and_validate_are_refused():
    with pytest.raises(InputError, match=r"train_batches and val_batches share \[1\]"):
        CIFAR10DataModule(train_batches=[1], val_batches=[1])


def test_a_split_holds_no_more_memory_than_itself(root):
    assert data(root, "fit").labelled("val")[0].untyped_storage().nbytes() == 4 * 3072


def test_only_the_files_asked_for_are_read(root, tiny):
    for number in (3, 4, 5):
        Path(root, tiny.published.folder, f"data_batch_{number}").unlink()
    module = data(root, "fit", train_batches=[1], val_batches=[2])
    assert same(module, "train", images(1))
    Path(root, tiny.published.folder, "data_batch_1").unlink()
    data(root, "test")
    with pytest.raises(InputError, match="data_batch_1"):
        data(root, "fit")


def test_the_built_in_set_is_laid_out_alike():
    module = data(None, "fit", source="synthetic", seed=3)
    drawn = [shapes.make(IMAGES, 3, stream) for stream in range(6)]
    x = torch.cat([table.x for table in drawn[1:]])
    y = torch.from_numpy(np.concatenate([table.labels for table in drawn[1:]]))
    assert same(module, "train", (x, y), slice(26))
    assert same(module, "val", (x, y), slice(26, 30))
    assert torch.equal(module.labelled("test")[0], drawn[0].x)
    assert module.name == "synthetic"
    assert module.classes == list(shapes.CLASS_NAMES)
    assert str(module) == (
        "CIFAR10DataModule(synthetic: train 26, val 4, test 6 images; batches of 3)"
    )


def test_what_training_asks_of_a_data_module_is_a_protocol():
    assert isinstance(data(source="synthetic"), Splits)
    assert not isinstance(LightningDataModule(), Splits)


def test_every_split_of_the_real_set_is_references(data_root, monkeypatch):
    monkeypatch.undo()
    module = CIFAR10DataModule(str(data_root))
    module.setup("fit")
    module.setup("test")
    files = [published.load(data_root, f"data_batch_{i}").x for i in range(1, 6)]
    x, val = module.labelled("train")[0], module.labelled("val")[0]
    assert torch.equal(x, torch.cat([*files[:4], files[4][:5000]]))
    assert torch.equal(val, files[4][5000:])
    assert len(module.labelled("test")[0]) == 10_000

    scaled = x[:, :100].double() / 255
    torch.testing.assert_close(module.statistics.mean[:100], scaled.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(module.statistics.std[:100], scaled.std(0), rtol=1e-12, atol=0)
    expected = (val[:, :100].double() / 255 - scaled.mean(0)) / scaled.std(0)
    assert (module.tensors("val")[0][:, :100] - expected).abs().max() < 1e-5

    final = CIFAR10DataModule(str(data_root), val_size=1000, batch_size=200)
    assert len(final.labelled("train")[0]) == 49_000
    assert torch.equal(final.labelled("val")[0], files[4][9000:])
    overfit = CIFAR10DataModule(str(data_root), train_batches=[1], val_batches=[2], limit=100)
    assert torch.equal(overfit.labelled("train")[0], files[0][:100])
    assert torch.equal(overfit.labelled("val")[0], files[1][:100])
    assert len(overfit.labelled("test")[0]) == 100


def high_water():
    """Return the most memory that this process has had, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) // 1024


def read_all(root):
    """Read all of CIFAR-10, and print the memory that it takes beside the imports."""
    imports = high_water()
    module = CIFAR10DataModule(root)
    module.setup("fit")
    module.train_dataloader(), module.val_dataloader()
    module.setup("test")
    module.test_dataloader()
    print(high_water() - imports)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_all_of_cifar10_takes_no_more_memory_than_it_must(data_root, tmp_path):
    process = Forked(read_all, str(data_root), folder=tmp_path)
    assert process.wait() == 0, process.err
    assert int(process.out) < 1000  # the standardised images alone are 737


# ---- statistics and tensors


def test_statistics_are_the_training_splits_and_serve_all(root):
    module = data(root, "fit")
    expected = measure(ALL[0][:26])
    assert module.statistics.equal(expected)
    assert not module.statistics.equal(measure(ALL[0]))
    for split, (x, y) in {"val": (ALL[0][26:], ALL[1][26:]), "test": images(6)}.items():
        found = module.tensors(split)
        assert torch.equal(found[0], standardise(x, expected))
        assert torch.equal(found[1], y)


def test_tensors_are_made_once_and_the_bytes_let_go(root, tiny):
    module = data(root, "fit")
    module.tensors("val")
    bytes_ = weakref.ref(module.labelled("train")[0])
    first = module.tensors("train")
    assert bytes_() is None
    files = Path(root, tiny.published.folder)
    files.rename(files.with_name("away"))
    module.setup("fit")
    files.with_name("away").rename(files)
    assert module.tensors("train")[0] is module.train_dataloader().X is first[0]
    assert same(module, "train", ALL, slice(26))  # read anew


def test_without_validation_there_are_no_tensors_and_no_batches(root):
    module = data(root, "fit", val_size=0)
    assert module.labelled("val") is None
    assert module.tensors("val") is None
    assert module.val_dataloader() == []
    with pytest.raises(InputError, match="val_size is 0"):
        module.setup("validate")


def trainer_of(**attributes):
    """What a data module asks of its trainer."""
    strategy = SimpleNamespace(root_device=torch.device("cpu"), broadcast=lambda x: x)
    defaults = {"global_rank": 0, "world_size": 1, "precision": "32-true", "strategy": strategy}
    return SimpleNamespace(**{**defaults, "state": SimpleNamespace(fn=None), **attributes})


def test_tensors_have_the_trainers_precision_and_device(root):
    module = data(root)
    module.trainer = trainer_of(precision="64-true")
    module.setup("fit")
    assert module.tensors("val")[0].dtype == module.train_dataloader().X.dtype == torch.float64
    module.trainer = trainer_of(strategy=SimpleNamespace(root_device=torch.device("meta")))
    for split in ("train", "val"):
        assert {tensor.device.type for tensor in module.tensors(split)} == {"meta"}


# ---- loaders


def test_training_batches_are_shuffled_by_the_seed(root):
    module, other = data(root, "fit", seed=5), data(root, "fit", seed=6)
    loader = module.train_dataloader()
    expected = ResidentLoader(*module.tensors("train"), 3, seed=5)
    assert len(loader) == 9
    for (X, y), (Xe, ye) in zip(loader, expected, strict=True):
        assert torch.equal(X, Xe)
        assert torch.equal(y, ye)
    assert not torch.equal(next(iter(other.train_dataloader()))[0], next(iter(loader))[0])


def test_evaluation_goes_through_the_split_in_order(root):
    module = data(root, "fit")
    for split, loader in {"val": module.val_dataloader(), "test": module.test_dataloader()}.items():
        for found, expected in zip(zip(*loader, strict=True), module.tensors(split), strict=True):
            assert torch.equal(torch.cat(found), expected)


def test_ranks_share_training_batches_and_evaluate_everything(root):
    ranks = [data(root) for _ in range(2)]
    for rank, module in enumerate(ranks):
        module.trainer = trainer_of(global_rank=rank, world_size=2)
        module.setup("fit")
        assert sum(len(y) for _, y in module.val_dataloader()) == 4
        assert sum(len(y) for _, y in module.test_dataloader()) == 6
    loaders = [module.train_dataloader() for module in (data(root, "fit"), *ranks)]
    for (X, _), (first, _), (second, _) in zip(*loaders, strict=True):
        assert torch.equal(first, X[0::2])
        assert torch.equal(second, X[1::2])


def test_every_rank_takes_the_first_ones_data_set(root):
    module = data(root, source="auto")
    strategy = SimpleNamespace(root_device=torch.device("cpu"), broadcast=lambda _: "synthetic")
    module.trainer = trainer_of(world_size=2, global_rank=1, strategy=strategy)
    assert module.name == "cifar10"
    module.setup("fit")
    assert module.name == "synthetic"


# ---- where the data come from


def test_the_root_is_the_arguments_or_the_variables_or_data(root, monkeypatch, tmp_path):
    assert str(data().root) == "data"
    monkeypatch.setenv("ONELAYER_DATA", "/elsewhere")
    assert str(data().root) == "/elsewhere"
    assert str(data(root).root) == root
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data("~/x").root == tmp_path / "x"


@pytest.mark.parametrize("source", ["cifar10", "auto"])
def test_missing_files_are_downloaded(tmp_path, tiny, source):
    (tmp_path / tiny.published.name).write_bytes(tiny.archive)
    module = data("new", source=source, mirror=tmp_path.as_uri(), download=True)
    module.prepare_data()
    module.setup("fit")
    assert module.name == "cifar10"
    assert module.classes == list(published.CLASS_NAMES)
    assert same(module, "val", ALL, slice(26, 30))


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"download": False}, "download is false"),
        ({"download": None}, "say --data.download true"),
        ({"offline": "1"}, "ONELAYER_OFFLINE is set"),
        ({}, "No such file"),
    ],
)
@pytest.mark.parametrize("source", ["cifar10", "auto"])
def test_what_cannot_be_had_ends_or_falls_back_loudly(
    tmp_path, monkeypatch, capsys, how, reason, source
):
    how = {"download": True, **how}
    monkeypatch.setenv("ONELAYER_OFFLINE", how.pop("offline", "0"))
    module = data("root", source=source, mirror=tmp_path.as_uri(), **how)
    if source == "cifar10":
        with pytest.raises(InputError, match=reason) as caught:
            module.prepare_data()
        assert len(str(caught.value).splitlines()) <= 5
        with pytest.raises(InputError, match="no CIFAR-10"):
            module.setup("fit")
        return
    module.prepare_data()
    said = capsys.readouterr().err
    assert reason in said
    assert "BUILT-IN SYNTHETIC" in said
    module.setup("fit")
    assert module.name == "synthetic"
    assert torch.equal(module.labelled("test")[0], shapes.make(IMAGES, 0).x)
    module.prepare_data()  # as a test after the fit does
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("offline", ["", "0"])
def test_the_default_root_is_downloaded_to_unless_offline(tmp_path, monkeypatch, tiny, offline):
    monkeypatch.setenv("ONELAYER_OFFLINE", offline)
    (tmp_path / tiny.published.name).write_bytes(tiny.archive)
    for variable, root in {"": tmp_path / "data", "elsewhere": tmp_path / "elsewhere"}.items():
        monkeypatch.setenv("ONELAYER_DATA", variable)
        data(mirror=tmp_path.as_uri()).prepare_data()
        assert tiny.published.find(root)


def test_auto_does_not_paper_over_damaged_files(root, tiny):
    Path(root, tiny.published.folder, "data_batch_2").write_bytes(b"damaged")
    module = data(root, source="auto")
    module.prepare_data()
    with pytest.raises(InputError, match="data_batch_2 is truncated or altered"):
        module.setup("fit")


# ---- checkpoints


def through_a_file(state, path):
    torch.save(state, path)
    return torch.load(path, weights_only=True)


def test_the_statistics_travel_in_the_checkpoint(root, tmp_path, tiny):
    trained, used = data(root, "fit", train_batches=[1, 2], val_batches=[3]), data(root, "test")
    state = through_a_file(trained.state_dict(), tmp_path / "state")
    before = used.tensors("test")[0]
    for name in tiny.contents:
        if name != published.TEST_BATCH:
            Path(root, tiny.published.folder, name).unlink()  # no training data any more
    expected = standardise(images(6)[0], trained.statistics)
    for module in (used, data(root, "test")):  # one that has used its own, and one that has not
        module.load_state_dict(state)
        assert torch.equal(module.tensors("test")[0], expected)
    assert not torch.equal(before, expected)


def test_the_same_statistics_cost_nothing(root):
    module = data(root, "fit")
    X, _ = module.tensors("train")
    module.load_state_dict(module.state_dict())
    assert module.tensors("train")[0] is X


def test_a_checkpoint_of_an_earlier_version_is_loaded(root):
    module = data(root, "fit")
    state = module.state_dict()
    earlier = {name: state[name] for name in ("mean", "std", "dataset", "arguments")}
    for fn in ("fit", "test", "predict"):
        other = data(root)
        other.trainer = trainer_of(state=SimpleNamespace(fn=fn))
        other.load_state_dict(earlier)
        assert other.classes == module.classes


def resumed(root, **arguments):
    module = data(root, **arguments)
    module.trainer = trainer_of(state=SimpleNamespace(fn="fit"))
    module.setup("fit")
    return module


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train_batches", [1, 2]),
        ("val_batches", [5]),
        ("val_size", 5),
        ("limit", 20),
        ("batch_size", 2),
        ("seed", 1),
    ],
)
def test_a_run_is_resumed_with_its_own_data_only(root, name, value):
    base = {"train_batches": [1, 2, 3]}
    state = data(root, **base).state_dict()
    resumed(root, **base).load_state_dict(state)
    other = resumed(root, **{**base, name: value})
    was = state["arguments"][name]
    with pytest.raises(InputError) as caught:
        other.load_state_dict(state)
    assert f"{name} is {value} here but {was} in the checkpoint" in str(caught.value)
    other.trainer.state.fn = "test"
    other.load_state_dict(state)  # to judge it on other data is fine


def test_a_network_is_judged_on_the_data_set_it_was_trained_on(root):
    state = data(source="synthetic").state_dict()
    told = "dataset is 'cifar10' here but 'synthetic' in the checkpoint"
    for module in (data(root, "test"), resumed(root, source="auto")):
        with pytest.raises(InputError, match=told):
            module.load_state_dict(state)
    auto = data(root, "test", source="auto")
    assert auto.name == "cifar10"
    auto.load_state_dict(state)
    assert auto.name == "synthetic"
    assert torch.equal(auto.labelled("test")[0], shapes.make(IMAGES, 0).x)


def test_lightnings_search_of_a_batch_size_restores_what_it_saved(tmp_path):
    module = data(source="synthetic", batch_size=2)
    finder = BatchSizeFinder(mode="power", init_val=2, max_trials=2, steps_per_trial=1)
    run = trainer(tmp_path, callbacks=[finder], max_epochs=1)
    run.fit(Look(), module)
    assert module.batch_size == finder.optimal_batch_size == 4
    assert run.global_step == 7  # 26 images
    assert run.train_dataloader.batch_size == 4


# ---- predictions


class Look(LightningModule):
    """Trains a number, and predicts what it is given."""

    validated = 0

    def __init__(self):
        super().__init__()
        self.number = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch):
        return batch[0].mean() * self.number

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def validation_step(self, batch):
        self.validated = len(batch[0])

    def predict_step(self, batch):
        return batch


@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")
@pytest.mark.parametrize("val_size", [0, 4])
def test_lightning_validates_where_there_is_a_split(tmp_path, val_size):
    model = Look()
    trainer(tmp_path, 1).fit(model, data(source="synthetic", val_size=val_size))
    assert model.validated == val_size


def test_images_are_predicted_from_a_checkpoint_alone(tmp_path, monkeypatch):
    trained = data(source="synthetic", seed=2)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(Look(), trained)
    run.save_checkpoint(tmp_path / "a.ckpt")
    folder = tmp_path / "images"
    folder.mkdir()
    for i, x in enumerate(trained.labelled("test")[0]):
        planes = x.reshape(3, 32, 32).permute(1, 2, 0)
        Image.fromarray(planes.numpy()).save(folder / f"{i}.png")

    monkeypatch.setattr("onelayer.data.predict._BATCH", 4)
    # source: cifar10, which is neither there nor to be had nor needed
    module = data("nowhere", mirror="file:///nowhere", images=str(folder))
    found = trainer(tmp_path).predict(Look(), module, ckpt_path=tmp_path / "a.ckpt", **SAFELY)
    assert [len(names) for _, names in found] == [4, 2]
    names = [name for _, names in found for name in names]
    assert names == [str(folder / f"{i}.png") for i in range(IMAGES)]
    assert torch.equal(torch.cat([X for X, _ in found]), trained.tensors("test")[0])
    assert module.classes == list(shapes.CLASS_NAMES)
    assert not Path("nowhere").exists()


@pytest.mark.parametrize("content", [None, "no picture"])
def test_a_file_that_is_no_image_is_named(tmp_path, content):
    path = tmp_path / "a.png"
    if content:
        path.write_text(content)
    with pytest.raises(InputError, match=r"images: .*a\.png"):
        trainer(tmp_path).predict(Look(), data(source="synthetic", images=[str(path)]))
    with pytest.raises(InputError, match=r"--data\.images"):
        data(None, "predict", source="synthetic")


def test_a_table_to_predict_is_of_bytes_or_of_pixels_from_0_to_1(tmp_path):
    x = torch.from_numpy(pixels(0)).numpy()
    found = []
    for name, values in (("bytes", x), ("pixels", x / np.float32(255)), ("floats", x * 1.0)):
        np.savez(f"{name}.npz", X=values)
        module = data(None, "predict", source="synthetic", predict=f"{name}.npz")
        if name == "floats":
            with pytest.raises(InputError, match=r"holds torch.float64: .* uint8 .* from 0 to 1"):
                module.predict_dataloader()
        else:
            found.append(next(iter(module.predict_dataloader())))
    torch.testing.assert_close(*found)


# ---- values


@pytest.mark.parametrize(
    ("name", "values", "legal"),
    [
        ("source", ["cifar100", 10], "cifar10, synthetic, auto"),
        ("train_batches", [[], [0], [6], [True], [1.0], ["1"], 1, None], "1 to 5"),
        ("train_batches", [[1, 1]], "not repeat"),
        ("val_batches", [[], [7]], "1 to 5"),
        ("val_batches", [[5]], "share [5]"),
        ("val_size", [-1, 30, True, 2.0], "from 0 to 29"),
        ("limit", [0, -5, False], ">= 1"),
        ("batch_size", [0, -1, True, 1.5, math.nan, "100"], ">= 1"),
        ("seed", [-1, math.inf, None], ">= 0"),
        ("mirror", ["example.org"], "https://"),
        ("download", ["yes", 1], "True, False, None"),
    ],
)
def test_a_bad_value_is_named_with_its_range(name, values, legal):
    for value in values:
        with pytest.raises(InputError) as caught:
            data(**{name: value})
        message = str(caught.value)
        assert name in message
        assert legal in message
        assert name == "val_batches" or repr(value) in message
        assert len(message.splitlines()) <= 5


@pytest.mark.parametrize("size", [27, 10**9])
def test_a_batch_larger_than_the_split_is_refused(root, size):
    data(root, "fit", batch_size=26)
    with pytest.raises(InputError, match=f"batch_size .* from 1 to 26, not {size}"):
        data(root, "fit", batch_size=size)
    data(root, "test", batch_size=size)


def test_arguments_are_logged_in_plain_types_and_defaults_never_changed(root, tmp_path):
    module = data(Path(root), images=["a", "b"])
    hparams = dict(module.hparams)
    assert hparams["root"] == root
    assert hparams["train_batches"] == [1, 2, 3, 4, 5]
    assert through_a_file(hparams, tmp_path / "hparams") == hparams
    module.train_batches.append(7)
    assert data().train_batches == [1, 2, 3, 4, 5]


# ---- imports

LIGHT = """
import sys
import onelayer.data.loader, onelayer.data.predict
import onelayer.data.read.batches, onelayer.data.read.shapes
heavy = {"lightning", "torchvision", "torchmetrics", "PIL", "jsonargparse"}
print(sorted(heavy & set(sys.modules)))
import PIL
print(sorted(heavy & set(sys.modules)))
"""


def test_only_the_data_modules_import_lightning():
    words = [sys.executable, "-c", LIGHT]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "['PIL']"]


def test_any_table_can_be_resident(tmp_path):
    def read(pool):
        return shapes.Shapes(1, 50).read(pool, [range(50)])

    readers = {pool: partial(read, pool) for pool in ("train", "test")}
    module, model = ResidentDataModule(readers, "drawn", batch_size=4, val_size=3), Look()
    trainer(tmp_path, 2).fit(model, module)
    assert model.validated == 3
    assert str(module) == "ResidentDataModule(drawn: train, val, test)"
    module.load_state_dict(module.state_dict())
