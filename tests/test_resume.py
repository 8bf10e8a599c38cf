"""A run that is killed anywhere ends, once resumed, with the very bits of one that was not."""

import random

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from onelayer.__main__ import main
from tests.killing import run_killed

FIT = [
    "fit", "--data.source=synthetic", "--data.limit=370", "--data.val_size=300",
    "--data.batch_size=10", "--schedule.step_size=300", "--model.hidden=4",
    "--model.l2=[0.0,0.01]", "--model.seeds=[0,1]", "--checkpoints.every=37",
    "--trainer.enable_progress_bar=false",
]  # fmt: skip
"""37 updates an epoch, and a checkpoint at every epoch's last batch: the hardest place."""


def scalars(run):
    """Every TensorBoard point of a run, as it is read with all its event files."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def outcome(folder):
    (run,) = (c.parents[1] for c in folder.glob("lightning_logs/fit/*/checkpoints/last.ckpt"))
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    curves = (run / "curves.csv").read_text()
    return checkpoint["state_dict"], checkpoint["global_step"], curves, run


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(FIT) == 0
    return folder


def test_kills_change_no_bit(undisturbed, tmp_path):
    rng = random.Random(3)
    killed = run_killed(
        tmp_path,
        FIT,
        again=[*FIT, "--ckpt_path=last"],
        kills=[rng.uniform(0.5, 1.6) for _ in range(4)],
        until="lightning_logs/fit/*/checkpoints/last.ckpt",
    )
    assert killed >= 2
    weights, steps, curves, run = outcome(tmp_path)
    expected_weights, expected_steps, expected_curves, expected_run = outcome(undisturbed)
    assert steps == expected_steps == 600
    for name, value in expected_weights.items():
        assert torch.equal(weights[name], value), name
    assert curves == expected_curves
    ours, theirs = scalars(run), scalars(expected_run)
    assert ours == theirs
