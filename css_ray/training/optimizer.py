"""SGD with one schedule, and the encoder's own learning rate."""

from __future__ import annotations

import torch
from torch import nn

from css_ray.functional.schedules import poly
from css_ray.training.settings import TrainConfig


def make_optimizer(method: nn.Module, config: TrainConfig) -> torch.optim.SGD:
    """SGD over the trainable parameters of `method`; those under an `encoder` module learn at `encoder_lr_factor`."""
    encoder: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            (encoder if "encoder" in name.split(".") else rest).append(parameter)
    groups = [
        {"params": rest, "lr_factor": 1.0},
        {"params": encoder, "lr_factor": config.encoder_lr_factor},
    ]
    return torch.optim.SGD(
        [group for group in groups if group["params"]],
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.momentum > 0,
        weight_decay=config.weight_decay,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainConfig, step: int) -> float:
    """Set every group to the poly schedule at `step` (of the paper's Sec. 4.1, per iteration) and return the base rate."""
    lr = poly(step / config.iterations, base=config.lr, power=config.poly_power, floor=config.min_lr)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
    return lr
