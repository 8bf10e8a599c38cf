"""Folders of the Hub: the same networks when they are read again, and a card that is true."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml

from onelayer import OneLayer, load_network
from onelayer.__main__ import main
from onelayer.core.errors import InputError
from onelayer.deploy import hub
from tests.deploy.nets import MODELS, made, own_run, predicted, raw_images
from tests.support.own import arrays

pytest.importorskip("safetensors")


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return own_run(tmp_path_factory.mktemp("own"), hidden=3, l2=[0.0, 0.1], seeds=[0, 1])


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_networks_are_read_again_bit_for_bit(tmp_path, model):
    network = made(**model)
    again = OneLayer.from_pretrained(network.save_pretrained(tmp_path / "head"))
    assert {p.name for p in (tmp_path / "head").iterdir()} == {
        "config.json", "model.safetensors", "README.md",
    }  # fmt: skip
    for name, value in network.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    x = raw_images(6)
    for member in ("best", "all", 0):
        assert np.array_equal(predicted(again, x, member), predicted(network, x, member))
    assert not again.training


def test_names_members_and_the_best_l2_are_kept(own, tmp_path):
    again = OneLayer.from_pretrained(own.network.save_pretrained(tmp_path))
    assert again.classes == own.network.classes == ["ash", "birch", "cedar", "doum"]
    assert again.members == own.network.members
    assert again.choose("best") == own.network.choose("best")
    assert again.samples == own.network.samples
    assert dict(again.hparams) == dict(own.network.hparams)
    x = arrays(seed=4)[0]
    assert np.array_equal(predicted(again, x), predicted(own.network, x))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["id2label"] == {"0": "ash", "1": "birch", "2": "cedar", "3": "doum"}


def test_networks_of_several_checkpoints_and_diverged_ones(own, tmp_path):
    last = own.folder / "checkpoints" / "last.ckpt"
    other = shutil.copy(last, tmp_path / "other.ckpt")
    network = load_network([last, other])
    with torch.no_grad():
        network.weights[0][1] = float("nan")
    network.validation["loss"][1] = float("nan")
    again = OneLayer.from_pretrained(network.save_pretrained(tmp_path / "head"))
    assert again.members == network.members
    assert len(again.members) == 8
    assert np.isnan(again.validation["loss"][1])
    x = arrays(seed=4)[0]
    assert np.array_equal(predicted(again, x, "all"), predicted(network, x, "all"))


def test_the_card_states_data_metrics_and_use(own, tmp_path):
    text = (own.network.save_pretrained(tmp_path) / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["library_name"] == "onelayer"
    chosen = own.network.choose("best").members
    tests = [own.summary["members"][i]["test"]["accuracy"] for i in chosen]
    metrics = {m["name"]: m["value"] for m in head["model-index"][0]["results"][0]["metrics"]}
    assert metrics["test accuracy"] == pytest.approx(np.mean(tests), abs=1e-4)
    assert f"| test | {100 * np.mean(tests):.2f} ± {100 * np.std(tests, ddof=1):.2f} |" in text
    assert "curves.png" in text
    assert (tmp_path / "curves.png").is_file()
    assert "seeds: 0, 1" in text
    assert "ash, birch, cedar, doum" in text
    assert "Certificate" not in text


def test_the_snippet_of_the_card_runs(own, tmp_path, capsys):
    text = (own.network.save_pretrained(tmp_path) / "README.md").read_text()
    exec(compile(text.split("```python\n")[1].split("```")[0], "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() in own.network.classes


def test_the_card_of_an_optimum_has_its_certificate(tmp_path):
    words = ["--data.source=synthetic", "--data.limit=80", "--data.val_size=40"]
    assert main(["solve", *words, "--solve.l2=[1.0]", "--output=run"]) == 0
    network = load_network("run/checkpoints/last.ckpt")
    text = (network.save_pretrained("head") / "README.md").read_text()
    gap = json.loads((tmp_path / "run/summary.json").read_text())["final"]["gap"]
    assert f"by at most {gap:.1e}" in text


def test_a_card_of_ones_own_stays(tmp_path):
    (tmp_path / "README.md").write_text("# Mine\n")
    with pytest.warns(UserWarning, match="stays as it is"):
        made().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "# Mine\n"
    (tmp_path / "README.md").unlink()
    made().save_pretrained(tmp_path)
    made().save_pretrained(tmp_path)  # its own is replaced without a warning


def damage(folder, name, change):
    path = folder / name
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("config.json", lambda text: text.replace(b'"onelayer"', b'"timm"'), "another library"),
        ("config.json", lambda text: text[:50], "is not a folder of onelayer"),
        ("config.json", lambda text: text.replace(b'"hidden": 0', b'"hidden": 9'), "describes"),
        ("config.json", lambda text: text.replace(b'"1": "1"', b'"7": "1"'), "id2label"),
        ("model.safetensors", lambda content: content[:80], "is not a folder of onelayer"),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path, name, change, said):
    made().save_pretrained(tmp_path)
    damage(tmp_path, name, change)
    with pytest.raises(InputError, match=said):
        OneLayer.from_pretrained(tmp_path)


def test_folders_that_are_none(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="there is no folder"):
        OneLayer.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"has no config\.json"):
        OneLayer.from_pretrained(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        made().save_pretrained(tmp_path / "file")

    def missing(name, what, extra):
        raise InputError(f"{what} needs {name}: {extra}")

    monkeypatch.setattr(hub, "needed", missing)
    with pytest.raises(InputError, match="the repository owner/name needs huggingface_hub: hub"):
        OneLayer.from_pretrained("owner/name")
