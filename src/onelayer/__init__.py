"""One-layer softmax networks, with checkable gradients and cyclical rates.

The names below are loaded when they are first used: ``import onelayer`` by itself imports neither
torch nor Lightning nor torchvision.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from onelayer._compat import share_cores, watch_torchvision

if TYPE_CHECKING:
    from onelayer.core.autograd import hidden_cost as hidden_cost
    from onelayer.core.autograd import linear_cost as linear_cost
    from onelayer.core.cycles import exp_range as exp_range
    from onelayer.core.cycles import triangular as triangular
    from onelayer.core.cycles import triangular2 as triangular2
    from onelayer.core.optimum.solve import solve as solve
    from onelayer.data.arrays import ArraysDataModule as ArraysDataModule
    from onelayer.data.cifar10 import CIFAR10DataModule as CIFAR10DataModule
    from onelayer.data.dataset import DatasetDataModule as DatasetDataModule
    from onelayer.data.loader import ResidentLoader as ResidentLoader
    from onelayer.data.read.samples import HuggingFace as HuggingFace
    from onelayer.study.figures import PlotCurves as PlotCurves
    from onelayer.study.finished import Run as Run
    from onelayer.study.run import train_and_test as train_and_test
    from onelayer.training.checkpoint import load_network as load_network
    from onelayer.training.curves import Curves as Curves
    from onelayer.training.module import OneLayer as OneLayer
    from onelayer.training.observer import Observer as Observer
    from onelayer.training.range import RangeTest as RangeTest
    from onelayer.training.results import Results as Results
    from onelayer.training.saving import Checkpoints as Checkpoints
    from onelayer.training.saving import Snapshots as Snapshots
    from onelayer.training.schedule import TriangularLR as TriangularLR

    __version__: str

_HOMES = {
    "ArraysDataModule": "data.arrays",
    "CIFAR10DataModule": "data.cifar10",
    "Checkpoints": "training.saving",
    "DatasetDataModule": "data.dataset",
    "Curves": "training.curves",
    "HuggingFace": "data.read.samples",
    "Observer": "training.observer",
    "OneLayer": "training.module",
    "PlotCurves": "study.figures",
    "RangeTest": "training.range",
    "ResidentLoader": "data.loader",
    "Run": "study.finished",
    "Results": "training.results",
    "Snapshots": "training.saving",
    "TriangularLR": "training.schedule",
    "exp_range": "core.cycles",
    "hidden_cost": "core.autograd",
    "linear_cost": "core.autograd",
    "load_network": "training.checkpoint",
    "solve": "core.optimum.solve",
    "train_and_test": "study.run",
    "triangular": "core.cycles",
    "triangular2": "core.cycles",
}

watch_torchvision()
share_cores()  # before anything loads torch: threads of OpenMP read it once

__all__ = [*_HOMES, "__version__"]


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        value: object = version("onelayer")
    elif name in _HOMES:
        value = getattr(importlib.import_module(f"onelayer.{_HOMES[name]}"), name)
    else:
        raise AttributeError(f"module 'onelayer' has no attribute {name!r}")
    globals()[name] = value  # the next use does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
