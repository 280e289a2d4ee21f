"""Collaborative space supervision (Wang et al., ICCV 2023), every row of its Tables 1, 5, 6 and 7 from one code path."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from css_ray.config import knob
from css_ray.distributed import all_reduce_sum, rank, share_of_total, world_size
from css_ray.functional.contrast import ALONE, ClassMean, Negatives, Ranks, contrastive_loss
from css_ray.functional.losses import UnsupReduction, unsupervised_cross_entropy
from css_ray.functional.metrics import quantiles
from css_ray.functional.pseudo_labels import PseudoLabelling, agreement, at_class, collaborate, most_likely
from css_ray.functional.resizing import Grid, nearest, upsample
from css_ray.functional.schedules import ContrastSchedule, contrast_ramp
from css_ray.functional.similarity import (
    closest_prototypes,
    cosine_similarity,
    highest_temperature,
    indicator_bound,
    softmax_similarity,
)
from css_ray.methods.base import Method
from css_ray.methods.prototypes import Prototypes
from css_ray.methods.strong_view import Partner, strong_view
from css_ray.methods.teacher import Teacher
from css_ray.models import Predictor, Segmenter
from css_ray.types import IGNORE_INDEX, Batch, BothSpaces, Clock, Losses, Prediction, Rate
from css_ray.views import Views

Gate = Literal["confidence", "similarity"]

_GATES: dict[str, tuple[Gate, Gate, Gate]] = {
    "confidence": ("confidence", "confidence", "confidence"),
    "similarity": ("similarity", "similarity", "similarity"),
    "mix": ("confidence", "similarity", "similarity"),
}
"""The gates of the unsupervised loss, of valid and of hard pixels, by indicator: the rows of Table 6."""

_MAP_BYTES = 32 * 2**20
"""How large a map of all classes may be if it is of several images; on a GPU, enough that launching kernels costs nothing."""

_PUBLISHED_GATES: dict[str, tuple[Gate, Gate, Gate]] = {
    "logits": ("confidence", "confidence", "confidence"),
    "cross": ("similarity", "confidence", "similarity"),
    "mix": ("confidence", "confidence", "similarity"),
    "representations": ("confidence", "confidence", "similarity"),  # no script of its own: as mix
}


class CSS(Method):
    """Pseudo-labels from logits and from prototypes supervise both spaces; similarity gates the contrastive loss.

    Table 5 varies `pseudo_labelling`, Table 6 `indicator`, Table 7 both. The paper's Baseline is logits with confidence.

    Presets: `default` is right, and faithful in intent. `paper` takes the equations literally. `published` computes what the
    released code computes wherever that changes the mathematics; its crashes and slow paths are left out, and so are its images
    and confidences rounded to 8 bits on the way through PIL.
    """

    name = "css"
    needs_representations = True
    presets = ("default", "paper", "published")
    rank_local = ("prototypes.value", "prototypes.seen")

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        """Thresholds are compared with the gate of the same name: confidence (softmax of the logits) or similarity (Eq. 5)."""

        pseudo_labelling: PseudoLabelling = knob("mix", help="which space labels unlabelled pixels for which loss (Sec. 3.3)")
        indicator: Literal["confidence", "similarity", "mix"] = knob(
            "mix", help="what all three gates look at (Table 6); mix: confidence in logit space, similarity in the other"
        )
        unsup_gate: Gate | None = knob(None, help="indicator of the unsupervised loss; null: as `indicator`")
        valid_gate: Gate | Literal["auto"] | None = knob(
            "auto",
            help="the teacher's indicator of the pixels for contrast and prototypes; null: as `indicator`; auto: so too, but "
            "confidence for cross",
            before=None,
        )
        hard_gate: Gate | None = knob(None, help="the student's indicator of the contrast's hard anchors; null: as `indicator`")
        unsup_threshold: float = knob(0.97, help="a pixel counts in the unsupervised loss from here (δ_u)", ge=0, le=1)
        valid_threshold: float = knob(0.7, help="a pixel may be contrasted from here (δ_w)", ge=0, le=1)
        hard_threshold: float = knob(0.8, help="a pixel is a hard anchor below this (δ_s)", ge=0, le=1)
        temperature: float = knob(0.5, help="temperature of the contrast and of its negative sampling (τ)", gt=0)
        similarity_temperature: float | None = knob(
            0.1, help="temperature of the indicator (Eq. 5); at 0.5 it cannot reach the thresholds; null: τ, as the paper", gt=0
        )
        prototype_decay: float = knob(0.99, help="share of a prototype that an update keeps (α)", ge=0, lt=1)
        prototype_source: Literal["teacher", "student"] = knob(
            "teacher", help="whose representations make the prototypes: the teacher's (Eq. 2) or the student's (published code)"
        )
        prototype_ranks: Literal["joint", "own"] = knob(
            "joint", help="one set of prototypes for all workers, or one each that drift apart (published code)"
        )
        unseen_prototypes: Literal["masked", "zero"] = knob(
            "masked",
            help="masked: a class without a prototype is not a candidate; zero: its zero vector is one (published code)",
        )
        prototype_warm_up: float = knob(
            0.05, help="share of training in which logits label alone while a class has no prototype", ge=0, le=1
        )
        cross_warm_up: float = knob(
            0.1, help="share of training in which logits label alone before cross; the paper's 20 of 200 epochs", ge=0, le=1
        )
        label_grid: Grid = knob(
            "aligned",
            help="where a cell of the representations reads its label: at the pixel that shows it, or up to 3 away (published)",
            before="corner",
        )
        rank_means: Literal["joint", "own"] = knob(
            "joint",
            help="losses of several workers: of their joined batch, or means of the workers' own means (published code)",
        )
        hard_prototypes: Literal["updated", "previous"] = knob(
            "updated", help="which prototypes the hard gate looks at: the step's, or those before it (published code)"
        )
        teacher_sees_labelled: bool = knob(
            False,
            help="the teacher's batch statistics are of labelled images too, after their colours changed (published code)",
        )
        padding: Literal["ignored", "labelled"] = knob(
            "ignored", help="whether mirrored padding of a crop gets pseudo-labels (published code)"
        )
        cutmix_partner: Partner = knob("local", help="whose images CutMix pastes: the rank's own, all ranks', or rank 0's")
        joint_forward: bool = knob(False, help="the student sees labelled and unlabelled images in one batch; faster on a GPU")
        teacher_decay: float = knob(0.99, help="share of the teacher that an update keeps", ge=0, lt=1)
        unsup_weight: float = knob(1.0, help="weight of the unsupervised loss", ge=0)
        unsup_reduction: UnsupReduction = knob("image_fraction", help="how the pixels that passed weigh; pixel is Eq. 8")
        contrast_weight: float = knob(1.0, help="weight of the contrastive loss at the start (λ_c)", ge=0)
        contrast_schedule: ContrastSchedule = knob(
            "ramp_down", help="ramp_down: λ_c falls as exp(-5 progress²); the paper gives no schedule"
        )
        contrast_mean: ClassMean = knob("present", help="classes that the contrast's mean counts: present, or with hard pixels")
        num_queries: int = knob(256, help="anchors a class", ge=1, le=65_536)
        num_negatives: int = knob(512, help="negatives per class, or per anchor", ge=1, le=65_536)
        negatives: Negatives = knob("shared", help="shared: one set per class (Eq. 9); per_anchor: as the published code")

        @property
        def gates(self) -> tuple[Gate, Gate, Gate]:
            """The gates of the unsupervised loss, of valid and of hard pixels."""
            unsup, valid, hard = _GATES[self.indicator]
            if self.valid_gate != "auto":
                valid = self.valid_gate or valid
            elif self.pseudo_labelling == "cross":
                # A similarity above 1/2 is the largest: at the class of the logits it leaves no pixel where the spaces differ.
                valid = "confidence"
            return self.unsup_gate or unsup, valid, self.hard_gate or hard

        @property
        def indicator_temperature(self) -> float:
            """τ of Eq. 5."""
            return self.temperature if self.similarity_temperature is None else self.similarity_temperature

    config: Config

    def __init__(self, make_segmenter: Callable[[], Segmenter], config: Config, views: Views) -> None:
        super().__init__(make_segmenter, config, views)
        num_classes, channels = self.student.num_classes, self.student.representation_dim
        if channels is None:
            raise ValueError("css needs a representation head; make the segmenter with representation=True")
        self.teacher = Teacher(self.student, config.teacher_decay)
        self.prototypes = Prototypes(num_classes, channels, config.prototype_decay, joint=config.prototype_ranks == "joint")
        for warning in self.warnings(config, num_classes):
            warnings.warn(warning, stacklevel=2)

    @classmethod
    def preset_values(cls, preset: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """`published` follows the script of the pseudo-labelling: mix_label, cross_label, or ori_pseudo for logits."""
        if preset == "paper":
            return {
                # The paper gives no τ. At 0.5 no pixel passes δ_w, though its Table 4 has a row of those that do.
                "temperature": 0.1,
                "similarity_temperature": None,
                "prototype_warm_up": 0.0,
                "unsup_reduction": "pixel",
                "contrast_schedule": "constant",
            }
        if preset != "published":
            return {}
        labelling = settings.get("pseudo_labelling", "mix")
        values: dict[str, Any] = {
            "similarity_temperature": 0.5,
            "prototype_source": "student",
            "prototype_ranks": "own",
            "unseen_prototypes": "zero",
            "prototype_warm_up": 0.0,
            "cross_warm_up": 0.0,
            "label_grid": "corner",
            "rank_means": "own",
            "hard_prototypes": "previous",
            "teacher_sees_labelled": True,
            "padding": "labelled",
            "cutmix_partner": "rank_zero",
            "unsup_reduction": "image_fraction_overcounted",
            "contrast_schedule": "published_epochs",
            "negatives": "per_anchor",
        }
        if "indicator" not in settings and labelling in _PUBLISHED_GATES:
            values |= zip(("unsup_gate", "valid_gate", "hard_gate"), _PUBLISHED_GATES[labelling], strict=True)
        if labelling == "logits":
            values |= {"hard_threshold": 0.97, "contrast_schedule": "constant"}
        return values

    @classmethod
    def warnings(cls, config: Any, num_classes: int) -> list[str]:
        """Names each threshold that the similarity cannot reach for this number of classes (method of Eq. 5)."""
        temperature = config.indicator_temperature
        bound = indicator_bound(num_classes, temperature)
        orthogonal = 1 / (1 + (num_classes - 1) * math.exp(-1 / temperature))
        found = []
        names = ("unsup_threshold", "valid_threshold", "hard_threshold")
        effects = ("no pixel is pseudo-labelled", "no unlabelled pixel is contrasted", "every valid pixel is hard")
        for name, gate, effect in zip(names, config.gates, effects, strict=True):
            threshold = getattr(config, name)
            if gate == "similarity" and bound < threshold < 1:  # 1 is a plain way to say none, or all
                highest = math.floor(1000 * highest_temperature(num_classes, threshold)) / 1000
                found.append(
                    f"{name} {threshold:g} is out of reach, so {effect}: with {num_classes} classes no similarity is above "
                    f"{bound:.3f} at temperature {temperature:g} (and {orthogonal:.3f} if prototypes are orthogonal); "
                    f"lower {name}, or set similarity_temperature to at most {highest:g}"
                )
        taught = config.pseudo_labelling in ("cross", "logits")  # the contrast, by the logits
        if taught and config.gates[1] == "similarity" and config.valid_threshold > 0.5:
            found.append(
                f"valid_threshold {config.valid_threshold:g} of the similarity at the class of the logits leaves no pixel on "
                "which the two spaces disagree: a similarity above 0.5 is the largest one; set valid_gate to confidence, or "
                "valid_threshold to at most 0.5"
            )
        return found

    def forward(self, batch: Batch, clock: Clock) -> Losses:
        config, images = self.config, batch.unlabelled_images
        logs: dict[str, Tensor | Rate] = {}
        with torch.no_grad():
            weak = self.teacher(images)
            valid = torch.ones_like(batch.unlabelled_valid) if config.padding == "labelled" else batch.unlabelled_valid
            labels = self._pseudo_labels(weak, valid, clock.progress, logs)
            strong_images, (unsup_labels, strong_labels, passed) = strong_view(
                self,
                images,
                (labels.unsup, labels.contrast, labels.passed),
                (IGNORE_INDEX, IGNORE_INDEX, False),
                partner=config.cutmix_partner,
            )

        labelled_images = self.labelled_colours(batch.labelled_images, strong=True)
        if config.teacher_sees_labelled:
            self.teacher(labelled_images)
        labelled, strong = self.see(labelled_images, strong_images, joint=config.joint_forward)
        counted = unsup_labels != IGNORE_INDEX
        counted = passed & counted if config.unsup_reduction == "pixel" else counted
        counts = torch.stack([(batch.labels != IGNORE_INDEX).sum(), counted.sum()])
        representations = torch.cat([_representations(labelled), _representations(strong)])
        contrast_labels = torch.cat([self._at_stride(batch.labels, labelled), self._at_stride(strong_labels, strong)])
        with torch.no_grad():
            looked_at = self.prototypes.value.clone(), self._candidates().clone()
            if config.prototype_source == "student":
                # Departs from Eq. 2, as the published code: the student's strong view.
                totals = self.prototypes.update((representations, contrast_labels), also=counts)
            else:
                # The labelled images as they came, and the weak view: what the teacher predicts without the student's changes.
                plain = self.teacher(batch.labelled_images)
                totals = self.prototypes.update(
                    (_representations(plain), self._at_stride(batch.labels, plain)),
                    (_representations(weak), self._at_stride(labels.contrast, weak)),
                    also=counts,
                )
            if config.hard_prototypes == "updated":
                looked_at = self.prototypes.value, self._candidates()
            hard = self._hard(labelled, strong, representations, contrast_labels, *looked_at)
        shares = share_of_total(counts, totals) if config.rank_means == "joint" else torch.ones_like(counts)
        supervised = self.supervised(labelled, batch.labels, share=shares[0])
        logits = upsample(strong.logits, (images.shape[2], images.shape[3]))
        unsupervised = shares[1] * unsupervised_cross_entropy(logits, unsup_labels, passed, config.unsup_reduction)
        logs["hard_pass_rate"] = Rate(hard.sum(), (contrast_labels != IGNORE_INDEX).sum())
        contrast = contrastive_loss(
            representations,
            contrast_labels,
            hard,
            self.prototypes.value,
            self.prototypes.seen,
            temperature=config.temperature,
            num_queries=config.num_queries,
            num_negatives=config.num_negatives,
            negatives=config.negatives,
            mean_over=config.contrast_mean,
            ranks=Ranks(rank(), world_size(), all_reduce_sum) if config.rank_means == "joint" else ALONE,
        )
        weight = config.contrast_weight * contrast_ramp(config.contrast_schedule, clock.progress, batch.labelled_epoch)
        logs["contrast_weight"] = torch.full_like(supervised.detach(), weight)
        logs["num_seen_classes"] = self.prototypes.seen.sum().float()
        return Losses(
            terms={"sup": supervised, "unsup": config.unsup_weight * unsupervised, "contrast": weight * contrast},
            logs=logs,
            diagnostics=lambda: self._diagnostics(labels, valid),
        )

    def after_step(self, clock: Clock) -> None:
        self.teacher.update(self.student)

    def predictor(self) -> Segmenter:
        return self.teacher.model

    def pseudo_labels(self, images: Tensor) -> dict[str, Tensor]:
        """The three sources of Table 4: logits where δ_u passes, representations where δ_w does, mix where L_u's gate does."""
        config = self.config
        prediction = self.teacher.model(images)
        found: dict[str, list[Tensor]] = {"logits": [], "representations": [], "mix": []}
        for spaces, _ in self._spaces(prediction, images[:, 0]):
            passed = spaces.indicator(config.gates[0]) >= config.unsup_threshold
            labels = (
                torch.where(spaces.confidence >= config.unsup_threshold, spaces.from_logits, IGNORE_INDEX),
                torch.where(spaces.similarity >= config.valid_threshold, spaces.from_representations, IGNORE_INDEX),
                torch.where(passed, agreement(spaces.from_logits, spaces.from_representations), IGNORE_INDEX),
            )
            for part, each in zip(found.values(), labels, strict=True):
                part.append(each)
        return {source: torch.cat(parts) for source, parts in found.items()}

    def space_state(self) -> dict[str, Tensor]:
        return {"prototypes": self.prototypes.value, "seen": self.prototypes.seen}

    @classmethod
    def both_spaces(cls, config: Any, network: Predictor, state: Mapping[str, Tensor], images: Tensor) -> BothSpaces:
        """The teacher's spaces; a pixel passes by δ_u in the logit space, by δ_w in that of the representations."""
        assert isinstance(network, Segmenter)  # what `predictor` returns
        prediction = network(images)
        cosines = cosine_similarity(_representations(prediction), state["prototypes"])
        size = (images.shape[2], images.shape[3])
        candidates = _candidates(state["seen"], config.unseen_prototypes)
        spaces = _in_both(prediction.logits, cosines, candidates, config.indicator_temperature, size)
        return BothSpaces(
            spaces.confidence,
            spaces.from_logits,
            spaces.confidence >= config.unsup_threshold,
            spaces.similarity,
            spaces.from_representations,
            spaces.similarity >= config.valid_threshold,
            at_class(upsample(cosines, size), spaces.from_logits),
        )

    def _spaces(self, prediction: Prediction, at: Tensor) -> Iterator[tuple[_Spaces, Tensor]]:
        """What the teacher predicts in both spaces at the size of `at` [B, H, W] (Eq. 1, 4 and 5), with the part of `at`.

        A few images at a time: maps of all classes at full size are the largest tensors of a step.
        """
        logits = prediction.logits
        cosines = cosine_similarity(_representations(prediction), self.prototypes.value)
        size = (at.shape[1], at.shape[2])
        images = max(1, _MAP_BYTES // (4 * logits.shape[1] * size[0] * size[1]))
        for some_logits, some_cosines, part in zip(*(torch.split(each, images) for each in (logits, cosines, at)), strict=True):
            yield _in_both(some_logits, some_cosines, self._candidates(), self.config.indicator_temperature, size), part

    def _at_stride(self, labels: Tensor, prediction: Prediction) -> Tensor:
        """[B, H, W] -> [B, h, w]: the labels of the cells of a prediction."""
        return nearest(labels, (prediction.logits.shape[2], prediction.logits.shape[3]), self.config.label_grid)

    def _candidates(self) -> Tensor:
        """[C] bool: the classes whose prototypes may win."""
        return _candidates(self.prototypes.seen, self.config.unseen_prototypes)

    def _pseudo_labels(self, weak: Prediction, valid: Tensor, progress: float, logs: dict[str, Tensor | Rate]) -> _Labels:
        """The targets of the losses for the weak view, `valid` [B_u, H, W] bool.

        Prototypes label once every class has one or the warm-up is over, and cross not before its own warm-up.
        """
        parts = [self._label(spaces, part, progress) for spaces, part in self._spaces(weak, valid)]
        labels = _Labels(*(torch.cat(part) for part in zip(*parts, strict=True)))
        num_valid = valid.sum()
        logs["agreement"] = Rate(labels.agreed.sum(), num_valid)
        logs["unsup_pass_rate"] = Rate((labels.passed & (labels.unsup != IGNORE_INDEX)).sum(), num_valid)
        logs["valid_pass_rate"] = Rate((labels.contrast != IGNORE_INDEX).sum(), num_valid)
        return labels

    def _label(self, spaces: _Spaces, valid: Tensor, progress: float) -> _Labels:
        config = self.config
        unsup_gate, valid_gate, _ = config.gates
        unsup = contrast = spaces.from_logits
        if config.pseudo_labelling != "cross" or progress >= config.cross_warm_up:
            for_unsup, for_contrast = collaborate(config.pseudo_labelling, spaces.from_logits, spaces.from_representations)
            seen = self.prototypes.seen
            ready = seen.any() if progress >= config.prototype_warm_up else seen.all()
            ready = ready | (config.unseen_prototypes == "zero")
            unsup, contrast = torch.where(ready, for_unsup, unsup), torch.where(ready, for_contrast, contrast)
        unsup, contrast = torch.where(valid, unsup, IGNORE_INDEX), torch.where(valid, contrast, IGNORE_INDEX)

        # L_u asks how sure the teacher is at all, as in the published code; L_c how near the pixel is to the class it is given.
        passed = (spaces.indicator(unsup_gate) >= config.unsup_threshold) & valid
        nearness = at_class(spaces.probabilities if valid_gate == "confidence" else spaces.similarities, contrast)
        contrast = torch.where(nearness >= config.valid_threshold, contrast, IGNORE_INDEX)
        agreed = (spaces.from_logits == spaces.from_representations) & valid
        return _Labels(unsup, contrast, passed, agreed, spaces.confidence, spaces.similarity)

    def _hard(
        self,
        labelled: Prediction,
        strong: Prediction,
        representations: Tensor,
        labels: Tensor,
        prototypes: Tensor,
        candidates: Tensor,
    ) -> Tensor:
        """[B_l + B_u, h, w] bool: labelled pixels whose own class the student is not near, by the hard gate."""
        if self.config.gates[2] == "similarity":
            cosines = cosine_similarity(representations, prototypes)
            indicator = softmax_similarity(cosines, candidates, self.config.indicator_temperature)
        else:
            indicator = torch.cat([labelled.logits, strong.logits]).float().softmax(dim=1)
        return (labels != IGNORE_INDEX) & (at_class(indicator, labels) < self.config.hard_threshold)

    def _diagnostics(self, labels: _Labels, valid: Tensor) -> dict[str, Tensor]:
        """Quantiles of both indicators over the weak view, and the two classes whose prototypes are most alike."""
        cosine, first, second = closest_prototypes(self.prototypes.value, self.prototypes.seen)
        return {
            **quantiles("confidence", labels.confidence, valid),
            **quantiles("similarity", labels.similarity, valid),
            "closest_prototypes": cosine,
            "closest_prototypes_first_class": first.float(),
            "closest_prototypes_second_class": second.float(),
        }


class _Spaces:
    """The predictions of both spaces for each pixel: [B, C, H, W] of every class, and [B, H, W] of the likeliest."""

    def __init__(self, probabilities: Tensor, similarities: Tensor) -> None:
        self.probabilities, self.similarities = probabilities, similarities
        self.confidence, self.from_logits = most_likely(probabilities)
        self.similarity, self.from_representations = most_likely(similarities)

    def indicator(self, gate: Gate) -> Tensor:
        return self.confidence if gate == "confidence" else self.similarity


def _candidates(seen: Tensor, unseen: Literal["masked", "zero"]) -> Tensor:
    """[C] bool: the classes whose prototypes may win."""
    return torch.ones_like(seen) if unseen == "zero" else seen


def _in_both(logits: Tensor, cosines: Tensor, candidates: Tensor, temperature: float, size: tuple[int, int]) -> _Spaces:
    """Logits and cosines [B, C, h, w] at full size: Eq. 1, 4 and 5."""
    probabilities = upsample(logits, size).softmax(dim=1)
    return _Spaces(probabilities, softmax_similarity(upsample(cosines, size), candidates, temperature))


class _Labels(NamedTuple):
    """What the losses take of the weak view, [B, H, W] each.

    The targets of L_u and (where the valid gate passed) of L_c, the gate of L_u, where the spaces agree, and the indicators.
    """

    unsup: Tensor
    contrast: Tensor
    passed: Tensor
    agreed: Tensor
    confidence: Tensor
    similarity: Tensor


def _representations(prediction: Prediction) -> Tensor:
    assert prediction.representations is not None  # the constructor asked for them
    return prediction.representations
