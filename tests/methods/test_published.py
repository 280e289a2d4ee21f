"""`published`, point by point, against plain restatements of what the released code computes where that departs from css-ray."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from css_ray.functional import contrast
from css_ray.functional.losses import unsupervised_cross_entropy
from css_ray.methods import CSS, base, css
from css_ray.testing import clock_at, make_batch, make_method
from css_ray.types import IGNORE_INDEX
from css_ray.views import Views

STILL = Views(scale=(1.0, 1.0), strong_scale=(1.0, 1.0), flip=False, jitter=0.0, jitter_probability=0.0, blur_probability=0.0)
"""No random change of any view but CutMix."""

QUIET: dict[str, Any] = {
    "unsup_threshold": 0.3, "valid_threshold": 0.2, "hard_threshold": 0.4, "num_queries": 4, "num_negatives": 4
}  # fmt: skip


def published(**settings: Any) -> CSS:
    torch.manual_seed(0)
    method = make_method(CSS, STILL, preset="published", **(QUIET | settings))
    assert isinstance(method, CSS)
    return method


def contrasted(monkeypatch: pytest.MonkeyPatch, method: CSS, steps: int) -> list[dict[str, Any]]:
    """What each step's contrastive loss is given, and the prototypes as they were before the step."""
    seen: list[dict[str, Any]] = []
    real = contrast.contrastive_loss

    def remember(representations: Tensor, labels: Tensor, hard: Tensor, *others: Any, **settings: Any) -> Tensor:
        seen[-1] |= {"representations": representations.detach().clone(), "labels": labels, "hard": hard}
        return real(representations, labels, hard, *others, **settings)

    monkeypatch.setattr(css, "contrastive_loss", remember)
    for step in range(steps):
        seen.append({"before": method.prototypes.value.clone()})
        method(make_batch(step), clock_at(0.5))
        seen[-1]["after"] = method.prototypes.value.clone()
        method.after_step(clock_at(0.5))
    return seen


def hard_by_hand(step: dict[str, Any], prototypes: Tensor) -> Tensor:
    """The pixels whose own class's softmax over cosines at τ = 0.5, zero vectors included, is below δ_s."""
    hard = torch.zeros_like(step["labels"], dtype=torch.bool)
    for b, y, x in (step["labels"] != IGNORE_INDEX).nonzero().tolist():
        vector = step["representations"][b, :, y, x]
        cosines = torch.stack([F.cosine_similarity(vector, prototype, dim=0) for prototype in prototypes])
        hard[b, y, x] = (cosines / 0.5).softmax(dim=0)[step["labels"][b, y, x]] < 0.4
    return hard


@pytest.mark.parametrize("which", ["previous", "updated"])
def test_the_hard_gate_looks_at_the_prototypes_before_the_update(which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = contrasted(monkeypatch, published(hard_prototypes=which), 3)
    assert not steps[0]["before"].any()  # zeros: every pixel is hard at the first step
    told_apart = False
    for step in steps:
        expected = {name: hard_by_hand(step, step[place]) for name, place in (("previous", "before"), ("updated", "after"))}
        assert torch.equal(step["hard"], expected[which])
        told_apart |= not torch.equal(expected["previous"], expected["updated"])
    assert told_apart
    config: Any = CSS.configure("published")
    assert config.hard_prototypes == "previous"


def test_the_teacher_passes_over_the_labelled_images_too() -> None:
    """Only its batch statistics can tell: the weak view first, then the labelled images as the student sees them."""
    method, batch = published(), make_batch()
    by_hand = copy.deepcopy(method.teacher.model)
    method(batch, clock_at(0.5))
    with torch.no_grad():
        by_hand(batch.unlabelled_images)
        by_hand(batch.labelled_images)
    found = method.teacher.model.state_dict()
    for name, value in by_hand.state_dict().items():
        torch.testing.assert_close(found[name], value, msg=name)

    without = published(teacher_sees_labelled=False)
    without(batch, clock_at(0.5))
    statistics = [name for name in found if name.endswith("running_mean")]
    assert any(not torch.equal(found[name], without.teacher.model.state_dict()[name]) for name in statistics)


@pytest.mark.parametrize("preset", ["published", "default"])
def test_losses_of_ranks_are_means_of_their_means(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a rank's loss is weighted by its share of the pixels that count, here made seven times the mean."""
    batch = make_batch()

    def terms() -> dict[str, float]:
        torch.manual_seed(0)
        method = make_method(CSS, STILL, preset=preset, pseudo_labelling="logits", indicator="confidence", **QUIET)
        torch.manual_seed(1)
        return {name: float(value.detach()) for name, value in method(batch, clock_at(0.5)).terms.items()}

    alone = terms()
    monkeypatch.setattr(base, "share_of_rank", lambda count: torch.full(count.shape, 7.0))
    monkeypatch.setattr(css, "share_of_total", lambda count, total: torch.full(count.shape, 7.0))
    weighted = terms()
    factor = 1 if preset == "published" else 7
    for name in ("sup", "unsup"):
        assert alone[name] > 0 and weighted[name] == pytest.approx(factor * alone[name])


@pytest.mark.parametrize("preset", ["published", "default"])
def test_the_contrast_of_ranks_is_each_ranks_own(preset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    real = contrast.contrastive_loss

    def remember(*arguments: Any, **settings: Any) -> Tensor:
        sizes.append(settings.pop("ranks").size)
        return real(*arguments, **settings)

    monkeypatch.setattr(css, "contrastive_loss", remember)
    monkeypatch.setattr(css, "world_size", lambda: 2)
    torch.manual_seed(0)
    make_method(CSS, STILL, preset=preset, **QUIET)(make_batch(), clock_at(0.5))
    assert sizes == [1 if preset == "published" else 2]


def test_pixels_whose_cross_entropy_is_zero_leave_the_unsupervised_loss() -> None:
    """`loss > 0` of the released code: the surest pixel scales the loss of the others."""
    logits = torch.tensor([[200.0, 0.0], [0.3, 0.0], [0.0, 0.7], [0.2, 0.1]]).T.view(1, 2, 2, 2)
    labels = torch.tensor([[[0, 1], [0, IGNORE_INDEX]]])
    passed = torch.tensor([[[True, True, False, True]]]).view(1, 2, 2)
    losses = F.cross_entropy(logits, labels, reduction="none", ignore_index=IGNORE_INDEX).flatten().tolist()
    assert losses[0] == 0 and losses[3] == 0 and all(losses[1:3])
    left = [loss for loss in losses if loss > 0]
    # The share of the image: the three that passed, one of them ignored, over the two that are left.
    expected = 3 / len(left) * sum(left) / len(left)
    found = unsupervised_cross_entropy(logits, labels, passed, "image_fraction_overcounted")
    assert float(found) == pytest.approx(expected)
    # Without that, the share is of three pixels.
    assert float(unsupervised_cross_entropy(logits, labels, passed, "image_fraction")) == pytest.approx(2 / 3 * sum(left) / 3)
