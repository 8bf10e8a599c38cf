"""What several tests of Lightning's hooks share: a logger in memory, and warnings to ignore."""

import pytest
from lightning.pytorch.loggers import Logger

from onelayer.training.blocks import Blocks

# Warnings about flags that these tests set on purpose.
QUIET = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        "training stops in mid-cycle",
        ".*is smaller than the logging interval",
        "You requested to overfit",
        ".*does not have many workers",
        ".*exists and is not empty",
        ".*need to be provided during `Trainer` instantiation",
    )
]


class Lines(Logger):
    """A logger that keeps what it is given."""

    name, version = "lines", 0

    def __init__(self):
        super().__init__()
        self.lines = []

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        self.lines.append((step, metrics))


def reason_of(run):
    return next(c for c in run.callbacks if isinstance(c, Blocks)).reason
