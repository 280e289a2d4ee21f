"""PCR: the contract, its border, and its facts by hand."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from css_ray import distributed
from css_ray.methods import PCR
from css_ray.methods.clusters import PIXELS, Clusters
from css_ray.methods.stages import Border
from css_ray.testing import NUM_CLASSES, MethodContract, clock_at, enter_stages, make_batch, make_method, train
from css_ray.types import IGNORE_INDEX, Batch
from css_ray.views import Views
from tests.ranks import run_ranks

STILL = Views(jitter_probability=0, blur_probability=0)

OPEN: dict[str, Any] = {"unsup_threshold": 0.0}


class TestPCR(MethodContract):
    method_class = PCR
    settings: ClassVar = OPEN
    golden: ClassVar = {"unsup_threshold": 0.3}


class TestPCROfOnePrototype(MethodContract):
    method_class = PCR
    settings: ClassVar = OPEN | {"prototypes_per_class": 1, "grid": 5, "cutmix_probability": 1.0, "prototype_decay": 0.5}
    golden: ClassVar = None


def make(stage: int = 1, **settings: Any) -> PCR:
    torch.manual_seed(0)
    method = enter_stages(make_method(PCR, STILL, **(OPEN | settings)), stage)
    assert isinstance(method, PCR)
    return method.train()


def at(progress: float) -> Any:
    return clock_at(progress, 1)


def shown(features: Tensor) -> Tensor:
    """[B, D, h, w] -> the features of all pixels, [B * 24 * 24, D]."""
    return F.interpolate(features, (24, 24), mode="bilinear", align_corners=True).permute(0, 2, 3, 1).flatten(0, 2)


# The losses


def test_the_losses_against_those_written_out() -> None:
    """A grid of more cells than pixels takes all of them: nothing is left to chance."""
    method, batch = make(cutmix_probability=0.0, unsup_threshold=0.6), make_batch()
    train(method, 3)
    with torch.no_grad():
        method.teacher.model.logits_head[-1].weight.mul_(120)  # type: ignore[operator]
    twin = copy.deepcopy(method)
    losses = method(batch, at(0.5))
    size = (24, 24)
    with torch.no_grad():
        probabilities = F.interpolate(
            twin.teacher.model.eval()(batch.unlabelled_images).logits, size, mode="bilinear", align_corners=True
        ).softmax(dim=1)
        confidence, target = probabilities.max(dim=1)
        passed = (confidence >= 0.6) & batch.unlabelled_valid
        target[~passed] = IGNORE_INDEX
        assert 0.1 < passed.float().mean() < 0.8
        features = twin.student.decode(twin.student.encode(torch.cat([batch.labelled_images, batch.unlabelled_images])))
        logits = F.interpolate(twin.student.logits_head(features), size, mode="bilinear", align_corners=True)
        rows, labels = shown(features), torch.cat([batch.labels, target]).flatten()
        by_prototypes = torch.stack(
            [
                torch.stack([F.cosine_similarity(rows, v[None], dim=1) for v in own]).amax(dim=0)
                for own in twin.prototypes.value
            ],
            dim=1,
        )
    expected = {
        "sup": F.cross_entropy(logits[:3], batch.labels, ignore_index=IGNORE_INDEX),
        "unsup": F.cross_entropy(logits[3:], target, ignore_index=IGNORE_INDEX),
        "sup_prototypes": F.cross_entropy(by_prototypes[: 3 * 576] / 0.1, labels[: 3 * 576], ignore_index=IGNORE_INDEX),
        "unsup_prototypes": F.cross_entropy(by_prototypes[3 * 576 :] / 0.1, labels[3 * 576 :], ignore_index=IGNORE_INDEX),
    }
    for name, value in expected.items():
        assert losses.terms[name].item() == pytest.approx(value.item(), rel=1e-4), name
    assert losses.terms.keys() == expected.keys()
    rate = losses.logs["unsup_pass_rate"]
    assert isinstance(rate, tuple) and [part.item() for part in rate] == [passed.sum(), batch.unlabelled_valid.sum()]
    # The losses saw the prototypes of before the step; then each moved to the mean of its features.
    for label in range(NUM_CLASSES):
        mine = rows[labels == label]
        nearest = torch.stack([F.cosine_similarity(mine, v[None], dim=1) for v in twin.prototypes.value[label]]).argmax(dim=0)
        for k in range(4):
            value = twin.prototypes.value[label, k]
            if (nearest == k).any():
                value = 0.99 * value + 0.01 * mine[nearest == k].mean(dim=0)
            torch.testing.assert_close(method.prototypes.value[label, k], value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1, 2, 3, 4]),
        ({"prototype_weight": 10.0}, [1, 2, 30, 40]),
        ({"unsup_weight": 0.5}, [1, 1, 3, 2]),
        ({"unsup_weight": 0.5, "prototype_weight": 10.0}, [1, 1, 30, 20]),
    ],
)
def test_the_losses_add_up(settings: dict[str, Any], expected: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Four cross entropies of 1, 2, 3 and 4 with weights of 1 make 10."""
    values = iter([3.0, 2.0, 4.0])  # in the order in which `forward` takes them
    monkeypatch.setattr("css_ray.methods.pcr.cross_entropy", lambda logits, labels: logits.sum() * 0 + next(values))
    monkeypatch.setattr(PCR, "supervised", lambda self, prediction, labels, share: prediction.logits.sum() * 0 + 1)
    losses = make(**settings)(make_batch(), at(0.5))
    found = [losses.terms[name].item() for name in ("sup", "unsup", "sup_prototypes", "unsup_prototypes")]
    assert found == pytest.approx(expected) and losses.total.item() == pytest.approx(sum(expected))


