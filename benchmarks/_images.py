"""The student's view of the unlabelled images, made image by image through 8-bit PIL images, as the published code does."""

from __future__ import annotations

import random

import torch
from PIL import Image, ImageEnhance, ImageFilter
from torch import Tensor
from torchvision.transforms import functional as tv

from css_ray.types import IGNORE_INDEX
from css_ray.views import Views

Images = tuple[Image.Image, Image.Image, Image.Image]
"""An image, its labels and its confidences, 8 bits a number."""


def strong_view(images: Tensor, labels: Tensor, confidence: Tensor, views: Views) -> tuple[Tensor, Tensor, Tensor]:
    """Scale and crop, CutMix, colours, blur and flip; images [B, 3, H, W], labels and confidence [B, H, W].

    The published code goes to tensors and back once more, for CutMix; here its box is pasted between PIL images, which makes
    this side faster than that code.
    """
    triples = [
        (tv.to_pil_image(image), tv.to_pil_image(label.to(torch.uint8)), tv.to_pil_image(sure))
        for image, label, sure in zip(images, labels, confidence, strict=True)
    ]
    triples = [_scale_and_crop(triple, views.strong_scale) for triple in triples]
    triples = [_cut_mix(triple, triples[(number + 1) % len(triples)]) for number, triple in enumerate(triples)]
    triples = [_colours_and_flip(triple, views) for triple in triples]
    return (
        torch.stack([tv.to_tensor(image) for image, _, _ in triples]),
        torch.stack([tv.pil_to_tensor(label)[0].long() for _, label, _ in triples]),
        torch.stack([tv.to_tensor(sure)[0] for _, _, sure in triples]),
    )


def _scale_and_crop(triple: Images, scale: tuple[float, float]) -> Images:
    width, height = triple[0].size
    factor = random.uniform(*scale)
    size = round(width * factor), round(height * factor)
    image = triple[0].resize(size, Image.Resampling.BILINEAR)
    label, sure = (item.resize(size, Image.Resampling.NEAREST) for item in triple[1:])
    right, bottom = max(width - size[0], 0), max(height - size[1], 0)
    if right or bottom:
        image = tv.pad(image, [0, 0, right, bottom], padding_mode="reflect")
        label, sure = tv.pad(label, [0, 0, right, bottom], fill=IGNORE_INDEX), tv.pad(sure, [0, 0, right, bottom], fill=0)
    left, top = random.randint(0, image.width - width), random.randint(0, image.height - height)
    box = left, top, left + width, top + height
    return image.crop(box), label.crop(box), sure.crop(box)


def _cut_mix(triple: Images, other: Images) -> Images:
    width, height = triple[0].size
    box_width = random.randint(width // 2 + 1, width - 1)
    box_height = min(round(width * height / 2 / box_width), height)
    left, top = random.randint(0, width - box_width), random.randint(0, height - box_height)
    box = left, top, left + box_width, top + box_height

    def mixed(into: Image.Image, source: Image.Image) -> Image.Image:
        copy = into.copy()
        copy.paste(source.crop(box), box)
        return copy

    return mixed(triple[0], other[0]), mixed(triple[1], other[1]), mixed(triple[2], other[2])


def _colours_and_flip(triple: Images, views: Views) -> Images:
    image, label, sure = triple
    if random.random() < views.jitter_probability:

        def hue(image: Image.Image) -> Image.Image:
            return tv.adjust_hue(image, random.uniform(-1, 1) * min(views.jitter, 0.5))  # through HSV

        def enhance(kind: type[ImageEnhance.Brightness] | type[ImageEnhance.Contrast] | type[ImageEnhance.Color]):
            return lambda image: kind(image).enhance(1 + random.uniform(-1, 1) * views.jitter)

        changes = [enhance(ImageEnhance.Brightness), enhance(ImageEnhance.Contrast), enhance(ImageEnhance.Color), hue]
        random.shuffle(changes)
        for change in changes:
            image = change(image)
    if random.random() < views.blur_probability:
        image = image.filter(ImageFilter.GaussianBlur(radius=random.uniform(*views.blur_sigma)))
    if views.flip and random.random() < 0.5:
        image, label, sure = tv.hflip(image), tv.hflip(label), tv.hflip(sure)
    return image, label, sure
