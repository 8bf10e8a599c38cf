"""TensorBoard: a run per λ, with curves, final metrics, hyperparameters and images of weights."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from onelayer.data.adapter import augment_of, shape_of
from onelayer.training.folder import run_folder
from onelayer.training.members import by_l2
from onelayer.training.observer import Observer, observers
from onelayer.training.records import PLAIN_QUANTITIES, Row, is_finite, quantities
from onelayer.training.summary import collect, network_name
from onelayer.training.weight_images import is_picture, picture

# TensorBoard's custom scalars: training and validation of one quantity in one chart.
CHARTS = {q: {q: ["Multiline", [f"{q}/train", f"{q}/val"]]} for q in PLAIN_QUANTITIES}
COLUMNS = {"data", "hidden", "l2", "max_lr", "updates"}  # of HParams, shown unasked
WEIGHTS = "weights"
MOST_PICTURES = 8  # λ whose weights are drawn; of more, only those of the best


class TensorBoard(Observer):
    """Writes curves, final metrics and images of weights to every TensorBoardLogger.

    - ``accuracy/train``, ``accuracy/val``, ``cost/…``, ``loss/…``: the mean over a λ's seeds. With
      several λ each has a run of its own, in a folder such as ``l2=0.01`` of the run's.
    - ``weights``, at the end of each cycle and of the run: for images, the template of each class
      or hidden unit.
    - A row of HParams per λ, with its metrics on the validation and test splits.

    A resumed run tells TensorBoard to drop the points after its checkpoint (``purge_step``). Only
    the first of several processes writes.
    """

    def __init__(self) -> None:
        self._writers: dict[Path, SummaryWriter] = {}
        self._drawn = self._pictured = -1  # the update that was drawn last
        self._begun = False
        self._purge: int | None = None  # step from which earlier points are dropped
        self._report: tuple[dict[str, Any], Path] | None = None

    def draws(self, logger: Logger) -> bool:
        """Return whether measurements go to this logger here, under names grouped by quantity."""
        return isinstance(logger, TensorBoardLogger)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Describe the run; drop the points after the checkpoint of a resumed run."""
        if self._begun or not trainer.is_global_zero:
            return
        self._begun = True
        for logger in _loggers(trainer):
            self._purge = logger._kwargs.get("purge_step")
            if _goes_on(trainer):
                self._purge = trainer.global_step + 1
                logger.experiment.close()  # it opens another file when it writes again
                logger.experiment.purge_step = self._purge
            if not trainer.ckpt_path:
                logger.experiment.add_custom_scalars(CHARTS)
                logger.experiment.add_text("run", describe(trainer, pl_module), 0)

    def on_measured(self, trainer: Trainer, pl_module: LightningModule, rows: list[Row]) -> None:
        """Draw the points of this update, once, and the weights where a cycle ends."""
        step = rows[-1].step
        if rows[-1].split == "test" or step == self._drawn or not trainer.is_global_zero:
            return
        self.on_train_start(trainer, pl_module)  # Curves may come before it
        self._drawn = step
        new = [row for row in rows if row.step == step]
        for logger in _loggers(trainer):
            for l2, folder in _folders(logger, pl_module).items():
                writer = self._writer(logger, folder)
                for tag, value in _points([row for row in new if row.l2 == l2]):
                    writer.add_scalar(tag, value, step)
                writer.flush()  # a checkpoint may follow, after which nothing is drawn again
        cycle = next((o.cycle for o in observers(trainer) if o.cycle), None)
        if step and (step == trainer.max_steps or (cycle and step % cycle == 0)):
            self._picture(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the final weights."""
        if trainer.is_global_zero:
            self._picture(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the files of several λ."""
        for writer in self._writers.values():
            writer.close()
        self._writers = {}
        self._begun, self._purge = False, None

    def on_report(self, trainer: Trainer, report: dict[str, Any], folder: Path) -> None:
        """Keep the report of the test split for the end of the run."""
        self._report = report, folder

    def on_summary(self, trainer: Trainer, summary: dict[str, Any]) -> None:
        """Write each λ's hyperparameters and test metrics, once the run is tested."""
        module = cast(Any, trainer.lightning_module)
        tested = any("test" in member for member in summary["members"])
        if not trainer.is_global_zero or not (tested or trainer.state.fn == "fit"):
            return
        for logger in _loggers(trainer):
            for l2, folder in _folders(logger, module).items():
                members = [member for member in summary["members"] if member["l2"] == l2]
                self._write_end(trainer, self._writer(logger, folder), summary, members)

    def _write_end(
        self,
        trainer: Trainer,
        writer: SummaryWriter,
        summary: dict[str, Any],
        members: Sequence[dict[str, Any]],
    ) -> None:
        """Write the hyperparameters of a λ's run, or its metrics on the test split.

        HParams shows the last points of the curves of validation as they are.
        """
        step, l2 = summary["steps"], members[0]["l2"]
        names = quantities(members[0].get("test", {}))
        test = {f"test/{name}": collect(members, "test", name) for name in names}
        for tag, values in test.items():
            if values:
                writer.add_scalar(tag, statistics.fmean(values), step)
        if not any(test.values()):
            order = ("accuracy", "cost", "loss")  # HParams shows the first five unasked
            tags = [tag for name in order for tag in (f"{name}/val", f"test/{name}")]
            settings = _settings(trainer, summary, l2)
            experiment, *session = hparams(settings, dict.fromkeys(tags, 0.0))
            for content in (_with_columns(experiment), *session):
                writer._get_file_writer().add_summary(content, 0)
        elif self._report is not None and l2 == _best_l2(trainer):
            report, folder = self._report
            for name in ("top5_accuracy", "balanced_accuracy", "calibration_error"):
                if report[name] is not None:
                    writer.add_scalar(f"test/{name}", report[name], step)
            if (plot := folder / "test.png").is_file():
                image = Summary.Image(encoded_image_string=plot.read_bytes(), colorspace=3)
                content = Summary(value=[Summary.Value(tag="test", image=image)])
                writer._get_file_writer().add_summary(content, step)
        writer.flush()

    def _writer(self, logger: TensorBoardLogger, folder: Path) -> SummaryWriter:
        """Return the writer of a λ's run: the logger's own if there is only one λ."""
        if folder == Path(logger.log_dir):
            return cast(SummaryWriter, logger.experiment)
        if folder not in self._writers:
            self._writers[folder] = SummaryWriter(str(folder), purge_step=self._purge)
        return self._writers[folder]

    def _picture(self, trainer: Trainer, module: Any) -> None:
        """Draw the weights of each λ's first network that has not diverged; once an update."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        shape, step = shape_of(data), trainer.global_step
        loggers = list(_loggers(trainer))
        if self._pictured == step or not loggers or not is_picture(shape, module.inputs):
            return
        self._pictured = step
        finite = module.finite_members().tolist()
        groups = by_l2([member.l2 for member in module.members])
        if len(groups) > MOST_PICTURES:
            best = _best_l2(trainer)
            groups = {best: groups[best]}
        for l2, members in groups.items():
            member = next((m for m in members if finite[m]), None)
            if member is None:
                continue
            names = () if module.hidden else tuple(module.classes)
            sheet = picture(module.weights[0][member], shape, names)
            for logger in loggers:
                writer = self._writer(logger, _folders(logger, module)[l2])
                writer.add_image(WEIGHTS, sheet, step, dataformats="HWC")
                writer.flush()


def describe(trainer: Trainer, module: Any) -> str:
    """Describe what a run trains, in a few lines of Markdown."""
    l2s = by_l2([member.l2 for member in module.members])
    data = getattr(trainer, "datamodule", None)
    lines = [
        f"{network_name(module.hidden)}, {len(module.members)} network(s)",
        f"data: {_data_name(str(getattr(data, 'name', None) or 'custom'))}",
        f"λ: {', '.join(f'{l2:g}' for l2 in l2s)}",
        f"seeds: {_seeds(module.members)}",
    ]
    return "  \n".join(lines)


def _data_name(name: str) -> str:
    return "built-in synthetic images, NOT CIFAR-10" if name == "synthetic" else name


def _seeds(members: Sequence[Any]) -> str:
    return ", ".join(str(seed) for seed in dict.fromkeys(member.seed for member in members))


def _loggers(trainer: Trainer) -> Iterator[TensorBoardLogger]:
    return (logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger))


def _goes_on(trainer: Trainer) -> bool:
    """Return whether the run of this folder is resumed from a checkpoint of its own."""
    folder, resumed = run_folder(trainer), trainer.ckpt_path
    if folder is None or not resumed:
        return False
    return Path(resumed).resolve().is_relative_to(folder.resolve())


def _folders(logger: TensorBoardLogger, module: Any) -> dict[float, Path]:
    """Return the folder of each λ's run: the logger's own for one λ, else one in it for each."""
    l2s = list(by_l2([member.l2 for member in module.members]))
    run = Path(logger.log_dir)
    if len(l2s) == 1:
        return {l2s[0]: run}
    return {l2: run / f"l2={name}" for l2, name in zip(l2s, _names(l2s), strict=True)}


def _names(numbers: Sequence[float]) -> list[str]:
    """Return numbers in as few digits as distinguish them, three at least."""
    for digits in range(3, 18):
        names = [f"{number:.{digits}g}" for number in numbers]
        if len(set(names)) == len(names):
            break
    return names


def _points(rows: Sequence[Row]) -> Iterator[tuple[str, float]]:
    """Return tags, and means over the networks that have not diverged, or all if all have."""
    for split in dict.fromkeys(row.split for row in rows):
        own = [row for row in rows if row.split == split]
        sound = [row for row in own if is_finite(row)] or own
        for name in quantities(own[0]._asdict()):
            yield f"{name}/{split}", math.fsum(getattr(row, name) for row in sound) / len(sound)


def _best_l2(trainer: Trainer) -> float:
    module = cast(Any, trainer.lightning_module)
    return float(module.members[module.choose("best").members[0]].l2)


def _with_columns(experiment: Summary) -> Summary:
    """Mark the hyperparameters that HParams shows unasked: those that differ between runs."""
    plugin = experiment.value[0].metadata.plugin_data
    data = HParamsPluginData.FromString(plugin.content)
    for info in data.experiment.hparam_infos:
        info.differs = info.name in COLUMNS
    plugin.content = data.SerializeToString()
    return experiment


def _settings(trainer: Trainer, summary: dict[str, Any], l2: float) -> dict[str, Any]:
    """Return the columns of the HParams table, in order."""
    module = cast(Any, trainer.lightning_module)
    schedule = next((o for o in observers(trainer) if o.cycle), None)
    rates: dict[str, Any] = {"max_lr": module.lr}
    if schedule is not None and schedule.cycle:
        rates = {k: schedule.state_dict()[k] for k in ("base_lr", "max_lr", "step_size")}
        rates["cycles"] = round(summary["steps"] / schedule.cycle, 3)
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    batch_size = getattr(data, "batch_size", None)
    regularisers = {name: getattr(module, name) for name in ("dropout", "label_smoothing")}
    return {
        "data": _data_name(summary["dataset"]),
        "hidden": module.hidden,
        "l2": l2,
        "seeds": _seeds(module.members),
        **rates,
        **({} if batch_size is None else {"batch_size": batch_size}),
        **{name: value for name, value in regularisers.items() if value},
        **augment_of(data).settings(),
        "updates": summary["steps"],
        "seconds": summary["seconds"],
    }
