"""Progress: one line with the work done, the time left and the accuracies so far."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from onelayer.training.observer import Observer, last_update

INTERVAL = 0.1  # seconds between two drawings, at least
FORMAT = "{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} {unit}, {remaining} left{postfix}"
ENDLESS = "{desc} {n_fmt} {unit} in {elapsed}{postfix}"  # where the end is unknown


class Bar(tqdm):  # type: ignore[misc]  # tqdm ships no types
    """A line on standard error, redrawn ten times a second at most, and cleared when it is closed.

    Nothing is drawn unless standard error is a terminal.

    Args:
        name: beginning of the line.
        total: amount of work in ``unit``; infinity if unknown.
        unit: updates, batches, ….
        done: amount done before.
        draw: false for a process whose work another process shows.
    """

    n: int
    initial: int

    def __init__(
        self, name: str, total: float, unit: str, done: int = 0, draw: bool = True
    ) -> None:
        self._shown = 0.0  # time of the last drawing
        self.words = ""  # what several runs show in place of their own accuracies
        super().__init__(
            desc=name,
            unit=unit,
            initial=done,
            smoothing=0,  # the time left follows from the mean rate
            mininterval=INTERVAL,
            delay=1e-9,  # not before its first update
            dynamic_ncols=True,
            leave=False,
            disable=not draw or sys.stderr is None or not sys.stderr.isatty(),
        )
        self.expect(name, total)

    def expect(self, name: str, total: float) -> None:
        """Set the name and the amount of work."""
        known = math.isfinite(total)
        self.desc, self.total = name, int(total) if known else None
        self.bar_format = FORMAT if known else ENDLESS

    def skip(self, done: int) -> None:
        """Set how much is done, without counting its time."""
        self.initial = self.initial + max(done - self.n, 0) if not self.disable else 0
        self.n = max(done, self.n)

    def show(self, done: int, words: Callable[[], str] = str, now: bool = False) -> None:
        """Set how much is done, and draw the line if it is time."""
        self.n = done
        if self.disable or not (now or time.monotonic() - self._shown >= INTERVAL):
            return
        self._shown = time.monotonic()
        self.last_print_t = self._time()  # else tqdm would not clear the line
        self.set_postfix_str(words())  # which draws


def clear_bars() -> None:
    """Clear the lines of all bars. Each is drawn again at its next update."""
    for bar in list(getattr(Bar, "_instances", ())):
        if not bar.disable:
            bar.clear()


class ProgressLine(ProgressBar, Observer):
    """Draws one line: updates done of all, the time left, accuracy on training and validation.

    The accuracies are those that Curves measured last. The bar never ends a block of updates: it is
    drawn at the end of blocks.

    Args:
        name: the beginning of the line; by default fit, validate, test or predict.
        bar: a bar of several training runs, which counts the updates of them all.
    """

    def __init__(self, name: str = "", bar: Bar | None = None) -> None:
        super().__init__()
        self.name, self.bar = name, bar
        self._shared, self._enabled = bar is not None, True
        self._start, self._before = 0, 0  # updates at the start: of this run, and on the bar

    def disable(self) -> None:
        """Draw nothing."""
        self._enabled = False

    def enable(self) -> None:
        """Draw again."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the line."""
        clear_bars()
        print(*args, **kwargs)

    # ---- fit

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note where the run begins. Nothing is drawn yet: warnings of the start stand above."""
        self._start = self._before = trainer.global_step
        if self.bar is not None:
            self._before = self.bar.n
        elif self._enabled:
            end = last_update(trainer)
            total = end if end > 0 else math.inf
            self.bar = Bar(self.name or "fit", total, "updates", self._start)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw the line if it is time."""
        self._draw(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the last update, and clear the line."""
        self._draw(trainer, now=True)
        self._close()

    def _draw(self, trainer: Trainer, now: bool = False) -> None:
        if self.bar is not None and self._enabled:
            done = self._before + trainer.global_step - self._start
            self.bar.show(done, lambda: self._words(trainer), now)

    def _words(self, trainer: Any) -> str:
        if self._shared and self.bar is not None:
            return self.bar.words
        metrics = trainer.progress_bar_metrics
        return ", ".join(
            f"{split} {100 * float(accuracy):.2f} %"
            for split in ("train", "val")
            if (accuracy := metrics.get(f"{split}/accuracy")) is not None
        )

    # ---- validate, test, predict

    def _start_batches(self, name: str, batches: Any) -> None:
        if self._enabled and not self._shared:
            total = sum(batches) if isinstance(batches, list) else batches
            self.bar = Bar(name, total, "batches")

    def _count_batch(self) -> None:
        if self.bar is not None and not self._shared:
            self.bar.update()

    def on_validation_start(self, trainer: Any, pl_module: LightningModule) -> None:
        """Draw a line of its own, unless a training run has one."""
        if trainer.state.fn == "validate":
            self._start_batches("validate", trainer.num_val_batches)

    def on_validation_batch_end(self, trainer: Any, *args: Any, **kwargs: Any) -> None:
        """Count a batch."""
        if trainer.state.fn == "validate":
            self._count_batch()

    def on_validation_end(self, trainer: Any, pl_module: LightningModule) -> None:
        """Clear the line."""
        if trainer.state.fn == "validate":
            self._close()

    def on_test_start(self, trainer: Any, pl_module: LightningModule) -> None:
        """Draw the line."""
        self._start_batches("test", trainer.num_test_batches)

    def on_test_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Count a batch."""
        self._count_batch()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear the line."""
        self._close()

    def on_predict_start(self, trainer: Any, pl_module: LightningModule) -> None:
        """Draw the line."""
        self._start_batches("predict", trainer.num_predict_batches)

    def on_predict_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Count a batch."""
        self._count_batch()

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Clear the line."""
        self._close()

    # ---- the line

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Clear the line."""
        self._close()

    def _close(self) -> None:
        if self.bar is not None and not self._shared:
            self.bar.close()
            self.bar = None
