"""The notebooks run, cell after cell, and are committed with their outputs."""

import json
import logging
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "tutorials").glob("*.ipynb"))


@pytest.fixture(autouse=True)
def same_level():
    """A notebook silences Lightning's log for itself alone."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_has_its_outputs(path):
    if path.stem == "probe":
        pytest.importorskip("sklearn")
    names = {}
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    for cell in code:
        exec(compile("".join(cell["source"]), path.name, "exec"), names)
    kinds = [output["output_type"] for cell in code for output in cell["outputs"]]
    assert len(kinds) >= 5
    assert "error" not in kinds


def test_there_are_three():
    assert [path.stem for path in NOTEBOOKS] == ["cycles", "gradients", "probe"]
