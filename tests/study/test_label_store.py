"""Pseudo-labels of a run in files: whole or not at all, by digest, one for all ranks."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from css_ray.study.label_store import LabelStore, check_labels, file_name
from tests.ranks import run_ranks

IDS = tuple(f"image {number}" for number in range(7))


def image(id: str) -> Tensor:
    return torch.full((3, 4, 5), float(id.split()[1]))


def store(place: Path | str, scratch: Path, world_size: int = 1, rank: int = 0) -> LabelStore:
    def images(ids: Sequence[str]) -> Iterator[Tensor]:
        mine = ids[rank::world_size]
        for start in range(0, len(mine), 2):
            yield torch.stack([image(id) for id in mine[start : start + 2]])

    scratch.mkdir(exist_ok=True)
    return LabelStore(str(place), IDS[::-1], images, scratch=scratch, with_room=lambda write, place: write())


def made(id: str) -> Tensor:
    return image(id)[0].long() + 10


def label(kept: LabelStore, ids: Sequence[str]) -> None:
    kept.put((id, images[index, 0].long() + 10) for them, images in kept.images(ids) for index, id in enumerate(them))


def holds(kept: LabelStore, ids: Sequence[str]) -> bool:
    assert kept.file is not None and kept.labelled == tuple(sorted(ids))
    return all(torch.equal(kept.file.labels(index), made(id).byte()) for index, id in enumerate(kept.labelled))


@pytest.mark.parametrize("url", [False, True])
def test_what_was_put_is_read_again_by_its_digest(url: bool, tmp_path: Path) -> None:
    place = f"file://{tmp_path}/labels" if url else str(tmp_path / "labels")
    kept = store(place, tmp_path / "scratch")
    assert kept.ids == IDS and kept.digest == "" and kept.labelled == ()
    label(kept, [IDS[4], IDS[1]])
    assert holds(kept, [IDS[1], IDS[4]])
    first = kept.digest
    kept.put((id, torch.zeros(4, 5, dtype=torch.int64)) for id in IDS[:0])
    assert kept.digest == first  # the same labels are the same file
    label(kept, [id for id in IDS if id not in kept.labelled])
    assert holds(kept, IDS) and kept.digest != first
    assert sorted(os.listdir(tmp_path / "labels")) == sorted(map(file_name, (first, kept.digest)))

    again = store(place, tmp_path / "other")
    again.open(kept.digest)
    assert holds(again, IDS)
    again.open(first)
    assert holds(again, [IDS[1], IDS[4]])
    again.open("")
    assert again.labelled == () and again.file is None


def test_labels_that_are_missing_or_altered_are_refused(tmp_path: Path) -> None:
    kept = store(tmp_path / "labels", tmp_path / "scratch")
    label(kept, IDS)
    path, digest = tmp_path / "labels" / file_name(kept.digest), kept.digest
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], whole[:-9] + bytes(9), whole + b"\0"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"^the pseudo-labels .*{path.name} of its stage were altered$"):
            store(tmp_path / "labels", tmp_path / "scratch").open(digest)
    path.unlink()
    with pytest.raises(ValueError, match=rf"^the pseudo-labels .*{path.name} of its stage are missing$"):
        check_labels(str(tmp_path / "labels"), digest)


def _rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    kept = store(Path(folder) / "labels", Path(folder) / f"scratch{rank}", 2, rank)
    asked = IDS[:3], IDS[:0], IDS[3:]
    for ids in asked:
        label(kept, ids)
    assert holds(kept, IDS)
    Path(folder, f"digest{rank}").write_text(kept.digest)
    torch.distributed.destroy_process_group()


def test_two_ranks_write_the_file_of_one(tmp_path: Path) -> None:
    run_ranks(_rank, str(tmp_path))
    alone = store(tmp_path / "alone", tmp_path / "scratch")
    label(alone, IDS)
    assert {(tmp_path / f"digest{rank}").read_text() for rank in range(2)} == {alone.digest}
