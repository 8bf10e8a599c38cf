"""Who may import whom (cli → study → training → data → core), what it loads, and the entry."""

import ast
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

import onelayer
from onelayer.__main__ import SUBCOMMANDS, main
from onelayer.core.errors import InputError

PACKAGE = Path(onelayer.__file__).parent

# A room may import itself and the rooms named here. The top is __init__ and __main__.
MAY_IMPORT = {
    "core": set(),
    "data": {"core", "_compat"},
    "training": {"data", "core", "_compat"},
    "study": {"configs", "training", "data", "core", "_compat"},
    "configs": {"core"},
    "config_files": {"core"},  # the command line's own
    "cli": {"config_files", "configs", "study", "training", "data", "core", "_compat"},
    "_compat": set(),
    "__init__": {"cli", "study", "training", "data", "core", "_compat"},
    "__main__": {"__init__", "cli", "study", "training", "data", "core", "_compat"},
}
CORE_MAY_IMPORT = {"torch", *sys.stdlib_module_names}


def room_of(name: str) -> str:
    """The room of a dotted name of ours: core of onelayer.core.formulas, __init__ of onelayer."""
    return name.split(".")[1] if "." in name else "__init__"


def modules(package: Path) -> dict[str, Path]:
    """Each module's dotted name and its file; a folder's __init__.py has the folder's name."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = (package.name, *path.relative_to(package).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts = parts[:-1]
        found[".".join(parts)] = path
    return found


def imports(name: str, path: Path, ours: dict[str, Path]) -> Iterator[tuple[int, str]]:
    """Line and absolute name of every import, at whatever depth, import_module("…") too."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import():
                yield from ((node.lineno, alias.name) for alias in node.names)
            case ast.ImportFrom():
                source = node.module or ""
                if node.level:
                    base = package.split(".")[: len(package.split(".")) - node.level + 1]
                    source = ".".join([*base, source]) if source else ".".join(base)
                for alias in node.names:  # a name may be a module: from onelayer import core
                    full = f"{source}.{alias.name}"
                    is_module = any(our == full or our.startswith(f"{full}.") for our in ours)
                    yield node.lineno, full if is_module else source
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__")
                | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str() as target), *_],
            ):
                yield node.lineno, target


def broken_arrows(package: Path) -> list[str]:
    """One line for each import that DESIGN.md forbids."""
    ours = modules(package)
    broken = []
    for name, path in ours.items():
        room = path.stem if path.parent == package else path.relative_to(package).parts[0]
        for line, target in imports(name, path, ours):
            where = f"{path.relative_to(package)}:{line}: {room} may not import {target}"
            if target.split(".")[0] == package.name:
                if room_of(target) not in {room, *MAY_IMPORT.get(room, ())}:
                    broken.append(where)
            elif room == "core" and target.split(".")[0] not in CORE_MAY_IMPORT:
                broken.append(where)
    return broken


def test_arrows_point_down() -> None:
    assert broken_arrows(PACKAGE) == []


def test_every_module_lies_in_a_room() -> None:
    rooms = {p.stem if p.suffix else p.name for p in PACKAGE.iterdir() if p.name != "__pycache__"}
    assert rooms - {"py"} <= {*MAY_IMPORT}


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("core/formulas.py", "import lightning\n"),
        ("core/formulas.py", "def f():\n    from torchvision.ops import nms\n"),
        ("core/formulas.py", "import numpy as np\n"),
        ("core/formulas.py", "from onelayer._compat import ensure_torchvision_operators\n"),
        ("core/formulas.py", "from onelayer import __version__\n"),
        ("core/formulas.py", "from onelayer import data\n"),
        ("core/formulas.py", "from .. import data\n"),
        ("core/__init__.py", "from ..data import loader\n"),
        ("core/formulas.py", "import importlib\nimportlib.import_module('torchmetrics')\n"),
        ("data/loader.py", "import onelayer.training.module\n"),
        ("data/loader.py", "class C:\n    def f(self):\n        from ..training import module\n"),
        ("training/module.py", "from onelayer.study import plots\n"),
        ("training/module.py", "if True:\n    import onelayer.cli\n"),
        ("study/search.py", "from onelayer import OneLayer\n"),
        ("study/search.py", "from onelayer.cli import run\n"),
        ("cli.py", "from onelayer import __main__\n"),
        ("_compat.py", "import onelayer.core.formulas\n"),
    ],
)
def test_a_planted_import_is_caught(tmp_path: Path, file: str, source: str) -> None:
    package = plant(tmp_path, file, source)
    assert len(broken_arrows(package)) == 1, broken_arrows(package)


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("core/formulas.py", "import math\nfrom torch import Tensor\nfrom . import errors\n"),
        ("core/__init__.py", "from .errors import InputError\nfrom onelayer.core import errors\n"),
        ("data/loader.py", "import numpy\nimport onelayer.core.errors\nfrom .. import core\n"),
        ("cli.py", "from onelayer import core, data, study, training\nfrom . import _compat\n"),
        ("__main__.py", "from onelayer.cli import run\nfrom onelayer import __version__\n"),
    ],
)
def test_a_permitted_import_is_not(tmp_path: Path, file: str, source: str) -> None:
    assert broken_arrows(plant(tmp_path, file, source)) == []


def plant(folder: Path, file: str, source: str) -> Path:
    """A package of empty modules, one of which holds the source."""
    package = folder / "onelayer"
    files = """
        __init__.py __main__.py _compat.py cli.py
        core/__init__.py core/errors.py core/formulas.py data/__init__.py data/loader.py
        training/__init__.py training/module.py study/__init__.py study/plots.py study/search.py
    """
    for name in files.split():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(source if name == file else "")
    return package


# What running the imports really loads, in a process of its own.

LOADED_BY_CORE = """
import importlib, sys
import torch
before = set(sys.modules)  # torch may load what it likes
for name in sys.argv[1:]:
    importlib.import_module(name)
    loaded = {module.partition(".")[0] for module in set(sys.modules) - before}
    foreign = loaded - {"onelayer", "torch", "numpy", *sys.stdlib_module_names}
    if foreign:
        sys.exit(f"{name} loads {', '.join(sorted(foreign))}")
"""
ANSWER = """
import sys
import onelayer
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


def test_importing_core_loads_only_torch() -> None:
    names = [name for name in modules(PACKAGE) if room_of(name) == "core"]
    assert "onelayer.core" in names
    done = run_python("-c", LOADED_BY_CORE, *names)
    assert done.returncode == 0, done.stderr


def test_loading_more_is_noticed() -> None:
    done = run_python("-c", LOADED_BY_CORE, "onelayer.core", "jsonargparse")
    assert done.returncode == 1
    assert "jsonargparse loads" in done.stderr


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
    """Put a function in the place of onelayer.cli.run."""
    cli = ModuleType("onelayer.cli")
    monkeypatch.setattr(cli, "run", run, raising=False)
    monkeypatch.setitem(sys.modules, "onelayer.cli", cli)


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
        "subcommands: fit, validate, test, predict, gradcheck, search, report",
    ]
