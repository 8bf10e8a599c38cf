"""TriangularLR: the learning rate of every update, for any LightningModule."""

from __future__ import annotations

from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from onelayer.core.checks import check_whole
from onelayer.core.errors import InputError
from onelayer.core.schedule import check_cycle, exp_range, triangular, triangular2

Mode = Literal["triangular", "triangular2", "exp_range"]


class TriangularLR(Callback):
    """Cyclical learning rate (Smith, arXiv:1506.01186), set before every update.

    The rate is a function of ``trainer.global_step`` alone, so a resumed run needs no state. It is
    logged as ``lr``. It replaces ``torch.optim.lr_scheduler.CyclicLR`` (whose values it equals)
    without that class's changes to momentum and without Lightning's stepping it once an epoch.

    Args:
        base_lr: η_min, the rate at the ends of a cycle.
        max_lr: η_max, the rate in its middle; equal to base_lr for a constant rate.
        step_size: n_s, updates in half a cycle.
        cycles: how many cycles to train; ``total_steps`` follows. The command line sets
            trainer.max_steps to it.
        mode: triangular keeps the amplitude; triangular2 halves it each cycle; exp_range
            multiplies it with gamma at each update.
        gamma: the factor of exp_range, in (0, 1].

    Raises:
        InputError: naming the argument and its range.
    """

    def __init__(
        self,
        base_lr: float = 1e-5,
        max_lr: float = 1e-1,
        step_size: int = 500,
        cycles: int = 1,
        mode: Mode = "triangular",
        gamma: float = 1.0,
    ) -> None:
        check_cycle(base_lr, max_lr, step_size, gamma)
        check_whole("cycles", cycles, at_least=1)
        if mode not in ("triangular", "triangular2", "exp_range"):
            raise InputError(f"mode must be triangular, triangular2 or exp_range, not {mode!r}.")
        self.base_lr, self.max_lr, self.step_size = base_lr, max_lr, step_size
        self.cycles, self.mode, self.gamma = cycles, mode, gamma
        self._saved: dict[str, Any] = {}

    @property
    def cycle(self) -> int:
        """Updates in one cycle, 2 n_s."""
        return 2 * self.step_size

    @property
    def total_steps(self) -> int:
        """Updates in all cycles, 2 n_s times cycles."""
        return self.cycle * self.cycles

    def rate(self, step: int) -> float:
        """The learning rate η of the update after ``step`` updates."""
        if self.mode == "triangular2":
            return triangular2(step, self.base_lr, self.max_lr, self.step_size)
        if self.mode == "exp_range":
            return exp_range(step, self.base_lr, self.max_lr, self.step_size, self.gamma)
        return triangular(step, self.base_lr, self.max_lr, self.step_size)

    def state_dict(self) -> dict[str, Any]:
        """The arguments: a run is resumed with its own."""
        names = ("base_lr", "max_lr", "step_size", "cycles", "mode", "gamma")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the checkpoint's arguments for ``on_fit_start`` (evaluation needs no schedule)."""
        self._saved = state_dict

    def before_update(self, optimizer: Optimizer, step: int) -> None:
        """Set every param group to the rate of update ``step``."""
        lr = self.rate(step)
        for group in optimizer.param_groups:
            group["lr"] = lr

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse a second master of the rate or another schedule than a resumed run's.

        Warn about a stop in mid-cycle.

        Raises:
            InputError: naming what sets the rate twice, or the argument and both values.
        """
        for name, value in self.state_dict().items():
            if self._saved.get(name, value) != value:
                raise InputError(
                    f"schedule.{name} is {value!r} here but {self._saved[name]!r} in the "
                    "checkpoint: resume with the run's own schedule, or start a new run."
                )
        if trainer.lr_scheduler_configs:
            raise InputError(
                "TriangularLR and an lr_scheduler would both set the rate: keep one of them."
            )
        if trainer.max_steps > 0 and not _counts_epochs(trainer):
            self._warn_in_mid_cycle(trainer.max_steps)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn about a stop in mid-cycle where epochs, now countable, decide the length.

        The first rate is logged here.
        """
        if trainer.global_step == 0:
            self._log_rate(trainer)
        if _counts_epochs(trainer):
            self._warn_in_mid_cycle(int(trainer.estimated_stepping_batches))

    def _warn_in_mid_cycle(self, steps: int) -> None:
        if not steps % self.cycle:
            return
        whole = [n * self.cycle for n in (steps // self.cycle, steps // self.cycle + 1) if n]
        rank_zero_warn(
            f"training stops in mid-cycle: {steps} updates are {steps / self.cycle:g} cycles of "
            f"{self.cycle} (2 * step_size), and the rate is then {self.rate(steps):.4g}, not "
            f"{self.base_lr:g}. Whole cycles: max_steps={' or '.join(map(str, whole))}."
        )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the rate (a module that updates several times a batch asks again itself)."""
        for optimizer in trainer.optimizers:
            self.before_update(optimizer, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the rate; there is no scheduler for LearningRateMonitor to read."""
        if trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._log_rate(trainer)

    def _log_rate(self, trainer: Trainer) -> None:
        step = trainer.global_step
        for logger in trainer.loggers:
            logger.log_metrics({"lr": self.rate(step)}, step=step)

    def next_look(self, step: int) -> int | None:
        """No update is of more interest than another (see OneLayer.next_stop)."""
        return None


def _counts_epochs(trainer: Trainer) -> bool:
    """Whether epochs may end the training."""
    return (trainer.max_epochs or -1) > 0
