"""The contracts of pyproject.toml about imports, checked by import-linter."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("importlinter")

REPOSITORY = Path(__file__).parents[1]


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the package in ``folder``."""
    return subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()",
         "--no-cache", "--config", str(REPOSITORY / "pyproject.toml")],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_the_package_keeps_its_contracts() -> None:
    done = lint(REPOSITORY / "src")
    assert done.returncode == 0, done.stdout


def test_planted_imports_are_caught(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "src" / "onelayer", tmp_path / "onelayer")
    for file, source in {
        "core/formulas.py": "import lightning",
        "core/errors.py": "def f():\n    from onelayer.data import loader",
        "training/records.py": "import lightning",
        "study/search.py": "from onelayer.cli import app",
    }.items():
        with (tmp_path / "onelayer" / file).open("a") as module:
            module.write(f"\n{source}\n")
    done = lint(tmp_path)
    assert done.returncode == 1
    printed = " ".join(done.stdout.split())
    for contract in (
        "packages import downwards",
        "core imports torch alone",
        "records of curves import neither torch nor Lightning",
    ):
        assert f"{contract} BROKEN" in printed
    for edge in (
        "onelayer.core.formulas -> lightning", "onelayer.core.errors -> onelayer.data.loader",
        "onelayer.training.records -> lightning", "onelayer.study.search -> onelayer.cli.app",
    ):  # fmt: skip
        assert edge in printed
