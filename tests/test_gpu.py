"""Everything that runs on a CUDA device, against the CPU: updates, fit, solve, predict, resume."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from onelayer import solve
from onelayer.__main__ import main
from onelayer.core.autograd import cost
from onelayer.core.update import FusedUpdate, RecordedUpdate
from onelayer.data.features import measure, standardise
from onelayer.data.loader import ResidentLoader
from onelayer.training import blocks
from onelayer.training.checkpoint import load_network
from onelayer.training.module import OneLayer
from onelayer.training.saving import Checkpoints
from tests.support.cases import linear_problem, population, random_bytes, updated
from tests.support.small import CLASSES, PIXELS, SmallData, fit

pytestmark = pytest.mark.gpu
SMALL = {"inputs": PIXELS, "classes": CLASSES}
SWEEP = {"l2": [0.0, 0.1], "seeds": [0, 1], **SMALL}


@pytest.mark.parametrize("hidden", [0, 5])
def test_gradients_are_those_of_the_cpu(hidden):
    X, y, parameters = population(3, hidden)
    there = [p.detach().cuda().requires_grad_() for p in parameters]
    cost(X, y, parameters, [0, 0.1, 0.2]).sum().backward()
    cost(X.cuda(), y.cuda(), there, [0, 0.1, 0.2]).sum().backward()
    for ours, gpu in zip(parameters, there, strict=True):
        torch.testing.assert_close(ours.grad, gpu.grad.cpu(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", [FusedUpdate, RecordedUpdate])
@pytest.mark.parametrize("hidden", [0, 5])
@pytest.mark.parametrize("l2", [0.1, torch.tensor([0.0, 0.1, 0.2])], ids=["1", "each"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_updates_are_those_of_the_cpu(kind, hidden, l2, dtype, bound):
    """A graph that cannot be recorded would warn, and a warning is an error."""
    for a, b in zip(
        updated(kind, hidden, l2, dtype, "cuda"), updated(FusedUpdate, hidden, l2, dtype),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(a.cpu(), b, rtol=bound, atol=bound)


def trained(folder, arguments, **flags):
    return fit(folder, OneLayer(4, **SWEEP, **arguments), max_steps=40, accelerator="gpu", **flags)


@pytest.mark.parametrize(
    "arguments", [{}, {"cuda_graphs": False}, {"fused": False}], ids=["graphs", "fused", "autograd"]
)
def test_a_fit_ends_as_on_the_cpu(tmp_path, arguments):
    expected = fit(tmp_path / "cpu", OneLayer(4, **SWEEP), max_steps=40)
    for a, b in zip(trained(tmp_path, arguments).weights, expected.weights, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-3, atol=1e-4)


def test_bfloat16_products_train_nearly_the_same(tmp_path):
    low, full = (trained(tmp_path, {}, precision=p) for p in ("bf16-mixed", "32-true"))
    for a, b in zip(low.weights, full.weights, strict=True):
        assert a.dtype == torch.float32
        assert not torch.equal(a, b)
        torch.testing.assert_close(a, b, rtol=0.1, atol=0.05)


@pytest.fixture
def strict(monkeypatch):
    """Raise where a training step waits for the GPU, after the first epoch of eight updates.

    The first batch of each of two sizes is recorded, and its graph checked.
    """
    right = blocks._Hooks.training_step

    def training_step(self, batches):
        torch.cuda.set_sync_debug_mode("error" if self.trainer.global_step >= 8 else "default")
        try:
            return right(self, batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(blocks._Hooks, "training_step", training_step)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("arguments", [{}, {"cuda_graphs": False}], ids=["graphs", "fused"])
def test_an_update_never_waits_for_the_gpu(tmp_path, strict, arguments):
    assert trained(tmp_path, arguments).trainer.global_step == 40


def test_a_killed_and_resumed_fit_ends_with_the_same_bits(tmp_path):
    expected = trained(tmp_path / "complete", {})
    callbacks = [Checkpoints(every=10, dirpath=str(tmp_path))]
    fit(tmp_path, OneLayer(4, **SWEEP), callbacks=[*schedule(), *callbacks], max_steps=20,
        accelerator="gpu")  # fmt: skip
    resumed = fit(
        tmp_path, OneLayer(4, **SWEEP), callbacks=[*schedule(), *callbacks], max_steps=40,
        accelerator="gpu", ckpt_path=str(tmp_path / "last.ckpt"),
    )  # fmt: skip
    for a, b in zip(resumed.weights, expected.weights, strict=True):
        assert torch.equal(a, b)


def schedule():
    from onelayer.training.schedule import TriangularLR

    return [TriangularLR(0.01, 0.3, step_size=10)]


def test_after_a_fit_the_data_may_lie_on_the_gpu(tmp_path):
    model, (X, y) = trained(tmp_path, {}), SmallData().tensors("val")
    there = model.evaluate(X.cuda(), y.cuda()), model.predict_proba(X.cuda())
    assert torch.equal(there[0]["loss"], model.evaluate(X, y)["loss"])
    assert torch.equal(there[1], model.predict_proba(X))


def test_an_optimum_is_that_of_the_cpu():
    X, y = linear_problem()
    l2 = [0.1, 0.01]
    there = solve(X.cuda(), y.cuda(), l2, 1e-12)
    assert there.W.device.type == "cuda"
    torch.testing.assert_close(there.W.cpu(), solve(X, y, l2, 1e-12).W, rtol=1e-5, atol=1e-5)


def test_batches_and_standardised_features_have_the_bits_of_the_cpu():
    x = random_bytes(500, 3072)
    statistics = measure(x)
    assert measure(x.cuda()).equal(statistics)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        X = standardise(x.cuda(), statistics, dtype)
        assert torch.equal(X.cpu(), standardise(x, statistics, dtype))
    y = torch.arange(500) % 10
    here, there = (ResidentLoader(x.float(), y, 64, seed=3) for _ in range(2))
    for (X, labels), (Xg, labels_g) in zip(here, there.to("cuda"), strict=True):
        assert Xg.device.type == "cuda"
        assert torch.equal(X, Xg.cpu())
        assert torch.equal(labels, labels_g.cpu())


def test_the_command_line_fits_resumes_and_predicts(tmp_path, capfd):
    small = ["--data.source=synthetic", "--data.limit=60", "--data.val_size=50"]
    words = ["fit", *small, "--data.batch_size=10", "--model.hidden=3", "--trainer.accelerator=gpu"]
    assert main([*words, "--schedule.step_size=10"]) == 0
    run = tmp_path / "lightning_logs" / "fit" / "version_0"
    assert main(["fit", "--ckpt_path", str(run), "--schedule.cycles=2"]) == 0
    assert load_network(run / "checkpoints" / "last.ckpt").W1.device.type == "cpu"
    np.savez("bytes.npz", X=np.zeros((3, 3072), np.uint8))
    assert main(["predict", "--ckpt_path", str(run), "--data.predict", "bytes.npz"]) == 0
    assert "3 rows, classified by" in capfd.readouterr().out


CANNOT = """
import torch
from onelayer.core import update
x = torch.zeros(1, device="cuda")
before = torch.cuda.current_stream()
try:
    update.record(lambda: x.add_(x.item()))
except RuntimeError:
    assert torch.cuda.current_stream() == before
    print(x.add_(1).item())
"""


def test_a_gpu_that_cannot_record_goes_on():
    """It runs in its own process: older versions of torch cannot free memory after that."""
    done = subprocess.run([sys.executable, "-c", CANNOT], capture_output=True, text=True)
    assert done.stdout == "1.0\n", done.stderr
