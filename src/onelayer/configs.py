"""The configs that come with the package, found by name wherever one stands.

A wheel carries them in onelayer/configs; a checkout has them at its top.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from onelayer.core.errors import InputError


def find_config(name: str) -> Path:
    """Return a YAML file by its path, or a shipped one by its name.

    Raises:
        InputError: naming the configs that exist, if there is neither.
    """
    path, shipped = Path(name), shipped_configs()
    if path.exists() and not path.is_dir():
        return path
    if name in shipped:
        return shipped[name]
    raise InputError(
        f"there is no config {name!r}: name a YAML file, or one of those that come with onelayer,\n"
        f"{', '.join(shipped)}."
    )


def shipped_configs() -> dict[str, Path]:
    """Return the shipped configs by name."""
    folder = Path(str(resources.files("onelayer") / "configs"))
    if not folder.is_dir():  # a checkout
        folder = Path(__file__).resolve().parents[2] / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_configs(*names: str) -> dict[str, dict[str, Any]]:
    """Return the settings of shipped configs, later ones over earlier, by section and key."""
    shipped, settings = shipped_configs(), dict[str, dict[str, Any]]()
    for name in names:
        for section, values in yaml.safe_load(shipped[name].read_text(encoding="utf-8")).items():
            settings.setdefault(section, {}).update(values)
    return settings
