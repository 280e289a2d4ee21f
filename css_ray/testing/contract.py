"""What every method must keep, as a test class to inherit from. Needs no pytest: each test is a method with plain asserts."""

from __future__ import annotations

import ast
import copy
import dataclasses
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from css_ray.methods import Method
from css_ray.methods.stages import BatchKind, Border
from css_ray.models import ModelConfig, Segmenter, make_segmenter
from css_ray.training.optimizer import parameter_groups
from css_ray.training.settings import TrainConfig
from css_ray.types import IGNORE_INDEX, Batch, Clock, Rate
from css_ray.views import Views

NUM_CLASSES = 4
"""Classes of the images of `make_batch`, and of the networks of `make_method`."""

SIZE = 24
"""Height and width of these images."""

MODEL = ModelConfig(
    encoder="tiny", output_stride=4, pretrained=False, decoder_channels=8, low_level_channels=4, representation_dim=6
)
"""A network that trains a step in milliseconds on a CPU, and downloads nothing."""


def make_batch(seed: int = 0, num_labelled: int = 3, num_unlabelled: int = 2, kind: BatchKind = "pair") -> Batch:
    """Blocks of colour whose class is their colour, so that a few steps learn something; some void, some padding.

    Args:
        seed: The same seed gives the same batch.
        num_labelled: B_l, the number of labelled images.
        num_unlabelled: B_u, the number of unlabelled images.
        kind: What a stage's batches show of these images, see `css_ray.methods.stages.BatchKind`.

    Returns:
        Images [B, 3, SIZE, SIZE] and labels [B_l, SIZE, SIZE] of NUM_CLASSES classes. The first four rows of the labels are
        void, and the last three columns of the unlabelled images are padding, which has no pseudo-label.
    """
    generator = torch.Generator().manual_seed(seed)

    def scenes(count: int) -> tuple[Tensor, Tensor]:
        labels = torch.randint(0, NUM_CLASSES, (count, 3, 3), generator=generator)
        labels = labels.repeat_interleave(SIZE // 3, dim=1).repeat_interleave(SIZE // 3, dim=2)
        images = labels.unsqueeze(1) / NUM_CLASSES * torch.tensor([1.0, 0.5, 0.2]).view(1, 3, 1, 1)
        return images + 0.1 * torch.rand(images.shape, generator=generator), labels

    labelled_images, labels = scenes(num_labelled)
    labels[:, :4] = IGNORE_INDEX
    unlabelled_images, pseudo_labels = scenes(num_unlabelled)
    valid = torch.ones(num_unlabelled, SIZE, SIZE, dtype=torch.bool)
    valid[:, :, -3:] = False
    if kind == "pair":
        return Batch(labelled_images, labels, unlabelled_images, valid)
    pseudo = None
    if kind == "union":
        labelled_images = torch.cat([labelled_images, unlabelled_images])
        labels = torch.cat([labels, torch.where(valid, pseudo_labels, IGNORE_INDEX)])
        pseudo = torch.arange(len(labels)) >= num_labelled
    return Batch(labelled_images, labels, unlabelled_images[:0], valid[:0], pseudo=pseudo)


def make_method(
    method_class: type[Method],
    views: Views | None = None,
    preset: str = "default",
    network: ModelConfig = MODEL,
    **changes: Any,
) -> Method:
    """A method over a small network, initialised from torch's generator.

    Args:
        method_class: The method.
        views: How images are augmented; the defaults of a study if not given.
        preset: One of the method's presets.
        network: What its segmenters are.
        **changes: Settings that override the preset's.

    Raises:
        ValueError: If the preset is unknown or a setting is out of its bounds.
    """

    def segmenter() -> Segmenter:
        return make_segmenter(network, NUM_CLASSES, representation=method_class.needs_representations)

    return method_class(segmenter, method_class.configure(preset, **changes), views or Views())


def clock_at(progress: float, stage: int = 0) -> Clock:
    """The time at which this share of a stage, counted from 0, is done."""
    return Clock(round(progress * 10_000), 10_000, stage)


def batch_of(method: Method, seed: int = 0) -> Batch:
    """The batch of this seed as the method's stage sees it."""
    return make_batch(seed, kind=method.stages()[method.stage].batch)


class LabelsInMemory:
    """Pseudo-labels of a border that are kept in memory; see `css_ray.methods.stages.PseudoLabels`.

    Args:
        images: By id, each [3, H, W].
    """

    digest = ""

    def __init__(self, images: Mapping[str, Tensor]) -> None:
        self._all, self.made = images, dict[str, Tensor]()
        self.ids = tuple(sorted(images))

    @property
    def labelled(self) -> tuple[str, ...]:
        """The ids of the images that have labels."""
        return tuple(sorted(self.made))

    def images(self, ids: Sequence[str]) -> Iterator[tuple[Sequence[str], Tensor]]:
        """All images of these ids, one by one."""
        return (((id,), self._all[id].unsqueeze(0)) for id in ids)

    def put(self, labels: Iterable[tuple[str, Tensor]]) -> None:
        """Keep these labels [H, W] by their ids."""
        self.made |= dict(labels)

    def open(self, digest: str) -> None:
        """There is nothing to read."""


def enter_stages(method: Method, last: int = -1) -> Method:
    """Let a method enter its stages up to the one numbered `last`, the very last by default, and freeze what it freezes there.

    At the borders it finds the images of two batches of `make_batch`.
    """
    batches = make_batch(100), make_batch(101)
    images = torch.cat([batch.unlabelled_images for batch in batches])
    border = Border(
        pseudo_labels=LabelsInMemory({str(number): image for number, image in enumerate(images)}),
        labelled=lambda: [(batch.labelled_images, batch.labels) for batch in batches],
        unlabelled=lambda: [batch.unlabelled_images for batch in batches],
    )
    for number in range(len(method.stages()) if last < 0 else last + 1):
        method.stage = number
        method.enter(border)
        parameter_groups(method, TrainConfig())
    return method


def train(
    method: Method, steps: int, start: int = 0, batch: Batch | None = None, progress: float | None = None
) -> list[Tensor]:
    """Train a method by plain SGD.

    Args:
        method: The method, trained in place.
        steps: The number of steps.
        start: Index of the first step, of a training of 100 steps.
        batch: The batch of every step; one per step, as its stage has them, seeded by its index, if not given.
        progress: The progress that every step gets; its share of the 100 steps if not given.

    Returns:
        The total loss of each step, a detached scalar.
    """
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.05)
    totals = []
    for step in range(start, start + steps):
        clock = clock_at(step / 100 if progress is None else progress, method.stage)
        losses = method(batch or batch_of(method, step), clock)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        method.after_step(clock)
        totals.append(losses.total.detach())
    return totals


