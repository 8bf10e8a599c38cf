"""Snapshots: a checkpoint per cycle, which kills do not change and which are averaged."""

import json

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from onelayer.core.errors import InputError
from onelayer.study.run import train_and_test
from onelayer.training.checkpoint import load_network, read_checkpoint
from onelayer.training.interrupt import Stopped
from onelayer.training.module import OneLayer
from onelayer.training.observer import Observer
from onelayer.training.results import Results
from onelayer.training.saving import Checkpoints, Snapshots
from onelayer.training.schedule import TriangularLR
from tests.support.small import CLASSES, PIXELS, SmallData, fit

CYCLE = 20
STEPS = [20, 40, 60]


def files(folder):
    return [folder / f"cycle_{i}.ckpt" for i in (1, 2, 3)]


def network(**arguments):
    return OneLayer(4, l2=[0.0, 0.1], seeds=[0, 1], inputs=PIXELS, classes=CLASSES, **arguments)


def train(folder, max_steps=60, callbacks=(), last=None, order=1, **kwargs):
    """Train three cycles, with snapshots in the folder; return the module."""
    savers = [Snapshots(last, dirpath=str(folder)), Checkpoints(every=7, dirpath=str(folder))]
    rate = TriangularLR(0.01, 0.3, step_size=CYCLE // 2, cycles=3)
    callbacks = [rate, *savers[::order], *callbacks]
    return fit(folder, network(), callbacks=callbacks, max_steps=max_steps, **kwargs)


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """The folder of a run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("complete")
    train(folder)
    return folder


def test_they_are_the_networks_of_runs_that_end_after_each_cycle(complete, tmp_path):
    for path, step in zip(files(complete), STEPS, strict=True):
        stopped = train(tmp_path / str(step), max_steps=step)
        for own, expected in zip(load_network(path).weights, stopped.weights, strict=True):
            assert torch.equal(own, expected)


def test_one_update_at_a_time_saves_the_same_as_blocks(complete, tmp_path):
    class Sees(Observer):
        def on_train_batch_start(self, *_):
            """Needs every batch."""

    train(tmp_path, callbacks=[Sees()])
    for own, other in zip(files(tmp_path), files(complete), strict=True):
        for W, expected in zip(load_network(own).weights, load_network(other).weights, strict=True):
            torch.testing.assert_close(W, expected)


class Kill(Observer):
    """Ends a run at an update as a kill does: nothing is saved after it."""

    def __init__(self, step):
        self.step = step

    def next_due(self, step):
        return self.step if step < self.step else super().next_due(step)

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step >= self.step:
            raise Stopped(9, trainer.global_step, "")


@pytest.mark.parametrize(
    ("step", "order"), [(19, 1), (20, 1), (20, -1), (21, -1), (43, 1), (60, -1)]
)
def test_killed_and_resumed_the_files_have_the_same_bits(complete, tmp_path, step, order):
    """Kill around the end of a cycle, with either callback first in the list."""
    with pytest.raises(Stopped):
        train(tmp_path, callbacks=[Kill(step)], order=order)
    train(tmp_path, ckpt_path=str(tmp_path / "last.ckpt"), order=order)
    for own, expected in zip(files(tmp_path), files(complete), strict=True):
        here, there = (read_checkpoint(path) for path in (own, expected))
        assert here["validation"] == there["validation"]
        for name, tensor in there["state_dict"].items():
            assert torch.equal(here["state_dict"][name], tensor)


def test_only_the_last_are_kept_on_request(tmp_path):
    train(tmp_path, last=2)
    assert [path.is_file() for path in files(tmp_path)] == [False, True, True]
    train(tmp_path / "none", last=0)
    assert not list((tmp_path / "none").glob("cycle*"))


def test_several_checkpoints_are_one_population_with_the_best_l2_of_all(complete):
    joined = load_network(files(complete))
    parts = [load_network(path) for path in files(complete)]
    assert [m.step for m in joined.members] == [step for step in STEPS for _ in range(4)]
    for name in joined.names:
        assert torch.equal(getattr(joined, name), torch.cat([getattr(p, name) for p in parts]))
    X, y = SmallData().tensors("val")
    metrics = joined.evaluate(X, y)
    assert joined.validation == {name: values.tolist() for name, values in metrics.items()}
    P = torch.stack([part.predict_proba(X, "all") for part in parts]).mean(0)
    torch.testing.assert_close(joined.predict_proba(X, "all"), P)
    assert "the mean of the 6 networks of l2=" in joined.choose().words
    assert "at the ends of 3 cycles, the best on validation" in joined.choose().words
    assert joined.choose(5).words == "network 5 (l2=0, seed=1, after 40 updates)"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": 3}, "hidden is 4 here but 3"),
        ({"classes": 4}, "outputs is 3 here but 4"),
        ({}, "standardise samples differently"),
    ],
)
def test_checkpoints_that_cannot_be_averaged_are_refused(complete, tmp_path, change, message):
    own = files(complete)[0]
    sizes = {"hidden": 4, "inputs": PIXELS, "classes": CLASSES, **change}
    other = OneLayer(**sizes)
    content = read_checkpoint(own) | {"state_dict": other.state_dict()}
    content["hyper_parameters"] = dict(other.hparams)
    content["data_module"] = None
    torch.save(content, tmp_path / "other.ckpt")
    if not change:
        content = read_checkpoint(own)
        content["state_dict"]["mean"] += 1
        torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(InputError, match=message):
        load_network([own, tmp_path / "other.ckpt"])
    with pytest.raises(InputError, match="no checkpoint in the list"):
        load_network([])


def test_the_ensemble_of_all_cycles_is_measured_with_the_run(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="run")
    rate = TriangularLR(0.01, 0.3, step_size=CYCLE // 2)
    callbacks = [Results(), rate, Snapshots()]
    model = fit(tmp_path, network(), max_steps=60, logger=logger, callbacks=callbacks)
    model.trainer.test(model, SmallData(), verbose=False)
    run = tmp_path / "run" / "version_0"
    found = json.loads((run / "summary.json").read_text())["ensembles"]
    assert [(one["l2"], one["networks"], one.get("snapshots")) for one in found] == [
        (0.0, 2, None), (0.1, 2, None), (0.0, 6, STEPS), (0.1, 6, STEPS),
    ]  # fmt: skip
    joined = load_network(files(run / "checkpoints"))
    for split in ("val", "test"):
        X, y = SmallData().tensors(split)
        P = joined(X).softmax(-1).detach()
        for one, first in zip(found[2:], (0, 2), strict=True):
            own = torch.cat([P[i : i + 2] for i in range(first, 12, 4)]).mean(0)
            correct = (own.argmax(1) == y).double().mean()
            assert one[split]["accuracy"] == pytest.approx(float(correct))
            loss = -own[torch.arange(len(y)), y].log().mean()
            assert one[split]["loss"] == pytest.approx(float(loss))


def test_without_a_cycle_it_is_refused(tmp_path):
    with pytest.raises(InputError, match="TriangularLR"):
        fit(tmp_path, callbacks=[Snapshots(dirpath=str(tmp_path))])
    with pytest.raises(InputError, match="last must be a whole number"):
        Snapshots(last=-1)


def test_one_call_saves_them_too(tmp_path):
    settings = {
        "model": {"hidden": 3, "seeds": [0, 1], "inputs": PIXELS, "classes": CLASSES},
        "data": SmallData(),
        "schedule": {"step_size": 5, "cycles": 2},
        "snapshots": {"last": None},
        "trainer": {"log_every_n_steps": 1},
    }
    summary = train_and_test(settings, tmp_path / "run").summary
    assert [one.get("snapshots") for one in summary["ensembles"]] == [None, [10, 20]]
    folder = tmp_path / "run" / "checkpoints"
    assert len(load_network([folder / f"cycle_{i}.ckpt" for i in (1, 2)]).members) == 4
