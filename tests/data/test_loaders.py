"""Loaders: pure functions of the step, shared among ranks without overlap, nothing drawn from torch's generators."""

from __future__ import annotations

import io
import itertools
import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from multiprocessing.synchronize import SemLock
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from css_ray.data import loaders, shards
from css_ray.data.images import decode_mask
from css_ray.data.label_file import LabelFile, encode_file, encode_labels
from css_ray.data.loaders import (
    Loader,
    StoredBatch,
    TrainBatches,
    WorkerDiedError,
    make_train_loader,
    make_unlabelled_val_loader,
    make_val_loader,
    make_whole_loader,
)
from css_ray.data.shards import DataSet, DatasetInfo, Shards, open_dataset
from css_ray.data.splits import Split
from css_ray.data.writing import Row, rows_source, write_dataset
from css_ray.study.inputs import Prepared
from css_ray.study.job import RunSpec
from css_ray.study.run import execute
from css_ray.training.reporter import SilentReporter
from css_ray.types import IGNORE_INDEX, Batch
from css_ray.views import Views

SIZES = ((12, 10), (6, 5), (12, 16), (3, 9))  # height, width: larger, smaller and much smaller than the crop of 8
NUM_TRAIN, NUM_VAL = 12, 11
VAL_SIZES = ((7, 9),) * 4 + ((9, 7),) * 3 + ((7, 9),) * 4


def row(id: str, number: int, size: tuple[int, int], masked: bool = True) -> Row:
    """An image whose red channel is `number` everywhere, and whose mask is `number` too."""
    image = np.random.RandomState(number).randint(0, 256, (*size, 3)).astype(np.uint8)
    image[..., 0] = number
    png = io.BytesIO()
    Image.fromarray(image).save(png, "PNG")
    return Row(id, png.getvalue(), *size, np.full(size, number, np.uint8) if masked else None)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """Training images 0..11, of which the first five have a mask; validation images 0..10 of two sizes."""

    rows = {
        "train": [row(f"train-{n:02d}", n, SIZES[n % len(SIZES)], n < 5) for n in range(NUM_TRAIN)],
        "val": [row(f"val-{n:02d}", n, VAL_SIZES[n]) for n in range(NUM_VAL)],
    }
    info = DatasetInfo("toy", tuple(f"class {n}" for n in range(12)), ((0, 0, 0),) * 12)
    folder = tmp_path_factory.mktemp("prepared") / "toy"
    write_dataset(folder, rows_source(info, rows))
    return open_dataset(folder)


@pytest.fixture
def split(dataset: DataSet) -> Split:
    ids = dataset.train.ids
    return Split(0, ids[:5], ids[5:], "")


def settings(**changes: Any) -> dict[str, Any]:
    return {
        "crop": 8,
        "labelled_batch": 4,
        "unlabelled_batch": 3,
        "views": Views(),
        "seed": 0,
        "rank": 0,
        "world_size": 1,
        "start_step": 0,
        "num_steps": 10,
        "num_workers": 0,
    } | changes


def load(dataset: DataSet, split: Split, **changes: Any) -> list[Batch]:
    with make_train_loader(dataset, split, **settings(**changes)) as loader:
        return list(loader)


def tensors(batch: Batch) -> tuple[torch.Tensor, ...]:
    return batch.labelled_images, batch.labels, batch.unlabelled_images, batch.unlabelled_valid


def equal(some: Batch, other: Batch) -> bool:
    return all(torch.equal(one, two) for one, two in zip(tensors(some), tensors(other), strict=True))


def labelled_numbers(batches: list[Batch]) -> list[int]:
    """Which images were drawn, by the red channel; scaling leaves a constant channel as it is."""
    return [round(255 * float(image[0, 0, 0])) for batch in batches for image in batch.labelled_images]


def unlabelled_numbers(batches: list[Batch]) -> list[int]:
    return [round(255 * float(image[0, 0, 0])) for batch in batches for image in batch.unlabelled_images]


