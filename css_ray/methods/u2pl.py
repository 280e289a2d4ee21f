"""U2PL: what is too unsure for a label is still a negative example."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from css_ray.config import knob
from css_ray.distributed import all_reduce_sum
from css_ray.functional.contrast import PixelsByClass, noise_contrast
from css_ray.functional.losses import cross_entropy
from css_ray.functional.mixing import half_area_boxes, mix
from css_ray.functional.precision import at_least_float32
from css_ray.functional.pseudo_labels import at_class, entropy, percentile, rank_of_classes
from css_ray.functional.resizing import nearest, upsample
from css_ray.functional.similarity import class_means, class_sums
from css_ray.methods.base import Method
from css_ray.methods.queue import FeatureQueue
from css_ray.methods.teacher import Teacher, eval_mode
from css_ray.models import Segmenter
from css_ray.types import IGNORE_INDEX, Batch, Clock, Losses, Prediction, Rate
from css_ray.views import Views


class U2PL(Method):
    """Pixels of low entropy are labelled; those of high entropy teach what they are not. Wang et al., CVPR 2022.

    L_u is the cross entropy of all but the `drop` share of highest entropy, which falls to 0, times pixels / pixels kept. L_c
    draws the anchors of each class to the mean representation of its sure pixels, away from a queue of unsure pixels for which
    the class is neither likely (rank < low_rank) nor out of the question (rank >= high_rank), and of labelled pixels of other
    classes that were taken for it. The teacher labels unmixed images in eval mode, and sees the mixed ones in train mode.

    Departs from the published code: its contrast confuses the classes that negatives come from, and leaves out labelled
    negatives by a mistake; here both are as the paper has them. Entropies of the contrast are those of the cells, queues hold
    unit vectors in half precision, padding has no part in anything, and the mean of a class is that of all ranks.
    """

    name = "u2pl"
    needs_representations = True

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        """Shares of pixels by their entropy, the window of ranks, the queue and the contrast."""

        teacher_decay: float = knob(0.99, help="share of the teacher that an update keeps", ge=0, lt=1)
        warm_up: float = knob(0.0125, help="share of training without unlabelled images; one of 80 epochs", ge=0, lt=1)
        drop: float = knob(0.2, help="share of pixels of highest entropy without a label, at the start (α_0)", ge=0, lt=1)
        entropy: float = knob(0.2, help="share of lowest, and of highest entropy for the contrast, at the start", ge=0, le=0.5)
        class_threshold: float = knob(0.3, help="probability of its class from which a pixel is an anchor (δ_p)", ge=0, le=1)
        low_rank: int = knob(3, help="an unsure pixel is a negative of the classes that are as likely or less (r_l)", ge=0)
        high_rank: int = knob(20, help="but not of those from here on (r_h); the number of classes bounds it", ge=1)
        queue: int = knob(4096, help="negatives that are kept for each class", ge=1, le=1_000_000)
        num_new: int = knob(256, help="negatives of a class that a rank adds in a step, at most", ge=1, le=65_536)
        num_queries: int = knob(256, help="anchors a class", ge=1, le=65_536)
        num_negatives: int = knob(50, help="negatives of an anchor", ge=1, le=65_536)
        temperature: float = knob(0.5, help="temperature of the contrast (τ)", gt=0)
        unsup_weight: float = knob(1.0, help="weight of L_u (λ_u)", ge=0)
        contrast_weight: float = knob(0.1, help="weight of L_c (λ_c)", ge=0)
        cutmix_probability: float = knob(0.5, help="share of the steps whose unlabelled images are mixed", ge=0, le=1)

    config: Config

    def __init__(self, make_segmenter: Callable[[], Segmenter], config: Config, views: Views) -> None:
        super().__init__(make_segmenter, config, views)
        channels = self.student.representation_dim
        if channels is None:
            raise ValueError("u2pl needs a representation head; make the segmenter with representation=True")
        self.teacher = Teacher(self.student, config.teacher_decay)
        self.queue = FeatureQueue(self.student.num_classes, config.queue, channels)
        self._warming = True

    @classmethod
    def warnings(cls, config: Any, num_classes: int) -> list[str]:
        """Names a window of ranks that no class falls into."""
        if config.low_rank < min(config.high_rank, num_classes):
            return []
        return [
            f"low_rank {config.low_rank} leaves no class of {num_classes} for which an unsure pixel is a negative; use at most "
            f"{min(config.high_rank, num_classes) - 1}"
        ]

    def forward(self, batch: Batch, clock: Clock) -> Losses:
        config = self.config
        self._warming = clock.progress < config.warm_up
        if self._warming:
            labelled = self.student(self.labelled_colours(batch.labelled_images, strong=False))
            nothing = 0 * _representations(labelled).sum()
            return Losses({"sup": self.supervised(labelled, batch.labels), "unsup": nothing, "contrast": nothing})
        count, size = len(batch.labelled_images), (batch.labels.shape[1], batch.labels.shape[2])
        with torch.no_grad():
            images, target = self._mixed(batch)
            both = torch.cat([self.labelled_colours(batch.labelled_images, strong=False), images])
            unsure = self.teacher(both)
            spread = entropy(upsample(unsure.logits[count:], size).softmax(dim=1))
            labelled_pixels = target != IGNORE_INDEX
            most = percentile(spread, 100 * (1 - config.drop * (1 - clock.progress)), labelled_pixels)
            kept = labelled_pixels & (spread < most)
        prediction = self.student(both)
        first, second = (
            Prediction(*(None if item is None else item[part] for item in prediction))  # type: ignore[arg-type]
            for part in (slice(None, count), slice(count, None))
        )
        scale = labelled_pixels.sum() / kept.sum().clamp(min=1)
        unsupervised = cross_entropy(upsample(second.logits, size), torch.where(kept, target, IGNORE_INDEX)) * scale
        contrast = self._contrast(_representations(prediction), unsure, batch.labels, target, clock.progress)
        return Losses(
            {
                "sup": self.supervised(first, batch.labels),
                "unsup": config.unsup_weight * unsupervised,
                "contrast": config.contrast_weight * contrast,
            },
            {"unsup_pass_rate": Rate(kept.sum(), labelled_pixels.sum()), "queue_length": self.queue.length.float().mean()},
        )

    def _mixed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The unlabelled images, mixed or not, and the teacher's labels for them, IGNORE_INDEX in padding."""
        images, valid = batch.unlabelled_images, batch.unlabelled_valid
        size = (valid.shape[1], valid.shape[2])
        with eval_mode(self.teacher.model):
            labels = upsample(self.teacher(images).logits, size).argmax(dim=1)
        labels = torch.where(valid, labels, IGNORE_INDEX)
        boxes = half_area_boxes(len(images), *size, images.device)
        boxes = boxes & (torch.rand((), device=images.device) < self.config.cutmix_probability)
        return mix(boxes, images, images.roll(-1, dims=0)), mix(boxes, labels, labels.roll(-1, dims=0))

    def _contrast(self, representations: Tensor, unsure: Prediction, labels: Tensor, target: Tensor, progress: float) -> Tensor:
        """L_c. representations: the student's [B, D, h, w]; unsure: the teacher's prediction for the same images."""
        config, num_classes, count = self.config, self.student.num_classes, len(labels)
        cells = (representations.shape[2], representations.shape[3])
        with torch.no_grad(), torch.autocast(representations.device.type, enabled=False):
            probabilities = at_least_float32(unsure.logits).softmax(dim=1)
            labels = torch.cat([nearest(labels, cells), nearest(target, cells)])
            known, spread = labels != IGNORE_INDEX, entropy(probabilities)
            unlabelled = known.clone()
            unlabelled[:count] = False
            share = 100 * config.entropy * (1 - progress)
            sure = unlabelled & (spread <= percentile(spread, share, unlabelled))
            sure[:count] = known[:count]
            confused = unlabelled & (spread >= percentile(spread, 100 - share, unlabelled))
            low_labels = torch.where(sure, labels, IGNORE_INDEX)
            sums, counts = class_sums(_representations(unsure), low_labels, num_classes)
            reduced = all_reduce_sum(torch.cat([sums, counts.unsqueeze(1)], dim=1))
            positives = F.normalize(class_means(reduced[:, :-1], reduced[:, -1]), dim=1)
            self._remember(_representations(unsure), probabilities, labels, known, confused, count)
            anchors = sure & (at_class(probabilities, low_labels) > config.class_threshold)
            pixels = PixelsByClass(low_labels.flatten(), anchors.flatten(), num_classes)
            classes = torch.arange(num_classes, device=labels.device)
            active = (pixels.hard_counts > 0) & (self.queue.length > 0)
            counted = (reduced[:, -1] > 0).sum()
            if labels.device.type == "cpu":
                classes = classes[active]
        rows = at_least_float32(representations.flatten(2).transpose(1, 2).flatten(0, 1))  # [M, D]
        if not len(classes):
            return 0 * rows.sum()
        drawn = pixels.draw(classes[:, None].expand(-1, config.num_queries), pixels.hard_counts)
        own = rows.index_select(0, drawn.flatten()).unsqueeze(1)  # [K * Q, 1, D]
        of_anchor = classes.repeat_interleave(config.num_queries)
        index = self.queue.draw(of_anchor[:, None].expand(-1, config.num_negatives))
        losses = noise_contrast(own, positives[of_anchor].unsqueeze(1), self.queue.rows, index, config.temperature)
        by_class = losses.view(len(classes), -1).mean(dim=1)
        # A single class has no other to be separated from.
        return torch.where(active[classes] & (counted > 1), by_class, 0).sum() / counted.clamp(min=1)

    def _remember(
        self, representations: Tensor, probabilities: Tensor, labels: Tensor, known: Tensor, confused: Tensor, count: int
    ) -> None:
        """Append the step's negatives to the queues: unsure pixels, and labelled ones that were taken for another class."""
        config = self.config
        ranks = rank_of_classes(probabilities)  # [B, C, h, w]
        negative = (ranks >= config.low_rank) & (ranks < config.high_rank) & confused.unsqueeze(1)
        taken = ranks[:count] < config.low_rank
        classes = torch.arange(self.student.num_classes, device=labels.device).view(1, -1, 1, 1)
        negative[:count] = taken & known[:count].unsqueeze(1) & (labels[:count].unsqueeze(1) != classes)
        rows = representations.flatten(2).transpose(1, 2).flatten(0, 1)
        self.queue.push(rows, negative.transpose(0, 1).flatten(1), config.num_new)

    def after_step(self, clock: Clock) -> None:
        if self._warming:
            self.teacher.copy_(self.student)
        else:
            self.teacher.update(self.student)

    def predictor(self) -> Segmenter:
        return self.teacher.model

    def pseudo_labels(self, images: Tensor) -> dict[str, Tensor]:
        return {"logits": self.teacher.model.predict(images).argmax(dim=1)}


def _representations(prediction: Prediction) -> Tensor:
    assert prediction.representations is not None  # the constructor asked for them
    return prediction.representations
