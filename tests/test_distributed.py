"""Two gloo ranks against one process on the joined batch."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from css_ray import distributed
from css_ray.functional.contrast import Ranks, contrastive_loss
from css_ray.functional.similarity import class_means, class_sums
from css_ray.methods import CCT, CPS, CSS, PSMT, STPP, AugSeg, FixMatch, MeanTeacher, Method, Supervised, UniMatch, UniMatchV2
from css_ray.methods.prototypes import Prototypes
from css_ray.methods.queue import FeatureQueue
from css_ray.models import ModelConfig
from css_ray.testing import MODEL, clock_at, enter_stages, make_batch, make_method
from css_ray.types import IGNORE_INDEX, Batch
from css_ray.views import Views
from tests.ranks import run_ranks

NUM_CLASSES = 4


def shard(rank: int, step: int) -> tuple[Tensor, Tensor]:
    """Representations and labels of one rank; class 2 is on rank 1 only, class 3 on none, and rank 1 has more pixels."""
    generator = torch.Generator().manual_seed(10 * step + rank)
    representations = torch.randn(1, 5, 4, 4, generator=generator)
    labels = torch.randint(0, 2, (1, 4, 4), generator=generator)
    if rank == 1:
        labels[0, 0] = 2
    else:
        labels[0, :2] = IGNORE_INDEX
    return representations, labels


def scene() -> tuple[Batch, Tensor]:
    """A batch of two ranks together, and the CutMix boxes of its images: class 2 and most void pixels are on the second."""
    batch = make_batch(num_labelled=4, num_unlabelled=4)
    labels = batch.labels.clone()
    labels[:2] = torch.where(labels[:2] == 2, 1, labels[:2])
    labels[2:, 4:10] = IGNORE_INDEX
    valid = batch.unlabelled_valid.clone()
    valid[3, :12] = False
    generator = torch.Generator().manual_seed(7)
    boxes = torch.rand(4, *labels.shape[1:], generator=generator) < 0.5
    return Batch(batch.labelled_images, labels, batch.unlabelled_images, valid), boxes


STILL = Views(scale=(1.0, 1.0), strong_scale=(1.0, 1.0), flip=False, jitter=0.0, jitter_probability=0.0, blur_probability=0.0)

VIT = ModelConfig(encoder="test_vit", pretrained=False)

WITHOUT_CHANCE: dict[str, tuple[type[Method], dict[str, Any]]] = {
    "supervised": (Supervised, {}),
    "mean_teacher": (MeanTeacher, {"unsup_threshold": 0.3}),
    "fixmatch": (FixMatch, {"unsup_threshold": 0.3, "cutmix_probability": 0.0}),
    "unimatch": (UniMatch, {"unsup_threshold": 0.3, "cutmix_probability": 0.0, "feature_dropout": 0.0}),
    "unimatch_v2": (UniMatchV2, {"unsup_threshold": 0.3, "cutmix_probability": 0.0, "complementary": False}),
    "unimatch_v2, ViT": (UniMatchV2, {"unsup_threshold": 0.26, "cutmix_probability": 0.0, "complementary": False}),
    "augseg": (AugSeg, {"unsup_threshold": 0.26, "adaptive": False, "operations": (0, 0)}),
    "cps": (CPS, {"cutmix": False, "on_labelled": True}),
    "psmt": (PSMT, {"unsup_threshold": 0.26, "top_k": 2, "cutmix": False, "vat_radius": 0.0}),
    "stpp": (STPP, {"cutout_probability": 0.0, "tta_scales": (1.0,)}),
    "cct": (CCT, dict.fromkeys(("drop", "feature_drop", "feature_noise", "vat", "cut_out"), 0) | {"background": 0}),
    "cct, bootstrapped": (CCT, {"supervised_loss": "bootstrapped", "unsup_weight": 0.0}),
}
"""Methods whose losses are means over pixels, with settings that draw nothing."""


def part_of(rank: int, world_size: int) -> Batch:
    """A rank's images of `scene`."""
    batch, _ = scene()
    part = slice(rank * 4 // world_size, (rank + 1) * 4 // world_size)
    images = batch.labelled_images, batch.labels, batch.unlabelled_images, batch.unlabelled_valid
    pseudo = torch.arange(4)[part] >= 2  # all on the second rank
    seen, labels, unlabelled, valid = (item[part] for item in images)
    return Batch(seen, labels, unlabelled, valid, pseudo=pseudo)


def other_steps(rank: int, world_size: int) -> dict[str, dict[str, Any]]:
    """Losses and gradients of a step of each method of WITHOUT_CHANCE, in float64."""
    found = {}
    batch = part_of(rank, world_size)
    images = batch.labelled_images.double(), batch.unlabelled_images.double()
    batch = dataclasses.replace(batch, labelled_images=images[0], unlabelled_images=images[1])
    torch.set_default_dtype(torch.float64)
    for name, (method_class, settings) in WITHOUT_CHANCE.items():
        torch.manual_seed(0)
        network = VIT if name.endswith("ViT") else MODEL
        method = enter_stages(make_method(method_class, STILL, network=network, **settings))
        if isinstance(method, AugSeg):
            method.__dict__["_boxes"] = lambda maps, concentration: torch.zeros_like(maps, dtype=torch.bool)
        method.eval()  # BatchNorm by its running statistics, which ranks do not share on a CPU
        wrapped = DistributedDataParallel(method) if world_size > 1 else method
        losses = wrapped(batch, clock_at(0.5, method.stage))
        losses.total.backward()
        found[name] = {
            "terms": {term: value.detach() for term, value in losses.terms.items()},
            "gradients": {key: value.grad for key, value in method.named_parameters() if value.grad is not None},
        }
    torch.set_default_dtype(torch.float32)
    return found


def joint_step(rank: int, world_size: int) -> dict[str, Any]:
    """Losses, gradients and prototypes of a step of CSS without chance, on this rank's part of `scene`, by reduction."""
    from css_ray.methods import strong_view

    batch, boxes = part_of(rank, world_size), scene()[1]
    part = slice(rank * 4 // world_size, (rank + 1) * 4 // world_size)
    found: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strong_view, "half_area_boxes", lambda *size: boxes[part])
        for reduction in ("image_fraction", "pixel", "pixel_fixmatch"):
            torch.manual_seed(0)
            # Which anchors and negatives are drawn is each rank's own chance: the contrast is compared by itself, below.
            settings: dict[str, Any] = {
                "unsup_reduction": reduction,
                "contrast_weight": 0.0,
                "num_queries": 4,
                "num_negatives": 4,
            }
            method: Any = make_method(
                CSS,
                STILL,
                unsup_threshold=0.8,
                valid_threshold=0.0,
                prototype_warm_up=0.0,
                cutmix_partner="global",
                **settings,
            )
            with torch.no_grad():  # an untrained head is nowhere sure
                method.teacher.model.logits_head[-1].weight.mul_(300)
            method.prototypes.value.normal_()
            method.prototypes.seen.fill_(True)
            method.eval()  # BatchNorm by its running statistics, which ranks do not share on a CPU
            wrapped = DistributedDataParallel(method) if world_size > 1 else method
            losses = wrapped(batch, clock_at(0.5))
            losses.total.backward()
            found[reduction] = {
                "sup": losses.terms["sup"].detach(),
                "unsup": losses.terms["unsup"].detach(),
                "gradients": {name: p.grad for name, p in method.student.named_parameters() if p.grad is not None},
                "prototypes": method.prototypes.value.clone(),
            }
    # All pixels of a class alike, two classes: whatever is drawn, the loss is the same. Of two ranks each has one class alone.
    table = torch.randn(2, 5, generator=torch.Generator().manual_seed(3), requires_grad=True)
    labels = (torch.arange(32).view(2, 4, 4) // 16)[rank * 2 // world_size : (rank + 1) * 2 // world_size]
    sums, counts = class_sums(table.detach()[labels].permute(0, 3, 1, 2), labels, 2)
    means = class_means(distributed.all_reduce_sum(sums), distributed.all_reduce_sum(counts))
    for negatives in ("shared", "per_anchor"):
        contrast = contrastive_loss(
            table[labels].permute(0, 3, 1, 2), labels, torch.ones_like(labels, dtype=torch.bool), means, torch.ones(2, dtype=torch.bool),
            temperature=0.5, num_queries=4, num_negatives=4, negatives=negatives,
            ranks=Ranks(rank, world_size, distributed.all_reduce_sum),
        )  # fmt: skip
        gradient = torch.autograd.grad(contrast, table)[0]
        found[negatives] = contrast.detach(), distributed.all_reduce_sum(gradient) / world_size
    return found


def on_rank(rank: int, world_size: int, directory: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{directory}/rendezvous", rank=rank, world_size=world_size)
    assert (distributed.rank(), distributed.world_size()) == (rank, world_size)
    found: dict[str, Any] = {}

    mine = torch.tensor([rank + 1.0])
    found["sum"] = distributed.all_reduce_sum(mine)
    found["mine"] = mine.clone()
    distributed.broadcast_from_rank_zero(mine)
    found["broadcast"] = mine

    prototypes = Prototypes(NUM_CLASSES, 5, decay=0.5)
    for step in range(3):
        prototypes.update(shard(rank, step))
    found["prototypes"] = prototypes.state_dict()

    torch.manual_seed(0)
    method: Any = make_method(CSS, unsup_threshold=0.0, valid_threshold=0.0, num_queries=8, num_negatives=8)
    torch.manual_seed(rank + 1)  # each rank draws its own views
    wrapped = DistributedDataParallel(method)  # raises where a parameter is left without a gradient
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    reduced: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        all_reduce = dist.all_reduce
        patch.setattr(dist, "all_reduce", lambda tensor: reduced.append(tensor.numel()) or all_reduce(tensor))  # type: ignore[func-returns-value]
        for step in range(3):
            optimizer.zero_grad()
            wrapped(make_batch(2 * step + rank), clock_at(step / 3)).total.backward()
            optimizer.step()
            method.after_step(clock_at(step / 3))
    found["reduced"] = reduced
    found["parameters"] = {name: value.detach() for name, value in method.named_parameters()}
    found["css_prototypes"] = method.prototypes.state_dict()
    found["joint"] = joint_step(rank, world_size)
    found["others"] = other_steps(rank, world_size)
    drifting = Prototypes(NUM_CLASSES, 5, decay=0.5, joint=False)
    for step in range(3):
        drifting.update(shard(rank, step))
    found["drifting"] = drifting.state_dict()
    queue = FeatureQueue(2, 8, 3)
    for step in range(2):
        generator = torch.Generator().manual_seed(10 * step + rank)
        features = torch.randn(4, 3, generator=generator)
        # Class 0 has two rows on the first rank and one on the second, class 1 one on the second alone.
        queue.push(features, torch.tensor([[True, rank == 0, False, False], [False, False, rank == 1, False]]), most=3)
    found["queue"] = queue.state_dict() | {"mine": features}
    found["gathered"] = distributed.all_gather(torch.tensor([[rank, 1]]))
    torch.save(found, f"{directory}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    directory = tmp_path_factory.mktemp("ranks")
    run_ranks(on_rank, 2, str(directory))
    return [torch.load(directory / f"rank{rank}.pt") for rank in range(2)]


def test_sums_and_broadcasts(ranks: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(ranks):
        assert found["sum"].item() == 3 and found["broadcast"].item() == 1
        assert found["mine"].item() == rank + 1  # a sum leaves its argument as it was


def test_without_a_group_nothing_happens() -> None:
    value = torch.tensor([2.0])
    assert (distributed.rank(), distributed.world_size()) == (0, 1)
    distributed.broadcast_from_rank_zero(value)
    assert distributed.all_reduce_sum(value).item() == value.item() == 2


def test_prototypes_of_two_ranks_equal_one_process_on_the_joined_batch(ranks: list[dict[str, Any]]) -> None:
    alone = Prototypes(NUM_CLASSES, 5, decay=0.5)
    for step in range(3):
        pairs = zip(shard(0, step), shard(1, step), strict=True)
        representations, labels = (torch.cat(pair) for pair in pairs)
        alone.update((representations, labels))
    assert alone.seen.tolist() == [True, True, True, False]
    for found in ranks:
        torch.testing.assert_close(found["prototypes"]["value"], alone.value)
        assert torch.equal(found["prototypes"]["seen"], alone.seen)


def test_a_step_of_css_waits_for_the_other_ranks_three_times(ranks: list[dict[str, Any]]) -> None:
    """For prototypes and shares of the losses, for counts and rank 0's random numbers, and for negatives, which need both."""
    classes, channels, negatives = NUM_CLASSES, 6, 8
    with_shares = classes * (channels + 1) + 2
    with_chance = 2 * 2 * classes + 2 * classes * negatives
    for found in ranks:
        assert len(found["reduced"]) == 3 * 3
        for first, second, third in zip(*[iter(found["reduced"])] * 3, strict=True):
            assert (first, second) == (with_shares, with_chance)
            assert third % (negatives * channels) == 0 and third <= classes * negatives * channels


def test_ranks_agree_on_student_teacher_and_prototypes(ranks: list[dict[str, Any]]) -> None:
    first, second = ranks
    assert torch.equal(first["prototypes"]["value"], second["prototypes"]["value"])
    for part in ("parameters", "css_prototypes"):
        for name, value in first[part].items():
            assert torch.equal(value, second[part][name]), name
    assert any(name.startswith("teacher.") for name in first["parameters"])


def test_a_step_of_two_ranks_equals_one_process_on_the_joined_batch(ranks: list[dict[str, Any]]) -> None:
    alone = joint_step(0, 1)
    first, second = (found["joint"] for found in ranks)
    for reduction in ("image_fraction", "pixel", "pixel_fixmatch"):
        mine, halves = alone[reduction], (first[reduction], second[reduction])
        assert mine["unsup"] > 0
        for term in ("sup", "unsup"):
            assert not torch.isclose(halves[0][term], halves[1][term])  # the ranks see different pixels
            torch.testing.assert_close((halves[0][term] + halves[1][term]) / 2, mine[term])
        for half in halves:
            torch.testing.assert_close(half["prototypes"], mine["prototypes"])
            assert half["gradients"].keys() == mine["gradients"].keys()
            for name, gradient in mine["gradients"].items():
                torch.testing.assert_close(half["gradients"][name], gradient, atol=1e-6, rtol=1e-4, msg=name)
        assert torch.equal(halves[0]["prototypes"], halves[1]["prototypes"])
    for negatives in ("shared", "per_anchor"):
        for half in (first, second):
            torch.testing.assert_close(half[negatives], alone[negatives])


def test_a_step_of_each_method_without_chance_is_that_of_the_joined_batch(ranks: list[dict[str, Any]]) -> None:
    alone = other_steps(0, 1)
    first, second = (found["others"] for found in ranks)
    for name, whole in alone.items():
        for term, value in whole["terms"].items():
            assert value > 0 or (name == "cct, bootstrapped" and term == "unsup"), f"{name}: {term}"
            torch.testing.assert_close(
                (first[name]["terms"][term] + second[name]["terms"][term]) / 2, value, msg=f"{name}: {term}"
            )
        for half in (first[name], second[name]):
            assert half["gradients"].keys() == whole["gradients"].keys()
            for key, gradient in whole["gradients"].items():
                torch.testing.assert_close(half["gradients"][key], gradient, atol=1e-7, rtol=1e-5, msg=f"{name}: {key}")


def test_prototypes_of_the_published_code_drift_apart(ranks: list[dict[str, Any]]) -> None:
    first, second = (found["drifting"] for found in ranks)
    assert first["seen"].tolist() == [True, True, False, False]  # rank 0 never has class 2
    assert second["seen"].tolist() == [True, True, True, False]
    torch.testing.assert_close(first["value"][:2], second["value"][:2])  # where both have pixels the joint sums serve both


def test_queues_are_the_same_on_all_ranks_and_hold_the_rows_of_all(ranks: list[dict[str, Any]]) -> None:
    first, second = (found["queue"] for found in ranks)
    for name in ("rows", "pushed"):
        assert torch.equal(first[name], second[name])
    assert first["pushed"].tolist() == [6, 2]
    newest = first["rows"][[3, 4, 5, 9]].float()
    of_first, of_second = (torch.nn.functional.normalize(each["mine"], dim=1) for each in (first, second))
    for expected in (of_first[0], of_first[1], of_second[0]):
        assert (newest[:3] - expected).abs().amax(dim=1).min() < 1e-2
    torch.testing.assert_close(newest[3], of_second[2], atol=1e-2, rtol=0)


def test_all_gather_is_in_the_order_of_ranks(ranks: list[dict[str, Any]]) -> None:
    for found in ranks:
        assert found["gathered"].tolist() == [[0, 1], [1, 1]]
