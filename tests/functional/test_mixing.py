import pytest
import torch

from css_ray.functional.mixing import half_area_boxes, mix
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
