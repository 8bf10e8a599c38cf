"""The data of a study: made from settings, and the settings that decide results."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule

from onelayer.core.errors import InputError, first_line
from onelayer.data.cifar10 import CIFAR10DataModule
from onelayer.training.files import atomic_write

CONFIG = "config.yaml"
_NEWER = ("flip", "shift", "border", "transform", "weight")
"""Arguments that earlier trial databases and reports lack. They are left out at their defaults."""

Settings = Mapping[str, Any] | LightningDataModule
"""Arguments of CIFAR10DataModule, or ``class_path`` and ``init_args``, or a data module."""


def make_data(settings: Settings) -> LightningDataModule:
    """Return the data module of the settings; one that is made already is returned as it is."""
    if isinstance(settings, LightningDataModule):
        return settings
    if "class_path" not in settings:
        return CIFAR10DataModule(**settings)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data", fail_untyped=False)
    parsed = parser.parse_object({"data": dict(settings)})
    try:
        made: LightningDataModule = parser.instantiate_classes(parsed).data
    except (RuntimeError, OSError, ValueError) as error:  # of a Dataset that finds no files, say
        cause: BaseException = error
        while not isinstance(cause, InputError):
            earlier = cause.__cause__ or cause.__context__  # jsonargparse made a long text of it
            if earlier is None:
                raise InputError(f"data: {first_line(cause).rstrip('.')}.") from error
            cause = earlier
        raise cause from None
    return made


def write_config(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write config.yaml beside a run's files, where ``onelayer test`` finds the paths of data."""
    with suppress(yaml.YAMLError):  # a data module, or arrays, of Python
        atomic_write(folder / CONFIG, yaml.safe_dump(_plain(settings), sort_keys=False))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def with_arguments(settings: Settings, **arguments: Any) -> Settings:
    """Return the settings with other values, for those arguments that the data module takes."""
    if isinstance(settings, LightningDataModule):
        return settings
    if "class_path" not in settings:
        return {**settings, **arguments}
    given = dict(settings.get("init_args") or {})
    return {**settings, "init_args": given | {k: v for k, v in arguments.items() if k in given}}


def without_locations(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings without the arguments that say where data lie, which change no result."""
    if "class_path" not in settings:
        return _decisive(CIFAR10DataModule, settings)
    module, _, name = settings["class_path"].rpartition(".")
    kind = getattr(import_module(module), name)
    kept = _decisive(kind, settings.get("init_args") or {})
    return {"class_path": settings["class_path"], "init_args": kept}


def _decisive(kind: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    known, locations = inspect.signature(kind).parameters, getattr(kind, "locations", ())
    usual = {k: known[k].default for k in _NEWER if k in known}
    return {
        k: v for k, v in arguments.items() if k not in locations and (k, v) not in usual.items()
    }
