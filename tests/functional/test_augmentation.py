"""Geometry: maps stay on their pixels. Colours: against torchvision's own operations."""

import colorsys

import pytest
import torch
from torchvision.transforms.v2 import functional as tv

from css_ray.functional import augmentation
from css_ray.functional.augmentation import colour_jitter, cutout, gaussian_blur, grey, horizontal_flip, scale_and_crop
from css_ray.types import IGNORE_INDEX


def coordinates(num_images: int, height: int, width: int) -> torch.Tensor:
    """[B, 3, H, W] images whose colour says where a pixel came from: x, y, image."""
    x = torch.arange(width).expand(height, -1) / width
    y = torch.arange(height)[:, None].expand(-1, width) / height
    image = torch.arange(num_images).view(-1, 1, 1).expand(-1, height, width) / num_images
    return torch.stack([x.expand_as(image), y.expand_as(image), image], dim=1)


def test_scaling_moves_maps_with_their_pixels_and_fills_the_padding() -> None:
    torch.manual_seed(0)
    images = coordinates(16, 20, 30)
    maps = ((images[:, 0] * 30).round().long(), images.clone(), torch.ones(16, 20, 30, dtype=torch.bool))
    scaled, (columns, copy, valid) = scale_and_crop(images, maps, (IGNORE_INDEX, -1.0, False), (0.5, 1.5))
    assert columns.dtype == torch.int64 and valid.dtype == torch.bool and copy.shape == images.shape
    assert torch.equal(columns == IGNORE_INDEX, ~valid)
    assert torch.equal(copy[:, 0] == -1, ~valid)
    # Bilinear image and nearest map come from the same place: at most half a pixel apart.
    apart = (scaled - copy).abs().masked_fill(~valid[:, None], 0)
    assert float(apart[:, 0].max()) <= 0.5 / 30 + 1e-5 and float(apart[:, 1].max()) <= 0.5 / 20 + 1e-5
    assert float(apart[:, 2].max()) < 1e-6  # no image mixes with another
    padded = ~valid.flatten(1).all(dim=1)
    assert 0 < int(padded.sum()) < 16  # some shrank, some grew
    assert valid[:, 0, 0].all()  # padding is at the right and the bottom
    assert scaled.min() >= 0 and scaled.max() <= 1


def test_scale_1_changes_nothing() -> None:
    images = torch.rand(2, 3, 7, 9)
    labels = torch.randint(0, 5, (2, 7, 9))
    assert torch.equal(scale_and_crop(images, (labels,), (0,), (1.0, 1.0))[0], images)
    almost, (moved,) = scale_and_crop(images, (labels,), (0,), (1.0, 1.0 + 1e-9))  # through the resampling
    torch.testing.assert_close(almost, images, atol=1e-5, rtol=0)
    assert torch.equal(moved, labels)


def test_flip_mirrors_image_and_maps_together() -> None:
    torch.manual_seed(0)
    images = coordinates(64, 3, 4)
    flipped, (columns,) = horizontal_flip(images, ((images[:, 0] * 4).long(),))
    assert torch.equal((flipped[:, 0] * 4).long(), columns)
    share = (columns[:, 0, 0] == 3).float().mean()
    assert 0.3 < float(share) < 0.7
    assert torch.equal(horizontal_flip(images, (), probability=1.0)[0], images.flip(-1))


def test_colour_jitter_equals_torchvision_in_the_same_order(monkeypatch: pytest.MonkeyPatch) -> None:
    images = 0.4 + 0.2 * torch.rand(1, 3, 6, 6)  # no clamping on the way
    draws = torch.tensor([0.75, 0.9, 0.2, 0.5])  # brightness, contrast, saturation, hue
    monkeypatch.setattr(torch, "rand", lambda *size, **_: draws.view(4, 1) if size == (4, 1) else torch.zeros(size))
    found = colour_jitter(images, strength=0.5, probability=1.0)
    monkeypatch.undo()
    brightness, contrast, saturation = (1 + (2 * draws[:3] - 1) * 0.5).tolist()
    expected = tv.adjust_saturation(tv.adjust_contrast(tv.adjust_brightness(images, brightness), contrast), saturation)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)  # torchvision rounds the luma's weights


