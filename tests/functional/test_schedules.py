import math

import pytest

from css_ray.functional.schedules import exponential_ramp_down, exponential_ramp_up, poly


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
