"""Lightning's own tests, with OneLayer in the place of its BoringModel.

A plugin for pytest, to be run where the package's source is at hand, at the tag of the installed
version, in its folder ``tests``::

    ONELAYER_LOADER=resident python -m pytest -p tests.lightning_suite tests_pytorch/callbacks

with this repository on PYTHONPATH. ``ONELAYER_LOADER`` is ``plain`` for torch's DataLoader,
``resident`` for the ResidentLoader, or ``boring`` for Lightning's own model, which shows what
fails by itself. The tests' data sets give pairs (X, y), as OneLayer wants them; what the tests ask
of BoringModel alone (its ``layer``, its dict with "loss", its scheduler) is not imitated.
"""

import os

from onelayer._compat import ensure_torchvision_operators

ensure_torchvision_operators()

import torch
from lightning.pytorch.demos import boring_classes
from torch.utils.data import DataLoader, TensorDataset

from onelayer.data.loader import ResidentLoader
from onelayer.training.module import OneLayer

LOADER = os.environ.get("ONELAYER_LOADER", "plain")
D, N, K = 32, 64, 2


def labels(X):
    return (X[:, 0] > 0).long()


class Pairs(boring_classes.RandomDataset):
    """RandomDataset with a label beside each row."""

    def __getitem__(self, index):
        x = self.data[index]
        return x, (x[0] > 0).long()


class BoringOneLayer(OneLayer):
    """OneLayer with BoringModel's loaders, and the methods that its subclasses call."""

    def __init__(self):
        super().__init__(inputs=D, classes=K, lr=0.1)

    def step(self, batch):
        return self.batch_cost(*batch)

    def loss(self, preds, labels=None):
        return preds.square().mean()

    def _loader(self, shuffle=False):
        X = torch.randn(N, D)
        if LOADER == "resident":
            return ResidentLoader(X, labels(X), 1, shuffle=shuffle)
        return DataLoader(TensorDataset(X, labels(X)))

    def train_dataloader(self):
        return self._loader()

    def val_dataloader(self):
        return self._loader()

    def test_dataloader(self):
        return self._loader()

    def predict_dataloader(self):
        return self._loader()


if LOADER != "boring":
    boring_classes.BoringModel = BoringOneLayer
    boring_classes.RandomDataset = Pairs
