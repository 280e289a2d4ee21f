"""A training step of a method, and the passes through the networks that no step of it can avoid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from css_ray.functional.gaussians import LEAST_VARIANCE, mutual_likelihood, separation
from css_ray.functional.resizing import upsample
from css_ray.methods import CCT, CPS, CSS, PCR, PRCL, PSMT, STPP, U2PL, AugSeg, FixMatch, Method, UniMatch, UniMatchV2
from css_ray.methods.stages import longest
from css_ray.methods.teacher import eval_mode
from css_ray.models import ModelConfig, make_segmenter
from css_ray.training.optimizer import make_optimizer
from css_ray.training.settings import TrainConfig
from css_ray.training.step import algorithms, place_method, train_step
from css_ray.types import IGNORE_INDEX, Batch, Clock, Prediction
from css_ray.views import Views

CLASSES, PRESENT = 21, 7  # as for the contrastive loss alone
MIDDLE = Clock(1, 2)  # after the warm-ups: both spaces label, and every loss acts


class Steps:
    """A method in the middle of a training with settings as given, its optimizer and one batch, on one device."""

    def __init__(
        self,
        model: ModelConfig,
        size: int,
        batch_size: int,
        settings: TrainConfig,
        device: torch.device | str = "cpu",
        method: type[Method] = CSS,
    ) -> None:
        torch.manual_seed(0)
        self.device, self.settings = torch.device(device), settings
        self.method = method(
            lambda: make_segmenter(model, CLASSES, representation=method.needs_representations), method.Config(), Views()
        ).train()
        place_method(self.method, settings, device)
        self.method.stage = longest(self.method.stages())
        self.optimizer = make_optimizer(self.method, settings)
        batch = _scenes(size, batch_size)
        self.batch = (_union(batch) if self.method.stages()[self.method.stage].batch == "union" else batch).to(device)

    def whole(self) -> None:
        """The step of a training: losses, zeroing, backward, SGD and EMA."""
        clock = replace(MIDDLE, stage=self.method.stage)
        train_step(self.method, self.method, self.optimizer, self.batch, clock, self.settings)

    def passes(self) -> None:
        """What the method sends through its networks, forward and backward; the loss is a sum of all outputs."""
        with algorithms(self.settings, self.device, fixed_shapes=True):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
                total = _sum(_PASSES[self.method.name](self.method, self.batch.labelled_images, self.batch.unlabelled_images))
            self.method.zero_grad(set_to_none=True)
            total.backward()  # type: ignore[no-untyped-call]


def _css(method: Any, labelled: Tensor, unlabelled: Tensor) -> list[Prediction]:
    """The teacher forward on both batches, the student on both."""
    method.teacher(unlabelled)
    method.teacher(labelled)
    return [method.student(labelled), method.student(unlabelled)]


def _cct(method: Any, labelled: Tensor, unlabelled: Tensor) -> list[Prediction]:
    """The student on both batches together; all heads, whose maps have the images' size, on the unlabelled features.

    Those that see features moved against them once more before, and once forward and back to the features, for the direction.
    """
    student = method.student
    features = student.before_classifier(student.decode(student.encode(torch.cat([labelled, unlabelled]))))
    size = (unlabelled.shape[2], unlabelled.shape[3])
    for head in method.auxiliary[: method.config.vat]:
        with torch.no_grad():
            head(features[len(labelled) :])
        moved = features[len(labelled) :].detach().requires_grad_()
        torch.autograd.grad(head(moved).sum(), moved)
    heads = [upsample(head(features[len(labelled) :]), size) for head in method.auxiliary]
    return [Prediction(logits, None) for logits in (student.logits_head[-1](features), *heads)]


def _u2pl(method: Any, labelled: Tensor, unlabelled: Tensor) -> list[Prediction]:
    """The teacher forward on the unlabelled images, and on both batches; the student on both."""
    both = torch.cat([labelled, unlabelled])
    method.teacher(unlabelled)
    method.teacher(both)
    return [method.student(both)]


def _fixmatch(method: Any, labelled: Tensor, unlabelled: Tensor) -> list[Prediction]:
    """The teacher forward on the unlabelled images, the student on both batches together. PCR and AugSeg do the same."""
    method.teacher(unlabelled)
    return [method.student(torch.cat([labelled, unlabelled]))]


def _unimatch(method: Any, labelled: Tensor, unlabelled: Tensor) -> list[Prediction]:
    """The student on both batches together, with the weak view decoded twice, and on two strong views."""
    student = method.student
    levels = student.encode(torch.cat([labelled, unlabelled]))
    twice = tuple(torch.cat([level, level[len(labelled) :]]) for level in levels)
    return [student.classify(student.decode(twice)), student(torch.cat([unlabelled, unlabelled]))]


def _unimatch_v2(method: Any, labelled: Tensor, unlabelled: Tensor) -> list[Prediction]:
    """The teacher forward on the weak view, the student on labelled images and on two strong views."""
    method.teacher(unlabelled)
    return [method.student(labelled), method.student(torch.cat([unlabelled, unlabelled]))]


def _cps(method: Any, labelled: Tensor, unlabelled: Tensor) -> list[Prediction]:
    """Both networks forward on the unmixed images, and on labelled and mixed ones."""
    networks = method.student, method.second
    with torch.no_grad():
        for network in networks:
            network(unlabelled)
    return [network(images) for network in networks for images in (labelled, unlabelled)]


def _psmt(method: Any, labelled: Tensor, unlabelled: Tensor) -> list[Prediction]:
    """Both teachers forward on the unlabelled images, their heads twice on the features of both batches; the student on both.

    Once more back through the teachers' heads, for the direction of the move.
    """
    student, heads = method.student, [teacher.logits_head for teacher in method.teachers]
    with torch.no_grad():
        for teacher in method.teachers:
            teacher(unlabelled)
    features = student.decode(student.encode(torch.cat([labelled, unlabelled])))
    with eval_mode(method.teachers):
        with torch.no_grad():
            found = [head(features) for head in heads]
        moved = features.detach().requires_grad_()
        torch.autograd.grad(torch.stack([head(moved) for head in heads]).sum() + found[0].sum(), moved)
    return [Prediction(student.logits_head(features), None)]


def _prcl(method: Any, labelled: Tensor, unlabelled: Tensor) -> list[Prediction]:
    """The teacher forward on the unlabelled images; the student, and the head for variances, on both batches together."""
    method.teacher(unlabelled)
    student = method.student
    features = student.decode(student.encode(torch.cat([labelled, unlabelled])))
    return [student.classify(features), Prediction(method.variance_head(features), None)]


class Pairs:
    """Gaussians of one class's anchors and of its keys, as PRCL scores them at its defaults."""

    def __init__(self, config: PRCL.Config, channels: int = 256, device: torch.device | str = "cpu") -> None:
        self.config = config

        def gaussians(count: int) -> tuple[Tensor, Tensor]:
            shape = count, channels
            means, variances = torch.randn(shape, device=device), torch.rand(shape, device=device)
            return F.normalize(means, dim=1), variances.clamp(min=LEAST_VARIANCE)

        self.anchors, self.keys = gaussians(config.num_queries), gaussians(1 + config.num_negatives)
        for tensor in self.anchors:
            tensor.requires_grad_()

    def ours(self) -> None:
        """The loss, forward and back."""
        loss = separation(*self.anchors, *self.keys, self.config.reduce, self.config.temperature)
        torch.autograd.grad(loss, self.anchors)

    def one_by_one(self) -> None:
        """The scores alone, forward and back, an anchor at a time, so that its table stays in the cache."""
        for row in range(self.config.num_queries):
            mean, variance = (tensor[row].detach().requires_grad_() for tensor in self.anchors)
            torch.autograd.grad(mutual_likelihood(mean, variance, *self.keys, self.config.reduce).sum(), (mean, variance))

    def together(self) -> None:
        """The loss through the table of all pairs, which is computed a second time backward instead of being kept."""
        loss: Tensor = checkpoint(self._plain, *self.anchors, use_reentrant=False)
        torch.autograd.grad(loss, self.anchors)

    def _plain(self, means: Tensor, variances: Tensor) -> Tensor:
        scores = mutual_likelihood(means[:, None], variances[:, None], *self.keys, self.config.reduce)
        return F.cross_entropy(scores / self.config.temperature, scores.new_zeros(len(scores), dtype=torch.long))


