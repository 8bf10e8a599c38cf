"""A finished run, for notebooks and scripts: its curves, results, networks and plots."""

from __future__ import annotations

import html
import io
import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onelayer.core.errors import InputError
from onelayer.study.figures import plot_curves
from onelayer.training.checkpoint import find_checkpoint, load_network
from onelayer.training.folder import last_of
from onelayer.training.module import OneLayer
from onelayer.training.records import Row, read_rows
from onelayer.training.summary import format_summary, network_name
from onelayer.training.weight_images import picture_of

if TYPE_CHECKING:
    from PIL.Image import Image

RUNS = "lightning_logs"


class Run:
    """A run's folder, read when it is needed.

    Attributes:
        folder: the run's folder.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @classmethod
    def load(cls, path: str | Path = "last", runs: str | Path = RUNS) -> Run:
        """Open a run.

        Args:
            path: a run's folder, a checkpoint in it, or "last" for the newest run in ``runs``.
            runs: folder with a folder of runs for each config.

        Raises:
            InputError: there is no such run.
        """
        if Path(path).is_dir():
            return cls(path)
        found = find_checkpoint(str(path), Path(runs), any_config=True)
        if not found.is_file():
            raise InputError(f"there is no run {path}. Choose a run's folder, or last.")
        return cls(found.parent.parent)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json: each member's metrics on every split."""
        path = self.folder / "summary.json"
        if not path.is_file():
            raise InputError(f"{self.folder} has no summary.json: the run has not ended.")
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return content

    @cached_property
    def network(self) -> OneLayer:
        """The networks of the last checkpoint."""
        return load_network(last_of(self.folder))

    @property
    def curves(self) -> Any:
        """The records of curves.csv: a DataFrame if pandas is installed, else a list of Row."""
        rows = read_rows(self.folder / "curves.csv")
        try:
            import pandas
        except ImportError:
            return rows
        return pandas.DataFrame(rows, columns=list(Row._fields))

    def plot(self) -> Image:
        """Return the plot of the curves."""
        from PIL import Image

        path = self.folder / "curves.png"
        if not path.is_file():
            title = network_name(self.summary["hidden"])
            plot_curves(self.folder / "curves.csv", path, self.summary["dataset"], title)
        return Image.open(io.BytesIO(path.read_bytes()))

    def plot_weights(self, member: int | str = "best") -> Image:
        """Return the weights of one network as images: one per class, or per hidden unit.

        Args:
            member: index of the network; by default the first of the λ best on validation.

        Raises:
            InputError: the network was not trained on images, or has diverged.
        """
        from PIL import Image

        sheet = picture_of(self.network, member)
        if sheet is None:
            shape = self.network.samples.get("shape", ())
            raise InputError(
                f"the weights of {self.network.choose(member).words} cannot be drawn: samples "
                f"{shape} are not images, or the weights are not finite. Choose another network."
            )
        return Image.fromarray(sheet)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"

    def __str__(self) -> str:
        return format_summary(self.summary)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"
