"""Names of earlier versions, which configs and checkpoints hold."""

from importlib import import_module

import pytest

import onelayer
from onelayer.cli.data_options import config_of, words_for

NAMES = {
    "onelayer.data.arrays.ArraysDataModule": "ArraysDataModule",
    "onelayer.data.datamodule.CIFAR10DataModule": "CIFAR10DataModule",
    "onelayer.data.datasets.DatasetDataModule": "DatasetDataModule",
    "onelayer.data.sources.datasets.HuggingFace": "HuggingFace",
}


@pytest.mark.parametrize(("path", "name"), NAMES.items())
def test_classes_are_found_where_they_once_were(path, name):
    module = import_module(path.rpartition(".")[0])
    assert getattr(module, name) is getattr(onelayer, name)
    assert getattr(onelayer, name).__name__ == name


def test_an_earlier_checkpoint_names_its_data(tmp_path):
    for path, name in NAMES.items():
        words = [] if name.startswith("CIFAR") else ["--data", name]
        if name != "HuggingFace":
            assert words_for({"data_module": {"class_path": path}}, tmp_path) == words


def test_an_option_that_is_gone_is_left_out_of_an_earlier_config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("data: {seed: 3, download_seconds: 600.0}\nmodel: {hidden: 2}\n")
    assert config_of(path, None) == "data:\n  seed: 3\nmodel:\n  hidden: 2\n"
    path.write_text("data: {seed: 3}\n")
    assert config_of(path, None) == str(path)
