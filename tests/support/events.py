"""What TensorBoard's event files of a run hold."""

import hashlib

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def points_of(run):
    """Return steps and values as TensorBoard shows them, by folder within the run and tag."""
    found = {}
    for folder in sorted({path.parent for path in run.rglob("events.out.tfevents*")}):
        sizes = {"scalars": 0, "images": 0}
        events = EventAccumulator(str(folder), sizes).Reload()
        name = "" if folder == run else f"{folder.relative_to(run)}: "
        for tag in events.Tags()["scalars"]:
            found[name + tag] = [(e.step, e.value) for e in events.Scalars(tag)]
        for tag in events.Tags()["images"]:
            pictures = [(e.step, e.encoded_image_string) for e in events.Images(tag)]
            found[name + tag] = [(s, hashlib.sha256(png).hexdigest()) for s, png in pictures]
    return found
