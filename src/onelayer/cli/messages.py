"""Messages for signals, and for notes and errors of other libraries."""

from __future__ import annotations

import logging
import signal
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.distributed import DistError

from onelayer.cli.parser import shorten
from onelayer.core.errors import InputError, TrainingError, first_line
from onelayer.data.naming import shown_lines
from onelayer.training.checkpoint import read_checkpoint
from onelayer.training.folder import last_of
from onelayer.training.interrupt import Stopped, Terminated
from onelayer.training.progress import clear_bars

NOTES = (
    "GPU available",
    "TPU available",
    "HPU available",
    "💡 Tip",
    "`Trainer.fit` stopped",
    "Restor",
    "Loaded model weights",
    "`weights_only`",
)
"""Beginnings of notes that Lightning prints in every run."""


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the notes that Lightning prints in every run; print warnings as plain lines."""

    def wanted(record: logging.LogRecord) -> bool:
        clear_bars()
        return not record.getMessage().startswith(NOTES)

    handlers = logging.getLogger("lightning.pytorch").handlers
    for handler in handlers:
        handler.addFilter(wanted)
    as_before = warnings.formatwarning
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module="lightning")
        warnings.filterwarnings("ignore", message="GPU available but not used")  # as it was asked
        # The curves and the learning rate are logged by the number of updates, not by the epoch's.
        warnings.filterwarnings("ignore", message=".*is smaller than the logging interval")
        warnings.filterwarnings("ignore", message="Couldn't infer the batch indices")
        warnings.formatwarning = lambda text, *_: _one_line(text)
        try:
            yield
        finally:
            warnings.formatwarning = as_before
            for handler in handlers:
                handler.removeFilter(wanted)


def _one_line(text: Warning | str) -> str:
    """Return a warning in a plain line of its own, not behind a progress bar."""
    clear_bars()
    return f"onelayer: warning: {shown_lines(text)}\n"


@contextmanager
def signals() -> Iterator[None]:
    """Raise signals that Lightning has turned into exits: after SIGTERM it would exit with 0."""
    try:
        yield
    except SIGTERMException:
        raise Terminated from None
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


@contextmanager
def interrupted(run: Path | None) -> Iterator[None]:
    """Turn Ctrl+C and SIGTERM into Stopped if the run has a checkpoint."""
    try:
        with signals():
            yield
    except KeyboardInterrupt as interrupt:
        last = last_of(run) if run else None
        if last is None or not last.is_file():
            raise
        step = read_checkpoint(last)["global_step"]
        raise Stopped(getattr(interrupt, "signum", signal.SIGINT), step, str(last)) from None


@contextmanager
def explained() -> Iterator[None]:
    """Turn errors of other libraries that the user can mend into an InputError of a few lines."""
    as_before = threading.excepthook
    threading.excepthook = _leave_to_the_main_thread
    try:
        yield
    except OSError as error:
        if error.filename is None and _raised_in(error, "tensorboard", "lightning", "fsspec"):
            error.filename = "a logger's file in the run's folder"  # which they do not name
        raise
    except MisconfigurationException as error:  # options that Lightning refuses together
        raise InputError(str(error)) from error
    except ValueError as error:
        if str(error).startswith("Does not validate"):  # jsonargparse, when it saves the config
            raise InputError(shorten(str(error))) from error
        if _raised_in(error, "lightning"):  # an option that only Lightning knows to be wrong
            raise InputError(first_line(error).strip()) from error
        raise
    except ImportError as error:  # of what an option asks for
        raise InputError(f"{first_line(error)}: is its package installed?") from error
    except RuntimeError as error:
        if "conditioned on metric" in str(error):  # EarlyStopping, of a callback's own metric
            raise InputError(first_line(error)) from error
        if "gloo" in str(error).lower() or isinstance(error, DistError):
            raise TrainingError(
                "another process of this run has ended, so this one stops. Checkpoints are "
                "complete:\n"
                "the same command with --ckpt_path last goes on from there."
            ) from error
        raise
    finally:
        threading.excepthook = as_before


def _raised_in(error: BaseException, *packages: str) -> bool:
    """Return whether the error was raised in one of these packages, not in code that it called."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return any(package in Path(last.filename).parts for package in packages)


def _leave_to_the_main_thread(failed: threading.ExceptHookArgs) -> None:
    """Skip an OSError of TensorBoard's thread; the main thread soon raises the same."""
    if not issubclass(failed.exc_type, OSError):
        threading.__excepthook__(failed)
