"""Colours for classes that have none: told apart with normal sight and without the red or the green receptors of the eye."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from css_ray.data.masks import Colour

FIRST: tuple[Colour, ...] = (
    (0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167)
)  # fmt: skip
"""The colours of Okabe and Ito (Color Universal Design, 2008)."""

_SIGHTS = (
    np.eye(3),
    np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
)
"""What linear RGB looks like: normally, to a protanope, to a deuteranope (Machado et al., IEEE TVCG 2009, severity 1)."""

_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_WHITE = np.array([0.9505, 1.0, 1.089])
_LEVELS = 8
"""Of each channel among the candidates."""


@functools.cache
def safe_palette(count: int) -> tuple[Colour, ...]:
    """`count` colours: those of Okabe and Ito, then the one that the worst of the sights sees farthest from all before."""
    colours = list(FIRST[:count])
    steps = np.linspace(0, 255, _LEVELS).round().astype(int)
    candidates = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    seen = perceived(candidates)
    nearest = np.min([distances(seen, perceived(np.array([colour]))) for colour in FIRST], axis=0)
    while len(colours) < count:
        chosen = int(nearest.argmax())
        colours.append((int(candidates[chosen, 0]), int(candidates[chosen, 1]), int(candidates[chosen, 2])))
        nearest = np.minimum(nearest, distances(seen, seen[:, chosen : chosen + 1]))
    return tuple(colours)


def perceived(colours: NDArray[np.int_]) -> NDArray[np.float64]:
    """[N, 3] in 0..255 -> [sights, N, 3]: CIELAB of what each sight makes of them."""
    scaled = colours / 255
    linear = np.where(scaled <= 0.04045, scaled / 12.92, ((scaled + 0.055) / 1.055) ** 2.4)
    seen = np.stack([np.clip(linear @ sight.T, 0, 1) for sight in _SIGHTS])
    ratio = seen @ _TO_XYZ.T / _WHITE
    cube = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = cube[..., 0], cube[..., 1], cube[..., 2]
    lab: NDArray[np.float64] = np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
    return lab


def distances(first: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """[sights, N, 3] and [sights, 1, 3] -> [N]: how far colours are apart for the sight that tells them apart worst."""
    apart: NDArray[np.float64] = np.linalg.norm(first - other, axis=-1).min(axis=0)
    return apart
