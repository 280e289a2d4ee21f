"""A training step of CSS (mix), and the passes through the networks that no step of it can avoid."""

from __future__ import annotations

import torch
from torch import Tensor

from css_ray.methods import CSS
from css_ray.models import ModelConfig, make_segmenter
from css_ray.training.optimizer import make_optimizer
from css_ray.training.settings import TrainConfig
from css_ray.training.step import algorithms, place_method, train_step
from css_ray.types import IGNORE_INDEX, Batch, Prediction
from css_ray.views import Views

CLASSES, PRESENT = 21, 7  # as for the contrastive loss alone
PROGRESS = 0.5  # after the warm-ups: both spaces label, and every loss acts


class Steps:
    """A method in the middle of a training with settings as given, its optimizer and one batch, on one device."""

    def __init__(
        self, model: ModelConfig, size: int, batch_size: int, settings: TrainConfig, device: torch.device | str = "cpu"
    ) -> None:
        torch.manual_seed(0)
        self.device, self.settings = torch.device(device), settings
        self.method = CSS(lambda: make_segmenter(model, CLASSES), CSS.Config(), Views()).train()
        place_method(self.method, settings, device)
        self.optimizer = make_optimizer(self.method, settings)
        self.batch = _scenes(size, batch_size).to(device)

    def whole(self) -> None:
        """The step of a training: losses, zeroing, backward, SGD and EMA."""
        train_step(self.method, self.method, self.optimizer, self.batch, PROGRESS, self.settings)

    def passes(self) -> None:
        """The student forward and backward on both batches, the teacher forward on both; the loss is a sum of all outputs."""
        labelled, unlabelled = self.batch.labelled_images, self.batch.unlabelled_images
        with algorithms(self.settings, self.device, fixed_shapes=True):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
                self.method.teacher(unlabelled)
                self.method.teacher(labelled)
                total = _sum(self.method.student(labelled)) + _sum(self.method.student(unlabelled))
            self.method.student.zero_grad(set_to_none=True)
            total.backward()  # type: ignore[no-untyped-call]


def _sum(prediction: Prediction) -> Tensor:
    assert prediction.representations is not None  # CSS has the head
    return prediction.logits.sum() + prediction.representations.sum()


def _scenes(size: int, batch_size: int) -> Batch:
    """Blocks of colour whose class is their colour. An image shows the background and two other classes, about as VOC's do."""
    colours = torch.rand(CLASSES, 3)

    def scenes() -> tuple[Tensor, Tensor]:
        others = 1 + torch.rand(batch_size, PRESENT - 1).argsort(dim=1)[:, :2]
        shown = torch.cat([torch.zeros_like(others[:, :1]), others], dim=1)
        labels = shown.gather(1, torch.randint(3, (batch_size, 64))).view(batch_size, 8, 8)
        labels = labels.repeat_interleave(size // 8, dim=1).repeat_interleave(size // 8, dim=2)
        images = colours[labels].permute(0, 3, 1, 2).contiguous()
        return (images + 0.1 * torch.rand_like(images)).clamp(0, 1), labels

    labelled_images, labels = scenes()
    labels = labels.masked_fill(torch.rand(labels.shape) < 0.05, IGNORE_INDEX)
    unlabelled_images, _ = scenes()
    valid = torch.ones(batch_size, size, size, dtype=torch.bool)
    return Batch(labelled_images, labels, unlabelled_images, valid)