def test_shapes_types_and_ranges(dataset: DataSet, split: Split) -> None:
    for batch in load(dataset, split):
        assert (batch.labelled_images.shape, batch.labelled_images.dtype) == ((4, 3, 8, 8), torch.float32)
        assert (batch.labels.shape, batch.labels.dtype) == ((4, 8, 8), torch.int64)
        assert (batch.unlabelled_images.shape, batch.unlabelled_images.dtype) == ((3, 3, 8, 8), torch.float32)
        assert (batch.unlabelled_valid.shape, batch.unlabelled_valid.dtype) == ((3, 8, 8), torch.bool)
        for images in (batch.labelled_images, batch.unlabelled_images):
            assert images.min() >= 0 and 0.5 < images.max() <= 1
        for number, labels in zip(labelled_numbers([batch]), batch.labels, strict=True):
            assert set(labels.unique().tolist()) <= {number, IGNORE_INDEX} and number in labels


def test_what_is_drawn(dataset: DataSet, split: Split) -> None:
    batches = load(dataset, split, num_steps=35)  # 140 labelled and 105 unlabelled images: 28 and 15 epochs
    for numbers, pool in ((labelled_numbers(batches), range(5)), (unlabelled_numbers(batches), range(5, 12))):
        epochs = [tuple(numbers[start : start + len(pool)]) for start in range(0, len(numbers), len(pool))]
        assert all(sorted(epoch) == list(pool) for epoch in epochs)  # each image once an epoch
        assert len(set(epochs)) > 10  # in another order each time


def test_the_streams_are_frozen(dataset: DataSet, split: Split) -> None:
    # The same for every version of Python and torch: a study can be repeated.
    batches = load(dataset, split, num_steps=3)
    assert labelled_numbers(batches) == [3, 0, 4, 1, 2, 3, 2, 0, 1, 4, 1, 0]
    assert unlabelled_numbers(batches) == [10, 9, 7, 8, 6, 11, 5, 10, 5]
    # 12x10, 6x5, 12x16 and 3x9 images fill 64, 30, 64 and 24 pixels of a crop.
    assert [int(batch.unlabelled_valid.sum()) for batch in batches] == [64 + 30 + 24, 64 + 64 + 24, 30 + 64 + 30]


def test_a_batch_may_be_larger_than_the_pool(dataset: DataSet, split: Split) -> None:
    (batch,) = load(dataset, split, labelled_batch=13, num_steps=1)
    assert sorted(Counter(labelled_numbers([batch])).values()) == [2, 2, 3, 3, 3]
    again = [batch.labelled_images[place] for place, number in enumerate(labelled_numbers([batch])) if number == 0]
    assert not torch.equal(again[0], again[1])  # each time it is augmented anew


def test_steps_are_pure(dataset: DataSet, split: Split) -> None:
    whole = load(dataset, split)
    resumed = load(dataset, split, start_step=6)
    assert (len(whole), len(resumed)) == (10, 4)
    assert all(map(equal, whole[6:], resumed))
    batches = TrainBatches(
        dataset, split, crop=8, labelled_batch=4, unlabelled_batch=3, views=Views(), seed=0, rank=0, world_size=1
    )
    assert equal(batches[9].to("cpu"), whole[9]) and equal(batches[2].to("cpu"), whole[2])  # in any order
    assert not any(equal(one, other) for one, other in itertools.pairwise(whole))
    assert not equal(load(dataset, split, seed=1)[0], whole[0])
    assert load(dataset, split, start_step=10) == []


@pytest.mark.parametrize(
    ("labelled_batch", "world_size", "epochs"),
    [
        (1, 1, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]),  # 5 labelled images
        (2, 1, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]),  # two whole batches, the fifth image is not counted
        (1, 2, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]),  # three images a rank, one of them twice
        (4, 1, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (3, 2, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),  # a batch larger than the pool is an epoch
    ],
)
def test_epochs_are_counted_in_whole_labelled_batches(
    dataset: DataSet, split: Split, labelled_batch: int, world_size: int, epochs: list[int]
) -> None:
    changes = {"labelled_batch": labelled_batch, "world_size": world_size}
    for rank in range(world_size):
        assert [batch.labelled_epoch for batch in load(dataset, split, rank=rank, **changes)] == epochs
    assert [batch.labelled_epoch for batch in load(dataset, split, start_step=7, **changes)] == epochs[7:]


def test_an_image_is_changed_anew_at_each_step_and_seed(dataset: DataSet) -> None:
    one = Split(0, ("train-02",), ("train-06",), "")  # 12x16 pixels: 45 places for an unlabelled crop of 8
    batches = [
        batch
        for seed in range(2)
        for batch in load(dataset, one, seed=seed, labelled_batch=1, unlabelled_batch=1, num_steps=10)
    ]
    for images in ([batch.labelled_images for batch in batches], [batch.unlabelled_images for batch in batches]):
        assert len({image.numpy().tobytes() for image in images}) > 12  # 20 draws; 10 if a step or a seed played no part


