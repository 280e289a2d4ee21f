"""ST++ from data on disk to scores: exact resume in each stage and at each border, labels that are made once, hidden masks."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from css_ray.data.label_file import LabelFile
from css_ray.data.shards import DataSet, DatasetInfo, open_dataset
from css_ray.data.writing import Row, rows_source, write_dataset
from css_ray.methods import STPP
from css_ray.study.inputs import Prepared
from css_ray.study.label_store import LabelStore
from css_ray.study.run import execute
from css_ray.training.checkpoint import DamagedError
from css_ray.training.reporter import FolderReporter, SilentReporter
from css_ray.types import IGNORE_INDEX, Batch, Clock
from tests.ranks import run_ranks
from tests.training.awkward import CLASSES, PALETTE, SIZES, prepared
from tests.training.test_stages import DyingReporter, Interrupted

torch.set_num_threads(1)

LABELLED = (0, 1, 2)
NUM_TRAIN = 9
SETTINGS: dict[str, Any] = {"shares": [0.3, 0.3, 0.4], "tta_scales": [0.5, 1.0]}
ITERATIONS = 20  # stages of 6, 6 and 8 steps


def row(number: int, masked: bool) -> Row:
    height, width = SIZES[number % len(SIZES)]
    mask = np.zeros((height, width), np.uint8)
    mask[:, width // 2 :] = 1
    image = np.random.RandomState(number).randint(0, 60, (height, width, 3)) + 150 * mask[:, :, None]
    png = io.BytesIO()
    Image.fromarray(image.astype(np.uint8)).save(png, "PNG")
    return Row(f"image-{number}", png.getvalue(), height, width, mask if masked else None)


def write(folder: Path, masked: int) -> DataSet:
    """The first `masked` of NUM_TRAIN training images have masks."""
    train = [row(number, number < masked) for number in range(NUM_TRAIN)]
    val = [row(100 + number, True) for number in range(3)]
    write_dataset(folder, rows_source(DatasetInfo("lines", CLASSES, PALETTE), {"train": train, "val": val}))
    return open_dataset(folder)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return write(tmp_path_factory.mktemp("prepared") / "lines", len(LABELLED))


def asked(dataset: DataSet, **method: Any) -> Prepared:
    found = prepared(dataset, "stpp", LABELLED, iterations=ITERATIONS, evaluate_every=4, diagnose_images=0)
    settings: Any = found.spec.settings
    settings["method"] |= SETTINGS | method
    return found


def train(
    dataset: DataSet, reporter: SilentReporter, folder: Path, *, checkpoint: Path | None = None, **method: Any
) -> dict[str, torch.Tensor]:
    """The method's last state, and what became of its pseudo-labels is in `folder`/labels."""
    kept: dict[str, STPP] = {}
    forward = STPP.forward

    def watched(self: STPP, batch: Batch, clock: Clock) -> Any:
        kept["method"] = self
        return forward(self, batch, clock)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(STPP, "forward", watched)
        execute(asked(dataset, **method), reporter, checkpoint=checkpoint, labels=str(folder / "labels"))
    return kept["method"].state_dict()


@pytest.fixture(scope="module")
def undisturbed(dataset: DataSet, tmp_path_factory: pytest.TempPathFactory) -> tuple[SilentReporter, dict[str, Any], Path]:
    folder, reporter = tmp_path_factory.mktemp("whole"), SilentReporter()
    return reporter, train(dataset, reporter, folder), folder


def files(folder: Path) -> dict[str, int]:
    """The files of pseudo-labels, and when each was written."""
    labels = folder / "labels"
    return {name: os.stat(labels / name).st_mtime_ns for name in os.listdir(labels)} if labels.exists() else {}


