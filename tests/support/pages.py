"""Pages of the documentation, run line by line."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from onelayer.__main__ import main

DOCS = Path(__file__).parents[2] / "docs"


def run_page(name: str, more: Mapping[str, Sequence[str]]) -> tuple[dict[str, Any], int]:
    """Run a page's Python and its commands in their order, here.

    Args:
        name: of the page.
        more: words to add to the commands, by subcommand.

    Returns:
        What the Python has named, and the number of commands.
    """
    names, commands = dict[str, Any](), 0
    page = (DOCS / name).read_text(encoding="utf-8")
    for language, text in re.findall(r"```(\w*)\n(.*?)```", page, re.DOTALL):
        if language == "python":
            exec(compile(text, name, "exec"), names)
            continue
        for line in text.splitlines():
            if not line.startswith("onelayer "):
                continue  # an equation
            _, command, *words = shlex.split(line)
            trains = command not in ("search", "solve")
            quiet = ["--trainer.enable_progress_bar=false"] if trains else []
            assert main([command, *words, *more.get(command, []), *quiet]) == 0, line
            commands += 1
    return names, commands
