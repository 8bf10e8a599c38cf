"""The update as a CUDA graph: all its kernels in one launch.

On a GPU a kernel of these sizes is done before the host has launched the next one: an update takes
as long as its dozen launches from Python do. A graph records them once and launches them together.
What it records is :func:`onelayer.core.formulas.descend_` itself; there is no second update.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from onelayer.core import formulas
from onelayer.core.errors import first_line


def has_graphs(device: torch.device) -> bool:
    """Whether work on this device can be recorded."""
    return device.type == "cuda"


def record(work: Callable[[], None]) -> Callable[[], None]:
    """Do the work once, and return what does it again: the same kernels on the same memory.

    Args:
        work: without arguments, on the current GPU. It must not wait for a value, nor read numbers
            that change from one time to the next but in tensors that stay where they are.

    Raises:
        RuntimeError: the work cannot be recorded.
    """
    # Outermost the stream as it is: where recording fails, torch does not go back to it.
    with torch.cuda.stream(torch.cuda.current_stream()):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            work()  # what a library sets up on its first call cannot be recorded
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on using the GPU meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            work()
    return graph.replay


class RecordedUpdate:
    """:func:`formulas.descend_` for batches of one shape, recorded.

    Nothing but the batch and the rate may change: they are copied to where the graph reads them.
    The recording is compared with what it recorded before it is used.

    Args:
        X: a batch of that shape and dtype, (n, d).
        y: (n,).
        parameters: updated in place, where they lie now.
        l2: λ, number or (m,).

    Raises:
        RuntimeError: the update cannot be recorded, or does something else when it is replayed.
    """

    def __init__(
        self, X: Tensor, y: Tensor, parameters: formulas.Parameters, l2: formulas.Scalar
    ) -> None:
        self.X, self.y, self.lr = X.clone(), y.clone(), parameters[0].new_ones(1)
        start = [p.clone() for p in parameters]

        def set_to_start() -> None:
            for p, value in zip(parameters, start, strict=True):
                p.copy_(value)

        try:
            self._replay = record(
                lambda: formulas.descend_(self.X, self.y, parameters, l2, self.lr)
            )
            expected = [p.clone() for p in parameters]
            set_to_start()
            self._replay()
            for p, value in zip(parameters, expected, strict=True):
                if not torch.allclose(p, value, rtol=1e-4, atol=1e-5, equal_nan=True):
                    raise RuntimeError("what it replays is not what it recorded")
        finally:
            set_to_start()

    def __call__(self, X: Tensor, y: Tensor, lr: formulas.Scalar) -> None:
        """Update every member by the gradient of this batch, times ``lr`` (one for all)."""
        self.X.copy_(X)
        self.y.copy_(y)
        self.lr.fill_(lr)
        self._replay()


class Graphs:
    """:func:`formulas.descend_` that records a graph for each shape of batch it meets.

    Where an update cannot be recorded it warns once and launches kernel by kernel. ``l2`` must
    stay the same from call to call.
    """

    def __init__(self) -> None:
        self._updates: dict[Any, Callable[..., None]] = {}

    def __reduce__(self) -> tuple[type[Graphs], tuple[()]]:
        """Copied or pickled without its graphs, which are of this process and these parameters."""
        return Graphs, ()

    def __call__(
        self,
        X: Tensor,
        y: Tensor,
        parameters: formulas.Parameters,
        l2: formulas.Scalar,
        lr: formulas.Scalar,
    ) -> None:
        """One SGD update in place."""
        key = X.shape, X.dtype, *(p.data_ptr() for p in parameters)
        if key not in self._updates:
            self._updates[key] = _recorded(X, y, parameters, l2)
        self._updates[key](X, y, lr=lr)


def _recorded(
    X: Tensor, y: Tensor, parameters: formulas.Parameters, l2: formulas.Scalar
) -> Callable[..., None]:
    try:
        return RecordedUpdate(X, y, parameters, l2)
    except RuntimeError as error:
        warnings.warn(
            f"no CUDA graph of the update: {first_line(error)}. Training goes on without, kernel "
            "by kernel; model.cuda_graphs=false does so from the start.",
            stacklevel=2,
        )
        return partial(formulas.descend_, parameters=parameters, l2=l2)
