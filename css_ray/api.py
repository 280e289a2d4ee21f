"""`css_ray.Study`: a study in Python, from its file to its tables. The command line is a thin layer over it.

A `definition` is the checked study file, a `css_ray.study.definition.StudyDefinition`; a `study` is a `Study`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from css_ray.audience import Audience
from css_ray.messages import DEFAULT_STORAGE, study_command
from css_ray.records import Record, score_text
from css_ray.reporting import Reported, report_html, results_table, scoring, varied
from css_ray.reports import paper, render
from css_ray.reports.compare import compare, compare_studies, table_against
from css_ray.reports.pseudo_labels import pseudo_label_table
from css_ray.reports.table import trial_table
from css_ray.secrets import credentials_text, shown, without_secrets
from css_ray.standing import Standing, TrialStanding
from css_ray.storage import parted
from css_ray.study.begun import begun_definition
from css_ray.study.definition import StudyDefinition, confirmation, extend, fresh_splits, override_texts
from css_ray.study.journal import Follower, Journal, JournalError, in_order, study_folder
from css_ray.study.order import Order
from css_ray.study.upkeep import matrices_reader

if TYPE_CHECKING:
    import pandas

    from css_ray.execution.jobs import Submitted
    from css_ray.illustration import Illustration
    from css_ray.study.driver import Outcome
    from css_ray.study.plan import Plan
    from css_ray.study.repair import Repaired
    from css_ray.tracking import SyncSummary

Format = Literal["text", "md", "csv", "latex", "latex-siunitx", "html"]
Kind = Literal["results", "trials", "pseudo_labels"]
Source = Literal["journal", "mlflow"]

FORMATS: dict[str, str] = {"text": "txt", "md": "md", "csv": "csv", "latex": "tex", "latex-siunitx": "tex", "html": "html"}
"""The formats of a table, and the suffix of a file of each."""


class Study:
    """A study that can be planned, run, resumed and read.

        from css_ray import Study

        study = Study.load("studies/quickstart.yaml", set={"train.iterations": 100})
        study.run()
        study.trials().sort_values("mean")
        print(study.table())

    Everything it returns is read from the study's journal again each time, so it also follows a study of another process.

    Args:
        definition: The study file, checked.
        storage: Where the study is kept: a folder, or a URI such as `s3://bucket/studies`.
    """

    def __init__(self, definition: StudyDefinition, storage: str = DEFAULT_STORAGE) -> None:
        if refused := credentials_text(storage):
            raise ValueError(f"storage: {refused}")
        self.definition = definition
        self.storage = str(storage)
        self._forget()

    def _forget(self) -> None:
        """Read the journal from its beginning the next time."""
        self._follower, self._order = Follower(self.folder), Order()
        self._standing = Standing(self._order.parsed, self.definition)

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str],
        *,
        set: Mapping[str, Any] | Sequence[str] = (),
        storage: str | os.PathLike[str] | None = None,
    ) -> Study:
        """Load the study of a file, or one that has begun.

        Args:
            source: A study file (`.yaml`); the folder of a study in a storage (`runs/quickstart`); or a name in `storage`.
            set: Fields of a study file to override: `{"train.iterations": 100}` or `["train.iterations=100"]`.
            storage: By default `$CSS_RAY_STORAGE`, else `runs`.

        Raises:
            StudyError: (a ValueError) With every problem of a file.
            FileNotFoundError: There is no such file.
            StudyMissingError: (a LookupError) The storage has no such study.
            JournalError: The study's journal is damaged; `repair` keeps what is sound.
            ValueError: `set` is given for a study that has begun: its settings are those of its journal.
        """
        text = os.fspath(source)
        place = os.fspath(storage or os.environ.get("CSS_RAY_STORAGE") or DEFAULT_STORAGE)
        if is_study_file(text):
            from css_ray.study.preflight import read_and_check

            # GPUs are counted once it is known where the study runs.
            return cls(read_and_check(text, override_texts(set), local=False), place)
        if set:
            raise ValueError(f"set is for a study file; {text} is a study that has begun, with the settings of its journal")
        above, name = parted(text)
        return cls.open(text, place) if storage is not None else cls.open(name, above or place)

    @classmethod
    def open(cls, name: str, storage: str = DEFAULT_STORAGE) -> Study:
        """Load the study of that name in `storage`. Raises as `load` does."""
        return cls(begun_definition(name, storage), storage)

    @staticmethod
    def repair(name: str, storage: str = DEFAULT_STORAGE, *, drop_unknown: bool = False) -> Repaired:
        """Keep what is sound in a damaged journal; see `css_ray.study.repair.repair` for what it returns and raises."""
        from css_ray.study.repair import repair

        return repair(name, storage, drop_unknown=drop_unknown)

    @property
    def name(self) -> str:
        """The study's name, which is that of its folder in the storage."""
        return self.definition.name

    @property
    def folder(self) -> str:
        """The folder of its journal, checkpoints and weights: an absolute path, or a URI."""
        return study_folder(self.storage, self.name)

    def __repr__(self) -> str:
        return f"<Study {self.name} in {shown(self.storage)}>"

    # --------------------------------------------------------------------------------------------------------------- to run it

    def plan(self, *, address: str | None = None, measure: bool = False) -> Plan:
        """Check the study and report what it would do. Starts nothing, and writes no file.

        Only a data set at a URL is copied to this machine's cache, as every run would do.

        Args:
            address: Of the Ray cluster for which it is meant; None for this machine.
            measure: Time some steps on this machine.

        Raises:
            StudyError: With every problem that would stop a trial later.
            ConnectionError: No Ray cluster answers at `address`.
        """
        from css_ray.execution.session import capacity
        from css_ray.study.plan import make_plan

        there = capacity(address)
        return make_plan(self.definition, there, local=address is None, folder=self.folder, measure=measure)

    def run(
        self,
        storage: str | os.PathLike[str] | None = None,
        address: str | None = None,
        *,
        audience: Audience | None = None,
        on_finish: str | None = None,
        webhook: str | None = None,
    ) -> Outcome:
        """Run the study to its end, on this machine or on the Ray cluster at `address`.

        A search with `search.confirm` is confirmed afterwards: its best trials are trained again on fresh splits, as the study
        NAME-confirm, whose outcome is `outcome.confirmation`. Ctrl-C ends it within seconds; `resume` continues it.

        Args:
            storage: Where to keep it, if not in `self.storage`.
            address: Of a Ray cluster to join; None starts Ray here.
            audience: Who watches; without one, warnings are Python's.
            on_finish: A shell command to run when the study has ended; see `css-ray study run --help`.
            webhook: A URL to which its summary is posted then.

        Returns:
            Its status, `finished`, `failed` (some runs did), `budget` (it was spent) or `interrupted`, with its records.

        Raises:
            StudyError: Something is wrong with the study; nothing was started.
            StudyExistsError: The storage has a study of that name.
            StudyLockedError: Another driver is at work on it.
            RuntimeError: No trial fits on the machine.
            ConnectionError: No Ray cluster answers at `address`.
            ValueError: The webhook is not a URL.
        """
        if storage is not None and os.fspath(storage) != self.storage:
            self.storage = os.fspath(storage)
            self._forget()
        return self._conduct(address, audience or Audience(), on_finish, webhook, resume=False)

    def resume(
        self,
        address: str | None = None,
        *,
        set: Mapping[str, Any] | Sequence[str] = (),
        audience: Audience | None = None,
        on_finish: str | None = None,
        webhook: str | None = None,
    ) -> Outcome:
        """Continue the study from its journal and checkpoints, as `run` does. A study that has finished returns immediately.

        Args:
            address, audience, on_finish, webhook: As of `run`.
            set: More of it, such as `{"search.trials": 40, "budget.hours": 8}`.

        Raises:
            StudyMissingError: It has not begun.
            StudyError: `set` would change what was trained already.
        """
        definition = begun_definition(self.name, self.storage)
        if set:
            definition = extend(definition, override_texts(set))
        self.definition = definition
        return self._conduct(address, audience or Audience(), on_finish, webhook, resume=True)

    def submit(self, address: str) -> Submitted:
        """Have the Ray cluster whose dashboard is at `address` run the study; this process may end.

        The code of css-ray and the study file are sent.

        Raises:
            StudyError: A path in the study, or the storage, means nothing on another machine.
            ClusterError: The cluster does not answer, refuses, or is at work on the study.
        """
        from css_ray.execution.jobs import Cluster

        return Cluster(address).submit(self.definition, self.storage)

    def confirmation(
        self, top: int = 3, splits: Sequence[int] | None = None, *, set: Mapping[str, Any] | Sequence[str] = ()
    ) -> Study:
        """The study that trains the `top` best trials of the search again, on splits that it never saw; `run` it.

        The best of many trials is flattered by the choice; its mean on fresh splits is not. splits: by default the number that
        the study has, after all of them. set: other settings than in the search: `{"train.iterations": 40000}` trains longer.
        Raises ValueError if fewer trials of the search have finished, a split is not fresh, or `set` is not part of a study.
        """
        standing = self._read()
        drawn = {trial.index: trial for trial in standing.best_trials() if trial.source == "search"}
        if not 1 <= top <= len(drawn):
            raise ValueError(f"top: must be from 1 to {len(drawn)}, the trials of the search that finished, got {top}")
        paths = list(standing.definition.space)
        tried = {index: {path: drawn[index].params[path] for path in paths} for index in list(drawn)[:top]}
        fresh = fresh_splits(standing.definition) if splits is None else splits
        return Study(confirmation(standing.definition, tried, fresh, override_texts(set)), self.storage)

    def _conduct(
        self, address: str | None, audience: Audience, on_finish: str | None, webhook: str | None, *, resume: bool
    ) -> Outcome:
        """Run the study, and then its confirmation, if it has one."""
        from css_ray.execution.address import check_address
        from css_ray.study.hooks import check_webhook

        if webhook is not None:
            check_webhook(webhook)
        if address is not None:
            check_address(address)
        outcome = self._run_and_tell(address, audience, on_finish, webhook, resume=resume)
        confirming = self._confirming() if outcome.status == "finished" else None
        if confirming is None:
            return outcome
        begun = confirming.status != "new"
        confirmed = confirming._run_and_tell(address, audience, on_finish, webhook, resume=begun)
        return replace(outcome, confirmation=confirmed)

    def _confirming(self) -> Study | None:
        """The confirmation that the study asks for; None without one, or if no trial of its search finished on all splits."""
        search = self.definition.search
        if search is None or not search.confirm:
            return None
        ranked = sum(trial.source == "search" for trial in self._read().best_trials())
        if not ranked:
            return None
        confirming = self.confirmation(min(search.confirm, ranked))
        # One that has begun keeps its trials, whatever the search has found since.
        return confirming if confirming.status == "new" else Study.open(confirming.name, self.storage)

    def _run_and_tell(
        self, address: str | None, audience: Audience, on_finish: str | None, webhook: str | None, *, resume: bool
    ) -> Outcome:
        """Drive the study, and report its end."""
        try:
            outcome = self._drive(address, audience, resume=resume)
        except (OSError, RuntimeError) as error:
            from css_ray.study.driver import StudyExistsError
            from css_ray.study.journal import StudyLockedError

            # A study of another driver, or one that had ended before, is not reported again.
            if not isinstance(error, StudyExistsError | StudyLockedError) and self.status != "new":
                self._tell("failed", audience, on_finish, webhook)
            raise
        if self.status == "new":  # interrupted before anything was started
            return outcome
        try:
            audience.study_ended(self, outcome)
        finally:
            self._tell(outcome.status, audience, on_finish, webhook)
        return outcome

    def _drive(self, address: str | None, audience: Audience, *, resume: bool) -> Outcome:
        from css_ray.execution.runner import Runner
        from css_ray.execution.session import capacity
        from css_ray.study.preflight import check

        events, local = Journal(self.folder).events if resume else (), address is None
        there = capacity(None) if local else None
        for warning in check(self.definition, local=local, capacity=there, folder=self.folder, events=events):
            audience.warn(warning)
        audience.study_begins(self)
        outcome = Runner(self.definition, self.storage, address=address, observer=audience).run(resume=resume)
        if outcome.reason:
            audience.warn(outcome.reason)
        later = f"later: {study_command('sync', self.name, self.storage)}"
        if outcome.unsent:
            audience.warn(f"MLflow has not taken {outcome.unsent} events; {later}")
        elif outcome.status != "interrupted":
            for what, log in (("tables were", self._log_tables), ("report was", self._log_report)):
                try:
                    log()
                except Exception as error:
                    audience.warn(f"the {what} not logged to MLflow ({without_secrets(error)}); {later}")
                    break
        return outcome

    def _tell(self, status: str, audience: Audience, on_finish: str | None, webhook: str | None) -> None:
        """Send the user's command and webhook how the study ended. What goes wrong there is a warning."""
        from css_ray.study.hooks import HookError, post, run_command

        hooks: list[Callable[[Mapping[str, Any]], None]] = []
        if on_finish is not None:
            hooks.append(lambda summary: run_command(on_finish, summary, self.storage))
        if webhook is not None:
            hooks.append(lambda summary: post(webhook, summary))
        if not hooks:
            return
        summary = self.summary() | {"status": status}
        for hook in hooks:
            try:
                hook(summary)
            except HookError as error:
                audience.warn(str(error))
            except KeyboardInterrupt:
                audience.warn("interrupted before --on-finish and --webhook were done")
                return

    def sync(self) -> SyncSummary:
        """Backfill MLflow from the journal, tables included.

        Raises StudyLockedError if a driver is at work on the study, which sends its events by itself; ConnectionError within
        seconds if a server does not answer; otherwise what MLflow raises.
        """
        from css_ray.tracking import sync

        # Two writers at the same time would create each run twice.
        with Journal(self.folder).driving():
            done = sync(Journal(self.folder).events, self.tracking_uri)
            self._log_tables()
            self._log_report()
        return done

    @property
    def tracking_uri(self) -> str:
        """Where MLflow records the study."""
        from css_ray.study.driver import tracking_uri

        return tracking_uri(self._read().definition, self.storage)

    def _log_tables(self) -> None:
        """Attach the tables to the study's run in MLflow, in every format."""
        from css_ray.tracking import log_tables

        records = self._records("journal")
        if not records:
            return
        scored = any(name.startswith("pseudo/") for record in records if record.status == "finished" for name in record.last)
        kinds: list[Kind] = ["results", "trials", *(["pseudo_labels"] if scored else [])]  # type: ignore[list-item]
        formats: list[Format] = ["md", "csv", "latex", "html"]
        files = {f"{kind}.{FORMATS[format]}": self.table(format, kind=kind) for kind in kinds for format in formats}
        log_tables(self.tracking_uri, self._standing.study_id, files)

    def _log_report(self) -> None:
        """Attach the page to the study's run in MLflow, if a run has finished."""
        from css_ray.tracking import log_tables

        if any(record.status == "finished" for record in self._records("journal")):
            log_tables(self.tracking_uri, self._standing.study_id, {"report.html": self.report()})

    # -------------------------------------------------------------------------------------------------------------- to read it

    def _read(self) -> Standing[StudyDefinition]:
        """Fold what was added to the journal since the last call."""
        try:
            return self._standing.fold(in_order(self._follower.new(), self._order, self.folder))
        except JournalError:
            self._forget()  # the next call raises it again, rather than continue after what is damaged
            raise

    @property
    def standing(self) -> Standing[StudyDefinition]:
        """Trials, runs, steps, hours spent and time left, as of now. The next reading of this study changes it."""
        return self._read()

    @property
    def status(self) -> str:
        """new, running (also if its driver was killed), paused, interrupted, finished, failed, or budget (it was spent)."""
        return self._read().status

    @property
    def best(self) -> TrialStanding | None:
        """The trial with the best objective, by default the mean, over all its splits: index, row, params, mean, std, n."""
        return self._read().best

    def records(self, source: Source = "journal") -> pandas.DataFrame:
        """One row per run: study, trial, split, row, source, status, seed, split_hash, step, best_step, seconds, reason; what
        the study varies, such as `method.temperature`; and metrics in percent, `last/val/miou`, `best/val/miou` and so on.

        source: the journal, or MLflow. Raises LookupError if MLflow does not know the study.
        """
        from css_ray.reports.frames import records_frame  # pandas takes a second

        return records_frame(self._records(source))

    def trials(self) -> pandas.DataFrame:
        """One row per trial, in the order in which they began: study, trial, row, source, status, mean, std, n, num_splits,
        reason, and what the study varies. Mean and sample std are over the n splits that are finished, in percent.
        """
        from css_ray.reports.frames import trials_frame

        standing = self._read()
        return trials_frame(self.name, len(standing.definition.splits), standing)

    def curves(self) -> pandas.DataFrame:
        """One row per point of the learning curves: study, trial, row, split, step, and what was measured at that step, such as
        `train/loss`, `train/lr` or `val/miou` in percent; NaN where a step has no such value.
        """
        from css_ray.reports.frames import curves_frame

        return curves_frame(in_order(Follower(self.folder).new(), Order(), self.folder))

    def table(
        self,
        format: Format = "md",
        *,
        kind: Kind = "results",
        against: str | None = None,
        at: Literal["last", "best"] | None = None,
        ddof: int = 1,
        source: Source = "journal",
        width: int = render.TEXT_WIDTH,
    ) -> str:
        """A table of mean ± std over the splits, as text.

        Args:
            format: Of the text.
            kind: The study's own table, all its trials with their settings, or how good the pseudo-labels are.
            against: A row of the study's own table; the differences to it, with their intervals, have a column then.
            at: The last step or the best evaluation; the study's own setting if not given.
            ddof: 1 for the sample std, 0 for the population's.
            source: The journal, or MLflow.
            width: Characters of a caption's line, in the format `text`.

        Raises:
            ValueError: No run has begun, or the row is unknown.
            LookupError: MLflow does not know the study.
        """
        definition, records = self._read().definition, self._records(source)
        shown_params: dict[str, Any] = {"params": varied(definition), "labels": paper.SYMBOLS}
        if kind == "pseudo_labels":
            scale: dict[str, Any] = {"at": at or definition.objective.at, "ddof": ddof, "splits": len(definition.splits)}
            names = tuple(self._standing.class_names)
            return render.draw(pseudo_label_table(records, class_names=names, **shown_params, **scale), format, width)
        settings = scoring(definition, at, ddof)
        if kind == "trials":
            return render.draw(trial_table(records, **shown_params, **settings), format, width)
        made = results_table(definition, records, settings)
        if against is None:
            return render.draw(made, format, width)
        settings |= {"columns": definition.table.columns, "read": matrices_reader(self.folder)}
        return render.draw(table_against(made, records, against, **settings), format, width)

    def compare(
        self,
        other: Study | None = None,
        format: Format = "md",
        *,
        against: str | None = None,
        rows: Sequence[str] = (),
        at: Literal["last", "best"] | None = None,
        ddof: int = 1,
        source: Source = "journal",
        width: int = render.TEXT_WIDTH,
    ) -> str:
        """Differences on the same splits, mean ± std, between rows of this study, or between its rows and those of another.

        Which images are labelled moves a score more than the method does; that cancels if each split is compared with itself.

        Args:
            other: Another study; only splits with the same images in both are paired.
            format: Of the text.
            against: The row to compare with: by default the first of this study, or of `other` the row of the same name.
            rows: The rows of this study to compare; by default all.
            at: The last step or the best evaluation; this study's own setting if not given.
            ddof: 1 for the sample std, 0 for the population's.
            source: The journal, or MLflow.
            width: Characters of a caption's line, in the format `text`.

        Raises:
            ValueError: There are no such rows, no run to compare, or splits of the same index have different images.
            LookupError: MLflow does not know a study.
        """
        definition, records = self._read().definition, self._records(source)
        settings: dict[str, Any] = {"columns": definition.table.columns, "only": rows, **scoring(definition, at, ddof)}
        settings["read"] = matrices_reader(self.folder)
        if other is None:
            return render.draw(compare(records, against, **settings), format, width)
        theirs, other_splits = other._records(source), len(other.standing.definition.splits)
        settings |= {"against": against, "other_splits": other_splits, "read_other": matrices_reader(other.folder)}
        return render.draw(compare_studies(records, theirs, **settings), format, width)

    def report(
        self,
        *others: Study,
        against: str | None = None,
        at: Literal["last", "best"] | None = None,
        ddof: int = 1,
        figures: str | os.PathLike[str] | None = None,
        pictures: Illustration | None = None,
    ) -> str:
        """One HTML page of what was found and how sure it is, from the journal; it loads nothing. A study may still be running.

        others: more studies for the same table, whose rows are then named `STUDY: ROW`. figures: a folder to write each chart
        to, as SVG and PDF. pictures: what `illustrate` returned. Other settings: as of `table`. Raises as
        `css_ray.reporting.make_report` and `write_figures` do.
        """
        studies = [Reported(each._read(), each.storage) for each in (self, *others)]
        shown_pictures = [] if pictures is None else pictures.pictures()
        return report_html(studies, figures, against=against, at=at, ddof=ddof, pictures=shown_pictures)

    def illustrate(self, **settings: Any) -> Illustration:
        """Figures 3 to 6 of the paper, from the best weights and the images of the study; `write` makes files of them.

        settings: `rows`, `against`, `column`, `split`, `class_name`, `images`, `examine`, `device` and `progress`, as
        `css_ray.illustration.illustrate` takes them, with what it raises.
        """
        from css_ray.illustration import illustrate  # Matplotlib

        return illustrate(self._read(), self.storage, **settings)

    def summary(self) -> dict[str, Any]:
        """The study in one mapping that survives JSON.

        study, status, storage (without passwords); best (`68.09 ± 4.89`) with its mean, std, n, row, best_trial and params,
        None before a trial has finished; trials: the number that ended with each status; hours spent, by device (GPU or CPU);
        table: Markdown, empty before a run began; text: all of it in one line.
        """
        standing = self._read()
        best = standing.best
        value = None if best is None else score_text(best.mean, best.std, best.n, len(standing.definition.splits))
        found = "no trial finished" if best is None else f"best {value} (trial {best.index}, {best.row})"
        spent = " and ".join(f"{hours:.2f} {device}-hours" for device, hours in standing.hours.items())
        counts = {status: standing.ended_as(status) for status in ("finished", "partial", "pruned", "failed")}
        return {
            "study": self.name,
            "status": standing.status,
            "storage": shown(self.storage),
            "best": value,
            "best_trial": None if best is None else best.index,
            "row": None if best is None else best.row,
            "params": None if best is None else dict(best.params),
            "mean": None if best is None else best.mean,
            "std": None if best is None else best.std,
            "n": None if best is None else best.n,
            "trials": counts,
            "hours": {device: round(hours, 4) for device, hours in standing.hours.items()},
            "table": self.table("md") if self._standing.records else "",
            "text": f"{self.name}: {standing.status}, {found}; {spent}",
        }

    def _records(self, source: Source) -> list[Record]:
        self._read()
        if source == "journal":
            return self._standing.records
        from css_ray.tracking import read_records

        try:
            return read_records(self.tracking_uri, self.name)
        except LookupError as error:
            sync = study_command("sync", self.name, self.storage)
            raise LookupError(f"{error}; backfill it from the journal with: {sync}") from None


def is_study_file(source: str) -> bool:
    """Whether `source` is a study file, not the name of a study that has begun."""
    return source.endswith((".yaml", ".yml")) or Path(source).is_file()
