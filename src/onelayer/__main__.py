"""The ``onelayer`` command: help at once, everything else after the heavy imports.

torch, torchvision and Lightning take seconds to import, so what can be answered without them is
answered here; a subcommand goes to `onelayer.cli.commands.run`.
"""

from __future__ import annotations

import codecs
import difflib
import io
import os
import shlex
import signal
import sys
from collections.abc import Sequence

from onelayer.cli import SUBCOMMANDS

ASCII = {"±": "+-", "λ": "lambda", "η": "eta", "×": "x", "≈": "~", "…": "...", "•": "|", "━": "-"}
"""Replacements for signs that standard output cannot show."""

PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>

_HELP = """\
usage: onelayer SUBCOMMAND [options]
       onelayer --help | --version

Train one-layer softmax networks on CIFAR-10 or any features, with gradients you
can check, learning rates that cycle, and as many networks at once as you like.

subcommands:
{subcommands}

examples:
  onelayer fit -c quickstart
  onelayer fit -c three_cycles --model.hidden 50 --model.l2 0.01
  onelayer fit -c three_cycles --model.seeds '[0,1,2,3,4]'
      five networks in one pass: mean and spread over their seeds
  onelayer fit -c three_cycles -c linear
      the second file is laid over the first, and options over both
  onelayer fit --data ArraysDataModule --data.train train.npz
      features and labels of your own
  onelayer fit --ckpt_path last
      go on with the newest run, after Ctrl+C or a kill
  onelayer test --ckpt_path last
  onelayer export --ckpt_path last --output head.onnx
  onelayer gradcheck --hidden 50

A run leaves its curves, plots and checkpoints in lightning_logs/. CIFAR-10 is
looked for in $ONELAYER_DATA, or data/ where that is unset; --data.root DIR says
otherwise.

onelayer fit --help lists every option of fit; so for each subcommand.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the console script's entry.

    Args:
        argv: The words after ``onelayer``; by default the process's own.

    Returns:
        The exit code: 0, or 1 where a check or a part of the work has failed, 2 where the input is
        wrong, 130 after Ctrl-C, 143 after SIGTERM, 141 where the reader of standard output has
        gone.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        end_with_parent()
    _print_anything()
    try:
        try:
            return _answer(words)
        finally:
            if sys.stdout is not None:  # None: closed before the start
                sys.stdout.flush()  # a closed pipe shows here rather than at the interpreter's end
    except KeyboardInterrupt as interrupt:
        print(f"onelayer: interrupted{_way_on(words)}", file=sys.stderr)
        return 128 + int(getattr(interrupt, "signum", signal.SIGINT))
    except OSError as error:
        if argv is None and error.filename is None and sys.stdout is not None:
            # The interpreter flushes once more when it ends: let that go nowhere.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return 141
        where = error.filename or "output"
        print(f"onelayer: error: {where}: {error.strerror or error}", file=sys.stderr)
        return 2


def end_with_parent() -> None:
    """End this further process of a run when the process that started it ends. Linux only.

    Lightning starts a process for each further device. If the first one is stopped before they
    connect, the others would wait for it for half an hour.
    """
    if sys.platform == "linux" and os.environ.get("LOCAL_RANK", "0") != "0":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))


def _print_anything() -> None:
    """Replace signs that the terminal cannot show, such as ± in the locale C."""
    codecs.register_error("onelayer", _in_ascii)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="onelayer")


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    signs = error.object[error.start : error.end]
    return "".join(ASCII.get(sign, "?") for sign in signs), error.end


def _answer(words: list[str]) -> int:
    first = words[0] if words else "--help"
    if first in {"-h", "--help"}:
        print(help_text(), end="")
        return 0
    if first == "--version":
        from importlib.metadata import version

        print(f"onelayer {version('onelayer')}")
        return 0
    if first not in SUBCOMMANDS:
        print(_unknown(first), file=sys.stderr)
        return 2
    return _run(words)


def _run(words: list[str]) -> int:
    # Figures go to files. A backend that matplotlib refuses would end Lightning's import.
    os.environ["MPLBACKEND"] = "agg"
    from onelayer.cli.commands import run
    from onelayer.core.errors import InputError, TrainingError
    from onelayer.data.naming import shown_lines
    from onelayer.training.interrupt import Stopped

    try:
        return run(words)
    except InputError as error:
        print(f"onelayer: error: {shown_lines(error)}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"onelayer: {error}", file=sys.stderr)
        return 1
    except Stopped as stop:
        way_on = _way_on(words, stop.checkpoint)
        print(f"onelayer: stopped after {stop.step} updates{way_on}", file=sys.stderr)
        return 128 + stop.signum


def _way_on(words: Sequence[str], checkpoint: str | None = None) -> str:
    """Return the advice how to go on with a stopped command, if it left something."""
    if words[:1] in (["features"], ["search"], ["solve"], ["report"]):
        return ": the same command goes on from there"
    if checkpoint is None:
        return ""
    kept = [word for word in words if not word.startswith("--ckpt_path=")]
    while "--ckpt_path" in kept:
        at = kept.index("--ckpt_path")
        del kept[at : at + 2]
    return f". To go on: onelayer {shlex.join(kept)} --ckpt_path {shlex.quote(checkpoint)}"


def help_text() -> str:
    """Return the text of ``onelayer --help``."""
    lines = (f"  {name:<11}{purpose}" for name, purpose in SUBCOMMANDS.items())
    return _HELP.format(subcommands="\n".join(lines))


def _unknown(word: str) -> str:
    """Return two lines about a first word that is no subcommand."""
    close = difflib.get_close_matches(word, SUBCOMMANDS, n=1)
    if word.startswith("-"):
        problem = f"the subcommand comes first, before {word}"
    elif close:
        problem = f"unknown subcommand {word!r}: did you mean {close[0]!r}?"
    else:
        problem = f"unknown subcommand {word!r}"
    return f"onelayer: error: {problem}\nsubcommands: {', '.join(SUBCOMMANDS)}"


if __name__ == "__main__":
    sys.exit(main())