class MethodContract:
    """The tests of a method. Subclass as `class TestX(MethodContract): method_class = X`.

    Attributes:
        method_class: The method under test.
        settings: Settings of the method that let all its losses act from the first step, such as a threshold of 0.
        preset: The preset that `settings` override.
        network: What its segmenters are; one of another kind, such as a ViT, is worth a class of its own.
    """

    method_class: ClassVar[type[Method]]
    settings: ClassVar[dict[str, Any]] = {}
    preset: ClassVar[str] = "default"
    network: ClassVar[ModelConfig] = MODEL

    def setup_method(self) -> None:
        """Called by pytest before each test: the networks are so small that threads would only wait for each other."""
        self._num_threads = torch.get_num_threads()
        torch.set_num_threads(1)

    def teardown_method(self) -> None:
        """Called by pytest after each test."""
        torch.set_num_threads(self._num_threads)

    def make(self, **changes: Any) -> Method:
        """The method under test in its last stage, its settings and `changes` on top, always with the same first weights."""
        torch.manual_seed(0)
        return enter_stages(self._fresh(**changes))

    def _fresh(self, **changes: Any) -> Method:
        return make_method(self.method_class, preset=self.preset, network=self.network, **(self.settings | changes))

    def test_every_stage_trains_what_is_not_frozen_from_its_first_step_to_its_last(self) -> None:
        for number, stage in enumerate(self.make().stages()):
            seen = make_batch(kind=stage.batch)
            torch.manual_seed(0)
            method = enter_stages(self._fresh(), number)
            for progress in (0.0, 0.05, 0.5, 0.99):
                where = f"in the stage {stage.name} at progress {progress}"
                method.zero_grad()
                totals = train(method, 1, batch=seen, progress=progress)
                assert torch.isfinite(totals[0]), f"the loss is {totals[0].item()} {where}; it must be finite"
                for name, parameter in method.named_parameters():
                    if parameter.requires_grad:
                        assert parameter.grad is not None, f"{name} has no gradient {where}; DDP needs one for each parameter"

    def test_each_loss_is_finite_and_reaches_the_student_only(self) -> None:
        method = self.make()
        train(method, 5)
        for name in method(batch_of(method), clock_at(0.5, method.stage)).terms:
            method.zero_grad()
            term = method(batch_of(method), clock_at(0.5, method.stage)).terms[name]
            assert torch.isfinite(term) and term > 0, (
                f"the loss {name} must be finite and > 0, got {term.item()}; choose `settings` that let it act"
            )
            term.backward()
            reached = [gradient for gradient in _gradients(method.student.encoder) if gradient is not None]
            assert any(gradient.abs().sum() > 0 for gradient in reached), f"the loss {name} gives the student no gradient"
            assert all(torch.isfinite(gradient).all() for gradient in reached), f"a gradient of the loss {name} is not finite"
            if method.predictor() is not method.student:
                assert all(gradient is None for gradient in _gradients(method.predictor())), (
                    f"the loss {name} gives the predictor a gradient; compute its predictions under torch.no_grad()"
                )

    def test_logs_are_finite_scalars_without_gradient(self) -> None:
        method = self.make()
        logs = method(batch_of(method), clock_at(0.5, method.stage)).logs
        pairs = [(name, each) for name, value in logs.items() for each in (value if isinstance(value, Rate) else (value,))]
        for name, value in pairs:
            assert value.dim() == 0, f"the log {name} must be a scalar, got the shape {tuple(value.shape)}"
            assert torch.isfinite(value), f"the log {name} must be finite, got {value.item()}"
            assert not value.requires_grad, f"the log {name} carries a gradient; detach it"

    def test_state_and_generator_resume_the_same_steps_bit_for_bit(self) -> None:
        method = self.make()
        train(method, 4)
        state, generator = copy.deepcopy(method.state_dict()), torch.get_rng_state()
        straight = train(method, 3, start=4)
        resumed = self.make()
        resumed.load_state_dict(state)
        torch.set_rng_state(generator)
        again = train(resumed, 3, start=4)
        assert torch.equal(torch.stack(again), torch.stack(straight)), (
            f"resumed from its state_dict, the losses are {again}, and {straight} without the interruption; "
            "keep all state in parameters and buffers, and draw from torch's default generator only"
        )
        for name, value in method.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], value), f"{name} differs after a resume from the state_dict"

    def test_every_parameter_gets_a_gradient_from_any_batch(self) -> None:
        batch = batch_of(self.make())
        one_class = torch.where(batch.labels == IGNORE_INDEX, batch.labels, 0)
        void = torch.full_like(batch.labels, IGNORE_INDEX)
        nowhere = torch.zeros_like(batch.unlabelled_valid)
        for kind, labels in (("all classes", batch.labels), ("one class", one_class), ("no labelled pixel", void)):
            for valid in (batch.unlabelled_valid, nowhere):
                method = self.make()
                train(method, 2, batch=dataclasses.replace(batch, labels=labels, unlabelled_valid=valid), progress=0.5)
                where = f"from a batch with {kind}" + ("" if valid.any() else " and nothing but padding")
                for name, parameter in method.student.named_parameters():
                    assert parameter.grad is not None, f"{name} has no gradient {where}; DDP needs one for each parameter"
                    assert torch.isfinite(parameter.grad).all(), f"the gradient of {name} is not finite {where}"
                for name, value in method.state_dict().items():
                    assert torch.isfinite(value).all(), f"{name} is not finite {where}"

    def test_every_setting_is_read(self) -> None:
        config = self.method_class.Config
        methods = [base for base in self.method_class.__mro__ if issubclass(base, Method)]
        # Without the Config classes themselves, whose rules between settings are not a use of a setting.
        source = "".join(_source_without(base, {each.__name__ for each in config.__mro__}) for base in methods)
        properties = inspect.getmembers(config, lambda member: isinstance(member, property))
        source += "".join(inspect.getsource(member.fget) for _, member in properties)
        for field in dataclasses.fields(config):
            assert re.search(rf"\b(config|self)\.{field.name}\b", source), (
                f"the setting {field.name} is never read; read config.{field.name} in the module of the method, or drop it"
            )

    def test_the_predictor_gives_logits_at_image_size(self) -> None:
        found = tuple(self.make().predictor().eval().predict(torch.rand(1, 3, 19, 25)).shape)
        expected = (1, NUM_CLASSES, 19, 25)
        assert found == expected, f"the predictor must give logits of the shape {expected} for these images, got {found}"


def _gradients(module: nn.Module) -> list[Tensor | None]:
    return [parameter.grad for parameter in module.parameters()]


def _source_without(method_class: type[Method], names: set[str]) -> str:
    """The source of the module of a class, without its classes of these names."""
    module = inspect.getmodule(method_class)
    assert module is not None

    class Dropping(ast.NodeTransformer):
        def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST | None:
            return None if node.name in names else self.generic_visit(node)

    return ast.unparse(Dropping().visit(ast.parse(inspect.getsource(module))))
