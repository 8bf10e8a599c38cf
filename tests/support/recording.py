"""What a CUDA graph does, on a CPU: operations recorded once, run again on the same memory.

Like a graph it sees no Python: numbers that were passed by value are those of the recording.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# What makes the host wait, or copies from the host: not permitted while a GPU records.
FORBIDDEN = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "lift_fresh"}


class Recording(TorchDispatchMode):
    """Runs and records the operations inside of the context."""

    def __init__(self):
        super().__init__()
        self.operations = []
        self.changed = {}  # memory that is not the recording's own, as it was before

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ in FORBIDDEN:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        for argument, given in zip(func._schema.arguments, args, strict=False):
            self._keep(argument, given)
        for argument in func._schema.arguments:
            self._keep(argument, kwargs.get(argument.name))
        result = func(*args, **kwargs)
        self.operations.append((func, args, kwargs, result))
        return result

    def _keep(self, argument, given):
        if argument.alias_info and argument.alias_info.is_write and isinstance(given, Tensor):
            self.changed.setdefault(given.data_ptr(), (given, given.clone()))

    def undo(self):
        """A GPU that records runs nothing."""
        for tensor, value in self.changed.values():
            tensor.copy_(value)

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, old in self.operations:
            given = {
                t.untyped_storage().data_ptr()
                for t in tree_leaves((args, kwargs))
                if isinstance(t, Tensor)
            }
            for to, result in zip(
                tree_leaves(old), tree_leaves(func(*args, **kwargs)), strict=True
            ):
                if to.untyped_storage().data_ptr() not in given:  # else it lies there already
                    to.copy_(result)


def record(work: Callable[[], None]) -> Callable[[], None]:
    """Stands for onelayer.core.update.record."""
    work()
    with Recording() as recording:
        work()
    recording.undo()
    return recording.replay
