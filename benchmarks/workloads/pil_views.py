"""Images changed one by one through 8-bit PIL images, as the published code does: both training views, and CutMix."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor
from torchvision.transforms import functional as tv

from css_ray.types import IGNORE_INDEX
from css_ray.views import Views

Images = tuple[Image.Image, ...]
"""An image, and the maps that follow its pixels (labels, confidences, ...), 8 bits a number."""

Enhancer = ImageEnhance.Brightness | ImageEnhance.Contrast | ImageEnhance.Color


def strong_view(images: Tensor, labels: Tensor, confidence: Tensor, views: Views) -> tuple[Tensor, Tensor, Tensor]:
    """Scale and crop, CutMix, colours, blur and flip; images [B, 3, H, W], labels and confidence [B, H, W].

    The published code goes to tensors and back once more, for CutMix; here its box is pasted between PIL images, which makes
    this side faster than that code.
    """
    triples = [
        (tv.to_pil_image(image), tv.to_pil_image(label.to(torch.uint8)), tv.to_pil_image(sure))
        for image, label, sure in zip(images, labels, confidence, strict=True)
    ]
    width, height = triples[0][0].size
    scaled = [scale_and_crop(triple, (width, height), views.strong_scale, (IGNORE_INDEX, 0)) for triple in triples]
    changed = [flip(colours(triple, views), views) for triple in cut_mix(scaled)]
    return (
        torch.stack([tv.to_tensor(image) for image, _, _ in changed]),
        torch.stack([tv.pil_to_tensor(label)[0].long() for _, label, _ in changed]),
        torch.stack([tv.to_tensor(sure)[0] for _, _, sure in changed]),
    )


def scale_and_crop(items: Images, crop: tuple[int, int], scale: tuple[float, float], fills: tuple[int, ...]) -> Images:
    """Resize by a factor from `scale`, pad to the crop (width, height), crop; in the padding a map has its entry of `fills`."""
    image, *maps = items
    factor = random.uniform(*scale)
    size = round(image.width * factor), round(image.height * factor)
    image = image.resize(size, Image.Resampling.BILINEAR)
    maps = [item.resize(size, Image.Resampling.NEAREST) for item in maps]
    return pad_and_crop((image, *maps), crop, fills)


def pad_and_crop(items: Images, crop: tuple[int, int], fills: tuple[int, ...]) -> Images:
    """Pad to the crop (width, height), the image mirrored, and cut it out at random."""
    image, *maps = items
    width, height = crop
    right, bottom = max(width - image.width, 0), max(height - image.height, 0)
    if right or bottom:
        image = tv.pad(image, [0, 0, right, bottom], padding_mode="reflect")
        maps = [tv.pad(item, [0, 0, right, bottom], fill=fill) for item, fill in zip(maps, fills, strict=True)]
    left, top = random.randint(0, image.width - width), random.randint(0, image.height - height)
    box = left, top, left + width, top + height
    return tuple(item.crop(box) for item in (image, *maps))


def cut_mix(batch: list[Images]) -> list[Images]:
    """Paste into each image, and its maps, a random box of half the area from the next image of the batch."""
    return [_cut_mix(items, batch[(number + 1) % len(batch)]) for number, items in enumerate(batch)]


def _cut_mix(items: Images, others: Images) -> Images:
    width, height = items[0].size
    box_width = random.randint(width // 2 + 1, width - 1)
    box_height = min(round(width * height / 2 / box_width), height)
    left, top = random.randint(0, width - box_width), random.randint(0, height - box_height)
    box = left, top, left + box_width, top + box_height

    def mixed(into: Image.Image, source: Image.Image) -> Image.Image:
        copy = into.copy()
        copy.paste(source.crop(box), box)
        return copy

    return tuple(mixed(into, source) for into, source in zip(items, others, strict=True))


def colours(items: Images, views: Views) -> Images:
    """Jitter and blur of the image, each with its probability."""
    image, *maps = items
    if random.random() < views.jitter_probability:

        def hue(image: Image.Image) -> Image.Image:
            shifted: Image.Image = tv.adjust_hue(image, random.uniform(-1, 1) * min(views.jitter, 0.5))  # through HSV
            return shifted

        def enhance(kind: Callable[[Image.Image], Enhancer]) -> Callable[[Image.Image], Image.Image]:
            return lambda image: kind(image).enhance(1 + random.uniform(-1, 1) * views.jitter)

        changes = [enhance(ImageEnhance.Brightness), enhance(ImageEnhance.Contrast), enhance(ImageEnhance.Color), hue]
        random.shuffle(changes)
        for change in changes:
            image = change(image)
    if random.random() < views.blur_probability:
        image = image.filter(ImageFilter.GaussianBlur(radius=random.uniform(*views.blur_sigma)))
    return image, *maps


def flip(items: Images, views: Views) -> Images:
    """Mirror all of them left to right, with probability 0.5."""
    return tuple(tv.hflip(item) for item in items) if views.flip and random.random() < 0.5 else items
