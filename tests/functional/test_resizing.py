"""Between an image's pixels and the cells of a map: where a cell is shown is where its label is read."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from css_ray.functional.metrics import confusion_matrix, mean_iou
from css_ray.functional.resizing import Grid, nearest, upsample, upsampled_at


def shown_at(cells: int, pixels: int) -> Tensor:
    """[cells, pixels]: how much of each cell each pixel of a row shows, by `upsample` itself."""
    return upsample(torch.eye(cells)[:, None, None], (1, pixels))[:, 0, 0]


def ceiling(labels: Tensor, stride: int, grid: Grid) -> float:
    """mIoU of labels [B, H, W] in percent that were read into the cells of a map, and shown again: no space can label better."""
    height, width = (-(-side // stride) for side in labels.shape[1:])
    classes = int(labels.max()) + 1
    cells = torch.nn.functional.one_hot(nearest(labels, (height, width), grid), classes).movedim(-1, 1).float()
    shown = upsample(cells, (labels.shape[1], labels.shape[2])).argmax(dim=1)
    return 100 * mean_iou(confusion_matrix(shown, labels, classes))[0]


@pytest.mark.parametrize("stride", [4, 8])
@pytest.mark.parametrize("pixels", [32, 33, 40, 41, 97, 112, 160, 321, 512, 513, 769])
def test_a_cell_reads_the_pixel_that_shows_it(pixels: int, stride: int) -> None:
    cells = -(-pixels // stride)
    read = nearest(torch.arange(pixels)[None], (1, cells))[0]
    weight = shown_at(cells, pixels)
    torch.testing.assert_close(weight.gather(1, read[:, None])[:, 0], weight.amax(dim=1))
    assert read[0] == 0 and read[-1] == pixels - 1


@pytest.mark.parametrize("pixels", [32, 40, 97, 321, 513])
def test_the_corner_reading_is_up_to_three_quarters_of_a_cell_away(pixels: int) -> None:
    """The released code's, by its definition: floor(j H / h)."""
    cells = -(-pixels // 4)
    read = nearest(torch.arange(pixels)[None], (1, cells), "corner")[0]
    assert read.tolist() == [j * pixels // cells for j in range(cells)]
    shown = torch.arange(cells) * (pixels - 1) / (cells - 1)
    away = (shown - read).abs().max() * (cells - 1) / (pixels - 1)
    assert away > 0.6
    assert (shown - nearest(torch.arange(pixels)[None], (1, cells))[0]).abs().max() <= 0.5


def test_upsampling_by_hand() -> None:
    # Aligned corners: the corner pixels keep their values, the middle is their mean.
    torch.testing.assert_close(
        upsample(torch.tensor([[[[0.0, 1.0], [2.0, 3.0]]]]), (3, 3))[0, 0],
        torch.tensor([[0.0, 0.5, 1.0], [1.0, 1.5, 2.0], [2.0, 2.5, 3.0]]),
    )


def test_both_axes_and_any_type() -> None:
    labels = torch.arange(16).view(1, 4, 4)
    assert nearest(labels, (2, 2)).tolist() == [[[0, 3], [12, 15]]]
    assert nearest(labels, (2, 2), "corner").tolist() == [[[0, 2], [8, 10]]]
    assert nearest(labels, (1, 4)).tolist() == [[[4, 5, 6, 7]]]  # a single row is shown everywhere: it reads the middle
    assert nearest(labels[:, :3, :3] > 4, (2, 2)).tolist() == [[[False, False], [True, True]]]


def blocks(size: int) -> Tensor:
    """[8, size, size]: rectangles of 6 classes at any place."""
    generator = torch.Generator().manual_seed(size)
    labels = torch.zeros(8, size, size, dtype=torch.int64)
    for image in labels:
        for label in range(1, 6):
            y, x, height, width = torch.randint(3, size // 2, (4,), generator=generator).tolist()
            image[y : y + height, x : x + width] = label
    return labels


@pytest.mark.parametrize("stride", [4, 8])
@pytest.mark.parametrize("size", [40, 41, 64, 65, 97])
def test_labels_survive_the_map_better_than_from_the_corner(size: int, stride: int) -> None:
    labels = blocks(size)
    aligned, corner = ceiling(labels, stride, "aligned"), ceiling(labels, stride, "corner")
    assert aligned > corner + 2
    assert ceiling(labels, 1, "aligned") == ceiling(labels, 1, "corner") == 100


@pytest.mark.parametrize(
    ("cells", "size"), [((6, 5), (24, 17)), ((3, 4), (3, 4)), ((1, 4), (7, 9)), ((5, 1), (9, 1)), ((9, 8), (5, 4))]
)
def test_maps_at_some_pixels_are_those_that_are_shown_there(cells: tuple[int, int], size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    maps = torch.randn(2, 3, *cells, dtype=torch.float64, requires_grad=True)
    points = torch.randperm(size[0] * size[1])[:10]
    whole = upsample(maps, size).flatten(2)[:, :, points].transpose(1, 2)
    some = upsampled_at(maps, size, points)
    torch.testing.assert_close(some, whole)
    gradient = torch.randn_like(whole)
    torch.testing.assert_close(*(torch.autograd.grad(found, maps, gradient)[0] for found in (some, whole)))
    torch.testing.assert_close(upsampled_at(maps.detach().bfloat16(), size, points), whole.float(), atol=0.05, rtol=0.01)
