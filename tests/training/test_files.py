"""Files that are whole or not there."""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from onelayer.training.files import atomic_write


@pytest.mark.parametrize("content", ["α\r\nβ", b"\x00\xff"])
def test_a_file_holds_what_was_written_and_nothing_lies_beside_it(tmp_path, content):
    path = tmp_path / "new" / "file.txt"
    for _ in range(2):
        atomic_write(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    path.with_name("file.txt.tmp").write_text("half of what a killed process")
    atomic_write(path, "whole")
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "file.txt"
    atomic_write(path, "before")

    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", no_space)
    with pytest.raises(OSError, match=r"No space left on device.*file\.txt"):
        atomic_write(path, "after")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_two_who_write_one_file_take_turns(tmp_path, monkeypatch):
    path, sync = tmp_path / "p.csv", os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (time.sleep(0.1), sync(number)))
    contents = [letter * 1000 for letter in "abc"]
    with ThreadPoolExecutor() as pool:
        list(pool.map(atomic_write, [path] * 3, contents))
    assert path.read_text() in contents
    assert list(tmp_path.iterdir()) == [path]
