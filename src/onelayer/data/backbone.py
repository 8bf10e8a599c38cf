"""Frozen networks that turn image files into features: torchvision's, timm's, or any nn.Module."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from onelayer.core.checks import at_home, check_whole
from onelayer.core.errors import InputError, first_line
from onelayer.data.naming import shown
from onelayer.data.read.images import open_image, to_planes

SIZE = 224  # pixels of a side, for backbones that state none
BATCH = 32  # images
RANDOM, DEFAULT = "random", "default"  # weights that are no file and have no name


@dataclass(frozen=True)
class Backbone:
    """A backbone's description, as a file of features and a checkpoint keep it.

    Args:
        name: torchvision/MODEL, timm/MODEL, or the class path of an nn.Module.
        weights: default, random, the name of a set of weights, or a file of them.
        size: pixels of a side of the images; None for what the weights were trained with.
        digest: SHA-256 of the weights, its first 16 digits; "" before they are loaded.
    """

    name: str
    weights: str = DEFAULT
    size: int | None = None
    digest: str = ""

    def __post_init__(self) -> None:
        for field in ("name", "weights", "digest"):
            if not isinstance(getattr(self, field), str):
                raise InputError(f"the backbone's {field} must be a text.")
        if self.size is not None:
            check_whole("--size", self.size, 8, 4096)

    @classmethod
    def read(cls, text: str, where: str) -> Backbone:
        """Return the description that a file holds as JSON.

        Raises:
            InputError: it is damaged.
        """
        try:
            return cls(**json.loads(text))
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{where}: its backbone is damaged: {first_line(error)}. Make the features anew."
            ) from error

    def __str__(self) -> str:
        """Return the description as JSON."""
        return json.dumps(asdict(self))

    @property
    def words(self) -> str:
        """The description for a message."""
        return f"{shown(self.name)} ({shown(self.weights)} weights {self.digest})"

    @property
    def is_class(self) -> bool:
        """Whether the name is a class path, whose module is imported."""
        return not self.name.startswith(("torchvision/", "timm/"))


class Extractor:
    """A loaded backbone.

    Args:
        backbone: its description; if it has a digest, the loaded weights must match it.
        device: device to run on.

    Attributes:
        backbone: the description with its digest.

    Raises:
        InputError: there is no such backbone, its package or weights are missing, or its weights
            are not those of the digest.
    """

    def __init__(self, backbone: Backbone, device: str | torch.device = "cpu") -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # for random weights
            self.network, self.transform = _made(backbone)
        self.device = torch.device(device)
        self.network.eval().requires_grad_(False)
        digest = _digest(self.network)
        if backbone.digest not in ("", digest):
            raise InputError(
                f"the backbone {backbone.words} has other weights here: {digest}.\n"
                "Use the weights that the features were made with, or make the features anew."
            )
        self.backbone = Backbone(backbone.name, backbone.weights, backbone.size, digest)
        self.network.to(self.device)

    @torch.inference_mode()
    def features(self, images: Sequence[Tensor]) -> Tensor:
        """Return features (n, d) float32 of prepared images, on the host.

        Raises:
            InputError: the backbone cannot take them, or returns no tensor of finite numbers.
        """
        batch = torch.stack(list(images)).to(self.device)
        try:
            found = self.network(batch)
        except RuntimeError as error:
            raise InputError(
                f"the backbone {self.backbone.words} cannot take images {tuple(batch.shape[1:])}: "
                f"{first_line(error)}.\nSet --size to the size that it was made for."
            ) from error
        if not isinstance(found, Tensor) or len(found) != len(images):
            raise InputError(
                f"the backbone {self.backbone.words} returns a {type(found).__name__}. It must "
                "return a tensor with a row for each image."
            )
        found = found.flatten(1).float().cpu()
        if not found.isfinite().all():
            raise InputError(
                f"the backbone {self.backbone.words} returns NaN or infinity; features must be "
                "finite. Check its weights, and the size of its images."
            )
        return found

    def read(self, path: Path) -> Tensor:
        """Return an image file as the backbone takes it (3, height, width).

        Raises:
            InputError: the file cannot be read as an image.
        """
        try:
            image: Tensor = self.transform(open_image(path).convert("RGB"))
            return image
        except Exception as error:  # Pillow's decoders raise anything for a damaged file
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise InputError(f"{shown(path)} cannot be read as an image: {reason}.") from None

    def batches(
        self, paths: Sequence[Path], size: int = BATCH
    ) -> Iterator[tuple[list[Path], Tensor, list[str]]]:
        """Give for each batch the files read, their features, and why others were not read."""
        for start in range(0, len(paths), size):
            read, images, faults = list[Path](), list[Tensor](), list[str]()
            for path in paths[start : start + size]:
                try:
                    images.append(self.read(path))
                    read.append(path)
                except InputError as error:
                    faults.append(str(error))
            yield read, self.features(images) if images else torch.empty(0, 0), faults


# ---- making a backbone


def _made(backbone: Backbone) -> tuple[nn.Module, Callable[[Any], Tensor]]:
    kind, _, name = backbone.name.partition("/")
    if kind == "torchvision" and name:
        return _of_torchvision(name, backbone)
    if kind == "timm" and name:
        return _of_timm(name, backbone)
    return _of_class(backbone)


def _of_torchvision(name: str, backbone: Backbone) -> tuple[nn.Module, Callable[[Any], Tensor]]:
    models: Any = import_module("torchvision.models")
    try:
        sets = models.get_model_weights(name)
    except ValueError:
        raise InputError(
            f"torchvision has no model {shown(name)!r}. Choose one that "
            "torchvision.models.list_models() lists, such as torchvision/resnet18."
        ) from None
    file, chosen = _file_of(backbone.weights), None
    if file is None and backbone.weights != RANDOM:
        named = "DEFAULT" if backbone.weights == DEFAULT else backbone.weights
        chosen = getattr(sets, named, None) if re.fullmatch(r"\w+", named) else None
        if not isinstance(chosen, sets):
            known = ", ".join(one.name for one in sets)
            raise InputError(
                f"{backbone.name} has no weights {shown(named)!r}, and there is no such file. "
                f"Choose {known}, {RANDOM}, or a file."
            )
    try:
        network = models.get_model(name, weights=chosen)
    except OSError as error:
        raise InputError(
            f"the weights of {backbone.name} cannot be downloaded: {first_line(error)}.\nBring "
            "their file, and name it with --weights."
        ) from error
    if file is not None:
        _load(network, file)
    side = {} if backbone.size is None else {"crop_size": backbone.size,
                                             "resize_size": backbone.size}  # fmt: skip
    return _without_last(network, backbone), (chosen or sets.DEFAULT).transforms(**side)


def _without_last(network: nn.Module, backbone: Backbone) -> nn.Module:
    """Replace the last linear layer, which returns the logits of other classes."""
    linear = [name for name, one in network.named_modules() if isinstance(one, nn.Linear)]
    if not linear:
        raise InputError(
            f"{backbone.name} has no linear layer at its end to take off. Choose another model."
        )
    parent, _, last = linear[-1].rpartition(".")
    setattr(network.get_submodule(parent), last, nn.Identity())
    return network


def _of_timm(name: str, backbone: Backbone) -> tuple[nn.Module, Callable[[Any], Tensor]]:
    try:
        timm: Any = import_module("timm")
    except ImportError as error:
        raise InputError(
            f"{backbone.name} needs the package timm, which is not installed:\npip install timm"
        ) from error
    file = _file_of(backbone.weights)
    if file is None and backbone.weights not in (DEFAULT, RANDOM):
        name = f"{name}.{backbone.weights}"  # timm's names have their weights behind a dot
    try:
        pretrained = file is None and backbone.weights != RANDOM
        network = timm.create_model(name, pretrained=pretrained, num_classes=0)
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(f"{backbone.name} cannot be made: {first_line(error)}.") from error
    if file is not None:
        _load(network, file, strict=False)
    settings = timm.data.resolve_model_data_config(network)
    if backbone.size is not None:
        settings["input_size"] = (3, backbone.size, backbone.size)
    return network, timm.data.create_transform(**settings, is_training=False)


def _of_class(backbone: Backbone) -> tuple[nn.Module, Callable[[Any], Tensor]]:
    """Make an object of a class, whose images are resized and scaled to 0 to 1."""
    module, _, attribute = backbone.name.rpartition(".")
    legal = "Choose torchvision/MODEL, timm/MODEL, or package.module.Class of an nn.Module."
    try:
        kind = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"there is no backbone {shown(backbone.name)!r}.\n{legal}") from error
    if not isinstance(kind, type) or not issubclass(kind, nn.Module):
        raise InputError(f"the backbone {shown(backbone.name)} is no nn.Module.\n{legal}")
    try:
        network = kind()
    except TypeError as error:
        raise InputError(
            f"{backbone.name} cannot be made without arguments: {first_line(error)}."
        ) from error
    file = _file_of(backbone.weights)
    if file is not None:
        _load(network, file)
    elif backbone.weights not in (DEFAULT, RANDOM):
        raise InputError(f"there is no file of weights {shown(backbone.weights)}.")
    size = backbone.size or SIZE

    def transform(image: Any) -> Tensor:
        return to_planes(image.resize((size, size), 3)).float() / 255  # 3: bicubic

    return network, transform


def _file_of(weights: str) -> Path | None:
    path = at_home(weights)
    return path if path.is_file() else None


def _load(network: nn.Module, file: Path, strict: bool = True) -> None:
    """Load a file of weights, .safetensors or what torch.save wrote; no code in it is run."""
    try:
        if file.suffix == ".safetensors":
            content = import_module("safetensors.torch").load_file(file)
        elif not zipfile.is_zipfile(file):
            raise ValueError("it is not an archive as torch.save writes it")
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
        if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
            content = content["state_dict"]
        left = network.load_state_dict(content, strict=strict)
        if left.missing_keys:
            raise ValueError(f"it has no {left.missing_keys[0]}")
    except Exception as error:  # whatever a damaged or foreign file leads to
        raise InputError(
            f"the weights {file} do not fit the backbone: {first_line(error)}"
        ) from error


def _digest(network: nn.Module) -> str:
    found = hashlib.sha256()
    for name, value in network.state_dict().items():
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]
