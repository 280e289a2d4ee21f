"""The paper's figures for a study: which of its models they are made of, and where their images are."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from css_ray.figures import paper as figures
from css_ray.figures.draw import Drawing
from css_ray.figures.paper import Candidate, Progress, TwoSpaces
from css_ray.matrices import MatricesError
from css_ray.messages import os_errors_in_words
from css_ray.methods import METHODS
from css_ray.methods.base import Method
from css_ray.prediction.model import TrainedModel
from css_ray.reporting import results_table, scoring
from css_ray.reports.picture import Picture
from css_ray.reports.table import Cell, Table
from css_ray.reports.verdict import ranked
from css_ray.secrets import shown as shown_place
from css_ray.selection import SelectionError, load_selected, select_run
from css_ray.standing import Standing
from css_ray.study.definition import StudyDefinition
from css_ray.study.inputs import Prepared, prepare
from css_ray.study.journal import study_folder
from css_ray.study.rerun import run_of_study
from css_ray.study.run import method_config, run_spec
from css_ray.study.upkeep import matrices_reader
from css_ray.training.best import BestError
from css_ray.training.memory import is_out_of_memory

_UNUSABLE = (BestError, SelectionError, MatricesError, ValueError)
"""Why a row cannot be shown."""

_OF_A_METHOD = (RuntimeError, LookupError, TypeError, ValueError, AttributeError, AssertionError, MemoryError)
"""What a network or a method of another package may raise; and an image that cannot be decoded."""

NAMES = ("pseudo-labels", "similarity-confidence", "confusing-regions", "qualitative")
"""Of all figures, in the order of the paper."""

MOST_ROWS = 5
"""Rows that Figure 6 shows unless they are chosen."""


@dataclass(frozen=True, slots=True)
class Illustration:
    """The figures of a study. remarks: which figures are left out, and why, in sentences. about: what all are made of."""

    drawings: tuple[Drawing, ...]
    remarks: tuple[str, ...]
    about: dict[str, str]

    def pictures(self) -> list[Picture]:
        """The figures for a report page."""
        return [Picture(each.title, each.caption, each.alt, each.encoded("webp")) for each in self.drawings]

    def write(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write each figure as PNG and PDF, and the captions as captions.md, into a folder, which is made.

        Files of a figure that is left out are removed, for the captions would not be theirs. Raises OSError with what to do.
        """
        contents = {f"{each.name}.{suffix}": each.encoded(suffix) for each in self.drawings for suffix in ("png", "pdf")}
        contents["captions.md"] = figures.captions(self.drawings, self.about).encode()
        paths = [Path(folder, name) for name in contents]
        with os_errors_in_words("write", Path(folder)):
            Path(folder).mkdir(parents=True, exist_ok=True)
            for name in {f"{each}.{suffix}" for each in NAMES for suffix in ("png", "pdf")} - contents.keys():
                Path(folder, name).unlink(missing_ok=True)
            for path, content in zip(paths, contents.values(), strict=True):
                path.write_bytes(content)
        return paths


