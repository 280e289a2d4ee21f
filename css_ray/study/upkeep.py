"""The disk of a study: what may be removed from it, and whether there is room."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Mapping

import pyarrow.fs

from css_ray.matrices import At, ImageMatrices, read_matrices
from css_ray.secrets import shown
from css_ray.storage import below, free_bytes, locate
from css_ray.study.definition import Keep

_log = logging.getLogger(__name__)


def models_of(folder: str, trial: int) -> str:
    """Where the best weights of a trial's runs are kept."""
    return below(folder, "models", f"trial_{trial:04d}")


def matrices_of(folder: str, trial: int) -> str:
    """Where the validation images' confusion matrices of a trial's runs are kept, also when its weights are removed."""
    return below(folder, "matrices", f"trial_{trial:04d}")


def matrices_reader(folder: str) -> Callable[[int, int, At], ImageMatrices | None]:
    """Reads the matrices of a trial's run on a split, as `read_matrices` does; None if it kept none."""
    return lambda trial, split, at: read_matrices(below(matrices_of(folder, trial), f"split_{split}"), at)


def checkpoints_of(folder: str, trial: int) -> str:
    """Where the checkpoints of a trial are kept."""
    return below(folder, "checkpoints", f"trial_{trial:04d}")


def labels_of(checkpoints: str, split: int) -> str:
    """Where the pseudo-labels of a run are kept while it trains, beside the checkpoints of its trial."""
    return below(checkpoints, "labels", f"split_{split}")


def dispensable(keep: Keep, scores: Mapping[int, float], ended: set[int]) -> list[int]:
    """The trials of a search that `ended` and whose files may be removed: all but the best `keep.top` by their scores."""
    if keep.top is None:
        return []
    best = set(heapq.nlargest(keep.top, scores, key=lambda trial: (scores[trial], -trial)))
    return sorted(ended - best)


def remove_files(folder: str, trial: int) -> None:
    """Remove the weights and checkpoints of a trial. Its matrices are small, and tables of its scores are made from them."""
    remove(checkpoints_of(folder, trial))
    remove(models_of(folder, trial))


def remove(folder: str) -> None:
    """Remove a folder, or what lies below a URL, if it is there. What cannot be removed does no harm."""
    filesystem, path = locate(folder)
    try:
        if filesystem.get_file_info(path).type == pyarrow.fs.FileType.Directory:
            filesystem.delete_dir(path)
    except OSError as error:
        _log.warning("%s could not be removed: %s", shown(folder), error)


def full_disk(keep: Keep, storage: str, folder: str) -> str:
    """What is short of space, in words; empty if nothing is."""
    free, needed = free_bytes(folder), keep.min_free_gb
    if free is None or free >= needed * 1e9:
        return ""
    return f"{shown(storage)} has {free / 1e9:.2f} GB free, less than the {needed:g} GB of keep.min_free_gb"