MOMENTS = [
    ("logged", 3), ("logged", 5), ("finished", 0), ("started", 1), ("logged", 7), ("logged", 10), ("finished", 1),
    ("started", 2), ("logged", 13), ("logged", 17), ("logged", 20), ("finished", 2),
]  # fmt: skip
"""In each stage before and after its evaluations, and before and after each border's checkpoint."""


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_that_dies_anywhere_resumes_bit_for_bit_and_labels_nothing_twice(
    moment: tuple[str, int], dataset: DataSet, undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, expected, labelled = undisturbed
    with pytest.raises(Interrupted):
        train(dataset, DyingReporter(tmp_path, moment), tmp_path)
    before = files(tmp_path)
    puts: list[int] = []
    put = LabelStore.put
    monkeypatch.setattr(LabelStore, "put", lambda self, labels: puts.append(0) or put(self, labels))  # type: ignore[func-returns-value]
    rest = FolderReporter(tmp_path)
    torch.manual_seed(12345)
    if moment == ("finished", 2):  # its last checkpoint is of the last step
        execute(asked(dataset), rest, checkpoint=rest.checkpoint, labels=str(tmp_path / "labels"))
        assert rest.logs == [] and puts == []
        return
    state = train(dataset, rest, tmp_path, checkpoint=rest.checkpoint)
    assert rest.logs == whole.logs[len(whole.logs) - len(rest.logs) :]
    assert rest.evaluations == whole.evaluations[len(whole.evaluations) - len(rest.evaluations) :]
    assert all(torch.equal(value, state[name]) for name, value in expected.items())
    after = files(tmp_path)
    assert after.keys() == files(labelled).keys() and len(after) == 2
    # Both borders label once over both lives; a border that was passed is not passed again.
    passed = {"logged": sum(moment[1] > end for end in (6, 12)), "finished": moment[1], "started": moment[1]}[moment[0]]
    assert len(before) == passed and len(puts) == 2 - passed
    assert all(after[name] == written for name, written in before.items())


def test_labels_are_those_of_the_images_and_the_first_stay(dataset: DataSet, undisturbed: Any) -> None:
    *_, folder = undisturbed
    first, second = sorted((LabelFile(folder / "labels" / name) for name in files(folder)), key=len)
    unlabelled = [f"image-{number}" for number in range(3, NUM_TRAIN)]
    assert len(first) == 3 and set(first.ids) < set(unlabelled) and list(second.ids) == unlabelled
    for index, id in enumerate(second.ids):
        labels = second.labels(index)
        assert tuple(labels.shape) == SIZES[int(id.split("-")[1]) % len(SIZES)] and labels.max() < len(CLASSES)
        if id in first.ids:
            assert torch.equal(labels, first.labels(first.ids.index(id)))


def test_stages_have_their_batches_and_begin_with_the_first_learning_rate(dataset: DataSet, tmp_path: Path) -> None:
    seen: list[tuple[int, int, int]] = []
    forward = STPP.forward

    def watched(self: STPP, batch: Batch, clock: Clock) -> Any:
        pseudo = torch.zeros(4, dtype=torch.bool) if batch.pseudo is None else batch.pseudo
        assert len(pseudo) == len(batch.labelled_images) == 4 and len(batch.unlabelled_images) == 0
        # Pseudo-labels are not void, but in padding; labelled images show their masks.
        assert ((batch.labels != IGNORE_INDEX).flatten(1).any(dim=1)).all()
        seen.append((clock.stage, clock.step, int(pseudo.sum())))
        return forward(self, batch, clock)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(STPP, "forward", watched)
        reporter = SilentReporter()
        execute(asked(dataset), reporter, labels=str(tmp_path / "labels"))
    assert [(stage, step) for stage, step, _ in seen] == [(s, t) for s, n in enumerate((6, 6, 8)) for t in range(n)]
    counts = [sum(count for stage, _, count in seen if stage == number) for number in range(3)]
    assert counts[0] == 0 and counts[1] == 6 * 4 // 2 and abs(counts[2] - 8 * 4 // 2) <= 2  # 3 + 3 and 6 + 6 in a pass
    rates = [metrics["train/lr"] for _, metrics in reporter.logs]
    assert rates[6] == rates[12] == rates[0] and rates[5] < rates[0] / 2
    assert reporter.stages == [(0, "supervised"), (6, "reliable"), (12, "all")]


def test_masks_of_unlabelled_images_change_nothing(dataset: DataSet, undisturbed: Any, tmp_path: Path) -> None:
    """`dataset` has no masks but of the labelled images; here all training images have one."""
    whole, expected, _ = undisturbed
    with_masks, reporter = write(tmp_path / "lines", NUM_TRAIN), SilentReporter()
    state = train(with_masks, reporter, tmp_path)
    assert dataset.train.num_masks == len(LABELLED) and with_masks.train.num_masks == NUM_TRAIN
    assert reporter.logs == whole.logs and reporter.evaluations == whole.evaluations
    assert all(torch.equal(value, state[name]) for name, value in expected.items())


@pytest.mark.parametrize("damage", ["missing", "altered"])
def test_a_run_does_not_continue_without_the_labels_of_its_stage(dataset: DataSet, tmp_path: Path, damage: str) -> None:
    with pytest.raises(Interrupted):
        train(dataset, DyingReporter(tmp_path, ("logged", 9)), tmp_path)
    ((name, _),) = files(tmp_path).items()
    path = tmp_path / "labels" / name
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1] + b"\0")
    rest = FolderReporter(tmp_path)
    message = rf"checkpoint .*state.pt cannot be read \(the pseudo-labels .*{name} of its stage (are missing|were altered)\); "
    with pytest.raises(DamagedError, match=message + "remove its folder to train this run again from its start"):
        execute(asked(dataset), rest, checkpoint=rest.checkpoint, labels=str(tmp_path / "labels"))
    assert rest.logs == []


def test_a_run_without_a_place_for_labels_keeps_none(dataset: DataSet, undisturbed: Any) -> None:
    whole, *_ = undisturbed
    reporter = SilentReporter()
    execute(asked(dataset), reporter)
    assert reporter.logs == whole.logs and reporter.evaluations == whole.evaluations


def _rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    place = Path(folder)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    reporter = SilentReporter()
    state = train(open_dataset(place / "lines"), reporter, place)
    torch.save({"state": state, "logs": reporter.logs, "files": files(place)}, place / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_label_their_shares_and_learn_from_all(tmp_path: Path) -> None:
    write(tmp_path / "lines", len(LABELLED))
    run_ranks(_rank, str(tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first["logs"] == second["logs"] and len(first["logs"]) == ITERATIONS
    assert all(torch.equal(value, second["state"][name]) for name, value in first["state"].items())
    assert first["files"] == second["files"]
    sizes = sorted(len(LabelFile(tmp_path / "labels" / name)) for name in first["files"])
    assert sizes == [3, NUM_TRAIN - 3]
