"""The quality of the pseudo-labels by source (Table 4 of the paper), from the records of a study."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from css_ray.records import Record, mean_std, score_text
from css_ray.reports.table import MISSING, At, Entry, Grid

_KEPT, _MIOU = "pseudo/kept/", "pseudo/miou/"


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceQuality:
    """One source of pseudo-labels of one trial, in percent.

    miou: by split. kept, iou by class: means over the splits that have a value; kept is the share of the pixels with ground
    truth that got a pseudo-label.
    """

    trial: int
    row: str
    source: str
    miou: dict[int, float]
    kept: float | None
    iou: dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class PseudoLabelTable:
    """The sources of every trial, in the order of the trials."""

    study: str
    at: At
    ddof: int
    num_splits: int
    qualities: tuple[SourceQuality, ...]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes that have an IoU anywhere, in the order of the first source that names them."""
        return tuple(dict.fromkeys(name for quality in self.qualities for name in quality.iou))

    def grid(self) -> Grid:
        """A line a trial and source: the mean IoU ± std over splits, the share of pixels kept, the IoU of each class."""
        rows = []
        for quality in self.qualities:
            mean, std = mean_std(list(quality.miou.values()), self.ddof)
            score = MISSING if quality.kept == 0 else score_text(mean, std, len(quality.miou), self.num_splits)
            rows.append(
                (
                    Entry(quality.row),
                    Entry(quality.source),
                    Entry(score),
                    Entry(_percent(quality.kept)),
                    *(Entry(_percent(quality.iou.get(name))) for name in self.class_names),
                )
            )
        return Grid(self.caption, ("row", "source", "mIoU", "kept", *self.class_names), tuple(rows), ())

    @property
    def caption(self) -> str:
        """What the numbers are."""
        when = "at the last step" if self.at == "last" else "at the best evaluation"
        return (
            f"{self.study}: IoU of the pseudo-labels in percent {when}, on the pixels of unlabelled images that have ground "
            f"truth and that their source keeps; mean ± standard deviation (ddof={self.ddof}) over {self.num_splits} "
            f"split{'s' if self.num_splits > 1 else ''}."
        )

    def lines(self) -> list[dict[str, Any]]:
        """The unrounded values."""
        lines = []
        for quality in self.qualities:
            mean, std = mean_std(list(quality.miou.values()), self.ddof)
            line: dict[str, Any] = {"trial": quality.trial, "row": quality.row, "source": quality.source}
            line |= {"miou": mean, "std": std, "n": len(quality.miou), "kept": quality.kept}
            lines.append(line | {f"iou/{name}": quality.iou.get(name) for name in self.class_names})
        return lines


def pseudo_label_table(records: Iterable[Record], *, splits: int, at: At = "last", ddof: int = 1) -> PseudoLabelTable:
    """From finished runs. Raises ValueError where none scored pseudo-labels, with what makes them do so."""
    records = [record for record in records if record.status == "finished"]
    metrics = {(record.trial, record.split): record.last if at == "last" else record.best for record in records}
    rows = {record.trial: record.row for record in records}
    qualities = []
    for trial in sorted(rows):
        of_trial = {split: values for (index, split), values in sorted(metrics.items()) if index == trial}
        found = [name.removeprefix(_KEPT) for values in of_trial.values() for name in values if name.startswith(_KEPT)]
        for source in dict.fromkeys(found):
            scored = [values for values in of_trial.values() if _KEPT + source in values]
            prefix = f"pseudo/iou/{source}/"
            names = dict.fromkeys(name for values in scored for name in values if name.startswith(prefix))
            qualities.append(
                SourceQuality(
                    trial=trial,
                    row=rows[trial],
                    source=source,
                    miou={split: values[_MIOU + source] for split, values in of_trial.items() if _MIOU + source in values},
                    kept=_mean(scored, _KEPT + source),
                    iou={name.removeprefix(prefix): _mean(scored, name) or 0.0 for name in names},
                )
            )
    if not qualities:
        raise ValueError(
            "no finished run has scored pseudo-labels: that takes a method that makes some, train.diagnose_images > 0, and "
            "unlabelled images whose masks were prepared"
        )
    return PseudoLabelTable(study=records[0].study, at=at, ddof=ddof, num_splits=splits, qualities=tuple(qualities))


def _mean(scored: Iterable[Any], name: str) -> float | None:
    return mean_std([values[name] for values in scored if name in values])[0]


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"
