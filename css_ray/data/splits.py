"""Which training images are labelled: a pure function of the data set, the label count and the index of the split.

The rule needs nothing but SHA-256, so that a split is the same on every machine and under every version:

1. The candidates, all training images with a mask, are ranked by the SHA-256 of "NAME\\nSEED\\nINDEX\\nID" (UTF-8).
2. Images that show a class which no image before them in the ranking shows come first; then the others; ranked in both groups.
3. The first `num_labelled` are labelled. Should the first group alone be more than that, it is chosen greedily in its place:
   again and again the image that shows the most classes still missing, the higher ranked of equals.

So every class is labelled where the count allows, and where the best ranked images show them all, these are the labelled ones.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from css_ray.data.shards import DataSet


@dataclass(frozen=True, slots=True)
class Split:
    """The training images, parted. Ids are sorted; no id is in both.

    unlabelled: all the other training images, those without a mask included.
    hash: SHA-256 in hex of the JSON text of [labelled, unlabelled].
    """

    index: int
    labelled: tuple[str, ...]
    unlabelled: tuple[str, ...]
    hash: str


def make_split(dataset: DataSet, num_labelled: int, index: int, seed: int = 0) -> Split:
    """Choose the labelled images by the rule above. No mask is decoded.

    index: which of the splits of the same count. seed: another family of splits.

    Raises ValueError if `num_labelled` is below 1 or above the number of training images with a mask.
    """
    ids = dataset.train.ids
    classes = {id: set(shown) for id, shown in zip(ids, dataset.train.classes, strict=True) if shown is not None}
    if not 1 <= num_labelled <= len(classes):
        raise ValueError(
            f"num_labelled must be >= 1 and <= {len(classes)}, got {num_labelled}: of the {len(ids)} training images "
            f"of {dataset.info.name}, {len(classes)} have a mask; choose a count in these bounds"
        )

    def rank(id: str) -> bytes:
        return hashlib.sha256(f"{dataset.info.name}\n{seed}\n{index}\n{id}".encode()).digest()

    ranked = sorted(classes, key=rank)
    first = _first_shown(ranked, classes)
    if len(first) > num_labelled:
        first = _greedy_cover(ranked, classes)
    chosen = set([*first, *(id for id in ranked if id not in set(first))][:num_labelled])
    labelled = tuple(sorted(chosen))
    unlabelled = tuple(sorted(id for id in ids if id not in chosen))
    return Split(index, labelled, unlabelled, hashlib.sha256(json.dumps([labelled, unlabelled]).encode()).hexdigest())


def _first_shown(ranked: Sequence[str], classes: Mapping[str, set[int]]) -> list[str]:
    """The images that show a class which none before them shows, in order."""
    shown: set[int] = set()
    found = []
    for id in ranked:
        if not classes[id] <= shown:
            found.append(id)
            shown |= classes[id]
    return found


def _greedy_cover(ranked: Sequence[str], classes: Mapping[str, set[int]]) -> list[str]:
    """Few images that together show every class, the one that adds most first."""
    missing = set().union(*classes.values())
    found = []
    while missing:
        found.append(max(ranked, key=lambda id: len(classes[id] & missing)))  # the first of equals
        missing -= classes[found[-1]]
    return found
