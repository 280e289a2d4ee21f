"""Reads split files: the lists of labelled and unlabelled images that published repositories ship.

A line names one image. It is an id, or the path of the image, which the path of its mask may follow after a space or a tab:

    U2PL, PCR         2007_000733
                      leftImg8bit/train/jena/jena_000078_000019_leftImg8bit.png
    UniMatch, ST++    JPEGImages/2007_000733.jpg SegmentationClass/2007_000733.png
                      leftImg8bit/train/jena/jena_000078_000019_leftImg8bit.png gtFine/train/jena/jena_000078_000019_gtFine_...
    CSS, PRCL         2007_000733
                      jena_000078_000019_leftImg8bit
    CCT, PS-MT        /JPEGImages/2007_000733.jpg /SegmentationClassAug/2007_000733.png
                      /images/city_gt_fine/train/jena_000078_000019_leftImg8bit.png /annotation/city_gt_fine/train/...
    CPS               2007_000733
                      /images/train/jena_000078_000019.png<TAB>/segmentation/train/jena_000078_000019_gtFine.png

Blank lines, a byte order mark, CRLF and a last line without an end are accepted. Which image a line means:

1. The one whose id is the line, or its first path; with or without the suffix of an image.
2. Else the one with the stem of the first path: what follows the last slash, without suffix and `_leftImg8bit`. Ids are
   shortened in the same way; a stem that several of them share is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from css_ray.messages import os_error_text
from css_ray.secrets import shown
from css_ray.storage import locate, read_blocks

from .images import IMAGE_SUFFIXES
from .problems import Problems, brief, joined
from .shards import DataSet

MOST_BYTES = 2**26
"""Of a split file: a line has about a hundred."""


class ListError(ValueError):
    """Split files are wrong. `problems` holds one sentence each, with the file and its lines."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        super().__init__(joined(f"{count} problem{'s' * (count > 1)} in the split files", self.problems))


def read_lines(path: str | Path) -> dict[int, str]:
    """The lines of a split file that are not blank, without surrounding blanks, by their number from 1.

    path: a local file, or a URL that pyarrow's file systems open.

    Raises FileNotFoundError if there is none, OSError if it cannot be read, ValueError if it is empty or not text.
    """
    filesystem, name = locate(path)
    content = b""
    try:
        for block in read_blocks(filesystem, name):
            content += block
            if len(content) > MOST_BYTES:
                raise ValueError(f"{shown(path)}: has more than {MOST_BYTES:,} bytes; a split file has one id or path per line")
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{shown(path)}: there is no such file") from None
    except OSError as error:
        why = (
            os_error_text(error, "read", shown(path)) if error.errno is not None else f"{shown(path)}: cannot be read: {error}"
        )
        raise OSError(why) from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{shown(path)}: is not UTF-8 text; a split file has one id or path per line") from None
    lines = {number: line.strip() for number, line in enumerate(text.split("\n"), 1)}
    lines = {number: line for number, line in lines.items() if line}
    if not lines:
        raise ValueError(
            f"{shown(path)}: names no image ({len(content)} bytes); some repositories ship empty files for splits that they do "
            "not have: drop the list, and the split is generated"
        )
    return lines


def stem(line: str) -> str:
    """The name that different formats share for an image: that of the line's first path, without suffix and `_leftImg8bit`."""
    return _stem(line.split()[0])


def _stem(path: str) -> str:
    return _bare(path).rpartition("/")[2].removesuffix("_leftImg8bit")


def _bare(path: str) -> str:
    """The path without the suffix of an image; another dot belongs to the name."""
    suffix = next((suffix for suffix in IMAGE_SUFFIXES if path.lower().endswith(suffix)), "")
    return path[: len(path) - len(suffix)]


def resolve(lines: Mapping[int, str], known_ids: Iterable[str], problems: Problems) -> dict[int, str]:
    """The id that each line means, by its number; what is wrong with the others is added to `problems`."""
    known = dict.fromkeys(known_ids)
    by_stem: dict[str, list[str]] = {}
    for id in known:
        by_stem.setdefault(_stem(id), []).append(id)
    found = {}
    for number, line in lines.items():
        where = f"{brief(line.split()[0])} (line {number})"
        # An id may have blanks, so the whole line goes first.
        whole = [text for text in (line, _bare(line)) if text in known]
        if not whole and len(line.split()) > 2:
            problems.add(
                "is followed by more than one other path; a line has an id, or the paths of an image and its mask", where
            )
            continue
        first = line.split()[0]
        exact = whole or [text for text in (first, _bare(first)) if text in known]
        matches = exact[:1] or by_stem.get(_stem(first), [])
        if len(matches) == 1:
            found[number] = matches[0]
        elif matches:
            problems.add(f"may mean {' or '.join(matches)}; write the whole id", where)
        else:
            problems.add("is not in the data set; is the list made for another one?", where)
    return found


def listed_ids(
    dataset: DataSet, labelled: str | Path, unlabelled: str | Path | None = None, *, num_labelled: int | None = None
) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """The ids that two split files list, as `splits.listed_split` takes them: labelled, and unlabelled.

    The unlabelled ids are None if no file names them, and if they are all the other training images.
    num_labelled: how many ids the labelled list must hold.

    Raises ListError with everything that is wrong in both: a file that cannot be read or is empty, lines that mean no image of
    the data set or more than one, images listed twice or in both files, images of val, labelled images without a mask.
    """
    classes = dict(zip(dataset.train.ids, dataset.train.classes, strict=True))
    val = set(dataset.val.ids)
    problems: list[str] = []
    parts: list[dict[str, list[int]]] = []  # the lines of each id: of the labelled list, then of the unlabelled one
    for path in (labelled, unlabelled):
        parts.append({})
        if path is None:
            continue
        try:
            lines = read_lines(path)
        except (OSError, ValueError) as error:
            problems.append(str(error))
            continue
        wrong = Problems()
        for number, id in resolve(lines, [*classes, *val], wrong).items():
            parts[-1].setdefault(id, []).append(number)
        for id, numbers in parts[-1].items():
            where = f"{id} (line{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))})"
            if len(numbers) > 1:
                wrong.add("is listed more than once; keep one line", where)
            if id in val:
                wrong.add("is an image of val, on which nothing may train; remove it", where)
            elif len(parts) == 1 and classes[id] is None:
                wrong.add("has no mask, so it cannot be labelled; move it to the unlabelled list", where)
            elif len(parts) == 2 and id in parts[0]:
                wrong.add(f"is in the labelled list {shown(str(labelled))} too; remove it here", where)
        problems += [f"{shown(path)}: {line}" for line in wrong.lines()]
        if len(parts) == 1 and num_labelled not in (None, len(lines)):
            problems.append(f"{shown(path)}: has {len(lines)} ids, must have {num_labelled}; change the count or the list")
    if problems:
        raise ListError(problems)
    # None instead of a list of all the others: the ids of a run cross processes.
    rest = None if unlabelled is None or len(parts[0]) + len(parts[1]) == len(classes) else tuple(parts[1])
    return tuple(parts[0]), rest
