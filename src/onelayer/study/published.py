"""The report's exercises: their settings, and the figures published for them.

Source: T. Perrot, "Assignment 2, One Layer Network", KTH DD2424 (April 2024), and the course's
handout. Accuracies in %, of training, validation and test split.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Exercise:
    """One training of the report.

    Attributes:
        name: of its folder, and of the file in configs/ with the same settings.
        title: number and name in the report.
        l2: λ.
        data: arguments of CIFAR10DataModule.
        schedule: arguments of TriangularLR.
        published: the report's accuracies, of the network with 50 hidden units, by split.
        handout: the course handout's.
    """

    name: str
    title: str
    l2: float
    data: Mapping[str, Any]
    schedule: Mapping[str, Any]
    published: Mapping[str, float] = field(default_factory=dict)
    handout: Mapping[str, float] = field(default_factory=dict)


ONE_BATCH = {"train_batches": [1], "val_batches": [2]}

TRAININGS = (
    Exercise(
        "overfit",
        "2 sanity: overfit 100 images",
        0.0,
        {**ONE_BATCH, "limit": 100, "batch_size": 50},
        {"base_lr": 0.005, "max_lr": 0.005, "step_size": 200},
        published={"train": 100.0, "val": 21.0, "test": 14.0},
    ),
    Exercise(
        "one_cycle",
        "3 one cycle",
        0.01,
        ONE_BATCH,
        {"step_size": 500},
        published={"test": 45.95},
        handout={"test": 45.85},
    ),
    Exercise(
        "three_cycles",
        "4 three cycles",
        0.01,
        ONE_BATCH,
        {"step_size": 800, "cycles": 3},
        published={"train": 71.78, "val": 46.61, "test": 48.09},
        handout={"test": 47.47},
    ),
    Exercise(
        "final",
        "4.2 final, the report's λ = 3e-4",
        3e-4,
        {"val_size": 1000, "batch_size": 200},
        {"step_size": 600, "cycles": 5},
        published={"train": 63.12, "val": 52.2, "test": 51.49},
        handout={"test": 52.0},
    ),
)

PUBLISHED_SEARCH = {1: (47.3, 8.9e-5), 2: (47.1, 1.3e-4), 3: (48.5, 3e-4)}
"""Best validation accuracy and its λ, of the report's coarse, fine and finer stage."""

AS_PUBLISHED = {"step_size": 200, "cycles": 2}
"""The schedule that the report's search really ran: its code took the number of batches for their
size, n_s = 2 * 45000 // 450 = 200; two epochs of 450 updates then are 2.25 cycles."""

AS_PUBLISHED_STEPS = 900
