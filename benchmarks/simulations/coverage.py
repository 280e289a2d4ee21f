"""How often the 95 % interval of a difference covers the true one, by simulation: `python -m benchmarks.simulations.coverage`.

In each simulated study, two rows are evaluated on n newly drawn splits and the same newly drawn validation images. The share of
pixels that a row gets wrong depends on the image, on the split, on the row's luck with the split and with the image, and on its
luck with both together. The true difference is that of all splits and all images, by numerical integration.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from css_ray.reports.statistics import Array, difference, left_out, resampled, score_of

IMAGES, CLASSES, RESAMPLES = 120, 5, 500
STUDIES = 2000
"""How many are simulated for each number; the standard error of a coverage near 95 % is then 0.5 points."""

SPLITS = (2, 3, 5, 10)


@dataclass(frozen=True, slots=True)
class Scene:
    """Standard deviations of a row's luck with a split, an image, and both together, in logits of the share of wrong pixels."""

    name: str
    split: float
    image: float
    both: float


SCENES = (
    Scene("splits", 0.30, 0.10, 0.05),
    Scene("splits and images", 0.12, 0.60, 0.20),
    Scene("images", 0.00, 0.80, 0.05),
    Scene("splits x images", 0.00, 0.10, 0.80),
)

_WRONG = np.array([-2.5, -1.5, -1.0, -0.5, 0.0])  # logits of the share of each class
_BETTER = 0.2  # how much lower those of the second row are
_IMAGE, _SPLIT = 0.5, 0.3  # what all rows have in common
_miou = score_of("val/miou", ())
assert _miou is not None
miou = _miou


def _labelled(random: np.random.Generator, images: int) -> Array:
    """[N, C] pixels: some classes are rare, and sizes differ much."""
    there = random.random((images, CLASSES)) < np.array([1.0, 0.6, 0.4, 0.3, 0.2])
    return np.where(there, np.exp(random.normal(0, 0.8, (images, CLASSES))), 0)


def _pixels(labelled: Array, logits: Array) -> Array:
    """[3, N, C], of which the wrong share of a class is predicted as the next one."""
    wrong = labelled / (1 + np.exp(-(_WRONG + logits[:, None])))
    return np.stack([labelled - wrong, labelled, labelled - wrong + np.roll(wrong, 1, axis=1)])


def true_difference(scene: Scene, images: int = 50_000) -> float:
    """Of the mean IoU, in percentage points."""
    random = np.random.default_rng(1)
    labelled, spread = _labelled(random, images), np.hypot(_IMAGE, np.hypot(scene.image, scene.both))
    lucks = random.normal(0, spread, images)
    nodes, weights = np.polynomial.hermite_e.hermegauss(15)
    total = 0.0
    for node, weight in zip(nodes * np.hypot(_SPLIT, scene.split), weights / weights.sum(), strict=True):
        scores = [float(miou(_pixels(labelled, lucks + node - better).sum(axis=1))) for better in (0.0, _BETTER)]
        total += weight * (scores[1] - scores[0])
    return total


def coverages(scene: Scene, n: int, studies: int = STUDIES) -> tuple[float, float]:
    """Coverage in percent of the interval of `difference`, and of the plain two-level bootstrap's percentile interval."""
    random, truth = np.random.default_rng(0), true_difference(scene)
    covered: NDArray[np.int64] = np.zeros(2, np.int64)
    for study in range(studies):
        labelled = _labelled(random, IMAGES)
        of_images, of_splits = random.normal(0, _IMAGE, IMAGES), random.normal(0, _SPLIT, n)
        pixels = []
        for better in (0.0, _BETTER):
            luck = random.normal(0, scene.image, IMAGES) + of_images - better
            for split in range(n):
                mine = of_splits[split] + random.normal(0, scene.split) + random.normal(0, scene.both, IMAGES)
                pixels.append(_pixels(labelled, luck + mine))
        scores = np.array([float(miou(each.sum(axis=1))) for each in pixels])
        draws = resampled(pixels, miou, resamples=RESAMPLES, seed=study)
        without = left_out(pixels, miou)
        deltas, changes = scores[n:] - scores[:n], draws[:, n:] - draws[:, :n]
        found = difference(deltas, changes, without[:, n:] - without[:, :n])
        drawn = random.integers(n, size=(RESAMPLES, n))
        low, high = np.quantile(np.take_along_axis(changes, drawn, axis=1).mean(axis=1), (0.025, 0.975))
        covered += [found.lower <= truth <= found.upper, low <= truth <= high]
    return float(100 * covered[0] / studies), float(100 * covered[1] / studies)


def table(studies: int = STUDIES) -> Iterator[tuple[Scene, int, float, float]]:
    """Scene, number of splits, and the two coverages."""
    for scene in SCENES:
        for n in SPLITS:
            yield scene, n, *coverages(scene, n, studies)


HEAD = ("| what differs between rows | splits | interval | plain two-level bootstrap |", "|---|---|---|---|")


def table_line(scene: Scene, n: int, ours: float, plain: float) -> str:
    return f"| {scene.name} | {n} | {ours:.1f} % | {plain:.1f} % |"


if __name__ == "__main__":
    print(*HEAD, sep="\n")
    for row in table():
        print(table_line(*row), flush=True)
