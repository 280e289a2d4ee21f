"""On a GPU: a training step never makes the host wait."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from css_ray.methods import METHODS
from css_ray.testing import batch_of, clock_at, enter_stages, make_method
from css_ray.training.optimizer import make_optimizer
from css_ray.training.settings import TrainConfig
from css_ray.training.step import train_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype feature"),
]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", METHODS)
def test_a_step_never_waits_for_the_device(name: str, precision: Any) -> None:
    torch.manual_seed(0)
    method = enter_stages(make_method(METHODS[name])).to("cuda").train()
    config = TrainConfig(precision=precision)
    optimizer = make_optimizer(method, config)
    batch = batch_of(method).to("cuda")

    def step(progress: float) -> torch.Tensor:
        return train_step(method, method, optimizer, batch, clock_at(progress, method.stage), config).total.detach()

    step(0.0)  # libraries start, constants move to the device
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        totals = [step(progress) for progress in (0.0, 0.3, 0.6)]  # before and after the warm-ups
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.isfinite(torch.stack(totals)).all()
