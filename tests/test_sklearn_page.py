"""docs/sklearn.md, line by line."""

import pytest

from tests.support.pages import run_page


@pytest.mark.usefixtures("drawn")
def test_every_line_of_the_page_runs(tmp_path):
    pytest.importorskip("sklearn")
    names, _ = run_page("sklearn.md", {})
    assert names["probe"][-1].gap_ < 1e-12
    assert (tmp_path / "path.png").stat().st_size > 5000
    low, high = names["search"].score_interval_.accuracy
    assert 0.8 < low <= high <= 1
    assert (names["optima"].gap <= 1e-6).all()
    assert names["accuracies"].mean() > 0.85
