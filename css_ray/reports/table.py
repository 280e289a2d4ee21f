"""From records to tables of mean ± standard deviation in which everything that is missing is reported.

`make_table` makes the rows and columns of a paper's table, `trial_table` a list of all trials, best first. Both turn into text,
Markdown, CSV, LaTeX and HTML in `css_ray.reports.render`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from css_ray.matrices import At as At
from css_ray.records import Record, mean_std, score_text
from css_ray.reports.published import Protocol, Published, PublishedTable

Mode = Literal["max", "min"]

MISSING = "–"
OPTIMISTIC = "The best of several trials is an optimistic estimate: chance helps to choose it."
_MAX_REASON = 160  # characters of a footnote's reason; the run keeps the whole of it


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialScore:
    """One trial judged over the study's splits.

    values: the metric of each split that has one, in percent; mean, std: over those values; num_splits: how many there should
    be. reasons: why a split has no value; run_ids: each split's MLflow run, if the records came from MLflow. hashes: of each
    split's images, empty if the records have none.
    """

    study: str
    trial: int
    row: str
    params: Mapping[str, Any]
    values: Mapping[int, float]
    mean: float | None
    std: float | None
    num_splits: int
    reasons: Mapping[int, str]
    run_ids: Mapping[int, str]
    hashes: Mapping[int, str]

    @property
    def n(self) -> int:
        """The number of splits that the mean is over."""
        return len(self.values)

    @property
    def complete(self) -> bool:
        """True if every split has a value."""
        return self.n == self.num_splits

    @property
    def text(self) -> str:
        """`68.09 ± 4.89`, or with `(n=1 of 3)` if splits are missing."""
        return score_text(self.mean, self.std, self.n, self.num_splits)

    @property
    def missing(self) -> str:
        """Why splits are missing, in one line; empty if none is."""
        return "; ".join(f"split {split} {reason}" for split, reason in sorted(self.reasons.items()))


def score_trials(
    records: Iterable[Record],
    *,
    metric: str = "val/miou",
    at: At = "last",
    ddof: int = 1,
    splits: int | Mapping[str, int] | None = None,
    mode: Mode = "max",
    std_weight: float = 0.0,
) -> list[TrialScore]:
    """One score per trial, best mean first; trials without a value of every split come last, whatever their mean.

    at: the metric at the last step or at the best evaluation. splits: how many splits each trial should have, by study if they
    differ; by default as many as occur in its records. std_weight: how many standard deviations (ddof 1, as in a search) are
    taken off the mean before trials are ranked. Raises ValueError if a trial has more splits.
    """
    records = list(records)
    studies: dict[str, set[int]] = {}
    trials: dict[tuple[str, int], dict[int, Record]] = {}
    for record in records:
        studies.setdefault(record.study, set()).add(record.split)
        trials.setdefault((record.study, record.trial), {})[record.split] = record
    scores = []
    for (study, trial), runs in trials.items():
        known = sorted(studies[study])
        num_splits = (splits[study] if isinstance(splits, Mapping) else splits) or len(known)
        scored = {split: run.last if at == "last" else run.best for split, run in sorted(runs.items())}
        values = {
            split: scored[split][metric]
            for split, run in sorted(runs.items())
            if run.status == "finished" and metric in scored[split]
        }
        if len(values) > num_splits:
            raise ValueError(f"trial {trial} has values of {len(values)} splits, expected at most {num_splits}; raise `splits`")
        # With fewer expected than known, the splits that were not run are not missed.
        wanted = known if num_splits >= len(known) else sorted(runs)
        if any(run.status == "pruned" for run in runs.values()):
            wanted = sorted(runs)  # the verdict on one run is why the others were not started
        mean, std = mean_std(list(values.values()), ddof)
        first = next(iter(runs.values()))
        scores.append(
            TrialScore(
                study=study,
                trial=trial,
                row=first.row,
                params=first.params,
                values=values,
                mean=mean,
                std=std,
                num_splits=num_splits,
                reasons={split: _reason(runs.get(split), metric) for split in wanted if split not in values},
                run_ids={split: run.run_id for split, run in sorted(runs.items()) if run.run_id is not None},
                hashes={split: run.split_hash for split, run in sorted(runs.items())},
            )
        )
    sign = -1 if mode == "max" else 1

    def rank(score: TrialScore) -> float:
        spread = mean_std(list(score.values.values()))[1] or 0.0
        return sign * (score.mean or 0.0) + std_weight * spread

    return sorted(scores, key=lambda score: (not score.complete, -score.n, rank(score), score.trial))


def _reason(run: Record | None, metric: str) -> str:
    if run is None:
        return "was not started"
    if run.status in ("failed", "pruned"):
        reason = " ".join(run.reason.split())
        return f"{run.status}: {reason[:_MAX_REASON]}{'…' if len(reason) > _MAX_REASON else ''}"
    return f"has not finished (step {run.step})" if run.status == "running" else f"has no {metric}"


@dataclass(frozen=True, slots=True)
class Entry:
    """One place of a grid as a renderer sees it: its text, whether it is the best, its notes' numbers, and its details.

    narrow, aside: the text for a column of a paper, and what it leaves out, for a footnote; `text` has both.
    """

    text: str
    bold: bool = False
    notes: tuple[int, ...] = ()
    detail: str = ""
    narrow: str = ""
    aside: str = ""


@dataclass(frozen=True, slots=True)
class Grid:
    """A table ready to be drawn: texts only. notes are numbered from 1.

    caption: what the numbers are, in full. title: a caption as papers have it. label: by which a paper refers to the table.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    notes: tuple[str, ...]
    title: str = ""
    label: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A cell of a table: the best complete trial of its row and column, or the fullest one if none is complete."""

    score: TrialScore
    num_trials: int
    num_complete: int

    @property
    def text(self) -> str:
        """The score, and of how many complete trials it is the best if there were several."""
        return self.score.text if self.num_trials == 1 else f"{self.score.text}, {self._best_of}"

    @property
    def aside(self) -> str:
        """What `text` has besides mean and std, but for splits whose lack `TrialScore.missing` explains; often empty."""
        score = self.score
        explained = score.complete or score.mean is None or score.missing
        missing = [] if explained else [f"n={score.n} of {score.num_splits}"]
        return ", ".join([*missing, *([self._best_of] if self.num_trials > 1 else [])])

    @property
    def _best_of(self) -> str:
        return f"best of {self.num_complete} trials"


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Rows x columns of scores. A place without any trial has no cell.

    printed: the published table beside it. protocols: how the scores of a row were measured, to compare with the published.
    """

    study: str
    metric: str
    at: At
    ddof: int
    mode: Mode
    num_splits: int
    row_name: str
    column_name: str | None
    rows: tuple[Any, ...]
    columns: tuple[Any, ...]
    cells: Mapping[tuple[Any, Any], Cell]
    printed: PublishedTable | None = None
    protocols: Mapping[Any, Protocol] = field(default_factory=dict)

    def published(self, row: Any, column: Any) -> Published | None:
        """The published score for a cell, or None."""
        return self.printed.find(str(row), column) if self.printed else None

    def caveat(self, row: Any) -> str:
        """Whose the published scores of a row are, and where their protocol is not ours; empty if there is nothing of both."""
        source = self.printed.source(str(row)) if self.printed else None
        if source is None or all(self.published(row, column) is None for column in self.columns):
            return ""
        ours = self.protocols.get(row)
        differences = source.protocol.differences(ours) if ours else []
        measured = [f"measured with {', '.join(differences)}"] if differences else []
        return "; ".join([*([f"score of {source.whose}"] if source.whose else []), *measured])

    def best(self, column: Any) -> set[Any]:
        """The rows whose complete score is the best of a column, to two decimals."""
        shown = {row: cell.score.mean for (row, place), cell in self.cells.items() if place == column and cell.score.complete}
        means = {row: round(mean, 2) for row, mean in shown.items() if mean is not None}
        top = (max if self.mode == "max" else min)(means.values(), default=None)
        return {row for row, mean in means.items() if mean == top}

    @property
    def caption(self) -> str:
        """What the numbers are: metric, at which step, over how many splits, with which ddof."""
        counts = sorted({cell.score.num_splits for cell in self.cells.values()})
        num_splits = self.num_splits if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        text = _caption(self.study, self.metric, self.at, num_splits, self.ddof)
        if any(cell.num_trials > 1 for cell in self.cells.values()):
            text += f" {OPTIMISTIC}"
        if self.printed is not None:
            text += f" {self.printed.beside}: {self.printed.title}. {self.printed.note}".rstrip()
        return text

    @property
    def title(self) -> str:
        """A caption as papers have it."""
        by = "" if self.column_name is None else f", by {_IN_WORDS.get(self.column_name, self.column_name)}"
        return f"{metric_in_words(self.metric)} in percent{by}."

    def grid(self) -> Grid:
        """The table as texts: one line per row, and beside each column the published one if there is one."""
        notes: list[str] = []
        header = [self.row_name]
        for column in self.columns:
            header.append(str(column))
            if self.printed is not None:
                header.append(f"{column} ({self.printed.beside})")
        best = {column: self.best(column) for column in self.columns}
        lines = []
        for row in self.rows:
            line = [Entry(str(row))]
            for column in self.columns:
                line.append(self._entry(row, column, row in best[column], notes))
                if self.printed is not None:
                    score = self.published(row, column)
                    line.append(Entry(MISSING if score is None else score_text(score.mean, score.std)))
            lines.append(line)
        self._add_caveats(lines, notes)
        return Grid(self.caption, tuple(header), tuple(map(tuple, lines)), tuple(notes), self.title, self.study)

    def _add_caveats(self, lines: Sequence[list[Entry]], notes: list[str]) -> None:
        """A note for the published scores of each row, one for rows that it is the same for."""
        sharing: dict[str, list[int]] = {}
        for place, row in enumerate(self.rows):
            if caveat := self.caveat(row):
                sharing.setdefault(caveat, []).append(place)
        for caveat, places in sharing.items():
            notes.append(
                f"{self.printed and self.printed.beside}, {', '.join(str(self.rows[place]) for place in places)}: {caveat}"
            )
            for place in places:
                for index in range(2, len(lines[place]), 2):
                    entry = lines[place][index]
                    if entry.text != MISSING:
                        lines[place][index] = replace(entry, notes=(len(notes),))

    def _entry(self, row: Any, column: Any, bold: bool, notes: list[str]) -> Entry:
        cell = self.cells.get((row, column))
        if cell is None:
            return Entry(MISSING)
        place = f"{row}, {column}"
        first = len(notes)
        if cell.score.missing:
            notes.append(f"{place}: {cell.score.missing}")
        if cell.num_trials > cell.num_complete and cell.num_trials > 1:
            left_out = f"{cell.num_trials - cell.num_complete} of {cell.num_trials} trials"
            what = "are left out for lack of splits" if cell.num_complete else "lack splits; the fullest is shown"
            notes.append(f"{place}: {left_out} {what}")
        score = cell.score
        narrow = score_text(score.mean, score.std)
        return Entry(cell.text, bold, tuple(range(first + 1, len(notes) + 1)), _detail(score), narrow, cell.aside)

    def lines(self) -> list[dict[str, Any]]:
        """The long form: one line per cell, unrounded, with the value and the run of each split."""
        lines = []
        for (row, column), cell in self.cells.items():
            published = self.published(row, column)
            lines.append(
                {
                    "study": self.study,
                    self.row_name: row,
                    **({} if self.column_name is None else {self.column_name: column}),
                    **_measures(self.metric, self.at, self.ddof, cell.score),
                    "trials": cell.num_trials,
                    "complete_trials": cell.num_complete,
                    **self._published_measures(row, published),
                    **_by_split(cell.score),
                }
            )
        return lines

    def _published_measures(self, row: Any, score: Published | None) -> dict[str, Any]:
        if self.printed is None:
            return {}
        name = self.printed.beside
        return {
            f"{name}_mean": score and score.mean,
            f"{name}_std": score and score.std,
            f"{name}_caveat": self.caveat(row) if score else "",
        }


