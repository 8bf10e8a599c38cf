"""What TensorBoard's event files of a run hold."""

import hashlib

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def points_of(run):
    """Steps and values by the tag, and by the folder within the run where that is a run as well.

    As they stand in the files: nothing is left to what TensorBoard purges, which goes by the clock.
    """
    found = {}
    for folder in sorted({path.parent for path in run.rglob("events.out.tfevents*")}):
        sizes = {"scalars": 0, "images": 0}
        events = EventAccumulator(str(folder), sizes, purge_orphaned_data=False).Reload()
        name = "" if folder == run else f"{folder.relative_to(run)}: "
        for tag in events.Tags()["scalars"]:
            found[name + tag] = [(e.step, e.value) for e in events.Scalars(tag)]
        for tag in events.Tags()["images"]:
            pictures = [(e.step, e.encoded_image_string) for e in events.Images(tag)]
            found[name + tag] = [(s, hashlib.sha256(png).hexdigest()) for s, png in pictures]
    return found
