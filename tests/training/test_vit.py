"""Runs on a ViT with DPT: exact resume, two ranks, evaluations of images of any size, and weights that are kept."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from css_ray.functional.windows import window_starts
from css_ray.methods import METHODS, Method
from css_ray.models import ModelConfig, Segmenter, make_segmenter
from css_ray.testing import clock_at, make_batch
from css_ray.training.best import BestError, describe_best, load_best, write_best
from css_ray.training.evaluate import evaluate
from css_ray.training.loop import fit
from css_ray.training.optimizer import make_optimizer
from css_ray.training.reporter import FolderReporter, SilentReporter
from css_ray.training.settings import TrainConfig
from css_ray.training.step import train_step
from css_ray.types import Batch
from css_ray.views import Views
from tests.ranks import run_ranks
from tests.training.test_loop import NAMES, InterruptAfter, Interrupted

torch.set_num_threads(1)

VIT = ModelConfig(encoder="test_vit", pretrained=False, representation_dim=8)
CLASSES = len(NAMES)
SMALL: dict[str, dict[str, Any]] = {"css": {"num_queries": 8, "num_negatives": 8}, "unimatch_v2": {"unsup_threshold": 0.3}}


def make_method(name: str, classes: int = CLASSES) -> Method:
    method = METHODS[name]
    torch.manual_seed(0)
    return method(
        lambda: make_segmenter(VIT, classes, representation=method.needs_representations),
        method.Config(**SMALL.get(name, {})),
        Views(),
    )


def batch(step: int) -> Batch:
    """Noise over blocks of classes, of a crop of three patches."""
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(CLASSES, (2, 3, 3), generator=generator).repeat_interleave(16, 1).repeat_interleave(16, 2)
    images = (torch.rand(2, 3, 48, 48, generator=generator) + labels[:, None]) / CLASSES
    return Batch(images, labels, images.flip(0), torch.ones(2, 48, 48, dtype=torch.bool))


def run(method: Method, config: TrainConfig, reporter: Any, **changes: Any) -> Any:
    held_out = batch(1000)
    return fit(
        method, config, make_batches=lambda first, end, kind: map(batch, range(first, end)),
        val_batches=[(held_out.labelled_images[..., :41, :37], held_out.labels[:, :41, :37])], class_names=NAMES, seed=3,
        reporter=reporter, crop=48, **changes,
    )  # fmt: skip


@pytest.mark.parametrize(("name", "factor"), [("unimatch_v2", 0.025), ("unimatch_v2", 0.0), ("css", 0.025)])
def test_a_resumed_run_is_the_undisturbed_one_bit_for_bit(name: str, factor: float, tmp_path: Path) -> None:
    config = TrainConfig(
        iterations=4, lr=2e-4, optimizer="adamw", encoder_lr_factor=factor, min_lr=0.0, evaluate_every=2, log_every=1
    )
    undisturbed, whole = make_method(name), SilentReporter()
    run(undisturbed, config, whole)
    with pytest.raises(Interrupted):
        run(make_method(name), config, InterruptAfter(tmp_path, step=3))
    resumed, rest = make_method(name), FolderReporter(tmp_path)
    run(resumed, config, rest, checkpoint=rest.checkpoint)
    assert rest.logs == whole.logs[2:] and rest.evaluations == whole.evaluations[1:]
    for key, value in undisturbed.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    fresh = make_method(name).student.encoder.state_dict()
    moved = [key for key, value in resumed.student.encoder.state_dict().items() if not torch.equal(value, fresh[key])]
    assert bool(moved) == (factor > 0)


def test_bf16_and_channels_last_train_too() -> None:
    config = TrainConfig(
        iterations=2, lr=2e-4, optimizer="adamw", min_lr=0.0, precision="bf16", channels_last=True, evaluate_every=2
    )
    method = make_method("unimatch_v2")
    result = run(method, config, SilentReporter())
    assert 0 <= result.last["val/miou"] <= 100
    assert all(value.isfinite().all() and value.dtype == torch.float32 for value in method.parameters())


def on_rank(rank: int, world_size: int, directory: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=world_size)
    config = TrainConfig(optimizer="adamw", lr=1e-3, encoder_lr_factor=0.1, min_lr=0.0)
    found = {}
    for name in SMALL:
        method = make_method(name, classes=4).train()
        optimizer = make_optimizer(method, config)
        wrapped = DistributedDataParallel(method)  # raises where a parameter is left without a gradient
        torch.manual_seed(rank + 1)  # each rank draws its own views and masks
        for step in range(2):
            train_step(wrapped, method, optimizer, make_batch(2 * step + rank), clock_at(step / 2), config)
        found[name] = {key: value.detach() for key, value in method.named_parameters()}
    torch.save(found, f"{directory}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_train_the_same_network(tmp_path: Path) -> None:
    run_ranks(on_rank, 2, str(tmp_path))
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in range(2))
    for name in SMALL:
        start = dict(make_method(name, classes=4).named_parameters())
        assert any(not torch.equal(value, start[key]) for key, value in first[name].items() if "encoder" in key)
        assert all(torch.equal(value, second[name][key]) for key, value in first[name].items())


def segmenter() -> Segmenter:
    torch.manual_seed(0)
    return make_segmenter(VIT, CLASSES, representation=False).eval()


def scene(height: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(height)
    images = torch.rand(1, 3, height, width, generator=generator)
    return images, torch.randint(CLASSES, (1, height, width), generator=generator)


@torch.no_grad()
def logits_by_hand(network: Segmenter, images: Tensor, size: tuple[int, int]) -> Tensor:
    """Resized to `size`, and the logits back."""
    resized = F.interpolate(images, size, mode="bilinear", align_corners=True)
    features = network.decoder(*network.encoder((resized - network.mean) / network.std))
    return F.interpolate(network.logits_head(features), images.shape[-2:], mode="bilinear", align_corners=True)


@pytest.mark.parametrize(("size", "rounded"), [((37, 50), (32, 48)), ((40, 56), (48, 64))])
def test_whole_images_of_any_size_are_scored(size: tuple[int, int], rounded: tuple[int, int]) -> None:
    network, (images, labels) = segmenter(), scene(*size)
    found = evaluate(network, [(images, labels)])
    expected = logits_by_hand(network, images, rounded).argmax(dim=1)
    assert found.pixel_accuracy == pytest.approx(100 * float((expected == labels).float().mean()))
    assert 0 < found.pixel_accuracy < 100


def test_windows_of_the_crop_and_what_is_left_of_a_short_side() -> None:
    """A window of 48 along 75 pixels, and 37 of them along the other side, which become two patches."""
    network, (images, labels) = segmenter(), scene(37, 75)
    found = evaluate(network, [(images, labels)], window=48)
    sums, counts = torch.zeros(1, CLASSES, 37, 75), torch.zeros(37, 75)
    assert window_starts(75, 48) == [0, 27]
    for left in (0, 27):
        part = images[..., left : left + 48]
        sums[..., left : left + 48] += logits_by_hand(network, part, (32, 48)).softmax(dim=1)
        counts[:, left : left + 48] += 1
    expected = (sums / counts).argmax(dim=1)
    assert found.pixel_accuracy == pytest.approx(100 * float((expected == labels).float().mean()))


def described(network: Segmenter, **changes: Any) -> Any:
    best = describe_best(
        network, VIT, TrainConfig(), step=7, metrics={"val/miou": 50.0}, method="unimatch_v2", crop=48, class_names=NAMES,
        palette=(), seed=0, split=0, split_hash="", dataset="scenes", content="",
    )  # fmt: skip
    return dataclasses.replace(best, **changes)


def test_kept_weights_are_rebuilt_with_their_decoder(tmp_path: Path) -> None:
    network, (images, _) = segmenter(), scene(37, 50)
    write_best(tmp_path, network.state_dict(), described(network))
    again, best = load_best(tmp_path)
    assert (best.decoder, best.encoder, best.logits_stride) == ("dpt", "test_vit", 2.0)
    assert json.loads((tmp_path / "best.json").read_text())["decoder"] == "dpt"
    with torch.no_grad():
        assert torch.equal(again.predict(images), network.predict(images))
    write_best(tmp_path, network.state_dict(), described(network, decoder="deeplabv3plus"))
    with pytest.raises(BestError, match=r"cannot be built: ModelConfig: decoder deeplabv3plus needs features at stride 4"):
        load_best(tmp_path)


def test_a_description_of_an_earlier_version_has_no_decoder(tmp_path: Path) -> None:
    from css_ray.training import best as module

    tiny = ModelConfig(encoder="tiny", output_stride=4, pretrained=False, decoder_channels=8, low_level_channels=4)
    torch.manual_seed(0)
    network = make_segmenter(tiny, CLASSES, representation=False).eval()
    best = describe_best(
        network, tiny, TrainConfig(), step=7, metrics={}, method="supervised", crop=32, class_names=NAMES, palette=(), seed=0,
        split=0, split_hash="", dataset="scenes", content="",
    )  # fmt: skip
    write_best(tmp_path, network.state_dict(), best)
    content = json.loads((tmp_path / "best.json").read_text())
    assert content.pop("decoder") == "deeplabv3plus"
    del content["checksum"]
    (tmp_path / "best.json").write_text(json.dumps(content | {"checksum": module._checksum(content)}))
    again, found = load_best(tmp_path)
    assert found.decoder == "deeplabv3plus"
    with torch.no_grad():
        images = scene(20, 24)[0]
        assert torch.equal(again.predict(images), network.predict(images))
