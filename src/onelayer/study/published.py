"""The figures that were published for the exercises. Their settings are those of configs/.

Source: T. Perrot, "Assignment 2, One Layer Network", KTH DD2424 (April 2024), and the course's
handout. Accuracies in %, of the network with 50 hidden units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Published:
    """One exercise: its title, and accuracies by split."""

    title: str
    report: Mapping[str, float] = field(default_factory=dict)  # from one seed
    handout: Mapping[str, float] = field(default_factory=dict)


EXERCISES = {
    "overfit": Published(
        "2 sanity: overfit 100 images", {"train": 100.0, "val": 21.0, "test": 14.0}
    ),
    "one_cycle": Published("3 one cycle", {"test": 45.95}, {"test": 45.85}),
    "three_cycles": Published(
        "4 three cycles", {"train": 71.78, "val": 46.61, "test": 48.09}, {"test": 47.47}
    ),
    "final": Published(
        "4.2 final, the report's λ = 3e-4",
        {"train": 63.12, "val": 52.2, "test": 51.49},
        {"test": 52.0},
    ),
}
"""By the name of their config."""

SEARCH = {1: (47.3, 8.9e-5), 2: (47.1, 1.3e-4), 3: (48.5, 3e-4)}
"""Best validation accuracy and its λ, of the report's coarse, fine and finer stage."""