def test_no_loss_depends_on_the_length_of_prototypes() -> None:
    method, batch = make(cutmix_probability=0.0), make_batch()
    twin = copy.deepcopy(method)
    twin.prototypes.value *= 7
    scaled = twin(batch, at(0.5)).terms
    for name, value in method(batch, at(0.5)).terms.items():
        torch.testing.assert_close(scaled[name], value)


def test_half_of_the_steps_mix_labels_with_their_images() -> None:
    method, batch = make(), make_batch()
    plain = method._mixed(batch, (24, 24))[1]
    mixed = 0
    for seed in range(40):
        torch.manual_seed(seed)
        images, labels, _ = method._mixed(batch, (24, 24))
        moved = (images != batch.unlabelled_images).any(dim=1)
        if moved.any():
            mixed += 1
            assert moved.float().mean() == pytest.approx(0.5, abs=0.1)
            assert torch.equal(images[moved[:, None].expand_as(images)], batch.unlabelled_images.roll(-1, 0)[moved[:, None].expand_as(images)])  # fmt: skip
        else:
            assert torch.equal(labels, plain)
    assert 10 <= mixed <= 30


def test_the_warm_up_is_supervised_and_copies_to_the_teacher() -> None:
    method, batch = make(stage=0), make_batch()
    nothing = Batch(batch.labelled_images, batch.labels, batch.unlabelled_images[:0], batch.unlabelled_valid[:0])
    prototypes = copy.deepcopy(method.prototypes.state_dict())
    train(method, 3, batch=nothing)
    assert set(method(nothing, clock_at(0.5, 0)).terms) == {"sup"}
    method.after_step(clock_at(0.5, 0))
    pairs = dict(method.teacher.model.named_parameters()) | dict(method.teacher.model.named_buffers())
    for name, value in (*method.student.named_parameters(), *method.student.named_buffers()):
        if value.is_floating_point():  # the number of batches is not averaged
            assert torch.equal(pairs[name], value) and pairs[name] is not value, name
    assert method.teacher.num_updates == 0
    assert all(torch.equal(value, prototypes[name]) for name, value in method.prototypes.state_dict().items())
    assert [stage.schedule for stage in method.stages()] == ["continue", "continue"]
    assert [stage.share for stage in make(warm_up=0.25).stages()] == [0.25, 0.75]


