"""One-layer softmax networks on CIFAR-10, with checkable gradients and cyclical rates.

The names below are loaded when they are first used: ``import onelayer`` by itself imports neither
torch nor Lightning nor torchvision.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onelayer.core.autograd import hidden_cost, linear_cost
    from onelayer.core.schedule import exp_range, triangular, triangular2
    from onelayer.data.datamodule import CIFAR10DataModule
    from onelayer.training.blocks import Observer
    from onelayer.training.checkpoint import Checkpoints
    from onelayer.training.curves import Curves
    from onelayer.training.module import OneLayer
    from onelayer.training.results import Results
    from onelayer.training.schedule import TriangularLR

    __version__: str

__all__ = [
    "CIFAR10DataModule",
    "Checkpoints",
    "Curves",
    "Observer",
    "OneLayer",
    "Results",
    "TriangularLR",
    "__version__",
    "exp_range",
    "hidden_cost",
    "linear_cost",
    "triangular",
    "triangular2",
]

_HOMES = {
    "CIFAR10DataModule": "onelayer.data.datamodule",
    "Checkpoints": "onelayer.training.checkpoint",
    "Curves": "onelayer.training.curves",
    "OneLayer": "onelayer.training.module",
    "Observer": "onelayer.training.blocks",
    "Results": "onelayer.training.results",
    "TriangularLR": "onelayer.training.schedule",
    "exp_range": "onelayer.core.schedule",
    "hidden_cost": "onelayer.core.autograd",
    "linear_cost": "onelayer.core.autograd",
    "triangular": "onelayer.core.schedule",
    "triangular2": "onelayer.core.schedule",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        value: object = version("onelayer")
    elif name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'onelayer' has no attribute {name!r}")
    globals()[name] = value  # the next use does not come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
