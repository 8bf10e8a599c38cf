"""TriangularLR: the learning rate of every update, for any LightningModule."""

from __future__ import annotations

from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from onelayer.core.checks import MOST_UPDATES, check_same, check_whole
from onelayer.core.cycles import STEP_SIZE, Schedule, cyclical
from onelayer.core.errors import InputError
from onelayer.training.observer import Observer

Mode = Literal["triangular", "triangular2", "exp_range"]
EXTEND = (
    "A run goes on with the rates that it began with. Resume with the run's own schedule, or start "
    "a new run.\nTo train for longer, raise schedule.cycles or trainer.max_steps."
)


class ScheduledLR(Observer):
    """Sets the rate of every update, a function of ``trainer.global_step`` alone.

    The rate of the next update is set when a fit starts and after each batch, so every callback
    finds it in ``on_train_batch_start``. It is logged as ``lr`` every ``log_every_n_steps``
    updates. A subclass names its arguments, and a resumed run must have the same. If it sets
    ``cycle``, Curves and Snapshots follow its cycles.

    Args:
        schedule: from the number of updates done to the rate of the next.

    Attributes:
        arguments: names of the attributes that decide the rates, which checkpoints keep.
        length: those of them that only say when the rates end: a resumed run may be longer.
    """

    arguments: tuple[str, ...] = ()
    length: tuple[str, ...] = ()

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._saved: dict[str, Any] = {}  # arguments of the run that is resumed
        self._logged = 0  # the update whose rate was logged last
        self._set: float | None = None  # the rate that the optimizers were given
        self._warned = False

    def rate(self, step: int) -> float:
        """Return the learning rate η of the update after ``step`` updates."""
        return self._schedule(step)

    def state_dict(self) -> dict[str, Any]:
        """Return the arguments: a run is resumed with its own."""
        return {name: getattr(self, name) for name in self.arguments}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the checkpoint's arguments for ``on_fit_start`` (evaluation needs no schedule)."""
        self._saved = state_dict

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse other rates than a resumed run's.

        Raises:
            InputError: naming the argument and both values.
        """
        here = self.state_dict()
        free = dict.fromkeys(self.length)
        before = (self._saved or here) | free
        check_same("the checkpoint", here | free, before, EXTEND, section="schedule")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set and log the first rate.

        Raises:
            InputError: the optimizer's parameter groups have different rates.
        """
        rates = sorted({float(group["lr"]) for group in _groups(trainer)})
        if len(rates) > 1:
            raise InputError(
                f"{type(self).__name__} sets one learning rate, but the optimizer's parameter "
                f"groups have {len(rates)}: {', '.join(f'{rate:g}' for rate in rates[:4])}.\n"
                "Give every group the same rate, or use a scheduler of torch's that takes a list, "
                "such as CyclicLR, with the interval 'step'."
            )
        self._set_rate(trainer)
        self._logged = trainer.global_step
        if trainer.global_step == 0:
            self._log_rate(trainer, 0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Set the rate of the next update; log those that are due."""
        self._warn_of_others(trainer)
        self._set_rate(trainer)
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every:
            first = (self._logged // every + 1) * every
            for step in range(first, trainer.global_step + 1, every):
                self._log_rate(trainer, step)
        self._logged = trainer.global_step

    def _set_rate(self, trainer: Trainer) -> None:
        self._set = self.rate(trainer.global_step)
        for group in _groups(trainer):
            group["lr"] = self._set

    def _warn_of_others(self, trainer: Trainer) -> None:
        """Warn once if a rate is not the one that was set."""
        other = next((float(g["lr"]) for g in _groups(trainer) if g["lr"] != self._set), None)
        if other is None or self._warned:
            return
        self._warned = True
        suspects = [type(config.scheduler).__name__ for config in trainer.lr_scheduler_configs]
        who = " and ".join(dict.fromkeys(suspects)) or "another callback or the module"
        ours = type(self).__name__
        rank_zero_warn(
            f"two callbacks set the learning rate: {ours} had set {self._set:.4g}, and {who} "
            f"changed it to {other:.4g}. {ours} sets it again after every update. Keep one of "
            "them."
        )

    def _log_rate(self, trainer: Trainer, step: int) -> None:
        for logger in trainer.loggers:
            logger.log_metrics({"lr": self.rate(step)}, step=step)


class TriangularLR(ScheduledLR):
    """Cyclical learning rate (Smith, arXiv:1506.01186), set before every update.

    The rate is a function of ``trainer.global_step`` alone, so a resumed run needs no state. It is
    logged as ``lr`` every ``log_every_n_steps`` updates. The values equal those of
    ``torch.optim.lr_scheduler.CyclicLR``, which also changes the momentum and which Lightning steps
    once per epoch by default.

    Args:
        base_lr: η_min, the rate at the ends of a cycle.
        max_lr: η_max, the rate in its middle; equal to base_lr for a constant rate.
        step_size: n_s, updates in half a cycle; default 500. On the command line, with your own
            data, the default makes all cycles together 20 epochs, and at least 1000 updates.
        cycles: number of cycles; ``total_steps`` follows. The command line sets
            trainer.max_steps to it.
        mode: triangular keeps the amplitude; triangular2 halves it each cycle; exp_range
            multiplies it with gamma at each update.
        gamma: the factor of exp_range, in (0, 1].

    Raises:
        InputError: naming the argument and its range.
    """

    arguments = ("base_lr", "max_lr", "step_size", "cycles", "mode", "gamma")
    length = ("cycles",)

    def __init__(
        self,
        base_lr: float = 1e-5,
        max_lr: float = 1e-1,
        step_size: int | None = None,
        cycles: int = 1,
        mode: Mode = "triangular",
        gamma: float = 1.0,
    ) -> None:
        step_size = STEP_SIZE if step_size is None else step_size
        super().__init__(cyclical(mode, base_lr, max_lr, step_size, gamma))
        check_whole("cycles", cycles, at_least=1, at_most=MOST_UPDATES)
        self.cycle: int = 2 * step_size  # updates
        self.base_lr, self.max_lr, self.step_size = base_lr, max_lr, step_size
        self.cycles, self.mode, self.gamma = cycles, mode, gamma
        self._trained = 0  # updates of the run that is resumed

    @property
    def total_steps(self) -> int:
        """Number of updates in all cycles, 2 n_s times cycles."""
        return self.cycle * self.cycles

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note how many updates the checkpoint has."""
        self._trained = checkpoint.get("global_step", 0)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse other rates than a resumed run's; warn about a stop in mid-cycle.

        Raises:
            InputError: naming the argument and both values.
        """
        super().on_fit_start(trainer, pl_module)
        here = self.state_dict()
        if self.total_steps < self._trained and here != (self._saved or here):
            raise InputError(
                f"schedule.cycles is {self.cycles}, which ends after {self.total_steps} updates, "
                f"but the checkpoint has {self._trained}.\n"
                f"Choose at least {-(-self._trained // self.cycle)}, or start a new run."
            )
        if trainer.max_steps > 0 and not _counts_epochs(trainer):
            self._warn_in_mid_cycle(trainer.max_steps)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set and log the first rate; warn if epochs end the run in mid-cycle."""
        super().on_train_start(trainer, pl_module)
        if _counts_epochs(trainer):
            steps = trainer.estimated_stepping_batches
            if steps != float("inf"):
                self._warn_in_mid_cycle(int(steps))

    def _warn_in_mid_cycle(self, steps: int) -> None:
        if not steps % self.cycle:
            return
        whole = [n * self.cycle for n in (steps // self.cycle, steps // self.cycle + 1) if n]
        rank_zero_warn(
            f"training stops in mid-cycle: {steps} updates are {steps / self.cycle:g} cycles of "
            f"{self.cycle} (2 * step_size), and the rate is then {self.rate(steps):.4g}, not "
            f"{self.base_lr:g}. Whole cycles: max_steps={' or '.join(map(str, whole))}."
        )


def _groups(trainer: Trainer) -> list[dict[str, Any]]:
    return [group for optimizer in trainer.optimizers for group in optimizer.param_groups]


def _counts_epochs(trainer: Trainer) -> bool:
    """Return whether epochs may end the training."""
    return (trainer.max_epochs or -1) > 0
