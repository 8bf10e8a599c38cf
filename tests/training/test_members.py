"""Which members of a population answer together."""

import math

import pytest
import torch

from onelayer.core.errors import InputError
from onelayer.training.checkpoint import load_network
from onelayer.training.members import Member, best_l2, choose
from onelayer.training.module import OneLayer
from tests.support.small import CLASSES, PIXELS, SmallData, fit

SWEEP = [Member(l2, seed) for l2 in (0.0, 0.1) for seed in (0, 1)]


def figures(accuracy, cost=(2.0,) * 4, loss=(1.0,) * 4):
    return {"cost": list(cost), "loss": list(loss), "accuracy": list(accuracy)}


@pytest.mark.parametrize(
    ("val", "best"),
    [
        (figures([0.9, 0.1, 0.6, 0.6]), 0.1),  # the mean counts, not the best network
        (figures([0.6, 0.6, 0.9, 0.1]), 0.0),
        (figures([0.5] * 4, loss=[1.0, 1.0, 0.9, 0.9]), 0.1),
        (figures([0.9, 0.9, 0.1, 0.1], cost=[2.0, math.nan, 2.0, 2.0]), 0.1),
        (figures([0.9, 0.1, 0.2, 0.2], loss=[1.0, math.inf, math.nan, math.nan]), 0.0),
        (figures([0.1] * 4, loss=[math.nan] * 4), 0.1),
        (figures([0.1] * 4), 0.1),  # the simpler networks
    ],
    ids=["mean", "order", "loss", "one diverged", "one of three", "all diverged", "tie"],
)
def test_the_best_l2_has_the_highest_mean_accuracy_of_those_that_did_not_diverge(val, best):
    assert best_l2([member.l2 for member in SWEEP], val) == best


@pytest.mark.parametrize(
    ("member", "population", "val", "members", "words"),
    [
        ("best", SWEEP, figures([0, 0, 1, 1]), [2, 3], "2 networks of l2=0.1, the best on valid"),
        (
            "best",
            SWEEP,
            None,
            [0, 1, 2, 3],
            "all 4 networks, because best needs",
        ),
        ("best", SWEEP[:2], None, [0, 1], "the mean of the 2 networks of l2=0"),
        ("best", SWEEP[1:3], figures([1, 0]), [0], "network 0 (l2=0, seed=1), the best on valid"),
        ("best", SWEEP[:1], None, [0], "the network (l2=0, seed=0)"),
        ("all", SWEEP, figures([0, 0, 1, 1]), [0, 1, 2, 3], "the mean of all 4 networks"),
        (3, SWEEP, None, [3], "network 3 (l2=0.1, seed=1)"),
    ],
)
def test_who_answers_is_said(member, population, val, members, words):
    chosen = choose(member, population, val)
    assert chosen.members == members
    assert words in chosen.words


@pytest.mark.parametrize("member", [4, -1, True, 1.0, "worst", None])
def test_a_member_that_there_is_not_is_refused(member):
    with pytest.raises(InputError, match=r"best, all, or the number of a network, 0 to 3, not "):
        choose(member, SWEEP)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A sweep whose second λ is far too large, so that the first is best; and its checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    model = fit(folder, OneLayer(4, l2=[0.0, 3.0], seeds=[0, 1], inputs=PIXELS, classes=CLASSES))
    model.trainer.save_checkpoint(folder / "a.ckpt")
    return model, folder / "a.ckpt"


def test_the_probabilities_are_the_mean_of_those_that_were_chosen(trained):
    model, _ = trained
    X, _ = SmallData().tensors("test")
    P = model(X).softmax(-1).detach()
    for member, expected in (("best", P[:2].mean(0)), ("all", P.mean(0)), (3, P[3])):
        torch.testing.assert_close(model.predict_proba(X, member), expected)
    assert torch.equal(model.predict_proba(X), model.predict_proba(X, "best"))


def test_a_checkpoint_knows_the_best(trained):
    model, path = trained
    assert load_network(path).choose().words == model.choose().words
    assert "of l2=0, the best on validation" in model.choose().words


def test_a_foreign_checkpoint_answers_by_all(trained, tmp_path):
    _, path = trained
    content = torch.load(path, weights_only=True)
    del content["validation"]
    torch.save(content, tmp_path / "foreign.ckpt")
    assert "because best needs" in load_network(tmp_path / "foreign.ckpt").choose().words


def test_what_is_monitored_is_of_the_best_l2_alone(trained):
    model, _ = trained
    figures = {s: model.evaluate(*SmallData().tensors(s)) for s in ("train", "val")}
    for split, values in figures.items():
        for name, value in values.items():
            seen = model.trainer.callback_metrics[f"{split}/{name}"]
            torch.testing.assert_close(seen, value[:2].mean())
