"""Dropout's masks, and trainings with them and with label smoothing."""

import pytest
import torch

from onelayer.core.errors import InputError
from onelayer.training.dropout import dropout_mask
from onelayer.training.module import OneLayer
from tests.support.lightning import QUIET
from tests.support.small import CLASSES, PIXELS, SmallData, fit

pytestmark = QUIET
BOTH = {"dropout": 0.3, "label_smoothing": 0.1}


def test_a_mask_leaves_out_a_share_and_scales_the_others():
    M = dropout_mask(0.25, [0, 1], hidden=100, rows=200, update=3)
    assert M.shape == (2, 200, 100)
    assert M.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert M.double().mean() == pytest.approx(1, abs=0.01)


def test_a_mask_depends_on_the_members_seed_and_the_update_alone():
    M = dropout_mask(0.5, [7, 3, 7], hidden=5, rows=30, update=8)
    assert torch.equal(M[0], M[2])
    assert not torch.equal(M[0], M[1])
    assert torch.equal(dropout_mask(0.5, [3], 5, 30, 8)[0], M[1])
    assert not torch.equal(dropout_mask(0.5, [3], 5, 30, 9)[0], M[1])
    assert not torch.equal(dropout_mask(0.5, [3], 5, 30, 8, part=1)[0], M[1])


def test_processes_share_the_rows_of_one_mask():
    M = dropout_mask(0.5, [0], 4, 11, 2)
    shares = [dropout_mask(0.5, [0], 4, 11, 2, share=(rank, 3)) for rank in range(3)]
    for rank, share in enumerate(shares):
        assert torch.equal(share, M[:, rank::3])


def model(fused=True, seeds=(0, 1), **options):
    sizes = {"inputs": PIXELS, "classes": CLASSES}
    return OneLayer(hidden=6, l2=[0.0, 0.01], seeds=list(seeds), fused=fused, **sizes, **options)


def trained(tmp_path, network, **options):
    data = SmallData(dtype=torch.float64)
    fitted = fit(tmp_path, network, data, precision="64-true", **options)
    return [p.detach() for p in fitted.weights]


def test_blocks_are_the_updates_of_autograd(tmp_path):
    ours, theirs = (trained(tmp_path, model(fused, **BOTH)) for fused in (True, False))
    plain = trained(tmp_path, model())
    for a, b, c in zip(ours, theirs, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)
        assert not torch.allclose(a, c, rtol=1e-3)


def test_each_member_ends_as_it_would_alone(tmp_path):
    together, alone = (trained(tmp_path, model(seeds=seeds, **BOTH)) for seeds in ((0, 1), (1,)))
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a[1::2], b, rtol=1e-9, atol=1e-11)


def test_accumulated_batches_have_masks_of_their_own(tmp_path):
    class Seen(OneLayer):
        def dropout_mask(self, rows, update, part=0, share=(0, 1)):
            seen.append((update, part))
            return super().dropout_mask(rows, update, part, share)

    seen = []
    network = Seen(hidden=3, inputs=PIXELS, classes=CLASSES, dropout=0.5)
    fit(tmp_path, network, max_steps=3, accumulate_grad_batches=2)
    assert seen == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]


def test_measurements_and_predictions_are_by_all_units_and_unsmoothed():
    X, y = SmallData().tensors("val")
    plain, both = model(), model(**BOTH)
    for name, value in plain.evaluate(X, y).items():
        assert torch.equal(both.evaluate(X, y)[name], value)
    assert torch.equal(both(X), plain(X))


def test_a_cost_outside_of_a_trainer_takes_a_mask():
    X, y = SmallData().tensors("val")
    network = model(dropout=0.3)
    mask = network.dropout_mask(len(X), update=4)
    costs = network.cost(X, y), network.cost(X, y, mask)
    assert not torch.allclose(*costs)
    assert network.batch_cost(X, y, 4) == costs[1].sum()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"hidden": 0, "dropout": 0.1}, "the linear network has no hidden"),
        ({"hidden": 3, "dropout": 1.0}, "dropout must be a number from 0 to below 1"),
        ({"label_smoothing": -0.1}, "label_smoothing must be a number from 0 to below 1"),
    ],
)
def test_what_is_refused(options, told):
    with pytest.raises(InputError, match=told):
        OneLayer(**options)
