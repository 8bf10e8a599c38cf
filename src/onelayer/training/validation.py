"""Whether Lightning's validation runs while a network trains, beside the curves."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint

from onelayer.training.blocks import overridden, overrides

MODULE_HOOKS = (
    "validation_step",
    "on_validation_start",
    "on_validation_end",
    "on_validation_epoch_start",
    "on_validation_epoch_end",
    "on_validation_batch_start",
    "on_validation_batch_end",
)
CALLBACK_HOOKS = (*MODULE_HOOKS[1:], "on_sanity_check_start", "on_sanity_check_end")
USUAL = {
    "val_check_interval": 1.0,
    "check_val_every_n_epoch": 1,
    "limit_val_batches": 1.0,
    "overfit_batches": 0.0,
    "fast_dev_run": False,
}
"""What the Trainer's flags of validation are where nobody has set them."""


def is_wanted(trainer: Any, module: Any) -> bool:
    """Whether somebody would miss Lightning's validation if only the curves measured the split.

    That is: a flag of validation has been set, the module has a validation step or hook of its
    own, a callback has a hook of validation or monitors a figure other than Curves' ``train/…``, or
    a scheduler of the learning rate monitors one.
    """
    return (
        any(getattr(trainer, name, None) != value for name, value in USUAL.items())
        or bool(overridden(module, MODULE_HOOKS))
        or any(_wants_validation(callback) for callback in trainer.callbacks)
        or any(config.monitor for config in trainer.lr_scheduler_configs)
    )


def monitored(callback: Any) -> str:
    """The figure that a callback monitors, as EarlyStopping and ModelCheckpoint call it; or ""."""
    monitor = getattr(callback, "monitor", None)
    return monitor if isinstance(monitor, str) else ""


def _wants_validation(callback: Any) -> bool:
    figure = monitored(callback)
    waits = isinstance(callback, ModelCheckpoint) and callback._save_on_train_epoch_end is False
    watches = figure != "" and not figure.startswith("train/")
    return watches or waits or overrides(callback, CALLBACK_HOOKS)
