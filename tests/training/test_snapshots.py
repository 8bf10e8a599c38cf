"""Snapshots: the networks at the ends of cycles, kept over kills, measured and loaded together."""

import copy
import json

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from onelayer.__main__ import main
from onelayer.core.errors import InputError
from onelayer.study.run import train_and_test
from onelayer.training.checkpoint import Checkpoints, read_checkpoint
from onelayer.training.interrupt import Stopped
from onelayer.training.module import OneLayer, load_network
from onelayer.training.observer import Observer
from onelayer.training.results import Results
from onelayer.training.schedule import TriangularLR
from onelayer.training.snapshots import FILE, Snapshots
from tests.support.small import CLASSES, PIXELS, SmallData, fit

CYCLE, CYCLES = 20, 3
STEPS = [20, 40, 60]


def network(**arguments):
    return OneLayer(4, l2=[0.0, 0.1], seeds=[0, 1], inputs=PIXELS, classes=CLASSES, **arguments)


def train(folder, max_steps=CYCLE * CYCLES, callbacks=(), snapshots=None, **kwargs):
    """A training of three cycles with snapshots.ckpt in the folder; the module."""
    ours = [
        TriangularLR(0.01, 0.3, step_size=CYCLE // 2, cycles=CYCLES),
        snapshots or Snapshots(dirpath=str(folder)),
        Checkpoints(every=7, dirpath=str(folder)),
    ]
    return fit(folder, network(), callbacks=[*ours, *callbacks], max_steps=max_steps, **kwargs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a training that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder)
    return folder


def test_they_are_the_networks_of_trainings_that_stopped_at_the_ends_of_cycles(whole, tmp_path):
    kept = load_network(whole / FILE)
    assert [m.step for m in kept.members] == [step for step in STEPS for _ in range(4)]
    for i, step in enumerate(STEPS):
        stopped = train(tmp_path / str(step), max_steps=step)
        for own, expected in zip(kept.weights, stopped.weights, strict=True):
            assert torch.equal(own[4 * i : 4 * i + 4], expected)
    assert torch.equal(kept.mean, stopped.mean)


def test_one_at_a_time_makes_the_same_snapshots_as_blocks(whole, tmp_path):
    class Sees(Observer):
        def on_train_batch_start(self, *_):
            """Wants every batch."""

    train(tmp_path, callbacks=[Sees()])
    kept, expected = load_network(tmp_path / FILE), load_network(whole / FILE)
    for own, other in zip(kept.weights, expected.weights, strict=True):
        torch.testing.assert_close(own, other)


class Kill(Observer):
    """Ends a training at an update as a kill does: nothing is saved any more."""

    def __init__(self, step):
        self.step = step

    def next_due(self, step):
        return self.step if step < self.step else super().next_due(step)

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step >= self.step:
            raise Stopped(9, trainer.global_step, "")


@pytest.mark.parametrize("step", [19, 20, 21, 43, 60])
def test_killed_and_resumed_the_file_is_the_same_bit_for_bit(whole, tmp_path, step):
    with pytest.raises(Stopped):
        train(tmp_path, callbacks=[Kill(step)])
    assert not (tmp_path / FILE).exists()
    train(tmp_path, ckpt_path=str(tmp_path / "last.ckpt"))
    assert (tmp_path / FILE).read_bytes() == (whole / FILE).read_bytes()


def test_a_training_killed_after_its_last_update_still_leaves_the_file(
    whole, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(Snapshots, "on_fit_end", lambda *_: None)
        train(tmp_path)
    train(tmp_path, ckpt_path=str(tmp_path / "last.ckpt"))
    assert (tmp_path / FILE).read_bytes() == (whole / FILE).read_bytes()


def test_only_the_last_ones_are_kept_where_that_is_asked_for(whole, tmp_path):
    train(tmp_path, snapshots=Snapshots(last=2, dirpath=str(tmp_path)))
    kept, every = load_network(tmp_path / FILE), load_network(whole / FILE)
    assert kept.hparams["snapshots"] == STEPS[1:]
    for own, other in zip(kept.weights, every.weights, strict=True):
        assert torch.equal(own, other[4:])
    train(tmp_path / "none", snapshots=Snapshots(last=0, dirpath=str(tmp_path / "none")))
    assert not (tmp_path / "none" / FILE).exists()


def test_the_ensemble_of_all_cycles_is_measured_when_the_training_is(tmp_path):
    logger = TensorBoardLogger(tmp_path, name="run")
    model = fit(
        tmp_path, network(), max_steps=CYCLE * CYCLES, logger=logger,
        callbacks=[Results(), TriangularLR(0.01, 0.3, step_size=CYCLE // 2), Snapshots()],
    )  # fmt: skip
    model.trainer.test(model, SmallData(), verbose=False)
    run = tmp_path / "run" / "version_0"
    found = json.loads((run / "summary.json").read_text())["ensembles"]
    assert [(one["l2"], one["networks"], one.get("snapshots")) for one in found] == [
        (0.0, 2, None), (0.1, 2, None), (0.0, 6, STEPS), (0.1, 6, STEPS),
    ]  # fmt: skip
    kept = load_network(run / "checkpoints" / FILE)
    for split in ("val", "test"):
        X, y = SmallData().tensors(split)
        P = kept(X).softmax(-1).detach()
        for one, first in zip(found[2:], (0, 2), strict=True):
            own = torch.cat([P[i : i + 2] for i in range(first, 12, 4)]).mean(0)
            correct = (own.argmax(1) == y).double().mean()
            assert one[split]["accuracy"] == pytest.approx(float(correct))
            loss = -own[torch.arange(len(y)), y].log().mean()
            assert one[split]["loss"] == pytest.approx(float(loss))


def test_the_file_knows_which_l2_is_best_on_validation(whole):
    kept = load_network(whole / FILE)
    figures = kept.evaluate(*SmallData().tensors("val"))
    assert kept.validation == {name: values.tolist() for name, values in figures.items()}
    words = kept.choose().words
    assert "the mean of the 6 networks of l2=" in words
    assert "at the ends of 3 cycles, the best on validation" in words
    assert kept.choose(5).words == "network 5 (l2=0, seed=1, after 40 updates)"


def test_without_a_cycle_it_is_refused(tmp_path):
    with pytest.raises(InputError, match="TriangularLR"):
        fit(tmp_path, callbacks=[Snapshots(dirpath=str(tmp_path))])
    with pytest.raises(InputError, match="last must be a whole number"):
        Snapshots(last=-1)


def test_snapshots_are_not_trained_on(tmp_path):
    with pytest.raises(InputError, match="networks that were trained"):
        fit(tmp_path, OneLayer(inputs=PIXELS, classes=CLASSES, snapshots=[20]))


@pytest.mark.parametrize("steps", [[], [0], [20, 20], 20, ["a"]])
def test_updates_that_are_none_are_refused(steps):
    if steps == 20:
        assert OneLayer(inputs=PIXELS, classes=CLASSES, snapshots=20).members[0].step == 20
        return
    with pytest.raises(InputError, match="snapshots"):
        OneLayer(inputs=PIXELS, classes=CLASSES, snapshots=steps)


def change(state, how):
    W = state["parameters"][0]
    if how == "steps":
        state["steps"] = [20, 41]
    elif how == "order":
        state["steps"] = [40, 20]
    elif how == "later":
        state["steps"] = [20, 80]
    elif how == "names":
        state["parameters"] = {"W1": W}
    elif how == "shape":
        state["parameters"][0] = W[:1]
    elif how == "dtype":
        state["parameters"][0] = W.long()
    elif how == "pretends":
        state["parameters"][0] = torch.zeros(1).expand(W.shape)


@pytest.mark.parametrize("how", ["steps", "order", "later", "names", "shape", "dtype", "pretends"])
def test_a_doctored_checkpoint_is_refused(tmp_path, how):
    train(tmp_path, max_steps=45)
    content = copy.deepcopy(read_checkpoint(tmp_path / "last.ckpt"))
    change(content["callbacks"]["Snapshots"], how)
    torch.save(content, tmp_path / "doctored.ckpt")
    with pytest.raises(InputError, match="snapshot"):
        train(tmp_path / "run", ckpt_path=str(tmp_path / "doctored.ckpt"))


def test_the_command_line_keeps_tests_and_predicts_with_them(tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["--data.source=synthetic", "--data.limit=60", "--data.val_size=50"]
    fits = ["fit", *small, "--data.batch_size=10", "--schedule.step_size=5", "--schedule.cycles=3"]
    assert main([*fits, "--model.hidden=3"]) == 0
    assert "snapshots" not in capfd.readouterr().out
    assert main([*fits, "--model.hidden=3", "--snapshots.last=2"]) == 0
    out = capfd.readouterr().out
    words = "snapshots: mean class probabilities of a λ's networks at the ends of 2 cycles"
    assert words in out
    assert "ensemble" not in out
    run = tmp_path / "lightning_logs" / "fit" / "version_1"
    (one,) = json.loads((run / "summary.json").read_text())["ensembles"]
    path = str(run / "checkpoints" / FILE)
    assert main(["test", "--ckpt_path", path]) == 0
    printed = capfd.readouterr()
    assert f" {100 * one['test']['accuracy']:.2f} " in printed.out
    assert "callbacks" not in printed.err
    assert main(["test", "--ckpt_path", str(run)]) == 0
    assert "callbacks" not in capfd.readouterr().err
    assert main(["fit", "--ckpt_path", path]) == 2
    assert "snapshots" in capfd.readouterr().err


def test_a_training_that_begins_anew_has_no_snapshots_of_the_one_before(tmp_path):
    callback = Snapshots(dirpath=str(tmp_path))
    train(tmp_path, snapshots=callback)
    train(tmp_path / "again", max_steps=CYCLE, snapshots=callback)
    assert load_network(tmp_path / FILE).hparams["snapshots"] == STEPS[:1]


def test_one_call_keeps_them_too(tmp_path):
    settings = {
        "model": {"hidden": 3, "seeds": [0, 1], "inputs": PIXELS, "classes": CLASSES},
        "data": SmallData(),
        "schedule": {"step_size": 5, "cycles": 2},
        "snapshots": {"last": None},
        "trainer": {"log_every_n_steps": 1},
    }
    summary = train_and_test(settings, tmp_path / "run")
    assert [one.get("snapshots") for one in summary["ensembles"]] == [None, [10, 20]]
    assert len(load_network(tmp_path / "run" / "checkpoints" / FILE).members) == 4
