"""Run: what a notebook reads of a finished run."""

import pytest
import torch
from PIL import Image

from onelayer import Run, train_and_test
from onelayer.core.errors import InputError
from onelayer.training.checkpoint import load_network

SETTINGS = {
    "model": {"hidden": 3, "l2": [0.0, 0.1]},
    "data": {"source": "synthetic", "limit": 60, "val_size": 50, "batch_size": 30},
    "schedule": {"step_size": 2},
    "trainer": {"log_every_n_steps": 1},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train_and_test(SETTINGS, tmp_path_factory.mktemp("runs") / "version_0")


def test_a_run_has_its_summary_networks_curves_and_plots(run):
    again = Run.load(run.folder)
    assert again.summary == run.summary
    assert len(again.summary["members"]) == 2
    expected = load_network(run.folder / "checkpoints" / "last.ckpt")
    assert torch.equal(again.network.W1, expected.W1)
    curves = again.curves  # a DataFrame where pandas is installed
    steps = [row.step for row in (curves if isinstance(curves, list) else curves.itertuples())]
    assert steps[0] == 0 < steps[-1]
    with Image.open(run.folder / "curves.png") as image:
        assert again.plot().size == image.size
    with Image.open(run.folder / "weights.png") as image:
        assert image.size == again.plot_weights().size
    assert "3 hidden units, synthetic" in again._repr_html_()


def test_the_newest_run_is_last(run, tmp_path):
    (tmp_path / "lightning_logs").mkdir()
    (tmp_path / "lightning_logs" / "fit").symlink_to(run.folder.parent)
    assert Run.load("last").folder.name == "version_0"
    with pytest.raises(InputError, match="there is no run"):
        Run.load("nowhere")
    with pytest.raises(InputError, match="the run has not ended"):
        _ = Run(tmp_path).summary


def test_a_diverged_network_is_not_drawn(run):
    again = Run.load(run.folder)
    with torch.no_grad():
        again.network.W1[1] = torch.nan
    with pytest.raises(InputError, match="cannot be drawn"):
        again.plot_weights(1)
    assert min(again.plot_weights(0).size) > 30
