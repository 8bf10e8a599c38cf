"""Small trained networks of each kind, with raw samples of their data."""

import numpy as np
import torch

from onelayer import ArraysDataModule, Run, train_and_test
from tests.support.own import NAMES, arrays

SCHEDULE = {"step_size": 6, "cycles": 1}
QUIET = {"log_every_n_steps": 1, "enable_progress_bar": False}


def images_run(folder, **model) -> Run:
    """A run on built-in images."""
    data = {"source": "synthetic", "limit": 60, "val_size": 50, "batch_size": 30}
    settings = {"model": model, "data": data, "schedule": SCHEDULE, "trainer": QUIET}
    return train_and_test(settings, folder)


def features_run(folder, standardise="feature", scale=1.0, dtype=np.float32, **model) -> Run:
    """A run on features with string classes, whose mean is far from 0."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, seed in (("train", 0), ("test", 1)):
        X, y = raw(scale, dtype, seed)
        np.savez(folder / f"{split}.npz", X=X, y=NAMES[y])
    data = {"class_path": "onelayer.ArraysDataModule", "init_args": {
        "train": str(folder / "train.npz"), "test": str(folder / "test.npz"), "val_size": 20,
        "batch_size": 20, "standardise": standardise,
    }}  # fmt: skip
    settings = {"model": model, "data": data, "schedule": SCHEDULE, "trainer": QUIET}
    return train_and_test(settings, folder / "version_0")


def raw(scale=1.0, dtype=np.float32, seed=0):
    """Features (120, 6) and labels; with a large scale the mean is large beside the deviation."""
    X, y = arrays(dtype=np.float64, seed=seed)
    return (X + 50 * (scale - 1)).astype(dtype), y


def predicted(network, x, member="best"):
    """What ``onelayer predict`` writes for raw samples: the data module's own way."""
    data = ArraysDataModule(predict=(x.reshape(len(x), -1),))
    state = {
        "mean": network.mean, "std": network.std, "dataset": "own", "shape": [network.inputs],
        "arguments": {"standardise": network.samples["standardise"]}, "classes": network.classes,
        "places": True, "kind": network.samples["kind"],
    }  # fmt: skip
    data.load_state_dict(state)
    batches = [network.predict_proba(X, member) for X in data.predict_dataloader()]
    return torch.cat(batches).numpy()
