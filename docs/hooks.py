"""Pages that mkdocs generates: every command's options, and every config."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
COMMANDS = (
    "fit", "validate", "test", "predict", "export", "features", "gradcheck", "range", "search",
    "solve", "report",
)  # fmt: skip


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    for name, content in {"commands.md": _commands(), "configs.md": _configs()}.items():
        files.append(File.generated(config, name, content=content))
    return files


def _commands() -> str:
    text = ["# Commands", "Every option of every command, as `onelayer COMMAND --help` prints it."]
    environment = {**os.environ, "COLUMNS": "96", "NO_COLOR": "1"}
    for name in COMMANDS:
        done = subprocess.run(
            [sys.executable, "-m", "onelayer", name, "--help"],
            capture_output=True, text=True, check=True, env=environment,
        )  # fmt: skip
        text += [f"## {name}", f"```text\n{done.stdout.strip()}\n```"]
    return "\n\n".join(text) + "\n"


def _configs() -> str:
    text = [
        "# Configs",
        "Every config of the package, for `-c NAME`. A second one is laid over it.",
    ]
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        text += [f"## {path.stem}", f"```yaml\n{path.read_text(encoding='utf-8').strip()}\n```"]
    return "\n\n".join(text) + "\n"
