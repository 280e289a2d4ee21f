"""Several segmenters that predict as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from css_ray.models.segmenter import Segmenter


class Ensemble(nn.Module):
    """The mean of the logits of segmenters of one architecture."""

    def __init__(self, members: Sequence[Segmenter]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    @property
    def num_classes(self) -> int:
        """C of each member."""
        first = self.members[0]
        assert isinstance(first, Segmenter)
        return first.num_classes

    def predict(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] -> logits [B, C, H, W] at the images' size, in float32."""
        return torch.stack([member.predict(images) for member in self.members]).mean(dim=0)  # type: ignore[operator]


Predictor = Segmenter | Ensemble
"""What is evaluated and kept."""
