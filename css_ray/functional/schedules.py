"""Weights and rates over training; `progress` is the share done, in [0, 1]."""

from __future__ import annotations

import math
from typing import Literal

ContrastSchedule = Literal["ramp_down", "constant", "published_epochs"]
PUBLISHED_EPOCHS = 200


def poly(progress: float, *, base: float = 1.0, floor: float = 0.0, power: float = 0.9) -> float:
    """base * (1 - progress)^power, never below `floor`. The published code keeps the learning rate above 1e-4."""
    return max(floor, base * math.pow(max(0.0, 1 - progress), power))


def exponential_ramp_down(progress: float) -> float:
    """exp(-5 progress^2): from 1 to 0.007."""
    return math.exp(-5 * progress**2)


def exponential_ramp_up(progress: float, length: float) -> float:
    """exp(-5 (1 - progress / length)^2) over the first `length` of training, 1 from then on; always 1 if `length` is 0."""
    return 1.0 if progress >= length else math.exp(-5 * (1 - progress / length) ** 2)


def cosine_ramp_up(progress: float, length: float) -> float:
    """(1 - cos(pi progress / length)) / 2 over the first `length` of training, 1 from then on; always 1 if `length` is 0."""
    return 1.0 if progress >= length else (1 - math.cos(math.pi * progress / length)) / 2


def logarithmic(progress: float, length: float) -> float:
    """1 - exp(-5 progress / length) over the first `length` of training, 1 from then on; always 1 if `length` is 0."""
    return 1.0 if progress >= length else 1 - math.exp(-5 * progress / length)


def contrast_ramp(schedule: ContrastSchedule, progress: float, labelled_epoch: int) -> float:
    """The factor of λ_c. Eq. 6 gives none, which is `constant`.

    ramp_down: exp(-5 progress^2), over the whole training. published_epochs: exp(-5 (epoch / 200)^2), and 0 from epoch 200 on,
    with the released code's epoch, a pass over the labelled images: 92 of them in batches of 16 end it at step 1,000 of 40,000.
    """
    if schedule == "constant":
        return 1.0
    if schedule == "ramp_down":
        return exponential_ramp_down(progress)
    return 0.0 if labelled_epoch >= PUBLISHED_EPOCHS else exponential_ramp_down(labelled_epoch / PUBLISHED_EPOCHS)


def teacher_keep(num_updates: int, decay: float) -> float:
    """min(1 - 1 / (t + 1), decay): what the t-th update (from 0) keeps of the teacher; the first one copies the student."""
    return min(1 - 1 / (num_updates + 1), decay)
