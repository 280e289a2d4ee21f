"""Batches to train on and images for validation, each a pure function of the step or of the rank.

No stream has a state: what a step sees follows from (seed, step, rank, world_size) alone, so that a resumed run continues where
it stopped, and the global batch does not depend on how many ranks share it. torch's own generators are never touched.

Images and labels stay in 8 bits per number until they are on the device that uses them: little to carry between processes.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.process import BaseProcess
from random import Random
from signal import SIGTERM, Signals
from types import TracebackType
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

from css_ray.data.label_file import LabelFile
from css_ray.data.processes import make_pool
from css_ray.data.shards import DataSet, Sample, Shards
from css_ray.data.splits import Split
from css_ray.data.transforms import labelled_view, unlabelled_view
from css_ray.types import IGNORE_INDEX, Batch
from css_ray.views import Views

CACHE_BYTES = 64 * 2**20
"""Decoded images are kept in memory if all that a loader reads takes no more than this (in each process that reads)."""

PREFETCH = 2
"""Batches that each worker process of a loader has ready, or in the making, ahead of the one in use."""

CLOSE_SECONDS = 5.0
"""How long the worker processes of a loader may take to end, before they are killed."""

Loaded = TypeVar("Loaded")


class WorkerDiedError(RuntimeError):
    """A process that loads ahead was killed, or crashed."""


class Loader(Generic[Loaded]):
    """Batches in a fixed order, as often as it is iterated (one iteration at a time), each on the device when it is yielded.

    Worker processes, if there are any, start with the first iteration and stay for the next ones. `close`, or the end of a
    `with` block, ends them.

    name: what messages call it. batches: by number, `order` the numbers. finish: makes what is yielded of such a batch; runs in
    this process. num_workers: processes that load ahead, each with one thread; 0 loads in this one, which is faster for tiny
    images.

    Raises ValueError if num_workers < 0. Iterating raises WorkerDiedError, and what the batches raise.
    """

    # Not torch's DataLoader: a worker that is killed at the wrong moment leaves a lock of its processes held, or makes torch's
    # signal handler interrupt this process while that holds one, and all who ask for the lock wait for ever. A pool ends its
    # processes without asking them.

    def __init__(
        self, name: str, batches: Dataset[Any], order: range, finish: Callable[[Any], Loaded], *, num_workers: int
    ) -> None:
        if num_workers < 0:
            raise ValueError(f"num_workers must be >= 0, got {num_workers}; 0 loads in the training process")
        self._name = name
        self._batches = batches
        self._order = order
        self._finish = finish
        self._num_workers = min(num_workers, len(order))
        self._pool: ProcessPoolExecutor | None = None
        self._workers: list[BaseProcess] = []

    def __iter__(self) -> Iterator[Loaded]:
        if self._num_workers == 0:
            for number in self._order:
                yield self._finish(self._batches[number])
            return
        if self._pool is None:
            self._pool = make_pool(self._num_workers, _begin_loading, self._batches)
        numbers = iter(self._order)
        ahead: deque[Future[Any]] = deque()
        try:
            for number in itertools.islice(numbers, PREFETCH * self._num_workers):
                ahead.append(self._pool.submit(_load, number))
            self._workers = list(self._pool._processes.values())
            while ahead:
                loaded = ahead.popleft().result()
                for number in itertools.islice(numbers, 1):
                    ahead.append(self._pool.submit(_load, number))
                yield self._finish(loaded)
        except BrokenProcessPool as error:
            raise WorkerDiedError(self._obituary()) from error
        finally:
            for future in ahead:  # of an iteration that is given up
                future.cancel()

    def _obituary(self) -> str:
        """Which worker process died, and of what."""
        workers = self._workers
        self.close()
        # The pool has ended the others by SIGTERM.
        died = [worker for worker in workers if worker.exitcode not in (None, 0, -SIGTERM)] or workers
        how = ", ".join(f"{worker.pid} ({_exit(worker.exitcode)})" for worker in died)
        return (
            f"worker process {how} of the {self._name} loader died. Usually memory ran out: lower data.loader_workers "
            f"(now {self._num_workers}) or the batch size, or give the machine more memory and a larger /dev/shm"
        )

    def close(self) -> None:
        """End the worker processes; another iteration starts new ones."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        workers, self._workers = self._workers, []
        impatient = threading.Timer(CLOSE_SECONDS, _kill, [workers])
        impatient.start()
        pool.shutdown(wait=True, cancel_futures=True)
        impatient.cancel()

    def __enter__(self) -> Loader[Loaded]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


_loading: Dataset[Any]  # in a worker process


def _begin_loading(batches: Dataset[Any]) -> None:
    global _loading
    _loading = batches
    torch.set_num_threads(1)


