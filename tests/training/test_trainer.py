"""What every training of the package has."""

import pytest

from onelayer.training import trainer


@pytest.mark.parametrize(("there", "expected"), [(True, "cpu"), (False, "auto")])
def test_apples_gpu_is_passed_over(monkeypatch, there: bool, expected: str) -> None:
    monkeypatch.setattr(trainer.MPSAccelerator, "is_available", staticmethod(lambda: there))
    assert trainer.trainer_defaults()["accelerator"] == expected
