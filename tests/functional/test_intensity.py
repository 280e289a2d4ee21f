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
    "posterize": (lambda image: ImageOps.posterize(image, 5), 8.0),  # an even level for what Pillow cuts off
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


def test_the_hue_turns_either_way() -> None:
    """A turn of a third makes red green, or blue; the largest of the three colours stays what it is."""
    red = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    for draw, places in ((0.5 + 1 / 3, [1, 0, 2]), (0.5 - 1 / 3, [1, 2, 0]), (0.5, [0, 1, 2])):
        torch.testing.assert_close(POOL["hue"](red, draw), red[:, places], atol=1e-6, rtol=0)
    image = scene()
    torch.testing.assert_close(POOL["hue"](image, 0.9).amax(dim=1), image.amax(dim=1))


@pytest.mark.parametrize("name", POOL)
@pytest.mark.parametrize("draw", [0.0, 0.5, 1 - 2**-24])
def test_every_operation_stays_in_its_range(name: str, draw: float) -> None:
    for image in (scene(), torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8), torch.rand(1, 3, 3, 5, dtype=torch.float64)):
        found = POOL[name](image, draw)
        assert found.shape == image.shape and found.dtype == image.dtype
        assert found.min() >= 0 and found.max() <= 1 and found.isfinite().all()


def test_how_many_bits_and_which_thresholds() -> None:
    """8 - ceil(U(0, 4)) bits and a threshold of 256 - ceil(U(0, 255)), as the released code has them."""
    ramp = (torch.arange(256) / 255).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    draws = torch.linspace(0, 1 - 2**-24, 999).tolist()
    assert {len(set(POOL["posterize"](ramp, draw).flatten().tolist())) for draw in draws} == {16, 32, 64, 128}
    inverted = {int((POOL["solarize"](ramp, draw) != ramp).sum()) // 3 for draw in draws}
    assert inverted == set(range(1, 256))  # of 256 values those that reach 255, 254, ..


def test_what_is_too_small_to_soften_stays() -> None:
    image = scene()[..., :2]
    assert POOL["sharpness"](image, 0.0) is image


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
