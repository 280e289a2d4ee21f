"""The published numbers: tables 1 to 7 of the CSS paper (Wang et al., ICCV 2023), mIoU in percent.

Columns are numbers of labelled images, but in table 4 the classes of VOC. A cell that the paper leaves empty is absent. Bold
type and differences are left out: they can be computed, and the paper's are not always right (table 4 prints +3.33 for
82.17 - 78.87, and a mIoU of 71.57 for classes whose mean is 71.75).

Tables 2 and 3 quote other papers, whose protocols are not that of CSS and not each other's: each row has its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from css_ray.reports.published import Protocol, PublishedTable, Source, in_print

SYMBOLS = {
    "method.prototype_decay": "α",
    "method.temperature": "τ",
    "method.unsup_threshold": "δ_u",
    "method.valid_threshold": "δ_w",
    "method.hard_threshold": "δ_s",
    "method.contrast_weight": "λ_c",
}
"""The paper's letters for the settings of CSS."""

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

_CSS = Protocol(splits="own", encoder="resnet101", output_stride=8, crop=512, evaluation="whole_image", n=3)
"""Of Table 1. Its three splits were not released."""
_CSS_BLENDER = dataclasses.replace(_CSS, splits="u2pl", encoder="resnet101s", n=1)
_CSS_CITYSCAPES = dataclasses.replace(_CSS_BLENDER, crop=768, evaluation="sliding_window")
_U2PL = Protocol(splits="u2pl", encoder="resnet101s", output_stride=8, crop=513, evaluation="centre_crop")
_U2PL_CITYSCAPES = dataclasses.replace(_U2PL, crop=769)
_RERUN = Protocol(splits="u2pl", encoder="resnet101s")
"""Of what U2PL's authors ran for Cityscapes; they do not give the crop."""


def _of_css(rows: Iterable[str], protocol: Protocol) -> dict[str, Source]:
    return dict.fromkeys(rows, Source(whose="", protocol=protocol))


def _quoted(rows: dict[str, tuple[str, Protocol]]) -> dict[str, Source]:
    return {row: Source(whose=whose, protocol=protocol) for row, (whose, protocol) in rows.items()}


_TABLE_1 = ("Sup.", "MT", "CutMix", "Baseline", "CSS (crs.)", "CSS (mix)")
_TABLE_2 = _of_css(["CSS (mix)"], _CSS_BLENDER) | _quoted(
    {
        "CCT": ("U2PL's run of CCT", Protocol(encoder="resnet101s")),
        "CPS": ("CPS", Protocol(splits="cps", encoder="resnet101s", output_stride=16, crop=512, evaluation="sliding_window")),
        "U2PL": ("U2PL", _U2PL),
        "ST++": ("ST++", Protocol(splits="cps", encoder="resnet101", output_stride=8, crop=321, evaluation="whole_image")),
        "PRCL": ("PRCL", Protocol(splits="u2pl", encoder="resnet101", output_stride=16, crop=321, evaluation="random_crop")),
        "PCR": ("PCR", _U2PL),
        "PSMT": ("PS-MT", Protocol(splits="cps", encoder="resnet101s", output_stride=16, crop=512, evaluation="whole_image")),
    }
)
_TABLE_3 = _of_css(["CSS (mix)"], _CSS_CITYSCAPES) | _quoted(
    {
        "CCT": ("U2PL's run of CCT", _RERUN),
        "CPS": ("U2PL's run of CPS", _RERUN),
        "U2PL": ("U2PL", _U2PL_CITYSCAPES),
        "PCR": ("PCR", _U2PL_CITYSCAPES),
        "PSMT": (
            "PS-MT",
            Protocol(splits="cps", encoder="resnet101s", output_stride=16, crop=720, evaluation="sliding_window"),
        ),
    }
)


def _table(
    name: str,
    title: str,
    columns: tuple[int | str, ...],
    rows: dict[str, str],
    note: str = "",
    *,
    sources: dict[str, Source] | None = None,
) -> PublishedTable:
    """A table of the CSS paper. sources: by default its own, of one split."""
    own = _of_css(rows, dataclasses.replace(_CSS, n=1))
    return PublishedTable(
        name, f"{name} of the CSS paper, {title}", columns, in_print(columns, rows), sources or own, note, beside="paper"
    )


TABLES: dict[str, PublishedTable] = {
    table.name: table
    for table in (
        _table(
            "table1",
            "Classic VOC, mean and standard deviation of three runs on three splits",
            _CLASSIC,
            {
                "Sup.": "51.57±3.58 54.69±2.44 64.86±1.04 70.77±0.76",
                "MT": "58.92±2.99 61.63±1.76 66.79±0.53 71.58±0.51",
                "CutMix": "65.82±3.60 67.91±1.47 72.53±0.50 74.08±0.49",
                "Baseline": "66.91±4.21 70.32±1.86 73.97±1.04 76.49±0.58",
                "CSS (crs.)": "67.03±4.58 71.41±1.67 74.47±1.08 77.08±0.37",
                "CSS (mix)": "68.09±4.89 71.93±1.88 74.91±1.12 77.57±0.73",
            },
            "The paper does not say whether its standard deviation divides by n or by n - 1.",
            sources=_of_css(_TABLE_1, _CSS),
        ),
        _table(
            "table2",
            "Blender VOC",
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
            "Rows of other papers are quoted there; each has a protocol of its own.",
            sources=_TABLE_2,
        ),
        _table(
            "table3",
            "Cityscapes",
            _CITYSCAPES,
            {
                "CCT": "69.32 74.12 75.99 78.10",
                "CPS": "69.78 74.31 74.58 76.82",
                "U2PL": "70.30 74.37 76.47 79.05",
                "PCR": "73.41 76.31 78.40 79.11",
                "PSMT": "- 76.89 77.60 79.09",
                "CSS (mix)": "74.02 76.93 77.94 79.62",
            },
            "Rows of other papers are quoted there; each has a protocol of its own.",
            sources=_TABLE_3,
        ),
        _table(
            "table4",
            "IoU of the pseudo-labels by their source, classic VOC, 92 labels",
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
        _table(
            "table5",
            "Source of the pseudo-labels, classic VOC",
            _ABLATION,
            {
                "logit space": "67.11 70.32",
                "representation space": "64.20 67.52",
                "mix pseudo-labeling": "68.41 72.74",
                "cross pseudo-labeling": "67.85 71.98",
            },
            _ONE_SPLIT,
        ),
        _table(
            "table6",
            "Indicators, by the pseudo-labels they are used with, classic VOC",
            _ABLATION,
            {
                "seg label, conf.": "67.11 70.32",
                "seg label, smr.": "66.16 68.90",
                "seg label, mix": "67.80 71.50",
                "mix label, conf.": "68.33 71.92",
                "mix label, smr.": "66.89 69.25",
                "mix label, mix": "68.41 72.74",
            },
            _ONE_SPLIT,
        ),
        _table(
            "table7",
            "Components of CSS, classic VOC",
            _ABLATION,
            {
                "baseline": "67.11 70.32",
                "mix": "68.33 71.92",
                "cross": "67.21 70.87",
                "ind": "67.80 71.50",
                "mix + ind": "68.41 72.74",
                "cross + ind": "67.85 71.98",
            },
            _ONE_SPLIT,
        ),
    )
}