@pytest.mark.parametrize("stage", [0, 1])
def test_the_student_alone_sees_other_colours(stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PCR, "strong_colours", lambda self, images: 1 - images)
    method, batch = make(stage, cutmix_probability=0.0), make_batch()
    by_student: list[Tensor] = []
    by_teacher: list[Tensor] = []
    for network, seen in ((method.student, by_student), (method.teacher.model, by_teacher)):
        network.encoder.register_forward_pre_hook(lambda module, given, seen=seen: seen.append(given[0]))
    method(batch, clock_at(0.5, stage))
    student, given = method.student, [batch.labelled_images, batch.unlabelled_images][: stage + 1]
    torch.testing.assert_close(torch.cat(by_student) * student.std + student.mean, 1 - torch.cat(given))
    assert len(by_teacher) == stage
    for images in by_teacher:
        torch.testing.assert_close(images * student.std + student.mean, batch.unlabelled_images)


# The border


def test_the_first_prototypes_are_the_means_of_the_teachers_features() -> None:
    """One per class; 24 x 24 pixels of an image are fewer than the grid's cells, so that all are taken."""
    method = make(stage=0, prototypes_per_class=1)
    train(method, 3)
    state, batches = copy.deepcopy(method.teacher.state_dict()), [make_batch(1), make_batch(2, num_labelled=1)]
    method.stage = 1
    method.enter(Border(labelled=lambda: [(batch.labelled_images, batch.labels) for batch in batches]))
    assert all(torch.equal(value, state[name]) for name, value in method.teacher.state_dict().items())
    teacher = method.teacher.model.eval()
    with torch.no_grad():
        rows = torch.cat([shown(teacher.decode(teacher.encode(batch.labelled_images))) for batch in batches])
    labels = torch.cat([batch.labels.flatten() for batch in batches])
    assert method.prototypes.seen.all()
    for label in range(NUM_CLASSES):
        assert 0 < (labels == label).sum() <= PIXELS
        torch.testing.assert_close(method.prototypes.value[label, 0], rows[labels == label].mean(dim=0), atol=1e-5, rtol=1e-4)


def test_of_a_frequent_class_some_features_are_used() -> None:
    torch.manual_seed(0)
    clusters = Clusters(2, 1, 3, decay=0.9)
    parts = [(torch.full((700, 3), float(part)), torch.zeros(700, dtype=torch.long)) for part in range(4)]
    clusters.start(parts)
    share = clusters.value[0, 0, 0].item()  # the mean of 1000 of 700 zeros, ones, twos and threes
    assert share == pytest.approx(1.5, abs=5 * 0.03) and share * PIXELS == pytest.approx(round(share * PIXELS), abs=1e-2)
    assert clusters.seen.tolist() == [True, False]


@pytest.mark.parametrize("count", [1, 4])
def test_a_class_that_no_labelled_image_shows(count: int) -> None:
    method, batch = make(stage=0, prototypes_per_class=count), make_batch()
    method.stage = 1
    labels = torch.where(batch.labels == 2, IGNORE_INDEX, batch.labels)
    method.enter(Border(labelled=lambda: [(batch.labelled_images, labels)]))
    assert method.prototypes.seen.tolist() == [True, True, False, True]
    random = method.prototypes.value[2].clone()
    torch.testing.assert_close(torch.linalg.vector_norm(random, dim=1), torch.ones(count))
    twin = copy.deepcopy(method)
    losses = method(batch, at(0.5))  # its labels show the class
    assert losses.total.isfinite() and method.prototypes.seen.all() and losses.logs["num_seen_classes"] == 4
    losses.total.backward()
    first = method.prototypes.value[2]
    assert (first[0] - random[0]).abs().max() > 0.01
    torch.testing.assert_close(first, first[:1].expand_as(first), atol=2e-3, rtol=0)
    # With no labelled pixel at all every class waits.
    twin.prototypes.seen.fill_(False)
    twin.enter(Border(labelled=lambda: [(batch.labelled_images, torch.full_like(labels, IGNORE_INDEX))]))
    assert not twin.prototypes.seen.any()
    twin.enter(Border())
    assert not twin.prototypes.seen.any() and twin(batch, at(0.5)).total.isfinite()