def test_ranks_share_the_global_batch(dataset: DataSet, split: Split) -> None:
    whole = load(dataset, split, labelled_batch=6, unlabelled_batch=4)
    ranks = [load(dataset, split, labelled_batch=3, unlabelled_batch=2, rank=rank, world_size=2) for rank in range(2)]
    for batch, *parts in zip(whole, *ranks, strict=True):
        joined = Batch(*(torch.cat(part) for part in zip(*map(tensors, parts), strict=True)))  # type: ignore[arg-type]
        assert equal(batch, joined)


def test_the_streams_are_independent(dataset: DataSet, split: Split) -> None:
    some, other = load(dataset, split), load(dataset, split, unlabelled_batch=1)
    assert all(torch.equal(one.labelled_images, two.labelled_images) for one, two in zip(some, other, strict=True))


def test_supervised_reads_no_unlabelled_image(dataset: DataSet, split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    sample = Shards.sample
    monkeypatch.setattr(Shards, "sample", lambda self, index, **kw: read.append(index) or sample(self, index, **kw))  # type: ignore[func-returns-value]
    for batch in load(dataset, split, unlabelled_batch=0):
        assert (batch.unlabelled_images.shape, batch.unlabelled_valid.shape) == ((0, 3, 8, 8), (0, 8, 8))
        assert (batch.unlabelled_images.dtype, batch.unlabelled_valid.dtype) == (torch.float32, torch.bool)
    assert set(read) == set(range(5))
    full = Split(0, split.labelled, (), "")
    assert len(load(dataset, full, unlabelled_batch=0)) == 10


def test_unlabelled_masks_are_never_decoded(dataset: DataSet, monkeypatch: pytest.MonkeyPatch) -> None:
    # Images 1..4 have masks that the split hides.
    decoded: list[int] = []
    decode = decode_mask
    monkeypatch.setattr(shards, "decode_mask", lambda data: decoded.append(1) or decode(data))  # type: ignore[func-returns-value]
    ids = dataset.train.ids
    batches = load(dataset, Split(0, ids[:1], ids[1:], ""), num_steps=20)
    assert set(unlabelled_numbers(batches)) == set(range(1, 12))
    assert len(decoded) == 1  # the one labelled image, and then kept


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_workers_change_nothing_and_torchs_generator_stays(dataset: DataSet, split: Split, num_workers: int, rank: int) -> None:
    before = torch.get_rng_state()
    batches = load(dataset, split, num_workers=num_workers, start_step=3, rank=rank, world_size=2)
    assert all(map(equal, batches, load(dataset, split, rank=rank, world_size=2)[3:]))
    assert len(batches) == 7
    assert torch.equal(torch.get_rng_state(), before)


def test_unlabelled_images_are_trained_on_with_masks_that_cannot_be_read(
    dataset: DataSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    labelled, decode = dataset.train.encoded(0)[1], decode_mask

    def refuse_others(encoded: Any) -> torch.Tensor:
        if encoded != labelled:
            raise ValueError("no PNG")
        return decode(encoded)

    monkeypatch.setattr(shards, "decode_mask", refuse_others)  # in worker processes too, which are forked
    with pytest.raises(ValueError, match=r"train-00000-.*\.arrow: the mask of train-01 cannot be decoded .*css-ray data check"):
        dataset.train.sample(1)
    ids = dataset.train.ids
    batches = load(dataset, Split(0, ids[:1], ids[1:], ""), num_workers=1)
    assert set(unlabelled_numbers(batches)) == set(range(1, NUM_TRAIN))


class Told(Dataset[tuple[int, int, int]]):
    """Says of each batch who loaded it, with how many threads; slow enough for two workers to share the work."""

    def __getitem__(self, number: int) -> tuple[int, int, int]:
        time.sleep(0.01)
        return number, os.getpid(), torch.get_num_threads()


def told(num_workers: int, name: str = "training", count: int = 8) -> Loader[Any]:
    return Loader(name, Told(), range(count), lambda item: item, num_workers=num_workers)


def test_workers_have_one_thread_and_stay_from_one_iteration_to_the_next() -> None:
    before = set(multiprocessing.active_children())
    with told(num_workers=2) as loader:
        first, second = list(loader), list(loader)
        assert [number for number, _, _ in first] == [number for number, _, _ in second] == list(range(8))
        assert {threads for _, _, threads in first} == {1}
        pids = {pid for _, pid, _ in first}
        assert len(pids) == 2 and os.getpid() not in pids and {pid for _, pid, _ in second} == pids
    assert set(multiprocessing.active_children()) == before
    assert not {pid for _, pid, _ in loader} & pids  # new ones, after the others were ended
    loader.close()
    loader.close()
    assert set(multiprocessing.active_children()) == before


def test_workers_end_with_the_block_though_an_error_holds_on_to_the_iteration() -> None:
    before = set(multiprocessing.active_children())
    with pytest.raises(KeyError) as caught, told(num_workers=2) as loader:
        for number, _, _ in loader:
            raise KeyError(number)
    assert set(multiprocessing.active_children()) == before
    assert caught.value.args == (0,)


def test_an_iteration_may_begin_before_another_has_ended() -> None:
    with told(num_workers=2) as loader:
        for number, _, _ in loader:
            if number == 2:
                break
        assert [number for number, _, _ in loader] == list(range(8))


class Stuck(Dataset[int]):
    """Its worker waits for a disk that does not answer."""

    def __getitem__(self, number: int) -> int:
        if number == 3:
            time.sleep(120)
        return number


def test_a_worker_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "CLOSE_SECONDS", 0.3)
    before = set(multiprocessing.active_children())
    with Loader("training", Stuck(), range(60), lambda item: item, num_workers=1) as loader:
        for number in loader:
            if number == 2:
                break
        started = time.monotonic()
    assert time.monotonic() - started < 10
    assert set(multiprocessing.active_children()) == before


def test_no_more_workers_than_batches() -> None:
    with told(num_workers=2, count=1) as loader:
        assert len(list(loader)) == len(multiprocessing.active_children()) == 1
    with told(num_workers=2, count=0) as loader:
        assert list(loader) == []


def kill_while_at_work(loader: Loader[Any]) -> None:
    for number, pid, _ in loader:
        if number == 3:
            os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)


