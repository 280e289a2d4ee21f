"""Scores of a predictor and of pseudo-labels on sets of images, each image counted once over all ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from css_ray import distributed
from css_ray.functional.metrics import class_iou, confusion_matrix, image_confusion_matrices, mean_iou, pixel_accuracy
from css_ray.functional.windows import WindowAverage, whole_or_windows
from css_ray.methods.base import Method
from css_ray.models import Predictor
from css_ray.types import IGNORE_INDEX, Evaluation

_PROBE_SIZE = 64
"""Side in pixels of the black image from which a rank without images learns which pseudo-labels there are."""


_HELD_COUNTS = 2**24
"""How many counts of matrices are held on the device before those that are not 0 are moved to the CPU: 64 MB."""


@torch.no_grad()
def evaluate(
    predictor: Predictor,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device | str = "cpu",
    *,
    window: int | None = None,
    average: WindowAverage = "probabilities",
) -> Evaluation:
    """Run `predictor` and score the argmax against the labels.

    batches: pairs of images [B, 3, H, W] in [0, 1] and labels [B, H, W]; over the ranks, each image once, dealt out in turn as
    `make_val_loader` does. The predictor is put into eval mode and back. The matrices of all images of all ranks are summed
    before any ratio is taken.
    window: side in pixels of the windows whose probabilities or logits (`average`) are averaged; None predicts whole images.
    Raises ValueError if no pixel of the images is labelled.
    """
    num_classes = predictor.num_classes
    counted = Counted(num_classes, device)

    with _eval_mode(predictor):
        for images, labels in batches:
            prediction = whole_or_windows(predictor.predict, images.to(device, non_blocking=True), window, average).argmax(
                dim=1
            )
            counted.add(image_confusion_matrices(prediction, labels.to(device, non_blocking=True), num_classes))
    cells, num_images = counted.of_all_ranks()
    matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64).index_put_(
        (cells[1], cells[2]), cells[3], accumulate=True
    )
    if not matrix.any():
        raise ValueError("the validation images have no labelled pixel; prepare the data set with masks for them")
    return replace(evaluation_of(matrix, num_images), cells=cells)


def evaluation_of(matrix: Tensor, num_images: int) -> Evaluation:
    """The scores in percent of a confusion matrix [C, C] over `num_images` images, which has counted a pixel at least."""
    mean, num_absent = mean_iou(matrix)
    return Evaluation(
        miou=100 * mean,
        iou=tuple(None if math.isnan(iou) else 100 * iou for iou in class_iou(matrix).tolist()),
        pixel_accuracy=100 * pixel_accuracy(matrix),
        num_images=num_images,
        num_absent_classes=num_absent,
    )


class Counted:
    """The matrices of this rank's images, of which only the cells that are not 0 are kept for long."""

    def __init__(self, num_classes: int, device: torch.device | str) -> None:
        self._num_classes, self._device = num_classes, device
        self._dense: list[Tensor] = []
        self._num_dense = 0
        self._num_images = 0
        self._sparse = [torch.zeros(3, 0, dtype=torch.int64)]  # image, cell and count

    def add(self, matrices: Tensor) -> None:
        """[B, C, C]: those of the next images. Waits for the device once in `_HELD_COUNTS` counts."""
        self._dense.append(matrices.int())  # no image has 2^31 pixels
        self._num_dense += matrices.numel()
        if self._num_dense >= _HELD_COUNTS:
            self._flush()

    def _flush(self) -> None:
        if not self._dense:
            return
        counts = torch.cat(self._dense).flatten(1)
        image, cell = counts.nonzero(as_tuple=True)
        self._sparse.append(torch.stack([image + self._num_images, cell, counts[image, cell].long()]).cpu())
        self._num_images += len(counts)
        self._dense, self._num_dense = [], 0

    def of_all_ranks(self) -> tuple[Tensor, int]:
        """`Evaluation.cells` and the number of images, the same on all ranks; image k of a rank precedes image k + 1 of any."""
        self._flush()
        mine = torch.cat(self._sparse, dim=1).to(self._device)
        sizes = distributed.all_gather(torch.tensor([[mine.shape[1], self._num_images]], device=self._device)).cpu()
        padded = mine.new_zeros(1, 3, int(sizes[:, 0].max()))
        padded[0, :, : mine.shape[1]] = mine
        everyones, num_images = distributed.all_gather(padded).cpu(), sizes[:, 1]
        parts = []
        for rank, (part, (length, _)) in enumerate(zip(everyones, sizes.tolist(), strict=True)):
            image, cell, count = part[:, :length]
            # Before image k of this rank are the images up to k of earlier ranks, and those below k of all.
            earlier = (torch.arange(len(sizes)) < rank).long()
            place = torch.minimum(image[:, None] + earlier, num_images).sum(dim=1)
            parts.append(torch.stack([place, cell // self._num_classes, cell % self._num_classes, count]))
        cells = torch.cat(parts, dim=1)
        in_order = cells[0].argsort(stable=True)  # of an image by itself they are in order
        return cells[:, in_order], int(num_images.sum())


def evaluation_metrics(evaluation: Evaluation, class_names: tuple[str, ...]) -> dict[str, float]:
    """An evaluation as metrics: `val/miou`, `val/pixel_accuracy` and `val/iou/<class>` in percent, and `val/absent_classes`.

    Classes in neither prediction nor ground truth have no IoU; `val/absent_classes` is how many the mean leaves out.
    """
    metrics = {
        "val/miou": evaluation.miou,
        "val/pixel_accuracy": evaluation.pixel_accuracy,
        "val/absent_classes": float(evaluation.num_absent_classes),
    }
    for name, iou in zip(class_names, evaluation.iou, strict=True):
        if iou is not None:
            metrics[f"val/iou/{name}"] = iou
    return metrics


@torch.no_grad()
def pseudo_label_quality(
    method: Method,
    batches: Iterable[tuple[Tensor, Tensor]],
    class_names: tuple[str, ...],
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """How good the pseudo-labels of `method` are (Table 4), in percent, for each of its sources.

    batches: as for `evaluate`, of unlabelled images whose ground truth is known. The method is put into eval mode and back, and
    nothing of it changes.

    `pseudo/kept/<source>`: share of the pixels with ground truth that got a pseudo-label. `pseudo/miou/<source>` and
    `pseudo/iou/<source>/<class>`: over the pixels that have both, and over the classes of the ground truth of all pixels: one
    of which a source keeps nothing has an IoU of 0, and `pseudo/unkept_classes/<source>` is how many these are. (A source that
    keeps the background alone would score 100 otherwise.) What would be a ratio of nothing is left out; a method without
    pseudo-labels has no metric.
    """
    num_classes = len(class_names)
    matrices: dict[str, Tensor] = {}
    truth = torch.zeros(num_classes, dtype=torch.int64, device=device)  # pixels of each class
    with _eval_mode(method):
        for images, labels in batches:
            labels = labels.to(device, non_blocking=True)
            truth += confusion_matrix(torch.zeros_like(labels), labels, num_classes).sum(dim=1)
            for source, pseudo in method.pseudo_labels(images.to(device, non_blocking=True)).items():
                both = torch.where(pseudo == IGNORE_INDEX, IGNORE_INDEX, labels)
                matrix = confusion_matrix(pseudo, both, num_classes)
                matrices[source] = matrices[source] + matrix if source in matrices else matrix
        if not matrices:
            # All ranks must sum the same matrices, and this one had no image to learn their names from.
            empty = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
            probe = torch.zeros(1, 3, _PROBE_SIZE, _PROBE_SIZE, device=device)
            matrices = dict.fromkeys(method.pseudo_labels(probe), empty)
    if not matrices:
        return {}
    sources = sorted(matrices)
    sums = distributed.all_reduce_sum(torch.stack([matrices[source] for source in sources])).cpu()
    truth = distributed.all_reduce_sum(truth).cpu()
    metrics: dict[str, float] = {}
    for source, matrix in zip(sources, sums, strict=True):
        if truth.any():
            metrics[f"pseudo/kept/{source}"] = 100 * int(matrix.sum()) / int(truth.sum())
        if matrix.any():
            unkept = (truth > 0) & (matrix.sum(dim=1) == 0)
            iou = torch.where(unkept, 0, class_iou(matrix))
            metrics[f"pseudo/miou/{source}"] = 100 * float(iou.nanmean())
            metrics[f"pseudo/unkept_classes/{source}"] = float(unkept.sum())
            scored = zip(class_names, iou.tolist(), strict=True)
            metrics |= {f"pseudo/iou/{source}/{name}": 100 * value for name, value in scored if not math.isnan(value)}
    return metrics


@contextmanager
def _eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode within the block, and each part's own mode again after it."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
