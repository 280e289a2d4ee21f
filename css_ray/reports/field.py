"""What other papers report, mIoU in percent, in one table per data set, family of split lists, and encoder.

Scores are of single runs unless they have a standard deviation. Nearly all are the best of many evaluations on the images that
they are measured on; a row `(last)` is of the last one, from the training logs that its authors released.

The families of lists: `u2pl` and `cps` are named after the repositories that they came with. Their images differ: of the 186
labelled ones of Cityscapes they share 8.
"""

from __future__ import annotations

import dataclasses

from css_ray.reports.published import Protocol, PublishedTable, Source, in_print

_CLASSIC = (92, 183, 366, 732, 1464)
_BLENDER = (662, 1323, 2646, 5291)
_CITYSCAPES = (186, 372, 744, 1488)

_R101 = Protocol(splits="u2pl", encoder="resnet101s")
_U2PL = dataclasses.replace(_R101, output_stride=8, crop=513)
_AUGSEG = dataclasses.replace(_R101, output_stride=16, crop=513, evaluation="whole_image")
_UNIMATCH = dataclasses.replace(_R101, output_stride=16, crop=321, evaluation="whole_image")
_DINOV2 = Protocol(splits="u2pl", crop=518, evaluation="whole_image")
_S, _B = (dataclasses.replace(_DINOV2, encoder=f"vit_{size}_patch14_dinov2") for size in ("small", "base"))
_CPS_VOC = Protocol(splits="cps", encoder="resnet101s", output_stride=16, crop=512, evaluation="sliding_window")
_CPS_CITYSCAPES = dataclasses.replace(_CPS_VOC, crop=800)
_CITYSCAPES_801 = dataclasses.replace(_CPS_CITYSCAPES, crop=801)
_CITYSCAPES_769 = dataclasses.replace(_U2PL, crop=769)
_S_798, _B_798 = (
    dataclasses.replace(each, splits="cps", crop=798, evaluation="sliding_window") for each in (_S, _B)
)  # fmt: skip


def _last(protocol: Protocol, n: int = 1) -> Protocol:
    return dataclasses.replace(protocol, at="last", n=n)


def _table(name: str, title: str, columns: tuple[int | str, ...], rows: dict[str, tuple[str, str, Protocol]]) -> PublishedTable:
    """rows: label -> the scores as printed, whose they are, and their protocol."""
    scores = in_print(columns, {label: line for label, (line, _, _) in rows.items()})
    sources = {label: Source(whose=whose, protocol=protocol) for label, (_, whose, protocol) in rows.items()}
    return PublishedTable(name, title, columns, scores, sources, "Each row has a protocol of its own.")


