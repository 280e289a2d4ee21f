"""How an image is changed before a network sees it: geometry where images are loaded, colour on the batch's device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from .config import Config, Problem, knob


@dataclass(frozen=True, kw_only=True)
class Views(Config):
    """Random changes of the labelled view, of the weak unlabelled view, and of the student's strong one.

    By default, as in the published code of CSS, the weak view is cropped only, and the strong one is scaled and flipped once
    more. Methods of FixMatch's family scale and flip the weak view, and their strong views have its geometry.
    """

    scale: tuple[float, float] = knob((0.5, 1.5), help="smallest and largest factor that resizes a labelled image", gt=0, le=16)
    strong_scale: tuple[float, float] = knob(
        (0.5, 1.5), help="smallest and largest factor that resizes the student's unlabelled view", gt=0, le=16
    )
    flip: bool = knob(True, help="mirror left to right with probability 0.5")
    weak_scale: tuple[float, float] = knob(
        (1.0, 1.0), help="smallest and largest factor that resizes an unlabelled image before its crop", gt=0, le=16
    )
    weak_flip: bool = knob(False, help="mirror an unlabelled image left to right with probability 0.5")
    padding: Literal["mirror", "black"] = knob(
        "mirror", help="what a crop shows beyond its image; no loss and no metric sees it, but a network does"
    )
    jitter: float = knob(0.25, help="strength of the change in brightness, contrast, saturation and hue", ge=0, le=1)
    jitter_hue: float | None = knob(None, help="strength of the change in hue, in turns; null: as `jitter`", ge=0, le=0.5)
    grey_probability: float = knob(0.0, help="share of the strong views that lose their colours", ge=0, le=1)
    jitter_probability: float = knob(0.8, help="share of the strong views whose colours are changed", ge=0, le=1)
    blur_probability: float = knob(0.5, help="share of the strong views that are blurred", ge=0, le=1)
    blur_sigma: tuple[float, float] = knob(
        (0.15, 1.15), help="smallest and largest sigma of the blur, in pixels", gt=0, le=1_000
    )

    labelled_colours: Literal["method", "strong", "plain"] = knob(
        "method",
        help="colours of the labelled images: as the paper of each method has them, or for all methods changed like those of "
        "the strong view, or their own",
    )

    def problems(self) -> Iterator[Problem]:
        """Adds to the bounds: a range is two numbers, the smaller first."""
        yield from super().problems()
        yield from self.range_problems("scale", "strong_scale", "weak_scale", "blur_sigma")
