"""The command's entry: what it answers by itself, what it loads, its exit codes."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import onelayer
from onelayer.__main__ import SUBCOMMANDS, main
from onelayer.core.errors import InputError

ANSWER = """
import os, sys
os.environ.pop("OMP_WAIT_POLICY", None)
import onelayer
assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"  # before torch, from Python too
from onelayer.__main__ import main
onelayer.__version__, dir(onelayer)
code = main(sys.argv[1:])
heavy = {"torch", "numpy", "lightning", "torchvision", "torchmetrics", "jsonargparse", "yaml"}
sys.exit("loads " + ", ".join(heavy & set(sys.modules)) if heavy & set(sys.modules) else code)
"""


def run_python(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=timeout, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "code"), [([], 0), (["--help"], 0), (["--version"], 0), (["ift"], 2), (["-c"], 2)]
)
def test_the_command_answers_before_anything_heavy(arguments: list[str], code: int) -> None:
    done = run_python("-c", ANSWER, *arguments)
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == code  # a wrong word: two lines


def test_every_public_name_is_found() -> None:
    assert set(onelayer.__all__) <= set(dir(onelayer))
    for name in onelayer.__all__:
        assert getattr(onelayer, name) is not None
    with pytest.raises(AttributeError, match="'onelayer' has no attribute 'OneLayers'"):
        _ = onelayer.OneLayers


# The entry, with a stand-in for what it hands over to.


def hand_over_to(monkeypatch: pytest.MonkeyPatch, run: Callable[[list[str]], int]) -> None:
    """Put a function in the place of onelayer.cli.commands.run."""
    commands = ModuleType("onelayer.cli.commands")
    monkeypatch.setattr(commands, "run", run, raising=False)
    monkeypatch.setitem(sys.modules, "onelayer.cli.commands", commands)


def fail(error: BaseException) -> Callable[[list[str]], int]:
    def run(words: list[str]) -> int:
        raise error

    return run


def test_a_subcommand_gets_its_words_and_gives_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    hand_over_to(monkeypatch, lambda words: int(words == ["fit", "--model.hidden", "50"]))
    assert main(["fit", "--model.hidden", "50"]) == 1
    assert main(["fit"]) == 0


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InputError("l2 is -1.0: at least 0"), 2, "onelayer: error: l2 is -1.0: at least 0\n"),
        (KeyboardInterrupt(), 130, "onelayer: interrupted\n"),
    ],
)
def test_an_error_is_one_line_and_a_code(
    error: BaseException,
    code: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    hand_over_to(monkeypatch, fail(error))
    assert main(["fit"]) == code
    assert capsys.readouterr().err == line


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    hand_over_to(monkeypatch, fail(ValueError("a bug")))
    with pytest.raises(ValueError, match="a bug"):
        main(["fit"])


def test_a_closed_pipe_is_silent() -> None:
    command = f"{shlex.quote(sys.executable)} -m onelayer --help; echo $? >&2"
    pipe = ["sh", "-c", f"{{ sleep 0.3; {command}; }} | true"]
    done = subprocess.run(pipe, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == "141\n"


def test_help_and_version_say_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in SUBCOMMANDS)
    assert max(map(len, text.splitlines())) <= 88
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"onelayer {onelayer.__version__}\n"


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("gradchek", "unknown subcommand 'gradchek': did you mean 'gradcheck'?"),
        ("xyzzy", "unknown subcommand 'xyzzy'"),
        ("--config", "the subcommand comes first, before --config"),
    ],
)
def test_a_wrong_first_word_is_two_lines(
    word: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([word]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"onelayer: error: {problem}",
        "subcommands: fit, validate, test, predict, export, features, gradcheck, range, search, "
        "solve, report",
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel is asked to end it")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_further_process_ends_with_the_one_that_started_it(how):
    child = (
        "import time; from onelayer.__main__ import end_with_parent; end_with_parent(); "
        "print('begun', flush=True); time.sleep(60)"
    )
    parent = (
        "import subprocess, sys, time; "
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE); "
        "child.stdout.readline(); print(child.pid, flush=True); time.sleep(60)"
    )
    env = {**os.environ, "LOCAL_RANK": "1"}
    first = subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True, env=env
    )
    pid = int(first.stdout.readline())
    first.send_signal(how)
    first.communicate()
    for _ in range(100):
        status = Path(f"/proc/{pid}/stat")
        if not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("it is still there after 5 s")
