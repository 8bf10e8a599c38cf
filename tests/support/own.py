"""Data of a user's own: a data module that knows nothing of ours, and small tables."""

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

NAMES = np.array(["ash", "birch", "cedar", "doum"])


def arrays(n=120, d=6, k=4, seed=0, dtype=np.float32):
    """Features (n, d) that tell the class nearly, and labels (n,)."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % k
    centres = np.random.default_rng(99).normal(size=(k, d))
    return (2 * centres[y] + rng.normal(size=(n, d))).astype(dtype), y


class Theirs(LightningDataModule):
    """Loaders of images (n, 1, 2, 3) and labels; no method of ours."""

    def __init__(self, n: int = 80, batch_size: int = 20):
        super().__init__()
        self.save_hyperparameters()
        self.n, self.batch_size = n, batch_size

    def setup(self, stage):
        def images(n, seed):
            X, y = arrays(n, seed=seed)
            return TensorDataset(torch.from_numpy(X).view(n, 1, 2, 3), torch.from_numpy(y))

        self.train, self.val, self.test = images(self.n, 1), images(40, 2), images(40, 3)

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, batch_size=15)

    def test_dataloader(self):
        return DataLoader(self.test, batch_size=15)

    def predict_dataloader(self):
        return DataLoader(self.test, batch_size=15)


class NoModule:
    """Not a data module."""
