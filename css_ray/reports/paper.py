"""The published numbers: tables 1 to 7 of the CSS paper (Wang et al., ICCV 2023), mIoU in percent.

Columns are numbers of labelled images, but in table 4 the classes of VOC. A cell that the paper leaves empty is absent. Bold
type and differences are left out: they can be computed, and the paper's are not always right (table 4 prints +3.33 for
82.17 - 78.87, and a mIoU of 71.57 for classes whose mean is 71.75).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Published(NamedTuple):
    """A printed score: the mean over the paper's splits and its standard deviation, None if the paper gives none."""

    mean: float
    std: float | None = None


SYMBOLS = {
    "method.prototype_decay": "α",
    "method.temperature": "τ",
    "method.unsup_threshold": "δ_u",
    "method.valid_threshold": "δ_w",
    "method.hard_threshold": "δ_s",
    "method.contrast_weight": "λ_c",
}
"""The paper's letters for the settings of CSS."""


@dataclass(frozen=True, slots=True)
class PaperTable:
    """One table of the paper. rows: label of the row -> column -> score."""

    name: str
    title: str
    columns: tuple[int | str, ...]
    rows: dict[str, dict[int | str, Published]]
    note: str = ""

    def find(self, row: str, column: object) -> Published | None:
        """The score of a cell, or None. Spaces, case and dots in a row's label do not matter; columns compare as text."""
        for label, cells in self.rows.items():
            if _plain(label) == _plain(row):
                return next((score for key, score in cells.items() if str(key) == str(column)), None)
        return None


def paper_table(name: str) -> PaperTable:
    """The table of a name: `table1`, or `paper/table1` as studies write it. Raises ValueError that lists the names."""
    short = name.removeprefix("paper/")
    if short not in TABLES:
        raise ValueError(f"the paper has no {name!r}; choose one of {', '.join(f'paper/{known}' for known in TABLES)}")
    return TABLES[short]


def _plain(label: str) -> str:
    return "".join(letter for letter in label.casefold() if letter.isalnum())


def _rows(columns: Sequence[int | str], rows: dict[str, str]) -> dict[str, dict[int | str, Published]]:
    """Rows written as in print: scores apart by spaces, `mean±std` or `mean`, `-` for an empty cell."""
    parsed: dict[str, dict[int | str, Published]] = {}
    for label, line in rows.items():
        parsed[label] = {
            column: Published(*map(float, text.split("±")))
            for column, text in zip(columns, line.split(), strict=True)
            if text != "-"
        }
    return parsed


_CLASSIC = (92, 183, 366, 732)
_BLENDER = (662, 1323, 2646, 5291)
_CITYSCAPES = (186, 372, 744, 1488)
_ABLATION = (92, 183)
_VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
    "mIoU",
)
_ONE_SPLIT = "One split, so its CSS and baseline rows differ from the means of table 1."

TABLES: dict[str, PaperTable] = {
    table.name: table
    for table in (
        PaperTable(
            "table1",
            "Classic VOC, mean and standard deviation of three runs on three splits",
            _CLASSIC,
            _rows(
                _CLASSIC,
                {
                    "Sup.": "51.57±3.58 54.69±2.44 64.86±1.04 70.77±0.76",
                    "MT": "58.92±2.99 61.63±1.76 66.79±0.53 71.58±0.51",
                    "CutMix": "65.82±3.60 67.91±1.47 72.53±0.50 74.08±0.49",
                    "Baseline": "66.91±4.21 70.32±1.86 73.97±1.04 76.49±0.58",
                    "CSS (crs.)": "67.03±4.58 71.41±1.67 74.47±1.08 77.08±0.37",
                    "CSS (mix)": "68.09±4.89 71.93±1.88 74.91±1.12 77.57±0.73",
                },
            ),
            "The paper does not say whether its standard deviation divides by n or by n - 1.",
        ),
        PaperTable(
            "table2",
            "Blender VOC",
            _BLENDER,
            _rows(
                _BLENDER,
                {
                    "CCT": "71.86 73.68 76.51 77.40",
                    "CPS": "74.48 76.44 77.68 78.64",
                    "U2PL": "77.21 79.01 79.30 80.50",
                    "ST++": "74.70 77.90 77.90 -",
                    "PRCL": "76.96 78.16 79.02 79.59",
                    "PCR": "78.60 80.71 80.78 80.91",
                    "PSMT": "75.50 78.20 78.72 79.76",
                    "CSS (mix)": "78.73 79.54 80.82 81.06",
                },
            ),
            "Rows of other papers are quoted there and partly use other splits.",
        ),
        PaperTable(
            "table3",
            "Cityscapes",
            _CITYSCAPES,
            _rows(
                _CITYSCAPES,
                {
                    "CCT": "69.32 74.12 75.99 78.10",
                    "CPS": "69.78 74.31 74.58 76.82",
                    "U2PL": "70.30 74.37 76.47 79.05",
                    "PCR": "73.41 76.31 78.40 79.11",
                    "PSMT": "- 76.89 77.60 79.09",
                    "CSS (mix)": "74.02 76.93 77.94 79.62",
                },
            ),
            "Rows of other papers are quoted there and partly use other splits.",
        ),
        PaperTable(
            "table4",
            "IoU of the pseudo-labels by their source, classic VOC, 92 labels",
            _VOC_CLASSES,
            _rows(
                _VOC_CLASSES,
                {
                    "lgt.": "96.78 95.14 77.47 93.38 81.37 87.54 96.76 95.48 94.47 4.09 92.15 "
                    "58.34 94.12 93.01 91.37 93.68 50.33 91.10 18.16 86.65 64.89 78.87",
                    "rep.": "90.71 96.50 61.42 75.75 53.30 54.65 84.46 80.55 91.11 28.03 88.16 "
                    "52.23 86.97 73.22 88.70 91.75 56.13 66.78 35.25 88.51 62.61 71.57",
                    "mix": "96.66 98.12 82.76 94.47 85.12 89.94 97.03 95.98 94.65 19.01 94.81 "
                    "64.35 94.33 93.65 91.50 93.01 55.64 91.56 29.74 93.54 69.48 82.17",
                },
            ),
        ),
        PaperTable(
            "table5",
            "Source of the pseudo-labels, classic VOC",
            _ABLATION,
            _rows(
                _ABLATION,
                {
                    "logit space": "67.11 70.32",
                    "representation space": "64.20 67.52",
                    "mix pseudo-labeling": "68.41 72.74",
                    "cross pseudo-labeling": "67.85 71.98",
                },
            ),
            _ONE_SPLIT,
        ),
        PaperTable(
            "table6",
            "Indicators, by the pseudo-labels they are used with, classic VOC",
            _ABLATION,
            _rows(
                _ABLATION,
                {
                    "seg label, conf.": "67.11 70.32",
                    "seg label, smr.": "66.16 68.90",
                    "seg label, mix": "67.80 71.50",
                    "mix label, conf.": "68.33 71.92",
                    "mix label, smr.": "66.89 69.25",
                    "mix label, mix": "68.41 72.74",
                },
            ),
            _ONE_SPLIT,
        ),
        PaperTable(
            "table7",
            "Components of CSS, classic VOC",
            _ABLATION,
            _rows(
                _ABLATION,
                {
                    "baseline": "67.11 70.32",
                    "mix": "68.33 71.92",
                    "cross": "67.21 70.87",
                    "ind": "67.80 71.50",
                    "mix + ind": "68.41 72.74",
                    "cross + ind": "67.85 71.98",
                },
            ),
            _ONE_SPLIT,
        ),
    )
}
