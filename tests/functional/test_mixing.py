import itertools

import pytest
import torch
from torch import Tensor

from css_ray.functional.mixing import area_boxes, beta_boxes, half_area_boxes, mix, partners, xor_boxes
from css_ray.types import IGNORE_INDEX

CPU = torch.device("cpu")


def test_boxes_are_boxes_of_half_the_area() -> None:
    torch.manual_seed(0)
    boxes = half_area_boxes(500, 40, 60, CPU)
    widths = boxes.any(dim=1).sum(dim=1)
    assert int(widths.min()) == 31 and int(widths.max()) == 59  # W / 2 + 1 .. W - 1, both met
    # Uniform positions: over many boxes the left and right, the top and bottom are covered alike.
    cover = boxes.float().mean(dim=0)
    assert abs(cover[:, :10].mean() - cover[:, -10:].mean()) < 0.05
    assert abs(cover[:10].mean() - cover[-10:].mean()) < 0.05


@pytest.mark.parametrize(("height", "width"), [(40, 60), (33, 47), (64, 8), (5, 3), (7, 5), (2, 2)])
def test_every_box_is_whole_and_has_the_height_that_its_width_asks_for(height: int, width: int) -> None:
    torch.manual_seed(0)
    for box in half_area_boxes(200, height, width, CPU):
        rows, columns = box.any(dim=1).nonzero().flatten().tolist(), box.any(dim=0).nonzero().flatten().tolist()
        assert rows == list(range(rows[0], rows[-1] + 1)) and columns == list(range(columns[0], columns[-1] + 1))
        # A box that left the image would be lower than the rule says.
        assert len(rows) == round(height * width / (2 * len(columns)))
        assert int(box.sum()) == len(rows) * len(columns)
        assert width / 2 < len(columns) <= max(width - 1, width // 2 + 1)
        assert abs(int(box.sum()) - height * width / 2) <= len(columns) / 2  # as near to half as whole rows allow


def test_every_place_is_as_likely_as_any_other() -> None:
    torch.manual_seed(0)
    num_boxes, counts = 8000, dict[tuple[int, int, int], int]()
    for box in half_area_boxes(num_boxes, 7, 5, CPU):
        rows, columns = box.any(dim=1).nonzero().flatten().tolist(), box.any(dim=0).nonzero().flatten().tolist()
        key = (len(columns), columns[0], rows[0])
        counts[key] = counts.get(key, 0) + 1
    # Width 3 (3 places across) has height round(35 / 6) = 6 (2 down), width 4 (2) has round(35 / 8) = 4 (4 down).
    chances = {(3, x, y): 1 / 2 / 3 / 2 for x in range(3) for y in range(2)}
    chances |= {(4, x, y): 1 / 2 / 2 / 4 for x in range(2) for y in range(4)}
    assert set(counts) == set(chances)
    for key, chance in chances.items():
        error = (num_boxes * chance * (1 - chance)) ** 0.5
        assert abs(counts[key] - num_boxes * chance) < 4 * error, key


def test_mix_against_a_loop_over_pixels() -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = half_area_boxes(3, 6, 5, CPU)
    images = torch.rand(3, 2, 6, 5, generator=generator)
    labels = torch.where(
        torch.rand(3, 6, 5, generator=generator) < 0.3, IGNORE_INDEX, torch.randint(4, (3, 6, 5), generator=generator)
    )
    for items in (images, labels, labels == IGNORE_INDEX):
        partners = items.roll(-1, dims=0)
        before = items.clone()
        mixed = mix(boxes, items, partners)
        assert mixed.dtype == items.dtype and mixed.shape == items.shape and torch.equal(items, before)
        for b in range(3):
            for y in range(6):
                for x in range(5):
                    source = (b + 1) % 3 if boxes[b, y, x] else b
                    assert torch.equal(mixed[b, ..., y, x], items[source, ..., y, x])


def test_all_maps_follow_the_same_pixels() -> None:
    labels = torch.arange(3).view(3, 1, 1).expand(3, 2, 2)
    boxes = torch.zeros(3, 2, 2, dtype=torch.bool)
    boxes[:, 0, :] = True
    mixed = mix(boxes, labels, labels.roll(-1, dims=0))
    assert mixed.tolist() == [[[1, 1], [0, 0]], [[2, 2], [1, 1]], [[0, 0], [2, 2]]]
    images = labels[:, None].expand(3, 3, 2, 2).float()
    assert torch.equal(mix(boxes, images, images.roll(-1, dims=0)), mixed[:, None].expand(3, 3, 2, 2).float())


def extents(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Height and width of what is True in each of [B, H, W], which must be a full box."""
    heights, widths = boxes.any(dim=2).sum(dim=1), boxes.any(dim=1).sum(dim=1)
    assert torch.equal(heights * widths, boxes.sum(dim=(1, 2)))
    return heights, widths


def test_area_boxes_have_their_share_and_shape() -> None:
    torch.manual_seed(0)
    boxes = area_boxes(2000, 200, 200, CPU, probability=1.0, area=(0.1, 0.3), aspect=(0.5, 2.0))
    heights, widths = extents(boxes)
    shares = boxes.float().mean(dim=(1, 2))
    assert shares.min() > 0.09 and shares.max() < 0.301  # sides are cut to whole pixels
    assert shares.mean().item() == pytest.approx(0.2, abs=0.01)
    ratio = heights / widths
    assert ratio.min() > 0.48 and ratio.max() < 2.05
    cover = boxes.float().mean(dim=0)
    assert boxes.any(dim=(1, 2)).all() and (cover - cover.flip(0)).abs().mean() < 0.01 and cover[80:120, 80:120].min() > 0


def test_area_boxes_come_with_their_probability_and_lie_inside() -> None:
    torch.manual_seed(0)
    boxes = area_boxes(4000, 40, 60, CPU, probability=0.25, area=(0.02, 0.4), aspect=(0.3, 1 / 0.3))
    extents(boxes)
    assert boxes.any(dim=(1, 2)).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert not area_boxes(50, 40, 60, CPU, probability=0.0, area=(0.02, 0.4), aspect=(0.3, 3.0)).any()
    # One that fits nowhere is left out: four times as high as wide, of the whole image.
    assert not area_boxes(50, 40, 40, CPU, probability=1.0, area=(1.0, 1.0), aspect=(4.0, 4.0)).any()


def test_xor_boxes_have_their_share() -> None:
    one = xor_boxes(500, 60, 60, CPU, boxes=1, area=(0.25, 0.25))
    heights, widths = extents(one)
    shares = one.float().mean(dim=(1, 2))
    assert shares.mean().item() == pytest.approx(0.25, abs=0.01) and heights.min() >= 15 and widths.min() >= 15
    torch.manual_seed(0)
    shares = xor_boxes(4000, 96, 96, CPU, boxes=3, area=(0.25, 0.5)).float().mean(dim=(1, 2))
    assert shares.mean().item() == pytest.approx(0.252, abs=0.01) and shares.min() > 0.03 and shares.max() < 0.5


def test_where_two_boxes_overlap_neither_shows() -> None:
    """Pixel by pixel, from the same draws in the same order."""
    torch.manual_seed(4)
    found = xor_boxes(5, 24, 36, CPU, boxes=3, area=(0.25, 0.5))
    torch.manual_seed(4)
    flips = torch.zeros(5, 24, 36, dtype=torch.int64)
    for _ in range(3):
        q, v, down, across = (torch.rand(5, 1).flatten().tolist() for _ in range(4))
        for image in range(5):
            area = 0.25 + 0.25 * q[image]
            height = round(area ** v[image] / 3**0.5 * 24)
            width = round(area ** (1 - v[image]) / 3**0.5 * 36)
            top, left = int(down[image] * (24 - height + 1)), int(across[image] * (36 - width + 1))
            for row in range(top, top + height):
                for column in range(left, left + width):
                    flips[image, row, column] += 1
    assert (flips == 2).any()
    assert torch.equal(found, flips % 2 == 1)


def test_partners() -> None:
    cpu = torch.device("cpu")
    assert partners(4, "roll", cpu).tolist() == [1, 2, 3, 0]
    assert partners(1, "roll", cpu).tolist() == [0]
    assert partners(4, "reverse", cpu).tolist() == [3, 2, 1, 0]
    torch.manual_seed(0)
    drawn = [tuple(partners(3, "permute", cpu).tolist()) for _ in range(600)]
    assert set(drawn) == set(itertools.permutations(range(3)))
    assert all(60 < drawn.count(each) < 140 for each in set(drawn))


def test_beta_boxes_have_the_share_of_their_distribution() -> None:
    """1 - λ, λ ~ Beta(4, 4), has the mean 1/2 and the variance 1/36; a clipped box with its centre anywhere covers less."""
    torch.manual_seed(0)
    shares = beta_boxes(20_000, 64, 64, torch.device("cpu"), concentration=4.0).float().mean(dim=(1, 2))
    assert shares.mean().item() == pytest.approx(0.5, abs=0.01) and shares.var().item() == pytest.approx(1 / 36, abs=0.002)
    clipped = beta_boxes(20_000, 64, 64, torch.device("cpu"), concentration=4.0, clipped=True).float().mean(dim=(1, 2))
    # Of a side s with its centre uniform in [0, 1], 1 - s / 4 of the side is inside on average: E[s² (1 - s / 4)²].
    side = (1 - torch.distributions.Beta(4.0, 4.0).sample((200_000,))).sqrt()
    assert clipped.mean().item() == pytest.approx((side * (1 - side / 4)).square().mean().item(), abs=0.01)
