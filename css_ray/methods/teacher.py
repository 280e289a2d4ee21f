"""The teacher: a moving average of the student (Tarvainen & Valpola, NeurIPS 2017)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from css_ray.models import Segmenter
from css_ray.types import Prediction


class Teacher(nn.Module):
    """A copy of the student whose parameters follow it; it never gets a gradient.

    In training it normalises with the statistics of its own batches and keeps running statistics of its own: the moving average
    covers parameters only, as in the published code.
    """

    num_updates: Tensor

    def __init__(self, student: Segmenter, decay: float) -> None:
        super().__init__()
        self.model = copy.deepcopy(student).requires_grad_(False)
        self.decay = decay
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Prediction:
        prediction: Prediction = self.model(images)
        return prediction

    @torch.no_grad()
    def update(self, student: Segmenter) -> None:
        """teacher <- d * teacher + (1 - d) * student, d = min(1 - 1 / (t + 1), decay), t updates done: the first one copies."""
        weight = 1 - (1 - 1 / (self.num_updates + 1)).clamp(max=self.decay)  # a tensor: nothing waits for the host
        self.num_updates += 1
        followers: list[Tensor] = list(self.model.parameters())
        leaders: list[Tensor] = list(student.parameters())
        steps = torch._foreach_sub(leaders, followers)
        torch._foreach_mul_(steps, weight)
        torch._foreach_add_(followers, steps)
