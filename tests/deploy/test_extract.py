"""onelayer features: features of a folder of images, and what is done with them."""

import csv
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from onelayer import load_network
from onelayer.__main__ import main
from onelayer.data.backbone import Backbone, Extractor
from tests.deploy.nets import read_npz
from tests.support.backbone import CLASSES, NAME, Tiny, features_by_hand, image_folder

WORDS = ["--backbone", NAME, "--size", "32", "--weights", "random"]


@pytest.fixture
def folder(tmp_path):
    return image_folder(tmp_path / "pets")


def extract(*words, images="pets", output="features.npz"):
    return main(["features", "--images", images, "--output", output, *WORDS, *words])


def predictions():
    with Path("predictions.csv").open(newline="") as file:
        return list(csv.reader(file))[1:]


def stopped(*_):
    raise KeyboardInterrupt


def test_the_file_has_features_names_labels_and_the_backbone(folder, capsys):
    assert extract() == 0
    content = read_npz("features.npz")
    assert content["files"].tolist() == [f"{c}/{i}.png" for c in CLASSES for i in range(8)]
    assert content["y"].tolist() == [c for c in CLASSES for _ in range(8)]
    assert content["classes"].tolist() == list(CLASSES)
    backbone = json.loads(str(content["backbone"]))
    assert (backbone["name"], backbone["weights"], backbone["size"]) == (NAME, "random", 32)
    assert len(backbone["digest"]) == 16
    paths = [folder / name for name in content["files"]]
    assert np.allclose(content["X"], features_by_hand(paths), atol=1e-6)
    assert content["X"].dtype == np.float32
    assert "24 images, 24 features, 3 classes: features.npz" in capsys.readouterr().out
    assert not list(Path().glob("features.npz.*"))


def test_batches_shards_and_types_change_nothing_else(folder):
    assert extract() == 0
    assert extract("--batch_size=5", "--shard=7", "--dtype=float16", output="b.npz") == 0
    a, b = read_npz("features.npz"), read_npz("b.npz")
    assert b["X"].dtype == np.float16
    assert np.allclose(a["X"], b["X"], atol=1e-3)
    for key in ("y", "files", "classes", "backbone"):
        assert np.array_equal(a[key], b[key])


def test_a_stopped_command_goes_on_from_its_shards(folder, monkeypatch):
    assert extract(output="whole.npz") == 0
    seen, read = [], Extractor.read

    def stop_after(n):
        def reader(self, path):
            if len(seen) == n:
                raise KeyboardInterrupt
            seen.append(path.name)
            return read(self, path)

        return reader

    words = ["--shard=5", "--batch_size=2"]
    monkeypatch.setattr(Extractor, "read", stop_after(13))
    assert extract(*words) == 130
    assert not Path("features.npz").exists()
    seen.clear()
    monkeypatch.setattr(Extractor, "read", stop_after(1000))
    assert extract(*words) == 0
    assert len(seen) == 24 - 10  # two shards were there
    a, b = read_npz("whole.npz"), read_npz("features.npz")
    assert all(np.array_equal(a[key], b[key]) for key in ("y", "files"))
    assert np.allclose(a["X"], b["X"], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda: ["--size=16"], "backbone"),
        (lambda: ["--dtype=float16"], "dtype"),
        (lambda: shutil.rmtree("pets/cat") or [], "other images"),
    ],
)
def test_shards_of_something_else_are_refused(folder, monkeypatch, capsys, change, said):
    with monkeypatch.context() as patch:
        patch.setattr(Extractor, "features", stopped)
        assert extract() == 130
    assert extract(*change()) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "delete features.npz.parts" in error


def test_files_that_are_no_images_are_left_out_with_a_warning(folder, capsys):
    Path("pets/dog/8.png").write_bytes(b"no image")
    assert extract() == 1
    assert "dog/8.png cannot be read" in capsys.readouterr().err
    assert len(read_npz("features.npz")["X"]) == 24


