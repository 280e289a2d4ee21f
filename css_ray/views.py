"""How an image is changed before a network sees it: geometry where images are loaded, colour on the batch's device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .config import Config, Problem, knob


@dataclass(frozen=True, kw_only=True)
class Views(Config):
    """Random changes of the labelled view and of the student's strong unlabelled view. The weak view is cropped only."""

    scale: tuple[float, float] = knob((0.5, 1.5), help="smallest and largest factor that resizes a labelled image", gt=0, le=16)
    strong_scale: tuple[float, float] = knob(
        (0.5, 1.5), help="smallest and largest factor that resizes the student's unlabelled view", gt=0, le=16
    )
    flip: bool = knob(True, help="mirror left to right with probability 0.5")
    jitter: float = knob(0.25, help="strength of the change in brightness, contrast, saturation and hue", ge=0, le=1)
    jitter_probability: float = knob(0.8, help="share of the strong views whose colours are changed", ge=0, le=1)
    blur_probability: float = knob(0.5, help="share of the strong views that are blurred", ge=0, le=1)
    blur_sigma: tuple[float, float] = knob(
        (0.15, 1.15), help="smallest and largest sigma of the blur, in pixels", gt=0, le=1_000
    )

    def problems(self) -> Iterator[Problem]:
        """Adds to the bounds: a range is two numbers, the smaller first."""
        yield from super().problems()
        for name in ("scale", "strong_scale", "blur_sigma"):
            value = getattr(self, name)
            if len(value) != 2 or value[0] > value[1]:
                yield Problem(name, f"must be two numbers, the smaller first, got {value!r}")
