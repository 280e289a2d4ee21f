"""Which training images are labelled: a pure function of the data set, the label count and the index of the split.

The rule needs nothing but SHA-256, so that a split is the same on every machine and under every version. The candidates are all
training images with a mask. For nested splits, which are the default:

1. The candidates are ranked by the SHA-256 of "NAME\\nSEED\\nINDEX\\nID" (UTF-8), the smallest first.
2. Those that show a class which none before them in the ranking shows form the first group, the others the second.
3. A cover is chosen in the first group: again and again the image that shows the most classes still missing, the higher ranked
   of equals, until no class is missing.
4. The order is the cover as it was chosen, then the rest of the first group, then the second group; both ranked. Its first
   `num_labelled` images are labelled.

So the labelled images of a count are among those of every larger count, and every class that a mask shows is labelled from the
size of the cover on, which is at most the number of classes. From the size of the first group on, the cover changes nothing.

For independent splits the count is hashed too, "NAME\\nSEED\\nINDEX\\nCOUNT\\nID", so that two counts share images by chance
alone. The order is the first group, then the second; both ranked. If the first group has more than `num_labelled` images, the
order is a cover that is chosen in the same way among all candidates, then the other candidates, ranked.

A split may also be listed: `listed_split` takes the ids, `lists` reads the files that published repositories ship.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .problems import Problems
from .shards import DataSet

LABELLED_FILE, UNLABELLED_FILE = "labeled.txt", "unlabeled.txt"
"""What `write_split` calls its files: U2PL's names, which later repositories kept."""


@dataclass(frozen=True, slots=True)
class Split:
    """The training images, parted. Ids are sorted; no id is in both.

    unlabelled: all the other training images, those without a mask included; fewer if a list gives fewer.
    hash: SHA-256 in hex of the JSON text of [labelled, unlabelled], however they were chosen.
    """

    index: int
    labelled: tuple[str, ...]
    unlabelled: tuple[str, ...]
    hash: str


def make_split(dataset: DataSet, num_labelled: int, index: int, seed: int = 0, *, nested: bool = True) -> Split:
    """Choose the labelled images by the rule above. No mask is decoded.

    index: which of the splits of the same count. seed: another family of splits.
    nested: whether the labelled images of a count are among those of every larger one.

    Raises ValueError if `num_labelled` is below 1 or above the number of training images with a mask.
    """
    ids = dataset.train.ids
    classes = {id: set(shown) for id, shown in zip(ids, dataset.train.classes, strict=True) if shown is not None}
    if not 1 <= num_labelled <= len(classes):
        raise ValueError(
            f"cannot label {num_labelled} images: {len(classes)} of the {len(ids)} training images of {dataset.info.name} have "
            f"a mask; label 1 to {len(classes)}, or add masks and prepare the data set again"
        )
    family = f"{dataset.info.name}\n{seed}\n{index}" + ("" if nested else f"\n{num_labelled}")
    ranked = sorted(classes, key=lambda id: hashlib.sha256(f"{family}\n{id}".encode()).digest())
    first = _first_shown(ranked, classes)
    if nested:
        first = [*_cover(first, classes), *first]
    elif len(first) > num_labelled:
        first = _cover(ranked, classes)
    order = dict.fromkeys([*first, *ranked])  # each at its first place
    chosen = list(order)[:num_labelled]
    return _split(index, chosen, set(ids).difference(chosen))


def listed_split(dataset: DataSet, index: int, labelled: Sequence[str], unlabelled: Sequence[str] | None = None) -> Split:
    """The split with just these images. `lists.listed_ids` finds them in split files.

    index: the number that the split goes by. labelled, unlabelled: ids as the data set has them; None is all other training
    images.

    Raises ValueError with every id that is not a training image, is given twice, or is labelled without having a mask, and if
    no image is labelled.
    """
    classes = dict(zip(dataset.train.ids, dataset.train.classes, strict=True))
    problems = Problems()
    if not labelled:
        problems.add("has no labelled image", "it")
    seen: set[str] = set()
    for id in (*labelled, *(unlabelled or ())):
        if id not in classes:
            problems.add(f"is not a training image of {dataset.info.name}", id)
        if id in seen:
            problems.add("is listed twice", id)
        seen.add(id)
    for id in labelled:
        if id in classes and classes[id] is None:
            problems.add("has no mask, so it cannot be labelled", id)
    problems.raise_any(f"the listed split {index} of {dataset.info.name}", "it cannot be used")
    return _split(index, labelled, classes.keys() - set(labelled) if unlabelled is None else unlabelled)


def count_shown(dataset: DataSet, ids: Sequence[str]) -> list[int]:
    """[C]: how many of these training images show each class, by their masks. Raises KeyError if one is not there."""
    classes = dataset.train.classes
    counts = [0] * dataset.info.num_classes
    for position in dataset.train.positions(ids):
        for shown in classes[position] or ():
            counts[shown] += 1
    return counts


def write_split(split: Split, folder: str | Path) -> bool:
    """Write `labeled.txt` and `unlabeled.txt`, one id per line, into `folder`; False if they are there already.

    Raises FileExistsError, and writes nothing, if one of them is there with other ids.
    """
    folder = Path(folder)
    texts = {
        folder / name: "".join(f"{id}\n" for id in ids)
        for name, ids in ((LABELLED_FILE, split.labelled), (UNLABELLED_FILE, split.unlabelled))
    }
    present = {path: path.read_bytes() for path in texts if path.exists()}
    if other := [str(path) for path, content in present.items() if content != texts[path].encode()]:
        raise FileExistsError(f"{' and '.join(other)} would change: delete the old files or choose another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for path, text in texts.items():
        path.write_bytes(text.encode())
    return len(present) < len(texts)


def _split(index: int, labelled: Sequence[str], unlabelled: Iterable[str]) -> Split:
    parts = tuple(sorted(labelled)), tuple(sorted(unlabelled))
    return Split(index, *parts, hashlib.sha256(json.dumps(parts).encode()).hexdigest())


def _first_shown(ranked: Sequence[str], classes: Mapping[str, set[int]]) -> list[str]:
    """The images that show a class which none before them shows, in order."""
    shown: set[int] = set()
    found = []
    for id in ranked:
        if not classes[id] <= shown:
            found.append(id)
            shown |= classes[id]
    return found


def _cover(ranked: Sequence[str], classes: Mapping[str, set[int]]) -> list[str]:
    """Few images that together show every class that any of them shows, the one that adds most first."""
    missing = set().union(*(classes[id] for id in ranked))
    found = []
    while missing:
        found.append(max(ranked, key=lambda id: len(classes[id] & missing)))  # the first of equals
        missing -= classes[found[-1]]
    return found