def test_a_folder_without_classes_has_no_labels(folder):
    assert extract(images="pets/cat") == 0
    assert sorted(read_npz("features.npz")) == ["X", "backbone", "files"]


def test_weights_from_a_file(folder, tmp_path):
    torch.manual_seed(9)
    network = Tiny()
    torch.save(network.state_dict(), "tiny.pt")
    extractor = Extractor(Backbone(NAME, str(tmp_path / "tiny.pt"), 32))
    assert torch.equal(extractor.network.mix.weight, network.mix.weight)
    torch.save({"state_dict": network.state_dict()}, "tiny.ckpt")
    again = Extractor(Backbone(NAME, str(tmp_path / "tiny.ckpt"), 32))
    assert again.backbone.digest == extractor.backbone.digest


def test_a_model_of_torchvision_loses_its_last_layer(folder):
    words = ["--backbone=torchvision/shufflenet_v2_x0_5", "--weights=random", "--size=32"]
    assert main(["features", "--images=pets/cat", "--output=a.npz", *words]) == 0
    content = read_npz("a.npz")
    assert content["X"].shape == (8, 1024)
    import torchvision

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torchvision.models.shufflenet_v2_x0_5().eval()
    network.fc = nn.Identity()
    prepare = torchvision.models.ShuffleNet_V2_X0_5_Weights.DEFAULT.transforms(
        crop_size=32, resize_size=32
    )
    X = torch.stack([prepare(Image.open(f"pets/cat/{i}.png")) for i in range(8)])
    with torch.no_grad():
        assert np.allclose(content["X"], network(X).numpy(), atol=1e-5)


def test_a_model_of_timm_is_made_without_its_head(folder, monkeypatch):
    asked = {}

    def create_model(name, **options):
        asked.update(options, name=name)
        return Tiny()

    data = SimpleNamespace(
        resolve_model_data_config=lambda _: {"input_size": (3, 9, 9)},
        create_transform=lambda input_size, is_training: (
            lambda image: torch.full(input_size, float(image.width))
        ),
    )
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model, data=data))
    words = ["--backbone=timm/vit_tiny", "--weights=random", "--size=32"]
    assert main(["features", "--images=pets/cat", "--output=a.npz", *words]) == 0
    assert asked == {"name": "vit_tiny", "pretrained": False, "num_classes": 0}
    assert read_npz("a.npz")["X"].shape == (8, 24)


@pytest.mark.parametrize("command", ["solve", "fit"])
@pytest.mark.filterwarnings("ignore:training stops in mid-cycle")
def test_train_and_predict_new_images_by_the_same_backbone(folder, tmp_path, command, capsys):
    assert extract() == 0
    image_folder(tmp_path / "new", n=3, seed=5)
    data = ["--data=ArraysDataModule", "--data.train=features.npz", "--data.val_size=6"]
    if command == "solve":
        run = "run"
        assert main(["solve", *data, "--solve.l2=[0.001]", "--output=run"]) == 0
    else:
        run = "lightning_logs/fit/version_0"
        short = ["--schedule.step_size=20", "--data.batch_size=6",
                 "--trainer.enable_progress_bar=false"]  # fmt: skip
        assert main(["fit", *data, *short]) == 0
    quiet = ["--ckpt_path", run, "--trainer.enable_progress_bar=false"]
    capsys.readouterr()
    assert main(["predict", *quiet, "--data.images", "new"]) == 2  # a class is not imported
    assert f"add --data.backbone {NAME}" in capsys.readouterr().err
    assert main(["predict", *quiet, "--data.images", "new", f"--data.backbone={NAME}"]) == 0
    rows = predictions()
    assert [row[0] for row in rows] == [f"new/{c}/{i}.png" for c in CLASSES for i in range(3)]
    assert extract(images="new", output="new.npz") == 0
    network = load_network(Path(run) / "checkpoints/last.ckpt")
    X = torch.from_numpy(read_npz("new.npz")["X"])
    X = (X - network.mean.float()) / network.std.float()
    expected = network.predict_proba(X).detach().numpy()
    assert np.allclose(np.array([row[3:] for row in rows], float), expected, atol=1e-5)
    assert main(["predict", *quiet, "--data.predict", "new.npz"]) == 0
    again = predictions()
    assert [row[1] for row in again] == [row[1] for row in rows]
    assert main(["export", "--ckpt_path", run, "--output", "head.npz"]) == 0
    assert json.loads(str(read_npz("head.npz")["metadata"]))["backbone"]["name"] == NAME