# Degenerate batches


def test_without_a_confident_pixel_labelled_ones_alone_move_prototypes() -> None:
    method, batch = make(unsup_threshold=1.0), make_batch()
    before = method.prototypes.value.clone()
    losses = method(batch, at(0.5))
    assert losses.terms["unsup"].item() == losses.terms["unsup_prototypes"].item() == 0
    assert losses.terms["sup_prototypes"].item() > 0 and not torch.equal(method.prototypes.value, before)
    losses.total.backward()
    # Without a label either, nothing moves.
    before = method.prototypes.value.clone()
    void = Batch(batch.labelled_images, torch.full_like(batch.labels, IGNORE_INDEX), batch.unlabelled_images, batch.unlabelled_valid)  # fmt: skip
    losses = method(void, at(0.5))
    losses.total.backward()
    assert losses.total.item() == 0 and torch.equal(method.prototypes.value, before)


@pytest.mark.parametrize(("num_labelled", "num_unlabelled"), [(1, 1), (1, 3), (2, 1)])
def test_batches_of_one_image(num_labelled: int, num_unlabelled: int) -> None:
    losses = make(cutmix_probability=1.0)(make_batch(0, num_labelled, num_unlabelled), at(0.5))
    assert all(value.isfinite() and value > 0 for value in losses.terms.values())


def test_prototypes_are_no_parameters_and_are_kept_once() -> None:
    method = make()
    assert not any("prototypes" in name for name, _ in method.named_parameters())
    assert [name for name in method.state_dict() if "prototypes" in name] == ["prototypes.value", "prototypes.seen"]
    losses = method(make_batch(), at(0.5))
    assert not method.prototypes.value.requires_grad and losses.terms["sup_prototypes"].requires_grad


def test_what_is_probably_a_mistake() -> None:
    assert PCR.warnings(PCR.configure(), 150) == []
    assert PCR.warnings(PCR.configure(warm_up=0.0, temperature=1.0), 21) == [
        "warm_up 0 finds the first prototypes among the features of an untrained decoder; use 0.0125",
        "temperature 1 lets no probability among the prototypes of 21 classes exceed 0.27, so that their losses stay high; "
        "use 0.1",
    ]


# Two ranks


def scene(part: slice) -> Batch:
    """Images of a batch of four and four; the first two have no class 2, most void pixels are on the others."""
    batch = make_batch(5, num_labelled=4, num_unlabelled=4)
    labels = batch.labels.clone()
    labels[:2] = torch.where(labels[:2] == 2, 1, labels[:2])
    labels[2:, 4:10] = IGNORE_INDEX
    valid = batch.unlabelled_valid.clone()
    valid[3, :12] = False
    images = batch.labelled_images.double(), labels, batch.unlabelled_images.double(), valid
    return Batch(*(item[part] for item in images))  # type: ignore[arg-type]


