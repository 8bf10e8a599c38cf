"""Files that predict without onelayer: the same probabilities as predict, from raw samples."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from onelayer import CIFAR10DataModule, OneLayer, load_network
from onelayer.__main__ import main
from onelayer.core.errors import InputError
from onelayer.deploy import export as export_module
from tests.deploy.nets import MODELS, made, own_run, predicted, raw_images, read_npz
from tests.support.own import arrays

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
safetensors = pytest.importorskip("safetensors")
FORMATS = (".onnx", ".safetensors", ".npz")


@pytest.fixture(params=MODELS)
def images(request):
    return made(**MODELS[request.param])


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return own_run(tmp_path_factory.mktemp("own"), hidden=3, seeds=[0, 1])


def raw_features():
    return arrays(seed=5)[0]


def numpy_lines(arrays, x):
    """The lines of the documentation."""
    x = x.reshape(len(x), -1)
    if "W" in arrays:
        z = x @ arrays["W"].swapaxes(1, 2) + arrays["b"][:, None]
    else:
        h = np.maximum(x @ arrays["W1"].swapaxes(1, 2) + arrays["b1"][:, None], 0)
        z = h @ arrays["W2"].swapaxes(1, 2) + arrays["b2"][:, None]
    p = np.exp(z - z.max(-1, keepdims=True))
    return (p / p.sum(-1, keepdims=True)).mean(0)


def predict_file(path: Path, x: np.ndarray):
    """Return the probabilities of a file, as somebody without onelayer reads it."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        p, label = session.run(None, {"samples": x})
        assert np.array_equal(label, p.argmax(1))
        return p
    scaled = x / 255 if x.dtype == np.uint8 else x
    if path.suffix == ".npz":
        return numpy_lines(read_npz(path), scaled)
    return numpy_lines(importlib.import_module("safetensors.numpy").load_file(path), scaled)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_predicts_as_predict_does(images, tmp_path, suffix):
    x = raw_images(7)
    for member in ("best", "all", 0):
        path = images.export(tmp_path / f"head{suffix}", member)
        for batch in (x, x[:1]):
            expected = predicted(images, batch, member)
            assert np.abs(predict_file(path, batch) - expected).max() < 1e-6
    assert [p.name for p in tmp_path.iterdir()] == [f"head{suffix}"]


def test_floats_from_0_to_1_may_be_asked_for(images, tmp_path):
    x = raw_images(5)
    path = images.export(tmp_path / "head.onnx", dtype="float32")
    p = predict_file(path, x.astype(np.float32) / 255)
    assert np.abs(p - predicted(images, x)).max() < 1e-6


@pytest.mark.parametrize("suffix", FORMATS)
def test_features_with_names_of_classes(own, tmp_path, suffix):
    x = raw_features()
    path = own.network.export(tmp_path / f"head{suffix}")
    assert np.abs(predict_file(path, x) - predicted(own.network, x)).max() < 1e-6


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_mean_that_is_large_beside_the_deviation_costs_no_digits(tmp_path, dtype, suffix):
    network = made("numbers", (6,), mean=5e4, std=2.0, dtype=dtype, hidden=3)
    noise = np.random.default_rng(0).normal(size=(50, 6))
    x = (network.mean.numpy() + network.std.numpy() * noise).astype(dtype)
    expected = predicted(network, x)
    assert expected.std() > 0.05
    assert (
        np.abs(predict_file(network.export(tmp_path / f"head{suffix}"), x) - expected).max() < 1e-6
    )
    with torch.no_grad():
        p = network.to_torch()(torch.from_numpy(x))
    assert np.abs(p.numpy() - expected).max() < 1e-6


def test_rows_of_length_1_are_in_onnx_and_refused_elsewhere(tmp_path):
    network = made("numbers", (6,), standardise="unit", seeds=[0, 1])
    x = np.concatenate([raw_features(), np.zeros((1, 6), np.float32)])
    path = network.export(tmp_path / "head.onnx")
    assert np.abs(predict_file(path, x) - predicted(network, x)).max() < 1e-6
    for suffix in (".npz", ".safetensors"):
        with pytest.raises(InputError, match=r"divided by its length.*\n.*onnx"):
            network.export(tmp_path / f"no{suffix}")
        assert not (tmp_path / f"no{suffix}").exists()


