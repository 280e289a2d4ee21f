"""The first losses of every method are those that golden_losses.json keeps."""

from __future__ import annotations

import json

import pytest

from css_ray.methods import METHODS
from tests.methods import golden

CASES = golden.cases()
KEPT = json.loads(golden.FILE.read_text())


@pytest.mark.parametrize("name", CASES)
def test_the_first_losses_are_those_of_the_golden_file(name: str) -> None:
    assert name in KEPT, f"golden_losses.json has no {name}; `make golden` writes the losses of a new method"
    expected = KEPT[name]
    assert len(expected) == golden.NUM_STEPS == 20
    for step, (found, kept) in enumerate(zip(golden.losses(CASES[name]), expected, strict=True)):
        assert found == pytest.approx(kept, rel=1e-6, abs=1e-7), step


def test_every_method_has_golden_losses() -> None:
    assert {case.method_class for case in CASES.values()} == set(METHODS.own.values())


def test_the_golden_file_has_nothing_else() -> None:
    assert set(KEPT) == set(CASES)
