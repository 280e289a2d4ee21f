"""ST++: the contract, and its facts by hand."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from css_ray.config import ConfigError
from css_ray.methods import STPP, Supervised
from css_ray.methods.stages import Border
from css_ray.testing import LabelsInMemory, MethodContract, batch_of, clock_at, enter_stages, make_batch, make_method
from css_ray.types import IGNORE_INDEX, Clock
from css_ray.views import Views

STILL = Views(jitter_probability=0, blur_probability=0)


class TestSTPP(MethodContract):
    method_class = STPP
    settings: ClassVar = {"tta_scales": (0.5, 1.0, 1.5)}


class TestST(MethodContract):
    method_class = STPP
    settings: ClassVar = {"reliable": 1.0, "tta_flip": False, "tta_scales": (1.0,), "strong": False}
    golden: ClassVar = None


def make(stage: int = 0, views: Views = STILL, **settings: Any) -> STPP:
    torch.manual_seed(0)
    method = enter_stages(make_method(STPP, views, **{"tta_scales": (1.0,), **settings}), stage)
    assert isinstance(method, STPP)
    return method


def images(count: int) -> dict[str, Tensor]:
    drawn = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    return {f"{number:02d}": image for number, image in enumerate(drawn)}


class Dictating(torch.nn.Module):
    """Predicts for each of some images what it is told to."""

    num_classes = 4

    def __init__(self, told: Sequence[tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.told = told

    def predict(self, images: Tensor) -> Tensor:
        labels = [next(labels for known, labels in self.told if torch.equal(known, image)) for image in images]
        return torch.nn.functional.one_hot(torch.stack(labels), 4).movedim(-1, 1).float()


def test_the_images_on_which_snapshots_and_the_last_network_agree_most_are_labelled_first() -> None:
    """The first snapshot errs in some rows of each image, the second one in none; of images with as many, the first win."""
    shown = images(8)
    final = torch.zeros(16, 16, dtype=torch.int64)
    rows = [5, 0, 7, 2, 2, 9, 1, 2]

    def wrong(count: int) -> Tensor:
        return torch.where(torch.arange(16)[:, None] < count, 1, final)

    method = make(reliable=0.5, tta_flip=False)
    method.stage = 1
    right = Dictating([(image, final) for image in shown.values()])
    method.snapshots[0] = Dictating([(image, wrong(count)) for image, count in zip(shown.values(), rows, strict=True)])
    method.snapshots[1] = right
    method.student.predict = right.predict  # type: ignore[method-assign]
    labels = LabelsInMemory(shown)
    method.enter(Border(pseudo_labels=labels))
    assert labels.labelled == ("01", "03", "04", "06")  # 0, 2, 2 and 1 rows; image 7 has 2 as well
    assert all(torch.equal(made, final) for made in labels.made.values())

    # At the last border the others are labelled, by the network of now, and these keep their labels.
    method.stage = 2
    method.student.predict = Dictating([(image, wrong(3)) for image in shown.values()]).predict  # type: ignore[method-assign]
    method.enter(Border(pseudo_labels=labels))
    assert labels.labelled == tuple(shown)
    first = {"01", "03", "04", "06"}
    assert all(torch.equal(made, final if id in first else wrong(3)) for id, made in labels.made.items())


@pytest.mark.parametrize(("share", "count"), [(0.5, 4), (0.3, 2), (0.99, 8), (0.05, 0), (1 / 3, 3)])
def test_the_share_of_reliable_images_is_rounded_down(share: float, count: int) -> None:
    method, labels = make(reliable=share), LabelsInMemory(images(9))
    method.stage = 1
    method.enter(Border(pseudo_labels=labels))
    # Snapshots are the network itself here: all scores are 1, and the first images are chosen.
    assert labels.labelled == tuple(labels.ids[:count])


def test_each_stage_begins_with_a_network_of_the_runs_seed_and_its_own() -> None:
    def begun(stage: int, seed: int) -> dict[str, Tensor]:
        method = make(stage - 1)
        method.stage = stage
        torch.manual_seed(99 + stage)  # what a rank drew before does not matter
        generator = torch.get_rng_state()
        before = copy.deepcopy(method.student.state_dict())
        method.enter(Border(pseudo_labels=LabelsInMemory(images(4)), seed=seed))
        assert torch.equal(torch.get_rng_state(), generator)
        found = copy.deepcopy(method.student.state_dict())
        heads = [name for name in found if name.endswith("weight") and found[name].dim() == 4]
        assert heads and all(not torch.equal(found[name], before[name]) for name in heads)
        assert all(int(found[name]) == 0 for name in found if name.endswith("num_batches_tracked"))
        return found

    def alike(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
        return all(torch.equal(value, other[name]) for name, value in one.items())

    assert alike(begun(1, 7), begun(1, 7)) and not alike(begun(1, 7), begun(1, 8))
    assert alike(begun(1, 7), begun(2, 7))  # the loop gives each border its own seed


def test_pretrained_weights_are_those_of_the_start() -> None:
    method = make()
    start = {name: torch.full_like(value, 0.25) for name, value in method.student.encoder.state_dict().items()}
    make_segmenter = method._make_segmenter

    def pretrained() -> Any:
        segmenter = make_segmenter()
        segmenter.encoder.load_state_dict(start)
        return segmenter

    method._make_segmenter = pretrained
    method.stage = 1
    method.enter(Border(pseudo_labels=LabelsInMemory(images(2))))
    assert all(torch.equal(value, start[name]) for name, value in method.student.encoder.state_dict().items())


def test_snapshots_are_copies_at_thirds_of_the_first_stage() -> None:
    method = make()
    assert not any(parameter.requires_grad for parameter in method.snapshots.parameters())
    taken: list[list[bool]] = []
    for stage, steps in ((0, 10), (1, 10)):
        for step in range(steps):
            with torch.no_grad():
                for value in method.student.state_dict().values():
                    value.add_(1)
            method.after_step(Clock(step, steps, stage))
            now = method.student.state_dict()
            taken.append(
                [all(torch.equal(value, now[name]) for name, value in each.state_dict().items()) for each in method.snapshots]
            )
    first, second = ([step for step, copied in enumerate(taken) if copied[number]] for number in (0, 1))
    assert (first, second) == ([2], [5])  # after 10 // 3 and 20 // 3 steps
    method.after_step(Clock(0, 1, 0))  # a stage of one step: both are its network
    now = method.student.state_dict()
    assert all(torch.equal(value, now[name]) for each in method.snapshots for name, value in each.state_dict().items())


def test_one_cross_entropy_over_the_union_and_strong_views_of_the_pseudo_labelled_alone() -> None:
    method, batch = make(2, cutout_probability=0.0), make_batch(kind="union")
    own = method.student(batch.labelled_images).logits
    logits = torch.nn.functional.interpolate(own, batch.labels.shape[1:], mode="bilinear", align_corners=True)
    expected = torch.nn.functional.cross_entropy(logits, batch.labels, ignore_index=IGNORE_INDEX)
    assert method(batch, clock_at(0.5, 2)).terms["sup"].item() == pytest.approx(expected.item(), rel=1e-6)

    seen: list[Tensor] = []
    strong = make(2, Views(jitter_probability=1, jitter=0.5), cutout_probability=1.0)
    strong.student.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    labels: list[Tensor] = []
    supervised = strong.supervised
    strong.supervised = lambda prediction, given: labels.append(given) or supervised(prediction, given)  # type: ignore
    assert batch.pseudo is not None
    strong(batch, clock_at(0.5, 2))
    ((shown,), (kept,)) = seen, labels
    plain = ~batch.pseudo
    assert torch.equal(shown[plain], batch.labelled_images[plain]) and torch.equal(kept[plain], batch.labels[plain])
    assert all(
        not torch.equal(one, other) for one, other in zip(shown[batch.pseudo], batch.labelled_images[batch.pseudo], strict=True)
    )
    hidden = kept != batch.labels
    assert (kept[hidden] == IGNORE_INDEX).all() and hidden[batch.pseudo].flatten(1).any(dim=1).all()
    # `views.labelled_colours` changes those of the labelled ones too, with and without others; no box hides a label of theirs.
    coloured = make(2, Views(jitter_probability=1, jitter=0.5, labelled_colours="strong"), cutout_probability=1.0)
    coloured.student.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    coloured.supervised = lambda prediction, given: labels.append(given) or supervised(prediction, given)  # type: ignore
    for given in (batch, make_batch(kind="labelled")):
        coloured(given, clock_at(0.5, 2))
        assert all(not torch.equal(one, other) for one, other in zip(seen[-1], given.labelled_images, strict=True))
        own = torch.ones(len(given.labels), dtype=torch.bool) if given.pseudo is None else ~given.pseudo
        assert torch.equal(labels[-1][own], given.labels[own])
    # `strong: false` leaves all images as they are.
    seen.clear()
    weak = make(2, Views(jitter_probability=1, jitter=0.5), cutout_probability=1.0, strong=False)
    weak.student.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    weak(batch, clock_at(0.5, 2))
    assert torch.equal(seen[0], batch.labelled_images)


def test_labels_of_a_pixelwise_network_are_its_prediction_at_one_scale() -> None:
    method = make(tta_flip=True)
    shown = torch.rand(2, 3, 9, 13)
    method.student.predict = lambda images: torch.cat([images, images[:, :1] * 2], dim=1)  # type: ignore[method-assign]
    expected = torch.cat([shown, shown[:, :1] * 2], dim=1).argmax(dim=1)
    assert torch.equal(method.pseudo_labels(shown)["student"], expected)


@pytest.mark.parametrize(
    ("views", "setting", "mirrored"),
    [(True, None, True), (False, None, False), (False, True, True), (True, False, False)],
)
def test_labels_are_of_mirrored_images_if_training_mirrors_them(views: bool, setting: bool | None, mirrored: bool) -> None:
    method = make(views=Views(flip=views), tta_flip=setting)
    seen: list[Tensor] = []
    method.student.predict = lambda images: seen.append(images) or images  # type: ignore[func-returns-value, method-assign]
    method.pseudo_labels(torch.rand(1, 3, 4, 6))
    assert len(seen) == 1 + mirrored and torch.equal(seen[-1], seen[0].flip(-1) if mirrored else seen[0])


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_without_a_choice_it_is_plain_self_training(share: float) -> None:
    method, labels = make(reliable=share), LabelsInMemory(images(5))
    stages = [(stage.name, stage.share) for stage in method.stages()]
    assert stages == [("supervised", 0.1), ("all", 0.9)] and len(method.snapshots) == 0
    method.stage = 1
    method.enter(Border(pseudo_labels=labels))
    assert labels.labelled == labels.ids


def test_without_unlabelled_images_one_network_learns_in_all_stages() -> None:
    method = make()
    before = copy.deepcopy(method.state_dict())
    for stage in (1, 2):
        method.stage = stage
        method.enter(Border(pseudo_labels=LabelsInMemory({})))
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    torch.manual_seed(0)
    plain, batch = make_method(Supervised, STILL), batch_of(make_method(Supervised))
    plain.student.load_state_dict(method.student.state_dict())
    assert method(batch, clock_at(0.5, 2)).total.item() == plain(batch, clock_at(0.5)).total.item()


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match=r"shares must be three numbers that add up to 1, got \(0.5, 0.5, 0.5\)"):
        STPP.Config(shares=(0.5, 0.5, 0.5))
    with pytest.raises(ConfigError, match=r"tta_scales must have an entry.*cutout_area must be two numbers, the smaller first"):
        STPP.Config(tta_scales=(), cutout_area=(0.4, 0.02))
    published = STPP.configure("published")
    assert isinstance(published, STPP.Config)
    assert sum(published.shares) == pytest.approx(1) and published == STPP.configure(shares=(0.011, 0.329, 0.66))
