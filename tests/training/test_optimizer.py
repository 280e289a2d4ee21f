"""The groups of parameters and their rates, by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from css_ray.methods import CPS, FixMatch, Method, Supervised
from css_ray.testing import clock_at, make_batch, make_method
from css_ray.training.optimizer import make_optimizer, set_learning_rate
from css_ray.training.reporter import FolderReporter, SilentReporter
from css_ray.training.settings import TrainConfig
from css_ray.training.step import train_step
from tests.training.test_loop import CONFIG, InterruptAfter, Interrupted, run
from tests.training.test_loop import make_method as make_loop_method


def factors_of(method: Method, config: TrainConfig) -> dict[str, float]:
    by_id = {
        id(parameter): group["lr_factor"]
        for group in make_optimizer(method, config).param_groups
        for parameter in group["params"]
    }
    return {name: by_id[id(parameter)] for name, parameter in method.named_parameters() if id(parameter) in by_id}


def test_encoders_learn_at_their_factor_wherever_they_are() -> None:
    found = factors_of(make_method(CPS), TrainConfig(encoder_lr_factor=0.1))
    assert {name.split(".")[0] for name in found} == {"student", "second"}
    assert all(factor == (0.1 if "encoder" in name.split(".") else 1.0) for name, factor in found.items())
    assert len(set(found.values())) == 2


def test_a_factor_of_0_freezes_the_encoder_of_any_method() -> None:
    method, config = make_method(FixMatch), TrainConfig(encoder_lr_factor=0.0)
    found = factors_of(method, config)
    assert found and not [name for name in found if "encoder" in name.split(".")]
    assert all(
        parameter.requires_grad == ("encoder" not in name.split(".")) for name, parameter in method.student.named_parameters()
    )
    before = {name: value.clone() for name, value in method.student.encoder.named_parameters()}
    train_step(method, method, make_optimizer(method, config), make_batch(), clock_at(0.5), config)
    assert all(torch.equal(value, before[name]) for name, value in method.student.encoder.named_parameters())
    with pytest.raises(ValueError, match=r"encoder_lr_factor must be >= 0, got -0.1"):
        TrainConfig(encoder_lr_factor=-0.1)


class Tuned(Supervised):
    factors: Mapping[str, float] = {"student": 2.0, "student.encoder.stem": 0.5, "student.logits_head": 0.0}

    def lr_factors(self) -> Mapping[str, float]:
        return self.factors


def test_the_longest_name_wins_and_0_freezes() -> None:
    method, config = make_method(Tuned), TrainConfig(lr=0.1, min_lr=0.0)
    frozen = {name: p.clone() for name, p in method.named_parameters() if name.startswith("student.logits_head.")}
    found = factors_of(method, config)
    for name in found:
        assert found[name] == (0.5 if name.startswith("student.encoder.stem.") else 2.0), name
    assert frozen and not frozen.keys() & found.keys()

    optimizer = make_optimizer(method, config)
    set_learning_rate(optimizer, config, 0)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == [0.05, 0.2]
    train_step(method, method, optimizer, make_batch(), clock_at(0.0), config)
    for name, before in frozen.items():
        parameter = method.get_parameter(name)
        assert parameter.grad is None and torch.equal(parameter, before) and parameter not in optimizer.state


def test_a_name_that_no_parameter_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tuned, "factors", {"student.enc": 0.1})  # the beginning of a word is not a name
    with pytest.raises(ValueError, match=r"lr_factors\(\) of supervised names 'student.enc', which no parameter begins with"):
        make_optimizer(make_method(Tuned), TrainConfig())


def test_norms_and_biases_without_decay() -> None:
    method = make_method(Supervised)
    flat = {id(p) for module in method.modules() if isinstance(module, nn.BatchNorm2d) for p in module.parameters()}
    flat |= {id(p) for name, p in method.named_parameters() if name.endswith("bias")}
    for decay_all in (True, False):
        config = TrainConfig(weight_decay=0.02, decay_norm_and_bias=decay_all)
        for group in make_optimizer(method, config).param_groups:
            for parameter in group["params"]:
                assert group["weight_decay"] == (0.02 if decay_all or id(parameter) not in flat else 0.0)


@pytest.mark.parametrize("nesterov", [True, False])
def test_sgd_by_hand(nesterov: bool) -> None:
    method = make_method(Supervised)
    config = TrainConfig(lr=0.1, momentum=0.9, nesterov=nesterov, weight_decay=0.01, min_lr=0.0)
    optimizer = make_optimizer(method, config)
    (name, parameter), *_ = method.named_parameters()
    before, velocity = parameter.detach().clone(), torch.zeros_like(parameter)
    for _ in range(2):
        train_step(method, method, optimizer, make_batch(), clock_at(0.0), config)
        assert parameter.grad is not None
        gradient = parameter.grad + 0.01 * before
        velocity = 0.9 * velocity + gradient
        before = before - 0.1 * (gradient + 0.9 * velocity if nesterov else velocity)
        torch.testing.assert_close(parameter.detach(), before, msg=name)


def test_adamw_by_hand() -> None:
    method = make_method(Supervised)
    config = TrainConfig(optimizer="adamw", lr=0.01, betas=(0.8, 0.9), weight_decay=0.1, min_lr=0.0)
    optimizer = make_optimizer(method, config)
    (_, parameter), *_ = method.named_parameters()
    before, first, second = parameter.detach().clone(), torch.zeros_like(parameter), torch.zeros_like(parameter)
    for step in (1, 2):
        train_step(method, method, optimizer, make_batch(), clock_at(0.0), config)
        gradient = parameter.grad
        assert gradient is not None
        first, second = 0.8 * first + 0.2 * gradient, 0.9 * second + 0.1 * gradient**2
        before = before * (1 - 0.01 * 0.1)
        before = before - 0.01 * (first / (1 - 0.8**step)) / ((second / (1 - 0.9**step)).sqrt() + 1e-8)
        torch.testing.assert_close(parameter.detach(), before)


def test_adamw_resumes_bit_for_bit(tmp_path: Path) -> None:
    config = TrainConfig(**{**vars_of(CONFIG), "optimizer": "adamw", "lr": 0.003, "min_lr": 0.0})
    whole = make_loop_method("supervised")
    run(whole, config, reporter=SilentReporter())
    with pytest.raises(Interrupted):
        run(make_loop_method("supervised"), config, reporter=InterruptAfter(tmp_path, step=5))
    resumed = make_loop_method("supervised")
    run(resumed, config, reporter=FolderReporter(tmp_path), checkpoint=FolderReporter(tmp_path).checkpoint)
    for one, other in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def vars_of(config: TrainConfig) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


def test_two_betas_are_wanted() -> None:
    with pytest.raises(ValueError, match="betas must be two numbers"):
        TrainConfig(betas=(0.9,))  # type: ignore[arg-type]
