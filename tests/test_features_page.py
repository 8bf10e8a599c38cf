"""docs/features.md, line by line, with a small random network in place of downloaded weights."""

import json

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision import transforms

from tests.support.pages import run_page

SHORT = {
    "solve": ["--solve.number=3"],
    "fit": ["--schedule.step_size=20", "--data.batch_size=8"],
    "search": [
        "--schedule.step_size=5", "--search.stages=1", "--search.number=3", "--search.seeds=[0]",
        "--search.top=1", "--final.step_size=5", "--final.cycles=1", "--final.seeds=[0]",
        "--data.batch_size=8",
    ],
}  # fmt: skip


def small_network(weights):
    """What resnet18 gives, in small: its last layer is fc."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    network = nn.Sequential(*layers)
    network.add_module("fc", nn.Linear(32, 1000))
    return network


@pytest.fixture
def pets(tmp_path, monkeypatch):
    """Folders of images of three classes, told by their colour."""
    rng = np.random.default_rng(0)
    for split, n in (("train", 20), ("test", 6)):
        for k, name in enumerate(("cat", "dog", "fish")):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 120, (16, 16, 3), dtype=np.uint8)
                pixels[..., k] += 100
                Image.fromarray(pixels).save(tmp_path / "pets" / split / name / f"{i}.png")
    monkeypatch.setattr(torchvision.models, "resnet18", small_network)
    weights = torchvision.models.ResNet18_Weights
    monkeypatch.setattr(weights, "transforms", lambda _: transforms.ToTensor(), raising=False)
    return tmp_path


@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_every_line_of_the_page_runs_in_its_order(pets, capfd):
    names, commands = run_page("features.md", SHORT)
    assert commands == 7
    assert names["W"].shape == (3, 3, 32)
    assert (pets / "predictions.csv").read_text().startswith("row,class,probability,cat,dog,fish\n")
    assert (pets / "pets.csv").read_text().count("\n") == 19
    report = json.loads((pets / "looked" / "test.json").read_text())
    assert report["balanced_accuracy"] > 0.9
    assert (pets / "found" / "search.png").is_file()
    assert (pets / "solved" / "path.csv").read_text().count("\n") == 4
