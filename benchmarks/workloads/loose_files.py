"""The plain way to load a semi-supervised data set: loose files, PIL and NumPy, one image at a time, in a DataLoader."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.workloads import pil_views
from css_ray.types import IGNORE_INDEX
from css_ray.views import Views

Arrays = tuple[Tensor, ...]


class _Files(Dataset[tuple[Arrays, Arrays]]):
    """Batch by batch, as many epochs as asked for: item `step` is the step's labelled and its unlabelled tensors."""

    def __init__(self, labelled: Sequence[Path], unlabelled: Sequence[Path], crop: int, batch: int, views: Views) -> None:
        self.labelled, self.unlabelled = list(labelled), list(unlabelled)
        self.crop, self.batch, self.views = (crop, crop), batch, views

    def __getitem__(self, step: int) -> tuple[Arrays, Arrays]:
        random.seed(step)
        return self._labelled(), self._unlabelled()

    def _labelled(self) -> Arrays:
        """Images and labels."""
        found = []
        for path in random.sample(self.labelled, self.batch):
            loaded = Image.open(path).convert("RGB"), Image.open(path.with_suffix(".png"))
            items = pil_views.scale_and_crop(loaded, self.crop, self.views.scale, (IGNORE_INDEX,))
            found.append(pil_views.colours(pil_views.flip(items, self.views), self.views))
        return (
            torch.stack([_image_tensor(image) for image, _ in found]),
            torch.stack([torch.from_numpy(np.array(labels, dtype=np.int64)) for _, labels in found]),
        )

    def _unlabelled(self) -> Arrays:
        """The weak and the strong view, and where each shows no padding."""
        weak, strong = [], []
        for path in random.sample(self.unlabelled, self.batch):
            image = Image.open(path).convert("RGB")
            weak.append(pil_views.pad_and_crop((image, Image.new("L", image.size, 1)), self.crop, (0,)))
            strong.append(pil_views.scale_and_crop(weak[-1], self.crop, self.views.strong_scale, (0,)))
        strong = [pil_views.flip(pil_views.colours(items, self.views), self.views) for items in pil_views.cut_mix(strong)]
        return tuple(
            torch.stack(tensors)
            for view in (weak, strong)
            for tensors in ([_image_tensor(image) for image, _ in view], [_mask_tensor(valid) for _, valid in view])
        )


def batches(
    labelled: Sequence[Path], unlabelled: Sequence[Path], *, crop: int, batch: int, views: Views, num_steps: int
) -> Iterator[tuple[Arrays, Arrays]]:
    """Loaded by one worker process; the mask of a labelled image lies beside it."""
    files = _Files(labelled, unlabelled, crop, batch, views)
    return iter(DataLoader(files, batch_size=None, sampler=range(num_steps), num_workers=1))


def _image_tensor(image: Image.Image) -> Tensor:
    """float32 [3, H, W] in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div_(255)


def _mask_tensor(mask: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(mask)).bool()
