"""One HTML page about a study, or about several in one table: what was found, how sure it is, and how to repeat it.

The page needs no script and loads nothing: its charts are drawn into it. Whatever a journal holds is text in it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from css_ray.matrices import At, ImageMatrices, MatricesError
from css_ray.messages import printable
from css_ray.records import mean_std, score_text
from css_ray.reports import charts, search_charts, verdict
from css_ray.reports.charts import Curve, Figure
from css_ray.reports.compare import Comparison, TableAgainst
from css_ray.reports.picture import Picture
from css_ray.reports.pseudo_labels import PseudoLabelTable, pseudo_label_table
from css_ray.reports.search_charts import Tried
from css_ray.reports.table import MISSING, Cell, Entry, Grid, Table, TrialTable, param_text, trial_table
from css_ray.secrets import without_secrets
from css_ray.standing import CURVE_METRIC, Standing, TrialStanding

MOST_TRIALS = 50
"""Trials of a search that the page lists; `css-ray study table NAME --trials` lists all."""

_MOST_ROWS = 4  # of a chart with a dot per class and row

_IOU = "val/iou/"


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """A study as the page needs it.

    standing: of its journal. params: the settings that it varies; labels: what to call them; logarithmic: those that are drawn
    by their logarithm. importance: of those of its search, empty without; importance_note: what it is, or why there is none.
    read: the matrices of a run. Commands: train, that trains a run of it again; predict, that makes masks; illustrate, that
    makes figures; run, the whole study; table, all its trials.
    """

    standing: Standing[Any]
    params: Sequence[str]
    labels: Mapping[str, str]
    logarithmic: frozenset[str]
    importance: Mapping[str, float]
    importance_note: str
    read: Callable[[int, int, At], ImageMatrices | None]
    train: Callable[[int, int], str]
    predict: str
    illustrate: str
    run: str
    table: str

    @property
    def name(self) -> str:
        return self.standing.study


@dataclass(frozen=True, slots=True)
class Page:
    """The page, and its charts by themselves."""

    html: str
    figures: tuple[Figure, ...]


def make_page(
    subjects: Sequence[Subject],
    table: Table,
    comparison: Comparison | None,
    *,
    unpaired: str = "",
    pictures: Sequence[Picture] = (),
) -> Page:
    """The page of some studies.

    Args:
        subjects: The studies, the first of them giving the page its name.
        table: Of all of them.
        comparison: Of the table's rows with a base; None if there is nothing to compare.
        unpaired: Why there is none, if not for lack of another row.
        pictures: What the models predict. A journal has none.
    """
    maker = _Maker(subjects, table, comparison, unpaired, pictures)
    html = _template().render(maker.context())
    return Page(html, tuple(maker.figures))


def _template() -> jinja2.Template:
    source = resources.files("css_ray.reports").joinpath("page.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_harmless
    )
    return environment.from_string(source)


def _harmless(value: Any) -> Any:
    """Text as a browser may show it in every direction of writing; the environment escapes it as HTML besides."""
    return printable(value) if type(value) is str else value


@dataclass(frozen=True, slots=True)
class _Drawing:
    """A figure as the template takes it."""

    figure: Figure
    svg: str


class _Maker:
    """Gathers what the template shows, and the figures on the way. missing_matrices: why a confusion matrix is not shown."""

    def __init__(
        self,
        subjects: Sequence[Subject],
        table: Table,
        comparison: Comparison | None,
        unpaired: str,
        pictures: Sequence[Picture],
    ) -> None:
        self.subjects = {subject.name: subject for subject in subjects}
        self.table, self.comparison, self.unpaired = table, comparison, unpaired
        self.pictures, self.missing_matrices = pictures, ""
        self.figures: list[Figure] = []
        self.several = len(subjects) > 1

    def context(self) -> dict[str, Any]:
        subjects = self.subjects.values()
        return {
            "title": ", ".join(self.subjects),
            "descriptions": [text for each in subjects if (text := str(each.standing.spec.get("description") or ""))],
            "unfinished": [text for each in subjects if (text := _unfinished(each.standing))],
            "verdicts": verdict.verdicts(self.table, self.comparison, self.unpaired),
            "rule": verdict.RULE,
            "scores": _with_counts(self._scores(), self.table),
            "differences": None if self.comparison is None else self.comparison.grid(),
            "unpaired": self.unpaired,
            "slopes": self._slopes(),
            "curves": self._curves(),
            "searches": [*self._searches()],
            "pseudo_labels": [*self._pseudo_labels()],
            "classes": [*self._classes()],
            "confusions": [*self._confusions()],
            "missing_matrices": self.missing_matrices,
            "pictures": self.pictures,
            "illustrate": [each.illustrate for each in subjects],
            "predict": [each.predict for each in subjects],
            "run": [each.run for each in subjects],
            "provenance": [self._provenance(each) for each in subjects],
            "again": [*self._again()],
        }

    # ------------------------------------------------------------------------------------------------------------ what is shown

    def _drawn(self, figure: Figure) -> _Drawing:
        self.figures.append(figure)
        return _Drawing(figure, figure.svg())

    def _scores(self) -> Grid:
        if self.comparison is None:
            return self.table.grid()
        return TableAgainst(table=self.table, comparison=self.comparison).grid()

    def _name(self, what: str, column: Any) -> str:
        """The name of a figure, of which there is one per column."""
        return what if self.table.column_name is None else f"{what}-{self.table.columns.index(column)}"

    def _title(self, column: Any) -> str:
        return "" if self.table.column_name is None else f"{self.table.column_name} {column}"

    def _cells(self, column: Any) -> dict[Any, Cell]:
        """The cells of a column that have a score: the complete ones, best first, then the others."""
        order = verdict.ranked(self.table, column)
        rest = [row for row in self.table.rows if row not in order]
        cells = {row: self.table.cells.get((row, column)) for row in (*order, *rest)}
        return {row: cell for row, cell in cells.items() if cell is not None and cell.score.values}

    def _trial(self, cell: Cell) -> TrialStanding:
        return self.subjects[cell.score.study].standing.trials[cell.score.trial]

    def _slopes(self) -> list[tuple[str, _Drawing]]:
        drawn = []
        for column in self.table.columns:
            scores = {row: cell.score.values for row, cell in self._cells(column).items()}
            if len({split for values in scores.values() for split in values}) > 1:
                figure = charts.slopes(self._name("splits", column), self.table.metric, scores)
                drawn.append((self._title(column), self._drawn(figure)))
        return drawn

    def _curves(self) -> list[tuple[str, _Drawing]]:
        drawn = []
        for column in self.table.columns:
            cells = self._cells(column)
            curves = {row: curve for row, cell in cells.items() if (curve := _curve(self._trial(cell), self.table.ddof))}
            if curves:
                figure = charts.curves(self._name("curves", column), CURVE_METRIC, curves)
                drawn.append((self._title(column), self._drawn(figure)))
        return drawn

    def _searches(self) -> Iterator[dict[str, Any]]:
        for number, subject in enumerate(self.subjects.values()):
            trials = [trial for _, trial in sorted(subject.standing.trials.items()) if trial.source == "search"]
            if not trials:
                continue
            suffix = f"-{number}" if self.several else ""
            tried = [Tried(trial.index, trial.status, trial.partial[0], trial.params) for trial in trials]
            metric, figures = self.table.metric, []
            if any(each.mean is not None for each in tried):
                figures.append(self._drawn(search_charts.history(f"history{suffix}", metric, tried)))
            if lines := search_charts.parallel(
                f"parallel{suffix}", metric, tried, subject.params, subject.labels, subject.logarithmic
            ):
                figures.append(self._drawn(lines))
            if subject.importance:
                bars = search_charts.importances(
                    f"importance{suffix}", subject.importance, subject.labels, subject.importance_note
                )
                figures.append(self._drawn(bars))
            if dots := search_charts.slices(
                f"slices{suffix}", metric, tried, subject.params, subject.labels, subject.logarithmic
            ):
                figures.append(self._drawn(dots))
            listed = self._trials(subject)
            yield {
                "name": subject.name,
                "figures": figures,
                "importance_note": "" if subject.importance else subject.importance_note,
                "trials": replace(listed, scores=listed.scores[:MOST_TRIALS]).grid(),
                "table": subject.table,
                "more": max(0, len(listed.scores) - MOST_TRIALS),
                "pruned": _pruned(trials),
            }

    def _trials(self, subject: Subject) -> TrialTable:
        table = self.table
        return trial_table(
            subject.standing.records, metric=table.metric, at=table.at, ddof=table.ddof, mode=table.mode,
            splits=len(subject.standing.definition.splits), params=subject.params, labels=subject.labels,
        )  # fmt: skip

    def _pseudo_labels(self) -> Iterator[tuple[Grid, _Drawing | None]]:
        """Of the trials that the table shows."""
        for number, subject in enumerate(self.subjects.values()):
            shown = {cell.score.trial for cell in self.table.cells.values() if cell.score.study == subject.name}
            records = [record for record in subject.standing.records if record.trial in shown]
            try:
                found = pseudo_label_table(
                    records, splits=len(subject.standing.definition.splits), at=self.table.at, ddof=self.table.ddof,
                    class_names=tuple(subject.standing.class_names), params=subject.params, labels=subject.labels,
                )  # fmt: skip
            except ValueError:
                continue  # no method of this study makes pseudo-labels that were scored
            yield found.grid(), self._pseudo_chart(found, f"pseudo-labels{f'-{number}' if self.several else ''}")

    def _pseudo_chart(self, found: PseudoLabelTable, name: str) -> _Drawing | None:
        scores: dict[Any, dict[str, tuple[float, float | None]]] = {}
        for quality in found.qualities[:_MOST_ROWS]:
            label = f"{quality.row}, {quality.source}"
            label = f"{label} ({quality.trial})" if label in scores else label
            scores[label] = {class_name: (iou, None) for class_name, iou in quality.iou.items()}
        if not any(scores.values()):
            return None
        return self._drawn(charts.by_class(name, "IoU of the pseudo-labels by source", scores, found.class_names))

    def _classes(self) -> Iterator[tuple[Grid, _Drawing]]:
        """Per column the IoU of each class: a table of all rows, a chart of the best ones and the base."""
        for column in self.table.columns:
            cells = self._cells(column)
            scores = {row: found for row, cell in cells.items() if (found := self._ious(cell))}
            known = dict.fromkeys(
                name for cell in cells.values() for name in self.subjects[cell.score.study].standing.class_names
            )
            names = [name for name in known if any(name in found for found in scores.values())]
            if not names:
                continue
            base = () if self.comparison is None else (self.comparison.base,)
            best = dict.fromkeys(([*scores][: _MOST_ROWS - 1]) + [row for row in base if row in scores] + [*scores])
            chosen = {row: scores[row] for row in [*best][:_MOST_ROWS]}
            shown = {
                row: {name: mean_std(list(values.values()), self.table.ddof) for name, values in found.items()}
                for row, found in chosen.items()
            }
            title = f"IoU of each class{f', {self._title(column)}' if self._title(column) else ''}"
            drawn = self._drawn(charts.by_class(self._name("classes", column), title, shown, names))  # type: ignore[arg-type]
            lines = []
            for name in names:
                line = [Entry(name)]
                for row, cell in cells.items():
                    values = [*scores.get(row, {}).get(name, {}).values()]
                    mean, std = mean_std(values, self.table.ddof)
                    line.append(Entry(score_text(mean, std, len(values), cell.score.n) if values else MISSING))
                lines.append(tuple(line))
            yield (
                Grid(
                    f"{title}, in percent: mean ± standard deviation over splits.",
                    ("class", *map(str, cells)),
                    tuple(lines),
                    (),
                ),
                drawn,
            )

    def _ious(self, cell: Cell) -> dict[str, dict[int, float]]:
        """By class and split, in percent."""
        found: dict[str, dict[int, float]] = {}
        for split, run in sorted(self._trial(cell).runs.items()):
            if run.status == "finished":
                for name, value in (run.last if self.table.at == "last" else run.best).items():
                    if name.startswith(_IOU):
                        found.setdefault(name.removeprefix(_IOU), {})[split] = value
        return found

    def _confusions(self) -> Iterator[_Drawing]:
        """Of the best row of each column, and of the base: summed over the validation images and the splits."""
        for column in self.table.columns:
            cells = self._cells(column)
            base = () if self.comparison is None else (self.comparison.base,)
            for place, row in enumerate(dict.fromkeys([*[*cells][:1], *(row for row in base if row in cells)])):
                counts, names = self._counts(cells[row])
                if counts is not None:
                    title = f"{row}{f' ({self._title(column)})' if self._title(column) else ''}"
                    name = self._name("confusion", column) + ("-base" if place else "")
                    yield self._drawn(charts.confusion(name, title, counts, names))

    def _counts(self, cell: Cell) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
        total: NDArray[np.int64] | None = None
        names: tuple[str, ...] = ()
        for split in cell.score.values:
            try:
                found = self.subjects[cell.score.study].read(cell.score.trial, split, self.table.at)
            except (MatricesError, OSError) as error:
                self.missing_matrices = str(error)
                return None, ()
            if found is None or (names and names != found.class_names):
                self.missing_matrices = "the runs have kept no confusion matrices of their validation images."
                return None, ()
            names, size = found.class_names, len(found.class_names)
            counts = np.bincount(found.cells, weights=found.pixels, minlength=size * size).astype(np.int64).reshape(size, size)
            total = counts if total is None else total + counts
        return total, names

    # ---------------------------------------------------------------------------------------------------- where it comes from

    def _provenance(self, subject: Subject) -> dict[str, Any]:
        standing = subject.standing
        cells = [cell for cell in self.table.cells.values() if cell.score.study == subject.name]
        trials = {cell.score.trial: standing.trials[cell.score.trial] for cell in cells}
        configs = {index: trial.start.config for index, trial in sorted(trials.items())}
        keys = list(dict.fromkeys(key for config in configs.values() for key in config))
        texts = {
            key: {index: without_secrets(_plain(config.get(key, MISSING))) for index, config in configs.items()} for key in keys
        }
        common = [(key, values[min(values)]) for key, values in texts.items() if len(set(values.values())) == 1]
        lines = tuple(
            (Entry(key), *map(Entry, values.values())) for key, values in texts.items() if len(set(values.values())) > 1
        )
        header = ("setting", *(f"{trials[index].row} (trial {index})" for index in configs))
        hours = ", ".join(f"{spent:.2f} {device}-hours" for device, spent in standing.hours.items())
        seconds = sum(run.seconds for trial in standing.trials.values() for run in trial.runs.values())
        workers = sorted({run.workers for trial in standing.trials.values() for run in trial.runs.values() if run.workers})
        facts = [
            ("status", standing.status),
            ("runs", f"{standing.runs_ended} of {standing.num_runs} ended"),
            ("latest event", time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(standing.latest))),
            ("spent", f"{hours}; {seconds / 3600:.2f} hours of training in finished runs"),
            ("workers per run", ", ".join(map(str, workers)) or "not recorded"),
            ("versions", ", ".join(f"{name} {version}" for name, version in standing.versions.items()) or "not recorded"),
        ]
        spec = without_secrets(json.dumps(standing.spec, indent=2, ensure_ascii=False))
        return {
            "name": subject.name,
            "facts": facts,
            "splits": self._split_grid(subject),
            "common": common,
            "differing": Grid("Settings that differ between the rows.", header, lines, ()) if lines else None,
            "spec": spec,
        }

    def _split_grid(self, subject: Subject) -> Grid:
        runs: dict[tuple[int, str], set[int]] = {}
        for record in subject.standing.records:
            runs.setdefault((record.split, record.split_hash), set()).add(record.seed)
        lines = tuple(
            (Entry(str(split)), Entry(", ".join(map(str, sorted(seeds)))), Entry(found or MISSING))
            for (split, found), seeds in sorted(runs.items())
        )
        return Grid("Splits: the seed of each, and the hash of the ids of its images.", ("split", "seed", "images"), lines, ())

    def _again(self) -> Iterator[tuple[str, str]]:
        """The command that trains a run of each cell of the table again, the best row's first."""
        for column in self.table.columns:
            for row, cell in self._cells(column).items():
                where = f"{row}{f', {self._title(column)}' if self._title(column) else ''}"
                split = min(cell.score.values)
                yield f"{where}, split {split}", self.subjects[cell.score.study].train(cell.score.trial, split)


