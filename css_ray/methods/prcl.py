"""Probabilistic representations: a pixel is a Gaussian, and what is unsure pulls and pushes less."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from css_ray.config import knob
from css_ray.distributed import all_reduce_sum, share_of_rank
from css_ray.functional.contrast import PixelsByClass, draw_classes
from css_ray.functional.gaussians import Reduce, fuse, fusion_sums, mutual_likelihood, separation, variance_of
from css_ray.functional.losses import UnsupReduction, unsupervised_cross_entropy
from css_ray.functional.precision import at_least_float32
from css_ray.functional.pseudo_labels import at_class, most_likely, sure_labels
from css_ray.functional.resizing import nearest, upsample
from css_ray.functional.schedules import exponential_ramp_down
from css_ray.methods.base import Method
from css_ray.methods.strong_view import Partner, strong_view
from css_ray.methods.teacher import Teacher
from css_ray.models import Segmenter
from css_ray.types import IGNORE_INDEX, Batch, Clock, Losses, Prediction, Rate
from css_ray.views import Views

_ON_HOST = ("cpu",)
"""Devices on which asking how many classes take part costs nothing."""


class PRCL(Method):
    """Pixels are contrasted with the Gaussians that the batch makes of each class. Xie et al., AAAI 2023.

    L = L_x + L_u + λ(t) L_c, λ(t) = weight exp(-5 t²). L_c: mean over the classes of the batch of the cross entropy that
    separates, for unsure pixels of the class, its Gaussian from pixels of other classes; scores are mutual likelihoods divided
    by the temperature. A class's Gaussian is the product of those of its pixels of all ranks: labelled ones, and unlabelled
    ones of which the teacher is sure; negatives come from its likeliest neighbours, and from the rank's own pixels.

    Departs from the published code: variances that cannot overflow, scores summed over the channels instead of their mean with
    a temperature at which nothing is learnt (`reduce`, `temperature`), and for that a smaller weight (measured in
    docs/method.md), boxes instead of class masks in the mix, one optimizer, rates by step.

    Presets: `published` has the mean, the temperature and the weight of the released code.
    """

    name = "prcl"
    needs_representations = True
    presets = ("default", "published")

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        """Settings of the teacher's labels, of the contrast and of the head for variances."""

        teacher_decay: float = knob(0.99, help="share of the teacher that an update keeps", ge=0, lt=1)
        unsup_threshold: float = knob(0.97, help="a pixel counts in the unsupervised loss from this confidence", ge=0, le=1)
        valid_threshold: float = knob(0.7, help="an unlabelled pixel may be contrasted from this confidence", ge=0, le=1)
        hard_threshold: float = knob(0.8, help="a pixel is an anchor below this probability of its class", ge=0, le=1)
        unsup_weight: float = knob(1.0, help="weight of the unsupervised loss", ge=0)
        unsup_reduction: UnsupReduction = knob("image_fraction", help="how the pixels that passed weigh; pixel is their mean")
        contrast_weight: float = knob(0.1, help="weight of the contrast at the start (λ); 1 in the paper", ge=0)
        temperature: float = knob(1.0, help="of the scores (τ)", gt=0)
        reduce: Reduce = knob("sum", help="what a score is of its channels; mean with temperature 100 is the released code's")
        num_queries: int = knob(256, help="anchors a class", ge=1, le=65_536)
        num_negatives: int = knob(512, help="negatives a class", ge=1, le=65_536)
        variance_lr_factor: float = knob(
            0.015625, help="learning rate of the head for variances, as a multiple of `train.lr`; results depend on it", gt=0
        )
        cutmix_partner: Partner = knob("local", help="whose images CutMix pastes: the rank's own, all ranks', or rank 0's")

    config: Config

    def __init__(self, make_segmenter: Callable[[], Segmenter], config: Config, views: Views) -> None:
        super().__init__(make_segmenter, config, views)
        channels = self.student.representation_dim
        if channels is None:
            raise ValueError("prcl needs a representation head; make the segmenter with representation=True")
        self.teacher = Teacher(self.student, config.teacher_decay)
        self.variance_head = VarianceHead(self.student.decoder.out_channels, channels)

    @classmethod
    def preset_values(cls, preset: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {"reduce": "mean", "temperature": 100.0, "contrast_weight": 1.0} if preset == "published" else {}

    @classmethod
    def warnings(cls, config: Any, num_classes: int) -> list[str]:
        """Names a temperature at which all scores are alike."""
        if config.reduce == "mean" and config.temperature > 10:
            return [
                f"temperature {config.temperature:g} of mean scores leaves gaps of a ten-thousandth between classes, so "
                "that the contrast stays at chance; use reduce: sum with temperature 1"
            ]
        return []

    def lr_factors(self) -> Mapping[str, float]:
        return {"variance_head": self.config.variance_lr_factor}

    def forward(self, batch: Batch, clock: Clock) -> Losses:
        config, valid = self.config, batch.unlabelled_valid
        size, count = (valid.shape[1], valid.shape[2]), len(batch.labelled_images)
        with torch.no_grad():
            confidence, labels = most_likely(upsample(self.teacher(batch.unlabelled_images).logits, size).softmax(dim=1))
            passed = (confidence >= config.unsup_threshold) & valid
            logs: dict[str, Tensor | Rate] = {"unsup_pass_rate": Rate(passed.sum(), valid.sum())}
            labels = torch.where(valid, labels, IGNORE_INDEX)
            sure = torch.where(confidence >= config.valid_threshold, labels, IGNORE_INDEX)
            images, (labels, sure, passed) = strong_view(
                self,
                batch.unlabelled_images,
                (labels, sure, passed),
                (IGNORE_INDEX, IGNORE_INDEX, False),
                partner=config.cutmix_partner,
            )
        labelled = self.labelled_colours(batch.labelled_images, strong=True)
        features = self.student.decode(self.student.encode(torch.cat([labelled, images])))
        prediction, variances = self.student.classify(features), self.variance_head(features)
        logits = prediction.logits
        supervised = self.supervised(Prediction(logits[:count], None), batch.labels)
        unsupervised = unsupervised_cross_entropy(upsample(logits[count:], size), labels, passed, config.unsup_reduction)
        counted = passed if config.unsup_reduction == "pixel" else labels != IGNORE_INDEX
        cells = nearest(torch.cat([batch.labels, sure]), (logits.shape[2], logits.shape[3]))
        assert prediction.representations is not None
        contrast = self._contrast(prediction.representations, variances, cells, logits)
        weight = config.contrast_weight * exponential_ramp_down(clock.progress)
        return Losses(
            {
                "sup": supervised,
                "unsup": config.unsup_weight * share_of_rank(counted.sum()) * unsupervised,
                "contrast": weight * contrast,
            },
            logs,
        )

    def after_step(self, clock: Clock) -> None:
        self.teacher.update(self.student)

    def predictor(self) -> Segmenter:
        return self.teacher.model

    def pseudo_labels(self, images: Tensor) -> dict[str, Tensor]:
        return {"logits": sure_labels(self.teacher.model.predict(images), self.config.unsup_threshold)}

    def _contrast(self, means: Tensor, variances: Tensor, labels: Tensor, logits: Tensor) -> Tensor:
        """L_c of cells: means and variances [B, D, h, w], labels [B, h, w], the student's logits [B, C, h, w]."""
        config, num_classes = self.config, logits.shape[1]
        with torch.autocast(means.device.type, enabled=False):
            means = at_least_float32(means)
            with torch.no_grad():
                sums = fusion_sums(means, variances, labels, num_classes)
                reduced = all_reduce_sum(torch.cat([*sums[:2], sums[2].unsqueeze(1)], dim=1))
                weighted, precisions = reduced[:, :-1].chunk(2, dim=1)
                centres, spreads = fuse(weighted, precisions)
                centres = F.normalize(centres, dim=1)
                hard = at_class(at_least_float32(logits).softmax(dim=1), labels) < config.hard_threshold
            pixels = PixelsByClass(labels.flatten(), hard.flatten(), num_classes)
            present = pixels.counts > 0  # on this rank, whose pixels are the negatives
            active = (pixels.hard_counts > 0) & present & (present.sum() > 1)
            classes = torch.arange(num_classes, device=labels.device)
            numbers = list(range(num_classes))
            if labels.device.type in _ON_HOST:
                classes = classes[active]
                numbers = classes.tolist()
            rows, spread_rows = (item.flatten(2).transpose(1, 2).flatten(0, 1) for item in (means, variances))  # [M, D]
            rows = F.normalize(rows, dim=1)
            with torch.no_grad():
                between = mutual_likelihood(centres[:, None], spreads[:, None], centres, spreads, config.reduce)
                allowed = present & ~torch.eye(num_classes, dtype=torch.bool, device=labels.device)
                allowed = allowed | ~allowed.any(dim=1, keepdim=True)
                neighbours = (between / config.temperature).masked_fill(~allowed, -torch.inf).softmax(dim=1)[classes]
                drawn = pixels.draw(draw_classes(neighbours, config.num_negatives), pixels.counts)
                chosen = pixels.draw(classes[:, None].expand(-1, config.num_queries), pixels.hard_counts)
            total = 0 * (rows.sum() + spread_rows.sum())
            for place, label in enumerate(numbers):
                keys = drawn[place]
                loss = separation(
                    rows[chosen[place]],
                    spread_rows[chosen[place]],
                    torch.cat([centres[label, None], rows[keys].detach()]),
                    torch.cat([spreads[label, None], spread_rows[keys].detach()]),
                    config.reduce,
                    config.temperature,
                )
                total = total + torch.where(active[label], loss, 0)
            mean: Tensor = total / present.sum().clamp(min=1)
            return mean


class VarianceHead(nn.Module):
    """[B, F, h, w] -> variances [B, D, h, w] in [1e-6, 1): two layers whose rows have unit length, and a scale for all."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(count, channels, 1, bias=False) for count in (in_channels, channels))
        for layer in (self.first, self.second):
            nn.init.kaiming_normal_(layer.weight)
        self.norm, self.last_norm = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels, affine=False)
        self.scale, self.shift = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        """The variance of each channel of each cell."""
        between = F.relu(self.norm(_by_unit_rows(features, self.first)))
        return variance_of(self.scale * self.last_norm(_by_unit_rows(between, self.second)) + self.shift)


def _by_unit_rows(features: Tensor, layer: nn.Conv2d) -> Tensor:
    return F.conv2d(features, F.normalize(layer.weight, dim=1))
