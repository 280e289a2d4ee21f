"""Two gloo ranks against one process on the joined batch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from css_ray import distributed
from css_ray.methods.prototypes import Prototypes
from css_ray.types import IGNORE_INDEX

sys.path.append(str(Path(__file__).parent / "methods"))

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
        prototypes.update(*shard(rank, step))
    found["prototypes"] = prototypes.state_dict()

    from contract import make_batch, make_method

    from css_ray.methods import CSS

    torch.manual_seed(0)
    method = make_method(CSS, unsup_threshold=0.0, valid_threshold=0.0, num_queries=8, num_negatives=8)
    torch.manual_seed(rank + 1)  # each rank draws its own views
    wrapped = DistributedDataParallel(method)  # raises where a parameter is left without a gradient
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        wrapped(make_batch(2 * step + rank), step / 3).total.backward()
        optimizer.step()
        method.after_step()
    found["parameters"] = {name: value.detach() for name, value in method.named_parameters()}
    found["css_prototypes"] = method.prototypes.state_dict()
    torch.save(found, f"{directory}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    directory = tmp_path_factory.mktemp("ranks")
    mp.spawn(on_rank, args=(2, str(directory)), nprocs=2)
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
        alone.update(*(torch.cat(pair) for pair in pairs))
    assert alone.seen.tolist() == [True, True, True, False]
    for found in ranks:
        torch.testing.assert_close(found["prototypes"]["value"], alone.value)
        assert torch.equal(found["prototypes"]["seen"], alone.seen)


def test_ranks_agree_on_student_teacher_and_prototypes(ranks: list[dict[str, Any]]) -> None:
    first, second = ranks
    assert torch.equal(first["prototypes"]["value"], second["prototypes"]["value"])
    for part in ("parameters", "css_prototypes"):
        for name, value in first[part].items():
            assert torch.equal(value, second[part][name]), name
    assert any(name.startswith("teacher.") for name in first["parameters"])
