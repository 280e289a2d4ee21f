"""One optimizer and one schedule for all that a method trains, in groups that learn at factors of the rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from css_ray.functional.schedules import poly
from css_ray.methods.base import Method
from css_ray.training.settings import TrainConfig


def make_optimizer(method: Method, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD or AdamW over `parameter_groups`. Raises ValueError as that does."""
    groups = parameter_groups(method, config)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)
    nesterov = config.nesterov and config.momentum > 0
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov, fused=True)


def parameter_groups(method: Method, config: TrainConfig) -> list[dict[str, Any]]:
    """What `method` trains, by the factor of the learning rate and the weight decay.

    A parameter learns at the factor of the longest name in `method.lr_factors()` that its own begins with; otherwise, under an
    `encoder` module, at `encoder_lr_factor`, and elsewhere at 1. A factor of 0 freezes it: it gets no gradient, and the
    optimizer keeps no state of it.

    Raises ValueError for a name in `lr_factors()` that no parameter begins with.
    """
    factors = method.lr_factors()
    for prefix in factors:
        if not any(_below(name, prefix) for name, _ in method.named_parameters()):
            raise ValueError(f"lr_factors() of {method.name} names {prefix!r}, which no parameter begins with")
    groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
    trained = [(name, parameter) for name, parameter in method.named_parameters() if parameter.requires_grad]
    # Those of encoders last and apart, as earlier versions had them: a checkpoint knows a parameter by its place.
    for name, parameter in sorted(trained, key=lambda pair: _in_encoder(pair[0])):
        factor = _factor(name, factors, config)
        if factor == 0:
            parameter.requires_grad_(False)
            continue
        one_dimension = parameter.dim() <= 1  # of normalisations, and biases
        decay = 0.0 if one_dimension and not config.decay_norm_and_bias else config.weight_decay
        groups.setdefault((_in_encoder(name), factor, decay), []).append(parameter)
    return [{"params": members, "lr_factor": factor, "weight_decay": decay} for (_, factor, decay), members in groups.items()]


def set_learning_rate(optimizer: torch.optim.Optimizer, config: TrainConfig, progress: float) -> float:
    """Set every group to the poly schedule at a share of training (of the paper's Sec. 4.1) and return the base rate."""
    lr = poly(progress, base=config.lr, power=config.poly_power, floor=config.min_lr)
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
    return lr


def _factor(name: str, factors: Mapping[str, float], config: TrainConfig) -> float:
    longest = max((prefix for prefix in factors if _below(name, prefix)), key=len, default=None)
    if longest is not None:
        return factors[longest]
    return config.encoder_lr_factor if _in_encoder(name) else 1.0


def _in_encoder(name: str) -> bool:
    return "encoder" in name.split(".")


def _below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")