def steps(rank: int, world_size: int) -> dict[str, Any]:
    """A border and two steps on this rank's part, in float64 and without chance; BatchNorm by its running statistics."""
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        method: Any = make_method(PCR, STILL, cutmix_probability=0.0, unsup_threshold=0.3, prototypes_per_class=2)
        batch = scene(slice(rank * 4 // world_size, (rank + 1) * 4 // world_size))
        method.stage = 1
        torch.manual_seed(rank + 1)  # each rank draws its own numbers
        method.enter(Border(labelled=lambda: [(batch.labelled_images, batch.labels)]))
        started = copy.deepcopy(method.prototypes.state_dict())
        # Which features K-means begins with is chance: the steps begin with prototypes that are given.
        table = torch.randn(NUM_CLASSES, 2, method.student.decoder.out_channels, generator=torch.Generator().manual_seed(4))
        method.prototypes.value.copy_(table)
        method.prototypes.seen.copy_(torch.tensor([True, True, False, True]))
        method.eval()
        wrapped = DistributedDataParallel(method) if world_size > 1 else method
        reduced: list[int] = []
        with pytest.MonkeyPatch.context() as patch:
            plain = dist.all_reduce
            patch.setattr(dist, "all_reduce", lambda tensor: reduced.append(tensor.numel()) or plain(tensor))  # type: ignore[func-returns-value]
            terms = []
            for _ in range(2):
                method.zero_grad()
                losses = wrapped(batch, at(0.5))
                losses.total.backward()
                terms.append({name: value.detach() for name, value in losses.terms.items()})
        gradients = {name: value.grad for name, value in method.named_parameters() if value.grad is not None}
        return {
            "started": started, "prototypes": method.prototypes.state_dict(), "terms": terms, "gradients": gradients,
            "reduced": reduced,
        }  # fmt: skip
    finally:
        torch.set_default_dtype(torch.float32)


def on_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    found = steps(rank, 2)
    # A rank without an image, and more features of a class than are used.
    torch.manual_seed(rank)
    clusters = Clusters(3, 2, 4, decay=0.9)
    generator = torch.Generator().manual_seed(1)
    clusters.start([(torch.randn(2500, 4, generator=generator), torch.zeros(2500, dtype=torch.long))] if rank else [])
    found["uneven"] = clusters.state_dict()
    assert distributed.world_size() == 2
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(on_rank, str(folder))
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_ranks_have_the_same_prototypes_bit_for_bit(ranks: list[dict[str, Any]]) -> None:
    first, second = ranks
    for part in ("started", "prototypes", "uneven"):
        for name, value in first[part].items():
            assert torch.equal(value, second[part][name]), (part, name)
    assert first["started"]["seen"].all()  # class 2 is on the second rank alone
    assert first["uneven"]["seen"].tolist() == [True, False, False]


def test_the_first_prototypes_are_of_the_images_of_all_ranks(ranks: list[dict[str, Any]]) -> None:
    """Of each class the sum over its prototypes, weighed by their features, is that of all its features."""
    torch.set_default_dtype(torch.float64)
    try:
        torch.manual_seed(0)
        method: Any = make_method(PCR, STILL, prototypes_per_class=2)
        batch = scene(slice(4))
        teacher = method.teacher.model.eval()
        with torch.no_grad():
            rows = shown(teacher.decode(teacher.encode(batch.labelled_images)))
    finally:
        torch.set_default_dtype(torch.float32)
    found, labels = ranks[0]["started"]["value"], batch.labels.flatten()
    for label in range(NUM_CLASSES):
        mine = rows[labels == label]
        assert 2 < len(mine) <= PIXELS
        nearest = torch.cdist(mine, found[label]).argmin(dim=1)
        for k in range(2):
            torch.testing.assert_close(found[label, k], mine[nearest == k].mean(dim=0))


def test_steps_of_two_ranks_are_those_of_the_joined_batch(ranks: list[dict[str, Any]]) -> None:
    alone = steps(0, 1)
    first, second = ranks
    for step, whole in enumerate(alone["terms"]):
        for name, value in whole.items():
            halves = first["terms"][step][name], second["terms"][step][name]
            assert value > 0 and not torch.isclose(*halves), name
            torch.testing.assert_close(sum(halves) / 2, value, msg=name)
    for half in ranks:
        torch.testing.assert_close(half["prototypes"], alone["prototypes"])
        assert half["gradients"].keys() == alone["gradients"].keys()
        for name, gradient in alone["gradients"].items():
            torch.testing.assert_close(half["gradients"][name], gradient, atol=1e-9, rtol=1e-6, msg=name)


def test_a_step_waits_for_the_other_rank_once(ranks: list[dict[str, Any]]) -> None:
    """Prototypes' sums and counts, and the four counts that the losses are divided by."""
    channels = make().student.decoder.out_channels
    for found in ranks:
        assert found["reduced"] == [NUM_CLASSES * 2 * (channels + 1) + 4] * 2
