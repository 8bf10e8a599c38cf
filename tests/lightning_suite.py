"""Lightning's own tests, with OneLayer in the place of its BoringModel.

A plugin for pytest; docs/lightning_suite.md says how to run it and what comes of it. The variable
``ONELAYER_LOADER`` is ``plain`` for torch's DataLoader, ``resident`` for the ResidentLoader and so
for blocks, or ``boring`` for Lightning's own model, which shows what fails by itself.

Most of Lightning's tests write a subclass of BoringModel and ask something of it that has nothing
to do with what it computes. So that they get as far as that, the model here answers to what
BoringModel's subclasses call: ``layer`` is the module itself, the steps call forward and return
dicts, and a batch may be X alone, as the tests' data sets give it; the model's own loaders give
pairs (X, y). All this stands around OneLayer's own methods, which do the work. It is put on
OneLayer itself: methods of a subclass would rightly be taken for somebody's who wants to see every
batch.
"""

import os
import sys
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from xml.etree import ElementTree

from onelayer._compat import ensure_torchvision_operators

ensure_torchvision_operators()

import torch
from lightning.pytorch.demos import boring_classes
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

from onelayer.data.loader import ResidentLoader
from onelayer.training.blocks import BATCH_HOOKS, STEPS
from onelayer.training.module import OneLayer

LOADER = os.environ.get("ONELAYER_LOADER", "plain")
D, N, K = 32, 64, 2


def labels(X):
    return (X[:, 0] > 0).long()


def pair(batch):
    """A batch as OneLayer wants it: the tests also make some of X, or of one row, alone."""
    if not isinstance(batch, torch.Tensor):
        return batch
    X = batch.reshape(-1, batch.shape[-1])
    return X, labels(X)


class BoringModel(OneLayer):
    """OneLayer with BoringModel's loaders, and the methods that its subclasses call."""

    def __init__(self):
        super().__init__(inputs=D, classes=K, lr=0.1)
        for name in set(self.hparams) - set(signature(OneLayer).parameters):
            del self.hparams[name]  # BoringModel saves nothing of what its subclasses take

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "layer":
                return self
            if name in ("weight", "bias"):
                return self.W if name == "weight" else self.b
            raise

    def step(self, batch):
        self(pair(batch)[0])
        return self.batch_cost(*pair(batch))

    def loss(self, preds, labels=None):
        return torch.nn.functional.mse_loss(preds, torch.ones_like(preds))

    def configure_optimizers(self):
        """BoringModel's scheduler too, but where it alone would forbid blocks."""
        optimizer = super().configure_optimizers()
        called = type(self).configure_optimizers is not BoringModel.configure_optimizers
        if LOADER == "resident" and not called and not self.overridden((*BATCH_HOOKS, *STEPS)):
            return optimizer
        return [optimizer], [StepLR(optimizer, step_size=1)]

    def _loader(self):
        X = torch.randn(N, D)
        if LOADER == "resident":
            return ResidentLoader(X, labels(X), 1, shuffle=False)
        return DataLoader(TensorDataset(X, labels(X)))

    def train_dataloader(self):
        return self._loader()

    def val_dataloader(self):
        return self._loader()

    def test_dataloader(self):
        return self._loader()

    def predict_dataloader(self):
        return self._loader()


class ManualOneLayer(BoringModel):
    """ManualOptimBoringModel."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    training_step = boring_classes.ManualOptimBoringModel.training_step


def answer_like_boring_model():
    """Let OneLayer's steps take X alone, call forward and return dicts, as BoringModel's do."""
    training_step, validation_step = OneLayer.training_step, OneLayer.validation_step
    predict_step, forward = OneLayer.predict_step, OneLayer.forward

    def train(self, batch, batch_idx):
        self(pair(batch)[0])
        return {"loss": training_step(self, pair(batch), batch_idx)}

    def validate(self, batch, batch_idx):
        loss = self.loss(self(pair(batch)[0]))
        validation_step(self, pair(batch), batch_idx)
        return {"x": loss}

    def test(self, batch, batch_idx):
        return {"y": validate(self, batch, batch_idx)["x"]}

    def predict(self, batch, batch_idx, dataloader_idx=0):
        self(pair(batch)[0])
        return predict_step(self, pair(batch), batch_idx, dataloader_idx)

    OneLayer.training_step, OneLayer.validation_step, OneLayer.test_step = train, validate, test
    OneLayer.predict_step = predict
    OneLayer.forward = lambda self, X: forward(self, pair(X)[0])


def read_report(path: Path) -> Iterator[tuple[str, str]]:
    """Each test of a file or folder of --junitxml, with how it failed; "" where it passed."""
    for file in sorted(path.glob("*.xml")) if path.is_dir() else [path]:
        for case in ElementTree.parse(file).iter("testcase"):
            if case.find("skipped") is None:
                wrong = [c for c in case if c.tag in ("failure", "error")]
                message = wrong[0].get("message", "").split("\n")[0] if wrong else ""
                name = f"{case.get('classname')}.{case.get('name')}"
                yield name, (message or "failed") if wrong else ""


def compare(boring: str, *others: str) -> bool:
    """Print what passes with Lightning's own model, and what of it fails with ours.

    Args:
        boring: reports of Lightning's own model.
        others: reports of ours, as ``path`` or ``path:most``.

    Returns:
        Whether nowhere more than ``most`` fail.
    """
    apply = {name for name, message in read_report(Path(boring)) if not message}
    print(f"{boring}: {len(apply)} passed")
    fine = bool(apply)
    for other in others:
        name, _, most = other.partition(":")
        path = Path(name)
        found = dict(read_report(path))
        failed = {name: found.get(name, "not run") for name in apply}
        failed = {name: message for name, message in failed.items() if message}
        print(f"\n{path}: {len(apply) - len(failed)} of them passed, {len(failed)} failed")
        for name, message in sorted(failed.items(), key=lambda item: item[::-1]):
            print(f"  {name}: {message[:160]}")
        fine &= not most or len(failed) <= int(most)
    return fine


if __name__ == "__main__":
    sys.exit(not compare(*sys.argv[1:]))
elif LOADER != "boring":
    answer_like_boring_model()
    boring_classes.BoringModel = BoringModel
    boring_classes.ManualOptimBoringModel = ManualOneLayer