def _load(number: int) -> Any:
    return _loading[number]


def _kill(workers: Sequence[BaseProcess]) -> None:
    for worker in workers:
        worker.kill()


def _exit(code: int | None) -> str:
    if code is None:
        return "no exit code"
    return Signals(-code).name if code < 0 else f"exit code {code}"


class _Samples:
    """Chosen images of a subset, decoded at access and kept if all of them fit into CACHE_BYTES."""

    def __init__(self, shards: Shards, positions: Sequence[int], *, masks: bool) -> None:
        self._shards = shards
        self._positions = positions
        self._masks = masks
        sizes = shards.sizes
        self.sizes = [sizes[position] for position in positions]
        planes = 4 if masks else 3
        self._keep = sum(height * width * planes for height, width in self.sizes) <= CACHE_BYTES
        self._kept: dict[int, Sample] = {}

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> Sample:
        sample = self._kept.get(index)
        if sample is None:
            sample = self._shards.sample(self._positions[index], mask=self._masks)
            if self._keep:
                self._kept[index] = sample
        return sample


class _Union:
    """Labelled images, repeated until they are as many as the pseudo-labelled ones at least, then these, in one list."""

    def __init__(self, labelled: _Samples, unlabelled: _Samples, labels: LabelFile) -> None:
        self._labelled, self._unlabelled, self._labels = labelled, unlabelled, labels
        self._repeated = len(labelled) * max(1, -(-len(unlabelled) // len(labelled)))

    def __len__(self) -> int:
        return self._repeated + len(self._unlabelled)

    def __getitem__(self, index: int) -> tuple[Sample, bool]:
        """A sample with its mask, and whether that is of pseudo-labels."""
        if index < self._repeated:
            return self._labelled[index % len(self._labelled)], False
        index -= self._repeated
        return self._unlabelled[index]._replace(mask=self._labels.labels(index)), True


class StoredBatch(NamedTuple):
    """A `Batch` on its way to its device: images and labels uint8."""

    labelled_images: Tensor
    labels: Tensor
    unlabelled_images: Tensor
    unlabelled_valid: Tensor
    labelled_epoch: int
    pseudo: Tensor | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device, its images as floats in [0, 1]."""
        return Batch(
            labelled_images=_unit(_sent(self.labelled_images, device)),
            labels=_sent(self.labels, device).long(),
            unlabelled_images=_unit(_sent(self.unlabelled_images, device)),
            unlabelled_valid=_sent(self.unlabelled_valid, device),
            labelled_epoch=self.labelled_epoch,
            pseudo=None if self.pseudo is None else _sent(self.pseudo, device),
        )


class TrainBatches(Dataset[StoredBatch]):
    """Map-style and endless: `batches[step]` is the batch of this rank at `step` >= 0.

    The global batch of a step is the next `world_size * batch` images of an endless stream in which each epoch is a fresh
    permutation; rank r sees its r-th part. Labelled and unlabelled images are two such streams.

    crop: side in pixels. labelled_batch, unlabelled_batch: images per rank and step; with `unlabelled_batch=0` no unlabelled
    image is read. pseudo_labels: with them, the stream of labelled images is one of their union with these: an epoch has each
    pseudo-labelled image once, and each labelled one as often as it takes to be as many.

    Raises ValueError if a count is out of its bounds, or unlabelled images are asked for and the split has none.
    """

    def __init__(
        self,
        dataset: DataSet,
        split: Split,
        *,
        crop: int,
        labelled_batch: int,
        unlabelled_batch: int,
        views: Views,
        seed: int,
        rank: int,
        world_size: int,
        pseudo_labels: LabelFile | None = None,
    ) -> None:
        for name, value, bound in (
            ("crop", crop, 1),
            ("labelled_batch", labelled_batch, 1),
            ("unlabelled_batch", unlabelled_batch, 0),
        ):
            if value < bound:
                raise ValueError(f"{name} must be >= {bound}, got {value}")
        if unlabelled_batch and not split.unlabelled:
            raise ValueError(
                f"unlabelled_batch is {unlabelled_batch}, but all {len(split.labelled)} training images of {dataset.info.name} "
                "are labelled; label fewer, or use a method that needs no unlabelled images"
            )
        _check_rank(rank, world_size)
        self._crop = crop
        self._labelled_batch = labelled_batch
        self._unlabelled_batch = unlabelled_batch
        self._views = views
        self._seed = seed
        self._rank = rank
        self._world_size = world_size
        self._labelled = _Samples(dataset.train, dataset.train.positions(split.labelled), masks=True)
        self._unlabelled = _Samples(dataset.train, dataset.train.positions(split.unlabelled), masks=False)
        self._union = None
        if pseudo_labels is not None:
            chosen = _Samples(dataset.train, dataset.train.positions(pseudo_labels.ids), masks=False)
            self._union = _Union(self._labelled, chosen, pseudo_labels)
        # Whole batches alone, as the released code counts (drop_last), of a rank's part, which it fills up; the stream itself
        # drops no image.
        self._steps_per_epoch = max(1, -(-len(split.labelled) // world_size) // labelled_batch)

    def __getitem__(self, step: int) -> StoredBatch:
        images, labels, pseudo = [], [], []
        for sample, of_method, random in self._with_masks(step):
            assert sample.mask is not None, sample.id  # make_split labels none without
            image, (seen,) = labelled_view(
                sample.image, [sample.mask], [IGNORE_INDEX], crop=self._crop, views=self._views, random=random
            )
            images.append(image)
            labels.append(seen)
            pseudo.append(of_method)
        weak, valid = [], []
        for index, random in self._drawn("unlabelled", len(self._unlabelled), self._unlabelled_batch, step):
            image, seen = unlabelled_view(self._unlabelled[index].image, crop=self._crop, views=self._views, random=random)
            weak.append(image)
            valid.append(seen)
        crop = self._crop
        return StoredBatch(
            labelled_images=torch.stack(images),
            labels=torch.stack(labels),
            unlabelled_images=torch.stack(weak) if weak else torch.empty(0, 3, crop, crop, dtype=torch.uint8),
            unlabelled_valid=torch.stack(valid) if valid else torch.empty(0, crop, crop, dtype=torch.bool),
            labelled_epoch=step // self._steps_per_epoch,
            pseudo=None if self._union is None else torch.tensor(pseudo),
        )

    def _with_masks(self, step: int) -> Iterator[tuple[Sample, bool, Random]]:
        """This rank's samples that have a mask, whether it is of pseudo-labels, and the generators of their augmentation."""
        if self._union is None:
            for index, random in self._drawn("labelled", len(self._labelled), self._labelled_batch, step):
                yield self._labelled[index], False, random
        else:
            for index, random in self._drawn("union", len(self._union), self._labelled_batch, step):
                yield *self._union[index], random

    def _drawn(self, stream: str, length: int, batch: int, step: int) -> Iterator[tuple[int, Random]]:
        """This rank's part of a stream at `step`: places in its list, each with the generator of its augmentation."""
        for place in range(self._rank * batch, (self._rank + 1) * batch):  # in the global batch
            epoch, index = divmod(step * self._world_size * batch + place, length)
            chosen = _permutation(length, f"{self._seed}/{stream}/epoch/{epoch}")[index]
            yield chosen, Random(f"{self._seed}/{stream}/step/{step}/{place}")


class _ValBatches(Dataset[tuple[Tensor, Tensor]]):
    """See `make_val_loader`; images and labels uint8."""

    def __init__(self, samples: _Samples, batch_size: int, *, masks: bool = True) -> None:
        self._samples, self._masks = samples, masks
        self._batches: list[list[int]] = []
        for _, run in itertools.groupby(range(len(samples)), key=lambda index: samples.sizes[index]):
            indices = list(run)
            self._batches += [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        samples = [self._samples[index] for index in self._batches[number]]
        images = torch.stack([sample.image for sample in samples])
        if not self._masks:
            return images, torch.full_like(images[:, 0], IGNORE_INDEX)
        masks = [sample.mask for sample in samples if sample.mask is not None]
        if len(masks) < len(samples):
            without = ", ".join(sample.id for sample in samples if sample.mask is None)
            raise ValueError(f"validation images need a mask, these have none: {without}; prepare the data set with them")
        return images, torch.stack(masks)


def make_train_loader(
    dataset: DataSet,
    split: Split,
    *,
    crop: int,
    labelled_batch: int,
    unlabelled_batch: int,
    views: Views,
    seed: int,
    rank: int,
    world_size: int,
    start_step: int,
    num_steps: int,
    num_workers: int,
    pseudo_labels: LabelFile | None = None,
    device: torch.device | str = "cpu",
) -> Loader[Batch]:
    """The batches of the steps start_step..num_steps-1, in order, as `TrainBatches` defines them, on `device`.

    num_workers: processes that load ahead, see `Loader`. They change no number.

    Raises ValueError as `TrainBatches` and `Loader`, or if not 0 <= start_step <= num_steps.
    """
    if not 0 <= start_step <= num_steps:
        raise ValueError(f"start_step must be >= 0 and <= num_steps = {num_steps}, got {start_step}")
    batches = TrainBatches(
        dataset,
        split,
        crop=crop,
        labelled_batch=labelled_batch,
        unlabelled_batch=unlabelled_batch,
        views=views,
        seed=seed,
        rank=rank,
        world_size=world_size,
        pseudo_labels=pseudo_labels,
    )
    return Loader(
        "training",
        batches,
        range(start_step, num_steps),
        lambda stored: stored.to(device),
        num_workers=num_workers,
    )


def make_val_loader(
    subset: Shards, *, rank: int, world_size: int, batch_size: int, num_workers: int = 0, device: torch.device | str = "cpu"
) -> Loader[tuple[Tensor, Tensor]]:
    """Whole images with their labels, as often as it is iterated; over the ranks, each image once.

    Yields float32 [B, 3, H, W] in [0, 1] and int64 [B, H, W] on `device`, B <= batch_size; consecutive images of equal size
    share a batch. A rank may have none. num_workers: processes that load ahead, see `Loader`.

    Raises ValueError as `Loader`, or if batch_size < 1 or rank is not in 0..world_size-1; while iterated, if an image has no
    mask.
    """
    _check_val(rank, world_size, batch_size)
    samples = _Samples(subset, range(rank, len(subset), world_size), masks=True)
    return _val_loader("validation", _ValBatches(samples, batch_size), num_workers, device)


def make_unlabelled_val_loader(
    dataset: DataSet,
    split: Split,
    *,
    count: int,
    rank: int,
    world_size: int,
    batch_size: int,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
) -> Loader[tuple[Tensor, Tensor]] | None:
    """The first `count` unlabelled images of the split that have a mask, whole, as `make_val_loader` gives them.

    Their ground truth is for scoring pseudo-labels only: no loss may see it. None, on every rank alike, if there is no such
    image; a rank may have none of them all the same.

    Raises ValueError if count < 0, or as `make_val_loader`.
    """
    if count < 0:
        raise ValueError(f"count must be >= 0, got {count}; it is a number of images")
    _check_val(rank, world_size, batch_size)
    shown = dataset.train.classes
    masked = [position for position in dataset.train.positions(split.unlabelled) if shown[position] is not None][:count]
    if not masked:
        return None
    samples = _Samples(dataset.train, masked[rank::world_size], masks=True)
    return _val_loader("pseudo-label quality", _ValBatches(samples, batch_size), num_workers, device)


def make_whole_loader(
    dataset: DataSet,
    ids: Sequence[str],
    *,
    masks: bool,
    rank: int,
    world_size: int,
    batch_size: int,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
) -> Loader[tuple[Tensor, Tensor]]:
    """Training images by their ids, whole, as `make_val_loader` gives them; over the ranks, each image once.

    masks: whether the masks are read, which then must be there; without, all labels are IGNORE_INDEX.

    Raises ValueError as `make_val_loader`.
    """
    _check_val(rank, world_size, batch_size)
    samples = _Samples(dataset.train, dataset.train.positions(ids)[rank::world_size], masks=masks)
    return _val_loader("border", _ValBatches(samples, batch_size, masks=masks), num_workers, device)


def _val_loader(name: str, batches: _ValBatches, num_workers: int, device: torch.device | str) -> Loader[tuple[Tensor, Tensor]]:
    def finish(stored: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        images, labels = stored
        return images_on(images, device), _sent(labels, device).long()

    return Loader(name, batches, range(len(batches)), finish, num_workers=num_workers)


def images_on(stored: Tensor, device: torch.device | str) -> Tensor:
    """uint8 [B, 3, H, W] -> float32 in [0, 1] on a device, as an evaluation sees images."""
    return _unit(_sent(stored, device))


def _check_val(rank: int, world_size: int, batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {batch_size}")
    _check_rank(rank, world_size)


def _check_rank(rank: int, world_size: int) -> None:
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be >= 0 and < world_size = {world_size}, got {rank}")


@functools.lru_cache(maxsize=8)  # two streams, and a batch may reach into the next epoch
def _permutation(length: int, seed: str) -> list[int]:
    random = Random(seed)
    keys = [random.random() for _ in range(length)]  # not shuffle(), which another Python may do differently
    return sorted(range(length), key=keys.__getitem__)


def _sent(stored: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on a device; on its way to a GPU in pinned memory, whose copy overlaps with the computation."""
    pinned = stored.contiguous().pin_memory() if torch.device(device).type == "cuda" else stored
    return pinned.to(device, non_blocking=True)


def _unit(images: Tensor) -> Tensor:
    """uint8 to float32 in [0, 1], the same numbers on every device."""
    # 255 as a tensor: a GPU would multiply by the inverse of a Python number, which rounds otherwise.
    return images.float().div_(torch.full((), 255.0, device=images.device))