def kill_while_reading(loader: Loader[Any]) -> None:
    for number, pid, _ in loader:
        if number == 3:
            os.kill(pid, signal.SIGKILL)


def kill_while_idle(loader: Loader[Any]) -> None:
    pids = [pid for _, pid, _ in loader]
    os.kill(pids[-1], signal.SIGKILL)
    time.sleep(0.2)
    list(loader)


@pytest.mark.parametrize(
    ("kill", "in_main_thread"),
    [
        (kill_while_at_work, True),
        (kill_while_reading, True),
        (kill_while_idle, True),
        (kill_while_reading, False),  # as under Ray
        (kill_while_idle, False),
    ],
)
def test_a_killed_worker_is_named_with_the_remedy(kill: Callable[[Loader[Any]], None], in_main_thread: bool) -> None:
    before = set(multiprocessing.active_children())
    errors: list[BaseException] = []

    def run() -> None:
        try:
            with told(num_workers=2, name="validation", count=60) as loader:
                kill(loader)
        except Exception as error:
            errors.append(error)

    if in_main_thread:
        run()
    else:
        thread = threading.Thread(target=run)
        thread.start()
        thread.join(timeout=30)
        assert not thread.is_alive()
    (error,) = errors
    assert isinstance(error, WorkerDiedError), repr(error)
    assert "(SIGKILL) of the validation loader died" in str(error) and "lower data.loader_workers (now 2)" in str(error)
    assert set(multiprocessing.active_children()) == before


class DiesHoldingLocks(Dataset[int]):
    """Its worker is killed at the worst moment: while it holds all the locks that it was seen to take before."""

    def __init__(self) -> None:
        self.taken: list[SemLock] = []

    def __getitem__(self, number: int) -> int:
        enter = SemLock.__enter__

        def watched(lock: SemLock) -> bool:
            self.taken.append(lock)
            return enter(lock)

        if not self.taken:  # once in each worker; it takes the locks of its process group between two batches
            SemLock.__enter__ = watched  # type: ignore[method-assign]
        if len(self.taken) > 3:
            for lock in self.taken:
                lock.acquire(False)
            os.kill(os.getpid(), signal.SIGKILL)
        return number


