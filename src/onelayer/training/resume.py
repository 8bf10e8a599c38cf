"""Resume: the position of a run in its data, read from Lightning's counters and restored.

Lightning resumes by comparing the four counters of its loops. They depend on the hook that wrote
the checkpoint, and for several hooks Lightning repeats or skips batches, or skips validations. So
the position is read from the counters once (:func:`place_of`). Then the counters are set to one of
two positions: between two epochs, or after a batch within an epoch.
"""

from __future__ import annotations

import random
import warnings
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from lightning.fabric.utilities.data import _set_sampler_epoch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from onelayer.core.checks import check_same, is_number
from onelayer.core.errors import InputError
from onelayer.data.adapter import generators
from onelayer.data.loader import ResidentLoader
from onelayer.training.observer import callbacks_of

KEY = "resume"
"""Key of the state that this package adds to Lightning's checkpoints."""
EPOCHS, BATCHES, VALIDATION = (
    "epoch_progress", "epoch_loop.batch_progress", "epoch_loop.val_loop.batch_progress",
)  # fmt: skip
COUNTERS = ("ready", "started", "processed", "completed")  # of a loop's progress
_STAGE = "restarted_mid_evaluation"  # lets Lightning validate before it trains on


class Place(NamedTuple):
    """Position of a run in its data."""

    epoch: int
    """Epochs that have ended."""
    batches: int
    """Batches of the current epoch that have been trained on; 0 between two epochs."""
    last: bool
    """Whether these are all batches, and only the end of the epoch is left."""
    validated: bool
    """Whether a validation due after these batches has run."""


def place_of(loops: dict[str, Any], accumulate: int = 1) -> Place:
    """Return the position at which a checkpoint was written.

    Args:
        loops: Lightning's ``loops.fit_loop`` of the checkpoint.
        accumulate: batches per update. Batches after the last update are trained on again.

    Raises:
        InputError: the counters contradict each other.
    """
    epochs, batches = _counters(loops, EPOCHS)["current"], _counters(loops, BATCHES)["current"]
    done, last = batches["processed"], loops[BATCHES]["is_last_batch"]
    if not last:
        done -= done % accumulate
    # A fit that ends in mid-epoch (max_steps, max_time, EarlyStopping) counts the epoch as ended.
    cut = epochs["processed"] == epochs["started"] and not last and done > 0
    epoch = epochs["processed"] - cut
    between = done == 0 or (last and epochs["processed"] == epochs["started"])
    if epoch < 0 or not (between or epochs["started"] == epoch + 1):
        raise InputError(
            f"the checkpoint's counts do not agree: {epochs['started']} epochs were begun and "
            f"{epochs['processed']} ended, with {done} batches in the last.\n"
            "Resume from another checkpoint of the run, or start a new run."
        )
    validation = loops.get(VALIDATION) or {}
    validated = batches["completed"] >= batches["processed"]  # else saved in on_train_batch_end
    validated &= bool(validation.get("is_last_batch", True))
    return Place(epoch, 0 if between else done, last and not between, validated)


def settle(loops: dict[str, Any], place: Place) -> None:
    """Set the counters of a checkpoint so that Lightning resumes at this position."""
    within = place.batches > 0
    epochs, batches = _counters(loops, EPOCHS), _counters(loops, BATCHES)
    before = epochs["total"]["processed"] - epochs["current"]["processed"]
    for name, offset in (("total", before), ("current", 0)):
        begun, ended = place.epoch + within + offset, place.epoch + offset
        epochs[name] |= {"ready": begun, "started": begun, "processed": ended, "completed": ended}
    again = batches["current"]["processed"] - place.batches if within else 0
    for counters in batches["total"], batches["current"]:
        counters |= dict.fromkeys(COUNTERS, counters["processed"] - again)


def _counters(loops: dict[str, Any], name: str) -> dict[str, dict[str, int]]:
    progress: dict[str, dict[str, int]] = loops[name]
    for counters in progress["total"], progress["current"]:
        if missing := [key for key in COUNTERS if key not in counters]:
            raise InputError(f"the checkpoint's {name} has no {missing[0]}: it is damaged.")
    return progress


