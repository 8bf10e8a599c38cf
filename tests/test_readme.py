"""The README holds: its Python runs, its commands are taken, its links lead somewhere."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from onelayer.__main__ import main

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"^onelayer .*$", README, re.MULTILINE)
SMALL = [
    "--data.source=synthetic", "--data.train_batches=[1]", "--data.val_batches=null",
    "--data.val_size=200", "--data.limit=60", "--data.batch_size=30",
    "--trainer.enable_progress_bar=false",
]  # fmt: skip
SHORT = ["--schedule.step_size=5"]
TINY = {
    "fit": [*SMALL, *SHORT],
    "test": SMALL,
    "predict": ["--trainer.enable_progress_bar=false"],
    "gradcheck": ["--hidden=3"],
    "search": [
        *SMALL[:-1], *SHORT, "--search.number=2", "--search.stages=1", "--final.step_size=5",
        "--final.val_size=200", "--final.batch_size=30", "--final.seeds=[0]",
    ],
}  # fmt: skip


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_a_snippet_runs(tmp_path: Path, snippet: str) -> None:
    smaller = snippet.replace("step_size=800", "step_size=4").replace(
        "CIFAR10DataModule(", 'CIFAR10DataModule(source="synthetic", limit=200, '
    )
    assert ("step_size" in snippet) == (smaller != snippet)
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:onelayer", "-c", smaller],
        cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.filterwarnings("ignore:training stops in mid-cycle")
def test_the_commands_run_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "photos" / "a.png")
    assert len(COMMANDS) == 9
    for line in COMMANDS:
        _, command, *words = shlex.split(line, comments=True)
        if command == "report":  # tests/study/test_report.py
            continue
        tiny = TINY[command]
        if command == "fit" and "--ckpt_path" in words:
            tiny = SHORT
        assert main([command, *words, *tiny]) == 0, line
    assert (tmp_path / "predictions.csv").is_file()
    assert len(list(tmp_path.glob("lightning_logs/*/version_*/summary.json"))) == 3


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)\)", text) + re.findall(
        r"`((?:tests|src|docs)/[\w/.]+)`", text
    )
    for link in links:
        base = REPOSITORY if link.startswith(("tests/", "src/", "docs/")) else page.parent
        assert (base / link).exists(), link
