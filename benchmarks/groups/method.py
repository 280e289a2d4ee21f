"""The parts of a training step: the contrastive loss, the augmentation, the update, and the step as a whole."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import torch

from benchmarks import Row, compare
from benchmarks.workloads import contrast, pil_views
from benchmarks.workloads.peak_memory import peak_above_inputs
from benchmarks.workloads.steps import MIDDLE, PRESENT, Pairs, Steps
from css_ray.methods import CCT, CPS, CSS, PCR, PRCL, PSMT, STPP, U2PL, AugSeg, FixMatch, Supervised, UniMatch, UniMatchV2
from css_ray.methods.strong_view import strong_view
from css_ray.models import ModelConfig, make_segmenter
from css_ray.training.memory import keep_freed_memory
from css_ray.training.settings import TrainConfig
from css_ray.types import IGNORE_INDEX
from css_ray.views import Views

RESNET18 = ModelConfig(encoder="resnet18", output_stride=16, pretrained=False)


def rows() -> Iterator[Row]:
    torch.set_num_threads(2)
    keep_freed_memory()  # as a run on a CPU does; both sides have it
    steps = Steps(RESNET18, 128, 4, TrainConfig())
    torch.set_num_threads(1)  # what a worker has by default, and steadier than two on a machine that does other things
    yield _step(steps)
    for method in (FixMatch, UniMatch, CPS, CCT, U2PL, PSMT, PCR, STPP, UniMatchV2, AugSeg):
        yield _step(Steps(RESNET18, 128, 4, TrainConfig(), method=method))
    yield from _pairs_rows()
    torch.set_num_threads(2)
    yield _update(steps)
    yield from _contrast_rows()
    ours, other = peak_above_inputs("spaces"), peak_above_inputs("spaces together")
    yield Row("pseudo-labels of both spaces, 8 of 512 x 512, peak memory, vs all images together", ours, other, 1 / 2, "MB")
    yield _augmentation()


def _contrast_rows() -> Iterator[Row]:
    given = contrast.inputs()
    name = f"contrast + prototypes, {given.queries} anchors x {given.negatives}"

    def published() -> None:
        contrast.published(given)

    yield compare(f"{name} per anchor, vs published", lambda: contrast.ours(given, "per_anchor"), published, 1 / 12, repeats=3)
    ours, other = peak_above_inputs("contrast"), peak_above_inputs("published contrast")
    yield Row(f"{name} per anchor, peak memory, vs published", ours, other, 1 / 6, "MB")
    yield compare(f"{name} shared, vs published", lambda: contrast.ours(given, "shared"), published, 1 / 40, repeats=3)


def _pairs_rows() -> Iterator[Row]:
    """PRCL scores pairs channel by channel, which no pass through a network does: beside its passes, and alone."""
    steps = Steps(RESNET18, 128, 4, TrainConfig(), method=PRCL)
    pairs = Pairs(PRCL.Config())

    def passes() -> None:
        steps.passes()
        for _ in range(PRESENT):
            pairs.one_by_one()

    yield _step(steps, passes, "passes and scores one anchor at a time", 1.10)
    yield _step(steps, steps.passes, "passes without scores", 1.75)
    yield compare("prcl's scores of a class, one thread, vs autograd through all pairs", pairs.ours, pairs.together, 1 / 5)


def _augmentation() -> Row:
    """The unlabelled batch with its pseudo-labels and their confidence, against PIL image by image (in one thread)."""
    tiny = ModelConfig(encoder="tiny", output_stride=4, pretrained=False)
    method = Supervised(lambda: make_segmenter(tiny, 21, representation=False), Supervised.Config(), Views())
    random.seed(0)
    images, labels, confidence = torch.rand(8, 3, 512, 512), torch.randint(21, (8, 512, 512)), torch.rand(8, 512, 512)

    def ours() -> None:
        strong_view(method, images, (labels, confidence), (IGNORE_INDEX, 0.0), partner="local")

    def through_pil() -> None:
        pil_views.strong_view(images, labels, confidence, method.views)

    return compare("strong view of 8 images of 512 x 512, vs PIL image by image", ours, through_pil, 1 / 2, repeats=9)


def _step(steps: Steps, passes: Callable[[], None] | None = None, other: str = "passes", target: float = 1.10) -> Row:
    for _ in range(3):  # prototypes, momentum, and a teacher unlike the student
        steps.whole()
    name = f"{steps.method.name} step, resnet18, 4 + 4 of 128 x 128, one thread, vs {other}"
    return compare(name, steps.whole, passes or steps.passes, target, repeats=9)


def _update(steps: Steps) -> Row:
    """Gradient zeroing, SGD and EMA as training does them, against one call each over lists that are made before."""
    method, optimizer = steps.method, steps.optimizer
    assert isinstance(method, CSS)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [torch.randn_like(parameter) for parameter in parameters]
    group = optimizer.param_groups[0]
    copies = [parameter.detach().clone() for parameter in parameters]
    momenta = [torch.zeros_like(parameter) for parameter in parameters]
    followers = [parameter.clone() for parameter in copies]

    def ours() -> None:
        # The calls of `train_step` but for forward and backward, which this row leaves out.
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient  # zeroing drops it; to set it again is part of our time
        optimizer.step()
        method.after_step(MIDDLE)
        optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def bare() -> None:
        torch._fused_sgd_(
            copies, gradients, momenta, weight_decay=group["weight_decay"], momentum=group["momentum"], lr=group["lr"],
            dampening=0.0, nesterov=group["nesterov"], maximize=False, is_first_step=False,
        )  # fmt: skip
        torch._foreach_lerp_(followers, copies, 1 - method.config.teacher_decay)
        torch._foreach_zero_(zeroed)

    zeroed = [torch.zeros_like(gradient) for gradient in gradients]  # not `gradients`, which both sides need in every repeat
    return compare("zeroing + SGD + EMA, resnet18, vs one foreach call each", ours, bare, 1.2, repeats=15)
