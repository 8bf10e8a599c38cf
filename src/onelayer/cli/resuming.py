"""Runs and checkpoints that a command goes on from: which, with which data, and to which end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from onelayer.cli.data_options import (
    complete,
    config_beside,
    config_of,
    content_of,
    names_a_class,
    typed_class,
    words_for,
)
from onelayer.cli.parser import RUNS, names_of, output_of, typed_options
from onelayer.core.checks import at_home, check_same
from onelayer.core.errors import InputError
from onelayer.data.cifar10 import CIFAR10DataModule
from onelayer.data.features import Statistics
from onelayer.training.checkpoint import find_checkpoint, joined_network, network_of, read_run
from onelayer.training.folder import FOLDER
from onelayer.training.module import OneLayer

Opened = dict[Path, dict[str, Any]]
"""Contents of checkpoints by path, each read once."""

SPLIT = ("train_batches", "val_batches", "val_size", "limit")
"""Options of data that decide which images a split has."""
ENDS = (("schedule", "cycles"), ("trainer", "max_steps"), ("trainer", "max_epochs"))
"""Options that decide where a run ends, with their sections."""


@dataclass(frozen=True)
class Resumed:
    """The run that ``fit`` resumes.

    Attributes:
        folder: its folder; None for a new run, also one that starts from a checkpoint.
        step: updates of the checkpoint; -1 without one.
        extended: whether its end differs from that in its config.yaml.
    """

    folder: Path | None = None
    step: int = -1
    extended: bool = False


def with_own_config(argv: list[str]) -> list[str]:
    """Return the words of ``fit`` with the config.yaml of the run to resume.

    A config on the command line replaces it; so does a logger, whose folders may be elsewhere.
    """
    typed = typed_options(argv)
    if "--ckpt_path" not in typed or {"--config", "--trainer.logger"} & typed.keys():
        return argv
    with suppress(InputError):  # raised again when the checkpoint is read
        given = _last_of_output(typed["--ckpt_path"], typed.get("--output"))
        path = find_checkpoint(given, Path(RUNS), any_config=True)
        config = config_beside(path)
        if config.is_file():
            own = config_of(config, typed_class(argv))
            return ["--config", own, *argv, "--ckpt_path", str(path)]
    return argv


def with_data_of_checkpoint(argv: list[str], opened: Opened) -> list[str]:
    """Return the words of a command that takes a checkpoint, with the class of its data.

    Args:
        argv: the command and its words.
        opened: contents of checkpoints that have been read; this one's is added.
    """
    typed = typed_options(argv)
    if argv[0] == "fit" or names_a_class(argv[1:]) or "--ckpt_path" not in typed:
        return argv
    configs = configs_in(argv)
    runs = Path(RUNS, names_of(configs)) if configs else Path(RUNS)
    try:
        path = find_checkpoints(typed["--ckpt_path"], runs, not configs)[0]
        opened[path] = read_run(path)
    except InputError:  # raised again when the options are known
        return argv
    return [argv[0], *words_for(opened[path], path), *argv[1:]]


def replace_end(config: Namespace, typed: Mapping[str, str]) -> None:
    """Let an end given on the command line replace every end in the config of a resumed run."""
    ends = {name for section, name in ENDS if f"--{section}.{name}" in typed}
    if not ends:
        return
    if "max_steps" not in ends:
        config.trainer.max_steps = -1
    if "max_epochs" not in ends:
        config.trainer.max_epochs = None
    if "--trainer.max_time" not in typed:
        config.trainer.max_time = None


def resume(config: Namespace, path: Path, content: dict[str, Any]) -> Resumed:
    """Return the run to resume, in its own folder.

    A checkpoint outside of a run starts a new run, and so does another folder given by --output.

    Args:
        config: options of ``fit``, with the end of the run.
        path: checkpoint.
        content: its content.
    """
    network_of(content, path)  # refuses now what Lightning would fail on later
    step, folder = content["global_step"], path.resolve().parent
    print(f"resuming {path} after {step} updates")
    extended, output = _announce_end(config, path, step), output_of(config)
    run = folder.parent if folder.name == FOLDER else None
    if output is not None and output.resolve() != run:
        run = None
    return Resumed(run, step, extended)


def _announce_end(config: Namespace, path: Path, step: int) -> bool:
    """Print how the end of a run differs from that in its config.yaml; return whether it does."""
    before = content_of(config_beside(path))
    for section, name in ENDS:  # the first that differs: max_steps follows from cycles
        old, new = (before.get(section) or {}).get(name), config[section][name]
        if before and old != new and new not in (None, -1):
            break
    else:
        return False
    end = config.trainer.max_steps
    if end == -1 or end > step:
        to = f"update {end}" if end != -1 else f"the end of epoch {new}"
        was = "" if old in (None, -1) else f"{old} -> "
        print(f"{name}: {was}{new}, so the run goes on from update {step} to {to}")
    return True


def take_network(
    config: Namespace, given: Mapping[str, Any], opened: Opened, command: str, of_class: bool
) -> OneLayer:
    """Fill the options with the splits of checkpoints, and return their networks.

    A split that was given stays.

    Args:
        config: options of the command.
        given: options that were given, in a config or on the command line.
        opened: contents of the checkpoints, whose networks are joined.
        command: validate, test or predict.
        of_class: whether the data have a class of their own.

    Raises:
        InputError: a given option of the model differs from the checkpoint's.
    """
    print(f"checkpoint: {', '.join(map(str, opened))}")
    path, content = next(iter(opened.items()))
    model, typed = given.get("model") or {}, given.get("data") or {}
    network = joined_network(opened) if len(opened) > 1 else network_of(content, path)
    there = dict(network.hparams)
    here = {key: model.get(key, value) for key, value in there.items()}
    check_same(str(path), here, there, "Leave it out.", section="model")
    if of_class:
        complete(config.data, typed, content, path, command)
        return network
    state = content.get(CIFAR10DataModule.__qualname__)
    if not isinstance(state, dict) or not isinstance(saved := state.get("arguments"), dict):
        raise InputError(f"{path} has no data's state: name one that onelayer fit wrote.")
    if not Statistics(network.mean, network.std).equal(
        Statistics(state.get("mean"), state.get("std"))  # type: ignore[arg-type]
    ):
        raise InputError(f"{path}: its network and its data have other statistics: damaged.")
    if "source" not in typed:
        config["data"]["source"] = state.get("dataset")
    if not any(key in typed for key in SPLIT):
        for key in SPLIT:
            config["data"][key] = saved.get(key, config["data"].get(key))
    return network


def restore_data(data: Any, content: Mapping[str, Any]) -> None:
    """Restore the state of a data module, such as its statistics, as Lightning does."""
    state = content.get(type(data).__qualname__)
    if state is not None:
        data.load_state_dict(state)


def checkpoint_paths(config: Namespace, command: str) -> list[Path]:
    """Return the checkpoints that the options name, looked for where this config's runs are.

    Raises:
        InputError: there is none, a command that needs one has no --ckpt_path, or ``fit`` has
            several.
    """
    if config.ckpt_path is None:
        if command == "fit":
            return []
        raise InputError(
            f"onelayer {command} needs --ckpt_path: a run's folder, {RUNS}/<config>/version_N, or "
            "last for the newest."
        )
    runs, any_config = _folder_of_logger(config.trainer.logger), False
    if runs is None:
        runs, any_config = runs_folder(config), not config.config
        runs = runs.parent if any_config else runs
    given = config.ckpt_path
    if command == "fit":
        given = _last_of_output(given, config.output)
    paths = find_checkpoints(given, runs, any_config)
    if command == "fit" and len(paths) > 1:
        raise InputError("fit --ckpt_path resumes from one checkpoint, not from several.")
    return paths


def _last_of_output(given: str, output: str | None) -> str:
    """Return --ckpt_path of ``fit``, where last means the run in --output if there is one."""
    return str(at_home(output)) if given == "last" and output is not None else given


def find_checkpoints(given: Any, runs: Path, any_config: bool) -> list[Path]:
    """Return the checkpoints of --ckpt_path: one, or a list such as '[a.ckpt,b.ckpt]'."""
    listed = yaml.safe_load(given) if str(given).startswith("[") else [given]
    return [find_checkpoint(str(one), runs, any_config) for one in listed]


def runs_folder(config: Namespace) -> Path:
    """Return where the versions of this configuration are: lightning_logs/<config name>."""
    root = str(config.trainer.default_root_dir or ".")
    return Path(root, RUNS, names_of(config.config) or "fit")


def _folder_of_logger(logger: Any) -> Path | None:
    """Return where the versions of a given logger are, if it has versions in a folder."""
    if not isinstance(logger, Namespace):
        return None
    if logger.class_path.rpartition(".")[2] not in ("CSVLogger", "TensorBoardLogger"):
        return None
    return Path(logger.init_args.save_dir, logger.init_args.get("name") or "")


def configs_in(argv: Sequence[str]) -> list[str]:
    """Return the configs among the words of a command."""
    return [after for word, after in pairwise(argv) if word == "--config"]
