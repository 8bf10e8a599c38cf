"""Processes without the seconds that imports take, for tests of kills and of several processes.

A server imports everything and computes nothing, and processes are forked from it. Each has what
a new one has: a folder, an environment, output and random states of its own.
"""

import multiprocessing
import os
import socket
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
IMPORTED = ["onelayer", "onelayer.cli.app", "onelayer.study.report", "optuna", "matplotlib.figure",
            "matplotlib.backends.backend_agg", "tensorboard.summary.writer.event_file_writer",
            "torch.utils.tensorboard", "tests.support.claiming"]  # fmt: skip
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(IMPORTED)


class Forked:
    """A process that calls a function and exits with what it returns.

    Args:
        function: function of a module.
        arguments: arguments of the function.
        folder: working folder, in which files with its output are made, too.
        environment: variables besides those of this process.
    """

    def __init__(self, function, *arguments, folder, environment=None):
        self._output = Path(tempfile.mkdtemp(dir=folder, prefix=".output-"))
        variables = {**os.environ, **(environment or {})}
        words = (function, arguments, Path(folder).resolve(), variables, self._output.resolve())
        self._process = CONTEXT.Process(target=_call, args=words, daemon=True)
        with pytest.MonkeyPatch.context() as patch:  # the server is started here, if none runs
            patch.setenv("PYTHONPATH", f"{REPOSITORY / 'src'}{os.pathsep}{REPOSITORY}")
            self._process.start()
        self.pid = self._process.pid

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.join()

    def wait(self, seconds=200):
        """Return the exit code, or minus the number of the signal that ended it."""
        self._process.join(seconds)
        assert self._process.exitcode is not None, f"alive after {seconds} s: {self.err}"
        return self._process.exitcode

    @property
    def is_alive(self):
        return self._process.is_alive()

    @property
    def out(self):
        return (self._output / "out").read_text()

    @property
    def err(self):
        return (self._output / "err").read_text()


def command(words, **options):
    """Start an onelayer command in a process."""
    return Forked(_main, words, **options)


def ranks(number):
    """Return the variables of each process of a group, as Lightning or torchrun sets them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(number)}
    return [{**common, "RANK": str(i), "LOCAL_RANK": str(i)} for i in range(number)]


def _main(words):
    from onelayer.__main__ import main

    sys.argv = ["onelayer", *words]
    sys.modules["__main__"].__spec__ = find_spec("onelayer.__main__")  # python -m onelayer
    return main()


def _call(function, arguments, folder, variables, output):
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(output / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, descriptor)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(folder)
    sys.exit(function(*arguments))
