"""What a run sees: its data set and its split, opened, checked, and the same for all trials."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

from css_ray.data.catalogue import ensure_dataset
from css_ray.data.lists import listed_ids
from css_ray.data.shards import DataSet
from css_ray.data.splits import Split, listed_split, make_split
from css_ray.storage import locate, put
from css_ray.study.job import Lists, RunSpec


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a run sees, opened and checked: the data of its split."""

    spec: RunSpec
    dataset: Any
    split: Split

    def started(self) -> dict[str, Any]:
        """What the journal records of the run's data."""
        return {
            "seed": self.spec.seed,
            "dataset": self.dataset.info.name,
            "split_hash": self.split.hash,
            "num_labelled": len(self.split.labelled),
            "num_unlabelled": len(self.split.unlabelled),
            "class_names": list(self.dataset.info.class_names),
        }


def prepare(spec: RunSpec) -> Prepared:
    """Open the data set and choose the split.

    The files of `data.labelled_list` and `data.unlabelled_list` are read if the spec has no `lists` yet. The spec of the result
    has them: the driver prepares each split once, and workers never look for the files.

    Raises as `ensure_dataset` and `choose_split` do.
    """
    data, index = spec.settings["data"], spec.split
    dataset = ensure_dataset(data["dataset"], data["root"])
    if spec.lists is None:
        spec = dataclasses.replace(spec, lists=_read_lists(dataset, data, index))
    return Prepared(spec, dataset, _split(dataset, data, index, spec.lists))


def choose_split(dataset: DataSet, data: Mapping[str, Any], index: int) -> Split:
    """The split that a trial's `data` settings ask for: listed if they name lists, else made by the rule.

    Raises ListError with all that is wrong in the lists, ValueError if the count of labels is out of bounds.
    """
    return _split(dataset, data, index, _read_lists(dataset, data, index))


def split_key(data: Mapping[str, Any], index: int) -> Hashable:
    """All that a split depends on: trials whose `data` settings have the same key for an index have the same split."""
    keys = ("dataset", "root", "labelled", "nested_splits", "labelled_list", "unlabelled_list")
    return *(data[key] for key in keys), index


def list_files(data: Mapping[str, Any], index: int) -> list[str]:
    """The files of a listed split: the labelled list, then the unlabelled one; those that are named."""
    templates = (data["labelled_list"], data["unlabelled_list"])
    return [template.format(labelled=data["labelled"], split=index) for template in templates if template is not None]


def write_ids(prepared: Prepared, folder: str) -> None:
    """Write `<hash of the split>.json` with the ids of a run into `folder`, a path or a URL: what a result was trained on."""
    split, info = prepared.split, prepared.dataset.info
    ids = {
        "dataset": info.name,
        "content": info.content,
        "index": split.index,
        "labelled": split.labelled,
        "unlabelled": split.unlabelled,
    }
    filesystem, root = locate(folder)
    filesystem.create_dir(root, recursive=True)
    put(filesystem, f"{root}/{split.hash}.json", (json.dumps(ids, indent=0) + "\n").encode())


def _read_lists(dataset: DataSet, data: Mapping[str, Any], index: int) -> Lists | None:
    if not (files := list_files(data, index)):
        return None
    labelled, unlabelled = listed_ids(dataset, *files, num_labelled=data["labelled"])
    return Lists(list(labelled), None if unlabelled is None else list(unlabelled))


def _split(dataset: DataSet, data: Mapping[str, Any], index: int, lists: Lists | None) -> Split:
    if lists is None:
        return make_split(dataset, data["labelled"], index, nested=data["nested_splits"])
    return listed_split(dataset, index, lists.labelled, lists.unlabelled)
