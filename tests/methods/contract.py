"""What every method must keep. A method's test class states the method and inherits the rest."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import re
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from css_ray.methods import Method
from css_ray.models import ModelConfig, Segmenter, make_segmenter
from css_ray.types import IGNORE_INDEX, Batch
from css_ray.views import Views

torch.set_num_threads(1)  # the networks are so small that threads would only wait for each other

NUM_CLASSES, SIZE = 4, 24
MODEL = ModelConfig(
    encoder="tiny", output_stride=4, pretrained=False, decoder_channels=8, low_level_channels=4, representation_dim=6
)


def make_batch(seed: int = 0, num_labelled: int = 3, num_unlabelled: int = 2) -> Batch:
    """Blocks of colour whose class is their colour, so that a few steps learn something; some void, some padding."""
    generator = torch.Generator().manual_seed(seed)

    def scenes(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(0, NUM_CLASSES, (count, 3, 3), generator=generator)
        labels = labels.repeat_interleave(SIZE // 3, dim=1).repeat_interleave(SIZE // 3, dim=2)
        images = labels.unsqueeze(1) / NUM_CLASSES * torch.tensor([1.0, 0.5, 0.2]).view(1, 3, 1, 1)
        return images + 0.1 * torch.rand(images.shape, generator=generator), labels

    labelled_images, labels = scenes(num_labelled)
    labels[:, :4] = IGNORE_INDEX
    unlabelled_images, _ = scenes(num_unlabelled)
    valid = torch.ones(num_unlabelled, SIZE, SIZE, dtype=torch.bool)
    valid[:, :, -3:] = False
    return Batch(labelled_images, labels, unlabelled_images, valid)


def make_method(method_class: type[Method], views: Views | None = None, preset: str = "default", **changes: Any) -> Method:
    def segmenter() -> Segmenter:
        return make_segmenter(MODEL, NUM_CLASSES, representation=method_class.needs_representations)

    return method_class(segmenter, method_class.configure(preset, **changes), views or Views())


def train(
    method: Method, steps: int, start: int = 0, batch: Batch | None = None, progress: float | None = None
) -> list[Tensor]:
    """The total loss of each step of plain SGD; without a given progress, that of a training of 100 steps."""
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.05)
    totals = []
    for step in range(start, start + steps):
        losses = method(batch or make_batch(step), step / 100 if progress is None else progress)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        method.after_step()
        totals.append(losses.total.detach())
    return totals


def gradients(module: nn.Module) -> list[Tensor | None]:
    return [parameter.grad for parameter in module.parameters()]


class MethodContract:
    """Subclass as `class TestX(MethodContract): method_class = X`; `settings` chooses values that let all its losses act."""

    method_class: ClassVar[type[Method]]
    settings: ClassVar[dict[str, Any]] = {}
    preset: ClassVar[str] = "default"

    def make(self, **changes: Any) -> Method:
        torch.manual_seed(0)
        return make_method(self.method_class, preset=self.preset, **(self.settings | changes))

    def test_each_loss_is_finite_and_reaches_the_student_only(self) -> None:
        method = self.make()
        train(method, 5)
        for name in method(make_batch(), 0.5).terms:
            method.zero_grad()
            term = method(make_batch(), 0.5).terms[name]
            assert torch.isfinite(term) and term > 0, name
            term.backward()
            reached = [gradient for gradient in gradients(method.student.encoder) if gradient is not None]
            assert any(gradient.abs().sum() > 0 for gradient in reached), name
            assert all(torch.isfinite(gradient).all() for gradient in reached), name
            if method.predictor() is not method.student:
                assert all(gradient is None for gradient in gradients(method.predictor())), name

    def test_logs_are_finite_scalars_without_gradient(self) -> None:
        for name, value in self.make()(make_batch(), 0.5).logs.items():
            assert value.dim() == 0 and torch.isfinite(value) and not value.requires_grad, name

    def test_state_and_generator_resume_the_same_steps_bit_for_bit(self) -> None:
        method = self.make()
        train(method, 4)
        state, generator = copy.deepcopy(method.state_dict()), torch.get_rng_state()
        straight = train(method, 3, start=4)
        resumed = self.make()
        resumed.load_state_dict(state)
        torch.set_rng_state(generator)
        assert torch.equal(torch.stack(train(resumed, 3, start=4)), torch.stack(straight))
        for name, value in method.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], value), name

    def test_every_parameter_gets_a_gradient_from_any_batch(self) -> None:
        batch = make_batch()
        one_class = torch.where(batch.labels == IGNORE_INDEX, batch.labels, 0)
        void = torch.full_like(batch.labels, IGNORE_INDEX)
        nowhere = torch.zeros_like(batch.unlabelled_valid)
        for labels in (batch.labels, one_class, void):
            for valid in (batch.unlabelled_valid, nowhere):
                method = self.make()
                train(method, 2, batch=dataclasses.replace(batch, labels=labels, unlabelled_valid=valid), progress=0.5)
                for name, parameter in method.student.named_parameters():
                    assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
                assert all(torch.isfinite(value).all() for value in method.state_dict().values())

    def test_every_setting_is_read(self) -> None:
        source = "".join(
            # Without the Config classes themselves, where each name stands once anyway.
            re.sub(r"(?ms)^    class Config.*?^    config: Config$", "", inspect.getsource(inspect.getmodule(base)))  # type: ignore[arg-type]
            for base in self.method_class.__mro__
            if issubclass(base, Method)
        )
        properties = inspect.getmembers(self.method_class.Config, lambda member: isinstance(member, property))
        source += "".join(inspect.getsource(member.fget) for _, member in properties)
        for field in dataclasses.fields(self.method_class.Config):
            assert re.search(rf"\b(config|self)\.{field.name}\b", source), f"{field.name} is never read"

    def test_the_predictor_gives_logits_at_image_size(self) -> None:
        predictor = self.make().predictor().eval()
        assert predictor.predict(torch.rand(1, 3, 19, 25)).shape == (1, NUM_CLASSES, 19, 25)
