"""Reading and writing checkpoints: complete or not there, and never code."""

from __future__ import annotations

import inspect
import io
import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from onelayer.core.checks import check_same
from onelayer.core.errors import InputError, first_line
from onelayer.data.features import Statistics
from onelayer.training.files import atomic_write
from onelayer.training.folder import FOLDER, LAST, PREVIOUS, last_of
from onelayer.training.members import Metrics
from onelayer.training.module import OneLayer, known_of, shapes_of
from onelayer.training.records import quantities
from onelayer.training.schema import check_tensors

KINDS = {"state_dict": dict, "global_step": int, "pytorch-lightning_version": str}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a file beside the target, syncs and renames it; reads without running code.

    Lightning's own plugin writes to $TMPDIR and moves the file. Across filesystems that is a copy,
    which a kill or a full disk truncates under the final name.

    Args:
        way_on: advice after a full disk.
        opened: contents of checkpoints that have been read already, by path.
    """

    def __init__(
        self,
        way_on: str = "resume with --ckpt_path",
        opened: Mapping[Path, dict[str, Any]] | None = None,
    ) -> None:
        super().__init__()
        self.way_on, self.opened = way_on, dict(opened or {})

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Save; whatever happens, ``path`` is then the old file or the new one, complete."""
        content = io.BytesIO()  # torch's own errors while it writes to a full disk name no cause
        torch.save(checkpoint, content)
        try:
            atomic_write(path, content.getbuffer())
        except OSError as error:
            raise InputError(
                f"cannot write the checkpoint {path}: {error.strerror or error}.\n"
                f"{_other_checkpoint(Path(path))}Free or choose another place and {self.way_on}."
            ) from error

    def load_checkpoint(
        self, path: Any, map_location: Any = lambda storage, loc: storage, weights_only: Any = None
    ) -> dict[str, Any]:
        """Load with weights_only=True whatever the caller says: pickled code is never run."""
        content = self.opened.pop(Path(str(path)), None) or read_checkpoint(path, map_location)
        if "pytorch-lightning_version" not in content:
            raise InputError(f"{path} has no version of Lightning: Lightning did not write it.")
        return content


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Return a checkpoint's content.

    Raises:
        InputError: the path is a URL, or the file is missing, damaged, not a checkpoint, or has
            pickled code, which is not run.
    """
    path = _local(path)
    try:
        return _read(path, map_location)
    except InputError as error:
        raise InputError(f"{error}\n{_other_checkpoint(path)}".strip()) from error


def _read(path: Path, map_location: Any = "cpu") -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}.")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load does not check the checksums
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
        content = torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} has pickled code or objects other than tensors and plain values. It was not "
            "loaded."
        ) from error
    except Exception as error:
        raise InputError(f"{path} is not a complete checkpoint: {first_line(error)}.") from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise InputError(f"{path} is not a Lightning checkpoint: it has no state_dict.")
    return content


def find_checkpoint(path: str, runs: Path, any_config: bool = False) -> Path:
    """Return the checkpoint that ``path`` means: a file, a run's folder, or "last".

    "last" is the newest run that has a checkpoint.

    Args:
        path: as given on the command line.
        runs: the folder of a config's runs, of which the highest version is the newest.
        any_config: ``runs`` has a folder for each config; the run trained last is the newest.

    Raises:
        InputError: there is none.
    """
    if path != "last":
        given = _local(path)
        return last_of(given) if last_of(given).is_file() else given
    folders = runs.glob("*/version_*" if any_config else "version_*")
    versions = [run for run in folders if re.fullmatch(r"version_\d+", run.name)]
    found = [last_of(run) for run in versions if last_of(run).is_file()]
    if not found:
        raise InputError(f"there is no run with a checkpoint in {runs}. Train one: onelayer fit.")
    if any_config:
        return max(found, key=lambda last: last.stat().st_mtime)
    return max(found, key=lambda last: int(last.parent.parent.name.removeprefix("version_")))


def read_run(path: str | Path) -> dict[str, Any]:
    """Return the content of a checkpoint of a training run.

    Raises:
        InputError: see :func:`read_checkpoint`; or the file has weights alone.
    """
    if Path(path).is_dir():
        raise InputError(f"there is no checkpoint in the folder {path}. Choose a run's, or a file.")
    content = read_checkpoint(path)
    for key, kind in KINDS.items():
        if not isinstance(content.get(key), kind):
            raise InputError(
                f"{path} is not a Lightning checkpoint: it has no {key}.\n"
                f"Choose one that onelayer fit wrote, lightning_logs/<config>/version_N/{FOLDER}/"
                f"{LAST}."
            )
    return content


def load_network(path: str | Path | Sequence[str | Path]) -> OneLayer:
    """Load the networks of a checkpoint to host memory, with the data's statistics and names.

    ``classes`` are the names of the classes, ``columns`` those of the features, or None.

    Args:
        path: a checkpoint; of several, such as the snapshots of a run, all networks become the
            members of one population, whose predictions are averaged.

    Raises:
        InputError: see :func:`read_run`; or a checkpoint is of another model than OneLayer, or of
            networks that cannot be averaged.
    """
    if isinstance(path, str | Path):
        content = read_run(path)
        network = network_of(content, path)
        network.origin = Path(path), content["global_step"]
        return network
    contents = {Path(one): read_run(one) for one in path}
    return joined_network(contents)


def network_of(content: dict[str, Any], path: str | Path) -> OneLayer:
    """Return the networks of a checkpoint's content, which was read from ``path``."""
    try:
        given = content.get("hyper_parameters", {})
        # Before networks are made, because their sizes may be wrong.
        check_tensors(content["state_dict"], shapes_of(**_arguments_of(shapes_of, given)))
        model = OneLayer(**_arguments_of(OneLayer, given))
        model.on_load_checkpoint(content)
        model.load_state_dict(content["state_dict"])
    except Exception as error:  # whatever a damaged or foreign file leads to
        reason = "\n".join(line.strip() for line in str(error).splitlines()[:3])
        raise InputError(
            f"{path} is not a checkpoint of OneLayer: {reason or type(error).__name__}\n"
            "Choose one that onelayer fit wrote."
        ) from error
    return model.eval()


