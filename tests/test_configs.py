"""The configs that come with the package: found by name, in a checkout and in a wheel."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from onelayer.configs import find_config, read_configs, shipped_configs
from onelayer.core.errors import InputError

REPOSITORY = Path(__file__).resolve().parents[1]
NAMES = sorted(path.stem for path in (REPOSITORY / "configs").glob("*.yaml"))


def test_a_path_counts_before_a_name_and_a_folder_is_no_config(tmp_path):
    (tmp_path / "final").write_text("model:\n  l2: 0.1\n")
    (tmp_path / "linear").mkdir()
    assert find_config("final") == Path("final")
    assert find_config("linear").read_bytes() == (REPOSITORY / "configs/linear.yaml").read_bytes()


@pytest.mark.parametrize("name", ["three_cicles", "", "configs/final.yml", "../final", "fi\0nal"])
def test_what_is_neither_is_refused_with_what_there_is(name):
    with pytest.raises(
        InputError, match=r"no config .*\n.*final, linear, .*three_cycles"
    ) as caught:
        find_config(name)
    assert len(str(caught.value).splitlines()) == 2


def test_configs_are_laid_over_each_other():
    settings = read_configs("three_cycles", "linear")
    assert settings["model"] == {"hidden": 0, "l2": 0.01}
    assert settings["schedule"] == {"step_size": 800, "cycles": 3}


def test_a_wheel_carries_them_and_finds_them(tmp_path):
    assert list(shipped_configs()) == NAMES
    wheel = pytest.importorskip("hatchling.builders.wheel").WheelBuilder(str(REPOSITORY))
    (path,) = wheel.build(directory=str(tmp_path), versions=["standard"])
    zipfile.ZipFile(path).extractall(tmp_path / "site")
    ask = "from onelayer import configs; print(*configs.shipped_configs().values(), sep='\\n')"
    found = subprocess.run(
        [sys.executable, "-c", ask], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    carried = [Path(line) for line in found.stdout.splitlines()]
    assert {p.parent for p in carried} == {tmp_path / "site" / "onelayer" / "configs"}
    ours = shipped_configs().values()
    assert [p.read_bytes() for p in carried] == [p.read_bytes() for p in ours]
    fit = [
        "fit", "-c", "quickstart", "--data.source=synthetic", "--data.limit=60",
        "--data.batch_size=30", "--schedule.step_size=3", "--trainer.enable_progress_bar=false",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "onelayer", *fit], cwd=tmp_path, check=False,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "lightning_logs" / "quickstart" / "version_0" / "curves.png").is_file()