def make_table(
    records: Iterable[Record],
    *,
    rows: str = "row",
    columns: str | None = None,
    metric: str = "val/miou",
    at: At = "last",
    ddof: int = 1,
    splits: int | Mapping[str, int] | None = None,
    mode: Mode = "max",
    std_weight: float = 0.0,
    compare_with: PublishedTable | None = None,
    protocols: Mapping[Any, Protocol] | None = None,
) -> Table:
    """The table of a study: one cell per pair of row and column.

    rows: "row" for the rows' labels, or a parameter (`method.temperature`); columns: a parameter (`data.labelled`), or None for
    one column. If a cell has several trials, as after a search, it shows the best of the complete ones, by the mean less
    `std_weight` standard deviations. protocols: see `Table`.
    Raises ValueError if there is no record, or if no record has the parameter.
    """
    records = list(records)
    if not records:
        raise ValueError("no run has begun, so a table would be empty; run the study first")
    for name in (rows, columns):
        known = sorted({key for record in records for key in record.params})
        if name not in ("row", None, *known):
            raise ValueError(f"no run has the parameter {name!r}; choose one of {', '.join(['row', *known])}")
    scores = score_trials(records, metric=metric, at=at, ddof=ddof, splits=splits, mode=mode, std_weight=std_weight)
    places: dict[tuple[Any, Any], list[TrialScore]] = {}
    studies = list(dict.fromkeys(record.study for record in records))
    for score in sorted(scores, key=lambda score: (studies.index(score.study), score.trial)):
        place = (_place(score, rows), metric if columns is None else _place(score, columns))
        places.setdefault(place, [])
    for score in scores:
        places[_place(score, rows), metric if columns is None else _place(score, columns)].append(score)
    return Table(
        study=records[0].study,
        metric=metric,
        at=at,
        ddof=ddof,
        mode=mode,
        num_splits=scores[0].num_splits,
        row_name=rows,
        column_name=columns,
        rows=tuple(dict.fromkeys(row for row, _ in places)),
        columns=_in_order(column for _, column in places),
        cells={
            place: Cell(score=found[0], num_trials=len(found), num_complete=sum(score.complete for score in found))
            for place, found in places.items()
        },
        printed=compare_with,
        protocols=protocols or {},
    )