def _stpp(method: Any, labelled: Tensor, unlabelled: Tensor) -> list[Prediction]:
    """The student on all images of the union."""
    return [method.student(labelled)]


_PASSES: dict[str, Callable[[Any, Tensor, Tensor], list[Prediction]]] = {
    AugSeg.name: _fixmatch,
    CSS.name: _css,
    CCT.name: _cct,
    FixMatch.name: _fixmatch,
    UniMatch.name: _unimatch,
    UniMatchV2.name: _unimatch_v2,
    CPS.name: _cps,
    PCR.name: _fixmatch,
    PSMT.name: _psmt,
    PRCL.name: _prcl,
    STPP.name: _stpp,
    U2PL.name: _u2pl,
}


def _sum(predictions: list[Prediction]) -> Tensor:
    return torch.stack([output.sum() for each in predictions for output in each if output is not None]).sum()


def _union(batch: Batch) -> Batch:
    """The images of a pair in one list, the unlabelled ones with the labels of the others."""
    count = len(batch.labels)
    images, labels = torch.cat([batch.labelled_images, batch.unlabelled_images]), batch.labels.repeat(2, 1, 1)
    pseudo = torch.arange(2 * count) >= count
    return Batch(images, labels, batch.unlabelled_images[:0], batch.unlabelled_valid[:0], pseudo=pseudo)


def _scenes(size: int, batch_size: int) -> Batch:
    """Blocks of colour whose class is their colour. An image shows the background and two other classes, about as VOC's do."""
    colours = torch.rand(CLASSES, 3)

    def scenes() -> tuple[Tensor, Tensor]:
        others = 1 + torch.rand(batch_size, PRESENT - 1).argsort(dim=1)[:, :2]
        shown = torch.cat([torch.zeros_like(others[:, :1]), others], dim=1)
        labels = shown.gather(1, torch.randint(3, (batch_size, 64))).view(batch_size, 8, 8)
        labels = labels.repeat_interleave(size // 8, dim=1).repeat_interleave(size // 8, dim=2)
        images = colours[labels].permute(0, 3, 1, 2).contiguous()
        return (images + 0.1 * torch.rand_like(images)).clamp(0, 1), labels

    labelled_images, labels = scenes()
    labels = labels.masked_fill(torch.rand(labels.shape) < 0.05, IGNORE_INDEX)
    unlabelled_images, _ = scenes()
    valid = torch.ones(batch_size, size, size, dtype=torch.bool)
    return Batch(labelled_images, labels, unlabelled_images, valid)
