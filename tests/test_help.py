"""Help: every option of every command and data class is described in plain words."""

import re

import pytest

from onelayer.__main__ import main
from onelayer.cli.help import plain
from onelayer.cli.parser import Parser

COMMANDS = ("fit", "validate", "test", "predict", "search", "range", "solve", "report")
CLASSES = ("ArraysDataModule", "DatasetDataModule", "tests.support.small.SmallData")
HEADLESS = r"(of|those|what|who|where|which|that|its|their)\b"


def help_of(capfd, *words):
    with pytest.raises(SystemExit) as end:
        main([*words, "--help"])
    assert end.value.code == 0
    return capfd.readouterr().out


def options_in(text):
    """The options that a help text lists, with their descriptions."""
    found = re.split(r"\n  (?=-)", text)[1:]
    entries = [" ".join(entry.split("\n\n")[0].split()) for entry in found]
    return {entry.split()[0]: entry for entry in entries}


def assert_described(text):
    assert not re.search(r":[a-z]+:`|`", text)
    options = options_in(text)
    assert len(options) > 5
    for name, entry in options.items():
        words = re.sub(r"\((?:required, )?type:.*", "", entry)
        words = re.sub(r"^(--?[\w.+]+( [A-Z_0-9]+| \{[^}]*\}| \[[^]]*\])?(, )?)+", "", words)
        assert len(words.split()) >= 2, f"{name} has no description"
        assert not re.match(HEADLESS, words.strip(), re.IGNORECASE), f"{name}: {words}"
    return options


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_a_command_is_described(capfd, command):
    assert_described(help_of(capfd, command))


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("command", ["fit", "solve"])
def test_help_lists_the_options_of_the_class_that_was_named(capfd, command, kind):
    options = options_in(help_of(capfd, command, "--data", kind))
    assert "--data.batch_size" in options
    if "." not in kind:  # a user's own class may describe nothing
        assert_described(help_of(capfd, command, "--data", kind))
        assert "--data.standardise" in options


def test_help_of_fit_is_short_and_begins_with_our_options(capfd):
    lines = help_of(capfd, "fit", "--data", "ArraysDataModule").splitlines()
    assert lines[0] == "usage: onelayer fit [-c CONFIG] [options]"
    assert len(lines) < 450
    names = [name for line in lines for name in re.findall(r"^  --([\w.]+)", line)]
    trainer = [i for i, name in enumerate(names) if name.startswith("trainer.")]
    assert trainer == list(range(len(names) - len(trainer), len(names)))
    assert "data.train" in names


def test_help_makes_nothing(capfd, monkeypatch):
    """Neither network nor data nor trainer."""
    monkeypatch.setattr(Parser, "instantiate_classes", lambda *_: pytest.fail("made"))
    assert "--model.hidden" in help_of(capfd, "fit")


def test_what_we_override_is_described_by_us(capfd):
    options = options_in(help_of(capfd, "predict"))
    assert "last for the newest run" in options["--ckpt_path"]
    assert "written to --output" in options["--return_predictions"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (":mod:`onelayer.training.blocks`", "blocks"),
        (":class:`~a.b.Snapshots`", "Snapshots"),
        (":paramref:`~a.Trainer.x`", "x"),
        ("``None``, `Notes <https://host/>`_", "None, Notes"),
    ],
)
def test_marks_of_sphinx_are_taken_out(text, words):
    assert plain(text) == words
