"""torchvision can be imported beside whichever torch was installed, and stays whole where it is."""

import subprocess
import sys
from pathlib import Path

import pytest

# What torchvision does at import: it describes its operators, whether or not they were loaded.
IMPORT_OF_TORCHVISION = """
import torch
for name in ("nms", "qnms"):
    torch.library.register_fake(f"torchvision::{name}")(lambda dets, scores, iou_threshold: dets)
"""
ENSURE = "from onelayer._compat import ensure_torchvision_operators as ensure\n"


def python(code: str, *, first_on_path: Path | None = None) -> str:
    """Run code in a process of its own; what it prints."""
    if first_on_path is not None:
        code = f"import sys; sys.path.insert(0, {str(first_on_path)!r})\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def torchvision(tmp_path: Path) -> Path:
    """A stand-in for torchvision's folder, with a compiled library that cannot be loaded."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(IMPORT_OF_TORCHVISION)
    (package / "_C.so").write_bytes(b"not a library")
    return package


def test_the_broken_pair_can_be_imported_after_the_call_only(torchvision: Path) -> None:
    code = f"""
import torch
try: import torchvision
except RuntimeError as error: print(error)
{ENSURE}
ensure(); ensure()
import torchvision
ensure()
print(torchvision.__file__)
try: torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
except NotImplementedError as error: print(error)
"""
    before, file, refusal = python(code, first_on_path=torchvision.parent).split("\n", 2)
    assert "torchvision::nms does not exist" in before
    assert file == str(torchvision / "__init__.py")
    assert "torchvision::nms" in refusal  # declared, but without a kernel


def test_a_whole_torchvision_is_left_alone(torchvision: Path) -> None:
    """torchvision 0.21, whose library has no qnms."""
    (torchvision / "_C.so").rename(torchvision / "_C_stable.so")
    code = f"""{ENSURE}
import torch
from onelayer import _compat

def load(path):
    assert path.name == "_C_stable.so"
    global kept
    kept = torch.library.Library("torchvision", "FRAGMENT")
    kept.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

torch.ops.load_library = load
ensure()
print(_compat._declarations)
"""
    assert python(code, first_on_path=torchvision.parent) == "None"


def test_import_onelayer_is_enough_and_loads_no_torch(torchvision: Path) -> None:
    (torchvision / "_C.so").unlink()  # there is no library at all
    code = """
import sys
import onelayer
assert "torch" not in sys.modules
import torchvision, torch
import importlib.util
importlib.util.find_spec("torchvision")
print(torchvision.__file__)
"""
    assert python(code, first_on_path=torchvision.parent) == str(torchvision / "__init__.py")


def test_without_torchvision_nothing_happens() -> None:
    code = f"""{ENSURE}
import importlib.util, sys
importlib.util.find_spec = lambda name: None
ensure()
print("torch" in sys.modules)
"""
    assert python(code) == "False"


@pytest.mark.parametrize("first", ["onelayer", "onelayer.data.cifar10"])
def test_the_installed_packages_import(first: str) -> None:
    """Import the package, or its lowest module that imports Lightning, before all others.

    Where torch and torchvision do not fit together, this test dies without the call.
    """
    code = f"""
import {first}
import lightning, torch, torchmetrics, torchvision
from onelayer import _compat
boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
try: whole = torchvision.ops.nms(boxes, torch.ones(1), 0.5).tolist() == [0]
except RuntimeError: whole = False
assert whole == (_compat._declarations is None), (whole, _compat._declarations)
"""
    python(code)