def illustrate(
    standing: Standing[StudyDefinition],
    storage: str,
    *,
    rows: Sequence[str] = (),
    against: str | None = None,
    column: str | None = None,
    split: int | None = None,
    class_name: str | None = None,
    images: int = 3,
    examine: int = 200,
    device: torch.device | str = "cpu",
    progress: Progress = lambda done, total: None,
) -> Illustration:
    """Figures 3 to 6 of the paper for a study, from its best weights, its matrices and its images.

    Args:
        standing: Of the study's journal.
        storage: Where it is kept.
        rows: Of Figure 6, in this order, the first being the base and the last what is compared with it; by default the base,
            then the best other rows, the best last. Figures 3 to 5 are of the last of them whose method labels in two spaces,
            otherwise of the best such row of the table.
        against: The base; by default the first row of the table.
        column: Of the table, as it is printed; by default the first.
        split: Whose runs are shown; by default the first on which all rows have finished.
        class_name: Of Figure 4; by default the class that is predicted second most often.
        images: Rows of each figure.
        examine: How many images are predicted to choose those that Figures 3 to 5 show.
        device: Where the networks compute.
        progress: Called with the number of images predicted and of all, for each of two passes over images.

    Raises:
        ValueError: No run has finished, a row, column, split or class is unknown, or the data set is not that of the runs.
        OSError: The data set cannot be read.
    """
    definition = standing.definition
    if images < 1 or examine < 1:
        raise ValueError(f"images and examine must be at least 1, got {images} and {examine}")
    table = results_table(definition, standing.records, scoring(definition, None, 1))
    chosen_column = _column(table, column)
    cells = _cells(table, chosen_column, standing)
    shown = _rows(table, chosen_column, cells, rows, against)
    split = _split({row: cells[row] for row in shown}, split)
    study = _Models(standing, storage, split, device)
    prepared = study.prepared(cells[shown[-1]].score.trial)
    drawings: list[Drawing] = []
    remarks: list[str] = []
    classes = prepared.dataset.info.class_names
    if class_name is not None and class_name not in classes:
        raise ValueError(f"unknown class {class_name!r}; the classes are {', '.join(classes)}")

    try:
        candidates = study.candidates({row: cells[row] for row in shown}, remarks)
        drawings.append(figures.qualitative(candidates, prepared.dataset.val, images))
    except _UNUSABLE as error:
        remarks.append(f"Figure 6 (qualitative) is left out: {error}")
    except _OF_A_METHOD as error:
        remarks.append(f"Figure 6 (qualitative) is left out: {_in_words(error)}")

    order = [*(reversed(rows) if rows else ()), *map(str, ranked(table, chosen_column)), *cells]
    spaces = study.two_spaces({row: cells[row] for row in dict.fromkeys(order)}, remarks)
    if spaces is not None:
        prepared = study.prepared(cells[spaces.row].score.trial)  # a row may have other labels
        train, val = prepared.dataset.train, prepared.dataset.val
        unlabelled = train.positions(prepared.split.unlabelled)
        try:
            if unlabelled:
                drawings.append(figures.pseudo_labels(spaces, train, unlabelled, images, examine, progress))
            else:
                remarks.append("Figure 3 (pseudo-labels) is left out: the split has no unlabelled image")
            examined = figures.examine(spaces, val, examine, progress)
            drawings.append(figures.confusion(spaces, val, examined, images))
            drawings.append(figures.similarity_against_confidence(spaces, val, examined, class_name))
        except figures.NoPixelError as error:
            remarks.append(f"Figure 4 (similarity-confidence) is left out: {error}")
        except _OF_A_METHOD as error:
            remarks.append(f"Figures 3 to 5 are not all drawn ({spaces.row}, method {spaces.method.name}): {_in_words(error)}")
    about = {
        "study": standing.study,
        **({} if table.column_name is None else {table.column_name: str(chosen_column)}),
        "split": f"{split} ({prepared.split.hash[:12]})",
        "data set": f"{prepared.dataset.info.name} ({prepared.dataset.info.content[:12]})",
        "weights": "; ".join(f"{row}: {text}" for row, text in study.used.items()),
    }
    return Illustration(tuple(sorted(drawings, key=lambda each: NAMES.index(each.name))), tuple(remarks), about)


def _in_words(error: Exception) -> str:
    """What a method raised, and what to do if memory was lacking."""
    if is_out_of_memory(error):
        return "whole images need more memory than there is; use --device cpu, or a machine with more"
    return f"{type(error).__name__}: {error}" if str(error) else f"{type(error).__name__} (no message)"


def _column(table: Table, column: str | None) -> Any:
    if column is None:
        return table.columns[0]
    for each in table.columns:
        if str(each) == column:
            return each
    raise ValueError(f"{table.study} has no column {column!r}; choose one of {', '.join(map(str, table.columns))}")


def _cells(table: Table, column: Any, standing: Standing[StudyDefinition]) -> dict[str, Cell]:
    cells = {str(row): table.cells[row, column] for row in table.rows if (row, column) in table.cells}
    finished = {row: cell for row, cell in cells.items() if cell.score.values}
    if not finished:
        raise ValueError(f"{standing.study} has no finished run to show (it is {standing.status})")
    return finished


def _rows(table: Table, column: Any, cells: dict[str, Cell], rows: Sequence[str], against: str | None) -> list[str]:
    """The rows of Figure 6: the base first, the one that is compared with it last."""
    if unknown := [row for row in (*rows, *([against] if against is not None else [])) if row not in cells]:
        raise ValueError(f"{table.study} has no row {unknown[0]!r} with a finished run; choose from {', '.join(cells)}")
    if rows:
        first = [against] if against is not None else []
        return list(dict.fromkeys([*first, *rows]))
    base = against or next(iter(cells))
    order = [str(row) for row in ranked(table, column) if str(row) in cells]
    others = [row for row in [*order, *(row for row in cells if row not in order)] if row != base][: MOST_ROWS - 1]
    return [base, *reversed(others)]


