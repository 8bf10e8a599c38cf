"""Tiny data and short trainings for the tests."""

import warnings
from contextlib import contextmanager
from inspect import signature
from typing import NamedTuple

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from onelayer.data.features import measure, standardise
from onelayer.data.loader import ResidentLoader
from onelayer.training.module import OneLayer
from onelayer.training.saving import Checkpoints
from onelayer.training.schedule import TriangularLR

PIXELS, CLASSES = 12, 3
# An argument that Lightning has from 2.6 on.
SAFELY = {"weights_only": True} if "weights_only" in signature(Trainer.fit).parameters else {}


class Images(NamedTuple):
    """Bytes (n, d) and labels (n,)."""

    x: torch.Tensor
    y: torch.Tensor


def images(n, seed):
    """Bytes whose brightness tells the class, nearly."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(CLASSES, (n,), generator=g)
    noise = torch.randint(0, 120, (n, PIXELS), generator=g)
    return Images((noise + 40 * y.unsqueeze(1)).to(torch.uint8), y)


class SmallData(LightningDataModule):
    """The interface of CIFAR10DataModule over 60 + 30 + 30 images of 12 pixels."""

    name, classes = "small", ("dark", "grey", "light")

    def __init__(self, n=60, batch_size=8, dtype=torch.float32, seed=0):
        super().__init__()
        self.batch_size, self.dtype, self.seed = batch_size, dtype, seed
        self.splits = {"train": images(n, 1), "val": images(30, 2), "test": images(30, 3)}
        self.statistics = measure(self.splits["train"].x)

    def tensors(self, split):
        part = self.splits[split]
        return standardise(part.x, self.statistics, self.dtype), part.y

    def train_dataloader(self):
        return ResidentLoader(*self.tensors("train"), self.batch_size, seed=self.seed)

    def val_dataloader(self):
        return ResidentLoader(*self.tensors("val"), 20, shuffle=False)

    def test_dataloader(self):
        return ResidentLoader(*self.tensors("test"), 20, shuffle=False)


class Plain(LightningModule):
    """A linear network without onelayer, with two groups of parameters; notes their rates."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(PIXELS, CLASSES)
        self.rates = []

    def training_step(self, batch, batch_idx):
        self.rates.append([group["lr"] for group in self.optimizers().param_groups])
        return torch.nn.functional.cross_entropy(self.layer(batch[0]), batch[1])

    def configure_optimizers(self):
        groups = [{"params": [self.layer.weight]}, {"params": [self.layer.bias]}]
        return torch.optim.SGD(groups, lr=1.0)


def trainer(tmp_path, max_steps=40, callbacks=(), logger=False, **kwargs):
    if "max_epochs" not in kwargs:
        kwargs["max_steps"] = max_steps
    return Trainer(
        default_root_dir=tmp_path,
        callbacks=list(callbacks),
        logger=logger,
        **{
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
            "enable_checkpointing": any(isinstance(c, Checkpoints) for c in callbacks),
            "accelerator": "cpu",
            "devices": 1,
            **kwargs,
        },
    )


def fit(tmp_path, model=None, data=None, callbacks=None, max_steps=40, **kwargs):
    """Train a small network; the module, and the trainer as ``module.trainer``."""
    model = model or OneLayer(hidden=4, l2=0.01, inputs=PIXELS, classes=CLASSES)
    callbacks = [TriangularLR(0.01, 0.3, step_size=10)] if callbacks is None else callbacks
    resume = {"ckpt_path": kwargs.pop("ckpt_path", None), **SAFELY}
    run = trainer(tmp_path, max_steps, callbacks, **kwargs)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="training stops in mid-cycle")
        run.fit(model, datamodule=data or SmallData(), **resume)
    return model


@contextmanager
def warned(beginning):
    """Expect a warning that begins so, whatever else Lightning warns about."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    assert any(str(warning.message).startswith(beginning) for warning in caught)
