"""Checks of a run's callbacks before it starts."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from onelayer.core.errors import InputError
from onelayer.training.records import QUANTITIES

SECTIONS = {
    "TriangularLR": "schedule",
    "Curves": "curves",
    "Checkpoints": "checkpoints",
    "Snapshots": "snapshots",
    "Results": "test",
}
"""Callbacks with a section of their own in a config."""


def refuse_doubles(ours: Iterable[Callback], asked: Iterable[Any]) -> None:
    """Raise :class:`InputError` if trainer.callbacks has one that a section sets."""
    names = {type(callback).__name__ for callback in ours} & SECTIONS.keys()
    for callback in asked:
        name = type(callback).__name__
        if name in names:
            raise InputError(
                f"trainer.callbacks has a {name}, and {SECTIONS[name]} is another: set "
                f"{SECTIONS[name]}.… instead."
            )


def refuse_unknown_monitors(callbacks: Sequence[Callback], splits: Sequence[str]) -> None:
    """Raise :class:`InputError` if a callback monitors a metric that is not measured.

    Lightning fails only after the first epoch. A callback of the user's own may log any metric, so
    then nothing is refused.
    """
    if not all(type(c).__module__.startswith(("lightning.", "onelayer.")) for c in callbacks):
        return
    legal = [f"{split}/{name}" for split in splits for name in QUANTITIES]
    for callback in callbacks:
        if not isinstance(callback, EarlyStopping | ModelCheckpoint):
            continue
        name = callback.monitor
        if name is None or name in legal or name.startswith("lr-"):  # of a LearningRateMonitor
            continue
        near = difflib.get_close_matches(name.replace("_", "/"), legal, n=1)
        hint = f"\nDid you mean {near[0]}?" if near else ""
        raise InputError(
            f"{type(callback).__name__} monitors {name!r}, which is not measured. What is: "
            f"{', '.join(legal)}.{hint}"
        )
