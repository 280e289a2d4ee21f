"""The report page of studies, from their journals: what a page needs to know of each, and which rows it compares."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from css_ray.messages import at_storage, command, os_errors_in_words, study_command
from css_ray.records import Record
from css_ray.reports import paper
from css_ray.reports.compare import Comparison, compare
from css_ray.reports.printed import printed_table
from css_ray.reports.published import Protocol
from css_ray.reports.table import Table, make_table
from css_ray.standing import Standing
from css_ray.study.definition import StudyDefinition
from css_ray.study.journal import study_folder
from css_ray.study.upkeep import matrices_reader

if TYPE_CHECKING:
    from css_ray.reports.page import Page, Subject
    from css_ray.reports.picture import Picture


@dataclass(frozen=True, slots=True)
class Reported:
    """A study to report, as its journal has it. storage: where it is kept."""

    standing: Standing[StudyDefinition]
    storage: str

    @property
    def name(self) -> str:
        return self.standing.study


def scoring(definition: StudyDefinition, at: Literal["last", "best"] | None, ddof: int) -> dict[str, Any]:
    """How the trials of a study are scored, as the tables take it."""
    objective = definition.objective
    weight = {"std_weight": objective.std_weight} if objective.aggregate == "mean_minus_std" else {}
    scale = {"at": at or objective.at, "ddof": ddof, "splits": len(definition.splits)}
    return {"metric": objective.metric, "mode": objective.mode, **scale, **weight}


def varied(definition: StudyDefinition) -> list[str]:
    """The settings that a study varies; its rows name the method and its fixed settings."""
    listed = (path for point in definition.trials for path in point)
    found = dict.fromkeys((*definition.grid, *listed, *definition.space))
    found.pop("method", None)
    return list(found)


def results_table(definition: StudyDefinition, records: Sequence[Record], settings: Mapping[str, Any]) -> Table:
    """The study's own table, beside the published one if it names one. settings: as `scoring` returns them."""
    compared = definition.table.compare_with
    published: dict[str, Any] = {}
    if compared is not None:
        protocols = {
            trial.row: Protocol.of_settings(trial.settings, trial.output_stride, settings["at"], settings["splits"])
            for _, trial, _ in definition.known_trials()
        }
        published = {"compare_with": printed_table(compared), "protocols": protocols}
    return make_table(records, columns=definition.table.columns, **published, **settings)


def report_html(studies: Sequence[Reported], figures: str | os.PathLike[str] | None = None, **settings: Any) -> str:
    """The text of `make_report`'s page; with `figures`, its charts are written into that folder."""
    page = make_report(studies, **settings)
    if figures is not None:
        write_figures(page, Path(figures))
    return page.html


def make_report(
    studies: Sequence[Reported],
    *,
    against: str | None = None,
    at: Literal["last", "best"] | None = None,
    ddof: int = 1,
    pictures: Sequence[Picture] = (),
) -> Page:
    """The page of some studies, in one table; how they are scored is the first one's.

    Args:
        studies: Different ones. Of several, rows are named `STUDY: ROW`.
        against: The row that the others are compared with; the first if not given.
        at: The last step or the best evaluation; the first study's own setting if not given.
        ddof: 1 for the sample std, 0 for the population's.
        pictures: What the models of the studies predict.

    Raises:
        ValueError: A study is given twice or has no finished run, the studies have different columns, or the row is unknown.
    """
    _check(studies)
    from css_ray.reports.page import make_page  # Altair

    several, first = len(studies) > 1, studies[0].standing.definition
    records = [_named(record, several) for each in studies for record in each.standing.records]
    splits = {each.name: len(each.standing.definition.splits) for each in studies}
    settings = scoring(first, at, ddof)
    if several:
        settings |= {"splits": splits}
        table = replace(make_table(records, columns=first.table.columns, **settings), study=", ".join(splits))
    else:
        table = results_table(first, records, settings)
    settings |= {"columns": first.table.columns}
    reads = {each.name: matrices_reader(study_folder(each.storage, each.name)) for each in studies}
    compared, unpaired = _compared(table, records, against, settings | {"read": reads})
    return make_page([_subject(each) for each in studies], table, compared, unpaired=unpaired, pictures=pictures)