@pytest.mark.timeout(60)
def test_a_worker_that_is_killed_while_it_holds_a_lock_stops_nobody() -> None:
    before = set(multiprocessing.active_children())
    loader = Loader("training", DiesHoldingLocks(), range(60), lambda item: item, num_workers=2)
    with pytest.raises(WorkerDiedError, match=r"\(SIGKILL\) of the training loader died"), loader:
        list(loader)
    assert set(multiprocessing.active_children()) == before


def test_errors_of_the_caller_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="out of memory") as caught, told(num_workers=1) as loader:
        for _ in loader:
            raise RuntimeError("out of memory")
    assert not isinstance(caught.value, WorkerDiedError)


def test_a_number_of_workers_below_0_is_refused(dataset: DataSet, split: Split) -> None:
    with pytest.raises(ValueError, match="num_workers must be >= 0, got -1; 0 loads in the training process"):
        make_train_loader(dataset, split, **settings(num_workers=-1))


def test_batches_cross_processes(dataset: DataSet, split: Split) -> None:
    batches = TrainBatches(
        dataset, split, crop=8, labelled_batch=2, unlabelled_batch=2, views=Views(), seed=3, rank=0, world_size=1
    )
    assert equal(pickle.loads(pickle.dumps(batches))[5].to("cpu"), batches[5].to("cpu"))


def test_batches_cross_processes_in_8_bits(dataset: DataSet, split: Split) -> None:
    batches = TrainBatches(
        dataset, split, crop=8, labelled_batch=2, unlabelled_batch=2, views=Views(), seed=3, rank=0, world_size=1
    )
    stored = batches[0]
    assert isinstance(stored, StoredBatch) and pickle.loads(pickle.dumps(stored)).labelled_epoch == 0
    images, labels, weak, valid = stored[:4]
    assert images.dtype == labels.dtype == weak.dtype == torch.uint8 and valid.dtype == torch.bool


def test_all_values_become_their_share_of_255() -> None:
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    batch = StoredBatch(values, values[:, 0], values, values[:, 0] > 0, 7).to("cpu")
    expected = (values.numpy().astype(np.float64) / 255).astype(np.float32)
    assert np.array_equal(batch.labelled_images.numpy(), expected) and np.array_equal(batch.unlabelled_images.numpy(), expected)
    assert torch.equal(batch.labels, torch.arange(256).view(1, 16, 16)) and batch.labels[0, 15, 15] == IGNORE_INDEX
    assert batch.labelled_epoch == 7


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
def test_batches_are_the_same_on_a_gpu(dataset: DataSet, split: Split) -> None:
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    stored = StoredBatch(values, values[:, 0], values, values[:, 0] > 0, 0)
    assert equal(stored.to("cuda").to("cpu"), stored.to("cpu"))
    for num_workers in (0, 2):  # with workers, through pinned memory
        with make_train_loader(dataset, split, **settings(num_workers=num_workers, device="cuda")) as loader:
            found = list(loader)
        assert all(batch.labelled_images.is_cuda and batch.labels.is_cuda for batch in found)
        assert all(equal(batch.to("cpu"), expected) for batch, expected in zip(found, load(dataset, split), strict=True))
        with make_val_loader(dataset.val, rank=0, world_size=1, batch_size=3, num_workers=num_workers, device="cuda") as val:
            for (images, labels), pair in zip(
                val, make_val_loader(dataset.val, rank=0, world_size=1, batch_size=3), strict=True
            ):
                assert torch.equal(images.cpu(), pair[0]) and torch.equal(labels.cpu(), pair[1])


