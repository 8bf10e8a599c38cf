"""Files and arrays to tables to standardised batches.

``read`` turns files into tables, ``split_tables`` cuts and checks them, ``features`` standardises
them, ``loader`` gives batches, and ``resident`` joins all for Lightning.
"""

import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

from onelayer._compat import ensure_torchvision_operators

ensure_torchvision_operators()

_MOVED = {
    "onelayer.data.datamodule": "onelayer.data.cifar10",
    "onelayer.data.datasets": "onelayer.data.dataset",
    "onelayer.data.sources": "onelayer.data.read",
    "onelayer.data.sources.datasets": "onelayer.data.read.samples",
}


class _Moved(MetaPathFinder, Loader):
    """Modules of earlier versions, which their configs and checkpoints name."""

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in _MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return import_module(_MOVED[spec.name])

    def exec_module(self, module: ModuleType) -> None: ...


sys.meta_path.append(_Moved())
