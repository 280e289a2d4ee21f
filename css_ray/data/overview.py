"""What a prepared data set looks like: how frequent its classes are, and a sheet of its images with their masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ..types import IGNORE_INDEX
from .masks import Colour
from .shards import DataSet, DatasetInfo, Sample, Shards

_WIDTH = 240  # of a picture on the sheet, pixels
_GAP = 6
_LINE = 16  # height of a line of text, pixels
_PAIRS = 3  # side by side


@dataclass(frozen=True, slots=True)
class ClassCounts:
    """Counts over the masks of one subset. pixels, images: [C], how many pixels have a class, and how many images show it."""

    pixels: tuple[int, ...]
    images: tuple[int, ...]
    ignored: int

    @property
    def shares(self) -> tuple[float, ...]:
        """[C]: the share of the pixels that are not ignored, in percent; zeros if there are none."""
        total = max(1, sum(self.pixels))
        return tuple(100 * count / total for count in self.pixels)

    @property
    def ignored_share(self) -> float:
        """The share of all pixels that are ignored, in percent."""
        return 100 * self.ignored / max(1, self.ignored + sum(self.pixels))


def count_classes(subset: Shards, num_classes: int) -> ClassCounts:
    """Decode every mask of `subset` and count."""
    pixels = np.zeros(256, np.int64)
    images = np.zeros(256, np.int64)
    for index, classes in enumerate(subset.classes):
        if classes is None:
            continue
        mask = subset[index].mask
        assert mask is not None
        pixels += np.bincount(mask.numpy().ravel(), minlength=256)
        images[list(classes)] += 1
    return ClassCounts(tuple(pixels[:num_classes].tolist()), tuple(images[:num_classes].tolist()), int(pixels[IGNORE_INDEX]))


def contact_sheet(dataset: DataSet, num_images: int = 12) -> Image.Image:
    """Up to `num_images` images, half of train and half of val, evenly spread: each bare and with its mask's colours over it.

    Ignored pixels are white. Below them each class with its colour. Unlabelled images take a third of train's places, or all
    that the others leave; they are shown once.
    """
    samples = []
    for name, subset in (("train", dataset.train), ("val", dataset.val)):
        masked = [index for index, classes in enumerate(subset.classes) if classes is not None]
        bare = [index for index, classes in enumerate(subset.classes) if classes is None]
        count = num_images // 2
        chosen = _spread(masked, count - min(len(bare), count // 3))
        chosen += _spread(bare, count - len(chosen))
        samples += [(name, subset[index]) for index in sorted(chosen)]
    pictures = [_pair(name, sample, dataset.info) for name, sample in samples]
    legend = _legend(dataset.info, _PAIRS * pictures[0].width + (_PAIRS - 1) * _GAP)
    lines = [pictures[start : start + _PAIRS] for start in range(0, len(pictures), _PAIRS)]
    heights = [max(picture.height for picture in line) for line in lines]
    sheet = Image.new("RGB", (legend.width + 2 * _GAP, sum(heights) + legend.height + _GAP * (len(lines) + 2)), "white")
    top = _GAP
    for line, height in zip(lines, heights, strict=True):
        for column, picture in enumerate(line):
            sheet.paste(picture, (_GAP + column * (picture.width + _GAP), top))
        top += height + _GAP
    sheet.paste(legend, (_GAP, top))
    return sheet


def _spread(indices: Sequence[int], count: int) -> list[int]:
    """At most `count` of the indices, evenly from the first to the last."""
    places = np.linspace(0, len(indices) - 1, min(len(indices), count)).round().astype(int)
    return [indices[place] for place in places.tolist()]


def _pair(subset: str, sample: Sample, info: DatasetInfo) -> Image.Image:
    """An image, and beside it the same under its mask, if it has one; its id above."""
    pixels = sample.image.permute(1, 2, 0).numpy()
    mask = None if sample.mask is None else sample.mask.numpy()
    height = round(_WIDTH * pixels.shape[0] / pixels.shape[1])
    pair = Image.new("RGB", (2 * _WIDTH, _LINE + height), "white")
    for column, shown in enumerate([pixels] if mask is None else [pixels, overlaid(pixels, mask, info.palette)]):
        picture = Image.fromarray(shown).resize((_WIDTH, height), Image.Resampling.NEAREST)
        pair.paste(picture, (column * _WIDTH, _LINE))
    ImageDraw.Draw(pair).text((0, 2), f"{subset} {sample.id}" + (", unlabelled" if mask is None else ""), fill="black")
    return pair


def overlaid(pixels: NDArray[np.uint8], mask: NDArray[np.uint8], palette: Sequence[Colour]) -> NDArray[np.uint8]:
    """[H, W, 3] and a mask [H, W] -> [H, W, 3]: the image under the colours of its classes; ignored pixels are whitish."""
    colours = np.full((256, 3), 255, np.uint16)
    colours[: len(palette)] = palette
    return ((2 * pixels.astype(np.uint16) + 3 * colours[mask]) // 5).astype(np.uint8)


def _legend(info: DatasetInfo, width: int) -> Image.Image:
    entries = [*zip(info.class_names, info.palette, strict=True), ("ignored", (255, 255, 255))]
    column = max(120, *(8 * len(name) + 3 * _LINE for name, _ in entries))
    columns = max(1, width // column)
    legend = Image.new("RGB", (width, _LINE * (-(-len(entries) // columns))), "white")
    draw = ImageDraw.Draw(legend)
    for index, (name, colour) in enumerate(entries):
        left, top = index % columns * column, index // columns * _LINE
        draw.rectangle((left, top + 2, left + _LINE, top + _LINE - 3), fill=colour, outline="black")
        draw.text((left + _LINE + 4, top + 2), name, fill="black")
    return legend
