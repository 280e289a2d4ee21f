"""Eq. 9 against a loop over all anchors and negatives, and the sampling by its frequencies."""

import math
import threading
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from css_ray.functional import contrast
from css_ray.functional.contrast import Ranks, contrastive_loss, negative_class_distribution, noise_contrast
from css_ray.types import IGNORE_INDEX as V

TAU = 0.5
LABELS = torch.tensor([[[0, 0, V], [2, 2, 3]]])  # class 1 is absent
HARD = torch.tensor([[[True, False, True], [True, True, False]]])  # of class 3 nothing is hard
SEEN = torch.tensor([True, True, True, True])


def make(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 4, 2, 3, generator=generator, requires_grad=True), torch.randn(4, 4, generator=generator)


def loss(representations: torch.Tensor, prototypes: torch.Tensor, **changes: object) -> torch.Tensor:
    settings: dict[str, object] = {"temperature": TAU, "num_queries": 64, "num_negatives": 32, "labels": LABELS, "hard": HARD}
    settings |= {"seen": SEEN} | changes
    return contrastive_loss(representations, prototypes=prototypes, **settings)  # type: ignore[arg-type]


def expected_over_all_pairs(representations: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    """Where all pixels of a class are alike, sampling only chooses between classes: exact for one possible negative class."""
    classes = {0: (0, 0), 2: (1, 0)}
    rows = {c: F.normalize(representations[0, :, y, x], dim=0) for c, (y, x) in classes.items()}
    total = torch.zeros(())
    for c in classes:
        other = 2 - c
        positive = (rows[c] @ F.normalize(prototypes[c], dim=0) / TAU).exp()
        negatives = 32 * (rows[c] @ rows[other].detach() / TAU).exp()
        total = total - (positive / (positive + negatives)).log()
    return total / len(classes)


@pytest.mark.parametrize("negatives", ["shared", "per_anchor"])
def test_value_and_gradient_against_the_equation(negatives: str) -> None:
    representations, prototypes = make()
    with torch.no_grad():  # all pixels of a class alike
        representations[0, :, 0, 1] = representations[0, :, 0, 0]
        representations[0, :, 1, 1] = representations[0, :, 1, 0]
    labels = torch.where(LABELS == 3, V, LABELS)
    found = loss(representations, prototypes, labels=labels, negatives=negatives)
    expected = expected_over_all_pairs(representations, prototypes)
    torch.testing.assert_close(found, expected)
    gradient = torch.autograd.grad(found, representations)[0]
    expected_gradient = torch.autograd.grad(expected, representations)[0]
    # Class 0 has one hard pixel; class 2 has two that are alike and share what the loop gives to the first.
    torch.testing.assert_close(gradient[0, :, 0, 0], expected_gradient[0, :, 0, 0])
    torch.testing.assert_close(gradient[0, :, 1, 0] + gradient[0, :, 1, 1], expected_gradient[0, :, 1, 0])
    assert not gradient[0, :, 0, 1:].any() and not gradient[0, :, 1, 2].any()  # not hard, or not valid


def test_shared_and_per_anchor_agree_in_mean() -> None:
    torch.manual_seed(0)
    representations, prototypes = make(1)
    with torch.no_grad():
        means = {
            kind: torch.stack([loss(representations, prototypes, negatives=kind) for _ in range(300)])
            for kind in ("shared", "per_anchor")
        }
    error = sum(float(values.var()) / len(values) for values in means.values()) ** 0.5
    assert abs(float(means["shared"].mean() - means["per_anchor"].mean())) < 4 * error
    assert error < 0.01  # close enough for the comparison to mean something


def test_the_mean_counts_present_classes_also_without_hard_pixels() -> None:
    torch.manual_seed(0)
    representations, prototypes = make(2)
    with torch.no_grad():
        only_class_0 = HARD & (LABELS == 0)
        three = loss(representations, prototypes, hard=only_class_0, num_queries=4000, num_negatives=4000)
        # With class 3 unseen it is not present: two classes are left, and class 0's only negatives are class 2's.
        two = loss(
            representations, prototypes, hard=only_class_0, seen=torch.tensor([True, True, True, False]), num_negatives=4000
        )
        anchor = F.normalize(representations[0, :, 0, 0], dim=0)
        positive = (anchor @ F.normalize(prototypes[0], dim=0) / TAU).exp()
        rows = F.normalize(representations[0, :, 1], dim=0)
        away = (anchor @ rows / TAU).exp()
        share = negative_class_distribution(prototypes, torch.tensor([True, False, True, True]), TAU)[0]
        negatives_of_three = 4000 * (share[2] * away[:2].mean() + share[3] * away[2])
        negatives_of_two = 4000 * away[:2].mean()
    assert float(three) == pytest.approx(math.log(1 + float(negatives_of_three / positive)) / 3, rel=0.01)
    assert float(two) == pytest.approx(math.log(1 + float(negatives_of_two / positive)) / 2, rel=0.01)


@pytest.mark.parametrize("labels", [torch.full_like(LABELS, V), torch.where(LABELS == 0, LABELS, V)])
def test_fewer_than_two_classes_are_zero_with_a_zero_gradient(labels: torch.Tensor) -> None:
    representations, prototypes = make()
    found = loss(representations, prototypes, labels=labels)
    assert found.item() == 0
    assert not torch.autograd.grad(found, representations)[0].any()


def test_negative_classes_follow_the_relation_graph() -> None:
    prototypes = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [-1.0, 0.0]])
    q = negative_class_distribution(prototypes, torch.tensor([True, True, True, False]), 0.5)
    # Class 0 is like class 1 (cosine 1) and unlike class 2 (cosine 0); never itself, never the absent class 3.
    torch.testing.assert_close(q[0], torch.tensor([0.0, math.e**2, 1.0, 0.0]) / (math.e**2 + 1))
    torch.testing.assert_close(q[2], torch.tensor([0.5, 0.5, 0.0, 0.0]))
    torch.testing.assert_close(q.sum(dim=1), torch.ones(4))
    assert torch.isfinite(negative_class_distribution(prototypes, torch.zeros(4, dtype=torch.bool), 0.5)).all()


