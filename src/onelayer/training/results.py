"""Results: what a run ends with, as summary.json, TensorBoard's hyperparameters and a table."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from onelayer.training.curves import Curves, last_figures
from onelayer.training.folder import run_folder
from onelayer.training.measure import QUANTITIES

SUFFIX = ".results"
"""Of the TensorBoard file with the final figures."""
SPLITS = ("train", "val", "test")


class Results(Callback):
    """Collects each member's final figures and writes summary.json in the run's folder.

    ``summary`` is None until a fit has ended; the test figures join it when ``trainer.test``
    follows.
    """

    writes_test_figures = True

    def __init__(self) -> None:
        self.summary: dict[str, Any] | None = None
        self._seconds = 0.0
        self._started = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._seconds, self._started = self._total(), 0.0

    def _total(self) -> float:
        return self._seconds + (time.monotonic() - self._started if self._started else 0.0)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The summary of training and validation."""
        curves = _callback(trainer, Curves)
        module = cast(Any, pl_module)
        members: list[dict[str, Any]] = [m._asdict() for m in module.members]
        for split in ("train", "val"):
            for row in last_figures(curves.rows, split) if curves else []:
                members[row.member][split] = {name: getattr(row, name) for name in QUANTITIES}
        self.summary = {
            "dataset": getattr(getattr(trainer, "datamodule", None), "dataset", "custom"),
            "hidden": module.hidden,
            "steps": trainer.global_step,
            "seconds": round(self._seconds, 3),
            "members": members,
        }
        self._write(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join the test figures to the summary of the fit before, and to curves.csv."""
        if self.summary is None:
            return
        module = cast(Any, pl_module)
        figures = module.figures(module.measured)
        for i, member in enumerate(self.summary["members"]):
            member["test"] = {name: float(figures[name][i]) for name in QUANTITIES}
        if curves := _callback(trainer, Curves):
            curves.add(trainer, pl_module, "test", figures)
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        assert self.summary is not None
        folder = run_folder(trainer)
        if not trainer.is_global_zero or folder is None:
            return
        write_json(folder / "summary.json", self.summary)
        means = {
            (split, name): statistics.fmean(values)
            for split in SPLITS
            for name in QUANTITIES
            if (values := collect(self.summary["members"], split, name))
        }
        for logger in trainer.loggers:
            _log(logger, _flat(trainer), means, self.summary["steps"])

    def state_dict(self) -> dict[str, Any]:
        """Seconds of training so far."""
        return {"seconds": self._total()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the clock of the run that is resumed."""
        self._seconds = state_dict["seconds"]


def _log(
    logger: Logger, settings: dict[str, Any], means: dict[tuple[str, str], float], step: int
) -> None:
    """Log the test figures, and in TensorBoard the hyperparameters with all final figures.

    TensorBoard gets an event file of its own, written anew each time: a run that was killed while
    it was writing, and resumed, has every figure once.
    """
    test = {f"test/{name}": mean for (split, name), mean in means.items() if split == "test"}
    if not isinstance(logger, TensorBoardLogger):
        logger.log_metrics(test, step)
        return
    logger.save()  # first what came before
    for earlier in Path(logger.log_dir).glob(f"events.out.tfevents.*{SUFFIX}"):
        earlier.unlink()
    final = {f"final/{split}_{name}": mean for (split, name), mean in means.items()}
    with SummaryWriter(logger.log_dir, filename_suffix=SUFFIX) as writer:
        for summary in hparams(settings, final):
            writer._get_file_writer().add_summary(summary)
        for name, mean in final.items():
            writer.add_scalar(name, mean, 0)
        for name, mean in test.items():
            writer.add_scalar(name, mean, step)


def _callback(trainer: Trainer, kind: type[Any]) -> Any:
    return next((c for c in trainer.callbacks if isinstance(c, kind)), None)  # type: ignore[attr-defined]


def _flat(trainer: Trainer) -> dict[str, Any]:
    """Hyperparameters as TensorBoard shows them: scalars and text."""
    hparams = dict(cast(Any, trainer.lightning_module).hparams)
    if trainer.datamodule is not None:  # type: ignore[attr-defined]
        hparams |= dict(trainer.datamodule.hparams)  # type: ignore[attr-defined]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if hasattr(callback, "total_steps"):
            hparams |= {k: v for k, v in vars(callback).items() if not k.startswith("_")}
    simple = (bool, int, float, str)
    return {k: v if isinstance(v, simple) else str(v) for k, v in sorted(hparams.items())}


def collect(members: Sequence[dict[str, Any]], split: str, name: str) -> list[float]:
    """One figure of every member that has it."""
    return [member[split][name] for member in members if split in member]


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write beside the target and rename: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(temporary, path)


def format_summary(summary: dict[str, Any]) -> str:
    """The closing table: a line per λ, mean ± standard deviation over seeds."""
    by_l2: dict[float, list[dict[str, Any]]] = {}
    for member in summary["members"]:
        by_l2.setdefault(member["l2"], []).append(member)
    network = f"{summary['hidden']} hidden units" if summary["hidden"] else "linear softmax"
    lines = [
        f"{network}, {summary['dataset']}, {summary['steps']} updates in "
        f"{summary['seconds']:.1f} s, {len(summary['members'])} network(s); accuracy in %",
        f"{'l2':>9} {'seeds':>5} {'train':>14} {'val':>14} {'test':>14} "
        f"{'val cost':>9} {'val loss':>9}",
    ]
    for l2, members in by_l2.items():
        cells = [_mean_std(collect(members, split, "accuracy")) for split in SPLITS]
        means = [
            f"{statistics.fmean(values):9.4f}" if values else f"{'-':>9}"
            for values in (collect(members, "val", name) for name in ("cost", "loss"))
        ]
        lines.append(
            f"{l2:>9.3g} {len(members):>5} "
            + " ".join(f"{cell:>14}" for cell in cells)
            + f" {' '.join(means)}"
        )
    return "\n".join(lines)


def _mean_std(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean = 100 * statistics.fmean(values)
    return (
        f"{mean:.2f} ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else f"{mean:.2f}"
    )
