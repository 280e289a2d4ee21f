"""From the disk to the training step: batches out of shards, samples out of a large data set, and the making of shards."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import Row, compare
from benchmarks.workloads import loose_files, photographs, prepare
from benchmarks.workloads.reader import memory_of_reader
from css_ray.data.loaders import make_train_loader
from css_ray.data.splits import Split
from css_ray.methods import Supervised
from css_ray.methods.strong_view import strong_view
from css_ray.models import ModelConfig, make_segmenter
from css_ray.training.memory import keep_freed_memory
from css_ray.views import Views

CROP, BATCH, STEPS = 320, 8, 24
FILES, LABELLED = 360, 120  # of neither the labelled nor the unlabelled images would all fit into the loader's memory
LARGE, TIMES = 10_000, 10
READER_MB = 150


def rows() -> Iterator[Row]:
    torch.set_num_threads(1)  # what a worker has by default
    keep_freed_memory()  # as a run on a CPU does; both sides have it
    with tempfile.TemporaryDirectory() as folder:
        paths = photographs.write_loose(Path(folder), FILES)
        yield _batches(Path(folder), paths)
        yield from _access(Path(folder), paths)
    yield prepare.row()


def _batches(folder: Path, paths: list[Path]) -> Row:
    """Batches as the student sees them, from one worker process, its start included."""
    dataset = photographs.write_prepared(folder / "prepared", paths, FILES)
    split = Split(0, dataset.train.ids[:LABELLED], dataset.train.ids[LABELLED:], "")
    views = Views()
    tiny = ModelConfig(encoder="tiny", output_stride=4, pretrained=False)
    method = Supervised(lambda: make_segmenter(tiny, 2, representation=False), Supervised.Config(), views)

    def ours() -> None:
        loader = make_train_loader(
            dataset, split, crop=CROP, labelled_batch=BATCH, unlabelled_batch=BATCH, views=views, seed=0, rank=0, world_size=1,
            start_step=0, num_steps=STEPS, num_workers=1,
        )  # fmt: skip
        with loader:
            for batch in loader:
                method.strong_colours(batch.labelled_images)
                strong_view(method, batch.unlabelled_images, [batch.unlabelled_valid], [0], partner="local")

    def other() -> None:
        given = paths[:LABELLED], paths[LABELLED:]
        for _ in loose_files.batches(*given, crop=CROP, batch=BATCH, views=views, num_steps=STEPS):
            pass

    name = f"{BATCH} + {BATCH} images of {CROP} from shards, one worker process, vs loose files"
    return compare(name, ours, other, 1 / 2)


def _access(folder: Path, paths: list[Path]) -> Iterator[Row]:
    """Single images of a large data set, decoded with their masks."""
    shards = photographs.write_prepared(folder / "large", paths, LARGE).train
    draw, reads = random.Random(0), 500

    def at_random() -> None:
        for _ in range(reads):
            shards.sample(draw.randrange(LARGE))

    def in_order() -> None:
        start = draw.randrange(LARGE - reads)
        for index in range(start, start + reads):
            shards.sample(index)

    yield compare(f"one of {LARGE:,} images at random, vs in order", at_random, in_order, 1.5)
    for times in (1, TIMES):
        taken = memory_of_reader(folder / "large", times)
        yield Row(f"memory to read 1,000 of {LARGE * times:,} images, vs the bound", taken, READER_MB, 1.0, "MB")
