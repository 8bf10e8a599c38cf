"""TensorBoard's event files: cut where a run goes on, and the one with which a run ends.

TensorBoard reads the event files of a folder in the order of their names, which begin with the time
by the clock. A clock may be set back while a run lies still, so nothing here relies on it: what a
resumed run keeps stands in one file that comes before all others, its end in one that comes after.
"""

from __future__ import annotations

import io
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from onelayer.training.files import atomic_write

NAME = "events.out.tfevents"
FIRST = f"{NAME}.0"
"""What a resumed run keeps: the time in other names has more digits."""
LAST = f"{NAME}.results"
"""The end of a run, with a number that grows: who looks on sees a new file, not another content."""


def cut(folder: Path, keep: Callable[[Event], bool]) -> None:
    """Merge a folder's event files into the first, with the events to keep in the order of steps.

    The end of a run goes: a run that goes on ends anew. A kill at any point leaves nothing twice.
    """
    files = sorted(folder.glob(f"{NAME}.*"))
    kept = {
        record: event.step  # a record that a kill left in two files counts once
        for path in files
        if not path.name.startswith(LAST)
        for record, event in _read(path)
        if event.HasField("summary") and keep(event)
    }
    if kept:
        in_order = sorted(kept, key=lambda record: kept[record])
        atomic_write(folder / FIRST, b"".join([_record(_version()), *in_order]))
    for path in files:
        if path.name != FIRST or not kept:
            path.unlink(missing_ok=True)


def write_end(folder: Path, summaries: Iterable[tuple[Summary, int]]) -> None:
    """Write the end of a run, summaries with their steps, in place of an earlier one."""
    earlier = sorted(folder.glob(f"{LAST}.*"))  # also what a kill left half-written
    number = 1 + (int(earlier[-1].name.removeprefix(LAST)[1:5]) if earlier else 0)
    events = [_version()]
    events += [Event(wall_time=time.time(), step=step, summary=s) for s, step in summaries]
    atomic_write(folder / f"{LAST}.{number:04}", b"".join(map(_record, events)))
    for path in earlier:
        path.unlink(missing_ok=True)


def _version() -> Event:
    return Event(wall_time=time.time(), file_version="brain.Event:2")


def _record(event: Event) -> bytes:
    content = io.BytesIO()
    RecordWriter(content).write(event.SerializeToString())
    return content.getvalue()


def _read(path: Path) -> Iterator[tuple[bytes, Event]]:
    """The whole records of an event file, up to where a kill has cut it, and what they say.

    A record is its length (8 bytes), a checksum (4), the event and another checksum (4).
    """
    content, start = path.read_bytes(), 0
    while start + 12 <= len(content):
        end = start + 16 + struct.unpack_from("<Q", content, start)[0]
        if end > len(content):
            return
        try:
            yield content[start:end], Event.FromString(content[start + 12 : end - 4])
        except DecodeError:
            return
        start = end
