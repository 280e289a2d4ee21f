"""Perturbations of features [B, F, h, w], under which a prediction should stay (CCT, Ouali et al., CVPR 2020; UniMatch V2).

Each returns features like those it is given, through which the gradient flows; or masks by which features are multiplied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from css_ray.functional.precision import at_least_float32


def feature_drop(features: Tensor, gamma: Tensor | float) -> Tensor:
    """Zero where the mean over the channels is at least `gamma` times the image's largest: what the network looks at most.

    An image whose largest mean is not positive stays as it is; one whose means are all alike is dropped whole.
    """
    attention = features.detach().mean(dim=1, keepdim=True)
    largest = attention.amax(dim=(2, 3), keepdim=True)
    return features * ((attention < gamma * largest) | (largest <= 0))


def feature_noise(features: Tensor, strength: float) -> Tensor:
    """Multiply by 1 + n, n uniform in +- `strength` for each channel and cell, the same for all images."""
    noise = strength * (2 * torch.rand(features.shape[1:], device=features.device, dtype=features.dtype) - 1)
    return features * (1 + noise)


def complementary_masks(count: int, channels: Sequence[int], kept: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """For each level of K channels, masks m and 2 - m, [B, K, 1, 1] each; UniMatch V2 (Yang et al., TPAMI 2025).

    m is 0 or 2 with equal chance for each image and channel, so that what one view loses the other one has twice. Of `kept`
    random images both masks are 1. Levels with the same number of channels, as those of a ViT, share their masks.
    """
    stays = (torch.rand(count, device=device).argsort() < kept).view(-1, 1, 1, 1)
    masks: dict[int, tuple[Tensor, Tensor]] = {}
    for each in dict.fromkeys(channels):
        first = torch.where(stays, 1.0, 2.0 * (torch.rand(count, each, 1, 1, device=device) < 0.5))
        masks[each] = first, 2 - first
    return [masks[each] for each in channels]


def hide_context(features: Tensor, labels: Tensor, background: int) -> Tensor:
    """Zero where the labels [B, h, w] are the background."""
    return features * (labels != background).unsqueeze(1)


def hide_objects(features: Tensor, labels: Tensor, background: int) -> Tensor:
    """Zero where the labels [B, h, w] are not the background: with `hide_context` the two parts of the features."""
    return features * (labels == background).unsqueeze(1)


def cut_out(features: Tensor, labels: Tensor, background: int, num_classes: int, share: float = 0.4) -> Tensor:
    """Zero in a box inside the bounding box of each class of the labels [B, h, w] but the background, `share` of its sides.

    Departs from the published code, which has a box for each connected region, found by OpenCV on the host.
    """
    classes = torch.arange(num_classes, device=labels.device)
    members = (labels.unsqueeze(1) == classes.view(1, -1, 1, 1)) & (classes != background).view(1, -1, 1, 1)  # [B, C, h, w]
    down, across = (_part(members.any(dim=dim), share) for dim in (3, 2))
    inside = (down.unsqueeze(3) & across.unsqueeze(2)).any(dim=1, keepdim=True)
    return features * ~inside


def _part(present: Tensor, share: float) -> Tensor:
    """[..., L] bool -> [..., L] bool: int(share * extent) places in a row, anywhere from the first that is True to the last."""
    length = present.shape[-1]
    places = torch.arange(length, device=present.device)
    first = torch.where(present, places, length).amin(dim=-1, keepdim=True)
    last = torch.where(present, places, -1).amax(dim=-1, keepdim=True)
    extent = (last - first + 1).clamp(min=0)
    size = (share * extent).long()
    start = first + (torch.rand(extent.shape, device=present.device) * (extent - size + 1)).long().clamp(max=length)
    return (places >= start) & (places < start + size)


def adversarial(
    features: Tensor, logits_of: Callable[[Tensor], Tensor], radius: float, *, xi: float = 0.1, steps: int = 1
) -> Tensor:
    """[B, F, h, w] -> r like it, of the length `radius` per image: what changes the prediction most (Miyato et al., 2019).

    The direction of the gradient of KL(softmax(logits_of(f)) || softmax(logits_of(f + xi d))) after `steps` power iterations
    from a random d. No parameter gets a gradient. An image whose gradient is zero, or not finite, has r = 0.

    Departs from the published codes in xi: theirs, 1e-6, gives gradients below what float32 resolves, so that the direction is
    noise.
    """
    features = at_least_float32(features.detach())
    with torch.autocast(features.device.type, enabled=False), torch.enable_grad():
        target = logits_of(features).detach().softmax(dim=1)
        direction = _of_unit_length(torch.rand_like(features) - 0.5)
        for _ in range(steps):
            direction.requires_grad_()
            found = logits_of(features + xi * direction).log_softmax(dim=1)
            divergence = F.kl_div(found, target, reduction="sum")
            (gradient,) = torch.autograd.grad(divergence, direction)
            direction = _of_unit_length(gradient)
    return radius * direction


def unresolved(xi: float) -> list[str]:
    """The warning about a `vat_xi` at which `adversarial` finds no direction, if it is one."""
    if xi >= 1e-3:
        return []
    return [f"vat_xi {xi:g} gives gradients that float32 does not resolve: the direction is noise; use 0.1"]


def _of_unit_length(items: Tensor) -> Tensor:
    """[B, ...] with a length of 1 for each item; 0 for one that has none."""
    # By the largest number first: squares of what is tiny are 0 in float32.
    flat = items.flatten(1)
    scaled = (flat / flat.abs().amax(dim=1, keepdim=True)).nan_to_num(0, 0, 0)
    length = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
    return torch.where(length > 0, scaled / length, 0).view_as(items)
