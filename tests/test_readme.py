"""The README holds: its Python runs, its commands are taken, its links lead somewhere."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image

from onelayer import load_network, train_and_test
from onelayer.__main__ import main

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
SNIPPETS = {
    page.name: found
    for page in PAGES
    if (found := re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
    and page.name not in ("features.md", "sklearn.md", "whitening.md")  # each has a test of its own
}
NEEDED = {"data.md": "sklearn", "production.md": "onnxruntime"}  # packages of extras
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
    "export": [],
    "gradcheck": ["--hidden=3"],
    "range": [*SMALL[:-1], "--range.steps=20", "--range.points=5"],
    "search": [
        *SMALL[:-1], *SHORT, "--search.number=2", "--search.stages=1", "--final.step_size=5",
        "--final.val_size=200", "--final.batch_size=30", "--final.seeds=[0]",
    ],
    "solve": [*SMALL[:-1], "--solve.l2=[0.1,1.0]"],
}  # fmt: skip


def smaller(snippet: str) -> str:
    """The same, on a few built-in images."""
    for written, tiny in (
        ("step_size=800", "step_size=4"),
        ('"step_size": 800', '"step_size": 4'),
        ("CIFAR10DataModule(", 'CIFAR10DataModule(source="synthetic", limit=200, '),
        ('"data": {', '"data": {"source": "synthetic", "limit": 200, '),
    ):
        snippet = snippet.replace(written, tiny)
    return snippet


@pytest.mark.filterwarnings("ignore:The number of training batches")
@pytest.mark.parametrize("page", sorted(SNIPPETS))
def test_the_snippets_of_a_page_run_one_after_the_other(tmp_path: Path, page: str) -> None:
    if page in NEEDED:
        pytest.importorskip(NEEDED[page])
    names: dict[str, object] = {}
    for snippet in SNIPPETS[page]:
        exec(compile(smaller(snippet), page, "exec"), names)
    left = {path.name for path in tmp_path.rglob("*")}
    if page == "python.md":
        assert left >= {"curves.csv", "curves.png", "summary.json", "last.ckpt", "three-cycles"}


@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_a_script_ends_with_the_bits_of_the_command_line(tmp_path: Path) -> None:
    """One folder by the command, one by train_and_test: the same weights, curves and figures."""
    settings = {
        "model": {"hidden": 3, "l2": [0.0, 0.01]},
        "data": {"source": "synthetic", "limit": 60, "val_size": 200, "batch_size": 30},
        "schedule": {"step_size": 5},
    }
    typed = [
        f"--{section}.{name}={value}"
        for section, values in settings.items()
        for name, value in values.items()
    ]
    assert main(["fit", *typed, "--trainer.enable_progress_bar=false"]) == 0
    train_and_test(settings, "called")
    command, call = tmp_path / "lightning_logs/fit/version_0", tmp_path / "called"
    assert (command / "curves.csv").read_text() == (call / "curves.csv").read_text()
    networks = [load_network(folder / "checkpoints/last.ckpt") for folder in (command, call)]
    for ours, theirs in zip(*(network.weights for network in networks), strict=True):
        assert torch.equal(ours, theirs)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (command, call)]
    assert summaries[0]["members"] == summaries[1]["members"]
    left = [{p.name for p in folder.iterdir()} for folder in (command, call)]
    assert left[0] >= {"curves.png", "curves.csv", "summary.json", "checkpoints"} <= left[1]


@pytest.mark.filterwarnings("ignore:training stops in mid-cycle")
def test_the_commands_run_in_their_order(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "photos" / "a.png")
    assert len(COMMANDS) == 10
    for line in COMMANDS:
        _, command, *words = shlex.split(line, comments=True)
        if command == "report":  # tests/study/test_report.py
            continue
        tiny = TINY[command]
        if command == "fit" and "--ckpt_path" in words:
            tiny = SHORT
        assert main([command, *words, *tiny]) == 0, line
    assert (tmp_path / "predictions.csv").is_file()
    assert len(list(tmp_path.glob("lightning_logs/*/version_*/summary.json"))) == 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:]+)\)", text) + re.findall(
        r"`((?:tests|src|docs)/[\w/.]+)`", text
    )
    generated = {"commands.md", "configs.md"}  # by docs/hooks.py
    for link in set(links) - generated:
        base = REPOSITORY if link.startswith(("tests/", "src/", "docs/")) else page.parent
        assert (base / link).exists(), link
