"""Folders of the Hugging Face Hub: safetensors, config.json, and a model card.

Conventions: https://huggingface.co/docs/hub/model-cards; ``id2label`` is that of transformers.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from onelayer.core.checks import at_home
from onelayer.core.errors import InputError, first_line
from onelayer.core.network import parameter_shapes
from onelayer.data.features import Statistics
from onelayer.deploy.card import MARK, card
from onelayer.deploy.facts import facts_of, summary_of
from onelayer.deploy.head import head_of, needed
from onelayer.training.files import atomic_write
from onelayer.training.members import Member

if TYPE_CHECKING:
    from onelayer.training.module import OneLayer

    Network = TypeVar("Network", bound=OneLayer)

WEIGHTS, CONFIG, CARD, CURVES = "model.safetensors", "config.json", "README.md", "curves.png"
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")  # owner/name


def save_pretrained(network: OneLayer, folder: str | Path) -> Path:
    """Write the networks, their configuration and a model card; return the folder.

    A README.md of another author stays as it is, with a warning.
    """
    library = needed("safetensors.torch", "save_pretrained", "hub")
    folder = at_home(folder)
    head = head_of(network)
    tensors = {name: value.detach().cpu().contiguous() for name, value in _tensors(network).items()}
    run, summary = summary_of(network)
    facts = facts_of(head)
    curves = run / CURVES if run is not None and (run / CURVES).is_file() else None
    files: dict[str, Any] = {
        WEIGHTS: library.save(tensors, metadata={"format": "pt"}),
        CONFIG: json.dumps(_config(network, facts), indent=2, ensure_ascii=False) + "\n",
        **({} if curves is None else {CURVES: curves.read_bytes()}),
        CARD: card(folder.name, facts, summary, curves is not None),
    }
    if _is_of_another(folder / CARD):
        warnings.warn(
            f"{folder / CARD} is not a model card of onelayer and stays as it is. Delete it to "
            "have one written.",
            stacklevel=3,
        )
        del files[CARD]
    for name, content in files.items():
        atomic_write(folder / name, content)
    return folder


def from_pretrained(cls: type[Network], folder: str | Path) -> Network:
    """Return the networks of a folder, or of a repository of the Hub, in evaluation mode."""
    folder = _local(folder)
    library = needed("safetensors.torch", "from_pretrained", "hub")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(f"{folder} has no {name}. Choose a folder that save_pretrained wrote.")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict) or config.get("library_name") != "onelayer":
            raise InputError(f"its {CONFIG} is of another library's model")
        return _network(cls, config, library.load_file(folder / WEIGHTS))
    except Exception as error:  # whatever a damaged or foreign file leads to
        raise InputError(
            f"{folder} is not a folder of onelayer's networks: {first_line(error)}.\n"
            "Choose one that save_pretrained wrote."
        ) from error


def _tensors(network: OneLayer) -> dict[str, Tensor]:
    weights = dict(zip(network.names, network.weights, strict=True))
    return {**weights, "mean": network.mean, "std": network.std}


def _config(network: OneLayer, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the networks are made of again, in plain values."""
    validation: Any = network.validation and {  # JSON has no NaN
        name: [value if math.isfinite(value) else None for value in values]
        for name, values in network.validation.items()
    }
    return {
        "library_name": "onelayer",
        "architectures": ["OneLayer"],
        "onelayer_version": version("onelayer"),
        "id2label": {str(i): name for i, name in enumerate(network.classes)},
        "label2id": {name: i for i, name in enumerate(network.classes)},
        "feature_names": network.columns,
        "arguments": dict(network.hparams),
        "members": [member.named() for member in network.members],
        "samples": network.samples,
        "validation": validation,
        "learned_from": network.learned_from,
        "facts": dict(facts),
    }


def _network(
    cls: type[Network], config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> Network:
    """Return networks of a configuration and its tensors, whose shapes are checked first."""
    members = [Member(**one) for one in config["members"]]
    given = config["arguments"]
    known = {name: value for name, value in given.items() if name in signature(cls).parameters}
    known |= {"l2": members[0].l2, "seeds": members[0].seed}  # drawn once, and replaced
    sizes = known.get("hidden", 0), known.get("inputs", 3072), known.get("classes", 10)
    shapes = {name: (len(members), *s) for name, s in parameter_shapes(*sizes).items()}
    shapes |= {"mean": (sizes[1],), "std": (sizes[1],)}
    found = {name: tuple(value.shape) for name, value in tensors.items()}
    if found != shapes:
        raise InputError(f"its tensors are {found}, and the configuration describes {shapes}")
    if not all(tensors[name].dtype in (torch.float32, torch.float64) for name in shapes):
        raise InputError("its tensors must be float32 or float64")
    statistics = Statistics(tensors["mean"].double(), tensors["std"].double())
    network = cls(**known)
    for name in network.names:
        getattr(network, name).data = tensors[name].clone()
    network.mean.copy_(statistics.mean)
    network.std.copy_(statistics.std)
    _describe(network, config, members)
    return network.eval()


def _describe(network: OneLayer, config: Mapping[str, Any], members: list[Member]) -> None:
    """Set names, members and validation metrics, as a checkpoint does."""
    labels = config["id2label"]
    if sorted(labels, key=int) != [str(i) for i in range(network.outputs)]:
        raise InputError(f"id2label must name the classes 0 to {network.outputs - 1}")
    network.classes = [str(labels[str(i)]) for i in range(network.outputs)]
    network.columns = config["feature_names"]
    network.samples = dict(config["samples"])
    if "shape" in network.samples:
        network.samples["shape"] = tuple(network.samples["shape"])
    network.learned_from = list(config["learned_from"])
    network.knows_statistics = True
    given = config["arguments"]
    network.hparams.update({name: given[name] for name in ("l2", "seeds")})
    network.set_members(members)
    if config["validation"] is not None:
        network.validation = {
            name: [math.nan if value is None else float(value) for value in values]
            for name, values in config["validation"].items()
        }


def _local(folder: str | Path) -> Path:
    """Return a folder; of a repository's name, the folder that it was downloaded to."""
    path = at_home(folder)
    if path.is_dir():
        return path
    if path.exists() or not REPOSITORY.fullmatch(str(folder)):
        raise InputError(f"there is no folder {folder}. Choose one that save_pretrained wrote.")
    library = needed("huggingface_hub", f"the repository {folder}", "hub")
    try:
        wanted = [WEIGHTS, CONFIG]
        return Path(library.snapshot_download(str(folder), allow_patterns=wanted))
    except Exception as error:  # its own kinds, and those of its HTTP library
        raise InputError(
            f"there is no folder {folder}, and the Hub's repository of that name cannot be read: "
            f"{first_line(error)}."
        ) from error


def _is_of_another(path: Path) -> bool:
    return path.is_file() and MARK not in path.read_text(encoding="utf-8", errors="replace")
