"""Schedules against their formulas and at their ends."""

import math

import pytest

from css_ray.functional.schedules import contrast_ramp, exponential_ramp_down, exponential_ramp_up, poly, teacher_keep


def test_poly_falls_to_its_floor() -> None:
    assert poly(0.0, base=0.0064) == 0.0064
    assert poly(0.5, base=2.0, power=2.0) == pytest.approx(0.5)
    assert poly(0.5) == pytest.approx(0.5**0.9)
    assert poly(0.9999, base=0.0064, floor=1e-4) == 1e-4
    assert poly(1.0) == 0.0


def test_exponential_ramps() -> None:
    assert exponential_ramp_down(0.0) == 1.0
    assert exponential_ramp_down(1.0) == pytest.approx(0.006738, abs=1e-6)
    assert exponential_ramp_up(0.0, 0.4) == pytest.approx(0.006738, abs=1e-6)
    assert exponential_ramp_up(0.2, 0.4) == pytest.approx(math.exp(-1.25))
    assert exponential_ramp_up(0.4, 0.4) == exponential_ramp_up(0.0, 0.0) == 1.0


def test_contrast_weight_step_by_step() -> None:
    iterations, steps_an_epoch = 40_000, 5
    for step in range(0, iterations + 1, 250):
        progress, epoch = step / iterations, step // steps_an_epoch
        assert contrast_ramp("constant", progress, epoch) == 1.0
        assert contrast_ramp("ramp_down", progress, epoch) == pytest.approx(math.exp(-5 * (step / iterations) ** 2))
        published = math.exp(-5 * (epoch / 200) ** 2) if epoch < 200 else 0.0
        assert contrast_ramp("published_epochs", progress, epoch) == pytest.approx(published)
    assert contrast_ramp("published_epochs", 0.1, 199) == pytest.approx(0.007083, abs=1e-6)
    assert contrast_ramp("published_epochs", 0.1, 200) == 0.0  # from epoch 200 on, by the released code's >=


def test_the_teacher_starts_as_the_student() -> None:
    assert teacher_keep(0, 0.99) == 0.0
    assert teacher_keep(1, 0.99) == 0.5
    assert teacher_keep(98, 0.99) == pytest.approx(98 / 99)  # the mean of all students so far, until 0.99 is reached
    assert teacher_keep(99, 0.99) == teacher_keep(100, 0.99) == teacher_keep(10**6, 0.99) == 0.99