def _place(score: TrialScore, name: str) -> Any:
    if name == "row":
        return score.row
    value = score.params.get(name, MISSING)
    return tuple(value) if isinstance(value, list) else value


def _in_order(columns: Iterable[Any]) -> tuple[Any, ...]:
    """Numbers by size, all else as it comes."""
    found = list(dict.fromkeys(columns))
    return tuple(sorted(found) if all(isinstance(column, int | float) for column in found) else found)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrialTable:
    """All trials of a study, best first; those that lack splits at the end."""

    study: str
    metric: str
    at: At
    ddof: int
    num_splits: int
    scores: tuple[TrialScore, ...]
    params: tuple[str, ...] = field(default=())
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def caption(self) -> str:
        """What the numbers are: metric, at which step, over how many splits, with which ddof."""
        return (
            _caption(self.study, self.metric, self.at, self.num_splits, self.ddof) + " Best trial first, incomplete ones last."
        )

    def grid(self) -> Grid:
        """The table as texts: a trial's parameters, the value of each split, mean ± std, n."""
        splits = sorted({split for score in self.scores for split in (*score.values, *score.reasons)})
        names = (self.labels.get(name, name) for name in self.params)
        header = ("trial", "row", *names, *(f"split {split}" for split in splits), "mean ± std", "n")
        notes: list[str] = []
        lines = []
        for rank, score in enumerate(self.scores):
            marks: tuple[int, ...] = ()
            if score.missing:
                notes.append(f"trial {score.trial}: {score.missing}")
                marks = (len(notes),)
            values = (Entry(f"{score.values[split]:.2f}" if split in score.values else MISSING) for split in splits)
            mean = Entry(
                score.text, rank == 0 and score.complete, marks, _detail(score), score_text(score.mean, score.std)
            )  # its n has a column
            params = (Entry(param_text(score.params.get(name, MISSING))) for name in self.params)
            lines.append((Entry(str(score.trial)), Entry(score.row), *params, *values, mean, Entry(str(score.n))))
        title = f"{metric_in_words(self.metric)} in percent of each trial, best first."
        return Grid(self.caption, header, tuple(lines), tuple(notes), title, f"{self.study}-trials")

    def lines(self) -> list[dict[str, Any]]:
        """One line per trial, unrounded, with the value and the run of each split."""
        return [
            {
                "study": self.study,
                "row": score.row,
                **{name: score.params.get(name) for name in self.params},
                **_measures(self.metric, self.at, self.ddof, score),
                **_by_split(score),
            }
            for score in self.scores
        ]


