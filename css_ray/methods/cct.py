"""Cross-consistency training: auxiliary heads must agree with the main one on perturbed features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from css_ray.config import knob
from css_ray.distributed import share_of_rank
from css_ray.functional import perturbations
from css_ray.functional.losses import bootstrapped_cross_entropy, probability_consistency
from css_ray.functional.resizing import upsample
from css_ray.functional.schedules import exponential_ramp_up, logarithmic
from css_ray.methods.base import Method
from css_ray.models import Segmenter
from css_ray.types import IGNORE_INDEX, Batch, Clock, Losses, Prediction
from css_ray.views import Views

Perturb = Callable[[Tensor, Tensor, nn.Module], Tensor]
"""Features [B, F, h, w], the main head's labels [B, h, w] and the auxiliary head -> perturbed features."""


class CCT(Method):
    """Auxiliary heads predict from perturbed features of unlabelled images what the main head does. Ouali et al., CVPR 2020.

    L = L_x + w(t) mean_k MSE(p_k(perturbed features), p_main), w(t) = weight exp(-5 (1 - t / ramp)^2) until t = ramp. An
    auxiliary head is one 1 x 1 convolution on the features before the main one's; the main head gets no gradient of the
    consistency, the network below it does. Perturbations that look at objects need a `background`; without one they are
    left out.

    Departs from the published code: adversarial directions that are not noise (`vat_xi`), one box for each class instead of
    each connected region, no padding in the mean, and bilinear upsampling, as the DeepLabv3+ of the comparisons has it.

    Presets: `published` has the numbers of heads and the `vat_xi` of the released code.
    """

    name = "cct"
    presets = ("default", "published")

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        """How many auxiliary heads see which perturbation, and how much they weigh."""

        drop: int = knob(2, help="heads that see features without half of the channels", ge=0, le=64)
        feature_drop: int = knob(2, help="heads that see features without the cells of the strongest response", ge=0, le=64)
        feature_noise: int = knob(2, help="heads that see features with noise of up to 30 %", ge=0, le=64)
        vat: int = knob(2, help="heads that see features moved to where their prediction changes most", ge=0, le=64)
        cut_out: int = knob(2, help="heads that see features without a box in each object", ge=0, le=64)
        context: int = knob(2, help="heads that see objects alone", ge=0, le=64)
        objects: int = knob(2, help="heads that see the context alone", ge=0, le=64)
        background: int | None = knob(
            None, help="index of the class that is context, 0 on VOC; null: no cut_out, context and objects", ge=0, le=254
        )
        vat_xi: float = knob(0.1, help="length of the step whose gradient gives the direction", gt=0)
        vat_radius: float = knob(2.0, help="length of the move per image", gt=0)
        unsup_weight: float = knob(30.0, help="weight of the consistency", ge=0)
        ramp_up: float = knob(0.1, help="share of training over which the weight rises", ge=0, le=1)
        unsup_threshold: float = knob(0.0, help="confidence of the main head from which a pixel counts", ge=0, le=1)
        supervised_loss: Literal["cross_entropy", "bootstrapped"] = knob(
            "cross_entropy", help="bootstrapped leaves out pixels that are surer than a threshold, which rises to 0.9"
        )

    config: Config

    def __init__(self, make_segmenter: Callable[[], Segmenter], config: Config, views: Views) -> None:
        super().__init__(make_segmenter, config, views)
        last = self.student.logits_head[-1]
        assert isinstance(last, nn.Conv2d)
        self.perturb = list(_perturbations(config, self.student.num_classes))
        self.auxiliary = nn.ModuleList(nn.Conv2d(last.in_channels, last.out_channels, 1) for _ in self.perturb)

    @classmethod
    def preset_values(cls, preset: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        if preset != "published":
            return {}
        return {"drop": 6, "cut_out": 6, "feature_drop": 6, "feature_noise": 6, "vat_xi": 1e-6}

    @classmethod
    def warnings(cls, config: Any, num_classes: int) -> list[str]:
        """Names what makes perturbations void."""
        found = perturbations.unresolved(config.vat_xi) if config.vat else []
        if config.background is not None and config.background >= num_classes:
            found.append(
                f"background {config.background} is not one of {num_classes} classes, so nothing is context; use 0 to "
                f"{num_classes - 1}"
            )
        return found

    def forward(self, batch: Batch, clock: Clock) -> Losses:
        config, valid, count = self.config, batch.unlabelled_valid, len(batch.labelled_images)
        size = (valid.shape[1], valid.shape[2])
        labelled = self.labelled_colours(batch.labelled_images, strong=False)
        features = self.student.before_classifier(
            self.student.decode(self.student.encode(torch.cat([labelled, batch.unlabelled_images])))
        )
        main = self.student.logits_head[-1]
        supervised = self._supervised(main(features[:count]), batch.labels, clock.progress)
        unlabelled = features[count:]
        with torch.no_grad():
            logits = main(unlabelled)
            labels, target = logits.argmax(dim=1), upsample(logits, size).softmax(dim=1)
            counted = valid & (target.amax(dim=1) >= config.unsup_threshold)
        losses = [
            probability_consistency(upsample(head(perturb(unlabelled, labels, head)), size), target, counted)
            for perturb, head in zip(self.perturb, self.auxiliary, strict=True)
        ]
        mean = torch.stack(losses).mean() if losses else 0 * unlabelled.sum()
        weight = config.unsup_weight * exponential_ramp_up(clock.progress, config.ramp_up)
        return Losses({"sup": supervised, "unsup": weight * mean * share_of_rank(counted.sum())})

    def _supervised(self, logits: Tensor, labels: Tensor, progress: float) -> Tensor:
        if self.config.supervised_loss == "cross_entropy":
            return self.supervised(Prediction(logits, None), labels)
        least = 1 / logits.shape[1]
        threshold = least + (0.9 - least) * logarithmic(progress, 0.4)
        loss = bootstrapped_cross_entropy(upsample(logits, (labels.shape[1], labels.shape[2])), labels, threshold)
        return loss * share_of_rank((labels != IGNORE_INDEX).sum())

    def pseudo_labels(self, images: Tensor) -> dict[str, Tensor]:
        return {"logits": self.student.predict(images).argmax(dim=1)}


def _perturbations(config: CCT.Config, num_classes: int) -> Iterator[Perturb]:
    """One for each auxiliary head."""

    def moved(features: Tensor, labels: Tensor, head: nn.Module) -> Tensor:
        return features + perturbations.adversarial(features, head, config.vat_radius, xi=config.vat_xi)

    def without_response(features: Tensor, labels: Tensor, head: nn.Module) -> Tensor:
        gamma = 0.7 + 0.2 * torch.rand((), device=features.device)
        return perturbations.feature_drop(features, gamma)

    kinds: list[tuple[int, Perturb]] = [
        (config.drop, lambda features, labels, head: F.dropout2d(features, 0.5)),
        (config.feature_drop, without_response),
        (config.feature_noise, lambda features, labels, head: perturbations.feature_noise(features, 0.3)),
        (config.vat, moved),
    ]
    if (background := config.background) is not None:
        kinds += [
            (config.cut_out, lambda features, labels, head: perturbations.cut_out(features, labels, background, num_classes)),
            (config.context, lambda features, labels, head: perturbations.hide_context(features, labels, background)),
            (config.objects, lambda features, labels, head: perturbations.hide_objects(features, labels, background)),
        ]
    for count, perturb in kinds:
        yield from [perturb] * count
