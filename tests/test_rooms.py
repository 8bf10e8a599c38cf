"""Who may import whom: the contracts in pyproject.toml, kept by import-linter."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Judge the package in ``folder`` by the contracts."""
    return subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()",
         "--no-cache", "--config", str(REPOSITORY / "pyproject.toml")],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_arrows_point_down() -> None:
    done = lint(REPOSITORY / "src")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("file", "source", "contract"),
    [
        ("core/formulas.py", "import lightning", "core knows torch alone"),
        ("core/errors.py", "def f():\n    from onelayer.data import loader", "rooms"),
        ("training/records.py", "import lightning", "rows of curves know no Lightning"),
        ("study/search.py", "from onelayer.cli import app", "rooms"),
    ],
)
def test_a_planted_import_is_caught(tmp_path: Path, file: str, source: str, contract: str) -> None:
    shutil.copytree(REPOSITORY / "src" / "onelayer", tmp_path / "onelayer")
    with (tmp_path / "onelayer" / file).open("a") as module:
        module.write(f"\n{source}\n")
    done = lint(tmp_path)
    assert done.returncode == 1
    assert f"{contract} BROKEN" in " ".join(done.stdout.split())
