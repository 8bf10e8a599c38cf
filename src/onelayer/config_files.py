"""Configuration files, looked at before jsonargparse reads them.

It takes an empty file for one that sets nothing, the last of two equal keys, and ends with a
traceback on bytes that are no text.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import yaml

from onelayer.core.errors import InputError

SECTIONS = (
    "model", "data", "schedule", "trainer", "curves", "checkpoints", "search", "final",
)  # fmt: skip
"""Keys whose value is a mapping."""
CONFIG = ("-c", "--config")


def configs_first(argv: Sequence[str]) -> list[str]:
    """The words after a subcommand with its configs in front: options count over all of them."""
    configs, others = [], []
    words = iter(argv)
    for word in words:
        if word in CONFIG:
            configs += [word, *islice(words, 1)]
        elif word.startswith("--config="):
            configs.append(word)
        else:
            others.append(word)
    return configs + others


def check_configs(argv: Sequence[str]) -> None:
    """Check every file that ``-c`` or ``--config`` names in a command line."""
    for path in config_paths(argv):
        check_config(Path(path))


def config_paths(argv: Sequence[str]) -> Iterator[str]:
    """The values of ``-c`` and ``--config``."""
    for word, following in pairwise([*argv, ""]):
        if word in CONFIG and following:
            yield following
        elif word.startswith("--config="):
            yield word.removeprefix("--config=")


def check_config(path: Path) -> None:
    """Raise :class:`InputError` unless ``path`` is a YAML mapping with unique keys."""
    try:
        content = yaml.load(path.read_bytes().decode("utf-8"), Loader=_Loader)
        json.dumps(content, default=str)  # refuses an anchor that holds itself: a: &a [*a]
    except OSError as error:
        what = "not a file" if path.is_dir() else (error.strerror or str(error)).lower()
        raise InputError(f"config {path}: {what}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"config {path} is not UTF-8 text (byte {error.start}).") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise InputError(
            f"config {path}{where}: {getattr(error, 'problem', None) or 'no YAML'}."
        ) from error
    except (ValueError, TypeError, RecursionError) as error:  # 2024-13-01, a list as a key, [[[[…
        raise InputError(f"config {path}: {error}.") from error
    if not isinstance(content, dict) or not content:
        found = "empty" if not content else f"a {type(content).__name__}"
        raise InputError(
            f"config {path} is {found}: it must be a mapping, such as 'model:' over '  hidden: 50'."
        )
    for section in SECTIONS:
        value = content.get(section, {})
        if not isinstance(value, dict):
            found = "empty" if value is None else f"a {type(value).__name__}"
            raise InputError(
                f"config {path}: {section} is {found}: it must be a mapping, "
                "such as 'model:' over '  hidden: 50', or be left out."
            )


class _Loader(yaml.SafeLoader):
    """Refuses a key given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key!r} stands here twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)