def test_decoded_images_are_kept_within_the_bound(dataset: DataSet, split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    sample = Shards.sample
    monkeypatch.setattr(Shards, "sample", lambda self, index, **kw: read.append(index) or sample(self, index, **kw))  # type: ignore[func-returns-value]
    kept = load(dataset, split, num_steps=20)
    assert sorted(read) == list(range(NUM_TRAIN))
    # All five labelled images take 4 bytes a pixel: one byte less, and each is decoded at each access.
    num_bytes = 4 * sum(height * width for height, width in dataset.train.sizes[:5])
    for bound, reads in ((num_bytes, 5), (num_bytes - 1, 80)):
        monkeypatch.setattr(loaders, "CACHE_BYTES", bound)
        read.clear()
        batches = load(dataset, split, num_steps=20, unlabelled_batch=0)
        assert len(read) == reads
        assert all(torch.equal(one.labelled_images, two.labelled_images) for one, two in zip(batches, kept, strict=True))


@pytest.mark.parametrize("world_size", [1, 3, 20])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_each_validation_image_is_judged_once(dataset: DataSet, world_size: int, batch_size: int) -> None:
    numbers = []
    for rank in range(world_size):
        for images, labels in make_val_loader(dataset.val, rank=rank, world_size=world_size, batch_size=batch_size):
            assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
            assert images.shape == (len(labels), 3, *labels.shape[1:]) and len(images) <= batch_size
            for image, label in zip(images, labels, strict=True):
                number = int(label[0, 0])
                assert tuple(label.shape) == VAL_SIZES[number]
                assert torch.equal(image, dataset.val[number].image / 255) and bool((label == number).all())
                numbers.append(number)
    assert sorted(numbers) == list(range(NUM_VAL))


def test_validation_batches_are_full_and_repeatable(dataset: DataSet) -> None:
    loader = make_val_loader(dataset.val, rank=0, world_size=1, batch_size=3)
    first = list(loader)
    assert [len(images) for images, _ in first] == [3, 1, 3, 3, 1]
    for _ in range(2):
        for (images, labels), (again, labels_again) in zip(first, loader, strict=True):
            assert torch.equal(images, again) and torch.equal(labels, labels_again)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_validation_with_workers_is_validation_without(dataset: DataSet, num_workers: int) -> None:
    before = torch.get_rng_state()
    plain = list(make_val_loader(dataset.val, rank=1, world_size=2, batch_size=2))
    with make_val_loader(dataset.val, rank=1, world_size=2, batch_size=2, num_workers=num_workers) as loader:
        for _ in range(3):
            for (images, labels), (expected, right) in zip(loader, plain, strict=True):
                assert torch.equal(images, expected) and torch.equal(labels, right)
    ids = dataset.train.ids
    chosen: dict[str, Any] = {"count": 9, "rank": 0, "world_size": 1, "batch_size": 2}
    split = Split(0, ids[:1], ids[1:], "")
    alone = make_unlabelled_val_loader(dataset, split, **chosen)
    scored = make_unlabelled_val_loader(dataset, split, **chosen, num_workers=num_workers)
    assert alone is not None and scored is not None
    with scored:
        for (images, labels), (same, right) in zip(scored, alone, strict=True):
            assert torch.equal(images, same) and torch.equal(labels, right)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_validation_image_without_a_mask_is_named(dataset: DataSet, num_workers: int) -> None:
    loader = make_val_loader(dataset.train, rank=0, world_size=1, batch_size=1, num_workers=num_workers)
    with pytest.raises(ValueError, match="these have none: train-05"), loader:
        list(loader)


@pytest.mark.parametrize("world_size", [1, 2, 5])
@pytest.mark.parametrize(("count", "expected"), [(1, [1]), (3, [1, 2, 3]), (4, [1, 2, 3, 4]), (100, [1, 2, 3, 4])])
def test_unlabelled_images_with_a_mask_are_scored_once(
    dataset: DataSet, monkeypatch: pytest.MonkeyPatch, world_size: int, count: int, expected: list[int]
) -> None:
    # Images 0..4 have masks. Image 0 is labelled here; 5..11 are unlabelled and have none.
    decoded: list[int] = []
    sample = Shards.sample
    monkeypatch.setattr(Shards, "sample", lambda self, index, **kw: decoded.append(index) or sample(self, index, **kw))  # type: ignore[func-returns-value]
    ids = dataset.train.ids
    numbers: list[int] = []
    for rank in range(world_size):
        split = Split(0, ids[:1], ids[1:], "")
        loader = make_unlabelled_val_loader(dataset, split, count=count, rank=rank, world_size=world_size, batch_size=2)
        assert loader is not None  # also on a rank without an image: all ranks know alike that there are some
        found = []
        for images, labels in loader:
            assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
            assert images.shape == (len(labels), 3, *labels.shape[1:])
            for label in labels:
                number = int(label[0, 0])
                assert tuple(label.shape) == SIZES[number % len(SIZES)] and bool((label == number).all())
                found.append(number)
        assert found == expected[rank::world_size]
        numbers += found
    assert sorted(numbers) == sorted(decoded) == expected


def test_no_unlabelled_image_has_a_mask(dataset: DataSet, split: Split) -> None:
    settings: dict[str, Any] = {"rank": 0, "world_size": 1, "batch_size": 1}
    assert make_unlabelled_val_loader(dataset, split, count=9, **settings) is None  # all that have one are labelled
    ids = dataset.train.ids
    assert make_unlabelled_val_loader(dataset, Split(0, ids[:1], ids[1:], ""), count=0, **settings) is None
    with pytest.raises(ValueError, match="count must be >= 0, got -1"):
        make_unlabelled_val_loader(dataset, split, count=-1, **settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": 0}, "crop must be >= 1, got 0"),
        ({"labelled_batch": 0}, "labelled_batch must be >= 1, got 0"),
        ({"unlabelled_batch": -1}, "unlabelled_batch must be >= 0, got -1"),
        ({"rank": 2, "world_size": 2}, "rank must be >= 0 and < world_size = 2, got 2"),
        ({"rank": -1}, "rank must be >= 0 and < world_size = 1, got -1"),
        ({"start_step": 11}, "start_step must be >= 0 and <= num_steps = 10, got 11"),
    ],
)
def test_bad_settings_are_named(dataset: DataSet, split: Split, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_train_loader(dataset, split, **settings(**changes))


def test_unlabelled_images_that_are_not_there(dataset: DataSet, split: Split) -> None:
    with pytest.raises(ValueError, match="unlabelled_batch is 3, but all 5 training images of toy are labelled; label fewer"):
        make_train_loader(dataset, Split(0, split.labelled, (), ""), **settings())


def test_bad_validation_settings_are_named(dataset: DataSet) -> None:
    with pytest.raises(ValueError, match="batch_size must be >= 1, got 0"):
        make_val_loader(dataset.val, rank=0, world_size=1, batch_size=0)
    with pytest.raises(ValueError, match="rank must be >= 0 and < world_size = 2, got 2"):
        make_val_loader(dataset.val, rank=2, world_size=2, batch_size=1)


def test_a_run_with_workers_is_the_run_without_and_leaves_none_behind(dataset: DataSet) -> None:
    small = {"decoder_channels": 8, "low_level_channels": 4, "representation_dim": 8}
    found = []
    for loader_workers in (0, 1):
        given: dict[str, Any] = {
            "data": {"crop": 8, "labelled_batch": 2, "unlabelled_batch": 2, "val_batch": 4, "loader_workers": loader_workers},
            "model": {"encoder": "tiny", "output_stride": 4, "pretrained": False} | small,
            "views": {},
            "train": {"iterations": 4, "lr": 0.05, "log_every": 1, "evaluate_every": 2},
            "method": {"name": "css"},
        }
        ids = dataset.train.ids
        prepared = Prepared(RunSpec(trial=0, split=0, seed=1, settings=given), dataset, Split(0, ids[:2], ids[2:], ""))
        reporter = SilentReporter()
        before = set(multiprocessing.active_children())
        execute(prepared, reporter)
        assert set(multiprocessing.active_children()) == before
        found.append((reporter.logs, reporter.evaluations))
    assert found[0] == found[1]
    assert any(name.startswith("pseudo/") for name in found[0][1][0][1])


@pytest.mark.parametrize("masks", [True, False])
def test_all_training_images_of_a_border_come_once_whole_and_masks_only_if_asked_for(
    masks: bool, dataset: DataSet, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    sample = Shards.sample
    monkeypatch.setattr(Shards, "sample", lambda self, index, mask=True: asked.append(mask) or sample(self, index, mask=mask))  # type: ignore[func-returns-value]
    ids = split.labelled if masks else split.unlabelled
    found = []
    for rank in range(2):
        with make_whole_loader(dataset, ids, masks=masks, rank=rank, world_size=2, batch_size=3) as loader:
            found += [pair for images, labels in loader for pair in zip(images, labels, strict=True)]
    expected = [sample(dataset.train, position, mask=True) for position in dataset.train.positions(ids)]
    assert len(found) == len(expected) and set(asked) == {masks}
    order = [*range(0, len(ids), 2), *range(1, len(ids), 2)]  # rank 0's, then rank 1's
    for (image, label), place in zip(found, order, strict=True):
        assert torch.equal(image, expected[place].image.float() / 255)
        if not masks:
            assert (label == IGNORE_INDEX).all()
        else:
            mask = expected[place].mask
            assert mask is not None and torch.equal(label, mask.long())


@pytest.fixture(scope="module")
def pseudo_labels(dataset: DataSet, tmp_path_factory: pytest.TempPathFactory) -> LabelFile:
    """Images 5 to 11 but 8 are labelled with 100 more than their numbers."""
    path = tmp_path_factory.mktemp("labels") / "labels.arrow"
    numbers = [5, 6, 7, 9, 10, 11]
    masks = {dataset.train.ids[n]: encode_labels(torch.full(SIZES[n % len(SIZES)], 100 + n)) for n in numbers}
    path.write_bytes(encode_file(masks))
    return LabelFile(path)


def union_numbers(batches: list[Batch]) -> list[tuple[int, bool]]:
    """Which images were drawn, and whether they were pseudo-labelled; their labels are checked."""
    found = []
    for batch in batches:
        assert batch.pseudo is not None and batch.pseudo.dtype == torch.bool and len(batch.unlabelled_images) == 0
        numbers = labelled_numbers([batch])
        for number, pseudo, labels in zip(numbers, batch.pseudo.tolist(), batch.labels, strict=True):
            assert set(labels.unique().tolist()) - {IGNORE_INDEX} == {number + 100 * pseudo}
            found.append((number, pseudo))
    return found


def test_a_union_has_each_pseudo_labelled_image_once_and_labelled_ones_repeated(
    dataset: DataSet, split: Split, pseudo_labels: LabelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five labelled images twice, and six pseudo-labelled ones; masks of the latter are not read from the data set."""
    opened: list[int] = []
    sample = Shards.sample

    def watched(self: Shards, index: int, *, mask: bool = True) -> Any:
        opened.extend([index] * mask)
        return sample(self, index, mask=mask)

    monkeypatch.setattr(Shards, "sample", watched)
    changes: dict[str, Any] = {"labelled_batch": 4, "unlabelled_batch": 0, "pseudo_labels": pseudo_labels}
    numbers = union_numbers(load(dataset, split, num_steps=12, **changes))
    once = sorted([(n, False) for n in range(5)] * 2 + [(n, True) for n in (5, 6, 7, 9, 10, 11)])
    epochs = [numbers[start : start + 16] for start in (0, 16, 32)]
    assert [sorted(epoch) for epoch in epochs] == [once] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert set(opened) == set(range(5))


def test_a_union_is_the_same_for_any_ranks_workers_and_first_step(
    dataset: DataSet, split: Split, pseudo_labels: LabelFile
) -> None:
    changes: dict[str, Any] = {"unlabelled_batch": 0, "pseudo_labels": pseudo_labels}
    whole = load(dataset, split, labelled_batch=6, **changes)
    halves = [load(dataset, split, labelled_batch=3, rank=rank, world_size=2, **changes) for rank in range(2)]
    for one, first, second in zip(whole, *halves, strict=True):
        for name in ("labelled_images", "labels", "pseudo"):
            assert torch.equal(getattr(one, name), torch.cat([getattr(first, name), getattr(second, name)])), name
    later = load(dataset, split, labelled_batch=6, start_step=7, **changes)
    in_a_process = load(dataset, split, labelled_batch=6, start_step=7, num_workers=1, **changes)
    for one, other, third in zip(whole[7:], later, in_a_process, strict=True):
        assert equal(one, other) and equal(one, third)


def test_other_batches_know_of_no_pseudo_labels(dataset: DataSet, split: Split) -> None:
    assert all(batch.pseudo is None for batch in load(dataset, split))


def test_a_file_of_labels_keeps_them_by_id(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = {f"é/{n}": torch.randint(0, 256, (5 + n, 9), generator=generator) for n in (3, 1, 2)}
    masks = {id: encode_labels(each) for id, each in labels.items()}
    (tmp_path / "labels.arrow").write_bytes(encode_file(masks))
    assert encode_file(masks) == encode_file(dict(sorted(masks.items())))
    file = pickle.loads(pickle.dumps(LabelFile(tmp_path / "labels.arrow")))
    assert file.ids == ("é/1", "é/2", "é/3") and len(file) == 3
    for index, id in enumerate(file.ids):
        assert file.labels(index).dtype == torch.uint8 and torch.equal(file.labels(index), labels[id].byte())
        assert file.encoded(index) == masks[id]
    (tmp_path / "none.arrow").write_bytes(encode_file({}))
    assert LabelFile(tmp_path / "none.arrow").ids == ()
