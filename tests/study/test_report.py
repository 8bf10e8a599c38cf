"""The report: every exercise with its figures, and what is finished is not trained again."""

import json
import re
import shlex
from pathlib import Path

import pytest

from onelayer.__main__ import main
from onelayer.study import exercises, report, search
from onelayer.study.plan import Plan, Repeat
from onelayer.study.report import Report

CONFIGS = Path(__file__).parents[2] / "configs"
QUICK = [
    "report", "--data.source=synthetic", "--data.limit=200", "--schedule.step_size=4",
    "--report.seeds=[0,1]", "--search.number=3", "--search.stages=1",
    "--output=docs", "--report.runs=runs",
]  # fmt: skip
TYPED = (
    "onelayer report --report.seeds '[0,1]' --data.source synthetic --data.limit 200 "
    "--schedule.step_size 4 "
    "--search.stages 1 --search.number 3"
)

pytestmark = pytest.mark.filterwarnings("ignore:training stops in mid-cycle")


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """The folder in which a quick report was made."""
    folder = tmp_path_factory.mktemp("quick")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(QUICK) == 0
    return folder


def test_the_report_has_every_exercise_and_repeats_none(quick, monkeypatch):
    text = (quick / "docs" / "report.md").read_text()
    headings = re.findall(r"^## (.*)", text, re.MULTILINE)
    for word in ("Gradients", "Results", "overfit", "one cycle", "three cycles", "final", "Search"):
        assert any(word in heading for heading in headings), word
    assert "built-in synthetic images, not of CIFAR-10" in text
    pictures = re.findall(r"!\[.+\]\((.+\.png)\)", text)
    assert sorted(pictures) == sorted(p.name for p in (quick / "docs").glob("*.png"))
    table = [line for line in text.splitlines() if re.search(r"\| (train|val|test) \|", line)]
    assert len(table) == 30  # four trainings and the search's, two networks, three splits
    assert all(" ± " in line for line in table)

    monkeypatch.chdir(quick)
    before = {p: p.stat().st_mtime_ns for p in quick.rglob("*.ckpt")}
    assert main(QUICK) == 0
    assert {p: p.stat().st_mtime_ns for p in quick.rglob("*.ckpt")} == before
    assert (quick / "docs" / "report.md").read_text() == text


def test_a_quick_look_says_so_and_compares_nothing_published(quick):
    text = (quick / "docs" / "report.md").read_text()
    assert text.splitlines()[0] == "# The report's exercises, repeated, a quick version"
    assert f"Made by `{TYPED}`, which" in text
    captions = re.findall(r"^\*.*Made by.*", text, re.MULTILINE)
    assert len(captions) == text.count("![") == 12
    assert all("A quick version. Made by* `onelayer" in caption for caption in captions)
    assert not re.search(r"\| (yes|no) \|", text)
    assert "48.09" not in text
    assert "18 updates are 2.25 cycles of 8" in text


def test_the_commands_of_captions_make_what_they_stand_under(quick, tmp_path):
    (tmp_path / "configs").symlink_to(CONFIGS)
    text = (quick / "docs" / "report.md").read_text()
    for picture in ("overfit-linear", "search-hidden"):
        command = re.search(rf"\({picture}\.png\)\n\n.*Made by\* `(.*)`", text)[1]
        assert main(shlex.split(command)[1:]) == 0
    (ours,) = tmp_path.glob("lightning_logs/overfit+linear/version_0/summary.json")
    (theirs,) = quick.glob("runs/overfit-linear-*/result.json")
    assert json.loads(ours.read_text())["members"] == json.loads(theirs.read_text())["members"]
    (ours,) = tmp_path.glob("lightning_logs/search/search.json")
    (theirs,) = quick.glob("runs/search-hidden-*/search.json")
    found = [json.loads(path.read_text()) for path in (ours, theirs)]
    assert found[0]["candidates"] == found[1]["candidates"]
    assert found[0]["final"]["members"] == found[1]["final"]["members"]


def test_another_report_leaves_finished_trainings_and_files_alone(quick, monkeypatch, capsys):
    monkeypatch.chdir(quick)
    (folder,) = quick.glob("runs/final-hidden-*")
    (folder / "notes.txt").write_text("mine")
    before = {p: p.read_bytes() for p in quick.rglob("*") if p.is_file()}
    other = [word for word in QUICK if "step_size" not in word] + ["--schedule.step_size=3"]
    assert main(other) == 2
    error = capsys.readouterr().err
    assert "docs/report.md was not made by onelayer report" in error
    assert "name another folder with --output" in error
    for module in (report, exercises):
        monkeypatch.setattr(module, "EXERCISES", {"final": report.EXERCISES["final"]})
    monkeypatch.setattr(search.Search, "run", lambda self: pytest.fail("far enough"))
    with pytest.raises(pytest.fail.Exception, match="far enough"):
        main([*other, "--output=other"])
    assert len(list(quick.glob("runs/final-hidden-*"))) == 2
    assert {p: p.read_bytes() for p in before} == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data.limit=100"], ["final.yaml", "batch_size", "100", "raise it, or leave it out"]),
        (["--report.seeds=[]"], ["overfit.yaml", "seeds"]),
        (["--schedule.step_size=-1"], ["overfit.yaml", "step_size"]),
    ],
)
def test_what_an_exercise_would_refuse_is_refused_first(tmp_path, capsys, options, words):
    assert main(["report", "--data.source=synthetic", *options]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error
    assert len(error.splitlines()) <= 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "typed", "kind"),
    [
        ({}, "", ""),
        ({"data": {"root": "there", "source": "cifar10"}}, "", ""),
        ({"repeat": Repeat(seeds=[3])}, " --report.seeds '[3]'", ""),
        ({"search": Plan(members=3)}, "", ""),
        ({"search": Plan(number=9)}, " --search.number 9", "with other settings"),
        ({"data": {"limit": 500}}, " --data.limit 500", "a quick version"),
        ({"schedule": {"step_size": 9}}, " --schedule.step_size 9", "a quick version"),
    ],
)
def test_what_is_published_is_compared_only_with_the_same_settings(tmp_path, changes, typed, kind):
    made = Report(tmp_path, **{"data": {}, **changes})
    assert (made._command, made._kind) == (f"onelayer report{typed}", kind)
    assert made._published("hidden") == (kind == "")
    assert not made._published("linear")
    assert not Report(tmp_path, {"source": "synthetic"})._published("hidden")


def test_a_searched_l2_is_compared_only_where_it_is_the_published_one(tmp_path):
    made = Report(tmp_path, data={})
    for l2, compared in ((0.0061, False), (3e-4, True)):
        found = {"l2": l2, "final": {"members": []}}
        (result,) = made._results([], [(made._finds()[0], found)])
        assert (result.published is not None) == compared


def test_a_report_in_a_clone_leaves_the_one_that_is_there(tmp_path, capsys):
    """docs/report/report.md was made with other options, and is no reason to refuse."""
    there = tmp_path / "docs" / "report" / "report.md"
    there.parent.mkdir(parents=True)
    there.write_text("Made by `onelayer report --report.widths '[0]'`")
    assert main(["report", "--data.source=synthetic", "--data.limit=100"]) == 2
    error = capsys.readouterr().err
    assert "was not made by" not in error
    assert "raise it, or leave it out" in error  # what it goes on to check
