"""Methods of OneLayer that take networks elsewhere; the work is done in ``onelayer.deploy``.

That package imports OneLayer, so it is imported here by its name, when a method is called.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from typing import Self

    import torch
    from torch import nn


class Portable:
    """Methods that write networks for use without onelayer, and read them again."""

    def export(
        self, path: str | Path, member: int | str = "best", dtype: str | None = None
    ) -> Path:
        """Write a file that predicts from raw samples: .onnx, .safetensors or .npz.

        The file is compared with ``predict`` before it gets its name.

        Args:
            path: name of the file. Its ending chooses the format.
            member: best, all, or the index of one member; several are averaged in probability.
            dtype: type of raw samples: uint8 for pixels from 0 to 255, float32 or float64. Default:
                that of the training data.

        Returns:
            The path.

        Raises:
            InputError: an unknown ending or member, or a missing package.
            OSError: the file cannot be written.
        """
        return cast(Path, _deploy("export").export(self, path, member, dtype).path)

    def to_torch(self, member: int | str = "best", dtype: torch.dtype | None = None) -> nn.Module:
        """Return a plain module that predicts probabilities (n, k) from raw samples (n, …).

        It can be pickled, traced, compiled and exported as any other module. Bytes are taken as
        pixels from 0 to 255, floats as they are.

        Args:
            member: best, all, or the index of one member; several are averaged in probability.
            dtype: of the layers. float64, the default, is equal to predict to 1e-6; float32 is
                faster and off by a few 1e-6.
        """
        kind = {} if dtype is None else {"dtype": dtype}
        return cast("nn.Module", _deploy("plain").plain_module(self, member, **kind))

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write model.safetensors, config.json and README.md, a model card, to a folder.

        Upload the folder with ``huggingface_hub.upload_folder``.

        Returns:
            The folder.

        Raises:
            InputError: the package safetensors is missing.
            OSError: a file cannot be written.
        """
        return cast(Path, _deploy("hub").save_pretrained(self, folder))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Return the networks that :meth:`save_pretrained` wrote.

        Args:
            folder: a folder, or the name of a repository of the Hugging Face Hub.

        Raises:
            InputError: a file is missing, or of another model.
        """
        return cast("Self", _deploy("hub").from_pretrained(cls, folder))


def _deploy(name: str) -> Any:
    return import_module(f"onelayer.deploy.{name}")
