"""What both spaces of CSS make of images, against plain loops; and that the best weights keep what it takes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from css_ray.methods import METHODS
from css_ray.methods.css import CSS
from css_ray.methods.supervised import Supervised
from css_ray.study import run as study_run
from css_ray.study.definition import parse
from css_ray.study.inputs import prepare
from css_ray.study.run import execute, run_spec
from css_ray.testing import make_method
from css_ray.training.best import read_best, write_best
from css_ray.training.reporter import SilentReporter
from tests.cli.made_up import SPEC, Journal


@pytest.mark.parametrize("unseen", ["masked", "zero"])
def test_both_spaces_by_a_plain_loop(unseen: str) -> None:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "similarity_temperature": 0.2,
        "unsup_threshold": 0.278,
        "valid_threshold": 0.4,
        "unseen_prototypes": unseen,
    }
    method: Any = make_method(CSS, **settings).eval()
    num_classes, channels = method.prototypes.value.shape
    method.prototypes.value.copy_(torch.randn(num_classes, channels))
    method.prototypes.value[2] = 0
    method.prototypes.seen.copy_(torch.arange(num_classes) != 2)
    images = torch.rand(2, 3, 13, 17)
    with torch.no_grad():
        found = CSS.both_spaces(method.config, method.predictor(), method.space_state(), images)
        logits, representations = method.teacher.model(images)
    assert representations is not None
    wide = dict(size=(13, 17), mode="bilinear", align_corners=True)
    cosines = torch.zeros(2, num_classes, *representations.shape[2:])
    for image in range(2):
        for row in range(representations.shape[2]):
            for column in range(representations.shape[3]):
                z = representations[image, :, row, column].tolist()
                for each, prototype in enumerate(method.prototypes.value.tolist()):
                    length = math.dist(prototype, [0] * channels) * math.dist(z, [0] * channels)
                    product = sum(a * b for a, b in zip(z, prototype, strict=True))
                    cosines[image, each, row, column] = product / length if length else 0.0
    large, cosines = F.interpolate(logits, **wide), F.interpolate(cosines, **wide)  # type: ignore[arg-type]
    for image in range(2):
        for row in range(13):
            for column in range(17):
                at = (image, slice(None), row, column)
                scores = [math.exp(value) for value in large[at].tolist()]
                likely = max(range(num_classes), key=lambda each: scores[each])
                near = [
                    math.exp(value / 0.2) if each != 2 or unseen == "zero" else 0.0
                    for each, value in enumerate(cosines[at].tolist())
                ]
                nearest = max(range(num_classes), key=lambda each: near[each])
                here = (image, row, column)
                assert found.confidence[here].item() == pytest.approx(scores[likely] / sum(scores), abs=1e-5)
                assert found.logit_labels[here] == likely
                assert found.logit_mask[here].item() == (scores[likely] / sum(scores) >= 0.278)
                assert found.similarity[here].item() == pytest.approx(near[nearest] / sum(near), abs=1e-5)
                assert found.representation_labels[here] == nearest
                assert found.representation_mask[here].item() == (near[nearest] / sum(near) >= 0.4)
                assert found.cosine[here].item() == pytest.approx(cosines[at][likely].item(), abs=1e-5)
    assert found.logit_mask.any() and not found.logit_mask.all()  # else the thresholds showed nothing


def test_the_maps_are_what_the_pseudo_labels_are_made_of() -> None:
    torch.manual_seed(1)
    method: Any = make_method(CSS, similarity_temperature=0.1, unsup_threshold=0.3, valid_threshold=0.5).eval()
    method.prototypes.value.normal_()
    method.prototypes.seen.fill_(True)
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        found = CSS.both_spaces(method.config, method.predictor(), method.space_state(), images)
        sources = method.pseudo_labels(images)
    assert torch.equal(torch.where(found.logit_mask, found.logit_labels, 255), sources["logits"])
    assert torch.equal(torch.where(found.representation_mask, found.representation_labels, 255), sources["representations"])


def test_a_method_with_one_space_keeps_nothing_and_shows_nothing() -> None:
    method = make_method(Supervised)
    assert method.space_state() == {}
    with pytest.raises(NotImplementedError, match="supervised labels in one space"):
        Supervised.both_spaces(method.config, method.predictor(), {}, torch.rand(1, 3, 8, 8))


def test_the_best_weights_keep_the_prototypes_of_their_step(
    monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path
) -> None:
    definition = parse({**SPEC, "data": {**SPEC["data"], "root": str(data)}, "train": {**SPEC["train"], "evaluate_every": 6}})
    made: list[Any] = []
    build = study_run.build_method

    def building(*arguments: object, **options: object) -> object:
        made.append(build(*arguments, **options))  # type: ignore[arg-type]
        return made[-1]

    monkeypatch.setattr(study_run, "build_method", building)
    prepared = prepare(run_spec(definition, definition.grid_trials()[1], 0))
    execute(prepared, SilentReporter(), keep_best=lambda weights, best: write_best(tmp_path, weights, best))
    (method,) = made  # evaluated once, at its last step
    found = read_best(tmp_path)
    assert set(found.space) == {"prototypes", "seen"}
    assert torch.equal(found.space["prototypes"], method.prototypes.value) and found.space["prototypes"].abs().sum() > 0
    assert torch.equal(found.space["seen"], method.prototypes.seen)


def test_only_css_is_asked_for_its_spaces(trained: Journal) -> None:
    for trial, spaces in ((0, set()), (1, {"prototypes", "seen"})):
        assert set(read_best(trained.path.parent / f"models/trial_{trial:04d}/split_0").space) == spaces
    assert {name for name, method in METHODS.items() if "both_spaces" in vars(method)} == {"css"}