def trial_table(
    records: Iterable[Record],
    *,
    metric: str = "val/miou",
    at: At = "last",
    ddof: int = 1,
    splits: int | None = None,
    mode: Mode = "max",
    std_weight: float = 0.0,
    params: Sequence[str] | None = None,
    labels: Mapping[str, str] | None = None,
) -> TrialTable:
    """All trials with their parameters.

    params: which; by default those that differ between the trials. labels: what to call them in a header. std_weight: see
    `score_trials`.
    Raises ValueError if there is no record.
    """
    records = list(records)
    if not records:
        raise ValueError("no run has begun, so a table would be empty; run the study first")
    scores = score_trials(records, metric=metric, at=at, ddof=ddof, splits=splits, mode=mode, std_weight=std_weight)
    if params is None:
        names = dict.fromkeys(name for score in scores for name in score.params)
        params = [name for name in names if len({repr(score.params.get(name)) for score in scores}) > 1]
    return TrialTable(
        study=records[0].study,
        metric=metric,
        at=at,
        ddof=ddof,
        num_splits=scores[0].num_splits,
        scores=tuple(scores),
        params=tuple(params),
        labels=labels or {},
    )


_IN_WORDS = {"val/miou": "Mean IoU on the validation images", "data.labelled": "number of labelled images"}
"""What titles call metrics and settings."""