class Resume(Callback):
    """Resumes a run of OneLayer exactly where any Lightning checkpoint was written.

    OneLayer adds this callback. It restores what Lightning does not: the position in the data, the
    metrics that callbacks monitor, a stop by EarlyStopping, and, for loaders other than
    ResidentLoader, the random state of shuffling and augmentation.
    """

    def __init__(self) -> None:
        self._place: Place | None = None
        self._saved: dict[str, Any] = {}
        self._loaders: list[Any] = []  # the saved state of each stateful loader
        self._skipped = False  # whether a hook has ended an epoch before its last batch
        self._epoch_random: dict[str, Any] = {}  # as the epoch's batches began

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Read the position, before Lightning's loops restore their counters."""
        if trainer.state.fn != TrainerFn.FITTING:
            return
        loops = checkpoint["loops"]["fit_loop"]
        skipped = _skips(_counters(loops, BATCHES)["total"])
        self._place = place_of(loops, trainer.accumulate_grad_batches)
        settle(loops, self._place)
        self._loaders = loops.get("state_dict", {}).get("combined_loader", [])
        saved = checkpoint.get(KEY)
        self._saved = saved if isinstance(saved, dict) else {}
        self._skipped = skipped or self._saved.get("skipped") is True

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the random state that the first epoch begins with."""
        self._epoch_random = _random_state([])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set loops and loaders to the position of the checkpoint.

        Raises:
            InputError: its batches are not those that were trained on.
        """
        place, self._place = self._place, None
        if place is None or not trainer.ckpt_path:
            self._epoch_random["loaders"] = _states(_foreign_loaders(trainer))
            return
        _check_batches(trainer, place, self._skipped)
        _place_loops(trainer, place)
        self._place_loaders(trainer, place)
        metrics = self._saved.get("metrics")
        if isinstance(metrics, dict):
            numbers = {name: value for name, value in metrics.items() if is_number(value)}
            trainer.callback_metrics.update(
                {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
            )
        _stop_where_it_stopped(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note the random state just before Lightning makes the epoch's iterator."""
        resuming = getattr(trainer.fit_loop, "is_resuming", False)
        if trainer.current_epoch > 0 and not resuming and (foreign := _foreign_loaders(trainer)):
            self._epoch_random = _random_state(foreign)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the monitored metrics, and the random state of a loader that needs it."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        checkpoint[KEY] = {
            "metrics": metrics,
            "skipped": self._skipped
            or _skips(vars(trainer.fit_loop.epoch_loop.batch_progress.total)),
        }
        if foreign := _foreign_loaders(trainer):
            checkpoint[KEY] |= {"epoch": self._epoch_random, "now": _random_state(foreign)}

    def _place_loaders(self, trainer: Trainer, place: Place) -> None:
        loader = trainer.train_dataloader
        if isinstance(loader, ResidentLoader):
            state = self._loaders[0] if len(self._loaders) == 1 else {}
            if not isinstance(state, dict):
                raise InputError("the checkpoint's state of its loader is damaged.")
            here, saved = loader.shuffle, state.get("shuffle", loader.shuffle)
            both = {"shuffle": here}, {"shuffle": saved}
            check_same("the checkpoint", *both, loader.advice, section="loader")
            loader.load_state_dict(state | {"epoch": place.epoch, "position": place.batches})
        elif foreign := _foreign_loaders(trainer):
            begin = self._saved.get("epoch" if place.batches else "now")
            _restore_random(begin, foreign, trainer)
            self._epoch_random = _random_state(foreign)
            for loader in foreign:
                _set_sampler_epoch(loader, place.epoch)
            _begin_epoch(trainer)
            if place.batches:
                if place.epoch == 0:  # noted when its iterator had been made
                    _set_states(self._epoch_random["loaders"], foreign)
                _skip(trainer, place.batches)
                _restore_random(self._saved.get("now"), foreign, trainer)


# ---- Lightning's loops


def _skips(total: dict[str, int]) -> bool:
    """Return whether on_train_batch_start has ended an epoch early, by returning -1."""
    return total["started"] < total["processed"]


def _check_batches(trainer: Any, place: Place, skipped: bool) -> None:
    """Refuse a position that does not exist with these epochs and batches."""
    length, progress = trainer.num_training_batches, trainer.fit_loop.epoch_loop.batch_progress
    trained, expected = progress.total.processed, place.epoch * length + place.batches
    ours = isinstance(trainer.train_dataloader, ResidentLoader) and not skipped
    if place.batches > length or trained > expected or (ours and trained < expected):
        raise InputError(
            f"the checkpoint was written after {trained} batches, at batch {place.batches} of "
            f"epoch {place.epoch}, but an epoch has {length} batches here.\n{ResidentLoader.advice}"
        )
    kinds = (GradientAccumulationScheduler,)
    if place.batches and any(isinstance(c, kinds) for c in callbacks_of(trainer)):
        raise InputError(
            "a GradientAccumulationScheduler acts where an epoch begins, and the checkpoint was "
            f"written after batch {place.batches} of one.\nResume from the end of an epoch."
        )


def _place_loops(trainer: Any, place: Place) -> None:
    """Let Lightning's loops begin at the position.

    With ``max_steps`` they would take the end of an epoch for its middle. Of an epoch with only its
    end left they would skip the validation and the hooks.
    """
    fit_loop, epoch_loop = trainer.fit_loop, trainer.fit_loop.epoch_loop
    fit_loop._restarting = False  # its setter knows better where max_steps is given
    stepped = trainer.global_step
    if place.batches:
        epoch_loop.val_loop.restarting = False  # a validation that was cut begins anew
        fetcher = fit_loop._data_fetcher
        fetcher.done = place.last or place.batches >= fit_loop.max_batches
        if epoch_loop._should_check_val_fx(fetcher):
            stepped -= 1  # Lightning counts the batch again, where it validates or leaves it out
            if not place.validated:
                epoch_loop.val_loop._restart_stage = _STAGE
    else:
        epoch_loop.restarting = False
    if trainer.lightning_module.automatic_optimization:
        epoch_loop._batches_that_stepped = stepped


def stopped_by(trainer: Any) -> EarlyStopping | None:
    """Return the EarlyStopping that ended the run; Lightning restores its counts, not the stop."""
    stoppers = (c for c in callbacks_of(trainer) if isinstance(c, EarlyStopping))
    return next((c for c in stoppers if c.stopped_epoch or c.wait_count >= c.patience), None)


def _stop_where_it_stopped(trainer: Any) -> None:
    if stopper := stopped_by(trainer):
        trainer.should_stop = True
        rank_zero_warn(
            f"EarlyStopping on {stopper.monitor} had ended this run, after "
            f"{trainer.global_step} updates. To train on, leave this callback out."
        )


# ---- loaders that are not ours


def _foreign_loaders(trainer: Any) -> list[Any]:
    """Return the training loaders that keep no state of their own."""
    combined = trainer.fit_loop._combined_loader
    loaders = list(combined.flattened) if combined is not None else []
    stateful = any(hasattr(loader, "load_state_dict") for loader in loaders)
    return [] if stateful else loaders


def _begin_epoch(trainer: Any) -> None:
    """Make the iterator of an epoch anew, from the restored random state."""
    fetcher = trainer.fit_loop._data_fetcher
    done = fetcher.done
    iter(fetcher)
    fetcher.done |= done


def _skip(trainer: Any, batches: int) -> None:
    """Skip the batches of the epoch that have been trained on."""
    fetcher = trainer.fit_loop._data_fetcher
    iterator, done = getattr(fetcher, "iterator_wrapper", fetcher), fetcher.done
    fetcher.done = False
    for position in range(batches):
        if next(iterator, None) is None:
            raise InputError(
                f"the training loader gave {position} batches, but {batches} were trained on.\n"
                f"{ResidentLoader.advice}"
            )
    fetcher.fetched -= batches  # Lightning adds them
    fetcher.done |= done
    # Lightning takes these loaders for ones that cannot be resumed, and warns.
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before")


def _states(loaders: list[Any]) -> list[torch.Tensor]:
    return [generator.get_state() for generator in generators(loaders)]


def _set_states(states: list[torch.Tensor], loaders: list[Any]) -> None:
    for generator, state in zip(generators(loaders), states, strict=False):
        generator.set_state(state.cpu())


def _random_state(loaders: list[Any]) -> dict[str, Any]:
    """Return the random states of Python, numpy, torch and loaders, in plain values."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (kind, cast(Any, keys).tolist(), *rest),
        "torch": torch.get_rng_state(),
        "loaders": _states(loaders),
    }


def _restore_random(state: Any, loaders: list[Any], trainer: Any) -> None:
    """Set the random states, unless several processes would then draw the same."""
    if state is None or trainer.world_size > 1:
        return
    try:
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])
        torch.set_rng_state(state["torch"].cpu())
        _set_states(state["loaders"], loaders)
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError) as error:
        raise InputError("the checkpoint's random state is damaged.") from error
