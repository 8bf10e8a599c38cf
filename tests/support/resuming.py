"""One judge of resuming: wherever a run goes on, it ends with the bits of one that never stopped.

:func:`assert_resumes` runs a training once, resumes it from every checkpoint that it left, and
compares weights, curves and what loggers got, in order.
"""

import warnings
from contextlib import suppress
from copy import copy
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment

from onelayer.training.checkpoint import AtomicCheckpointIO, read_checkpoint
from onelayer.training.curves import Curves
from onelayer.training.module import OneLayer
from onelayer.training.observer import Observer
from tests.support.small import CLASSES, PIXELS, SAFELY


class Interrupted(Exception):  # noqa: N818 - no error
    """What a training with :class:`Interrupt` ends with."""


class Interrupt(Observer):
    """Raises :class:`Interrupted` in a hook, once so many updates are done."""

    def __init__(self, hook, step):
        def interrupt(trainer, *_):
            if trainer.global_step == step:
                raise Interrupted

        self.step = step
        setattr(self, hook, interrupt)

    def next_due(self, step):
        return self.step if step < self.step else super().next_due(step)


class Log(Logger):
    """Keeps what it gets, in order: (step, name, value)."""

    name, version, save_dir = "log", 0, None

    def __init__(self):
        super().__init__()
        self.points = []

    @property
    @rank_zero_experiment
    def experiment(self):
        return self

    def log_metrics(self, metrics, step=None):
        self.points += [(step, name, float(value)) for name, value in metrics.items()]

    def log_hyperparams(self, params, *args, **kwargs):
        pass


class Marks(Callback):
    """Notes in each checkpoint how many points had been logged before it."""

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        checkpoint["points"] = len(trainer.logger.points)


class Outcome:
    """What a training leaves."""

    def __init__(self, trainer, model):
        self.weights = [p.detach().clone() for p in model.weights]
        self.steps = trainer.global_step
        self.curves = [tuple(r) for c in trainer.callbacks if isinstance(c, Curves) for r in c.rows]
        self.log = trainer.logger.points

    def differences(self, other):
        """What differs, in words; measurements with their steps."""
        if self.steps != other.steps:
            yield f"{self.steps} updates, not {other.steps}"
        for mine, theirs in zip(self.weights, other.weights, strict=True):
            if not torch.equal(mine, theirs):
                yield f"weights differ by {(mine - theirs).abs().max():.1e}"
                break
        for name in ("curves", "log"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                pairs = enumerate(zip(mine, theirs, strict=False))
                n = next((i for i, (a, b) in pairs if a != b), min(len(mine), len(theirs)))
                yield f"{name}[{n}] is {mine[n : n + 1]}, not {theirs[n : n + 1]}"


class Case:
    """A training that can be made from the beginning or from a checkpoint.

    Args:
        data: makes the arguments of ``Trainer.fit`` that bring the data.
        model: arguments of OneLayer.
        callbacks: makes the callbacks, with the folder of checkpoints.
        saves: whether ``trainer.save_checkpoint`` is called after the fit.
        trainer: other arguments of the Trainer.
    """

    def __init__(self, data, model=None, callbacks=lambda folder: [], saves=False, **trainer):
        self.data, self.model, self.callbacks = data, model or {}, callbacks
        self.saves, self.trainer = saves, trainer

    def run(self, folder, end, ckpt_path=None, quiet=True):
        """Train to an end; the outcome."""
        torch.manual_seed(7 if ckpt_path is None else 8)  # what a process has not saved is lost
        torch.rand(1)
        trainer = Trainer(
            callbacks=[*self.callbacks(folder), Marks()],
            logger=Log(), enable_progress_bar=False, enable_model_summary=False,
            log_every_n_steps=1, accelerator="cpu", devices=1, default_root_dir=folder,
            plugins=[AtomicCheckpointIO()], **{**self.trainer, **end},
        )  # fmt: skip
        sizes = {"inputs": PIXELS, "classes": CLASSES}
        model = OneLayer(**{"hidden": 4, "l2": 0.01, **sizes, **self.model})
        with warnings.catch_warnings():
            if quiet:
                warnings.simplefilter("ignore")
            with suppress(Interrupted):
                trainer.fit(model, **self.data(), ckpt_path=ckpt_path, **SAFELY)
            if self.saves and ckpt_path is None:
                trainer.save_checkpoint(Path(folder) / "after.ckpt")
        return Outcome(trainer, model)


def differences(case, tmp_path, end, longer=None, goes_on=None):
    """What differs where a training is resumed, from each of its checkpoints: {name: [words]}.

    Args:
        case: the training.
        tmp_path: an empty folder.
        end: arguments of the Trainer that end the training.
        longer: the end to which it is resumed; by default the same.
        goes_on: the training that is resumed, and never stopped, where it is another one: without
            the callback that ended the first.
    """
    first = case.run(tmp_path / "first", end)
    goes_on, longer = goes_on or case, longer or end
    same = goes_on is case and longer == end
    whole = first if same else goes_on.run(tmp_path / "whole", longer)
    found = {}
    for path in sorted((tmp_path / "first").rglob("*.ckpt")):
        content = read_checkpoint(path)
        resumed = goes_on.run(tmp_path / "again" / path.stem, longer, path)
        resumed.log = first.log[: content["points"]] + resumed.log
        expected = copy(whole)
        if not same:  # the first end was measured, and a logger takes no point back
            resumed.log = _without_extras(resumed.log, whole.log, first.steps)
        elif content["global_step"] == first.steps:  # nothing is left to do, not even to log
            expected.log = whole.log[: len(resumed.log)]
        found[f"{path.stem} ({content['global_step']})"] = list(resumed.differences(expected))
    assert found, "the training left no checkpoint"
    return found


def _without_extras(log, expected, step):
    """A log without the points of an update that are not expected there."""
    kept = []
    for point in log:
        if point[0] != step or point == (expected[len(kept) :] or [None])[0]:
            kept.append(point)
    return kept


def assert_resumes(case, tmp_path, end, longer=None, goes_on=None):
    """Raise AssertionError unless every resumed run ends as one that never stopped."""
    found = differences(case, tmp_path, end, longer, goes_on)
    wrong = {name: words for name, words in found.items() if words}
    assert not wrong, "\n".join(f"{name}: {'; '.join(words)}" for name, words in wrong.items())
