"""The precision in which losses, similarities and prototypes are computed."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, whatever autocast or an integer type made of it; float64 stays."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()