def _plain(value: Any) -> str:
    return (
        value
        if isinstance(value, str)
        else param_text(value)
        if isinstance(value, float)
        else json.dumps(value, ensure_ascii=False)
    )


def _unfinished(standing: Standing[Any]) -> str:
    """That more is to come, in words; empty if the study has ended."""
    if standing.status in ("finished", "failed", "budget"):
        return ""
    ended = f"{standing.runs_ended} of {standing.num_runs} runs have ended"
    return f"{standing.study} is {standing.status}: {ended}, so this is a report of what there is so far."


def _curve(trial: TrialStanding, ddof: int) -> Curve | None:
    """Over the runs that finished, or if none has, over those that began: at the steps at which all of them were evaluated."""
    finished = {split for split, run in trial.runs.items() if run.status == "finished"}
    curves = [curve for split, curve in trial.curves.items() if curve and (split in finished or not finished)]
    if not curves:
        return None
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    if not steps:
        return None
    found = [mean_std([curve[step] for curve in curves], ddof) for step in steps]
    return Curve(steps, [mean or 0.0 for mean, _ in found], [std for _, std in found], len(curves))


def _pruned(trials: Sequence[TrialStanding]) -> Grid | None:
    """The trials of a search that were pruned, and the steps that each had cost by then."""
    lines, spent, whole = [], 0, sum(run.step for trial in trials for run in trial.runs.values())
    pruned = [trial for trial in trials if trial.status == "pruned"]
    for trial in pruned:
        steps = sum(run.step for run in trial.runs.values())
        spent += steps
        where = "; ".join(
            f"split {split} at step {run.step}" for split, run in sorted(trial.runs.items()) if run.status == "pruned"
        )
        lines.append((Entry(str(trial.index)), Entry(f"{steps:,}"), Entry(where or MISSING), Entry(trial.reason)))
    if not pruned:
        return None
    share = 100 * spent / whole if whole else 0.0
    caption = (
        f"{len(pruned)} of {len(trials)} trials were pruned; they cost {spent:,} of the {whole:,} steps that the search has "
        f"trained ({share:.0f} %)."
    )
    return Grid(caption, ("trial", "steps", "pruned on", "reason"), tuple(lines[:MOST_TRIALS]), ())


def _with_counts(grid: Grid, table: Table) -> Grid:
    """A table with the number of splits beside each score."""
    width = (len(grid.header) - 1) // len(table.columns)
    header, rows = list(grid.header), [list(line) for line in grid.rows]
    for number in reversed(range(len(table.columns))):
        column, after = table.columns[number], 2 + number * width
        header.insert(after, "n" if len(table.columns) == 1 else f"{column}, n")
        for row, line in zip(table.rows, rows, strict=True):
            cell = table.cells.get((row, column))
            line.insert(after, Entry(MISSING if cell is None else str(cell.score.n)))
    return replace(grid, header=tuple(header), rows=tuple(map(tuple, rows)))
