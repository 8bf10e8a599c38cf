"""Training: what is updated, how often, with which rate; populations against single networks."""

import warnings
from collections import Counter

import pytest
import torch
from lightning.pytorch.utilities.model_summary import summarize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from onelayer.core import formulas
from onelayer.core.errors import InputError
from onelayer.core.network import initial_parameters
from onelayer.core.update import FusedUpdate
from onelayer.data import features
from onelayer.data.cifar10 import CIFAR10DataModule
from onelayer.data.loader import epoch_order
from onelayer.training import blocks
from onelayer.training.curves import Curves
from onelayer.training.members import Member
from onelayer.training.module import OneLayer
from onelayer.training.range import RangeTest
from onelayer.training.results import Results
from onelayer.training.saving import Checkpoints
from onelayer.training.schedule import TriangularLR
from tests.support.small import CLASSES, PIXELS, SAFELY, SmallData, fit, trainer, warned

SMALL = {"inputs": PIXELS, "classes": CLASSES}


class Operations(TorchDispatchMode):
    """Counts what torch is asked to do, by the operation's name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def operations(monkeypatch):
    """Counts the operations of every update that is made in a block."""
    counted, right = Operations(), FusedUpdate.__call__

    def update(self, *args):
        with counted:
            right(self, *args)

    monkeypatch.setattr(FusedUpdate, "__call__", update)
    return counted


def by_hand(data, hidden, l2, seed, steps, schedule):
    """The training written as a loop, with torch's autograd: shares only the order of batches."""
    X, y = data.tensors("train")
    parameters = [
        p[0].clone().requires_grad_() for p in initial_parameters([seed], hidden, **SMALL).values()
    ]
    per_epoch = -(-len(X) // data.batch_size)
    for t in range(steps):
        epoch, position = divmod(t, per_epoch)
        rows = epoch_order(len(X), data.seed, epoch).split(data.batch_size)[position]
        H = X[rows]
        for W, b in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
            H = torch.relu(H @ W.T + b)
        J = torch.nn.functional.cross_entropy(H @ parameters[-2].T + parameters[-1], y[rows])
        J = J + l2 * sum(p.square().sum() for p in parameters if p.ndim == 2)
        gradients = torch.autograd.grad(J, parameters)
        with torch.no_grad():
            for p, g in zip(parameters, gradients, strict=True):
                p -= schedule.rate(t) * g
    return [p.detach() for p in parameters]


@pytest.mark.parametrize("hidden", [0, 4])
@pytest.mark.parametrize("fused", [True, False])
def test_a_fit_is_the_loop_written_by_hand(tmp_path, hidden, fused):
    data = SmallData(dtype=torch.float64)
    schedule = TriangularLR(0.01, 0.3, step_size=10)
    model = OneLayer(hidden=hidden, l2=0.01, seeds=3, fused=fused, **SMALL).double()
    model.load_state_dict(model.state_dict() | initial_parameters([3], hidden, **SMALL))
    fit(tmp_path, model, data, [schedule], max_steps=60, precision="64-true")
    expected = by_hand(data, hidden, 0.01, 3, 60, schedule)
    for ours, theirs in zip(model.weights, expected, strict=True):
        torch.testing.assert_close(ours[0], theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("hidden", [0, 4])
def test_the_fused_update_trains_what_the_autograd_function_trains(tmp_path, hidden):
    for dtype, precision, tolerance in (
        (torch.float64, "64-true", 1e-10),
        (torch.float32, "32-true", 1e-4),
    ):
        results = []
        for fused in (True, False):
            model = OneLayer(hidden, l2=[0.0, 0.1], seeds=[0, 1], fused=fused, **SMALL)
            fit(tmp_path, model, SmallData(dtype=dtype), max_steps=60, precision=precision)
            results.append(torch.cat([w.flatten() for w in model.weights]))
        torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)
        assert results[0].abs().max() > 0.1


@pytest.mark.parametrize("hidden", [0, 4])
def test_members_end_as_they_would_alone_in_any_company_and_order(tmp_path, hidden):
    def train(l2, seeds):
        model = OneLayer(hidden, l2=l2, seeds=seeds, **SMALL)
        fit(tmp_path, model, SmallData(dtype=torch.float64), max_steps=60, precision="64-true")
        flat = torch.cat([w.flatten(1) for w in model.weights], 1)
        return dict(zip(model.members, flat, strict=True))

    many = train([0.0, 0.1, 0.02], [0, 7, 1])
    reordered = train([0.02, 0.0], [1, 0])
    assert len(many) == 9
    for member, weights in reordered.items():
        torch.testing.assert_close(many[member], weights, rtol=1e-10, atol=1e-12)
    for member in [Member(0.1, 7), Member(0.0, 0)]:
        (alone,) = train(member.l2, member.seed).values()
        torch.testing.assert_close(many[member], alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("hidden", [0, 4])
def test_a_member_driven_to_nan_leaves_the_others_bits_alone(tmp_path, hidden):
    def train(broken):
        model = OneLayer(hidden, l2=[0.0, 0.1, 0.02], **SMALL)
        if broken:
            with torch.no_grad():
                model.weights[0][1] = float("nan")
            with warned("diverged: member 1 (l2=0.1, seed=0)"):
                fit(tmp_path, model, max_steps=80)
            return [w.detach().clone() for w in model.weights]
        return [w.detach().clone() for w in fit(tmp_path, model, max_steps=80).weights]

    for whole, with_nan in zip(train(False), train(True), strict=True):
        assert torch.equal(whole[[0, 2]], with_nan[[0, 2]])
        assert with_nan[1].isnan().any()


@pytest.fixture
def rates(monkeypatch):
    """The rates of all updates that were made in blocks."""
    seen, right = [], FusedUpdate.__call__

    def update(self, X, y, lr, *others):
        seen.append(lr)
        right(self, X, y, lr, *others)

    monkeypatch.setattr(FusedUpdate, "__call__", update)
    return seen


def test_every_update_has_its_own_rate(tmp_path, rates):
    schedule = TriangularLR(0.01, 0.3, step_size=10)
    model = fit(tmp_path, callbacks=[schedule], max_steps=37)
    assert rates == [schedule.rate(t) for t in range(37)]
    assert model.trainer.global_step == 37


def test_without_a_schedule_the_rate_is_lr(tmp_path, rates):
    fit(tmp_path, OneLayer(lr=0.07, **SMALL), callbacks=[], max_steps=5)
    assert rates == [0.07] * 5


def test_any_data_loader_will_do(tmp_path):
    data = SmallData()
    loader = DataLoader(TensorDataset(*data.tensors("train")), batch_size=8)
    model = OneLayer(**SMALL)
    run = trainer(tmp_path, max_epochs=3)
    run.fit(model, loader, DataLoader(TensorDataset(*data.tensors("val")), batch_size=30))
    assert run.global_step == 24
    assert run.callback_metrics["val/accuracy"] > 0.5


@pytest.mark.parametrize(
    ("X", "label", "message"),
    [
        (float("nan"), 0, "nan: every feature must be a finite number"),
        (float("inf"), 0, "inf: every feature must be a finite number"),
        (0.0, -1, r"y\[3\] = -1 is no label"),
        (0.0, -100, r"y\[3\] = -100 is no label"),
        (0.0, CLASSES, rf"y\[3\] = {CLASSES} is no label"),
    ],
)
def test_what_any_data_loader_gives_is_checked(tmp_path, X, label, message):
    features, labels = torch.ones(8, PIXELS), torch.zeros(8, dtype=torch.int64)
    features[3, 5], labels[3] = X, label
    loader = DataLoader(TensorDataset(features, labels), batch_size=8)
    with pytest.raises(InputError, match=message):
        trainer(tmp_path, max_epochs=1).fit(OneLayer(**SMALL), loader, loader)


@pytest.mark.parametrize(
    "batch",
    [{"x": torch.ones(2, PIXELS), "label": torch.zeros(2).long()}, torch.ones(2, PIXELS)],
)
def test_a_batch_that_is_no_pair_is_refused(batch):
    with pytest.raises(InputError, match=r"a pair \(X, y\) .* not a (dict with the keys x|Tensor)"):
        OneLayer(**SMALL).training_step(batch, 0)


POPULATION = {"l2": [0.0, 0.1], "seeds": [0, 1], **SMALL}


@pytest.mark.parametrize(("hidden", "products"), [(0, 2), (4, 5)])
def test_an_update_is_as_many_products_as_the_maths_has_for_any_number_of_networks(
    tmp_path, operations, hidden, products
):
    for arguments in (SMALL, POPULATION):
        operations.counts.clear()
        fit(tmp_path, OneLayer(hidden, **arguments), max_steps=40)
        names = ("mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_")
        assert sum(operations.counts[name] for name in names) == 40 * products


def test_images_kept_as_bytes_train_the_same_bits(tmp_path, monkeypatch):
    def train():
        data = CIFAR10DataModule(source="synthetic", limit=60, val_size=200, batch_size=10)
        model = fit(tmp_path, OneLayer(4), data, [TriangularLR(step_size=10), Curves()], 20)
        return data.tensors("train")[0], model.weights, model.trainer.callbacks[1].rows

    _, weights, rows = train()
    monkeypatch.setattr(features, "room_on_gpu", lambda device: 0)
    X, frugal_weights, frugal_rows = train()
    assert isinstance(X, features.RawFeatures)
    assert all(torch.equal(a, b) for a, b in zip(weights, frugal_weights, strict=True))
    assert rows == frugal_rows


@pytest.mark.parametrize("hidden", [0, 4])
def test_an_update_asks_for_no_value(tmp_path, operations, hidden):
    """On a GPU the host would wait for it; see the next test for the GPU's own word."""
    waiting = {"_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2"}
    for arguments in (SMALL, POPULATION):
        fit(tmp_path, OneLayer(hidden, **arguments), max_steps=40)
        assert operations.counts
        assert not waiting & set(operations.counts)


@pytest.fixture
def recorded(recorded, monkeypatch):
    """The same, in trainings on the CPU."""
    monkeypatch.setattr(blocks, "has_graphs", lambda device: True)
    return recorded


@pytest.mark.parametrize("hidden", [0, 4])
def test_a_training_of_recorded_updates_is_the_training(tmp_path, recorded, hidden):
    """Whole, through Lightning: the rate of each update, both sizes of batch, every member."""
    data = SmallData(dtype=torch.float64)
    for arguments in ({"l2": 0.01, **SMALL}, POPULATION):
        plain, ours = (
            fit(tmp_path, OneLayer(hidden, cuda_graphs=on, **arguments), data, precision="64-true")
            for on in (False, True)
        )
        for a, b in zip(ours.weights, plain.weights, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert len(recorded) == 4  # two sizes, in two trainings


def test_a_run_of_recorded_updates_is_resumed_to_the_same_bits(tmp_path, recorded):
    schedule = TriangularLR(0.01, 0.3, step_size=10)
    whole = fit(tmp_path, OneLayer(4, **POPULATION), callbacks=[schedule])
    for steps, ckpt in ((23, None), (40, "last")):  # 23: before the small batch
        run = trainer(tmp_path, steps, [schedule, Checkpoints()])
        model = OneLayer(4, **POPULATION)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="training stops in mid-cycle")
            run.fit(model, datamodule=SmallData(), ckpt_path=ckpt, **SAFELY)
    assert all(torch.equal(a, b) for a, b in zip(whole.weights, model.weights, strict=True))


def test_autocast_is_recorded_too(tmp_path, recorded):
    plain, ours = (
        fit(tmp_path, OneLayer(4, cuda_graphs=on, **SMALL), precision="bf16-mixed")
        for on in (False, True)
    )
    for a, b in zip(ours.weights, plain.weights, strict=True):
        torch.testing.assert_close(a, b, rtol=0.1, atol=0.05)  # as far as from full precision
    assert recorded


def test_batches_of_any_other_loader_are_not_recorded(tmp_path, recorded):
    loader = DataLoader(TensorDataset(*SmallData().tensors("train")), batch_size=8)
    trainer(tmp_path, 10).fit(OneLayer(**SMALL), loader, loader)
    assert not recorded


def test_bfloat16_products_train_nearly_the_same(tmp_path):
    low, full = (
        fit(tmp_path, OneLayer(4, **SMALL), max_steps=40, precision=precision)
        for precision in ("bf16-mixed", "32-true")
    )
    for a, b in zip(low.weights, full.weights, strict=True):
        assert a.dtype == torch.float32
        assert not torch.equal(a, b)
        torch.testing.assert_close(a, b, rtol=0.1, atol=0.05)


def test_evaluate_is_cost_loss_and_accuracy(tmp_path):
    model = fit(tmp_path, OneLayer(4, l2=[0.0, 0.1], **SMALL))
    X, y = SmallData().tensors("val")
    figures = model.evaluate(X, y)
    torch.testing.assert_close(figures["cost"].float(), model.cost(X, y).detach())
    Z = formulas.logits(X, model.weights)
    accuracy = (Z.argmax(-1) == y).double().mean(1)
    torch.testing.assert_close(figures["accuracy"], accuracy)


def test_validate_and_test_log_the_mean_over_seeds(tmp_path):
    model = fit(tmp_path, OneLayer(4, l2=0.1, seeds=[0, 1], **SMALL))
    data = SmallData()
    (logged,) = model.trainer.validate(model, data, verbose=False)
    expected = model.evaluate(*data.tensors("val"))
    assert logged == pytest.approx({f"val/{k}": float(v.mean()) for k, v in expected.items()})
    (logged,) = model.trainer.test(model, data, verbose=False)
    assert set(logged) == {"test/cost", "test/loss", "test/accuracy"}


def test_a_checkpoint_carries_the_statistics_of_the_training_split(tmp_path):
    model = fit(tmp_path)
    model.trainer.save_checkpoint(tmp_path / "a.ckpt")
    loaded = OneLayer.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert torch.equal(loaded.mean, SmallData().statistics.mean)
    assert torch.equal(loaded.std, SmallData().statistics.std)
    assert loaded.members == model.members


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden": -1}, "hidden must be a whole number >= 0, not -1"),
        ({"hidden": 2.5}, "hidden .* not 2.5"),
        ({"l2": -0.1}, "l2 must be a finite number >= 0, not -0.1"),
        ({"l2": float("nan")}, "l2 .* not nan"),
        ({"l2": [0.1, float("inf")]}, "l2 .* not inf"),
        ({"l2": []}, "l2 must be .* at least one"),
        ({"seeds": -1}, "seeds must be a whole number from 0 to .*, not -1"),
        ({"seeds": [0, 0]}, "must not repeat"),
        ({"seeds": []}, "seeds must be .* at least one"),
        ({"lr": float("nan")}, "lr must be .* not nan"),
        ({"classes": 1}, "classes must be a whole number >= 2"),
    ],
)
def test_values_that_make_no_network_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        OneLayer(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": 4}, "model.classes is 4, but the data have 3."),
        ({"inputs": 13}, "model.inputs is 13, but the data have 12."),
    ],
)
def test_a_network_of_other_sizes_than_the_data_is_refused(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        fit(tmp_path, OneLayer(**{**SMALL, **arguments}))


@pytest.mark.parametrize("ask", [OneLayer.forward, OneLayer.predict_proba])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_bytes_that_are_not_standardised_are_refused(ask, dtype):
    """Weights cast to a whole number are 0, and so was every logit."""
    with pytest.raises(InputError, match=f"not {dtype}"):
        ask(OneLayer(**SMALL), torch.ones(5, PIXELS, dtype=dtype))


def test_its_repr_names_what_the_networks_are():
    model = OneLayer(4, l2=[0.0, 0.1], seeds=[0, 3], inputs=PIXELS, classes=CLASSES, dropout=0.2)
    assert repr(model) == (
        f"OneLayer(hidden=4, l2=[0, 0.1], seeds=[0, 3], inputs={PIXELS}, classes={CLASSES}, "
        "dropout=0.2)"
    )
    many = OneLayer(l2=[10.0**-i for i in range(9)], inputs=PIXELS, classes=CLASSES)
    assert "l2=[1, …, 1e-08] (9 values), seeds=0," in repr(many)


@pytest.mark.parametrize("hidden", [0, 4])
def test_lightnings_summary_lists_the_parameters(hidden):
    model = OneLayer(hidden, inputs=PIXELS, classes=CLASSES)
    summary = summarize(model)
    assert summary.layer_names == model.names
    assert summary.param_nums == [p.numel() for p in model.weights]
    assert "Measure" not in str(summary)
    moved = model.to(torch.float64)
    assert len([*moved.children()]) == 2  # the metrics, which move to a device with it


def test_callbacks_and_results_have_a_repr(tmp_path):
    schedule = TriangularLR(0.01, 0.3, step_size=10)
    assert repr(schedule) == (
        "TriangularLR(base_lr=0.01, max_lr=0.3, step_size=10, cycles=1, mode='triangular', "
        "gamma=1.0)"
    )
    assert repr(RangeTest(steps=7)) == "RangeTest(min_lr=1e-05, max_lr=1.0, steps=7)"
    results = Results()
    assert repr(results) == "Results(no training run has ended)"
    fit(tmp_path, callbacks=[results], max_steps=8)
    assert repr(results) == "Results(1 network, 8 updates, not tested)"
