import torch

from css_ray.functional.mixing import half_area_boxes, mix_with_next

CPU = torch.device("cpu")


def test_boxes_are_boxes_of_half_the_area() -> None:
    torch.manual_seed(0)
    boxes = half_area_boxes(500, 40, 60, CPU)
    widths, heights = boxes.any(dim=1).sum(dim=1), boxes.any(dim=2).sum(dim=1)
    assert torch.equal(boxes.sum(dim=(1, 2)), widths * heights)  # full rectangles
    assert int(widths.min()) == 31 and int(widths.max()) == 59  # W / 2 + 1 .. W - 1, both met
    assert torch.equal(heights, (40 * 60 / (2 * widths)).round().long())
    # Uniform positions: over many boxes the left and right, the top and bottom are covered alike.
    cover = boxes.float().mean(dim=0)
    assert abs(cover[:, :10].mean() - cover[:, -10:].mean()) < 0.05
    assert abs(cover[:10].mean() - cover[-10:].mean()) < 0.05


def test_every_map_takes_the_inside_from_the_next_item() -> None:
    images = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 3, 2, 2)
    labels = torch.arange(3).view(3, 1, 1).expand(3, 2, 2)
    flags = labels == 1
    boxes = torch.zeros(3, 2, 2, dtype=torch.bool)
    boxes[:, 0, :] = True
    mixed_images, mixed_labels, mixed_flags = mix_with_next(boxes, images, labels, flags)
    assert mixed_labels.tolist() == [[[1, 1], [0, 0]], [[2, 2], [1, 1]], [[0, 0], [2, 2]]]
    assert torch.equal(mixed_images, mixed_labels[:, None].expand(3, 3, 2, 2).float())
    assert torch.equal(mixed_flags, mixed_labels == 1) and mixed_flags.dtype == torch.bool
