"""Scores from one confusion matrix, which adds up over images and ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from css_ray.types import IGNORE_INDEX


def confusion_matrix(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Classes of equal shape -> [C, C] int64 counts, row: label, column: prediction. Ignored labels are not counted."""
    cells = num_classes * num_classes
    cell = torch.where(labels == IGNORE_INDEX, cells, labels * num_classes + predictions).flatten()
    counts = torch.zeros(cells + 1, dtype=torch.int64, device=labels.device)
    return counts.scatter_add_(0, cell, torch.ones_like(cell))[:cells].view(num_classes, num_classes)


def image_confusion_matrices(predictions: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Classes [B, H, W] -> [B, C, C] int64 counts of each image by itself, as of `confusion_matrix`, which is their sum."""
    cells = num_classes * num_classes
    cell = torch.where(labels == IGNORE_INDEX, cells, labels * num_classes + predictions).flatten(1)
    counts = torch.zeros(len(labels), cells + 1, dtype=torch.int64, device=labels.device)
    return counts.scatter_add_(1, cell, torch.ones_like(cell))[:, :cells].reshape(-1, num_classes, num_classes)


def class_iou(matrix: Tensor) -> Tensor:
    """[C, C] -> [C] float64 in [0, 1]: intersection over union; NaN for a class in neither the labels nor the predictions."""
    intersection = matrix.diagonal().double()
    return intersection / (matrix.sum(dim=0) + matrix.sum(dim=1) - intersection)


def mean_iou(matrix: Tensor) -> tuple[float, int]:
    """[C, C] -> the mean IoU in [0, 1] over the classes with a union, and how many were left out for having none.

    NaN if all are left out.
    """
    iou = class_iou(matrix)
    return float(iou.nanmean()), int(iou.isnan().sum())


def pixel_accuracy(matrix: Tensor) -> float:
    """[C, C] -> share of the counted pixels whose class is right, in [0, 1]; NaN without pixels."""
    return float(matrix.diagonal().sum() / matrix.sum())


def quantiles(name: str, values: Tensor, valid: Tensor) -> dict[str, Tensor]:
    """Values and `valid` (bool) of equal shape -> scalars `<name>_q05`, `_q50`, `_q95` of the valid ones; NaN without any."""
    ordered = values[valid].sort().values
    if not len(ordered):
        ordered = values.new_full((1,), torch.nan)
    return {f"{name}_q{share:02d}": ordered[round(share / 100 * (len(ordered) - 1))] for share in (5, 50, 95)}
