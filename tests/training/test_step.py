"""A training step against the same written out, that there is one of it in the package, and how it is timed."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import css_ray
from css_ray.methods import METHODS, Method
from css_ray.models import ModelConfig, make_segmenter
from css_ray.testing import clock_at
from css_ray.training import timing
from css_ray.training.optimizer import make_optimizer
from css_ray.training.settings import TrainConfig
from css_ray.training.step import algorithms, place_method, train_step
from css_ray.types import Batch, Clock, Losses
from css_ray.views import Views

torch.set_num_threads(1)  # the networks are so small that threads would only wait for each other

NUM_CLASSES = 3
MODEL = ModelConfig(
    encoder="tiny", output_stride=4, pretrained=False, decoder_channels=8, low_level_channels=4, representation_dim=8
)


def make_method(name: str) -> Method:
    method = METHODS[name]
    torch.manual_seed(0)
    return method(
        lambda: make_segmenter(MODEL, NUM_CLASSES, representation=method.needs_representations), method.Config(), Views()
    )


def batch() -> Batch:
    images = torch.rand(4, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    labels = (images.mean(dim=1) * 2).long()
    return Batch(images[:2], labels[:2], images[2:], torch.ones(2, 24, 24, dtype=torch.bool))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", METHODS)
def test_a_step_is_what_it_says_bit_for_bit(name: str, precision: Any) -> None:
    config = TrainConfig(iterations=4, lr=0.05, precision=precision)
    ours, plain = make_method(name), make_method(name)
    optimizer = make_optimizer(ours, config)
    torch.manual_seed(2)
    for step in range(3):
        train_step(ours, ours, optimizer, batch(), clock_at(step / 4), config)
    by_hand = torch.optim.SGD(
        [parameter for parameter in plain.parameters() if parameter.requires_grad],
        lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.0005, fused=True,
    )  # fmt: skip
    torch.manual_seed(2)
    for step in range(3):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            total = torch.stack(list(plain(batch(), clock_at(step / 4)).terms.values())).sum()
        by_hand.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        by_hand.step()
        plain.after_step(clock_at(step / 4))
    for key, value in plain.state_dict().items():
        assert torch.equal(value, ours.state_dict()[key]), key


def test_the_losses_of_a_step_are_those_before_its_update() -> None:
    method, same, config = make_method("supervised"), make_method("supervised"), TrainConfig(lr=0.05)
    torch.manual_seed(2)
    expected = same(batch(), clock_at(0.25))
    torch.manual_seed(2)
    losses = train_step(method, method, make_optimizer(method, config), batch(), clock_at(0.25), config)
    assert torch.equal(losses.total, expected.total)


def test_a_step_calls_the_module_and_what_follows_an_update_is_the_methods() -> None:
    """DDP wraps the method: its gradients are shared only if it, not the method in it, is called."""
    called: list[Clock] = []

    class Wrapped(nn.Module):
        def __init__(self, method: Method) -> None:
            super().__init__()
            self.method = method

        def forward(self, *arguments: Any) -> Losses:
            called.append(arguments[1])
            losses: Losses = self.method(*arguments)
            return losses

    method, config = make_method("mean_teacher"), TrainConfig(lr=0.05)
    train_step(Wrapped(method), method, make_optimizer(method, config), batch(), clock_at(0.75), config)
    assert [clock.progress for clock in called] == [0.75]
    assert method.teacher.num_updates == 1  # type: ignore[union-attr]


def test_the_package_has_one_step() -> None:
    package = Path(css_ray.__file__).parent
    # The contract that methods are tested by, if the package ships it, takes steps of its own: they are an oracle.
    files = [path for path in sorted(package.rglob("*.py")) if path.relative_to(package).parts[0] != "testing"]
    for call in (".backward(", ".after_step(", ".zero_grad("):
        found = [path.relative_to(package).as_posix() for path in files if call in path.read_text()]
        assert found == ["training/step.py"], call


def test_a_method_is_placed_as_its_settings_say() -> None:
    method: Any = make_method("css")
    place_method(method, TrainConfig(channels_last=True), "cpu")
    weight = method.student.logits_head[0].weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    plain: Any = make_method("css")
    place_method(plain, TrainConfig(), "cpu")
    assert plain.student.logits_head[0].weight.is_contiguous()


@pytest.mark.parametrize("name", ["supervised", "css"])
def test_the_time_of_a_step_is_the_median_after_a_warm_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Batch] = []
    step = train_step

    def watched(module: Any, method: Any, optimizer: Any, batch: Batch, clock: Clock, config: Any) -> Losses:
        seen.append(batch)
        return step(module, method, optimizer, batch, clock, config)

    clock = iter([0, 50, 100, 103, 200, 201, 300, 308])  # steps of 50 (the warm-up), 3, 1 and 8 seconds
    monkeypatch.setattr(timing, "train_step", watched)
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    seconds = timing.seconds_per_step(
        make_method(name),
        TrainConfig(compile=True),  # which would take longer than this test may
        num_classes=NUM_CLASSES,
        crop=24,
        labelled_batch=3,
        unlabelled_batch=2,
        device=torch.device("cpu"),
    )
    assert seconds == 3
    assert len(seen) == 4
    assert seen[0].labelled_images.shape == (3, 3, 24, 24) and seen[0].labels.shape == (3, 24, 24)
    assert seen[0].unlabelled_images.shape == ((0 if name == "supervised" else 2), 3, 24, 24)


def flags() -> tuple[bool, bool, bool]:
    return (
        torch.backends.cudnn.benchmark,
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )


@pytest.mark.parametrize(
    ("deterministic", "fixed_shapes", "within"),
    [
        (False, True, (True, False, False)),
        (False, False, (False, False, False)),
        (True, True, (False, True, True)),
        (True, False, (False, True, True)),
    ],
)
def test_which_algorithms_a_gpu_uses(
    deterministic: bool, fixed_shapes: bool, within: tuple[bool, bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The flags alone: they can be set where there is not a GPU."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = flags()
    config = TrainConfig(deterministic=deterministic)
    with pytest.raises(ZeroDivisionError), algorithms(config, torch.device("cuda"), fixed_shapes=fixed_shapes):
        assert flags() == within
        assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) is deterministic
        raise ZeroDivisionError
    assert flags() == before
    with algorithms(config, torch.device("cpu"), fixed_shapes=fixed_shapes):
        assert flags() == before
