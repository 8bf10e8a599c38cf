"""Progress: a bar that counts updates."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm.auto import tqdm


class Progress(ProgressBar):
    """Updates done of those to do, and the accuracies last measured.

    Lightning's own bars count batches of an epoch, which here are blocks of updates.

    Args:
        title: what stands before the bar.
    """

    def __init__(self, title: str = "train") -> None:
        super().__init__()
        self.title = title
        self._bar: tqdm[Any] | None = None
        self._enabled = True

    def disable(self) -> None:
        """Lightning's switch for the ranks that stay silent."""
        self._enabled = False

    def enable(self) -> None:
        """Lightning's switch."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar at the update that training starts from."""
        total = trainer.estimated_stepping_batches
        self._bar = tqdm(
            total=int(total) if total != float("inf") else None,
            initial=trainer.global_step,
            desc=self.title,
            unit=" updates",
            disable=not self._enabled,
            mininterval=0.5,
            dynamic_ncols=True,
        )

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move to the number of updates done."""
        if self._bar is None or self._bar.disable:
            return
        metrics = trainer.callback_metrics
        shown = {k: f"{float(metrics[k]):.3f}" for k in sorted(metrics) if k.endswith("accuracy")}
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(trainer.global_step - self._bar.n)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Close the bar, so that the message stands on its own line."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def next_look(self, step: int) -> int | None:
        """Whatever block comes is fine."""
        return None
