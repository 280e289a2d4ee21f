"""Every method on a ViT with DPT: the contract. Its images of 24 pixels are no multiple of the patch, 16."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from timm.layers.drop import DropPath

from css_ray.methods import METHODS, UniMatchV2
from css_ray.models import ModelConfig
from css_ray.models.base import Decoder
from css_ray.models.dpt import DPTDecoder
from css_ray.testing import MethodContract, enter_stages, make_batch, make_method, train

VIT = ModelConfig(encoder="test_vit", pretrained=False, representation_dim=6)

OPEN: dict[str, Any] = {"unsup_threshold": 0.0}
CONTRAST: dict[str, Any] = {"num_queries": 16, "num_negatives": 16}


SETTINGS: dict[str, dict[str, Any]] = {
    "mean_teacher": OPEN,
    "cutmix": OPEN,
    "cct": {"background": 0},
    "fixmatch": OPEN,
    "unimatch": OPEN,
    "unimatch_v2": OPEN,
    "augseg": OPEN,
    "u2pl": CONTRAST | {"queue": 64, "num_new": 16, "low_rank": 1, "class_threshold": 0.0, "warm_up": 0.0},
    "psmt": OPEN | {"top_k": 2, "warm_up": 0.2},
    "pcr": OPEN | {"warm_up": 0.2},
    "prcl": OPEN | CONTRAST | {"valid_threshold": 0.0, "hard_threshold": 1.0},
    "css": OPEN | CONTRAST | {"valid_threshold": 0.0, "hard_threshold": 1.0, "prototype_warm_up": 0.02},
}
"""By method, what lets all its losses act from the first step."""


@pytest.mark.parametrize("name", METHODS.own)
def test_a_step_reaches_every_parameter(name: str) -> None:
    torch.manual_seed(0)
    method = enter_stages(make_method(METHODS[name], network=VIT, **SETTINGS.get(name, {}))).train()
    (total,) = train(method, 1)
    assert torch.isfinite(total)
    assert not [name for name, value in method.named_parameters() if value.requires_grad and value.grad is None]


@pytest.mark.slow
class TestOnAViT(MethodContract):
    network = VIT
    golden: ClassVar = None

    @pytest.fixture(autouse=True, params=list(METHODS.own))
    def of_method(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(type(self), "method_class", METHODS[request.param], raising=False)
        monkeypatch.setattr(type(self), "settings", SETTINGS.get(request.param, {}))

    def test_its_networks_are_vits_with_dpt(self) -> None:
        method = self.make()
        decoders = [module for module in method.modules() if isinstance(module, Decoder)]
        assert decoders and all(isinstance(each, DPTDecoder) for each in decoders)
        # Labels are read on a grid of half the patch: 24 pixels become two patches, and these 16 cells.
        prediction = method.student(make_batch().labelled_images)
        assert all(item is None or item.shape[-2:] == (16, 16) for item in prediction)


def test_dropped_paths_are_drawn_from_torchs_generator() -> None:
    """As in a network with stochastic depth: the same state and generator give the same steps."""
    totals = []
    for _ in range(2):
        torch.manual_seed(0)
        method = make_method(UniMatchV2, network=VIT, unsup_threshold=0.0)
        for block in method.student.encoder.get_submodule("network.blocks").children():
            block.drop_path1, block.drop_path2 = DropPath(0.5), DropPath(0.5)
        torch.manual_seed(1)
        totals.append(torch.stack(train(method, 3)))
    assert torch.equal(*totals)
    torch.manual_seed(2)
    assert not torch.equal(torch.stack(train(method, 3)), totals[0])