def metric_in_words(metric: str) -> str:
    """A metric as a caption of a paper has it, at its beginning."""
    return _IN_WORDS.get(metric, metric)


def param_text(value: Any) -> str:
    """A parameter for reading: four digits of a number; `lines` keeps them all."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _caption(study: str, metric: str, at: At, num_splits: int | str, ddof: int) -> str:
    step = "at the last step" if at == "last" else "at the best evaluation, chosen by the images it is measured on"
    return f"{study}: {metric} in percent {step}; mean ± standard deviation (ddof={ddof}) over n={num_splits} splits."


def _detail(score: TrialScore) -> str:
    values = ", ".join(f"split {split}: {value:.2f}" for split, value in score.values.items())
    return f"trial {score.trial}; {values or 'no value'}"


def _measures(metric: str, at: At, ddof: int, score: TrialScore) -> dict[str, Any]:
    return {
        "trial": score.trial,
        "metric": metric,
        "at": at,
        "ddof": ddof,
        "mean": score.mean,
        "std": score.std,
        "n": score.n,
        "splits": score.num_splits,
        "missing": score.missing,
    }


def _by_split(score: TrialScore) -> dict[str, Any]:
    values: Sequence[tuple[str, Any]] = [(f"split_{split}", value) for split, value in score.values.items()]
    return dict(values) | {f"run_{split}": run_id for split, run_id in score.run_ids.items()}
