"""Cross pseudo supervision: two networks teach each other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from css_ray.config import Problem, knob
from css_ray.distributed import share_of_rank
from css_ray.functional.losses import cross_entropy
from css_ray.functional.mixing import mix, xor_boxes
from css_ray.functional.resizing import upsample
from css_ray.methods.base import Method
from css_ray.models import Segmenter
from css_ray.types import IGNORE_INDEX, Batch, Clock, Losses, Rate
from css_ray.views import Views


class CPS(Method):
    """Each of two networks learns what the other predicts; no threshold. Chen et al., CVPR 2021.

    L = CE(z1_L, y) + CE(z2_L, y) + w (CE(z1, argmax z2) + CE(z2, argmax z1)), on unlabelled images that are mixed with the next
    ones of the batch (`cutmix`), labels with them, or as they are. The networks differ in their heads' random weights alone;
    the first one is evaluated. One optimizer trains both, which is the same as two: no loss has a gradient into both.

    Departs from the published code: an image is mixed with another one (there, two loaders of one order mix each with another
    crop of itself), padding has no label, and gradients are not divided by the number of workers twice. For results like theirs
    take the rate that theirs amounts to: lr .0025 with a weight decay of .0004 on VOC, .0008 on Cityscapes.
    """

    name = "cps"

    @dataclass(frozen=True, kw_only=True)
    class Config(Method.Config):
        """The weight of what the networks teach each other, on what, and the boxes."""

        unsup_weight: float = knob(
            1.0,
            help="weight of what the networks teach each other (λ); theirs: VOC 1.5 or with cutmix 1, Cityscapes 6 or 5",
            ge=0,
        )
        cutmix: bool = knob(True, help="whether unlabelled images are mixed, with labels of the unmixed ones")
        on_labelled: bool = knob(False, help="whether the networks teach each other on labelled images, too, as without cutmix")
        cutmix_boxes: int = knob(3, help="boxes of a mix; where two overlap, neither shows", ge=1, le=16)
        cutmix_area: tuple[float, float] = knob(
            (0.25, 0.5), help="smallest and largest share of all boxes of an image together", gt=0, le=1
        )

        def problems(self) -> Iterator[Problem]:
            """Adds to the bounds: a range is two numbers, the smaller first."""
            yield from super().problems()
            yield from self.range_problems("cutmix_area")

    config: Config

    def __init__(self, make_segmenter: Callable[[], Segmenter], config: Config, views: Views) -> None:
        super().__init__(make_segmenter, config, views)
        self.second = make_segmenter()
        self.second.encoder.load_state_dict(self.student.encoder.state_dict())

    def forward(self, batch: Batch, clock: Clock) -> Losses:
        config, networks = self.config, (self.student, self.second)
        size = (batch.labels.shape[1], batch.labels.shape[2])
        seen = self.labelled_colours(batch.labelled_images, strong=False)
        labelled = [network(seen) for network in networks]
        images, valid = batch.unlabelled_images, batch.unlabelled_valid
        if config.cutmix:
            with torch.no_grad():
                targets = [self._labels(network(images).logits, valid) for network in networks]
                boxes = xor_boxes(len(images), *size, images.device, boxes=config.cutmix_boxes, area=config.cutmix_area)
                images, *mixed = (mix(boxes, item, item.roll(-1, dims=0)) for item in (images, *targets))
            logits = [network(images).logits for network in networks]
        else:
            logits = [network(images).logits for network in networks]
            mixed = [self._labels(each.detach(), valid) for each in logits]
        agreed = (mixed[0] == mixed[1]) & (mixed[0] != IGNORE_INDEX)
        logs: dict[str, Tensor | Rate] = {"agreement": Rate(agreed.sum(), (mixed[0] != IGNORE_INDEX).sum())}
        if config.on_labelled:
            known = batch.labels != IGNORE_INDEX
            logits = [torch.cat([each, one.logits]) for each, one in zip(logits, labelled, strict=True)]
            own = [self._labels(one.logits.detach(), known) for one in labelled]
            mixed = [torch.cat(pair) for pair in zip(mixed, own, strict=True)]
        supervised = torch.stack([self.supervised(each, batch.labels) for each in labelled]).sum()
        share = share_of_rank((mixed[0] != IGNORE_INDEX).sum())
        crossed = [cross_entropy(upsample(each, size), label) for each, label in zip(logits, reversed(mixed), strict=True)]
        return Losses({"sup": supervised, "unsup": config.unsup_weight * share * torch.stack(crossed).sum()}, logs)

    @staticmethod
    def _labels(logits: Tensor, valid: Tensor) -> Tensor:
        """[B, C, h, w], [B, H, W] bool -> [B, H, W]: the likeliest class, IGNORE_INDEX where not valid."""
        return torch.where(valid, upsample(logits, (valid.shape[1], valid.shape[2])).argmax(dim=1), IGNORE_INDEX)

    def pseudo_labels(self, images: Tensor) -> dict[str, Tensor]:
        return {
            name: network.predict(images).argmax(dim=1) for name, network in (("first", self.student), ("second", self.second))
        }
