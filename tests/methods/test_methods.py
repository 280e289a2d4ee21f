"""The contract over all methods, and what each adds to it."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any, ClassVar

import pytest
import torch
from contract import NUM_CLASSES, MethodContract, make_batch, make_method, train

from css_ray.functional.similarity import class_means, class_sums
from css_ray.methods import CSS, METHODS, CutMix, MeanTeacher, Supervised
from css_ray.methods.prototypes import Prototypes
from css_ray.methods.teacher import Teacher
from css_ray.models import Segmenter
from css_ray.types import IGNORE_INDEX
from css_ray.views import Views

OPEN = {"unsup_threshold": 0.0, "valid_threshold": 0.0, "hard_threshold": 1.0, "num_queries": 16, "num_negatives": 16}
"""Gates that let every pixel pass, so that each loss acts from the first step."""

STILL = Views(scale=(1.0, 1.0), strong_scale=(1.0, 1.0), flip=False, jitter=0.0, jitter_probability=0.0, blur_probability=0.0)
"""No random change of any view but CutMix."""


class TestSupervised(MethodContract):
    method_class = Supervised


class TestSupervisedOnHardPixels(MethodContract):
    method_class = Supervised
    settings: ClassVar = {"ohem": True, "ohem_threshold": 0.1, "ohem_min_kept": 10}


class TestMeanTeacher(MethodContract):
    method_class = MeanTeacher
    settings: ClassVar = {"unsup_threshold": 0.0}


class TestMeanTeacherOnProbabilities(MethodContract):
    method_class = MeanTeacher
    settings: ClassVar = {"consistency": "probabilities", "ramp_up": 0.5}


class TestCutMix(MethodContract):
    method_class = CutMix
    settings: ClassVar = {"unsup_threshold": 0.0}


class TestCSSLogits(MethodContract):
    method_class = CSS
    settings: ClassVar = OPEN | {"pseudo_labelling": "logits", "indicator": "confidence"}


class TestCSSRepresentations(MethodContract):
    method_class = CSS
    settings: ClassVar = OPEN | {"pseudo_labelling": "representations", "unsup_gate": "similarity", "prototype_warm_up": 0.0}


class TestCSSMix(MethodContract):
    method_class = CSS
    settings: ClassVar = OPEN | {"prototype_warm_up": 0.02, "negatives": "per_anchor"}


class TestCSSCross(MethodContract):
    method_class = CSS
    settings: ClassVar = OPEN | {"pseudo_labelling": "cross", "prototype_source": "student"}


def test_the_table_names_every_method_by_its_key() -> None:
    assert {name: method.name for name, method in METHODS.items()} == {
        name: name for name in ("supervised", "mean_teacher", "cutmix", "css")
    }


# Teacher and prototypes


def test_teacher_follows_the_student() -> None:
    torch.manual_seed(0)
    student = make_method(Supervised).student
    teacher = Teacher(student, decay=0.6)
    expected = torch.tensor(5.0)
    for step, decay in enumerate([0.0, 0.5, 0.6, 0.6]):  # min(1 - 1 / (t + 1), .6): the first update copies
        value = float(step + 1)
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.fill_(value)
        teacher.update(student)
        expected = decay * expected + (1 - decay) * value
        for parameter in teacher.parameters():
            torch.testing.assert_close(parameter, expected.expand_as(parameter))
            assert not parameter.requires_grad
    assert int(teacher.num_updates) == 4


def test_teacher_has_batch_statistics_of_its_own() -> None:
    method = make_method(CutMix)
    train(method, 1)
    teacher, student = method.predictor(), method.student
    assert teacher.training
    names = [name for name, _ in student.named_buffers() if "running_mean" in name]
    assert any(not torch.equal(teacher.get_buffer(name), student.get_buffer(name)) for name in names)


def test_prototypes_follow_their_equations() -> None:
    torch.manual_seed(0)
    prototypes = Prototypes(num_classes=3, representation_dim=2, decay=0.75)
    first, second = torch.randn(2, 1, 2, 2, 2)
    labels = torch.tensor([[[0, 0], [2, IGNORE_INDEX]]])
    prototypes.update(first, labels)
    prototypes.update(second, labels)
    assert prototypes.seen.tolist() == [True, False, True]
    old, new = (class_means(*class_sums(rows, labels, 3)) for rows in (first, second))
    expected = 0.75 * old + 0.25 * new
    torch.testing.assert_close(prototypes.value, expected)


# CSS


def test_the_published_temperature_is_warned_about() -> None:
    # 4 classes at temperature 0.8: 1 / (1 + 3 exp(-2.5)) = 0.802. To reach 0.9, 2 / ln(3 * 0.9 / 0.1) = 0.6068.
    expected = (
        r"valid_threshold 0\.9 is out of reach, .* 4 classes .* above 0\.802 at .*similarity_temperature to at most 0\.606$"
    )
    with pytest.warns(UserWarning, match=expected):
        make_method(CSS, similarity_temperature=0.8, valid_threshold=0.9, hard_threshold=0.8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_method(CSS)


def test_css_needs_a_representation_head() -> None:
    def without_head() -> Segmenter:
        return make_method(Supervised).student

    with pytest.raises(ValueError, match="representation=True"):
        CSS(without_head, CSS.Config(), STILL)


def labels_of(method: CSS, batch: Any, progress: float) -> tuple[torch.Tensor, ...]:
    """The targets of both losses and the unsupervised gate."""
    with torch.no_grad():
        weak = method.teacher(batch.unlabelled_images)
        return method._pseudo_labels(weak, batch.unlabelled_valid, progress, {})[:3]


@pytest.mark.parametrize("strategy", ["mix", "cross", "representations"])
def test_prototypes_label_after_the_warm_up_only(strategy: str) -> None:
    torch.manual_seed(0)
    settings: ClassVar = OPEN | {"pseudo_labelling": strategy, "prototype_warm_up": 0.3, "cross_warm_up": 0.3}
    method = make_method(CSS, STILL, **settings)
    assert isinstance(method, CSS)
    batch = make_batch(num_labelled=6)
    with torch.no_grad():
        logits = method.teacher(batch.unlabelled_images).logits
    size = batch.unlabelled_valid.shape[1:]
    by_logits = torch.nn.functional.interpolate(logits, size=size, mode="bilinear", align_corners=True).argmax(dim=1)
    by_logits = torch.where(batch.unlabelled_valid, by_logits, IGNORE_INDEX)

    # No prototype yet: logits label, also after the warm-up.
    unsup, contrast, _ = labels_of(method, batch, 0.5)
    assert torch.equal(unsup, by_logits) and torch.equal(contrast, by_logits)
    method.prototypes.value.normal_()
    method.prototypes.seen.fill_(True)
    unsup, contrast, _ = labels_of(method, batch, 0.29)
    if strategy == "cross":  # waits for its own warm-up in any case
        assert torch.equal(unsup, by_logits) and torch.equal(contrast, by_logits)
        unsup, contrast, _ = labels_of(method, batch, 0.3)
    assert not torch.equal(unsup, by_logits)
    if strategy == "mix":
        kept = unsup != IGNORE_INDEX
        assert torch.equal(unsup[kept], by_logits[kept])
    assert torch.equal(contrast, by_logits) == (strategy == "cross")
    # A class without a prototype: logits until the warm-up is over, and then prototypes that never name it.
    method.prototypes.seen[1] = False
    assert torch.equal(labels_of(method, batch, 0.29)[0], by_logits)
    unsup = labels_of(method, batch, 0.3)[0]
    assert not torch.equal(unsup, by_logits) and not (unsup == 1).any()


def test_gates_reject_and_padding_is_never_labelled() -> None:
    torch.manual_seed(0)
    batch = make_batch(num_labelled=6)
    for gate, threshold in (("confidence", 1.0), ("similarity", 1.0), ("confidence", 0.0), ("similarity", 0.0)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            method = make_method(
                CSS,
                unsup_gate=gate,
                valid_gate=gate,
                unsup_threshold=threshold,
                valid_threshold=threshold,
                prototype_warm_up=0.0,
            )
        assert isinstance(method, CSS)
        train(method, 2, batch=batch)
        unsup, contrast, passed = labels_of(method, batch, 0.0)
        assert (unsup[~batch.unlabelled_valid] == IGNORE_INDEX).all() and not passed[~batch.unlabelled_valid].any()
        labelled = unsup != IGNORE_INDEX
        assert torch.equal(passed, batch.unlabelled_valid if threshold == 0 else torch.zeros_like(labelled))
        assert torch.equal(contrast != IGNORE_INDEX, labelled if threshold == 0 else torch.zeros_like(labelled))


def test_css_without_contrast_is_cutmix() -> None:
    """One code path: with the contrast's weight 0 the logits row takes exactly CutMix's step."""
    totals = []
    for method_class, settings in (
        (CutMix, {}),
        (CSS, {"pseudo_labelling": "logits", "contrast_weight": 0.0, "num_queries": 4, "num_negatives": 4}),
    ):
        torch.manual_seed(0)
        reference = make_method(CSS, STILL)  # both start from the same segmenter, though their heads differ in number
        method = make_method(method_class, STILL, unsup_threshold=0.3, **settings)
        method.load_state_dict({name: value for name, value in reference.state_dict().items() if name in method.state_dict()})
        torch.manual_seed(1)
        losses = method(make_batch(), 0.5)
        totals.append(torch.stack([losses.terms["sup"], losses.terms["unsup"]]).detach())
    assert totals[1][1] > 0
    torch.testing.assert_close(totals[0], totals[1])


def test_contrast_weight_schedules() -> None:
    for schedule, weight in (("constant", 0.5), ("ramp_down", 0.5 * 0.2865048)):  # exp(-5 / 4)
        method = make_method(CSS, contrast_weight=0.5, contrast_schedule=schedule)
        assert float(method(make_batch(), 0.5).logs["contrast_weight"]) == pytest.approx(weight)


def test_contrast_separates_the_classes() -> None:
    """Trained by labels and contrast, representations of a class come nearer to their prototype than to others."""
    torch.manual_seed(0)
    method = make_method(CSS, STILL, contrast_schedule="constant", num_queries=32, num_negatives=32)
    batch = dataclasses.replace(make_batch(num_labelled=6), unlabelled_valid=torch.zeros(2, 24, 24, dtype=torch.bool))
    first = method(batch, 0.0).terms["contrast"].item()
    train(method, 40, batch=batch)
    last = method(batch, 0.0).terms["contrast"].item()
    assert last < 0.9 * first, (first, last)
    assert int(method(batch, 0.0).logs["num_seen_classes"]) == NUM_CLASSES
