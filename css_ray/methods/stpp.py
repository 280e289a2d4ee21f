"""ST++: self-training in stages, each with a network from scratch, on images that are labelled between them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from css_ray.config import Problem, knob
from css_ray.distributed import all_reduce_sum
from css_ray.functional.augmentation import cutout
from css_ray.functional.pseudo_labels import augmented_probabilities, reliability
from css_ray.methods.base import Method
from css_ray.methods.stages import Border, PseudoLabels, Stage
from css_ray.methods.teacher import eval_mode
from css_ray.models import Segmenter
from css_ray.types import Batch, Clock, Losses
from css_ray.views import Views


class STPP(Method):
    """A network labels unlabelled images for the next one, the reliable ones first. Yang et al., CVPR 2022.

    Stages: `supervised` learns from labelled images. Those unlabelled images on which its snapshots and its last network agree
    most, by the mean IoU, are labelled by the latter, and `reliable` trains a new network on them and on labelled images. That
    one labels the rest, and `all` trains a new network on all images. Labels are of the mean softmax over scales and flips,
    and no image is labelled twice. The loss is L_x over the pixels of both kinds of images, drawn from one list.
    Pseudo-labelled images have strong colours, and CutOut boxes without labels; labelled ones are as they are, unless
    `views.labelled_colours` is strong.

    A new network has the encoder's first weights and new heads, drawn from the seed of the run and the stage; the schedule of
    the learning rate begins again. If no or all unlabelled images are `reliable`, there are two stages, as in plain
    self-training (ST), and the last one has the steps of both. Without unlabelled images one network learns in all stages.

    Departs from the published code: the last network of a stage labels and is handed over, not the best on the validation
    images, which is a leak and is not offered; stages share one budget of steps; images are resized with a low-pass filter.

    Presets: `published` has the shares of the released code, 80 epochs for each stage, on VOC with 366 labelled images.
    """

    name = "stpp"
    presets = ("default", "published")

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        """The stages, who counts as reliable, and what changes pseudo-labelled images."""

        shares: tuple[float, float, float] = knob(
            (0.1, 0.3, 0.6), help="of the steps: on labelled images, with the reliable ones too, with all", ge=0, le=1
        )
        reliable: float = knob(0.5, help="share of the unlabelled images that are labelled first; 0 or 1: plain ST", ge=0, le=1)
        snapshots: int = knob(2, help="networks of the first stage whose predictions are compared with its last one's", ge=1)
        tta_scales: tuple[float, ...] = knob(
            (0.5, 0.75, 1.0, 1.5, 2.0), help="factors of an image's sides that are predicted for its labels", gt=0, le=16
        )
        tta_flip: bool | None = knob(None, help="also of the mirrored image; null: if training mirrors images (`views.flip`)")
        strong: bool = knob(True, help="whether pseudo-labelled images get strong colours and CutOut (SDA)")
        cutout_probability: float = knob(0.5, help="share of the pseudo-labelled images with a box", ge=0, le=1)
        cutout_area: tuple[float, float] = knob((0.02, 0.4), help="smallest and largest share of a box", ge=0, le=1)
        cutout_aspect: tuple[float, float] = knob((0.3, 1 / 0.3), help="smallest and largest height / width of a box", gt=0)

        def problems(self) -> Iterator[Problem]:
            """Adds to the bounds: shares add up to 1, there is a scale, and a range is two numbers, the smaller first."""
            yield from super().problems()
            if len(self.shares) != 3 or abs(sum(self.shares) - 1) > 1e-6:
                yield Problem("shares", f"must be three numbers that add up to 1, got {self.shares!r}")
            if not self.tta_scales:
                yield Problem("tta_scales", "must have an entry, got none; [1.0] predicts the image as it is")
            yield from self.range_problems("cutout_area", "cutout_aspect")

    config: Config

    def __init__(self, make_segmenter: Callable[[], Segmenter], config: Config, views: Views) -> None:
        super().__init__(make_segmenter, config, views)
        self._make_segmenter = make_segmenter
        count = config.snapshots if len(self.stages()) == 3 else 0
        self.snapshots = nn.ModuleList(copy.deepcopy(self.student).requires_grad_(False) for _ in range(count))

    @classmethod
    def preset_values(cls, preset: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {"shares": (0.011, 0.329, 0.66)} if preset == "published" else {}

    def stages(self) -> tuple[Stage, ...]:
        first, second, last = self.config.shares
        if self.config.reliable in (0, 1):
            return Stage("supervised", first, "union"), Stage("all", 1 - first, "union")
        return Stage("supervised", first, "union"), Stage("reliable", second, "union"), Stage("all", last, "union")

    @torch.no_grad()
    def enter(self, border: Border) -> None:
        labels = border.pseudo_labels
        if not self.stage or labels is None or not labels.ids:
            return
        with eval_mode(self):
            if self.stage + 1 < len(self.stages()):
                chosen = self._reliable(labels)
            else:
                known = set(labels.labelled)
                chosen = [id for id in labels.ids if id not in known]
            batches = labels.images(chosen)
            labels.put((id, found) for ids, images in batches for id, found in zip(ids, self._label(images), strict=True))
        with torch.random.fork_rng():
            torch.default_generator.manual_seed(border.seed)
            fresh = self._make_segmenter()
        self.student.load_state_dict(fresh.state_dict())

    def forward(self, batch: Batch, clock: Clock) -> Losses:
        images, labels = batch.labelled_images, batch.labels
        if batch.pseudo is not None and self.config.strong:
            images, labels = self._strong(images, labels, batch.pseudo)
        coloured = self.labelled_colours(batch.labelled_images, strong=False)
        images = coloured if batch.pseudo is None else torch.where(batch.pseudo[:, None, None, None], images, coloured)
        return Losses({"sup": self.supervised(self.student(images), labels)})

    def after_step(self, clock: Clock) -> None:
        if clock.stage:
            return
        for number, snapshot in enumerate(self.snapshots, 1):
            if clock.step + 1 == max(1, clock.steps * number // (len(self.snapshots) + 1)):
                snapshot.load_state_dict(self.student.state_dict())

    def pseudo_labels(self, images: Tensor) -> dict[str, Tensor]:
        return {"student": self._label(images)}

    def _label(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> labels [B, H, W] of the student."""
        config = self.config
        flip = self.views.flip if config.tta_flip is None else config.tta_flip
        return augmented_probabilities(self.student.predict, images, config.tta_scales, flip=flip).argmax(dim=1)

    def _reliable(self, labels: PseudoLabels) -> list[str]:
        """The ids of the images that are labelled first; of equal ones the first."""
        place = {id: index for index, id in enumerate(labels.ids)}
        scores = torch.zeros(len(place), dtype=torch.float64, device=next(self.parameters()).device)
        for ids, images in labels.images(labels.ids):
            earlier = [snapshot.predict(images).argmax(dim=1) for snapshot in self.snapshots]  # type: ignore[operator]
            final = self.student.predict(images).argmax(dim=1)
            scores[[place[id] for id in ids]] = reliability(earlier, final, self.student.num_classes)
        order = all_reduce_sum(scores).argsort(descending=True, stable=True).tolist()
        count = math.floor(self.config.reliable * len(place) + 1e-9)
        return [labels.ids[index] for index in sorted(order[:count])]

    def _strong(self, images: Tensor, labels: Tensor, pseudo: Tensor) -> tuple[Tensor, Tensor]:
        """The images and labels of a union, those that are pseudo-labelled changed."""
        config = self.config
        changed, kept = cutout(
            self.strong_colours(images),
            labels,
            probability=config.cutout_probability,
            area=config.cutout_area,
            aspect=config.cutout_aspect,
        )
        chosen = pseudo[:, None, None]
        return torch.where(chosen[:, None], changed, images), torch.where(chosen, kept, labels)