def _split(cells: dict[str, Cell], split: int | None) -> int:
    common = set.intersection(*(set(cell.score.values) for cell in cells.values()))
    if not common:
        listed = "; ".join(f"{row}: {', '.join(map(str, cell.score.values))}" for row, cell in cells.items())
        raise ValueError(f"no split has a finished run of all these rows ({listed}); choose rows that have one")
    if split is None:
        return min(common)
    if split not in common:
        raise ValueError(
            f"split {split} has no finished run of all these rows; choose from {', '.join(map(str, sorted(common)))}"
        )
    return split


class _Models:
    """The runs of a study on one split. used: what is known of the weights of each row that was read."""

    def __init__(self, standing: Standing[StudyDefinition], storage: str, split: int, device: torch.device | str) -> None:
        self.standing, self.storage, self.split, self.device = standing, storage, split, device
        self.read = matrices_reader(study_folder(storage, standing.study))
        self.used: dict[str, str] = {}
        self._loaded: dict[int, TrainedModel] = {}
        self._prepared: dict[int, Prepared] = {}

    def prepared(self, trial: int) -> Prepared:
        """The data of a trial's run."""
        if trial not in self._prepared:
            known = run_of_study(self.standing, trial, self.split)
            self._prepared[trial] = prepare(run_spec(self.standing.definition, known.trial, self.split))
        return self._prepared[trial]

    def model(self, cell: Cell) -> TrainedModel:
        """The best weights of a cell's run. Raises SelectionError, BestError, ValueError if the data are not its data."""
        trial = cell.score.trial
        if trial not in self._loaded:
            self._loaded[trial] = load_selected(select_run(self.standing, trial, self.split, self.storage), self.device)
        found, prepared = self._loaded[trial], self.prepared(trial)
        if found.best.content != prepared.dataset.info.content:
            root = prepared.spec.settings["data"]["root"]
            raise ValueError(f"the data set in {shown_place(root)} is not the one that {found.name} was trained on; restore it")
        if found.best.split_hash != prepared.split.hash:
            raise ValueError(
                f"split {self.split} no longer has the images that {found.name} was trained on "
                f"({prepared.split.hash[:12]}, was {found.best.split_hash[:12]}); restore the lists of the split"
            )
        self.used[cell.score.row] = f"trial {trial}, step {found.best.step}, SHA-256 {found.digests[0][:12]}"
        return found

    def candidates(self, cells: dict[str, Cell], remarks: list[str]) -> list[Candidate]:
        """The rows of Figure 6. One between the base and the last that cannot be used is left out, with a remark.

        Raises one of _UNUSABLE if the base or the last cannot be used.
        """
        found: list[Candidate] = []
        first, last = next(iter(cells)), [*cells][-1]
        for row, cell in cells.items():
            try:
                model = self.model(cell)
            except _UNUSABLE as error:
                if row in (first, last):
                    raise
                remarks.append(f"{row} is not in Figure 6: {error}")
                continue
            if row in (first, last):
                miou = self.standing.trials[cell.score.trial].runs[self.split].best.get("val/miou")
                found.append(Candidate(row, model, self.read(cell.score.trial, self.split, "best"), miou))
            else:
                found.append(Candidate(row, model))
        return found

    def two_spaces(self, cells: dict[str, Cell], remarks: list[str]) -> TwoSpaces | None:
        """The first row whose method labels in two spaces and whose weights can be used; what is passed over is a remark."""
        passed_over = False
        for row, cell in cells.items():
            if self.split not in cell.score.values:
                continue
            settings = run_of_study(self.standing, cell.score.trial, self.split).trial.settings
            method = METHODS[settings["method"]["name"]]
            if method.both_spaces.__func__ is Method.both_spaces.__func__:  # type: ignore[attr-defined]
                continue
            try:
                model = self.model(cell)
                if model.spaces[0]:
                    return TwoSpaces(row, model, method, method_config(settings))
                why = f"{model.name} was trained by an earlier version, which kept no prototypes; run the study again"
            except _UNUSABLE as error:
                why = str(error)
            remarks.append(f"Figures 3 to 5 are not of {row}: {why}")
            passed_over = True
        if not passed_over:
            remarks.append(
                f"Figures 3 to 5 ({', '.join(NAMES[:3])}) are left out: no row that finished on split {self.split} has a "
                "method that labels in two spaces, as css does"
            )
        return None
