"""CIFAR10DataModule: splits, statistics, what checkpoints carry, loaders, and what is refused."""

import math
import os
import subprocess
import sys
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder
from PIL import Image

from onelayer.core.errors import InputError
from onelayer.data.cifar10 import CIFAR10DataModule
from onelayer.data.features import measure, standardise
from onelayer.data.loader import ResidentLoader
from onelayer.data.read import Labelled, concatenate, shapes
from onelayer.data.read import batches as cifar10
from onelayer.data.resident import ResidentDataModule
from onelayer.data.split import Splits, split_rows
from tests.data.tiny import IMAGES, Tiny, labels, make_tiny, pixels
from tests.support.small import SAFELY

# Every data module here is given a val_size, also where batches validate.
pytestmark = pytest.mark.filterwarnings("ignore:data.val_size = .* has no effect")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("ONELAYER_DATA", "ONELAYER_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return make_tiny()


@pytest.fixture(autouse=True)
def small_batches(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch files of 6 images instead of 10,000; of the built-in set, too."""
    monkeypatch.setattr(CIFAR10DataModule, "published", tiny.published)


@pytest.fixture
def root(tmp_path: Path, tiny: Tiny) -> str:
    tiny.write(tmp_path / "root")
    return str(tmp_path / "root")


def data(root: str | None = None, **arguments: Any) -> CIFAR10DataModule:
    return CIFAR10DataModule(root, **{"val_size": 4, "batch_size": 3, **arguments})


def same(a: Labelled | None, b: Labelled) -> bool:
    return a is not None and torch.equal(a.x, b.x) and torch.equal(a.y, b.y)


def batch(i: int) -> Labelled:
    """Batch file i, 1 to 5 and 6 for the test batch."""
    return Labelled(torch.from_numpy(pixels(i - 1)), torch.tensor(labels(i - 1)))


def batches(*numbers: int) -> Labelled:
    return concatenate([batch(i) for i in numbers])


# ---- splits


@pytest.mark.parametrize(
    ("arguments", "train", "val"),
    [
        ({}, batches(1, 2, 3, 4, 5)[:26], batch(5)[2:]),
        ({"val_size": 6}, batches(1, 2, 3, 4), batch(5)),
        ({"val_size": 9}, batches(1, 2, 3, 4)[:21], batches(4, 5)[3:]),
        ({"val_size": 29}, batch(1)[:1], batches(1, 2, 3, 4, 5)[1:]),
        ({"val_size": 0}, batches(1, 2, 3, 4, 5), None),
        ({"train_batches": [4, 2]}, batches(4, 2)[:8], batch(2)[2:]),
        ({"train_batches": [1], "val_batches": [2]}, batch(1), batch(2)),
        ({"train_batches": [3], "val_batches": [5, 1], "val_size": 0}, batch(3), batches(5, 1)),
        ({"limit": 3}, batch(1)[:3], batch(5)[2:5]),
        ({"limit": 5}, batch(1)[:5], batch(5)[2:]),
        ({"limit": 100}, batches(1, 2, 3, 4, 5)[:26], batch(5)[2:]),
        ({"train_batches": [1], "val_batches": [2], "limit": 2}, batch(1)[:2], batch(2)[:2]),
    ],
)
def test_splits_are_cut_as_described(
    root: str, arguments: dict[str, Any], train: Labelled, val: Labelled | None
) -> None:
    module = data(root, **{"batch_size": 1, **arguments})
    module.prepare_data()
    module.setup("fit")
    assert same(module.labelled("train"), train)
    assert module.labelled("val") is None if val is None else same(module.labelled("val"), val)
    module.setup("test")
    assert same(module.labelled("test"), batch(6)[: arguments.get("limit")])


def test_a_split_holds_no_more_memory_than_itself(root: str) -> None:
    module = data(root)
    module.setup("fit")
    assert module.labelled("val") is not None
    assert module.labelled("val").x.untyped_storage().nbytes() == 4 * 3072


def test_only_the_files_asked_for_are_read(root: str, tiny: Tiny) -> None:
    for number in (3, 4, 5):
        Path(root, tiny.published.folder, f"data_batch_{number}").unlink()
    module = data(root, train_batches=[1], val_batches=[2])
    module.setup("fit")
    assert same(module.labelled("train"), batch(1))
    Path(root, tiny.published.folder, "data_batch_1").unlink()
    data(root).setup("test")
    with pytest.raises(InputError, match="data_batch_1"):
        data(root).setup("fit")


def test_the_built_in_set_is_laid_out_alike() -> None:
    module = data(source="synthetic", seed=3)
    module.prepare_data()
    module.setup("fit")
    drawn = [shapes.make(IMAGES, 3, stream) for stream in range(6)]
    assert same(module.labelled("train"), concatenate(drawn[1:])[:26])
    assert same(module.labelled("val"), drawn[5][2:])
    assert same(module.labelled("test"), drawn[0])
    assert module.name == "synthetic"
    assert module.classes == shapes.CLASS_NAMES


def test_any_source_can_be_resident(tmp_path: Path) -> None:
    source = shapes.Shapes(seed=1, images=10)
    splits = split_rows([range(5, 45)], 8, [range(10)])
    module = ResidentDataModule(source, splits, batch_size=4)
    model = Look()
    trainer_for(tmp_path).fit(model, module)
    assert model.validated == 8
    assert same(module.labelled("train"), source.read("train", range(5, 37)))
    assert str(module) == (
        "ResidentDataModule(synthetic: train 32, val 8, test 10 images; batches of 4)"
    )
    module.load_state_dict(module.state_dict())


def test_what_training_asks_of_a_data_module_is_a_protocol() -> None:
    assert isinstance(data(source="synthetic"), Splits)
    assert not isinstance(LightningDataModule(), Splits)


def test_every_split_of_the_real_set_is_references(
    data_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    module = CIFAR10DataModule(str(data_root))
    module.setup("fit")
    module.setup("test")
    files = [cifar10.load(data_root, f"data_batch_{i}") for i in range(1, 6)]
    assert module.labelled("val") is not None
    assert [
        len(module.labelled("train")),
        len(module.labelled("val")),
        len(module.labelled("test")),
    ] == [45_000, 5_000, 10_000]
    assert same(module.labelled("train"), concatenate([*files[:4], files[4][:5000]]))
    assert same(module.labelled("val"), files[4][5000:])

    scaled = module.labelled("train").x[:, :100].double() / 255
    torch.testing.assert_close(module.statistics.mean[:100], scaled.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(module.statistics.std[:100], scaled.std(0), rtol=1e-12, atol=0)
    X, _ = module.tensors("val")
    expected = (module.labelled("val").x[:, :100].double() / 255 - scaled.mean(0)) / scaled.std(0)
    assert (X[:, :100] - expected).abs().max() < 1e-5

    final = CIFAR10DataModule(str(data_root), val_size=1000, batch_size=200)
    assert [len(final.labelled("train")), len(final.labelled("val"))] == [49_000, 1_000]
    assert same(final.labelled("val"), files[4][9000:])
    overfit = CIFAR10DataModule(str(data_root), train_batches=[1], val_batches=[2], limit=100)
    assert same(overfit.labelled("train"), files[0][:100])
    assert same(overfit.labelled("val"), files[1][:100])
    assert len(overfit.labelled("test")) == 100


MEMORY = """
import re, sys
from pathlib import Path
from onelayer.data.cifar10 import CIFAR10DataModule

def high_water():  # its own; getrusage counts the process that started it, too
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024

imports = high_water()  # 0.4 GB; of torch's CUDA build 0.9
module = CIFAR10DataModule(sys.argv[1])
module.setup("fit")
module.train_dataloader(), module.val_dataloader()
module.setup("test")
module.test_dataloader()
print(high_water() - imports)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_all_of_cifar10_takes_no_more_memory_than_it_must(data_root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(data_root)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) < 1000  # MB; the standardised images alone are 737


# ---- statistics and tensors


def test_statistics_are_the_training_splits_and_serve_all(root: str) -> None:
    module = data(root)
    module.setup("fit")
    expected = measure(batches(1, 2, 3, 4, 5)[:26].x)
    assert module.statistics.equal(expected)
    assert not module.statistics.equal(measure(batches(1, 2, 3, 4, 5).x))
    for split, images in {"val": batch(5)[2:], "test": batch(6)}.items():
        X, y = module.tensors(split)
        assert torch.equal(X, standardise(images.x, expected))
        assert torch.equal(y, images.y)


def test_tensors_are_made_once_and_the_bytes_let_go(root: str, tiny: Tiny) -> None:
    module = data(root)
    module.setup("fit")
    module.tensors("val")
    bytes_ = weakref.ref(module.labelled("train").x)
    first = module.tensors("train")
    assert bytes_() is None
    files = Path(root, tiny.published.folder)
    files.rename(files.with_name("away"))
    module.setup("fit")
    files.with_name("away").rename(files)
    second = module.tensors("train")
    assert first[0] is second[0]
    assert module.train_dataloader().X is first[0]
    assert same(module.labelled("train"), batches(1, 2, 3, 4, 5)[:26])  # read anew


def test_without_validation_there_are_no_tensors_and_no_batches(root: str) -> None:
    module = data(root, val_size=0)
    module.setup("fit")
    assert module.labelled("val") is None
    assert module.tensors("val") is None
    assert module.val_dataloader() == []
    with pytest.raises(InputError, match="val_size is 0"):
        module.setup("validate")


def trainer_of(**attributes: Any) -> Any:
    """What a data module asks of its trainer."""
    defaults: dict[str, Any] = {
        "global_rank": 0,
        "world_size": 1,
        "precision": "32-true",
        "strategy": SimpleNamespace(root_device=torch.device("cpu"), broadcast=lambda x: x),
        "state": SimpleNamespace(fn=None),
    }
    return SimpleNamespace(**{**defaults, **attributes})


def test_double_precision_gets_double_tensors(root: str) -> None:
    module = data(root)
    module.trainer = trainer_of(precision="64-true")
    module.setup("fit")
    assert module.tensors("val")[0].dtype == module.train_dataloader().X.dtype == torch.float64


def test_tensors_go_to_the_trainers_device(root: str) -> None:
    module = data(root)
    module.setup("fit")
    assert module.tensors("train")[0].device.type == "cpu"
    strategy = SimpleNamespace(root_device=torch.device("meta"))
    module.trainer = trainer_of(strategy=strategy)
    for split in ("train", "val"):
        assert {tensor.device.type for tensor in module.tensors(split)} == {"meta"}


# ---- loaders


def test_training_batches_are_shuffled_by_the_seed(root: str) -> None:
    module = data(root, seed=5)
    module.setup("fit")
    loader = module.train_dataloader()
    X, y = module.tensors("train")
    other = ResidentLoader(X, y, 3, seed=5)
    assert len(loader) == 9
    for ours, expected in zip(loader, other, strict=True):
        assert torch.equal(ours[0], expected[0])
        assert torch.equal(ours[1], expected[1])
    module_6 = data(root, seed=6)
    module_6.setup("fit")
    assert not torch.equal(next(iter(module_6.train_dataloader()))[0], next(iter(loader))[0])


def test_evaluation_goes_through_the_split_in_order(root: str) -> None:
    module = data(root)
    module.setup("fit")
    for split, loader in {"val": module.val_dataloader(), "test": module.test_dataloader()}.items():
        parts = list(loader)
        assert torch.equal(torch.cat([X for X, _ in parts]), module.tensors(split)[0])
        assert torch.equal(torch.cat([y for _, y in parts]), module.tensors(split)[1])


def test_ranks_share_training_batches_and_evaluate_everything(root: str) -> None:
    single = data(root)
    single.setup("fit")
    ranks = []
    for rank in range(2):
        module = data(root)
        module.trainer = trainer_of(global_rank=rank, world_size=2)
        module.setup("fit")
        ranks.append(module)
        assert sum(len(y) for _, y in module.val_dataloader()) == 4
        assert sum(len(y) for _, y in module.test_dataloader()) == 6
    loaders = [module.train_dataloader() for module in (single, *ranks)]
    for (X, _), (first, _), (second, _) in zip(*loaders, strict=True):
        assert torch.equal(first, X[0::2])
        assert torch.equal(second, X[1::2])


def test_every_rank_takes_the_first_ones_data_set(root: str) -> None:
    module = data(root, source="auto")
    strategy = SimpleNamespace(
        root_device=torch.device("cpu"), broadcast=lambda dataset: "synthetic"
    )
    module.trainer = trainer_of(world_size=2, global_rank=1, strategy=strategy)
    assert module.name == "cifar10"
    module.setup("fit")
    assert module.name == "synthetic"


# ---- where the data comes from


def test_the_root_is_the_arguments_or_the_variables_or_data(
    root: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert str(data().root) == "data"
    monkeypatch.setenv("ONELAYER_DATA", "/elsewhere")
    assert str(data().root) == "/elsewhere"
    assert str(data(root).root) == root
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data("~/x").root == tmp_path / "x"


def test_missing_files_are_downloaded(tmp_path: Path, tiny: Tiny) -> None:
    (tmp_path / tiny.published.name).write_bytes(tiny.archive)
    for source in ("cifar10", "auto"):
        module = data(
            str(tmp_path / source), source=source, mirror=tmp_path.as_uri(), download=True
        )
        module.prepare_data()
        module.setup("fit")
        assert module.name == "cifar10"
        assert module.classes == cifar10.CLASS_NAMES
        assert same(module.labelled("val"), batch(5)[2:])


@pytest.mark.parametrize("how", ["download", "root", "variable", "mirror"])
@pytest.mark.parametrize("source", ["cifar10", "auto"])
def test_what_cannot_be_had_ends_or_falls_back_loudly(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    how: str,
    source: str,
) -> None:
    download = {"download": False, "root": None}.get(how, True)
    arguments: dict[str, Any] = {
        "source": source, "mirror": tmp_path.as_uri(), "download": download
    }  # fmt: skip
    if how == "variable":
        monkeypatch.setenv("ONELAYER_OFFLINE", "1")
    module = data(str(tmp_path / "root"), **arguments)
    reason = {
        "download": "download is false",
        "root": "say --data.download true",
        "variable": "ONELAYER_OFFLINE is set",
        "mirror": "No such file",
    }[how]
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
    assert same(module.labelled("test"), shapes.make(IMAGES, 0))
    module.prepare_data()  # as a test after the fit does
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("value", ["", "0"])
def test_the_default_root_is_downloaded_to_unless_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Tiny, value: str
) -> None:
    monkeypatch.setenv("ONELAYER_OFFLINE", value)
    (tmp_path / tiny.published.name).write_bytes(tiny.archive)
    for variable, root in {"": tmp_path / "data", "elsewhere": tmp_path / "elsewhere"}.items():
        monkeypatch.setenv("ONELAYER_DATA", variable)
        data(mirror=tmp_path.as_uri()).prepare_data()
        assert tiny.published.find(root)


def test_auto_does_not_paper_over_damaged_files(root: str, tiny: Tiny) -> None:
    Path(root, tiny.published.folder, "data_batch_2").write_bytes(b"damaged")
    module = data(root, source="auto")
    module.prepare_data()
    with pytest.raises(InputError, match="data_batch_2 is truncated or altered"):
        module.setup("fit")


# ---- checkpoints


def through_a_file(state: dict[str, Any], path: Path) -> dict[str, Any]:
    torch.save(state, path)
    loaded: dict[str, Any] = torch.load(path, weights_only=True)
    return loaded


def test_the_statistics_travel_in_the_checkpoint(root: str, tmp_path: Path, tiny: Tiny) -> None:
    trained = data(root, train_batches=[1, 2], val_batches=[3])
    trained.setup("fit")
    state = through_a_file(trained.state_dict(), tmp_path / "state")
    for name in cifar10.CIFAR10.files:
        if name != cifar10.TEST_BATCH:
            Path(root, tiny.published.folder, name).unlink()  # no training data any more

    module = data(root)
    module.setup("test")
    module.load_state_dict(state)
    X, _ = module.tensors("test")
    assert torch.equal(X, standardise(batch(6).x, trained.statistics))


def test_a_checkpoint_replaces_statistics_already_used(root: str, tmp_path: Path) -> None:
    trained = data(root, train_batches=[1, 2], val_batches=[3])
    module = data(root)
    module.setup("test")
    before = module.tensors("test")[0]
    module.load_state_dict(through_a_file(trained.state_dict(), tmp_path / "state"))
    after = module.tensors("test")[0]
    assert not torch.equal(before, after)
    assert torch.equal(after, trained.tensors("test")[0])


def test_the_same_statistics_cost_nothing(root: str) -> None:
    module = data(root)
    module.setup("fit")
    X, _ = module.tensors("train")
    module.load_state_dict(module.state_dict())
    assert module.tensors("train")[0] is X


def resumed(root: str | None, **arguments: Any) -> CIFAR10DataModule:
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
def test_a_run_is_resumed_with_its_own_data_only(root: str, name: str, value: Any) -> None:
    base: dict[str, Any] = {"train_batches": [1, 2, 3]}
    state = data(root, **base).state_dict()
    resumed(root, **base).load_state_dict(state)
    other = resumed(root, **{**base, name: value})
    was = state["arguments"][name]
    with pytest.raises(InputError) as caught:
        other.load_state_dict(state)
    assert f"{name} is {value} here but {was} in the checkpoint" in str(caught.value)
    other.trainer.state.fn = "test"
    other.load_state_dict(state)  # to judge it on other data is fine


def test_a_network_is_judged_on_the_data_set_it_was_trained_on(root: str) -> None:
    state = data(source="synthetic").state_dict()
    module = data(root)
    module.setup("test")
    with pytest.raises(InputError, match="dataset is 'cifar10' here but 'synthetic' in the chec"):
        module.load_state_dict(state)

    auto = data(root, source="auto")
    auto.setup("test")
    assert auto.name == "cifar10"
    auto.load_state_dict(state)
    assert auto.name == "synthetic"
    assert same(auto.labelled("test"), shapes.make(IMAGES, 0))

    with pytest.raises(InputError, match="but 'synthetic' in the checkpoint"):
        resumed(root, source="auto").load_state_dict(state)


def test_lightnings_search_of_a_batch_size_restores_what_it_saved(tmp_path: Path) -> None:
    module = data(source="synthetic", batch_size=2)
    finder = BatchSizeFinder(mode="power", init_val=2, max_trials=2, steps_per_trial=1)
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[finder],
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(Look(), module)
    assert module.batch_size == finder.optimal_batch_size == 4
    assert trainer.global_step == 7  # 26 images
    assert trainer.train_dataloader.batch_size == 4


# ---- predictions


class Look(LightningModule):
    """Trains a number, and predicts what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.number = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch: Any) -> torch.Tensor:
        return batch[0].mean() * self.number

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def validation_step(self, batch: Any) -> None:
        self.validated = len(batch[0])

    def predict_step(self, batch: Any) -> Any:
        return batch


def trainer_for(folder: Path) -> Trainer:
    return Trainer(
        max_epochs=1,
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
    )


@pytest.mark.filterwarnings("ignore:Total length of `list` across ranks is zero")
@pytest.mark.parametrize("val_size", [0, 4])
def test_lightning_validates_where_there_is_a_split(tmp_path: Path, val_size: int) -> None:
    model = Look()
    trainer_for(tmp_path).fit(model, data(source="synthetic", val_size=val_size))
    assert getattr(model, "validated", 0) == val_size


def test_pictures_are_predicted_from_a_checkpoint_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = data(source="synthetic", seed=2)
    trainer = trainer_for(tmp_path)
    trainer.fit(Look(), trained)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i, x in enumerate(trained.labelled("test").x):
        planes = x.reshape(3, 32, 32).permute(1, 2, 0)
        Image.fromarray(planes.numpy()).save(pictures / f"{i}.png")

    monkeypatch.setattr("onelayer.data.pictures._BATCH", 4)
    # source: cifar10, which is neither there nor to be had nor needed
    module = data("nowhere", mirror="file:///nowhere", images=str(pictures))
    found = trainer_for(tmp_path).predict(Look(), module, ckpt_path=tmp_path / "a.ckpt", **SAFELY)
    assert found is not None
    assert [len(names) for _, names in found] == [4, 2]
    names = [name for _, names in found for name in names]
    assert names == [str(pictures / f"{i}.png") for i in range(IMAGES)]
    assert torch.equal(torch.cat([X for X, _ in found]), trained.tensors("test")[0])
    assert module.classes == shapes.CLASS_NAMES
    assert not Path("nowhere").exists()


@pytest.mark.parametrize("content", [None, "no picture"])
def test_what_is_no_picture_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "a.png"
    if content:
        path.write_text(content)
    module = data(source="synthetic", images=[str(path)])
    with pytest.raises(InputError, match=r"images: .*a\.png"):
        trainer_for(tmp_path).predict(Look(), module)
    with pytest.raises(InputError, match=r"--data\.images"):
        data(source="synthetic").setup("predict")


# ---- values


@pytest.mark.parametrize(
    ("name", "value", "legal"),
    [
        ("source", "cifar100", "cifar10, synthetic, auto"),
        ("source", 10, "cifar10, synthetic, auto"),
        ("train_batches", [], "1 to 5"),
        ("train_batches", [0], "1 to 5"),
        ("train_batches", [6], "1 to 5"),
        ("train_batches", [1, 1], "not repeat"),
        ("train_batches", [True], "1 to 5"),
        ("train_batches", [1.0], "1 to 5"),
        ("train_batches", ["1"], "1 to 5"),
        ("train_batches", 1, "1 to 5"),
        ("train_batches", None, "1 to 5"),
        ("val_batches", [], "1 to 5"),
        ("val_batches", [7], "1 to 5"),
        ("val_batches", [5], "share [5]"),
        ("val_size", -1, "from 0 to 29"),
        ("val_size", 30, "from 0 to 29"),
        ("val_size", True, "from 0 to 29"),
        ("val_size", 2.0, "from 0 to 29"),
        ("limit", 0, ">= 1"),
        ("limit", -5, ">= 1"),
        ("limit", False, ">= 1"),
        ("batch_size", 0, ">= 1"),
        ("batch_size", -1, ">= 1"),
        ("batch_size", True, ">= 1"),
        ("batch_size", 1.5, ">= 1"),
        ("batch_size", math.nan, ">= 1"),
        ("batch_size", "100", ">= 1"),
        ("seed", -1, ">= 0"),
        ("seed", math.inf, ">= 0"),
        ("seed", None, ">= 0"),
        ("mirror", "example.org", "https://"),
        ("download", "yes", "True, False, None"),
        ("download", 1, "True, False, None"),
        ("download_seconds", 0, "> 0"),
        ("download_seconds", -1.0, "> 0"),
        ("download_seconds", math.nan, "> 0"),
        ("download_seconds", math.inf, "> 0"),
        ("download_seconds", "10", "> 0"),
    ],
)
def test_a_bad_value_is_named_with_its_range(name: str, value: Any, legal: str) -> None:
    with pytest.raises(InputError) as caught:
        data(**{name: value})
    message = str(caught.value)
    assert name in message
    assert legal in message
    assert name == "val_batches" or repr(value) in message
    assert len(message.splitlines()) <= 5


@pytest.mark.parametrize("size", [27, 10**9])
def test_a_batch_larger_than_the_split_is_refused(root: str, size: int) -> None:
    data(root, batch_size=26).setup("fit")
    with pytest.raises(InputError, match=f"batch_size .* from 1 to 26, not {size}"):
        data(root, batch_size=size).setup("fit")
    data(root, batch_size=size).setup("test")


def test_arguments_are_logged_in_plain_types(root: str, tmp_path: Path) -> None:
    module = data(Path(root), images=["a", "b"])  # type: ignore[arg-type]
    hparams = dict(module.hparams)
    assert hparams["root"] == root
    assert hparams["train_batches"] == [1, 2, 3, 4, 5]
    assert through_a_file(hparams, tmp_path / "hparams") == hparams


def test_the_defaults_are_never_changed() -> None:
    data().train_batches.append(7)
    assert data().train_batches == [1, 2, 3, 4, 5]


# ---- imports

LIGHT = """
import sys
import onelayer.data.loader, onelayer.data.pictures
import onelayer.data.read.batches, onelayer.data.read.shapes
heavy = {"lightning", "torchvision", "torchmetrics", "PIL", "jsonargparse"}
print(sorted(heavy & set(sys.modules)))
import PIL
print(sorted(heavy & set(sys.modules)))
"""


def test_only_the_datamodule_imports_lightning() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIGHT],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["[]", "['PIL']"]
