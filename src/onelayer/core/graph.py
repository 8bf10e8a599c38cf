"""The update as a CUDA graph: its kernels in one launch.

On a GPU a kernel of these sizes is done before the host has launched the next one: an update takes
as long as its dozen launches from Python do. A graph records them once and launches them together.
What it records is :func:`onelayer.core.formulas.descend_` itself; there is no second update.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
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
    here, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(here)
    try:
        with torch.cuda.stream(side):
            work()  # what a library sets up on its first call cannot be recorded
    finally:
        here.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # A stream of its own: torch's for recordings is on whichever GPU recorded first. Other threads
    # may go on using the GPU. And where recording fails, torch does not go back to where it was.
    recording = torch.cuda.graph(
        graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"
    )
    with torch.cuda.stream(here), recording:
        work()
    return graph.replay


class RecordedUpdate:
    """:func:`formulas.descend_` for batches of one shape, recorded.

    Nothing but the batch and the rate may change: they are copied to where the graph reads them.
    The recording is compared with what it recorded before it is used. Where there is none to be
    had, a warning says so, and the same update is launched kernel by kernel.

    Args:
        X: a batch of that shape and dtype, (n, d).
        y: (n,).
        parameters: updated in place, where they lie now.
        l2: λ, number or (m,).
    """

    def __init__(
        self, X: Tensor, y: Tensor, parameters: formulas.Parameters, l2: formulas.Scalar
    ) -> None:
        self.X, self.y, self.lr = X.clone(), y.clone(), parameters[0].new_ones(1)
        self.parameters, self.l2 = parameters, l2  # a graph does not keep what it reads
        self._replay: Callable[[], None] | None = None
        try:
            self._replay = self._recorded()
        except RuntimeError as error:
            warnings.warn(
                f"no CUDA graph of the update: {first_line(error)}. Training goes on without, "
                "kernel by kernel; model.cuda_graphs=false does so from the start.",
                stacklevel=3,
            )

    def __call__(self, X: Tensor, y: Tensor, lr: formulas.Scalar) -> None:
        """Update every member by the gradient of this batch, times ``lr`` (one for all)."""
        self.X.copy_(X)
        self.y.copy_(y)
        self.lr.fill_(lr)
        (self._replay or self._descend)()

    def _descend(self) -> None:
        formulas.descend_(self.X, self.y, self.parameters, self.l2, self.lr)

    def _recorded(self) -> Callable[[], None]:
        start = [p.clone() for p in self.parameters]
        try:
            replay = record(self._descend)
            expected = [p.clone() for p in self.parameters]
            self._set(start)
            replay()
            for p, value in zip(self.parameters, expected, strict=True):
                if not torch.allclose(p, value, rtol=1e-4, atol=1e-5, equal_nan=True):
                    raise RuntimeError("what it replays is not what it recorded")
        finally:
            self._set(start)
        return replay

    def _set(self, values: Sequence[Tensor]) -> None:
        for p, value in zip(self.parameters, values, strict=True):
            p.copy_(value)


class Graphs:
    """:func:`formulas.descend_` that records a graph for each shape of batch it meets."""

    def __init__(self) -> None:
        self._updates: dict[Any, RecordedUpdate] = {}

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
        where = [t.data_ptr() if isinstance(t, Tensor) else t for t in (*parameters, l2)]
        key = X.shape, X.dtype, *where
        if key not in self._updates:
            self._updates[key] = RecordedUpdate(X, y, parameters, l2)
        self._updates[key](X, y, lr)
