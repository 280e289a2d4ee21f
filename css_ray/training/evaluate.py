"""Scores of a predictor on a set of images, each counted once over all ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from css_ray import distributed
from css_ray.functional.metrics import class_iou, confusion_matrix, mean_iou, pixel_accuracy
from css_ray.models.segmenter import Segmenter
from css_ray.types import Evaluation


@torch.no_grad()
def evaluate(predictor: Segmenter, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device | str = "cpu") -> Evaluation:
    """Run `predictor` on whole images and score the argmax against the labels.

    batches: pairs of images [B, 3, H, W] in [0, 1] and labels [B, H, W]; over the ranks, each image once. The predictor is
    put into eval mode and back. The matrices of all ranks are summed before any ratio is taken.
    Raises ValueError where no pixel of the images is labelled.
    """
    num_classes = predictor.num_classes
    matrix = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)
    num_images = torch.zeros((), dtype=torch.int64, device=device)
    training = predictor.training
    predictor.eval()
    for images, labels in batches:
        prediction = predictor.predict(images.to(device, non_blocking=True)).argmax(dim=1)
        matrix += confusion_matrix(prediction, labels.to(device, non_blocking=True), num_classes)
        num_images += len(images)
    predictor.train(training)
    matrix = distributed.all_reduce_sum(matrix).cpu()
    if not matrix.any():
        raise ValueError("the validation images have no labelled pixel; prepare the data set with masks for them")
    mean, _ = mean_iou(matrix)
    return Evaluation(
        miou=100 * mean,
        iou=tuple(None if math.isnan(iou) else 100 * iou for iou in class_iou(matrix).tolist()),
        pixel_accuracy=100 * pixel_accuracy(matrix),
        num_images=int(distributed.all_reduce_sum(num_images)),
    )


def evaluation_metrics(evaluation: Evaluation, class_names: tuple[str, ...]) -> dict[str, float]:
    """An evaluation as metrics: `val/miou`, `val/pixel_accuracy`, `val/iou/<class>` (absent classes left out), in percent."""
    metrics = {"val/miou": evaluation.miou, "val/pixel_accuracy": evaluation.pixel_accuracy}
    for name, iou in zip(class_names, evaluation.iou, strict=True):
        if iou is not None:
            metrics[f"val/iou/{name}"] = iou
    return metrics
