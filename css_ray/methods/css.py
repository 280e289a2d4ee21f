"""Collaborative space supervision (Wang et al., ICCV 2023). Its `logits` row with confidence gates is the paper's Baseline."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from css_ray.config import knob
from css_ray.functional.contrast import Negatives, contrastive_loss
from css_ray.functional.losses import UnsupReduction, unsupervised_cross_entropy
from css_ray.functional.pseudo_labels import PseudoLabelling, at_class, collaborate, most_likely
from css_ray.functional.resizing import nearest, upsample
from css_ray.functional.schedules import exponential_ramp_down
from css_ray.functional.similarity import cosine_similarity, indicator_bound, present_classes, softmax_similarity
from css_ray.methods.base import Method
from css_ray.methods.prototypes import Prototypes
from css_ray.methods.strong_view import strong_view
from css_ray.methods.teacher import Teacher
from css_ray.models import Segmenter
from css_ray.types import IGNORE_INDEX, Batch, Losses, Prediction
from css_ray.views import Views

Gate = Literal["confidence", "similarity"]


class CSS(Method):
    """Pseudo-labels from logits and from prototypes supervise both spaces; similarity gates the contrastive loss."""

    name = "css"
    needs_representations = True

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        """Thresholds are compared with the gate of the same name: confidence (max softmax) or similarity (Eq. 5)."""

        pseudo_labelling: PseudoLabelling = knob("mix", help="which space labels unlabelled pixels for which loss (Sec. 3.3)")
        unsup_gate: Gate = knob("confidence", help="indicator of the unsupervised loss")
        valid_gate: Gate = knob("similarity", help="the teacher's indicator of the pixels for contrast and prototypes")
        hard_gate: Gate = knob("similarity", help="the student's indicator of the contrast's hard anchors")
        unsup_threshold: float = knob(0.97, help="a pixel counts in the unsupervised loss from here (δ_u)", ge=0, le=1)
        valid_threshold: float = knob(0.7, help="a pixel may be contrasted from here (δ_w)", ge=0, le=1)
        hard_threshold: float = knob(0.8, help="a pixel is a hard anchor below this (δ_s)", ge=0, le=1)
        temperature: float = knob(0.5, help="temperature of the contrast and of its negative sampling (τ)", gt=0)
        similarity_temperature: float = knob(
            0.1, help="temperature of the indicator (Eq. 5); at τ = 0.5 it could not reach the thresholds", gt=0
        )
        prototype_decay: float = knob(0.99, help="share of a prototype that an update keeps (α)", ge=0, lt=1)
        prototype_source: Literal["teacher", "student"] = knob(
            "teacher", help="whose representations make the prototypes: the teacher's (Eq. 2) or the student's (published code)"
        )
        prototype_warm_up: float = knob(
            0.05, help="share of training before prototypes give labels; the paper has none but for cross", ge=0, le=1
        )
        cross_warm_up: float = knob(0.1, help="the same for cross; the paper says 20 epochs", ge=0, le=1)
        teacher_decay: float = knob(0.99, help="share of the teacher that an update keeps", ge=0, lt=1)
        unsup_weight: float = knob(1.0, help="weight of the unsupervised loss", ge=0)
        unsup_reduction: UnsupReduction = knob("image_fraction", help="how the pixels that passed weigh; pixel is Eq. 8")
        contrast_weight: float = knob(1.0, help="weight of the contrastive loss at the start (λ_c)", ge=0)
        contrast_schedule: Literal["ramp_down", "constant"] = knob(
            "ramp_down", help="ramp_down: λ_c falls as exp(-5 progress²); the paper gives no schedule"
        )
        num_queries: int = knob(256, help="anchors a class", ge=1)
        num_negatives: int = knob(512, help="negatives a class, or an anchor", ge=1)
        negatives: Negatives = knob("shared", help="shared: one set a class (Eq. 9); per_anchor: as the published code")

    config: Config

    def __init__(self, make_segmenter: Callable[[], Segmenter], config: Config, views: Views) -> None:
        super().__init__(make_segmenter, config, views)
        num_classes, channels = self.student.num_classes, self.student.representation_dim
        if channels is None:
            raise ValueError("css needs a representation head; make the segmenter with representation=True")
        self.teacher = Teacher(self.student, config.teacher_decay)
        self.prototypes = Prototypes(num_classes, channels, config.prototype_decay)
        bound = indicator_bound(num_classes, config.similarity_temperature)
        gates = {"unsup": config.unsup_gate, "valid": config.valid_gate, "hard": config.hard_gate}
        thresholds = {"unsup": config.unsup_threshold, "valid": config.valid_threshold, "hard": config.hard_threshold}
        for gate, threshold in thresholds.items():
            if gates[gate] == "similarity" and bound < threshold < 1:  # 1 is a plain way to say none, or all
                warnings.warn(
                    f"{gate}_threshold {threshold:g} is out of reach: with {num_classes} classes no similarity is above "
                    f"{bound:.3f} at similarity_temperature {config.similarity_temperature:g}; lower one of the two",
                    stacklevel=2,
                )

    def forward(self, batch: Batch, progress: float) -> Losses:
        config, images = self.config, batch.unlabelled_images
        logs: dict[str, Tensor] = {}
        with torch.no_grad():
            weak = self.teacher(images)
            unsup_labels, contrast_labels, passed = self._pseudo_labels(weak, batch, progress, logs)
            strong_images, (unsup_labels, strong_labels, passed) = strong_view(
                self,
                images,
                (unsup_labels, contrast_labels, passed),
                (IGNORE_INDEX, IGNORE_INDEX, False),
                cutmix=True,
            )

        supervised, labelled = self.supervised(batch)
        strong: Prediction = self.student(strong_images)
        size = (images.shape[2], images.shape[3])
        unsupervised = unsupervised_cross_entropy(upsample(strong.logits, size), unsup_labels, passed, config.unsup_reduction)

        representations = torch.cat([_representations(labelled), _representations(strong)])
        labels = torch.cat([_at_stride(batch.labels, labelled), _at_stride(strong_labels, strong)])
        with torch.no_grad():
            if config.prototype_source == "student":
                self.prototypes.update(representations, labels)
            else:
                # The labelled images as they came, and the weak view: what the teacher says without the student's changes.
                plain = self.teacher(batch.labelled_images)
                self.prototypes.update(
                    torch.cat([_representations(plain), _representations(weak)]),
                    torch.cat([_at_stride(batch.labels, plain), _at_stride(contrast_labels, weak)]),
                )
            hard = self._hard(labelled, strong, representations, labels, logs)
        contrast = contrastive_loss(
            representations,
            labels,
            hard,
            self.prototypes.value,
            self.prototypes.seen,
            temperature=config.temperature,
            num_queries=config.num_queries,
            num_negatives=config.num_negatives,
            negatives=config.negatives,
        )
        falling = config.contrast_schedule == "ramp_down"
        weight = config.contrast_weight * (exponential_ramp_down(progress) if falling else 1.0)
        logs["contrast_weight"] = torch.full_like(supervised.detach(), weight)
        logs["num_seen_classes"] = self.prototypes.seen.sum().float()
        terms = {"sup": supervised, "unsup": config.unsup_weight * unsupervised, "contrast": weight * contrast}
        return Losses(terms=terms, logs=logs)

    def after_step(self) -> None:
        self.teacher.update(self.student)

    def predictor(self) -> Segmenter:
        return self.teacher.model

    def _pseudo_labels(
        self, weak: Prediction, batch: Batch, progress: float, logs: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[B_u, H, W] each: labels for L_u, labels for L_c that passed its valid gate, and the pixels that passed L_u's gate.

        Until the warm-up is over, and while a class of this batch's labels has no prototype, logits label alone.
        """
        config, valid = self.config, batch.unlabelled_valid
        size = (valid.shape[1], valid.shape[2])
        probabilities = upsample(weak.logits, size).softmax(dim=1)
        cosines = upsample(cosine_similarity(_representations(weak), self.prototypes.value), size)
        similarities = softmax_similarity(cosines, self.prototypes.seen, config.similarity_temperature)
        confidence, from_logits = most_likely(probabilities)
        similarity, from_representations = most_likely(similarities)

        unsup_labels = contrast_labels = from_logits
        warm_up = config.cross_warm_up if config.pseudo_labelling == "cross" else config.prototype_warm_up
        if progress >= warm_up:
            seen = self.prototypes.seen
            ready = seen.any() & (seen | ~present_classes(batch.labels, len(seen))).all()
            for_unsup, for_contrast = collaborate(config.pseudo_labelling, from_logits, from_representations)
            unsup_labels = torch.where(ready, for_unsup, from_logits)
            contrast_labels = torch.where(ready, for_contrast, from_logits)
        unsup_labels = torch.where(valid, unsup_labels, IGNORE_INDEX)
        contrast_labels = torch.where(valid, contrast_labels, IGNORE_INDEX)

        # L_u asks how sure the teacher is at all, as in the published code; L_c how near the pixel is to the class it is given.
        passed = (confidence if config.unsup_gate == "confidence" else similarity) >= config.unsup_threshold
        passed = passed & (unsup_labels != IGNORE_INDEX)
        nearness = at_class(probabilities if config.valid_gate == "confidence" else similarities, contrast_labels)
        contrast_labels = torch.where(nearness >= config.valid_threshold, contrast_labels, IGNORE_INDEX)

        num_valid = valid.sum().clamp(min=1)
        logs["confidence"] = confidence.median()
        logs["similarity"] = similarity.median()
        logs["agreement"] = ((from_logits == from_representations) & valid).sum() / num_valid
        logs["unsup_pass_rate"] = passed.sum() / num_valid
        logs["valid_pass_rate"] = (contrast_labels != IGNORE_INDEX).sum() / num_valid
        return unsup_labels, contrast_labels, passed

    def _hard(
        self, labelled: Prediction, strong: Prediction, representations: Tensor, labels: Tensor, logs: dict[str, Tensor]
    ) -> Tensor:
        """[B_l + B_u, h, w] bool: labelled pixels whose own class the student is not near, by the hard gate."""
        config = self.config
        if config.hard_gate == "similarity":
            cosines = cosine_similarity(representations, self.prototypes.value)
            indicator = softmax_similarity(cosines, self.prototypes.seen, config.similarity_temperature)
        else:
            indicator = torch.cat([labelled.logits, strong.logits]).float().softmax(dim=1)
        contrasted = labels != IGNORE_INDEX
        hard = contrasted & (at_class(indicator, labels) < config.hard_threshold)
        logs["hard_pass_rate"] = hard.sum() / contrasted.sum().clamp(min=1)
        return hard


def _representations(prediction: Prediction) -> Tensor:
    assert prediction.representations is not None  # the constructor asked for them
    return prediction.representations


def _at_stride(labels: Tensor, prediction: Prediction) -> Tensor:
    return nearest(labels, (prediction.logits.shape[2], prediction.logits.shape[3]))