def joined_network(contents: Mapping[Path, dict[str, Any]]) -> OneLayer:
    """Return the networks of several checkpoints as one population.

    Raises:
        InputError: there is none, or they differ in size, names or standardisation.
    """
    if not contents:
        raise InputError("there is no checkpoint in the list: name at least one.")
    (path, content), *others = contents.items()
    first = network_of(content, path)
    networks = [first, *(network_of(content, path) for path, content in others)]
    for (other, _), network in zip(others, networks[1:], strict=True):
        advice = "Only networks of one size, trained on the same data, can be averaged."
        check_same(str(other), _kind_of(first), _kind_of(network), advice)
        here, there = (Statistics(one.mean, one.std) for one in (first, network))
        if not here.equal(there):
            raise InputError(
                f"{path} and {other} standardise samples differently.\n"
                "Only networks of one training split can be averaged."
            )
    for name, parts in zip(first.names, zip(*(n.weights for n in networks), strict=True),
                           strict=True):  # fmt: skip
        getattr(first, name).data = torch.cat(list(parts)).detach()
    measured = [network.validation for network in networks]
    first.validation = None
    if all(measured):
        first.validation = {
            name: [value for one in measured for value in cast(Metrics, one)[name]]
            for name in quantities(cast(Metrics, measured[0]))
        }
    first.set_members(
        [
            member._replace(step=content["global_step"])
            for network, content in zip(networks, contents.values(), strict=True)
            for member in network.members
        ]
    )
    return first.eval()


def _kind_of(network: OneLayer) -> dict[str, Any]:
    names = ("hidden", "inputs", "outputs", "classes", "columns")
    return {**{name: getattr(network, name) for name in names}, "dtype": network.weights[0].dtype}


def checkpoint_of(model: OneLayer, data: Any, step: int = 0) -> dict[str, Any]:
    """Return an ordinary checkpoint of networks that no trainer holds.

    Args:
        model: the networks.
        data: the data module that they were trained on, or None.
        step: updates so far.
    """
    content = {
        "state_dict": {name: value.cpu() for name, value in model.state_dict().items()},
        "hyper_parameters": dict(model.hparams),
        "epoch": 0,
        "global_step": step,
        "pytorch-lightning_version": version("lightning"),
        "callbacks": {},
    }
    if data is not None:
        content |= known_of(data, model)
        if state := data.state_dict():
            content[type(data).__qualname__] = state
        if data.hparams:
            content[data.CHECKPOINT_HYPER_PARAMS_KEY] = dict(data.hparams)
    model.on_save_checkpoint(content)
    return content


def _arguments_of(function: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the values that are arguments of a function."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in given.items() if name in known}


def _local(path: str | Path) -> Path:
    if "://" in str(path):
        raise InputError(f"checkpoints are not loaded from a URL. Download {path} first.")
    return Path(path)


def _other_checkpoint(path: Path) -> str:
    """Return a line that offers the other checkpoint of the folder, if it is complete."""
    for name in (LAST, PREVIOUS):
        other = path.with_name(name)
        if other != path and other.is_file():
            with suppress(InputError):
                step = _read(other).get("global_step")
                return f"This one is complete: --ckpt_path {other} (after {step} updates).\n"
    return ""
