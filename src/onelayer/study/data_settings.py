"""The data of a study: made from settings, and sealed while λ is chosen."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
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
LATER = ("flip", "shift", "border", "transform")
"""Arguments that older ledgers and runs know nothing of: they are told apart by them only where
these have not their defaults."""

Settings = Mapping[str, Any] | LightningDataModule
"""Arguments of CIFAR10DataModule, or ``class_path`` and ``init_args``, or a data module."""


def make_data(settings: Settings) -> LightningDataModule:
    """Make the data module that the settings say; one that is made already is taken as it is."""
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
    """Write config.yaml beside a run's files: from it ``onelayer test`` knows where data lie."""
    with suppress(yaml.YAMLError):  # a data module, or arrays, of Python
        atomic_write(folder / CONFIG, yaml.safe_dump(_plain(settings), sort_keys=False))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def with_arguments(settings: Settings, **arguments: Any) -> Settings:
    """The settings with other values, for those arguments that the data module takes."""
    if isinstance(settings, LightningDataModule):
        return settings
    if "class_path" not in settings:
        return {**settings, **arguments}
    given = dict(settings.get("init_args") or {})
    return {**settings, "init_args": given | {k: v for k, v in arguments.items() if k in given}}


def without_locations(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without the arguments that say where data lie, which change no figure."""
    if "class_path" not in settings:
        return _decisive(CIFAR10DataModule, CIFAR10DataModule.locations, settings)
    module, _, name = settings["class_path"].rpartition(".")
    kind = getattr(import_module(module), name)
    kept = _decisive(kind, getattr(kind, "locations", ()), settings.get("init_args") or {})
    return {"class_path": settings["class_path"], "init_args": kept}


def _decisive(kind: Any, locations: Sequence[str], arguments: Mapping[str, Any]) -> dict[str, Any]:
    known = inspect.signature(kind).parameters
    usual = {k: known[k].default for k in LATER if k in known}
    return {
        k: v for k, v in arguments.items() if k not in locations and (k, v) not in usual.items()
    }


class _Seal:
    """Laid over a data module's class: the test split cannot be had from it."""

    def labelled(self, split: str) -> Any:
        """As before, but not of the test split."""
        return super().labelled(_not_test(split))  # type: ignore[misc]

    def tensors(self, split: str) -> Any:
        """As before, but not of the test split."""
        return super().tensors(_not_test(split))  # type: ignore[misc]

    def test_dataloader(self) -> Any:
        """Refuse."""
        _not_test("test")


class _LoaderSeal:
    """The same for a data module that has loaders alone."""

    def test_dataloader(self) -> Any:
        """Refuse."""
        _not_test("test")


def _not_test(split: str) -> str:
    if split == "test":
        raise PermissionError("the test split is sealed until λ has been chosen.")
    return split


def sealed(data: LightningDataModule) -> LightningDataModule:
    """The same data module, from which the test split cannot be had any more."""
    kind = type(data)
    seal = _Seal if hasattr(kind, "tensors") else _LoaderSeal
    data.__class__ = type(f"Sealed{kind.__name__}", (seal, kind), {})
    return data
