"""The teacher: a moving average of the student (Tarvainen & Valpola, NeurIPS 2017)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from css_ray.functional.schedules import teacher_keep
from css_ray.models import Segmenter
from css_ray.types import Prediction


class Teacher(nn.Module):
    """A copy of the student whose parameters follow it; it never gets a gradient.

    normalise: batch: in training it normalises with the statistics of its own batches and keeps running statistics of its own,
    the moving average covers parameters only, as in the published code of CSS. average: its running statistics follow the
    student's as its parameters do, and it normalises with them, as in that of UniMatch V2.
    """

    num_updates: Tensor

    def __init__(self, student: Segmenter, decay: float, *, normalise: Literal["batch", "average"] = "batch") -> None:
        super().__init__()
        self.normalise = normalise
        self.model = copy.deepcopy(student).requires_grad_(False)
        self.decay = decay
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))
        # The buffer's value, on the host, where the decay is computed without waiting for a GPU; unknown after a load.
        self._num_updates: int | None = None
        self.register_load_state_dict_post_hook(_forget_num_updates)  # type: ignore[no-untyped-call]
        self._pairs: tuple[list[Tensor], list[Tensor]] | None = None

    def train(self, mode: bool = True) -> Teacher:
        """As of any module, but what normalises with averages stays in eval mode."""
        super().train(mode)
        if self.normalise == "average":
            self.model.eval()
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Prediction:
        prediction: Prediction = self.model(images)
        return prediction

    @torch.no_grad()
    def update(self, student: Segmenter) -> None:
        """teacher <- d * teacher + (1 - d) * student, d = min(1 - 1 / (t + 1), decay) after t updates: the first one copies."""
        if self._num_updates is None:
            self._num_updates = int(self.num_updates)
        if self._pairs is None:
            self._pairs = self._averaged(self.model), self._averaged(student)
        followers, leaders = self._pairs
        torch._foreach_lerp_(followers, leaders, 1 - teacher_keep(self._num_updates, self.decay))
        self._num_updates += 1
        self.num_updates += 1

    @torch.no_grad()
    def copy_(self, student: Segmenter) -> None:
        """Take over the student's parameters, and with `average` its statistics; not counted as an update."""
        for follower, leader in zip(self._averaged(self.model), self._averaged(student), strict=True):
            follower.copy_(leader)

    def _averaged(self, segmenter: Segmenter) -> list[Tensor]:
        buffers = segmenter.buffers() if self.normalise == "average" else ()
        return [*segmenter.parameters(), *(buffer for buffer in buffers if buffer.is_floating_point())]


@torch.no_grad()
def follow(follower: nn.Module, leader: nn.Module, keep: float) -> None:
    """follower <- keep * follower + (1 - keep) * leader, in parameters and running statistics; whole numbers stay."""
    pairs = [
        (own, other)
        for own, other in zip(
            [*follower.parameters(), *follower.buffers()], [*leader.parameters(), *leader.buffers()], strict=True
        )
        if own.is_floating_point()
    ]
    torch._foreach_lerp_([own for own, _ in pairs], [other for _, other in pairs], 1 - keep)


def _forget_num_updates(teacher: nn.Module, keys: object) -> None:
    assert isinstance(teacher, Teacher)
    teacher._num_updates = None


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Within the block `module` normalises with its running statistics and leaves them as they are; gradients flow."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
