"""Options and configuration files: jsonargparse's parser, with errors of a few lines."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from enum import Enum
from itertools import islice, pairwise, takewhile
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import yaml
from jsonargparse import Namespace, get_loader, set_loader
from lightning.pytorch.cli import LightningArgumentParser

from onelayer.cli.help import PlainHelp, options_of
from onelayer.configs import find_config
from onelayer.core.errors import InputError

CONFIG = ("-c", "--config")
ELSEWHERE = {
    **dict.fromkeys(("lambda", "lam", "reg", "alpha", "weight_decay"), ("model.l2",)),
    **dict.fromkeys(("lr", "learning_rate"), ("schedule.max_lr",)),
    **dict.fromkeys(("eta", "eta_max"), ("schedule.max_lr",)),
    **dict.fromkeys(("eta_min", "min_lr"), ("schedule.base_lr",)),
    **dict.fromkeys(("epochs", "num_epochs", "n_epochs"), ("trainer.max_epochs",)),
    **dict.fromkeys(("steps", "updates", "iterations"), ("trainer.max_steps",)),
    **dict.fromkeys(("batch", "n_batch", "bs"), ("data.batch_size",)),
    **dict.fromkeys(("hidden_units", "hidden_size", "num_hidden", "m"), ("model.hidden",)),
    **dict.fromkeys(("gpus", "num_gpus"), ("trainer.devices",)),
    **dict.fromkeys(("device", "gpu", "cuda"), ("trainer.accelerator",)),
    **dict.fromkeys(("resume", "checkpoint", "ckpt", "load"), ("ckpt_path",)),
    **dict.fromkeys(("data_dir", "dataroot", "data_root", "data_path"), ("data.root",)),
    "n_s": ("schedule.step_size",),
    "seed": ("model.seeds",),
}
"""Options by what other programs call them."""
MAPPING = "it must be a mapping, such as 'model:' over '  hidden: 50'."
MOST = 100_000
"""Values in a configuration at most, with aliases written out: ten lines could name billions."""


class Parser(LightningArgumentParser):
    """jsonargparse's parser, whose errors are a few lines and whose options have one spelling."""

    told: ClassVar[set[str]] = set()
    """What was warned of: a config is parsed more than once."""
    command = ""
    """The subcommand, for messages."""
    data_class: type | None = None
    """The class that --data names, where that can be told."""
    data_of_a_class = False
    """Whether --data names a class: then no config's options of CIFAR10DataModule are used."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", PlainHelp)
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def format_help(self, *args: Any) -> str:
        """Return the help, with the options of the class of data that was named."""
        text = str(super().format_help(*args))
        if self.data_class is None:
            return text
        options = options_of(self.data_class, Parser(prog="", add_help=False))
        return f"{text}\n{self.data_class.__name__}:\n  {options}"

    def parse_path(self, cfg_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Parse a configuration file, and name it in an error."""
        try:
            text = Path(cfg_path).read_text(encoding="utf-8")
            if (rest := self._usable(text)) is not None:
                config = self._parse(rest, *args, **kwargs)
            else:
                config = super().parse_path(cfg_path, *args, **kwargs)
        except UnicodeDecodeError as error:
            fault = f"it is not UTF-8 text (byte {error.start})"
        except (yaml.YAMLError, InputError, TypeError, RecursionError) as error:
            fault = shorten(str(error).removeprefix("Problems parsing config: "))
        else:
            sections = {action.dest.split(".")[0] for action in self._actions if "." in action.dest}
            wrong = [s for s in sections if not isinstance(config.get(s, {}), dict | Namespace)]
            if not wrong:
                return config
            fault = f"{wrong[0]} is {config[wrong[0]]!r}: {MAPPING}"
        if fault.startswith("Unexpected config"):
            fault = f"it is empty, or no mapping of sections: {MAPPING}"
        raise InputError(f"config {cfg_path}: {fault}")

    def parse_string(self, content: Any, *args: Any, **kwargs: Any) -> Any:
        """Parse a configuration given as YAML, less what the subcommand cannot use."""
        if (rest := self._usable(content)) is not None:
            return self._parse(rest, *args, **kwargs)
        return super().parse_string(content, *args, **kwargs)

    def _parse(self, content: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if not content:
            return Namespace()  # type: ignore[no-untyped-call]
        return super().parse_string(yaml.safe_dump(content), *args, **kwargs)

    def _usable(self, text: str) -> dict[str, Any] | None:
        """What the subcommand can use of a config; None for all of it."""
        from onelayer.cli.sections import usable

        content = load_yaml(text)
        return usable(self, content) if isinstance(content, dict) else None

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a few lines instead of printing the whole usage and exiting."""
        from onelayer.cli.sections import every_option

        unknown = re.search(r"unrecognized arguments: --([\w.]+)", message)
        if unknown and self.command and unknown[1] in every_option():
            raise InputError(
                f"onelayer {self.command} does not use --{unknown[1]}. Leave it out."
            ) from ex
        raise InputError(shorten(message) + self._nearest(message)) from ex

    def _nearest(self, message: str) -> str:
        """The option that was probably meant, where the message names one that is none."""
        if re.search(r"unrecognized arguments: [^-]", message):
            return "\nA value of several is typed as one word: '[a,b]'."
        unknown = re.search(r"(?:arguments: --|option ')([\w.-]+)", message)
        if not unknown:
            return ""
        options = {option for parser in self._all_parsers() for option in parser}
        word = unknown[1].replace("-", "_")
        name = word.rpartition(".")[2]
        meant = [option for option in ELSEWHERE.get(name, ()) if option in options]
        meant = meant or [option for option in sorted(options) if option.endswith(f".{name}")]
        meant = meant or difflib.get_close_matches(word, options, n=1, cutoff=0.7)
        note = " A weight_decay is twice an l2." if name == "weight_decay" else ""
        return f"\nDid you mean {' or '.join(meant)}?{note}" if meant else ""

    def _all_parsers(self) -> Iterator[list[str]]:
        for action in self._actions:
            for parser in getattr(action, "choices", None) or {}:
                choice = action.choices[parser] if isinstance(action.choices, dict) else None
                if isinstance(choice, Parser):
                    yield from choice._all_parsers()
        yield [action.dest for action in self._actions]


def ours_first(parser: LightningArgumentParser) -> None:
    """Let --help list the Trainer's many options after all others."""
    groups: Any = parser._action_groups
    groups.sort(key=lambda group: any(a.dest.startswith("trainer.") for a in group._group_actions))


def shorten(message: str) -> str:
    """Jsonargparse's message in two lines: the key, and what is legal and what was given."""
    message = re.sub(r"<class '(\w+)'>", r"\1", message)
    message = re.sub(r'\n\s*in "<\w+ string>", (line \d+), column \d+:?', r" (\1)", message)
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    for line, following in pairwise([*lines, ""]):
        if line.startswith("- ") and not line.startswith(("- Expected", "- Not a valid subclass")):
            reason = line.removeprefix("- ")
            return f"{lines[0]}: {reason} {following if reason.endswith(':') else ''}".strip()
    expected = [line.removeprefix("- Expected ") for line in lines if line.startswith("- Expected")]
    given = [line for line in lines if line.startswith("Given value:")]
    if expected and given:
        return f"{lines[0]} expected {' or '.join(expected)}. {given[0][:200]}"
    return "\n".join(lines[:3])


# ---- configuration files


def configs_first(argv: Sequence[str]) -> list[str]:
    """The words after a subcommand with its configs in front: options count over all of them.

    A config is a YAML file, the name of one that comes with the package, or YAML itself.
    """
    configs, others, words = list[str](), list[str](), iter(argv)
    for word in words:
        if word in CONFIG:
            configs += ["--config", *map(_found, islice(words, 1))]
        elif word.startswith("--config="):
            configs += ["--config", _found(word.removeprefix("--config="))]
        elif word.startswith("-c") and len(word) > 2:
            configs += ["--config", _found(word[2:])]
        else:
            others.append(word)
    return configs + others


def several_images(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of predict without those after ``--data.images``, and those, if they are several.

    A shell makes several words of ``photos/*.png``.
    """
    words = list(argv)
    if "--data.images" not in words[:-1]:
        return words, []
    first = words.index("--data.images")
    names = list(takewhile(lambda word: not word.startswith("-"), words[first + 1 :]))
    if len(names) < 2:
        return words, []
    return words[:first] + words[first + 1 + len(names) :], names


def _found(value: str) -> str:
    """The path of a configuration, or YAML as it is."""
    if Path(value).is_dir():
        raise InputError(f"config {value}: it is a folder, not a YAML file.")
    if Path(value).is_fifo() and not value.startswith("/dev/fd/"):  # which a shell's <(…) makes
        raise InputError(f"config {value}: it is a named pipe, which may never end; use a file.")
    return value if ":" in value and not Path(value).is_file() else str(find_config(value))


def names_of(configs: Sequence[Any] | None) -> str:
    """A name for runs of these configurations, as jsonargparse keeps them."""
    return "+".join(Path(str(path)).stem for path in configs or [] if path is not None)


def load_yaml(text: str) -> Any:
    """Load a configuration, or the value of an option, that says everything once.

    Raises:
        yaml.YAMLError: also for a key given twice, of which YAML takes the last, and for an alias
            that stands for itself or for a multitude.
    """
    loader = yaml.CSafeLoader(text)
    try:
        if node := loader.get_single_node():
            _check(node, {})
    finally:
        loader.dispose()
    return _load_value(text)


def _check(node: yaml.Node, sizes: dict[int, int]) -> int:
    """The values in a node, aliases written out."""
    size = sizes.get(id(node))
    if size is None:
        sizes[id(node)] = -1  # begun
        children = node.value if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            children = [child for pair in node.value for child in pair]
            _check_keys(node)
        size = sizes[id(node)] = 1 + sum(_check(child, sizes) for child in children)
    if size < 0 or size > MOST:
        problem = "an alias stands for itself" if size < 0 else f"it has more than {MOST:,} values"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
    return size


def _check_keys(node: yaml.MappingNode) -> None:
    seen = set()
    for key, _ in node.value:
        name = (key.tag, str(key.value))
        if name in seen:
            raise yaml.MarkedYAMLError(
                problem=f"the key {key.value!r} stands here twice", problem_mark=key.start_mark
            )
        seen.add(name)


def _represent_enum(dumper: yaml.SafeDumper, value: Enum) -> yaml.Node:
    """An enum's value, as options take it: Lightning's classes have enums for defaults."""
    return dumper.represent_data(value.value)


yaml.SafeDumper.add_multi_representer(Enum, _represent_enum)  # config.yaml is written by it

_load_value = get_loader("yaml")
set_loader("yaml", load_yaml, (yaml.YAMLError, RecursionError))