def test_facts_are_json(own, tmp_path):
    onnx_file = onnx.load(own.network.export(tmp_path / "head.onnx"))
    facts = {entry.key: json.loads(entry.value) for entry in onnx_file.metadata_props}
    with safetensors.safe_open(own.network.export(tmp_path / "head.safetensors"), "np") as file:
        assert {key: json.loads(value) for key, value in file.metadata().items()} == facts
    archive = read_npz(own.network.export(tmp_path / "head.npz"))
    assert json.loads(str(archive["metadata"])) == facts
    assert list(archive["classes"]) == facts["classes"] == ["ash", "birch", "cedar", "doum"]
    members = own.summary["members"]
    assert [m["test_accuracy"] for m in facts["members"]] == [
        m["test"]["accuracy"] for m in members
    ]
    assert [m["seed"] for m in facts["members"]] == [0, 1]
    assert facts["input"] == {"shape": [6], "dtype": "float32", "standardise": "feature"}
    assert len(facts["data_digest"]) == 8


def test_the_certificate_of_an_optimum_is_in_the_file(tmp_path):
    words = ["--data.source=synthetic", "--data.limit=80", "--data.val_size=40"]
    assert main(["solve", *words, "--solve.l2=[0.1,1.0]", "--output=run"]) == 0
    summary = json.loads(Path("run/summary.json").read_text())
    assert main(["export", "--ckpt_path=run", "--output=head.npz"]) == 0
    facts = json.loads(str(read_npz("head.npz")["metadata"]))
    assert facts["members"][0]["gap"] == summary["final"]["gap"]
    assert facts["test_accuracy"] == summary["final"]["test"]["accuracy"]
    network = load_network("run/checkpoints/path.ckpt")
    path = network.export(tmp_path / "path.npz", 1)
    member = json.loads(str(read_npz(path)["metadata"]))["members"][0]
    assert member["gap"] == summary["members"][1]["gap"]


def test_metrics_of_another_update_are_left_out(own, tmp_path):
    network = load_network(own.folder / "checkpoints" / "last.ckpt")
    path, step = network.origin
    network.origin = path, step - 1
    facts = json.loads(str(read_npz(network.export(tmp_path / "a.npz"))["metadata"]))
    assert "test_accuracy" not in facts


def test_diverged_networks_are_left_out(images, tmp_path):
    with torch.no_grad():
        images.weights[0][0] = float("nan")
    if len(images.members) == 1:
        with pytest.raises(InputError, match="diverged"):
            images.export(tmp_path / "head.onnx")
        return
    x = raw_images(4)
    path = images.export(tmp_path / "head.onnx", "all")
    assert np.abs(predict_file(path, x) - predicted(images, x, "all")).max() < 1e-6


def test_predictions_over_flipped_images_are_refused(tmp_path):
    network = made()
    network.ensembles.mirror = (3, 4, 5)
    with pytest.raises(InputError, match=r"Set test\.mirror to false"):
        network.export(tmp_path / "head.onnx")


def test_a_file_that_predicts_something_else_gets_no_name(own, tmp_path, monkeypatch):
    def wrong(arrays, x):
        return export_module_predict(arrays, x) + 1e-5

    export_module_predict = export_module.predict_numpy
    monkeypatch.setattr(export_module, "predict_numpy", wrong)
    with pytest.raises(InputError, match=r"was not written: on 1 random samples.*1\.0e-05"):
        own.network.export(tmp_path / "head.npz")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("suffix", "package", "extra"),
    [(".onnx", "onnx", "onnx"), (".safetensors", "safetensors.numpy", "arrays")],
)
def test_a_missing_package_is_named_with_its_pip_line(
    own, tmp_path, monkeypatch, suffix, package, extra
):
    def without(name):
        if name == package:
            raise ImportError(name)
        return importlib.import_module(name)

    monkeypatch.setattr("onelayer.deploy.head.import_module", without)
    with pytest.raises(InputError, match=rf'pip install "onelayer\[{extra}\]"'):
        own.network.export(tmp_path / f"head{suffix}")


