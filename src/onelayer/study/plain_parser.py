"""Parser of the commands that have neither sections nor configs."""

from __future__ import annotations

import argparse
from typing import Any, NoReturn

from onelayer.core.errors import InputError


class PlainParser(argparse.ArgumentParser):
    """argparse's parser, which raises its errors in a line instead of exiting.

    Args:
        command: name of the command.
        description: what it does, a sentence.
    """

    def __init__(self, command: str, description: str, **options: Any) -> None:
        name = f"onelayer {command}"
        super().__init__(prog=name, description=description, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raise :class:`InputError`."""
        raise InputError(f"{message}\nsee {self.prog} --help")
