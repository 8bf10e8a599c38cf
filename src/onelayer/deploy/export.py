"""Networks as files that need neither onelayer nor Lightning: ONNX, safetensors, NumPy's npz."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onelayer.core.checks import at_home
from onelayer.core.errors import InputError
from onelayer.deploy.facts import as_strings, facts_of
from onelayer.deploy.head import Head, head_of, needed
from onelayer.deploy.onnx_file import onnx_bytes
from onelayer.training.files import atomic_write

if TYPE_CHECKING:
    from onelayer.training.module import OneLayer

BATCHES = (1, 999, 2000)  # samples of the batches that a file is compared with predict on
CLOSE = 1e-6  # largest difference of two probabilities
Predict = Callable[[NDArray[Any]], NDArray[Any]]


class Exported(NamedTuple):
    """A file that was written.

    Attributes:
        path: path of the file.
        words: the networks in it.
        difference: largest difference of a probability from predict's; None if unchecked, because
            onnxruntime is not installed.
    """

    path: Path
    words: str
    difference: float | None


def export(
    network: OneLayer, path: str | Path, member: int | str = "best", dtype: str | None = None
) -> Exported:
    """Write networks to a file that predicts from raw samples, complete or not at all.

    Args:
        network: the population.
        path: name of the file. Its ending chooses the format: .onnx, .safetensors or .npz.
        member: best, all, or the index of one member; several are averaged in probability.
        dtype: type of raw samples: uint8, float32 or float64. Default: that of the training data.

    Raises:
        InputError: an unknown ending or member, a missing package, or a network that the format
            cannot express.
        OSError: the file cannot be written.
    """
    path = check_output(path)
    head = head_of(network, member, dtype)
    content, predict = FORMATS[path.suffix.lower()](head, facts_of(head))
    difference = None if predict is None else _compare(head, predict, path)
    atomic_write(path, content)
    return Exported(path, head.choice.words, difference)


def check_output(path: str | Path) -> Path:
    """Return the path of a file to write.

    Raises:
        InputError: it has another ending than those of the formats, or is a folder.
    """
    path = at_home(path)
    if path.suffix.lower() not in FORMATS:
        raise InputError(
            f"the output is {path}, whose ending is no known format. Choose a name that ends in "
            f"{', '.join(FORMATS)}."
        )
    if path.is_dir():
        raise InputError(f"the output {path} is a folder. Name a file to write.")
    return path


def predict_numpy(arrays: Mapping[str, NDArray[Any]], x: NDArray[Any]) -> NDArray[Any]:
    """Return probabilities (n, k) from the arrays of a .safetensors or .npz file.

    Args:
        arrays: W and b, or W1, b1, W2 and b2.
        x: samples (n, d) as given; bytes divided by 255.
    """
    layers = [("W1", "b1"), ("W2", "b2")] if "W1" in arrays else [("W", "b")]
    for W, b in layers:
        x = x if W != "W2" else np.maximum(x, 0)
        x = x @ arrays[W].swapaxes(1, 2) + arrays[b][:, None]
    p = np.exp(x - x.max(-1, keepdims=True))
    mean: NDArray[Any] = (p / p.sum(-1, keepdims=True)).mean(0)
    return mean


# ---- formats: content of a file, and what it predicts


def _onnx(head: Head, facts: Mapping[str, Any]) -> tuple[bytes, Predict | None]:
    content = onnx_bytes(head, as_strings(facts))
    try:
        onnxruntime: Any = import_module("onnxruntime")
    except ImportError:
        return content, None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return content, lambda x: np.asarray(session.run(["probabilities"], {"samples": x})[0])


def _safetensors(head: Head, facts: Mapping[str, Any]) -> tuple[bytes, Predict | None]:
    library = needed("safetensors.numpy", ".safetensors", "arrays")
    arrays = _arrays(head)
    content: bytes = library.save(arrays, metadata=as_strings(facts))
    read = library.load(content)
    return content, lambda x: predict_numpy(read, _scaled(x))


def _npz(head: Head, facts: Mapping[str, Any]) -> tuple[bytes, Predict | None]:
    file = io.BytesIO()
    named = {"classes": np.array(facts["classes"]), "metadata": np.array(json.dumps(facts))}
    np.savez(file, **_arrays(head), **named)  # type: ignore[arg-type]  # numpy 1 has no allow_pickle
    read = dict(np.load(io.BytesIO(file.getvalue()), allow_pickle=False))
    return file.getvalue(), lambda x: predict_numpy(read, _scaled(x))


FORMATS: dict[str, Callable[[Head, Mapping[str, Any]], tuple[bytes, Predict | None]]] = {
    ".onnx": _onnx,
    ".safetensors": _safetensors,
    ".npz": _npz,
}


def _arrays(head: Head) -> dict[str, NDArray[Any]]:
    return {name: np.ascontiguousarray(value.numpy()) for name, value in head.folded().items()}


def _scaled(x: NDArray[Any]) -> NDArray[Any]:
    x = x.reshape(len(x), -1)
    return x / 255 if x.dtype == np.uint8 else x


# ---- the comparison with predict


def _compare(head: Head, predict: Predict, path: Path) -> float:
    """Return the largest difference from predict over batches of several sizes.

    Raises:
        InputError: a probability differs by more than :data:`CLOSE`.
    """
    worst = 0.0
    for n in BATCHES:
        x = raw_samples(head, n)
        difference = float((torch.from_numpy(predict(x.numpy())) - head.predict(x)).abs().max())
        if not difference <= CLOSE:
            raise InputError(
                f"{path} was not written: on {n} random samples a probability differs from "
                f"predict's by {difference:.1e}, and {CLOSE:g} is allowed.\nPredict with the "
                "checkpoint instead."
            )
        worst = max(worst, difference)
    return worst


def raw_samples(head: Head, n: int) -> Tensor:
    """Return random raw samples (n, …) with the mean and deviation of the training data."""
    noise = torch.randn(n, len(head.mean), generator=torch.Generator().manual_seed(n))
    x = noise * head.std + head.mean
    if head.dtype == torch.uint8:
        x = (255 * x).round().clamp(0, 255)
    return x.to(head.dtype).view(n, *head.shape)
