"""The recorded update: the same as the plain one, whatever changes between two of them.

tests.support.recording stands for a GPU's graphs; tests/test_gpu.py tries real ones.
"""

import pytest
import torch

from onelayer.core import update
from onelayer.core.autograd import cost
from onelayer.core.update import FusedUpdate, RecordedUpdate, SharedUpdate
from tests.support import recording
from tests.support.cases import population, updated


class ByAutograd:
    """Plain SGD by the gradient of :func:`cost`."""

    def __init__(self, parameters, l2, smoothing):
        self.parameters, self.l2, self.smoothing = parameters, l2, smoothing

    def __call__(self, X, y, lr, n=None, mask=None, weight=None):
        leaves = [p.clone().requires_grad_() for p in self.parameters]
        J = cost(X, y, leaves, self.l2, len(X), self.smoothing, mask, weight)
        for p, g in zip(self.parameters, torch.autograd.grad(J.sum(), leaves), strict=True):
            p.sub_(g, alpha=lr)


@pytest.mark.parametrize("hidden", [0, 5])
@pytest.mark.parametrize("l2", [0.0, 0.1, torch.tensor([0.0, 0.1, 0.2])], ids=["0", "1", "each"])
def test_a_recorded_update_is_the_update(recorded, hidden, l2):
    plain = updated(FusedUpdate, hidden, l2)
    for ours, wanted in zip(updated(RecordedUpdate, hidden, l2), plain, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-13)
    assert len(recorded) == 2  # one for each size of batch


@pytest.mark.parametrize("l2", [0.1, torch.tensor([0.0, 0.1, 0.2])], ids=["1", "each"])
def test_members_in_turn_end_as_together(monkeypatch, l2):
    together = updated(FusedUpdate, 5, l2, p=0.4)
    monkeypatch.setattr(update, "CACHE", 1)
    for ours, wanted in zip(updated(FusedUpdate, 5, l2, p=0.4), together, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-13)


def test_a_recorded_update_takes_each_updates_mask(recorded):
    both = {"hidden": 5, "l2": 0.1, "smoothing": 0.2, "p": 0.4}
    plain, others = updated(FusedUpdate, **both), updated(FusedUpdate, 5, 0.1)
    for ours, wanted, other in zip(updated(RecordedUpdate, **both), plain, others, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-13)
        assert not torch.allclose(ours, other)


@pytest.mark.parametrize("shape", [(40,), (3, 40)], ids=["of all members", "of each member"])
@pytest.mark.parametrize("hidden", [0, 5])
@pytest.mark.parametrize("kind", [FusedUpdate, RecordedUpdate, SharedUpdate, "members in turn"])
def test_every_update_takes_weights_as_autograd_does(monkeypatch, recorded, shape, hidden, kind):
    weight = 2 * torch.rand(shape, generator=torch.Generator().manual_seed(3)).double()
    monkeypatch.setattr(update, "samples_of_all", len)
    monkeypatch.setattr(update.dist, "all_reduce", lambda total: None)  # one process
    if kind == "members in turn":
        monkeypatch.setattr(update, "CACHE", 1)
        kind = FusedUpdate
    with_weights = {"hidden": hidden, "l2": 0.1, "smoothing": 0.2, "weight": weight}
    unweighted = updated(ByAutograd, hidden, 0.1, smoothing=0.2)
    for ours, wanted, other in zip(
        updated(kind, **with_weights), updated(ByAutograd, **with_weights), unweighted, strict=True
    ):
        torch.testing.assert_close(ours, wanted, rtol=1e-12, atol=1e-13)
        assert not torch.allclose(ours, other, atol=1e-3)


def test_what_starts_later_has_the_same_bits(recorded):
    """A resumed run records at another update, and from other parameters."""
    X, y, start = population(2, 5, n=10)
    once, twice = ([p.detach().clone() for p in start] for _ in range(2))
    undisturbed = RecordedUpdate(once, 0.01)
    for lr in (0.1, 0.2, 0.3, 0.4):
        undisturbed(X, y, lr)
    for rates in ((0.1, 0.2), (0.3, 0.4)):
        resumed = RecordedUpdate(twice, 0.01)
        for lr in rates:
            resumed(X, y, lr)
    assert all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))


def test_a_network_that_has_diverged_is_recorded_with_the_others(recorded):
    X, y, parameters = population(2, 0)
    parameters = [p.detach() for p in parameters]
    parameters[0][1] = torch.nan
    RecordedUpdate(parameters, 0.0)(X, y, 0.1)
    assert parameters[0][0].isfinite().all()
    assert parameters[0][1].isnan().all()


def test_parameters_that_have_moved_are_recorded_anew(recorded):
    X, y, parameters = population(2, 0)
    parameters = [p.detach().clone() for p in parameters]
    plain = [p.clone() for p in parameters]
    moving = RecordedUpdate(parameters, 0.0)
    for p in parameters:
        moving(X, y, 0.1)
        p.data = p.data.clone()
    for _ in parameters:
        RecordedUpdate(plain, 0.0)(X, y, 0.1)
    assert all(torch.equal(a, b) for a, b in zip(parameters, plain, strict=True))


@pytest.mark.parametrize("hidden", [0, 5])
def test_what_cannot_be_recorded_is_done_plainly(monkeypatch, hidden):
    def impossible(work):
        work()
        raise RuntimeError("no memory\nand a long explanation")

    monkeypatch.setattr(update, "record", impossible)
    with pytest.warns(UserWarning, match=r"no CUDA graph of the update: no memory\. ") as caught:
        ours = updated(RecordedUpdate, hidden, 0.1)
    assert len(caught) == 2  # of each size of batch once
    monkeypatch.setattr(update, "record", recording.record)
    recorded = updated(RecordedUpdate, hidden, 0.1)
    assert all(torch.equal(a, b) for a, b in zip(ours, recorded, strict=True))


@pytest.mark.parametrize("wrong", ["nothing", "twice"])
def test_a_recording_that_does_something_else_is_not_used(monkeypatch, wrong):
    def misbehaving(work):
        replay = recording.record(work)
        return {"nothing": lambda: None, "twice": lambda: (replay(), replay())}[wrong]

    monkeypatch.setattr(update, "record", misbehaving)
    with pytest.warns(UserWarning, match="what it replays is not what it recorded"):
        ours = updated(RecordedUpdate, 5, 0.1, steps=2)
    monkeypatch.setattr(update, "record", recording.record)
    recorded = updated(RecordedUpdate, 5, 0.1, steps=2)
    assert all(torch.equal(a, b) for a, b in zip(ours, recorded, strict=True))


def test_the_stand_in_refuses_to_wait_and_sees_no_python():
    """What makes the tests above worth something."""
    x, steps = torch.zeros(1), iter((1.0, 1.0, 5.0))
    replay = recording.record(lambda: x.add_(next(steps)))
    assert x.item() == 1  # done once, and recorded without being done
    replay()
    replay()
    assert x.item() == 3
    with pytest.raises(RuntimeError, match="not permitted"):
        recording.record(lambda: x.add_(x.item()))
