"""The contract finds what it is there to find: each method here breaks one rule, and one test of the contract says so."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from css_ray.config import knob
from css_ray.methods import Method, Supervised
from css_ray.methods.stages import Stage
from css_ray.methods.teacher import Teacher
from css_ray.models import Segmenter
from css_ray.testing import NUM_CLASSES, SIZE, MethodContract, make_batch, make_method
from css_ray.types import IGNORE_INDEX, Batch, Clock, Losses, Prediction

TESTS = [name for name in vars(MethodContract) if name.startswith("test_")]


class Kept(Supervised):
    """Breaks no rule."""

    name = "kept"


class Infinite(Supervised):
    def forward(self, batch: Batch, clock: Clock) -> Losses:
        losses = super().forward(batch, clock)
        return Losses({**losses.terms, "far": 0 * losses.total + math.inf})


class Idle(Supervised):
    def forward(self, batch: Batch, clock: Clock) -> Losses:
        return Losses({**super().forward(batch, clock).terms, "idle": torch.zeros((), requires_grad=True)})


class Aloof(Supervised):
    """A loss that never reaches the student."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, batch: Batch, clock: Clock) -> Losses:
        return Losses({**super().forward(batch, clock).terms, "aloof": self.scale.square()})


class TrainedTeacher(Supervised):
    """A loss that teaches the teacher."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.teacher = Teacher(self.student, 0.9)
        self.teacher.requires_grad_(True)

    def forward(self, batch: Batch, clock: Clock) -> Losses:
        both = self.teacher.model(batch.unlabelled_images).logits - self.student(batch.unlabelled_images).logits
        return Losses({**super().forward(batch, clock).terms, "apart": both.square().mean()})

    def predictor(self) -> Segmenter:
        return self.teacher.model


class Counting(Supervised):
    """State that no state_dict has."""

    steps = 0

    def forward(self, batch: Batch, clock: Clock) -> Losses:
        losses = super().forward(batch, clock)
        return Losses({name: term * (1 + self.steps) for name, term in losses.terms.items()})

    def after_step(self, clock: Clock) -> None:
        self.steps += 1


class OwnChance(Supervised):
    """Randomness that no generator of torch has."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.chance = torch.Generator().manual_seed(1)

    def forward(self, batch: Batch, clock: Clock) -> Losses:
        factor = 1 + torch.rand((), generator=self.chance)
        return Losses({name: term * factor for name, term in super().forward(batch, clock).terms.items()})


class Skipping(Supervised):
    """No gradient from a batch without a labelled pixel."""

    def forward(self, batch: Batch, clock: Clock) -> Losses:
        if (batch.labels == IGNORE_INDEX).all():
            return Losses({"sup": torch.ones((), requires_grad=True)})
        return super().forward(batch, clock)


class Dividing(Supervised):
    """0 / 0 where all unlabelled pixels are padding."""

    def forward(self, batch: Batch, clock: Clock) -> Losses:
        losses = super().forward(batch, clock)
        return Losses(
            {name: term * (batch.unlabelled_valid.sum() / batch.unlabelled_valid.sum()) for name, term in losses.terms.items()}
        )


class Chatty(Supervised):
    """A log that carries a gradient."""

    def forward(self, batch: Batch, clock: Clock) -> Losses:
        losses = super().forward(batch, clock)
        return Losses(losses.terms, logs={"sup_again": losses.total})


class Deaf(Supervised):
    """A setting that nothing reads, though the rules between settings do."""

    @dataclass(frozen=True, kw_only=True)
    class Config(Supervised.Config):
        volume: float = knob(1.0, help="never read", gt=0)

        def problems(self) -> Any:
            yield from super().problems()
            if self.volume > 11:
                yield "volume must be <= 11"


class Shrunk(Supervised):
    """A predictor at the decoder's size."""

    def predictor(self) -> Any:
        class Small(torch.nn.Module):
            def __init__(self, student: Segmenter) -> None:
                super().__init__()
                self.student = student

            def predict(self, images: Tensor) -> Tensor:
                prediction: Prediction = self.student(images)
                return prediction.logits

        return Small(self.student)


class Halting(Supervised):
    """A second stage that trains the encoder no more, and does not freeze it."""

    def stages(self) -> tuple[Stage, ...]:
        return Stage("whole", 0.5), Stage("head", 0.5)

    def forward(self, batch: Batch, clock: Clock) -> Losses:
        if not clock.stage:
            return super().forward(batch, clock)
        with torch.no_grad():
            features = self.student.decode(self.student.encode(batch.labelled_images))
        return Losses({"sup": self.supervised(self.student.classify(features), batch.labels)})


BREACHES: dict[type[Method], tuple[str, str]] = {
    Infinite: ("each_loss_is_finite", "the loss far must be finite and > 0, got inf"),
    Idle: ("each_loss_is_finite", "the loss idle must be finite and > 0, got 0.0"),
    Aloof: ("each_loss_is_finite", "the loss aloof gives the student no gradient"),
    TrainedTeacher: ("each_loss_is_finite", "the loss apart gives the predictor a gradient"),
    Counting: ("state_and_generator", "keep all state in parameters and buffers"),
    OwnChance: ("state_and_generator", "draw from torch's default generator"),
    Skipping: ("every_parameter", "has no gradient from a batch with no labelled pixel"),
    Dividing: ("every_parameter", "is not finite from a batch with all classes and nothing but padding"),
    Chatty: ("logs_are_finite", "the log sup_again carries a gradient"),
    Deaf: ("every_setting", "the setting volume is never read"),
    Halting: ("every_stage", "has no gradient in the stage head at progress 0.0"),
    Shrunk: ("the_predictor", "must give logits of the shape (1, 4, 19, 25)"),
}


def check(method: type[Method], test: str) -> None:
    """Run one test of the contract on a method, as pytest does."""
    contract = type("Of", (MethodContract,), {"method_class": method})()
    contract.setup_method()
    try:
        getattr(contract, test)()
    finally:
        contract.teardown_method()


@pytest.mark.parametrize("name", TESTS)
def test_a_method_that_breaks_no_rule_passes(name: str) -> None:
    check(Kept, name)


@pytest.mark.parametrize("method", BREACHES)
def test_a_breach_is_found_and_named(method: type[Method]) -> None:
    rule, sentence = BREACHES[method]
    (name,) = [name for name in TESTS if rule in name]
    with pytest.raises(AssertionError) as caught:
        check(method, name)
    assert sentence in str(caught.value)


def test_a_test_leaves_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        check(Kept, "test_every_setting_is_read")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_every_rule_has_a_breach() -> None:
    assert len({rule for rule, _ in BREACHES.values()}) == len(TESTS)


def test_a_batch_is_its_seed_and_has_what_a_real_one_has() -> None:
    batch, again, other = make_batch(3, 5, 2), make_batch(3, 5, 2), make_batch(4, 5, 2)
    assert torch.equal(batch.labelled_images, again.labelled_images) and not torch.equal(batch.labels, other.labels)
    assert batch.labelled_images.shape == (5, 3, SIZE, SIZE) and batch.unlabelled_valid.shape == (2, SIZE, SIZE)
    assert set(batch.labels.unique().tolist()) == {*range(NUM_CLASSES), IGNORE_INDEX}  # type: ignore[no-untyped-call]
    assert 0 < (~batch.unlabelled_valid).sum() < batch.unlabelled_valid.sum()


def test_settings_override_the_preset() -> None:
    assert make_method(Supervised, ohem=True).config.ohem and not make_method(Supervised).config.ohem
    with pytest.raises(ValueError, match="no preset"):
        make_method(Supervised, preset="other")
