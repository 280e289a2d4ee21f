"""Random intensity augmentation, against Pillow, whose operations the published code of AugSeg calls."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from css_ray.functional import intensity
from css_ray.functional.intensity import POOL, random_intensity

DRAW = 0.4
FACTOR = 0.05 + 0.9 * DRAW

OF_PILLOW: dict[str, tuple[Callable[[Image.Image], Image.Image], float]] = {
    "identity": (lambda image: image, 0.0),
    "autocontrast": (ImageOps.autocontrast, 1.5),
    "equalize": (ImageOps.equalize, 1.5),
    "contrast": (lambda image: ImageEnhance.Contrast(image).enhance(FACTOR), 1.5),
    "brightness": (lambda image: ImageEnhance.Brightness(image).enhance(FACTOR), 1.5),
    "saturation": (lambda image: ImageEnhance.Color(image).enhance(FACTOR), 1.5),
    "sharpness": (lambda image: ImageEnhance.Sharpness(image).enhance(FACTOR), 1.5),
    "posterize": (lambda image: ImageOps.posterize(image, 6), 4.0),  # an even level for what Pillow cuts off
    "solarize": (lambda image: ImageOps.solarize(image, 103), 0.0),
}
"""By operation: Pillow's, and by how many of 255 steps a pixel may differ."""


def scene(count: int = 1) -> Tensor:
    torch.manual_seed(0)
    return torch.randint(20, 230, (count, 3, 24, 32)) / 255


@pytest.mark.parametrize("name", OF_PILLOW)
def test_operations_are_those_of_pillow(name: str) -> None:
    theirs, tolerance = OF_PILLOW[name]
    image = scene()
    expected = pil_to_tensor(theirs(to_pil_image(image[0]))).float()
    found = POOL[name](image, DRAW)[0] * 255
    apart = (found - expected).abs()
    assert apart.max() <= tolerance + 1e-3, apart.max()
    assert name == "identity" or not torch.equal(found, image[0] * 255)


def test_the_blur_is_a_gaussian_of_its_sigma() -> None:
    """Pillow's is made of three boxes, so SciPy's is the oracle: mirrored at the border, cut off after three sigmas."""
    image = scene()
    for draw in (0.0, DRAW, 0.9):
        sigma = 0.1 + 1.9 * draw
        expected = gaussian_filter(image[0].double().numpy(), (0, sigma, sigma), mode="mirror", truncate=3.0)
        torch.testing.assert_close(POOL["blur"](image, draw)[0].double(), torch.from_numpy(expected), atol=1e-5, rtol=0)


def test_the_hue_turns_and_no_brightness_changes() -> None:
    """A turn of a third makes red green."""
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    green = POOL["hue"](red, 2 / 3)
    torch.testing.assert_close(green, red[:, [1, 0, 2]], atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", POOL)
@pytest.mark.parametrize("draw", [0.0, 0.5, 1 - 2**-24])
def test_every_operation_stays_in_its_range(name: str, draw: float) -> None:
    for image in (scene(), torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8), torch.rand(1, 3, 3, 5, dtype=torch.float64)):
        found = POOL[name](image, draw)
        assert found.shape == image.shape and found.dtype == image.dtype
        assert found.min() >= 0 and found.max() <= 1 and found.isfinite().all()


def test_solarize_at_256_leaves_white_as_it_is() -> None:
    white = torch.ones(1, 3, 2, 2)
    assert torch.equal(POOL["solarize"](white, 1 - 2**-24), white)
    assert not POOL["solarize"](white, 0.99).any()


def test_how_many_which_and_in_which_order(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []

    def noting(name: str) -> Callable[[Tensor, float], Tensor]:
        def note(image: Tensor, draw: float) -> Tensor:
            seen[int(image[0, 0, 0, 0])].append(name)
            return image

        return note

    count = 6000
    seen = [[] for _ in range(count)]
    names = ("a", "b", "c")
    monkeypatch.setattr(intensity, "POOL", {name: noting(name) for name in names})
    images = torch.arange(count).view(-1, 1, 1, 1).expand(-1, 3, 1, 1)
    torch.manual_seed(0)
    random_intensity(images, (1, 3))
    numbers = [len(each) for each in seen]
    for k in (1, 2, 3):
        assert numbers.count(k) / count == pytest.approx(1 / 3, abs=0.03)
    pairs = [tuple(each) for each in seen if len(each) == 2]
    assert len(set(pairs)) == 9  # with replacement, and in both orders
    for pair in set(pairs):
        assert pairs.count(pair) / len(pairs) == pytest.approx(1 / 9, abs=0.03)
    first = [list(each) for each in seen]
    for each in seen:
        each.clear()
    torch.manual_seed(0)
    random_intensity(images, (1, 3))
    assert seen == first


def test_no_operation_is_no_change_and_images_do_not_mix() -> None:
    images = scene(3)
    assert torch.equal(random_intensity(images, (0, 0)), images)
    torch.manual_seed(3)
    together = random_intensity(images, (2, 3))
    torch.manual_seed(3)
    other = torch.cat([images[:2], torch.zeros_like(images[:1])])
    assert torch.equal(random_intensity(other, (2, 3))[:2], together[:2])
