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
from onelayer.core.checks import at_home
from onelayer.core.errors import InputError

CONFIG = ("-c", "--config")
RUNS = "lightning_logs"
TRAINER_HEADING = "Customize every aspect of training"  # Lightning's
FLAT = ("l2_min", "l2_max", "number", "gap")  # once in solve.yaml without their section
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
"""Options by their names in other programs."""
MAPPING = "it must be a mapping, such as 'model:' over '  hidden: 50'."


class Parser(LightningArgumentParser):
    """jsonargparse's parser with errors of a few lines and one spelling of every option.

    Attributes:
        told: warnings given; a config is parsed more than once.
        command: the command, for messages.
        data_class: class that --data names, if it is known.
        data_of_a_class: whether --data names a class, so that flat options of data are not used.
    """

    told: ClassVar[set[str]] = set()
    command = ""
    data_class: type | None = None
    data_of_a_class = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", PlainHelp)
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def format_help(self, *args: Any) -> str:
        """Return the help: our options, then the Trainer's, and those of the class of data."""
        groups: Any = self._action_groups
        groups.sort(
            key=lambda group: any(a.dest.startswith("trainer.") for a in group._group_actions)
        )
        text = str(super().format_help(*args))
        if self.data_class is None:
            return text
        options = options_of(self.data_class, Parser(prog="", add_help=False))
        ours, mark, trainer = text.partition(f"\n{TRAINER_HEADING}")
        return f"{ours}\n{self.data_class.__name__}:\n  {options}{mark}{trainer}"

    def parse_path(self, cfg_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Parse a configuration file and name it in errors."""
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
        """Parse a configuration given as YAML, without the options that the command cannot use."""
        if (rest := self._usable(content)) is not None:
            return self._parse(rest, *args, **kwargs)
        return super().parse_string(content, *args, **kwargs)

    def _parse(self, content: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if not content:
            return Namespace()  # type: ignore[no-untyped-call]
        return super().parse_string(yaml.safe_dump(content), *args, **kwargs)

    def _usable(self, text: str) -> dict[str, Any] | None:
        """Return the options of a config that the command can use; None for all of them."""
        from onelayer.cli.sections import usable

        content = load_yaml(text)
        if not isinstance(content, dict):
            return None
        sorted_ = _into_section(content)
        usable_ = usable(self, sorted_)
        return sorted_ if usable_ is None and sorted_ is not content else usable_

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
        """Return the option that was probably meant by one that does not exist."""
        if re.search(r"unrecognized arguments: [^-]", message):
            return "\nQuote a list as one argument: '[a,b]'."
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


def shorten(message: str) -> str:
    """Return jsonargparse's message in two lines: the key, then legal and given values."""
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
    """Return the words after a command with its configs in front, so that options override them.

    A config is a YAML file, the name of a shipped one, or YAML itself.
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
    """Return the words of predict without the values of ``--data.images``, and these, if several.

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
    """Return the path of a configuration, or YAML as it is."""
    if Path(value).is_dir():
        raise InputError(f"config {value}: it is a folder, not a YAML file.")
    return value if ":" in value and not Path(value).is_file() else str(find_config(value))


def _into_section(content: dict[str, Any]) -> dict[str, Any]:
    """Return a config with the flat options of an early solve.yaml in their section."""
    flat = {name: content[name] for name in FLAT if name in content}
    if not flat:
        return content
    rest = {name: value for name, value in content.items() if name not in flat}
    return {**rest, "solve": {**flat, **(content.get("solve") or {})}}


def typed_options(argv: Sequence[str]) -> dict[str, str]:
    """Return the options given on the command line with their text, by name with its dashes."""
    options = dict[str, str]()
    for word, following in pairwise([*argv, ""]):
        if word.startswith("--"):
            name, given, value = word.partition("=")
            options[name] = value if given else following
    return options


def names_of(configs: Sequence[Any] | None) -> str:
    """Return the name of runs of these configurations, as jsonargparse keeps them."""
    return "+".join(Path(str(path)).stem for path in configs or [] if path is not None)


def output_of(config: Namespace) -> Path | None:
    """Return where results go: the path of --output; None for the command's usual one."""
    return None if config.output is None else at_home(config.output)


def load_yaml(text: str) -> Any:
    """Load a configuration, or the value of an option.

    Raises:
        yaml.YAMLError: also for a key that is given twice; YAML would take the last.
    """
    nodes, seen = [yaml.compose(text, Loader=yaml.CSafeLoader)], set[int]()
    while nodes:
        node = nodes.pop()
        if id(node) in seen:  # an alias
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
            nodes += [child for pair in node.value for child in pair]
        elif isinstance(node, yaml.SequenceNode):
            nodes += node.value
    return _load_value(text)


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
    """Represent an enum by its value, as options take it: some defaults of Lightning are enums."""
    return dumper.represent_data(value.value)


yaml.SafeDumper.add_multi_representer(Enum, _represent_enum)  # config.yaml is written by it

_load_value = get_loader("yaml")
set_loader("yaml", load_yaml, (yaml.YAMLError, RecursionError))
