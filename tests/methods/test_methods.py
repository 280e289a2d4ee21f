"""The contract over all methods, and what each adds to it."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any, ClassVar, Literal

import pytest
import torch

from css_ray.functional.similarity import class_means, class_sums
from css_ray.methods import CSS, METHODS, CutMix, MeanTeacher, Supervised, css
from css_ray.methods.prototypes import Prototypes
from css_ray.methods.teacher import Teacher
from css_ray.models import Segmenter
from css_ray.testing import NUM_CLASSES, MethodContract, batch_of, clock_at, enter_stages, make_batch, make_method, train
from css_ray.types import IGNORE_INDEX, Prediction
from css_ray.views import Views

OPEN = {"unsup_threshold": 0.0, "valid_threshold": 0.0, "hard_threshold": 1.0, "num_queries": 16, "num_negatives": 16}
"""Gates that let every pixel pass, so that each loss acts from the first step."""

PARTLY_OPEN = {"unsup_threshold": 0.3, "valid_threshold": 0.2, "num_queries": 16, "num_negatives": 16}
"""Gates that some of an untrained network's pixels pass: what the golden losses are of."""

STILL = Views(scale=(1.0, 1.0), strong_scale=(1.0, 1.0), flip=False, jitter=0.0, jitter_probability=0.0, blur_probability=0.0)
"""No random change of any view but CutMix."""


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("colours", ["strong", "plain"])
def test_all_methods_see_labelled_images_with_the_colours_that_the_study_asks_for(
    name: str, colours: Literal["strong", "plain"]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        method = enter_stages(make_method(METHODS[name], Views(labelled_colours=colours)))
    batch = batch_of(method)
    labelled = batch.labelled_images if batch.pseudo is None else batch.labelled_images[~batch.pseudo]
    seen: list[torch.Tensor] = []
    method.strong_colours = lambda images: 1 - images  # type: ignore[method-assign]
    method.student.encoder.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    method(batch, clock_at(0.5, method.stage))
    shown = {image.numpy().tobytes() for images in seen for image in images}
    student = method.student

    def found(images: torch.Tensor) -> bool:
        return all(image.numpy().tobytes() in shown for image in (images - student.mean) / student.std)

    assert found(1 - labelled) == (colours == "strong") and found(labelled) == (colours == "plain")


class TestSupervised(MethodContract):
    method_class = Supervised


class TestSupervisedOnHardPixels(MethodContract):
    method_class = Supervised
    settings: ClassVar = {"ohem": True, "ohem_threshold": 0.1, "ohem_min_kept": 10}
    golden: ClassVar = None


class TestMeanTeacher(MethodContract):
    method_class = MeanTeacher
    settings: ClassVar = {"unsup_threshold": 0.0}
    golden: ClassVar = {"unsup_threshold": 0.3}


class TestMeanTeacherOnProbabilities(MethodContract):
    method_class = MeanTeacher
    settings: ClassVar = {"consistency": "probabilities", "ramp_up": 0.5}
    golden: ClassVar = None


class TestCutMix(MethodContract):
    method_class = CutMix
    settings: ClassVar = {"unsup_threshold": 0.0}
    golden: ClassVar = {"unsup_threshold": 0.3}


class TestCSSLogits(MethodContract):
    method_class = CSS
    settings: ClassVar = OPEN | {"pseudo_labelling": "logits", "indicator": "confidence"}
    golden: ClassVar = PARTLY_OPEN | {"pseudo_labelling": "logits", "indicator": "confidence"}


class TestCSSRepresentations(MethodContract):
    method_class = CSS
    settings: ClassVar = OPEN | {"pseudo_labelling": "representations", "unsup_gate": "similarity", "prototype_warm_up": 0.0}
    golden: ClassVar = PARTLY_OPEN | {"pseudo_labelling": "representations"}


class TestCSSMix(MethodContract):
    method_class = CSS
    settings: ClassVar = OPEN | {"prototype_warm_up": 0.02, "negatives": "per_anchor"}
    golden: ClassVar = PARTLY_OPEN


class TestCSSCross(MethodContract):
    method_class = CSS
    settings: ClassVar = OPEN | {"pseudo_labelling": "cross", "prototype_source": "student"}
    golden: ClassVar = PARTLY_OPEN | {"pseudo_labelling": "cross", "cross_warm_up": 0.03}


class TestCSSPaper(MethodContract):
    method_class = CSS
    preset = "paper"
    settings: ClassVar = OPEN
    golden: ClassVar = PARTLY_OPEN


class TestCSSPublished(MethodContract):
    method_class = CSS
    preset = "published"
    settings: ClassVar = OPEN | {"joint_forward": True}
    golden: ClassVar = PARTLY_OPEN


class TestBaselinePublished(MethodContract):
    method_class = CSS
    preset = "published"
    settings: ClassVar = OPEN | {"pseudo_labelling": "logits", "contrast_mean": "active"}
    golden: ClassVar = None


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
    prototypes.update((first, labels))
    prototypes.update((second, labels))
    assert prototypes.seen.tolist() == [True, False, True]
    old, new = (class_means(*class_sums(rows, labels, 3)) for rows in (first, second))
    expected = 0.75 * old + 0.25 * new
    torch.testing.assert_close(prototypes.value, expected)


# CSS


def gates_and_thresholds(**settings: Any) -> tuple[Any, ...]:
    config: Any = CSS.configure(**settings)
    return config.gates, (config.unsup_threshold, config.valid_threshold, config.hard_threshold)


def test_presets_are_those_of_the_specification() -> None:
    c, s = "confidence", "similarity"
    assert gates_and_thresholds() == gates_and_thresholds(preset="paper") == ((c, s, s), (0.97, 0.7, 0.8))
    # mix_label.py, cross_label.py, ori_pseudo.py.
    assert gates_and_thresholds(preset="published") == ((c, c, s), (0.97, 0.7, 0.8))
    assert gates_and_thresholds(preset="published", pseudo_labelling="cross") == ((s, c, s), (0.97, 0.7, 0.8))
    assert gates_and_thresholds(preset="published", pseudo_labelling="logits") == ((c, c, c), (0.97, 0.7, 0.97))
    assert gates_and_thresholds(preset="published", pseudo_labelling="logits", hard_threshold=0.5)[1][2] == 0.5
    assert gates_and_thresholds(preset="published", indicator="similarity")[0] == (s, s, s)

    # τ of the contrast and of the indicator, L_u, λ_c, prototypes, CutMix and padding, warm-up of cross.
    def rest(preset: str, labelling: str) -> tuple[Any, ...]:
        config: Any = CSS.configure(preset, pseudo_labelling=labelling)
        prototypes = config.prototype_source, config.prototype_ranks, config.unseen_prototypes
        temperatures = config.temperature, config.indicator_temperature
        views = config.cutmix_partner, config.padding, config.cross_warm_up
        return *temperatures, config.unsup_reduction, config.contrast_schedule, prototypes, views

    shipped = ("teacher", "joint", "masked"), ("local", "ignored", 0.1)
    for labelling in ("mix", "cross", "logits"):
        assert rest("default", labelling) == (0.5, 0.1, "image_fraction", "ramp_down", *shipped)
        assert rest("paper", labelling) == (0.1, 0.1, "pixel", "constant", *shipped)
        schedule = "constant" if labelling == "logits" else "published_epochs"
        prototypes, views = ("student", "own", "zero"), ("rank_zero", "labelled", 0.0)
        assert rest("published", labelling) == (0.5, 0.5, "image_fraction_overcounted", schedule, prototypes, views)
    # Where the cells of the representations read their labels: floor(j H / h) is a drift of the released code's.
    presets: dict[str, Any] = {preset: CSS.configure(preset) for preset in CSS.presets}
    assert {preset: config.label_grid for preset, config in presets.items()} == {
        "default": "aligned",
        "paper": "aligned",
        "published": "corner",
    }
    paper: Any = CSS.configure("paper", temperature=0.2)
    assert paper.indicator_temperature == 0.2  # one τ
    with pytest.raises(ValueError, match="css has no preset 'exact'; it has default, paper, published"):
        CSS.configure("exact")
    with pytest.raises(ValueError, match="cutmix has no preset 'paper'"):
        CutMix.configure("paper")


@pytest.mark.parametrize(
    ("indicator", "gates"),
    [
        ("confidence", ("confidence", "confidence", "confidence")),
        ("similarity", ("similarity", "similarity", "similarity")),
        ("mix", ("confidence", "similarity", "similarity")),
    ],
)
def test_the_rows_of_table_6_are_one_setting(indicator: str, gates: tuple[str, ...]) -> None:
    assert gates_and_thresholds(indicator=indicator)[0] == gates
    assert gates_and_thresholds(indicator=indicator, valid_gate="confidence")[0] == (gates[0], "confidence", gates[2])


def test_cross_is_gated_by_confidence_unless_a_gate_is_named() -> None:
    c, s = "confidence", "similarity"
    for indicator, expected in {"confidence": (c, c, c), "similarity": (s, c, s), "mix": (c, c, s)}.items():
        assert gates_and_thresholds(pseudo_labelling="cross", indicator=indicator)[0] == expected
    assert gates_and_thresholds(pseudo_labelling="cross", valid_gate=None)[0] == (c, s, s)  # as `indicator`
    assert gates_and_thresholds(pseudo_labelling="cross", valid_gate="similarity")[0] == (c, s, s)
    assert gates_and_thresholds(preset="paper", pseudo_labelling="cross")[0] == (c, c, s)


@pytest.mark.parametrize("labelling", ["cross", "logits", "mix", "representations"])
def test_a_gate_that_hides_where_the_spaces_disagree_is_a_warning(labelling: Any) -> None:
    def told(**settings: Any) -> bool:
        config = CSS.Config(pseudo_labelling=labelling, **settings)
        return any("no pixel on which the two spaces disagree" in each for each in CSS.warnings(config, 6))

    hides = labelling in ("cross", "logits")
    assert told(valid_gate="similarity") == hides
    assert not told(valid_gate="similarity", valid_threshold=0.5)
    assert not told(valid_gate="confidence")
    assert told() == (labelling == "logits")  # the default of cross is confidence


def test_above_one_half_a_similarity_is_the_largest_of_its_pixel() -> None:
    """Why that gate hides them: entries of a softmax add up to 1."""
    entries = torch.rand(1000, 5, generator=torch.Generator().manual_seed(0)).mul(6).softmax(dim=1)
    above = entries > 0.5
    assert above.sum() > 100 and torch.equal(above.nonzero()[:, 1], entries[above.any(dim=1)].argmax(dim=1))


def two_spaces(monkeypatch: pytest.MonkeyPatch, method: CSS, logits: torch.Tensor, cosines: torch.Tensor) -> None:
    """Let the teacher say `logits` [C] and cosines [C] at every pixel."""

    def spread(values: torch.Tensor) -> torch.Tensor:
        return values.view(1, -1, 1, 1).expand(2, -1, 4, 4)

    monkeypatch.setattr(method.teacher, "forward", lambda images: Prediction(spread(logits), torch.zeros(2, 6, 4, 4)))
    monkeypatch.setattr(css, "cosine_similarity", lambda representations, prototypes: spread(cosines))


def test_valid_and_hard_gates_look_at_the_target_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cross teaches the contrast by the logits' class; what counts is the similarity to that class, not the largest."""
    batch = make_batch()
    logits = torch.tensor([0.0, 2.0, 0.0, 0.0])  # class 1
    cosines = torch.tensor([0.2, 0.1, 0.0, 0.0])  # class 0 before class 1
    similarity = torch.softmax(cosines / 0.1, dim=0)
    between = float(similarity[0] + similarity[1]) / 2
    for threshold, kept in ((between, False), (float(similarity[1]) - 1e-4, True)):
        method = make_method(
            CSS,
            STILL,
            pseudo_labelling="cross",
            valid_gate="similarity",
            cross_warm_up=0.0,
            prototype_warm_up=0.0,
            valid_threshold=threshold,
        )
        assert isinstance(method, CSS)
        method.prototypes.seen.fill_(True)
        two_spaces(monkeypatch, method, logits, cosines)
        unsup, contrast, _ = labels_of(method, batch, 0.5)
        assert set(unsup[batch.unlabelled_valid].tolist()) == {0}
        assert set(contrast[batch.unlabelled_valid].tolist()) == ({1} if kept else {IGNORE_INDEX})
        # Hard: the student's similarity to the target class 1 lies below the threshold, to class 0 above.
        student = Prediction(torch.zeros(2, 4, 4, 4), torch.zeros(2, 6, 4, 4))
        targets = torch.tensor([[[0], [1]]]).expand(2, 2, 4).repeat_interleave(2, dim=1)
        monkeypatch.setattr(method, "config", dataclasses.replace(method.config, hard_threshold=between))
        prototypes = method.prototypes
        hard = method._hard(student, student, torch.zeros(2, 6, 4, 4), targets, prototypes.value, prototypes.seen)
        assert torch.equal(hard, targets == 1)


def test_a_zero_vector_competes_only_where_it_is_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """All cosines to seen classes negative: the unseen class 3, at cosine 0, wins in the released code alone."""
    batch = make_batch()
    cosines = torch.tensor([-0.3, -0.1, -0.5, 0.0])
    for unseen, winner in (("masked", 1), ("zero", 3)):
        method = make_method(CSS, STILL, pseudo_labelling="representations", prototype_warm_up=0.0, unseen_prototypes=unseen)
        assert isinstance(method, CSS)
        method.prototypes.seen[:3] = True
        two_spaces(monkeypatch, method, torch.zeros(4), cosines)
        assert set(labels_of(method, batch, 0.5)[0][batch.unlabelled_valid].tolist()) == {winner}


@pytest.mark.parametrize("padding", ["ignored", "labelled"])
def test_padding_is_labelled_only_where_it_is_published(padding: str) -> None:
    batch = make_batch()
    everywhere = dataclasses.replace(batch, unlabelled_valid=torch.ones_like(batch.unlabelled_valid))
    terms = []
    for seen in (batch, everywhere):
        torch.manual_seed(0)
        method = make_method(
            CSS, STILL, padding=padding, pseudo_labelling="logits", indicator="confidence", unsup_threshold=0.0
        )
        terms.append(method(seen, clock_at(0.5)).terms["unsup"].item())
    assert (terms[0] == terms[1]) == (padding == "labelled")


def test_one_forward_pass_or_two_differ_by_batch_statistics_only() -> None:
    for method_class in (CutMix, CSS):
        totals = []
        for joint in (False, True):
            torch.manual_seed(0)
            method = make_method(method_class, STILL, joint_forward=joint, unsup_threshold=0.0).eval()
            totals.append(method(make_batch(), clock_at(0.5)).total.detach())
        torch.testing.assert_close(totals[0], totals[1])


def test_pseudo_labels_by_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Table 4: what each space would label, sampled by its own threshold, and what both agree on."""
    method = make_method(CSS, STILL, unsup_threshold=0.6, valid_threshold=0.5)
    assert isinstance(method, CSS)
    method.prototypes.seen.fill_(True)
    # Two pixels: sure of class 2 in both spaces; unsure of class 1 in logits, sure of class 0 by similarity.
    logits = torch.tensor([[0.0, 0.0, 3.0, 0.0], [0.0, 0.5, 0.0, 0.0]]).T.reshape(1, 4, 1, 2)
    cosines = torch.tensor([[0.0, 0.0, 0.9, 0.0], [0.9, 0.1, 0.0, 0.0]]).T.reshape(1, 4, 1, 2)
    monkeypatch.setattr(method.teacher.model, "forward", lambda images: Prediction(logits, torch.zeros(1, 6, 1, 2)))
    monkeypatch.setattr(css, "cosine_similarity", lambda representations, prototypes: cosines)
    found = method.eval().pseudo_labels(torch.zeros(1, 3, 1, 2))
    assert {source: labels.flatten().tolist() for source, labels in found.items()} == {
        "logits": [2, IGNORE_INDEX],
        "representations": [2, 0],
        "mix": [2, IGNORE_INDEX],
    }


def test_diagnostics_say_what_the_thresholds_meet() -> None:
    torch.manual_seed(0)
    method = make_method(CSS, unsup_threshold=0.0)
    train(method, 3)
    losses = method(make_batch(), clock_at(0.5))
    assert isinstance(method, CSS)
    found = losses.diagnostics()
    for name in ("confidence", "similarity"):
        assert 0 < found[f"{name}_q05"] <= found[f"{name}_q50"] <= found[f"{name}_q95"] <= 1
    # The closest pair by hand.
    unit = [row / row.norm() for row in method.prototypes.value]
    pairs = {(i, j): float(unit[i] @ unit[j]) for i in range(NUM_CLASSES) for j in range(i)}
    (i, j), cosine = max(pairs.items(), key=lambda item: item[1])
    assert float(found["closest_prototypes"]) == pytest.approx(cosine, abs=1e-6)
    assert {int(found[f"closest_prototypes_{which}_class"]) for which in ("first", "second")} == {i, j}


@pytest.mark.parametrize("method_class", [MeanTeacher, CutMix, CSS])
def test_nothing_above_a_threshold_and_a_class_that_never_appears(method_class: type[Any]) -> None:
    torch.manual_seed(0)
    batch = make_batch()
    batch = dataclasses.replace(batch, labels=torch.where(batch.labels == 3, 0, batch.labels))
    method = make_method(method_class, unsup_threshold=1.0)
    totals = train(method, 5, batch=batch)
    assert torch.isfinite(torch.stack(totals)).all()
    losses = method(batch, clock_at(0.9))
    assert losses.terms["unsup"].item() == 0 and losses.logs["unsup_pass_rate"].part.item() == 0
    if isinstance(method, CSS):
        assert not method.prototypes.seen[3]
        assert torch.isfinite(torch.stack(list(losses.diagnostics().values()))).all()


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


def test_spaces_of_a_few_images_at_a_time_are_those_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    settings: dict[str, Any] = dict(OPEN)
    method = make_method(CSS, STILL, **settings)
    assert isinstance(method, CSS)
    method.prototypes.value.normal_()
    method.prototypes.seen.fill_(True)
    batch = make_batch()
    with torch.no_grad():
        method.teacher.model.eval()
        together = method.pseudo_labels(batch.unlabelled_images), labels_of(method.eval(), batch, 0.5)
        monkeypatch.setattr("css_ray.methods.css._MAP_BYTES", 1)
        assert len(list(method._spaces(method.teacher(batch.unlabelled_images), batch.unlabelled_valid))) > 1
        alone = method.pseudo_labels(batch.unlabelled_images), labels_of(method, batch, 0.5)
    torch.testing.assert_close(alone, together, rtol=0, atol=0)


@pytest.mark.parametrize("strategy", ["mix", "cross", "representations"])
def test_prototypes_label_after_the_warm_up_only(strategy: str) -> None:
    torch.manual_seed(0)
    settings: dict[str, Any] = OPEN | {"pseudo_labelling": strategy, "prototype_warm_up": 0.3, "cross_warm_up": 0.3}
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
    logits: dict[str, Any] = {"pseudo_labelling": "logits", "indicator": "confidence", "contrast_weight": 0.0}
    for method_class, settings in ((CutMix, {}), (CSS, logits)):
        torch.manual_seed(0)
        reference = make_method(CSS, STILL)  # both start from the same segmenter, though their heads differ in number
        method = make_method(method_class, STILL, unsup_threshold=0.3, **settings)
        method.load_state_dict({name: value for name, value in reference.state_dict().items() if name in method.state_dict()})
        torch.manual_seed(1)
        losses = method(make_batch(), clock_at(0.5))
        totals.append(torch.stack([losses.terms["sup"], losses.terms["unsup"]]).detach())
    assert totals[1][1] > 0
    torch.testing.assert_close(totals[0], totals[1])


def test_contrast_weight_schedules() -> None:
    batch = dataclasses.replace(make_batch(), labelled_epoch=50)
    ramp, epochs = 0.5 * 0.2865048, 0.5 * 0.7316156  # exp(-5 / 4), exp(-5 / 16)
    for schedule, weight in (("constant", 0.5), ("ramp_down", ramp), ("published_epochs", epochs)):
        method = make_method(CSS, contrast_weight=0.5, contrast_schedule=schedule)
        assert float(method(batch, clock_at(0.5)).logs["contrast_weight"]) == pytest.approx(weight)
    late = dataclasses.replace(batch, labelled_epoch=201)
    assert float(method(late, clock_at(0.5)).logs["contrast_weight"]) == 0


def test_contrast_separates_the_classes() -> None:
    """Trained by labels and contrast, representations of a class come nearer to their prototype than to others."""
    torch.manual_seed(0)
    method = make_method(CSS, STILL, contrast_schedule="constant", num_queries=32, num_negatives=32)
    batch = dataclasses.replace(make_batch(num_labelled=6), unlabelled_valid=torch.zeros(2, 24, 24, dtype=torch.bool))
    first = method(batch, clock_at(0.0)).terms["contrast"].item()
    train(method, 40, batch=batch)
    last = method(batch, clock_at(0.0)).terms["contrast"].item()
    assert last < 0.9 * first, (first, last)
    assert int(method(batch, clock_at(0.0)).logs["num_seen_classes"]) == NUM_CLASSES
