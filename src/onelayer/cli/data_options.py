"""The data module of a command line: CIFAR10DataModule's options, or those of a class."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from inspect import signature
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningDataModule

from onelayer.core.errors import InputError, first_line
from onelayer.data.arrays import ArraysDataModule
from onelayer.data.cifar10 import CIFAR10DataModule
from onelayer.data.dataset import DatasetDataModule
from onelayer.training.folder import FOLDER

DEFAULT = CIFAR10DataModule.__qualname__
OURS = (CIFAR10DataModule, ArraysDataModule, DatasetDataModule)
"""The data modules that a checkpoint may name, and nobody has to type."""


def typed_class(argv: Sequence[str]) -> str | None:
    """Return the class of data that the words after a subcommand name, the last one."""
    typed = [word.partition("=")[2] for word in argv if word.startswith("--data=")]
    typed += [value for word, value in pairwise(argv) if word == "--data"]
    return typed[-1] if typed else None


def class_of(argv: Sequence[str]) -> type | None:
    """Return the data module that the words after a subcommand name, if they do.

    Raises:
        InputError: there is no such class, or it is no data module.
    """
    name = typed_class(argv)
    return None if name is None or not re.fullmatch(r"[\w.]+", name) else load_class(name)


def load_class(name: str) -> type:
    """Return a data module of ours by its name, or the user's by package.module.Class.

    Raises:
        InputError: there is no such class, or it is no data module.
    """
    known = {kind.__qualname__: kind for kind in OURS}
    if name in known:
        return known[name]
    module, _, attribute = name.rpartition(".")
    legal = f"It takes {', '.join(known)}, or package.module.Class of a LightningDataModule."
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        reason = first_line(error) if module else f"there is no data module {name!r}"
        raise InputError(f"--data {name}: {reason}.\n{legal}") from error
    if not isinstance(found, type) or not issubclass(found, LightningDataModule):
        raise InputError(f"--data {name} is no LightningDataModule.\n{legal}")
    return found


def config_of(path: Path, data: str | None) -> str:
    """Return the config.yaml of a run to resume, for ``--config``.

    Args:
        path: the file.
        data: class of data given on the command line. It replaces that of the run, whose module may
            have been renamed since.
    """
    section = dict(_data_section(path))
    section.pop("download_seconds", None)  # written by earlier versions
    if data is not None and "class_path" in section:
        section["class_path"] = data
    if section == _data_section(path):
        return str(path)
    return yaml.safe_dump({**content_of(path), "data": section})


def class_first(argv: Sequence[str]) -> list[str]:
    """Return the words after a command, with --data CLASS before the options of that class."""
    words, others = list[str](), list[str]()
    rest = iter(argv)
    for word in rest:
        if word == "--data":
            words += [word, *islice(rest, 1)]
        else:
            (words if word.startswith("--data=") else others).append(word)
    configs = [i + 2 for i, word in enumerate(others) if word == "--config"]
    at = max(configs, default=0)
    return others[:at] + words + others[at:]


def names_a_class(argv: Sequence[str]) -> bool:
    """Return whether the words after a subcommand, or a config among them, name a class of data.

    Raises:
        InputError: there is no such class, or it is no data module.
    """
    words = list(argv)
    given = typed_class(words)
    typed = [] if given is None else [given]
    configs = [_data_section(value) for word, value in pairwise(words) if word == "--config"]
    typed += [str(section["class_path"]) for section in configs if "class_path" in section]
    for name in typed:
        if re.fullmatch(r"[\w.]+", name):  # not YAML
            load_class(name)
    return bool(typed) or "--data" in words


def images_option(argv: Sequence[str]) -> str:
    """Return which option of the class of data takes image files: images, or predict."""
    kind = class_of(argv)
    own = () if kind is None else signature(kind).parameters
    return "predict" if "images" not in own and "predict" in own else "images"


def content_of(config: str | Path) -> Mapping[str, Any]:
    """Return a YAML file's content as it is; nothing where the parser will refuse it."""
    with suppress(OSError, ValueError, yaml.YAMLError, RecursionError):
        content = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else {}
    return {}


def _data_section(config: str | Path) -> Mapping[str, Any]:
    section = content_of(config).get("data")
    return section if isinstance(section, dict) else {}


# ---- what a checkpoint knows of its data


NEEDED = {"validate": ("train", "val"), "test": ("test",), "predict": ()}
"""Data locations that a command reads."""


def saved_class(content: Mapping[str, Any]) -> str:
    """Return the class path of the data module of a checkpoint's network."""
    saved = content.get("data_module")
    path = saved.get("class_path") if isinstance(saved, dict) else None
    return path if isinstance(path, str) else f"{CIFAR10DataModule.__module__}.{DEFAULT}"


def words_for(content: Mapping[str, Any], path: Path) -> list[str]:
    """Return the words that name a checkpoint's data module: none for CIFAR-10's.

    Raises:
        InputError: it is somebody else's class, which a file alone must not import.
    """
    name = saved_class(content)
    package, _, kind = name.rpartition(".")
    if not package.startswith("onelayer.") or kind not in {ours.__qualname__ for ours in OURS}:
        raise InputError(
            f"{path} was trained on the data of {name[:200]}, which no checkpoint may import by "
            f"itself.\nIf you trust it, type --data {name[:200]} and its options."
        )
    return [] if kind == DEFAULT else ["--data", kind]


def complete(
    data: Namespace,
    typed: Mapping[str, Any],
    content: Mapping[str, Any],
    path: Path,
    command: str,
) -> None:
    """Fill the arguments of a data section that were not typed with those of a checkpoint.

    Where files lie is not in it: that is taken from the config.yaml beside it.
    """
    given = typed.get("init_args", None) or {}
    kind = data.class_path.rpartition(".")[2]
    known = dict(_arguments(content, kind))
    beside = _data_section(config_beside(path))
    if str(beside.get("class_path", "")).rpartition(".")[2] == kind:
        known |= dict(beside.get("init_args") or {})
    unneeded = {"train", "val", "test", "predict"} - set(NEEDED[command])
    for name, value in known.items():
        if name not in given and name in data.init_args and name not in unneeded:
            data.init_args[name] = value


def config_beside(path: Path) -> Path:
    """Return the config.yaml of the run that a checkpoint is of; "." where there is no run."""
    return path.parent.parent / "config.yaml" if path.parent.name == FOLDER else Path("")


def _arguments(content: Mapping[str, Any], kind: str) -> Iterator[tuple[str, Any]]:
    """Yield the arguments that a data module saved, in its state or as hyperparameters."""
    state = content.get(kind)
    for saved in (
        content.get(LightningDataModule.CHECKPOINT_HYPER_PARAMS_KEY),
        state.get("arguments") if isinstance(state, dict) else None,
        state.get("keys") if isinstance(state, dict) else None,
    ):
        if isinstance(saved, dict):
            yield from saved.items()
