"""Weights and rates over training; `progress` is the share done, in [0, 1]."""

from __future__ import annotations

import math


def poly(progress: float, *, base: float = 1.0, floor: float = 0.0, power: float = 0.9) -> float:
    """base * (1 - progress)^power, never below `floor`. The published code keeps the learning rate above 1e-4."""
    return max(floor, base * math.pow(max(0.0, 1 - progress), power))


def exponential_ramp_down(progress: float) -> float:
    """exp(-5 progress^2): from 1 to 0.007. The published code counts its own epochs; here 1 is the end of training."""
    return math.exp(-5 * progress**2)


def exponential_ramp_up(progress: float, length: float) -> float:
    """exp(-5 (1 - progress / length)^2) over the first `length` of training, 1 from then on; a length of 0 is 1 at once."""
    return 1.0 if progress >= length else math.exp(-5 * (1 - progress / length) ** 2)
