"""A training step: the only place where the loop, the estimate of `study plan` and the benchmarks take one."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from css_ray.methods.base import Method
from css_ray.models.segmenter import Segmenter
from css_ray.training.settings import TrainConfig
from css_ray.types import Batch, Clock, Losses


def place_method(method: Method, config: TrainConfig, device: torch.device | str) -> None:
    """Move `method` to `device` in the memory layout that `config` asks for, its segmenters compiled if it asks for that."""
    method.to(device)
    if config.channels_last:
        method.to(memory_format=torch.channels_last)
    if config.compile:
        # In place, so that the names in state_dict stay. All parts too, which some methods call by themselves: a backward pass
        # does not find its statistics if a pass that is not compiled is followed by one that is. `predict` calls the parts on
        # images of any size: evaluations run uncompiled.
        for segmenter in [module for module in method.modules() if isinstance(module, Segmenter)]:
            for part in (segmenter, *segmenter.children()):
                part.compile()
        # Dynamo looks at the gradients of what a graph is given, and what a decoder is given has none.
        warnings.filterwarnings("ignore", r"The \.grad attribute of a Tensor that is not a leaf", UserWarning)


@contextmanager
def algorithms(config: TrainConfig, device: torch.device, *, fixed_shapes: bool) -> Iterator[None]:
    """Within the block a GPU uses the fastest convolutions, or only algorithms that repeat their bits, as `config` asks.

    fixed_shapes: the fastest are found by timing them, once for each shape: whole images have too many.
    """
    if device.type != "cuda":
        yield
        return
    cudnn = torch.backends.cudnn
    benchmark, deterministic = cudnn.benchmark, torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
        # A warning that names the operation, where torch has no such algorithm for it, is worth more than no run.
        torch.use_deterministic_algorithms(True, warn_only=True)
    cudnn.benchmark = fixed_shapes and not config.deterministic
    try:
        yield
    finally:
        cudnn.benchmark = benchmark
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def train_step(
    module: nn.Module,
    method: Method,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    clock: Clock,
    config: TrainConfig,
) -> Losses:
    """Losses of `batch`, backward, update, and what the method does after an update; returns the losses.

    module: `method`, or DDP around it. batch: on the method's device.
    """
    device = batch.labelled_images.device
    with algorithms(config, device, fixed_shapes=True):
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            losses: Losses = module(batch, clock)
            total = losses.total
        optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    method.after_step(clock)
    return losses