TABLES: dict[str, PublishedTable] = {
    table.name: table
    for table in (
        _table(
            "voc_classic",
            "classic VOC, ResNet-101 unless a row names another encoder",
            _CLASSIC,
            {
                "Sup.": ("45.77 54.92 65.88 71.69 72.50", "U2PL", _U2PL),
                "Sup. (321)": ("45.1 55.3 64.8 69.7 73.5", "UniMatch", _UNIMATCH),
                "Sup. (AugSeg)": ("43.92 59.10 65.88 70.87 74.97", "AugSeg", _AUGSEG),
                "ST++": (
                    "65.2 71.0 74.6 77.3 79.1",
                    "ST++",
                    dataclasses.replace(_UNIMATCH, encoder="resnet101", output_stride=8),
                ),
                "U2PL": ("67.98 69.15 73.66 76.16 79.49", "U2PL", dataclasses.replace(_U2PL, evaluation="centre_crop")),
                "PS-MT": (
                    "65.80 69.58 76.57 78.42 80.01",
                    "PS-MT, with other lists at 732 labels",
                    dataclasses.replace(_R101, output_stride=16, crop=512, evaluation="whole_image"),
                ),
                "PCR": ("70.06 74.71 77.16 78.49 80.65", "PCR", _U2PL),
                "UniMatch": (
                    "74.99±.40 77.54±.72 78.54±.14 79.89±.37 80.83±.16",
                    "UniMatch's training logs",
                    dataclasses.replace(_UNIMATCH, n=3),
                ),
                "UniMatch (last)": (
                    "74.48±.35 76.70±1.22 78.43±.06 79.47±.35 80.58±.25",
                    "UniMatch's training logs",
                    _last(_UNIMATCH, 3),
                ),
                "UniMatch (R50)": (
                    "71.90 72.48 75.96 77.39 78.70",
                    "UniMatch's training logs",
                    dataclasses.replace(_UNIMATCH, encoder="resnet50s"),
                ),
                "AugSeg": ("71.09 75.45 78.80 80.33 81.36", "AugSeg", _AUGSEG),
                "AugSeg (last)": ("65.05 71.44 77.29 79.66 80.99", "AugSeg's training logs", _last(_AUGSEG)),
                "CorrMatch": ("76.4 78.5 79.4 80.6 81.8", "CorrMatch", dataclasses.replace(_R101, crop=321)),
                "PrevMatch": ("77.0 78.5 79.6 80.4 81.6", "PrevMatch", dataclasses.replace(_R101, crop=321)),
                "BRPG": ("73.62 76.55 78.00 79.78 81.91", "BRPG", dataclasses.replace(_R101, crop=513)),
                "AllSpark": (
                    "76.07 78.41 79.77 80.75 82.12",
                    "AllSpark",
                    Protocol(splits="u2pl", encoder="mit_b5", crop=513),
                ),
                "SemiVL": ("84.0 85.6 86.0 86.7 87.3", "SemiVL", Protocol(splits="u2pl", encoder="CLIP ViT-B", crop=512)),
            },
        ),
        _table(
            "voc_classic_dinov2_s",
            "classic VOC, DINOv2-S",
            _CLASSIC,
            {
                "Sup.": ("66.98 75.63 81.82 83.69 85.56", "UniMatch V2", _S),
                "UniMatch V2": ("79.03 85.50 85.85 86.69 87.82", "UniMatch V2", _S),
                "UniMatch V2 (last)": ("79.03 85.22 85.78 86.60 87.50", "UniMatch V2's training logs", _last(_S)),
                "UniMatch V2 (frozen)": ("81.82 83.84 84.02 85.73 86.23", "UniMatch V2", _S),
            },
        ),
        _table(
            "voc_classic_dinov2_b",
            "classic VOC, DINOv2-B",
            _CLASSIC,
            {
                "Sup.": ("76.86 82.07 85.27 87.15 88.30", "UniMatch V2", _B),
                "FixMatch": ("83.83 87.37 88.21 89.88 90.21", "UniMatch V2", _B),
                "UniMatch": ("86.03 87.52 88.66 89.99 90.43", "UniMatch V2", _B),
                "UniMatch V2": ("86.29 87.92 88.86 89.98 90.80", "UniMatch V2", _B),
                "UniMatch V2 (last)": ("86.27 87.40 88.71 89.70 90.12", "UniMatch V2's training logs", _last(_B)),
                "UniMatch V2 (frozen)": ("84.64 87.22 87.44 88.51 90.17", "UniMatch V2", _B),
            },
        ),
        _table(
            "voc_blender_u2pl",
            "blender VOC with U2PL's lists, ResNet-101 unless a row names another encoder",
            _BLENDER,
            {
                "Sup.": ("67.87 71.55 75.80 77.13", "U2PL", _U2PL),
                "U2PL": ("77.21 79.01 79.30 80.50", "U2PL", dataclasses.replace(_U2PL, evaluation="centre_crop")),
                "PS-MT": ("78.79 80.29 80.66 80.87", "PS-MT's repository", dataclasses.replace(_R101, crop=512)),
                "UniMatch": ("80.94 81.92 80.43 -", "UniMatch", dataclasses.replace(_UNIMATCH, crop=513)),
                "UniMatch (last)": (
                    "80.45 81.87 80.41 -",
                    "UniMatch's training logs",
                    _last(dataclasses.replace(_UNIMATCH, crop=513)),
                ),
                "AugSeg": ("79.29 81.46 80.50 -", "AugSeg", _AUGSEG),
                "AugSeg (R50)": ("77.28 78.27 78.24 -", "AugSeg", dataclasses.replace(_AUGSEG, encoder="resnet50s")),
                "AllSpark": ("78.32 79.98 80.42 81.14", "AllSpark", Protocol(splits="u2pl", encoder="mit_b5")),
                "BRPG": ("79.40 81.61 81.83 80.78", "BRPG", dataclasses.replace(_R101, crop=513)),
                "PCR": ("78.60 80.71 80.78 80.91", "the CSS paper", _U2PL),
            },
        ),
        _table(
            "voc_blender_cps",
            "blender VOC with the lists of CPS, ResNet-101 unless a row names another encoder",
            _BLENDER,
            {
                "CPS": ("74.48 76.44 77.68 78.64", "CPS", _CPS_VOC),
                "PS-MT": (
                    "75.50 78.20 78.72 79.76",
                    "PS-MT",
                    dataclasses.replace(_CPS_VOC, evaluation="whole_image"),
                ),
                "PS-MT (R50)": (
                    "72.83 75.70 76.43 77.88",
                    "PS-MT",
                    dataclasses.replace(_CPS_VOC, encoder="resnet50s", evaluation="whole_image"),
                ),
                "UniMatch": (
                    "77.01±.12 77.42±.35 77.40±.17 -",
                    "UniMatch's training logs",
                    dataclasses.replace(_UNIMATCH, splits="cps", n=3),
                ),
                "UniMatch (last)": (
                    "76.65±.55 76.77±.51 76.65±.33 -",
                    "UniMatch's training logs",
                    _last(dataclasses.replace(_UNIMATCH, splits="cps"), 3),
                ),
                "AugSeg": ("77.01 77.31 78.82 -", "AugSeg", dataclasses.replace(_AUGSEG, splits="cps")),
                "AugSeg (R50)": (
                    "74.66 75.99 77.16 -",
                    "AugSeg",
                    dataclasses.replace(_AUGSEG, splits="cps", encoder="resnet50s"),
                ),
                "CCT": ("67.94 73.00 76.17 77.56", "CPS", Protocol(splits="cps", encoder="resnet101s")),
            },
        ),
        _table(
            "cityscapes_u2pl",
            "Cityscapes with U2PL's lists, ResNet-101",
            _CITYSCAPES,
            {
                "Sup.": ("65.74 72.53 74.43 77.83", "U2PL", _CITYSCAPES_769),
                "U2PL": ("70.30 74.37 76.47 79.05", "U2PL", dataclasses.replace(_CITYSCAPES_769, evaluation="centre_crop")),
                "PCR": ("73.41 76.31 78.40 79.11", "PCR", _CITYSCAPES_769),
                "BRPG": ("76.37 78.56 79.46 80.26", "BRPG", _R101),
            },
        ),
        _table(
            "cityscapes_cps",
            "Cityscapes with the lists of CPS, ResNet-101 unless a row names another encoder",
            _CITYSCAPES,
            {
                "Sup.": ("66.3 72.8 75.0 78.0", "UniMatch", _CITYSCAPES_801),
                "CPS": ("74.72 77.62 79.21 80.21", "CPS", _CPS_CITYSCAPES),
                "PS-MT": ("- 76.89 77.60 79.09", "PS-MT", dataclasses.replace(_CPS_CITYSCAPES, crop=720)),
                "PS-MT (R50)": ("- 77.12 78.38 79.22", "PS-MT", dataclasses.replace(_CPS_CITYSCAPES, encoder="resnet50s")),
                "UniMatch": ("76.59 77.92 79.22 79.45", "UniMatch", _CITYSCAPES_801),
                "UniMatch (last)": ("76.24 77.57 79.06 79.34", "UniMatch's training logs", _last(_CITYSCAPES_801)),
                "UniMatch (R50)": (
                    "75.03 76.77 77.49 78.60",
                    "UniMatch",
                    dataclasses.replace(_CITYSCAPES_801, encoder="resnet50s"),
                ),
                "AugSeg": ("75.22 77.82 79.56 80.43", "AugSeg", _CPS_CITYSCAPES),
                "AugSeg (R50)": (
                    "73.73 76.49 78.76 79.33",
                    "AugSeg",
                    dataclasses.replace(_CPS_CITYSCAPES, encoder="resnet50s"),
                ),
                "CorrMatch": ("77.3 78.5 79.4 80.4", "CorrMatch", Protocol(splits="cps", encoder="resnet101s")),
                "PrevMatch": ("77.7 78.9 80.1 80.1", "PrevMatch", Protocol(splits="cps", encoder="resnet101s")),
                "AllSpark": ("78.33 79.24 80.56 81.39", "AllSpark", Protocol(splits="cps", encoder="mit_b5")),
                "SemiVL": ("77.9 79.4 80.3 80.6", "SemiVL", Protocol(splits="cps", encoder="CLIP ViT-B")),
            },
        ),
        _table(
            "cityscapes_dinov2_s",
            "Cityscapes with the lists of CPS, DINOv2-S",
            _CITYSCAPES,
            {
                "Sup.": ("77.15 80.22 81.69 82.42", "UniMatch V2", _S_798),
                "UniMatch V2": ("80.55 81.86 82.39 82.61", "UniMatch V2", _S_798),
            },
        ),
        _table(
            "cityscapes_dinov2_b",
            "Cityscapes with the lists of CPS, DINOv2-B",
            _CITYSCAPES,
            {
                "Sup.": ("80.79 82.65 83.98 84.39", "UniMatch V2", _B_798),
                "UniMatch V2": ("83.60 84.30 84.51 85.14", "UniMatch V2", _B_798),
                "UniMatch V2 (last)": ("83.47 83.88 84.28 85.07", "UniMatch V2's training logs", _last(_B_798)),
            },
        ),
    )
}
