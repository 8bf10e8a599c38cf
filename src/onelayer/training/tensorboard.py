"""TensorBoard as people look at it: a run per λ, with curves, final figures and pictures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams, scalar

from onelayer.core.checks import is_number
from onelayer.data.adapter import augment_of
from onelayer.training.choice import by_l2
from onelayer.training.events import cut, write_end
from onelayer.training.folder import run_folder
from onelayer.training.measure import QUANTITIES
from onelayer.training.observer import Observer, observers
from onelayer.training.population import Population
from onelayer.training.records import Row, is_finite
from onelayer.training.results import collect, network_name
from onelayer.training.templates import is_picture, picture
from onelayer.training.testing import TestReport

CHARTS = {q: {q: ["Multiline", [f"{q}/train", f"{q}/val"]]} for q in QUANTITIES}
"""TensorBoard's custom scalars: training and validation of one quantity in one chart."""
COLUMNS = {"data", "hidden", "l2", "max_lr", "updates"}
"""Of HParams, seen at once; the others when they are ticked."""
WEIGHTS = "weights"
MEASURED = (*(f"{quantity}/" for quantity in QUANTITIES), WEIGHTS)  # beginnings of tags
MOST_PICTURES = 8
"""λ whose weights are shown each; of more, those of the best on validation."""