def write_figures(page: Page, folder: str | Path) -> list[Path]:
    """Write each chart of a page as NAME.svg and NAME.pdf into a folder, which is made. Raises OSError with what to do."""
    written = []
    with os_errors_in_words("write", folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        for figure in page.figures:
            for suffix, data in (("svg", figure.svg().encode()), ("pdf", figure.pdf())):
                path = Path(folder, f"{figure.name}.{suffix}")
                path.write_bytes(data)
                written.append(path)
    return written


def _check(studies: Sequence[Reported]) -> None:
    names = [each.name for each in studies]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{twice[0]} is given twice; a report has each study once")
    for each in studies:
        records = each.standing.records
        if not any(record.status == "finished" for record in records):
            status = study_command("status", each.name, each.storage)
            raise ValueError(
                f"{each.name} has no finished run to report (it is {each.standing.status}; {len(records)} "
                f"run{'s' * (len(records) != 1)} began); see how far it is with: {status}"
            )
    columns = {each.name: each.standing.definition.table.columns for each in studies}
    if len(set(columns.values())) > 1:
        listed = ", ".join(f"{name} {column or 'none'}" for name, column in columns.items())
        raise ValueError(f"the studies have different columns in their tables ({listed}); report them one by one")


def _named(record: Record, several: bool) -> Record:
    return replace(record, row=f"{record.study}: {record.row}") if several else record


def _compared(
    table: Table, records: Sequence[Record], against: str | None, settings: Mapping[str, Any]
) -> tuple[Comparison | None, str]:
    """The comparison with a base, and why there is none if rows cannot be paired."""
    base = table.rows[0] if against is None else against
    if base not in table.rows:
        known = ", ".join(map(str, table.rows))
        raise ValueError(f"{table.study} has no row {against!r} to compare with; choose one of {known}")
    if len(table.rows) == 1:
        return None, ""
    try:
        found = compare(records, base, **settings)
    except ValueError as error:  # the splits of two rows have different images
        return None, str(error)
    return replace(found, table=table), ""


def _subject(each: Reported) -> Subject:
    from css_ray.reports.page import Subject

    standing, definition = each.standing, each.standing.definition
    storage = at_storage(each.storage)
    importance, note = _importance(standing)

    def train(trial: int, split: int) -> str:
        return command("train", each.name, "--trial", str(trial), "--split", str(split), *storage)

    return Subject(
        standing=standing,
        params=varied(definition),
        labels=paper.SYMBOLS,
        logarithmic=frozenset(path for path, each in definition.space.items() if each.kind == "loguniform"),
        importance=importance,
        importance_note=note,
        read=matrices_reader(study_folder(each.storage, each.name)),
        train=train,
        predict=command("predict", each.name, "IMAGES", "--out", "predictions", "--overlay", *storage),
        illustrate=study_command("report", each.name, each.storage, "--pictures"),
        run=command("study", "run", f"{each.name}.yaml", "--storage", "again"),
        table=study_command("table", each.name, each.storage, "--trials"),
    )


def _importance(standing: Standing[StudyDefinition]) -> tuple[dict[str, float], str]:
    """The importance of each setting of the search, and what it is or why there is none; both empty without a search."""
    if standing.definition.search is None:
        return {}, ""
    from css_ray.study.importance import FEWEST, importance  # Optuna

    finished = sum(trial.source == "search" for trial in standing.best_trials())
    if found := importance(standing):
        return found, (
            f"By PED-ANOVA (Watanabe et al., 2023) over {finished} finished trials: how much a setting distinguishes the best "
            "tenth of the trials from the others."
        )
    return {}, f"The importance of the settings needs {FEWEST} finished trials; {finished} have finished."