def test_without_onnxruntime_the_command_says_that_nothing_was_compared(
    own, tmp_path, monkeypatch, capsys
):
    def without(name):
        if name == "onnxruntime":
            raise ImportError(name)
        return importlib.import_module(name)

    monkeypatch.setattr(export_module, "import_module", without)
    words = ["--ckpt_path", str(own.folder), "--output", str(tmp_path / "head.onnx")]
    assert main(["export", *words]) == 0
    assert "not compared with predict" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--output", "head.pt"], "ends in .onnx, .safetensors, .npz"),
        (["--output", "folder.npz"], "is a folder"),
        (["--output", "a.npz", "--member", "7"], "0 to 1, not 7"),
        (["--output", "a.npz", "--member", "each"], "best, all, or the number"),
        (["--output", "file/a.npz"], "file"),
        (["--output", "a.npz", "--ckpt_path", "nowhere"], "there is no checkpoint nowhere"),
        (["--output", "a.npz", "--ckpt_path", "other.ckpt"], "is not a checkpoint of OneLayer"),
        ([], "--output"),
    ],
)
def test_bad_input_is_a_few_lines_and_leaves_nothing(own, tmp_path, capsys, words, said):
    Path("folder.npz").mkdir()
    Path("file").touch()
    torch.save({"state_dict": {"w": torch.ones(1)}, "global_step": 1,
                "pytorch-lightning_version": "2"}, "other.ckpt")  # fmt: skip
    before = set(tmp_path.iterdir())
    assert main(["export", "--ckpt_path", str(own.folder), *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) <= 4
    assert set(tmp_path.iterdir()) == before


def test_fit_ends_with_the_line_that_exports(capsys):
    words = ["--data.source=synthetic", "--data.limit=60", "--data.val_size=50",
             "--data.batch_size=30", "--schedule.step_size=2", "--trainer.max_steps=4",
             "--trainer.enable_progress_bar=false"]  # fmt: skip
    assert main(["fit", *words]) == 0
    out = capsys.readouterr().out
    line = next(row for row in out.splitlines() if row.startswith("export: "))
    command = line.removeprefix("export: onelayer ").split()
    assert main(command) == 0
    assert Path("head.onnx").is_file()


@pytest.fixture(scope="module")
def cifar10_images(data_root):
    """Return 2000 images of CIFAR-10."""
    data = CIFAR10DataModule(root=str(data_root), train_batches=[1], val_size=100)
    return data.labelled("test")[0][:2000].view(-1, 3, 32, 32).numpy()


@pytest.mark.realdata
@pytest.mark.parametrize("model", [{}, {"hidden": 50}, {"hidden": 10, "seeds": [0, 1, 2, 3, 4]}])
def test_2000_test_images_of_cifar10(cifar10_images, tmp_path, model):
    """In every format, with weights that make logits as large as those of trained networks."""
    network = OneLayer(**model, init_std=0.05)
    network.mean.fill_(0.47)
    network.std.fill_(0.25)
    network.samples = {"shape": (3, 32, 32), "kind": "bytes", "standardise": "feature"}
    x = cifar10_images
    expected = predicted(network, x)
    for suffix in FORMATS:
        p = predict_file(network.export(tmp_path / f"head{suffix}"), x)
        assert np.abs(p - expected).max() < 1e-6
    with torch.no_grad():
        p = network.to_torch()(torch.from_numpy(x)).numpy()
    assert np.abs(p - expected).max() < 1e-6
    again = OneLayer.from_pretrained(network.save_pretrained(tmp_path / "hub"))
    assert np.array_equal(predicted(again, x), expected)
