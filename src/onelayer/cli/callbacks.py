"""Checks of a run's callbacks before it starts."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from onelayer.cli.sections import SHARED
from onelayer.core.errors import InputError


def refuse_doubles(ours: Sequence[Callback], asked: Sequence[Any]) -> None:
    """Raise :class:`InputError` if trainer.callbacks has one that a section sets."""
    for section, kind in SHARED.items():
        if all(any(type(c) is kind for c in callbacks) for callbacks in (ours, asked)):
            raise InputError(
                f"trainer.callbacks has a {kind.__name__}, and {section} is another. Set "
                f"{section}.… instead."
            )


def refuse_unknown_monitors(
    callbacks: Sequence[Callback], splits: Sequence[str], names: Sequence[str]
) -> None:
    """Raise :class:`InputError` if a callback monitors a metric that is not measured.

    Lightning fails only after the first epoch. A callback of the user's own may log any metric, so
    then nothing is refused.
    """
    if not all(type(c).__module__.startswith(("lightning.", "onelayer.")) for c in callbacks):
        return
    legal = [f"{split}/{name}" for split in splits for name in names]
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