class TensorBoard(Observer):
    """Writes to every TensorBoardLogger what people compare runs by.

    - ``accuracy/train``, ``accuracy/val``, ``cost/…``, ``loss/…``: the mean over a λ's seeds. Of
      several λ each has a run of its own, in a folder such as ``l2=0.01`` of the run's.
    - ``weights``, at the end of each cycle and of the training: for images, what each class or
      hidden unit looks for.
    - A row of HParams per λ, with its figures on the validation and test splits.

    A run that goes on ends with the points of one that was never stopped: what a killed process
    logged after the checkpoint goes. Only the first of several processes writes.
    """

    def __init__(self) -> None:
        self._writers: dict[Path, SummaryWriter] = {}
        self._drawn = self._pictured = -1  # the update that was drawn last
        self._begun = False
        self._resumed: int | None = None  # updates done, where a run goes on
        self._drawn_before: float = math.inf  # the update drawn last before the checkpoint

    def draws(self, logger: Logger) -> bool:
        """Measurements come here, under names that group by quantity."""
        return isinstance(logger, TensorBoardLogger)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what is trained; of a run that goes on, cut what came after its checkpoint."""
        if self._begun or not isinstance(pl_module, Population) or not trainer.is_global_zero:
            return
        self._begun = True
        for logger in _loggers(trainer):
            if _goes_on(trainer):
                self._go_on(trainer, pl_module, logger)
            else:
                logger.experiment.add_custom_scalars(CHARTS)
                logger.experiment.add_text("run", describe(trainer, pl_module), 0)

    def _go_on(self, trainer: Trainer, module: Population, logger: TensorBoardLogger) -> None:
        step = trainer.global_step
        # What the checkpoint's update was measured for after it was saved is measured again.
        drawn = self._drawn_before >= step

        def keep(event: Event) -> bool:
            ours = any(value.tag.startswith(MEASURED) for value in event.summary.value)
            return bool(event.step < step or (event.step == step and (drawn or not ours)))

        logger.experiment.close()  # it opens another file when it writes again
        logger.experiment.purge_step = step + 1  # for a TensorBoard that looks on
        self._resumed = step
        for folder in {Path(logger.log_dir), *_folders(logger, module).values()}:
            cut(folder, keep)

    def state_dict(self) -> dict[str, Any]:
        """Return the update that was drawn last."""
        return {"drawn": self._drawn}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Note what had been drawn before the checkpoint."""
        drawn: Any = state_dict.get("drawn")
        self._drawn_before = drawn if is_number(drawn) else math.inf

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
        if isinstance(pl_module, Population) and trainer.is_global_zero:
            self._picture(trainer, pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Close the files of several λ."""
        for writer in self._writers.values():
            writer.close()
        self._writers = {}
        self._begun = False

    def on_summary(self, trainer: Trainer, summary: dict[str, Any]) -> None:
        """Write each λ's hyperparameters and test figures, whatever was there before."""
        module = cast(Any, trainer.lightning_module)
        if not trainer.is_global_zero:
            return
        for logger in _loggers(trainer):
            logger.save()  # first what came before
            for l2, folder in _folders(logger, module).items():
                folder.mkdir(parents=True, exist_ok=True)
                write_end(folder, _end(trainer, summary, l2))

    def _writer(self, logger: TensorBoardLogger, folder: Path) -> SummaryWriter:
        """Of a run: the logger's own where one λ is the whole run."""
        if folder == Path(logger.log_dir):
            return cast(SummaryWriter, logger.experiment)
        if folder not in self._writers:
            purge = None if self._resumed is None else self._resumed + 1
            self._writers[folder] = SummaryWriter(str(folder), purge_step=purge)
        return self._writers[folder]

    def _picture(self, trainer: Trainer, module: Any) -> None:
        """Draw the weights of each λ's first network that has not diverged; once an update."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        shape, step = tuple(getattr(data, "shape", ())), trainer.global_step
        loggers = list(_loggers(trainer))
        if self._pictured == step or not loggers or not is_picture(shape, module.inputs):
            return
        self._pictured = step
        finite = module.finite_members().tolist()
        groups = by_l2([member.l2 for member in module.members])
        if len(groups) > MOST_PICTURES:
            best = module.members[module.choose("best").members[0]].l2
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


def describe(trainer: Trainer, module: Population) -> str:
    """What a run trains, in a few lines of Markdown."""
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
    """Whether the run of this folder goes on from a checkpoint of its own."""
    folder, resumed = run_folder(trainer), trainer.ckpt_path
    if folder is None or not resumed:
        return False
    return Path(resumed).resolve().is_relative_to(folder.resolve())


def _folders(logger: TensorBoardLogger, module: Any) -> dict[float, Path]:
    """The folder of each λ's run: the logger's own for one λ, else one in it for each."""
    l2s = list(by_l2([member.l2 for member in module.members]))
    run = Path(logger.log_dir)
    if len(l2s) == 1:
        return {l2s[0]: run}
    return {l2: run / f"l2={name}" for l2, name in zip(l2s, _names(l2s), strict=True)}


def _names(numbers: Sequence[float]) -> list[str]:
    """Numbers in as few digits as tell them apart, three at least."""
    for digits in range(3, 18):
        names = [f"{number:.{digits}g}" for number in numbers]
        if len(set(names)) == len(names):
            break
    return names


def _points(rows: Sequence[Row]) -> Iterator[tuple[str, float]]:
    """Tags and means over the networks that have not diverged, or over all if all have."""
    for split in dict.fromkeys(row.split for row in rows):
        own = [row for row in rows if row.split == split]
        sound = [row for row in own if is_finite(row)] or own
        for name in QUANTITIES:
            yield f"{name}/{split}", math.fsum(getattr(row, name) for row in sound) / len(sound)


def _end(trainer: Trainer, summary: dict[str, Any], l2: float) -> Iterator[tuple[Summary, int]]:
    """The hyperparameters of a λ's run, and its figures on the test split, with their steps.

    HParams shows the last points of the curves of validation as they are.
    """
    members = [member for member in summary["members"] if member["l2"] == l2]
    test = {
        f"test/{name}": statistics.fmean(values)
        for name in QUANTITIES
        if (values := collect(members, "test", name))
    }
    metrics = [
        tag
        for name in ("accuracy", "cost", "loss")  # five of them are shown without being asked for
        for tag in (f"{name}/val" if any("val" in m for m in members) else "", f"test/{name}")
        if tag in test or tag.endswith("/val")
    ]
    experiment, *session = hparams(_settings(trainer, summary, l2), dict.fromkeys(metrics, 0.0))
    for content in (_with_columns(experiment), *session):
        yield content, 0
    for tag, value in test.items():
        yield scalar(tag, value), summary["steps"]
    if test and l2 == _best_l2(trainer):
        yield from _looked_at(trainer, summary["steps"])


def _best_l2(trainer: Trainer) -> float:
    module = cast(Any, trainer.lightning_module)
    return float(module.members[module.choose("best").members[0]].l2)


def _looked_at(trainer: Trainer, step: int) -> Iterator[tuple[Summary, int]]:
    """What a TestReport has found of the test split, by the networks that answer for the run."""
    found = next((o for o in observers(trainer) if isinstance(o, TestReport)), None)
    if found is None or found.report is None:
        return
    for name in ("top5_accuracy", "balanced_accuracy", "calibration_error"):
        if (value := found.report[name]) is not None:
            yield scalar(f"test/{name}", value), step
    picture = (run_folder(trainer) or Path()) / "test.png"
    if picture.is_file():
        content = Summary.Image(encoded_image_string=picture.read_bytes(), colorspace=3)
        yield Summary(value=[Summary.Value(tag="test", image=content)]), step


def _with_columns(experiment: Summary) -> Summary:
    """The same with the hyperparameters in front that HParams shows without being asked for.

    It shows five, by name, but first of all those that are said to differ between runs.
    """
    plugin = experiment.value[0].metadata.plugin_data
    data = HParamsPluginData.FromString(plugin.content)
    for info in data.experiment.hparam_infos:
        info.differs = info.name in COLUMNS
    plugin.content = data.SerializeToString()
    return experiment


def _settings(trainer: Trainer, summary: dict[str, Any], l2: float) -> dict[str, Any]:
    """What runs are compared by, in the order of HParams' columns."""
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