@pytest.mark.parametrize("negatives", ["shared", "per_anchor"])
def test_representations_that_are_not_finite_give_a_loss_that_is_not(negatives: str) -> None:
    # A run whose weights became NaN must end by its loss, not by a failing draw of negatives.
    representations = torch.full((1, 4, 4, 4), torch.nan)
    labels = torch.arange(16).view(1, 4, 4) % 3
    loss = contrastive_loss(
        representations, labels, torch.ones(1, 4, 4, dtype=torch.bool), torch.full((3, 4), torch.nan), torch.ones(3, dtype=torch.bool),
        temperature=0.5, num_queries=4, num_negatives=4, negatives=negatives,  # type: ignore[arg-type]
    )  # fmt: skip
    assert not loss.isfinite()


@pytest.mark.parametrize("num_anchors", [1, 2])
def test_noise_contrast_by_a_loop_and_its_gradient_by_differences(num_anchors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(contrast._BLOCK_BYTES, "cpu", 2 * 3 * 4 * 8)  # two groups a block, so that blocks meet
    generator = torch.Generator().manual_seed(3)

    def unit(*shape: int) -> torch.Tensor:
        return F.normalize(torch.randn(*shape, 4, generator=generator, dtype=torch.float64), dim=-1)

    positives, keys = unit(5, num_anchors), unit(7)
    lengths = 0.5 + torch.rand(5, num_anchors, 1, generator=generator, dtype=torch.float64)
    anchors = (lengths * unit(5, num_anchors)).requires_grad_()
    index = torch.randint(7, (5, 3), generator=generator)  # a key may stand twice among a group's negatives
    found = noise_contrast(anchors, positives, keys, index, TAU)
    assert found.shape == (5, num_anchors)
    with torch.no_grad():
        for g in range(5):
            for q in range(num_anchors):
                anchor = anchors[g, q] / lengths[g, q]
                towards = math.exp(float(anchor @ positives[g, q]) / TAU)
                away = sum(math.exp(float(anchor @ keys[i]) / TAU) for i in index[g].tolist())
                assert found[g, q].item() == pytest.approx(-math.log(towards / (towards + away)), abs=1e-12)
    assert torch.autograd.gradcheck(lambda a: noise_contrast(a, positives, keys, index, TAU), anchors)
    torch.testing.assert_close(noise_contrast(anchors, positives, keys[index], None, TAU), found)

    scales = torch.rand(7, generator=generator, dtype=torch.float64) + 0.5
    long_keys = scales.unsqueeze(1) * keys
    torch.testing.assert_close(noise_contrast(anchors, positives, long_keys, index, TAU, scales), found)
    assert torch.autograd.gradcheck(lambda a: noise_contrast(a, positives, long_keys, index, TAU, scales), anchors)


def test_per_anchor_is_the_loop_over_its_own_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of Eq. 9 in float64, pixel by pixel, with the sampled anchors and negatives read from the draws."""
    generator = torch.Generator().manual_seed(4)
    representations = torch.randn(2, 5, 3, 4, generator=generator, dtype=torch.float64, requires_grad=True)
    prototypes = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (2, 3, 4), generator=generator)  # class 3 never appears
    labels[0, 0] = V
    hard = torch.rand(2, 3, 4, generator=generator) < 0.6
    drawn = []
    draw = contrast.PixelsByClass.draw

    def remember(self: contrast.PixelsByClass, *arguments: torch.Tensor) -> torch.Tensor:
        drawn.append(draw(self, *arguments))
        return drawn[-1]

    monkeypatch.setattr(contrast.PixelsByClass, "draw", remember)
    for negatives in ("per_anchor", "shared"):
        drawn.clear()
        found = loss(representations, prototypes, labels=labels, hard=hard, num_queries=6, num_negatives=5, negatives=negatives)
        anchors, others = drawn
        flat_labels, flat_hard = labels.flatten().tolist(), hard.flatten().tolist()
        rows = [representations[b, :, y, x] for b in range(2) for y in range(3) for x in range(4)]
        total = torch.zeros((), dtype=torch.float64)
        for c in range(3):
            for q in range(6):
                i = int(anchors[c, q])
                assert flat_labels[i] == c and flat_hard[i]
                mine = others[c].view(-1, 5)[q if negatives == "per_anchor" else 0].tolist()
                assert all(flat_labels[j] not in (c, V) for j in mine)
                unit = rows[i] / rows[i].norm()
                positive = (unit @ prototypes[c] / prototypes[c].norm() / TAU).exp()
                away = sum((unit @ rows[j].detach() / rows[j].detach().norm() / TAU).exp() for j in mine)
                total = total - (positive / (positive + away)).log() / 6 / 3
        torch.testing.assert_close(found, total, atol=1e-10, rtol=1e-10)
        gradient, expected = (torch.autograd.grad(x, representations, retain_graph=True)[0] for x in (found, total))
        torch.testing.assert_close(gradient, expected, atol=1e-10, rtol=1e-10)


def test_active_leaves_classes_without_hard_pixels_out_of_the_mean() -> None:
    representations, prototypes = make(2)
    losses = []
    for mean_over in ("present", "active"):
        torch.manual_seed(0)
        losses.append(loss(representations, prototypes, mean_over=mean_over).item())
    assert losses[1] == pytest.approx(losses[0] * 3 / 2)  # classes 0, 2, 3 are present; of class 3 nothing is hard


def test_negative_classes_are_drawn_by_their_probabilities() -> None:
    torch.manual_seed(0)
    distribution = torch.tensor([[0.0, 0.2, 0.0, 0.8, 0.0], [1.0, 0.0, 0.0, 0.0, 0.0]])
    drawn = contrast._categories(distribution, torch.rand(2, 20_000))
    shares = torch.stack([(drawn == c).float().mean(dim=1) for c in range(5)], dim=1)
    torch.testing.assert_close(shares, distribution, atol=0.015, rtol=0)
    assert not shares[distribution == 0].any()


def test_a_gpu_and_a_cpu_take_the_same_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """All classes in fixed shapes, as on a GPU, give the loss of the classes that take part."""
    representations, prototypes = make(5)
    labels = torch.where(LABELS == 3, V, LABELS)
    with torch.no_grad():  # all pixels of a class alike, so that the draws, which differ, do not matter
        representations[0, :, 0, 1] = representations[0, :, 0, 0]
        representations[0, :, 1, 1] = representations[0, :, 1, 0]
    for negatives in ("shared", "per_anchor"):
        cpu = loss(representations, prototypes, labels=labels, negatives=negatives)
        monkeypatch.setattr(contrast, "_ON_HOST", ())
        fixed = loss(representations, prototypes, labels=labels, negatives=negatives)
        monkeypatch.undo()
        torch.testing.assert_close(cpu, fixed)


# ------------------------------------------------------------------------------------------------------------- several ranks


class Together:
    """Ranks that are threads: each adds up a tensor with the others', as all-reduce does between processes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.given: list[torch.Tensor] = [torch.empty(0)] * size
        self.barrier = threading.Barrier(size)

    def rank(self, rank: int) -> Ranks:
        def total(tensor: torch.Tensor) -> torch.Tensor:
            self.given[rank] = tensor.detach()
            self.barrier.wait(60)
            summed = torch.stack([each.clone() for each in self.given]).sum(dim=0)
            self.barrier.wait(60)
            return summed

        return Ranks(rank, self.size, total)

    def mean(self, batches: list[dict[str, Any]], draws: int, **settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """[draws] losses, each the mean of the ranks', and the gradient at the representations of all, a mean over the draws."""
        losses = torch.zeros(self.size, draws)
        gradients = [torch.zeros_like(batch["representations"]) for batch in batches]

        def work(rank: int) -> None:
            for draw in range(draws):
                found = loss(**batches[rank], **settings, ranks=self.rank(rank))
                gradients[rank] += torch.autograd.grad(found / self.size, batches[rank]["representations"])[0] / draws
                losses[rank, draw] = found.detach()

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return losses.mean(dim=0), torch.cat(gradients)


def split_by_class() -> list[dict[str, Any]]:
    """Class 0 on rank 0, class 1 on rank 1, of class 2 more on rank 1, of class 3 nothing anywhere."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.tensor([[[0, 0, 2], [0, V, 2]], [[1, 1, 2], [2, 2, 2]]])
    hard = torch.tensor([[[True, True, False], [True, True, True]], [[True, False, True], [True, False, True]]])
    representations = torch.randn(2, 4, 2, 3, generator=generator)
    return [
        {"representations": representations[[rank]].requires_grad_(), "labels": labels[[rank]], "hard": hard[[rank]]}
        for rank in range(2)
    ]


def joined(batches: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: torch.cat([batch[name].detach() for batch in batches]) for name in batches[0]}


@pytest.mark.parametrize("mean_over", ["present", "active"])
@pytest.mark.parametrize("negatives", ["shared", "per_anchor"])
def test_ranks_with_other_classes_have_the_loss_of_their_joined_batch(negatives: str, mean_over: str) -> None:
    torch.manual_seed(0)
    batches, prototypes = split_by_class(), make()[1]
    settings: dict[str, Any] = {
        "prototypes": prototypes, "num_queries": 8, "num_negatives": 8, "negatives": negatives, "mean_over": mean_over
    }  # fmt: skip
    draws = 600
    found, gradient = Together(2).mean(batches, draws, **settings)

    whole = joined(batches)
    whole["representations"].requires_grad_()
    expected = torch.stack([loss(**whole, **settings) for _ in range(draws)])
    expected_gradient = torch.autograd.grad(expected.mean(), whole["representations"])[0]
    expected = expected.detach()
    error = float((found.var() + expected.var()).div(draws).sqrt())
    assert float(expected.mean()) > 1
    # The anchors of all ranks draw from N pixels a class: of these 8 some come more often than others, which the logarithm likes.
    lower = 0.02 if negatives == "per_anchor" else 0.0
    assert -lower * float(expected.mean()) - 4 * error < float(found.mean() - expected.mean()) < 4 * error
    torch.testing.assert_close(gradient, expected_gradient, atol=0.015, rtol=0.1)

    # By itself a rank sees fewer classes: here, rank 0 no class 1 to tell class 0 from.
    own = torch.stack([loss(**batch, **settings).detach() for batch in batches for _ in range(200)]).mean()
    assert abs(float(own - expected.mean())) > 20 * error


def test_a_rank_with_one_class_is_not_without_contrast() -> None:
    """Class 0 on one rank, class 1 on the other: each by itself has nothing to separate."""
    batches, prototypes = split_by_class(), make()[1]
    for batch in batches:
        batch["labels"] = torch.where(batch["labels"] == 2, V, batch["labels"])
    alone = [float(loss(**batch, prototypes=prototypes).detach()) for batch in batches]
    found, _ = Together(2).mean(batches, 20, prototypes=prototypes)
    whole = torch.stack([loss(**joined(batches), prototypes=prototypes) for _ in range(20)])
    assert alone == [0, 0] and float(whole.mean()) > 1
    assert float(found.mean()) == pytest.approx(float(whole.mean()), rel=0.2)


def test_ranks_without_a_labelled_pixel_do_not_wait_for_the_others() -> None:
    batches = split_by_class()
    batches[1]["labels"] = torch.full_like(batches[1]["labels"], V)
    found, gradient = Together(2).mean(batches, 3, prototypes=make()[1])
    assert found.isfinite().all() and (found > 0).all()
    assert gradient[0].any() and not gradient[1].any()
    for batch in batches:
        batch["labels"] = torch.full_like(batch["labels"], V)
    found, gradient = Together(2).mean(batches, 3, prototypes=make()[1])
    assert not found.any() and not gradient.any()
