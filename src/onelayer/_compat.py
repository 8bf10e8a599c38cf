"""Workarounds for pairs of installed packages that do not work together."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.library import Library

# The operators that torchvision describes while it is imported.
_DESCRIBED_AT_IMPORT = ("nms", "qnms")
_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"

# torch withdraws a library's declarations when the object that made them is freed.
_declarations: Library | None = None


def share_cores() -> None:
    """Let OpenMP's threads sleep soon while they wait for each other. Call it before torch loads.

    By default they spin, and a second process on the same cores then slows training twentyfold.
    Asleep at once, each of the many short parallel regions of an update waits to be woken: 1.6
    times as long. A short spin, some 5 microseconds, has the better part of both.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")


class _Watch:
    """A finder of modules that finds none, and declares the operators before torchvision loads."""

    busy = False

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        begun = getattr(getattr(sys.modules.get("torch"), "__spec__", None), "_initializing", False)
        if name == "torchvision" and not self.busy and not begun:
            self.busy = True
            try:
                ensure_torchvision_operators()
            finally:
                self.busy = False


def watch_torchvision() -> None:
    """Call :func:`ensure_torchvision_operators` when something looks for torchvision.

    Until then it costs nothing, and torch is not imported.
    """
    if not any(type(finder).__name__ == _Watch.__name__ for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch())


def ensure_torchvision_operators() -> None:
    """Make ``import torchvision`` possible where its compiled operators cannot be loaded.

    A CPU build of torch beside a CUDA build of torchvision, a pair that pip makes by itself,
    leaves the compiled library unloadable, and then importing torchvision, torchmetrics or
    lightning dies with "operator torchvision::nms does not exist". Declaring the operators that
    are described at import, without kernels, is enough for images, data sets and transforms;
    calling one still fails, and says so.

    Does nothing where torchvision works, is absent or is imported already. Call it before the first
    import of any of the three; calling it again costs nothing. It imports torch.
    """
    global _declarations
    if _declarations is not None or "torchvision" in sys.modules:
        return
    spec = importlib.util.find_spec("torchvision")  # finds, does not import
    if spec is None:
        return

    import torch

    for folder in spec.submodule_search_locations or ():
        # _C.so, _C.pyd, _C_stable.so (from torchvision 0.29), _C.cpython-….so
        for library in sorted(Path(folder).glob("_C*")):
            if library.suffix in {".so", ".pyd", ".dylib"}:
                try:
                    torch.ops.load_library(library)
                except (ImportError, OSError, RuntimeError):
                    continue  # judged below, by what is missing

    if not hasattr(torch.ops.torchvision, "nms"):
        _declarations = torch.library.Library("torchvision", "FRAGMENT")
        for name in _DESCRIBED_AT_IMPORT:
            _declarations.define(name + _SIGNATURE)
