"""Small networks of each kind, with raw samples of their data."""

import math

import numpy as np
import torch

from onelayer import ArraysDataModule, OneLayer, Run, train_and_test
from tests.support.own import NAMES, arrays

MODELS = {
    "linear": {},
    "hidden": {"hidden": 5},
    "five": {"hidden": 4, "seeds": [0, 1, 2, 3, 4]},
    "linear five": {"seeds": [0, 1, 2, 3, 4]},
}
SHAPE = (3, 4, 5)  # of images


def made(kind="bytes", shape=SHAPE, mean=0.4, std=0.2, standardise="feature", dtype=None, **model):
    """Untrained networks with statistics, as if trained on such samples."""
    network = OneLayer(inputs=math.prod(shape), classes=4, init_std=0.3, **model)
    generator = torch.Generator().manual_seed(0)
    if standardise == "feature":
        spread = torch.rand(2, network.inputs, generator=generator, dtype=torch.float64)
        network.mean.copy_(mean * (0.5 + spread[0]))
        network.std.copy_(std * (0.5 + spread[1]))
    network.samples = {"shape": shape, "kind": kind, "standardise": standardise, "dtype": dtype}
    return network


def raw_images(n, shape=SHAPE):
    """Random images (n, c, height, width), bytes."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(256, (n, *shape), generator=generator, dtype=torch.uint8).numpy()


def own_run(folder, **model) -> Run:
    """A training run on features with string classes."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, seed in (("train", 0), ("test", 1)):
        X, y = arrays(seed=seed)
        np.savez(folder / f"{split}.npz", X=X, y=NAMES[y])
    data = {"class_path": "onelayer.ArraysDataModule", "init_args": {
        "train": str(folder / "train.npz"), "test": str(folder / "test.npz"), "val_size": 20,
        "batch_size": 20,
    }}  # fmt: skip
    settings = {"model": model, "data": data, "schedule": {"step_size": 6, "cycles": 1},
                "trainer": {"log_every_n_steps": 1, "enable_progress_bar": False}}  # fmt: skip
    return train_and_test(settings, folder / "version_0")


def read_npz(path):
    """Return the arrays of a file without pickles, by name."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


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
