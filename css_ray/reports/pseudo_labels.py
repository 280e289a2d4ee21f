"""The quality of the pseudo-labels by source (Table 4 of the paper), from the records of a study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from css_ray.records import Record, mean_std, score_text
from css_ray.reports.table import MISSING, At, Entry, Grid, param_text

_KEPT, _MIOU, _UNKEPT = "pseudo/kept/", "pseudo/miou/", "pseudo/unkept_classes/"


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceQuality:
    """One source of pseudo-labels of one trial, in percent.

    params: what the study varies. miou: by split. kept, unkept, iou by class: means over the splits that have a value; kept is
    the share of the pixels with ground truth that got a pseudo-label, unkept the number of classes of which none did.
    """

    trial: int
    row: str
    params: Mapping[str, Any]
    source: str
    miou: dict[int, float]
    kept: float | None
    unkept: float | None
    iou: dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class PseudoLabelTable:
    """The sources of every trial, in the order of the trials.

    known_classes: those of the data set, in its order. params: the settings that distinguish trials of one row; labels: what to
    call them in a header.
    """

    study: str
    at: At
    ddof: int
    num_splits: int
    qualities: tuple[SourceQuality, ...]
    known_classes: tuple[str, ...] = ()
    params: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes that have an IoU anywhere, in the order of the data set."""
        scored = dict.fromkeys(name for quality in self.qualities for name in quality.iou)
        known = [name for name in self.known_classes if name in scored]
        return tuple(dict.fromkeys([*known, *scored]))

    @property
    def counts_unkept(self) -> bool:
        """Whether runs counted the classes of which a source keeps nothing; earlier versions left them out of the mean."""
        return any(quality.unkept is not None for quality in self.qualities)

    @property
    def rows_repeat(self) -> bool:
        """Whether several trials have the same row."""
        trials = {(quality.trial, quality.row) for quality in self.qualities}
        return len(trials) > len({row for _, row in trials})

    def grid(self) -> Grid:
        """One line per trial and source: the mean IoU ± std over splits, the share of pixels kept, the IoU of each class.

        If rows repeat, each line begins with its trial, and has the settings that distinguish it.
        """
        rows = []
        names = [self.labels.get(name, name) for name in self.params] if self.rows_repeat else []
        for quality in self.qualities:
            mean, std = mean_std(list(quality.miou.values()), self.ddof)
            score = MISSING if quality.kept == 0 else score_text(mean, std, len(quality.miou), self.num_splits)
            rows.append(
                (
                    *self._place(quality),
                    Entry(quality.source),
                    Entry(score),
                    Entry(_percent(quality.kept)),
                    *([Entry(MISSING if quality.unkept is None else f"{quality.unkept:g}")] if self.counts_unkept else ()),
                    *(Entry(_percent(quality.iou.get(name))) for name in self.class_names),
                )
            )
        place = ("trial", "row", *names) if self.rows_repeat else ("row",)
        unkept = ("unkept",) if self.counts_unkept else ()
        header = (*place, "source", "mIoU", "kept", *unkept, *self.class_names)
        title = "IoU of the pseudo-labels in percent, by source and class."
        return Grid(self.caption, header, tuple(rows), (), title, f"{self.study}-pseudo-labels")

    def _place(self, quality: SourceQuality) -> tuple[Entry, ...]:
        if not self.rows_repeat:
            return (Entry(quality.row),)
        params = (Entry(param_text(quality.params.get(name, MISSING))) for name in self.params)
        return Entry(str(quality.trial)), Entry(quality.row), *params

    @property
    def caption(self) -> str:
        """What the numbers are."""
        when = "at the last step" if self.at == "last" else "at the best evaluation"
        return (
            f"{self.study}: IoU of the pseudo-labels in percent {when}, on the pixels of unlabelled images that have ground "
            f"truth and that their source keeps; mean ± standard deviation (ddof={self.ddof}) over {self.num_splits} "
            f"split{'s' if self.num_splits > 1 else ''}."
            + (" Classes of which it keeps no pixel (unkept) count with an IoU of 0." if self.counts_unkept else "")
        )

    def lines(self) -> list[dict[str, Any]]:
        """The unrounded values."""
        lines = []
        for quality in self.qualities:
            mean, std = mean_std(list(quality.miou.values()), self.ddof)
            line: dict[str, Any] = {"trial": quality.trial, "row": quality.row}
            line |= {name: quality.params.get(name) for name in self.params} | {"source": quality.source}
            line |= {"miou": mean, "std": std, "n": len(quality.miou), "kept": quality.kept}
            line["unkept_classes"] = quality.unkept
            lines.append(line | {f"iou/{name}": quality.iou.get(name) for name in self.class_names})
        return lines


def pseudo_label_table(
    records: Iterable[Record],
    *,
    splits: int,
    at: At = "last",
    ddof: int = 1,
    class_names: Sequence[str] = (),
    params: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
) -> PseudoLabelTable:
    """The table of the finished runs.

    Args:
        records: Of one study.
        splits: How many splits each trial should have.
        at: The last step, or the best evaluation.
        ddof: 1 for the sample standard deviation, 0 for the population's.
        class_names: The classes in the order of the data set; those that are not among them come last.
        params: The settings that the study varies, which distinguish trials of one row.
        labels: What to call those in a header.

    Raises:
        ValueError: No run scored pseudo-labels; the message explains how to make runs do so.
    """
    records = [record for record in records if record.status == "finished"]
    metrics = {(record.trial, record.split): record.last if at == "last" else record.best for record in records}
    rows = {record.trial: record for record in records}
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
                    row=rows[trial].row,
                    params=rows[trial].params,
                    source=source,
                    miou={split: values[_MIOU + source] for split, values in of_trial.items() if _MIOU + source in values},
                    kept=_mean(scored, _KEPT + source),
                    unkept=_mean(scored, _UNKEPT + source),
                    iou={name.removeprefix(prefix): _mean(scored, name) or 0.0 for name in names},
                )
            )
    if not qualities:
        raise ValueError(
            "no finished run has scored pseudo-labels: that takes a method that makes some, train.diagnose_images > 0, and "
            "unlabelled images whose masks were prepared"
        )
    return PseudoLabelTable(
        study=records[0].study,
        at=at,
        ddof=ddof,
        num_splits=splits,
        qualities=tuple(qualities),
        known_classes=tuple(class_names),
        params=tuple(params),
        labels=labels or {},
    )


def _mean(scored: Iterable[Any], name: str) -> float | None:
    return mean_std([values[name] for values in scored if name in values])[0]


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{value:.2f}"
