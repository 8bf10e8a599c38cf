"""Files that predict without onelayer: the same probabilities as predict, from raw samples."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from onelayer import load_network
from onelayer.__main__ import main
from onelayer.core.errors import InputError
from onelayer.deploy import export as export_module
from tests.deploy.nets import features_run, images_run, predicted, raw

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
safetensors = pytest.importorskip("safetensors")
FORMATS = (".onnx", ".safetensors", ".npz")
MODELS = {"linear": {}, "hidden": {"hidden": 5}, "five": {"hidden": 4, "seeds": [0, 1, 2, 3, 4]},
          "linear five": {"seeds": [0, 1, 2, 3, 4]}}  # fmt: skip


@pytest.fixture(scope="module", params=MODELS)
def images(request, tmp_path_factory):
    return images_run(tmp_path_factory.mktemp("run") / "version_0", **MODELS[request.param])


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return features_run(tmp_path_factory.mktemp("own"), hidden=3, seeds=[0, 1])


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
        return numpy_lines(np.load(path, allow_pickle=False), scaled)
    return numpy_lines(importlib.import_module("safetensors.numpy").load_file(path), scaled)


def bytes_(n):
    generator = torch.Generator().manual_seed(3)
    return torch.randint(256, (n, 3, 32, 32), generator=generator, dtype=torch.uint8).numpy()


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_predicts_as_predict_does(images, tmp_path, suffix):
    x = bytes_(7)
    for member in ("best", "all", 0):
        path = images.network.export(tmp_path / f"head{suffix}", member)
        for batch in (x, x[:1]):
            expected = predicted(images.network, batch, member)
            assert np.abs(predict_file(path, batch) - expected).max() < 1e-6
    assert [p.name for p in tmp_path.iterdir()] == [f"head{suffix}"]


def test_floats_from_0_to_1_may_be_asked_for(images, tmp_path):
    x = bytes_(5)
    path = images.network.export(tmp_path / "head.onnx", dtype="float32")
    p = predict_file(path, x.astype(np.float32) / 255)
    assert np.abs(p - predicted(images.network, x)).max() < 1e-6


@pytest.mark.parametrize("suffix", FORMATS)
def test_features_with_names_of_classes(own, tmp_path, suffix):
    x = raw()[0]
    path = own.network.export(tmp_path / f"head{suffix}")
    assert np.abs(predict_file(path, x) - predicted(own.network, x)).max() < 1e-6


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_mean_that_is_large_beside_the_deviation_costs_no_digits(tmp_path, dtype, suffix):
    run = features_run(tmp_path, scale=1000.0, dtype=dtype, hidden=3)
    x = raw(1000.0, dtype)[0]
    path = run.network.export(tmp_path / f"head{suffix}")
    expected = predicted(run.network, x)
    assert expected.std() > 0.05
    assert np.abs(predict_file(path, x) - expected).max() < 1e-6
    with torch.no_grad():
        p = run.network.to_torch()(torch.from_numpy(x))
    assert np.abs(p.numpy() - expected).max() < 1e-6


def test_rows_of_length_1_are_in_onnx_and_refused_elsewhere(tmp_path):
    run = features_run(tmp_path, "unit", seeds=[0, 1])
    x = np.concatenate([raw()[0], np.zeros((1, 6), np.float32)])
    path = run.network.export(tmp_path / "head.onnx")
    assert np.abs(predict_file(path, x) - predicted(run.network, x)).max() < 1e-6
    for suffix in (".npz", ".safetensors"):
        with pytest.raises(InputError, match=r"divided by its length.*\n.*onnx"):
            run.network.export(tmp_path / f"no{suffix}")
        assert not (tmp_path / f"no{suffix}").exists()


def test_facts_are_json(own, tmp_path):
    onnx_file = onnx.load(own.network.export(tmp_path / "head.onnx"))
    facts = {entry.key: json.loads(entry.value) for entry in onnx_file.metadata_props}
    with safetensors.safe_open(own.network.export(tmp_path / "head.safetensors"), "np") as file:
        assert {key: json.loads(value) for key, value in file.metadata().items()} == facts
    archive = np.load(own.network.export(tmp_path / "head.npz"), allow_pickle=False)
    assert json.loads(str(archive["metadata"])) == facts
    assert list(archive["classes"]) == facts["classes"] == ["ash", "birch", "cedar", "doum"]
    members = own.summary["members"]
    assert [m["test_accuracy"] for m in facts["members"]] == [
        m["test"]["accuracy"] for m in members
    ]
    assert [m["seed"] for m in facts["members"]] == [0, 1]
    assert facts["input"] == {"shape": [6], "dtype": "float32", "standardise": "feature"}
    assert len(facts["data_digest"]) == 8


def test_the_certificate_of_an_optimum_is_in_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--data.source=synthetic", "--data.limit=80", "--data.val_size=40"]
    assert main(["solve", *words, "--solve.l2=[0.1,1.0]", "--output=run"]) == 0
    summary = json.loads(Path("run/summary.json").read_text())
    assert main(["export", "--ckpt_path=run", "--output=head.npz"]) == 0
    facts = json.loads(str(np.load("head.npz")["metadata"]))
    assert facts["members"][0]["gap"] == summary["final"]["gap"]
    assert facts["test_accuracy"] == summary["final"]["test"]["accuracy"]
    network = load_network("run/checkpoints/path.ckpt")
    path = network.export(tmp_path / "path.npz", 1)
    member = json.loads(str(np.load(path)["metadata"]))["members"][0]
    assert member["gap"] == summary["members"][1]["gap"]


def test_metrics_of_another_update_are_left_out(own, tmp_path):
    network = load_network(own.folder / "checkpoints" / "last.ckpt")
    path, step = network.origin
    network.origin = path, step - 1
    facts = json.loads(str(np.load(network.export(tmp_path / "a.npz"))["metadata"]))
    assert "test_accuracy" not in facts


def test_diverged_networks_are_left_out(images, tmp_path):
    network = load_network(images.folder / "checkpoints" / "last.ckpt")
    with torch.no_grad():
        network.weights[0][0] = float("nan")
    if len(network.members) == 1:
        with pytest.raises(InputError, match="diverged"):
            network.export(tmp_path / "head.onnx")
        return
    x = bytes_(4)
    path = network.export(tmp_path / "head.onnx", "all")
    assert np.abs(predict_file(path, x) - predicted(network, x, "all")).max() < 1e-6


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
def test_bad_input_is_a_few_lines_and_leaves_nothing(
    own, tmp_path, monkeypatch, capsys, words, said
):
    monkeypatch.chdir(tmp_path)
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


def test_fit_ends_with_the_line_that_exports(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["--data.source=synthetic", "--data.limit=60", "--data.val_size=50",
             "--data.batch_size=30", "--schedule.step_size=2", "--trainer.max_steps=4",
             "--trainer.enable_progress_bar=false"]  # fmt: skip
    assert main(["fit", *words]) == 0
    out = capsys.readouterr().out
    line = next(row for row in out.splitlines() if row.startswith("export: "))
    command = line.removeprefix("export: onelayer ").split()
    assert main(command) == 0
    assert Path("head.onnx").is_file()
