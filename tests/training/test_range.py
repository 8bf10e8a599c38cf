"""RangeTest: rates that rise, losses noted, ends of a cycle proposed by the stated rule."""

import math

import pytest

from onelayer.core.cycles import rising
from onelayer.core.errors import InputError
from onelayer.training.curves import Curves
from onelayer.training.divergence import Divergence
from onelayer.training.module import OneLayer
from onelayer.training.range import Point, RangeTest, propose
from tests.support.small import CLASSES, PIXELS, Plain, SmallData, fit, trainer


def test_the_rate_rises_as_fast_in_each_decade():
    rates = [rising(t, 1e-4, 1.0, 8) for t in range(9)]
    assert rates[::2] == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1])
    assert rising(100, 1e-4, 1.0, 8) == 1.0


@pytest.mark.parametrize(
    ("losses", "ends"),
    [
        ([2.0, 1.95, 1.8, 1.0, 3.0], (2, 3)),  # 0.1 of the fall of 1 is done at the third rate
        ([2.0, 1.0, 1.5, 9.0, math.inf], (1, 1)),
        ([2.0, 1.99, 1.98, 1.97, 1.96], (1, 4)),  # still falling
    ],
)
def test_the_ends_are_a_tenth_of_the_fall_and_the_lowest_loss(losses, ends):
    points = [Point(10.0**i, loss) for i, loss in enumerate(losses)]
    assert propose(points) == tuple(10.0**i for i in ends)


def test_a_loss_that_never_fell_proposes_nothing():
    with pytest.raises(InputError, match="the loss never fell"):
        propose([Point(0.1, 2.0), Point(1.0, 2.5)])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_lr": 0.0}, "min_lr must be a finite number > 0"),
        ({"min_lr": 1.0, "max_lr": 0.1}, "min_lr must be below max_lr"),
        ({"steps": 1}, "steps must be a whole number from 2"),
    ],
)
def test_arguments_that_make_no_test_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        RangeTest(**arguments)


def test_the_losses_of_each_l2_are_those_of_the_curves_and_a_diverged_run_is_stopped(tmp_path):
    model = OneLayer(4, l2=[0.0, 0.01], seeds=[0, 1], inputs=PIXELS, classes=CLASSES)
    test, curves = RangeTest(1e-4, 1e6, steps=100), Curves(per_cycle=20)
    fit(tmp_path, model, callbacks=[test, curves, Divergence(stop=False)], max_steps=100)
    assert set(test.points) == {0.0, 0.01}
    assert model.trainer.global_step < 100
    for l2, points in test.points.items():
        rows = [row for row in curves.rows if (row.split, row.l2) == ("val", l2)]
        means = [(a.loss + b.loss) / 2 for a, b in zip(rows[::2], rows[1::2], strict=True)]
        noted = [point.loss for point in points]
        finite = [loss for loss in noted if math.isfinite(loss)]
        assert finite == means[: len(finite)]
        assert [p.lr for p in points[1:]] == [test.rate(row.step - 1) for row in rows[2::2]]
        assert 1e-4 < test.proposals[l2].base_lr <= test.proposals[l2].max_lr < 1e5


def test_another_module_is_judged_by_the_running_mean_of_its_batches(tmp_path):
    test, model = RangeTest(1e-4, 1e4, steps=60), Plain()
    run = trainer(tmp_path, 60, [test])
    run.fit(model, SmallData().train_dataloader())
    points = test.points[None]
    assert model.rates == [[rising(t, 1e-4, 1e4, 60)] * 2 for t in range(len(model.rates))]
    assert [[point.lr] * 2 for point in points] == model.rates
    assert 1e-4 < test.proposals[None].base_lr <= test.proposals[None].max_lr < 1e4