def test_hue_keeps_grey_and_turns_a_third_from_red_towards_green(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.tensor([[0.5, 0.5, 0.5], [0.6, 0.4, 0.4]]).view(2, 3, 1, 1)
    draws = torch.tensor([0.5, 0.5, 0.5, 1 / 2 + 1 / 6])[:, None].expand(4, 2)  # hue + 1/3 of a turn at strength 1
    monkeypatch.setattr(torch, "rand", lambda *size, **_: draws if size == (4, 2) else torch.zeros(size))
    grey, turned = colour_jitter(images, strength=1.0, probability=1.0)[:, :, 0, 0]
    torch.testing.assert_close(grey, torch.full((3,), 0.5), atol=1e-3, rtol=0)
    luma = torch.tensor([0.299, 0.587, 0.114])
    torch.testing.assert_close(turned @ luma, images[1, :, 0, 0] @ luma, atol=1e-3, rtol=0)
    assert turned.argmax() == 1  # green leads, as after +1/3 of the colour wheel


def test_the_way_back_from_yiq_is_the_inverse() -> None:
    torch.testing.assert_close(augmentation._FROM_YIQ @ augmentation._TO_YIQ, torch.eye(3), atol=3e-7, rtol=0.0)


def test_photometric_probabilities() -> None:
    torch.manual_seed(0)
    images = torch.rand(200, 3, 8, 8)
    for changed in (colour_jitter(images, 0.3, 0.25), gaussian_blur(images, (0.5, 1.0), 0.25)):
        share = (changed != images).flatten(1).any(dim=1).float().mean()
        assert 0.15 < float(share) < 0.35
        assert changed.min() >= 0 and changed.max() <= 1


def test_blur_equals_torchvision() -> None:
    images = torch.rand(3, 3, 12, 10)
    found = gaussian_blur(images, (1.0, 1.0), 1.0)
    torch.testing.assert_close(found, tv.gaussian_blur(images, [7, 7], [1.0, 1.0]), atol=1e-5, rtol=0)


def test_colours_keep_float32_under_autocast() -> None:
    images = torch.rand(4, 3, 8, 8)
    found = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            found.append(gaussian_blur(colour_jitter(images, 0.3, 1.0), (0.5, 1.0), 1.0))
    assert torch.equal(*found)


@pytest.mark.parametrize("chosen", [[True, False, True], [False, False, False], [True, True, True]])
def test_each_chosen_item_changes_by_its_own_place(chosen: list[bool]) -> None:
    items = torch.rand(3, 2, 4)
    weights = torch.tensor([2.0, 3.0, 5.0])
    found = augmentation._change_some(items, torch.tensor(chosen), lambda some, places: some * weights[places].view(-1, 1, 1))
    for index, (item, change) in enumerate(zip(items, chosen, strict=True)):
        assert torch.equal(found[index], item * weights[index] if change else item)


def test_grey_is_the_luma_of_a_share_of_the_images() -> None:
    torch.manual_seed(0)
    images = torch.rand(400, 3, 2, 2)
    found = grey(images, 0.25)
    changed = (found != images).flatten(1).any(dim=1)
    assert changed.float().mean().item() == pytest.approx(0.25, abs=0.07)
    luma = 0.299 * images[:, 0] + 0.587 * images[:, 1] + 0.114 * images[:, 2]
    for channel in range(3):
        torch.testing.assert_close(found[changed, channel], luma[changed])
    assert torch.equal(found[~changed], images[~changed])


def test_hue_has_a_strength_of_its_own() -> None:
    """Without it a colour keeps its hue, as colorsys measures it; with it alone, brightness and contrast stay."""
    torch.manual_seed(0)
    images = torch.tensor([0.5, 0.3, 0.4]).view(1, 3, 1, 1).expand(200, 3, 2, 2)
    still = colour_jitter(images, 0.2, 1.0, hue=0.0)
    own = colorsys.rgb_to_hsv(0.5, 0.3, 0.4)[0]
    for image in still[:, :, 0, 0]:
        assert colorsys.rgb_to_hsv(*image.tolist())[0] == pytest.approx(own, abs=0.02)
    turned = colour_jitter(images, 0.0, 1.0, hue=0.1)
    luma = (turned * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(dim=1)
    torch.testing.assert_close(luma, torch.full_like(luma, 0.299 * 0.5 + 0.587 * 0.3 + 0.114 * 0.4), atol=1e-3, rtol=0)
    assert turned.std(dim=0).max() > 0.01


def test_black_padding_of_a_scaled_view() -> None:
    torch.manual_seed(0)
    images = torch.full((8, 3, 12, 12), 0.7)
    scaled, (valid,) = scale_and_crop(images, [torch.ones(8, 12, 12, dtype=torch.bool)], [False], (0.5, 0.5), "black")
    assert valid.float().mean().item() == pytest.approx(0.25)
    inside = valid.unsqueeze(1).expand_as(scaled)
    torch.testing.assert_close(scaled[inside], torch.full_like(scaled[inside], 0.7))
    assert not scaled[~inside].any()


def test_cutout_hides_a_box_and_its_labels() -> None:
    torch.manual_seed(0)
    images, labels = torch.full((200, 3, 20, 30), 2.0), torch.zeros(200, 20, 30, dtype=torch.int64)
    cut, kept = cutout(images, labels, probability=0.5, area=(0.1, 0.2), aspect=(0.5, 2.0))
    hidden = kept == IGNORE_INDEX
    assert torch.equal(hidden, (cut != 2).all(dim=1)) and torch.equal(~hidden, (cut == 2).all(dim=1))
    assert torch.equal(kept[~hidden], labels[~hidden])
    shares = hidden.float().mean(dim=(1, 2))
    with_box = shares > 0
    assert 70 < with_box.sum() < 130
    assert shares[with_box].min() > 0.06 and shares.max() <= 0.2  # sides are cut down to whole pixels
    for mask in hidden[with_box][:20]:  # one box: as many pixels as its rows times its columns
        assert mask.sum() == mask.any(dim=0).sum() * mask.any(dim=1).sum()
    noise = cut[hidden.unsqueeze(1).expand_as(cut)]
    assert noise.min() >= 0 and noise.max() < 1 and abs(float(noise.mean()) - 0.5) < 0.02
    assert len(set(noise.tolist())) > 0.9 * len(noise)  # every pixel and channel its own
    untouched = cutout(images, labels, probability=0.0, area=(0.1, 0.2), aspect=(0.5, 2.0))
    assert torch.equal(untouched[0], images) and torch.equal(untouched[1], labels)
