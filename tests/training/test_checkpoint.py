"""Checkpoints are whole or not there, whatever happens while they are written."""

import os
import resource
from contextlib import contextmanager

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from onelayer.core.errors import InputError
from onelayer.training.checkpoint import (
    AtomicCheckpointIO,
    find_checkpoint,
    read_checkpoint,
)
from onelayer.training.curves import Curves
from onelayer.training.folder import LAST, PREVIOUS
from onelayer.training.saving import Checkpoints
from tests.support.small import fit

GOOD = {"state_dict": {"W": torch.ones(1000)}, "global_step": 7}


@contextmanager
def full_disk(size):
    """Files cannot grow beyond ``size`` bytes: the kernel refuses the write, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 100, 3000])
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, room):
    path = tmp_path / LAST
    AtomicCheckpointIO().save_checkpoint(GOOD, path)
    larger = {**GOOD, "state_dict": {"W": torch.zeros(100_000)}}
    with full_disk(room), pytest.raises(InputError, match="cannot write the checkpoint"):
        AtomicCheckpointIO().save_checkpoint(larger, path)
    assert os.listdir(tmp_path) == [LAST]
    assert torch.equal(read_checkpoint(path)["state_dict"]["W"], torch.ones(1000))


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "checkpoints").write_text("a file, not a folder")
    with pytest.raises(InputError, match=r"cannot write the checkpoint .*checkpoints"):
        AtomicCheckpointIO().save_checkpoint(GOOD, tmp_path / "checkpoints" / LAST)


def test_last_stays_under_its_name_while_the_next_is_written(tmp_path, monkeypatch):
    """A kill before the rename leaves it there: seen at the moment before."""
    seen = []
    replace = os.replace

    def spy(source, target):
        if str(target).endswith(LAST):
            folder = tmp_path / "run" / "checkpoints"
            seen.append(sorted(p.name for p in folder.iterdir() if p.suffix == ".ckpt"))
        replace(source, target)

    monkeypatch.setattr(os, "replace", spy)
    logger = TensorBoardLogger(tmp_path, name="", version="run", default_hp_metric=False)
    callbacks = [Curves(), Checkpoints(every=10)]
    fit(tmp_path, callbacks=callbacks, logger=logger, max_steps=40)
    assert seen == [[], [LAST, PREVIOUS], [LAST, PREVIOUS], [LAST, PREVIOUS]]
    checkpoints = tmp_path / "run" / "checkpoints"
    steps = [read_checkpoint(checkpoints / name)["global_step"] for name in (PREVIOUS, LAST)]
    assert steps == [30, 40]


def test_leftovers_of_a_kill_are_swept(tmp_path):
    leftover = tmp_path / "run" / "checkpoints" / f"{LAST}.tmp"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half a checkpo")
    logger = TensorBoardLogger(tmp_path, name="", version="run", default_hp_metric=False)
    fit(tmp_path, callbacks=[Checkpoints()], logger=logger, max_steps=8)
    assert not leftover.exists()


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped"])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_offered(tmp_path, damage):
    for name, step in ((PREVIOUS, 3), (LAST, 7)):
        AtomicCheckpointIO().save_checkpoint({**GOOD, "global_step": step}, tmp_path / name)
    last = tmp_path / LAST
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes({"truncated": content[:500], "empty": b"", "flipped": content}[damage])
    with pytest.raises(InputError, match="is not a complete checkpoint") as caught:
        read_checkpoint(last)
    assert f"This one is complete: --ckpt_path {tmp_path / PREVIOUS} (after 3 updates)" in str(
        caught.value
    )


def test_last_is_that_of_the_newest_run_that_has_one(tmp_path):
    for version in (2, 10):
        folder = tmp_path / f"version_{version}" / "checkpoints"
        folder.mkdir(parents=True)
        (folder / LAST).touch()
    (tmp_path / "version_11" / "checkpoints").mkdir(parents=True)
    assert find_checkpoint("last", tmp_path) == tmp_path / "version_10" / "checkpoints" / LAST


def test_last_without_any_is_refused(tmp_path):
    with pytest.raises(InputError, match="there is no run with a checkpoint"):
        find_checkpoint("last", tmp_path)