def test_features_of_another_backbone_are_refused(folder, capsys):
    assert extract() == 0
    assert extract("--size=16", output="other.npz") == 0
    data = ["--data=ArraysDataModule", "--data.train=features.npz", "--data.val_size=6"]
    assert main(["solve", *data, "--data.test=other.npz", "--output=a"]) == 2
    assert "other.npz has features of the backbone" in capsys.readouterr().err
    assert main(["solve", *data, "--solve.l2=[0.1]", "--output=run"]) == 0
    words = ["--ckpt_path=run", "--trainer.enable_progress_bar=false"]
    capsys.readouterr()
    assert main(["predict", *words, "--data.predict=other.npz"]) == 2
    assert "Make the features with one backbone" in capsys.readouterr().err
    assert main(["predict", *words, "--data.images=pets", "--data.backbone=torchvision/vgg11"]) == 2
    assert "data.backbone is torchvision/vgg11" in capsys.readouterr().err


def test_other_weights_than_those_of_the_features_are_refused():
    made = Extractor(Backbone(NAME, "random", 32)).backbone
    assert Extractor(made).backbone == made
    with pytest.raises(ValueError, match="has other weights here"):
        Extractor(Backbone(NAME, "random", 32, "0" * 16))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--backbone=torchvision/resnet17"], "torchvision has no model 'resnet17'"),
        (["--backbone=torchvision/resnet18", "--weights=V9"], "has no weights 'V9'"),
        (["--backbone=resnet18"], "there is no backbone 'resnet18'"),
        (["--backbone=tests.support.backbone.image_folder"], "is no nn.Module"),
        (["--backbone=tests.support.backbone.OfBytes"], "must return a tensor"),
        (["--backbone=torchvision/squeezenet1_0"], "no linear layer"),
        (["--weights=nothing.pt"], "no file of weights nothing.pt"),
        (["--weights=pets/cat/0.png"], "do not fit the backbone"),
        (["--images=nowhere"], "--images nowhere is no folder"),
        (["--images=empty"], "holds no image file"),
        (["--output=a.npy"], "ends in .npz"),
        (["--size=1"], "--size"),
        (["--batch_size=0"], "--batch_size"),
        (["--device=gpu9"], "--device gpu9 cannot be used"),
        (["--dtype=int8"], "--dtype"),
    ],
)
def test_bad_input_is_a_few_lines_and_leaves_no_file(folder, capsys, words, said):
    Path("empty").mkdir()
    assert extract(*words) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) <= 4
    assert not list(Path().glob("*.npz"))


def test_timm_is_named_where_it_is_missing(folder, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert extract("--backbone=timm/vit_tiny_patch16_224") == 2
    assert "pip install timm" in capsys.readouterr().err


def test_a_loose_image_beside_classes_is_refused(folder, capsys):
    shutil.copy("pets/cat/0.png", "pets/0.png")
    assert extract() == 2
    assert "0.png in none" in capsys.readouterr().err


def test_numbers_too_large_for_float16_are_refused(folder, capsys, monkeypatch):
    monkeypatch.setattr(
        Extractor, "features", lambda self, images: torch.full((len(images), 2), 1e5)
    )
    assert extract("--dtype=float16") == 2
    assert "Set --dtype to float32" in capsys.readouterr().err
