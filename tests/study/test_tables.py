"""Tables: what a reader finds in them."""

import pytest

from onelayer.study.published import Published
from onelayer.study.tables import Result, main_table


def member(accuracy):
    return {"l2": 0.0, "seed": 0, "test": {"cost": 2.0, "loss": 1.5, "accuracy": accuracy}}


@pytest.mark.parametrize(("published", "within"), [(48.0, "yes"), (56.0, "yes"), (59.3, "no")])
def test_a_published_figure_within_two_deviations_is_said_to_be(published, within):
    """Ours are 40 and 50: mean 45, standard deviation 7.07."""
    theirs = Published("an exercise", {"test": published})
    table = main_table([Result("an exercise", "hidden 50", [member(0.4), member(0.5)], theirs)])
    assert table.endswith(f"| test | {published:g} |  | 45.00 ± 7.07 | {within} |")
    alone = main_table([Result("an exercise", "linear", [member(0.4), member(0.5)], None)])
    assert alone.endswith("| test |  |  | 45.00 ± 7.07 |  |")
