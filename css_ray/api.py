"""`css_ray.Study`: a study in Python, from its file to its tables. The command line is a thin layer over it.

Where both are in sight, `definition` means the checked study file, a `css_ray.study.definition.StudyDefinition`.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from css_ray.records import Ledger, Record, score_text
from css_ray.reports import paper, render
from css_ray.reports.pseudo_labels import pseudo_label_table
from css_ray.reports.table import make_table, trial_table
from css_ray.secrets import secret_in, shown, without_secrets
from css_ray.storage import is_url
from css_ray.study import definition as schema
from css_ray.study.journal import Follower, Journal, StudyMissingError, studies_in, study_folder
from css_ray.study.progress import Progress, TrialProgress

if TYPE_CHECKING:
    import pandas

    from css_ray.study.preflight import Estimate
    from css_ray.study.runner import Observer, Outcome
    from css_ray.study.submission import Submitted
    from css_ray.tracking import SyncSummary

Format = Literal["text", "md", "csv", "latex", "html"]
Kind = Literal["results", "trials", "pseudo_labels"]
Source = Literal["journal", "mlflow"]

FORMATS: dict[str, str] = {"text": "txt", "md": "md", "csv": "csv", "latex": "tex", "html": "html"}
"""The formats of a table, and how a file of each ends."""

DEFAULT_STORAGE = "runs"

_RENDERERS = {
    "text": render.to_text,
    "md": render.to_markdown,
    "csv": render.to_csv,
    "latex": render.to_latex,
    "html": render.to_html,
}


def _workers_text(resources: schema.Resources) -> str:
    workers = resources.workers
    return f"{workers} worker(s)" if isinstance(workers, int) else f"{min(workers)} to {max(workers)} workers"


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=4)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a study would do.

    trials: those known before it runs, of the grid; disk_bytes: what weights and checkpoints take at most; warnings: what is
    allowed but hardly meant; estimate: what it would cost, None if that was not measured. `print(plan)` tells it all.
    """

    definition: schema.StudyDefinition
    trials: tuple[schema.TrialSpec, ...]
    disk_bytes: int
    warnings: tuple[str, ...]
    estimate: Estimate | None

    @property
    def num_trials(self) -> int:
        """Trials of the grid and the search together."""
        return self.definition.num_trials

    @property
    def num_runs(self) -> int:
        """Trials times splits."""
        return self.num_trials * len(self.definition.splits)

    @property
    def num_steps(self) -> int:
        """Optimizer steps of all runs, before anything is pruned."""
        search = self.definition.search
        drawn = search.trials * self.definition.train.iterations if search else 0
        in_grid: int = sum(trial.settings["train"]["iterations"] for trial in self.trials)
        return (in_grid + drawn) * len(self.definition.splits)

    def __str__(self) -> str:
        study = self.definition
        lines = [f"{study.name}: {study.description}" if study.description else study.name]
        for trial in self.trials:
            varied = ", ".join(f"{key}={value}" for key, value in trial.params.items() if not key.startswith("method."))
            lines.append(f"  trial {trial.index}: {trial.row}" + (f" ({varied})" if varied else ""))
        if study.search is not None:
            row = study.search.method.get("row", study.search.method["name"])
            first, last = len(self.trials), len(self.trials) + study.search.trials - 1
            lines.append(f"  trials {first}-{last}: {row}, drawn by {study.search.sampler} from")
            lines += [f"    {path}: {drawn.kind} {list(drawn.values)}" for path, drawn in study.space.items()]
        resources = study.resources
        devices = f"{resources.gpus_per_worker:g} GPU" if resources.gpus_per_worker else f"{resources.cpus_per_worker} CPU"
        lines += [
            f"{self.num_trials} trials x {len(study.splits)} splits = {self.num_runs} runs, {self.num_steps} steps",
            f"each trial: {_workers_text(resources)} of {devices}; {resources.concurrent_trials} trials side by side",
            f"disk: up to {self.disk_bytes / 1e9:.2g} GB of weights and checkpoints",
        ]
        return "\n".join(lines)


class Study:
    """A study that can be planned, run, resumed and read.

        from css_ray import Study

        study = Study.load("studies/quickstart.yaml", set={"train.iterations": 100})
        study.run()
        study.trials().sort_values("mean")
        print(study.table())

    What it reads comes from the study's journal, again each time, so it also follows a study that another process drives.

    definition: the study file, checked. storage: where the study lives: a folder, or a URI such as `s3://bucket/studies`.
    """

    def __init__(self, definition: schema.StudyDefinition, storage: str = DEFAULT_STORAGE) -> None:
        if secret := secret_in(storage):
            raise ValueError(
                f"storage: {shown(storage)} comes with {secret}; give it by the environment (AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY) or a role of the machine"
            )
        self.definition = definition
        self.storage = str(storage)
        self._forget()

    def _forget(self) -> None:
        """Read the journal from its beginning the next time."""
        self._follower = Follower(self.folder)
        self._ledger = Ledger()
        self._progress = Progress(self.definition)

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str],
        *,
        set: Mapping[str, Any] | Sequence[str] = (),
        storage: str | os.PathLike[str] | None = None,
    ) -> Study:
        """The study of a file, or one that was begun before.

        source: a study file (`.yaml`); the folder of a study in a storage (`runs/quickstart`); or its name, looked for in
        `storage`. set: fields of a study file to override, `{"train.iterations": 100}` or `["train.iterations=100"]`.
        storage: by default `$CSS_RAY_STORAGE`, else `runs`.

        Raises StudyError (a ValueError) with all that is wrong in a file, FileNotFoundError where there is no such file,
        StudyMissingError (a LookupError) where the storage has no such study, JournalError where its journal is damaged, and
        ValueError for `set` with a study that has begun: its settings are those of its journal.
        """
        text = os.fspath(source)
        place = os.fspath(storage or os.environ.get("CSS_RAY_STORAGE") or DEFAULT_STORAGE)
        if text.endswith((".yaml", ".yml")) or Path(text).is_file():
            return cls(schema.read(text, _overrides(set)), place)
        if set:
            raise ValueError(f"set is for a study file; {text} is a study that has begun, with the settings of its journal")
        # The query of a URL is of the storage, whose last folder is the study's.
        text, mark, query = text.partition("?") if is_url(text) else (text, "", "")
        above, slash, name = text.rstrip("/").rpartition("/")
        if slash and storage is None:
            place = (above or "/") + mark + query
        return cls.open(name if storage is None else text, place)

    @classmethod
    def open(cls, name: str, storage: str = DEFAULT_STORAGE) -> Study:
        """The study of that name that was begun in `storage`. Raises as `load` does."""
        return cls(_begun_definition(name, storage), storage)

    @property
    def name(self) -> str:
        """The study's name, which is that of its folder in the storage."""
        return self.definition.name

    @property
    def folder(self) -> str:
        """Where its journal, checkpoints and weights are: an absolute path, or a URI."""
        return study_folder(self.storage, self.name)

    def __repr__(self) -> str:
        return f"<Study {self.name} in {shown(self.storage)}>"

    # --------------------------------------------------------------------------------------------------------------- to run it

    def plan(self, *, address: str | None = None, measure: bool = False) -> Plan:
        """Check the study and say what it would do. Starts nothing.

        address: of the Ray cluster it is meant for; without one, this machine's GPUs must suffice. measure: time some steps on
        this machine. Raises StudyError with every problem that would stop a trial later.
        """
        from css_ray.study.preflight import check, estimate, needed_bytes

        warned = tuple(check(self.definition, local=address is None, folder=self.folder))
        timed = estimate(self.definition) if measure else None
        return Plan(self.definition, tuple(self.definition.grid_trials()), needed_bytes(self.definition), warned, timed)

    def run(
        self,
        storage: str | os.PathLike[str] | None = None,
        address: str | None = None,
        *,
        observer: Observer | None = None,
        warn: Callable[[str], None] = _warn,
    ) -> Outcome:
        """Run the study to its end, on this machine or on the Ray cluster at `address`.

        storage: where it shall live, if not in `self.storage`. observer: told of each event. warn: called with what is allowed
        but hardly meant; by default a Python warning. Ctrl-C ends it within seconds; `resume` goes on.

        Returns its status, `finished`, `failed` (some runs did), `budget` (it was spent) or `interrupted`, with its records.
        Raises StudyError before anything starts, StudyExistsError where the storage has a study of that name, StudyLockedError
        where another driver is at work on it, and RuntimeError where no trial fits on the machine or no cluster answers.
        """
        if storage is not None and os.fspath(storage) != self.storage:
            self.storage = os.fspath(storage)
            self._forget()
        return self._drive(self.definition, address, observer, warn, resume=False)

    def resume(
        self,
        address: str | None = None,
        *,
        set: Mapping[str, Any] | Sequence[str] = (),
        observer: Observer | None = None,
        warn: Callable[[str], None] = _warn,
    ) -> Outcome:
        """Go on with the study from its journal and checkpoints, as `run` says. A finished study is finished at once.

        set: more of it, such as `{"search.trials": 40, "budget.hours": 8}`. Raises StudyMissingError where it has not begun,
        StudyError where `set` would change what was trained already, and what `run` raises.
        """
        definition = _begun_definition(self.name, self.storage)
        if set:
            definition = schema.extend(definition, _overrides(set))
        self.definition = definition
        return self._drive(definition, address, observer, warn, resume=True)

    def submit(self, address: str) -> Submitted:
        """Have the Ray cluster whose dashboard is at `address` run the study; this process may end.

        The code of css-ray and the study file travel. Raises StudyError where a path in the study or the storage means nothing
        on another machine, ClusterError where the cluster does not answer or refuses, or is at work on the study.
        """
        from css_ray.study.submission import Cluster

        return Cluster(address).submit(self.definition, self.storage)

    def confirmation(
        self, top: int = 3, splits: Sequence[int] | None = None, *, set: Mapping[str, Any] | Sequence[str] = ()
    ) -> Study:
        """The study that trains the `top` best trials of the search again, on splits that it never saw; `run` it.

        The best of many trials is flattered by the choice; its mean on fresh splits is not. splits: by default as many as the
        study has, after all of them. set: what else is other than in the search: `{"train.iterations": 40000}` trains longer.
        Raises ValueError where fewer trials of the search have finished, a split is not fresh, or `set` is no part of a study.
        """
        progress = self._read()
        best = progress.best_trials(len(progress.trials))
        drawn = {trial.index: trial for trial in best if trial.source == "search"}
        if not 1 <= top <= len(drawn):
            raise ValueError(f"top: must be from 1 to {len(drawn)}, the trials of the search that finished, got {top}")
        paths = list(progress.study.space)
        tried = {index: {path: drawn[index].params[path] for path in paths} for index in list(drawn)[:top]}
        fresh = schema.fresh_splits(progress.study) if splits is None else splits
        return Study(schema.confirmation(progress.study, tried, fresh, _overrides(set)), self.storage)

    def _drive(
        self,
        definition: schema.StudyDefinition,
        address: str | None,
        observer: Observer | None,
        warn: Callable[[str], None],
        *,
        resume: bool,
    ) -> Outcome:
        from css_ray.study.preflight import check
        from css_ray.study.runner import Runner

        events = Journal(self.folder).events if resume else ()
        for warning in check(definition, local=address is None, folder=self.folder, events=events):
            warn(warning)
        outcome = Runner(definition, self.storage, address=address, observer=observer).run(resume=resume)
        if outcome.reason:
            warn(outcome.reason)
        later = f"later: css-ray study sync {self.name}"
        if outcome.unsent:
            warn(f"MLflow has not taken {outcome.unsent} events; {later}")
        elif outcome.status != "interrupted":
            try:
                self._log_tables()
            except Exception as error:
                warn(f"the tables were not logged to MLflow ({without_secrets(error)}); {later}")
        return outcome

    def sync(self) -> SyncSummary:
        """Bring MLflow level with the journal, tables included.

        Raises StudyLockedError where a driver is at work on the study, which sends what it has by itself; ConnectionError
        within seconds where a server does not answer; and else what MLflow raises.
        """
        from css_ray.tracking import sync

        # Two writers at once would create each run twice.
        with Journal(self.folder).driving():
            done = sync(Journal(self.folder).events, self.tracking_uri)
            self._log_tables()
        return done

    @property
    def tracking_uri(self) -> str:
        """Where MLflow records the study."""
        from css_ray.study.runner import tracking_uri

        return tracking_uri(self._read().study, self.storage)

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
        log_tables(self.tracking_uri, Journal(self.folder).events[0]["study_id"], files)

    # -------------------------------------------------------------------------------------------------------------- to read it

    def _read(self) -> Progress:
        """Fold what the journal has got since the last time."""
        for event in self._follower.new():
            if event["event"] == "study_started":
                # As it was begun, which may not be as the file says now.
                self._progress = Progress(schema.parse(event["spec"], f"the journal of {self.name}"))
            self._ledger.add(event)
            self._progress.event(event)
        return self._progress

    @property
    def progress(self) -> Progress:
        """Trials, runs, steps, hours spent and time left, as of now. The next reading of this study changes it."""
        return self._read()

    @property
    def status(self) -> str:
        """new, running, interrupted, finished, failed, or budget (it was spent); running also where the driver was killed."""
        return self._read().status

    @property
    def best(self) -> TrialProgress | None:
        """The trial with the best mean (or what the objective says) over all its splits: index, row, params, mean, std, n."""
        return self._read().best

    def records(self, source: Source = "journal") -> pandas.DataFrame:
        """One row a run: study, trial, split, row, source, status, seed, split_hash, step, best_step, seconds, reason; what the
        study varies, such as `method.temperature`; and the metrics in percent, `last/val/miou`, `best/val/miou` and so on.

        source: the journal, or MLflow. Raises LookupError where MLflow does not know the study.
        """
        import pandas

        records = self._records(source)
        fixed = (
            "study", "trial", "split", "row", "source", "status", "seed", "split_hash", "step", "best_step", "seconds", "reason"
        )  # fmt: skip
        rows = [
            {name: getattr(record, name) for name in fixed}
            | dict(record.params)
            | {f"last/{name}": value for name, value in record.last.items()}
            | {f"best/{name}": value for name, value in record.best.items()}
            for record in records
        ]
        return pandas.DataFrame(rows, columns=None if rows else list(fixed))

    def trials(self) -> pandas.DataFrame:
        """One row a trial, in the order in which they began: study, trial, row, source, status, mean, std, n, num_splits,
        reason, and what the study varies. Mean and sample std are over the n splits that are finished, in percent.
        """
        import pandas

        progress = self._read()
        fixed = ("study", "trial", "row", "source", "status", "mean", "std", "n", "num_splits", "reason")
        rows = []
        for trial in progress.trials.values():
            mean, std = progress.partial(trial)
            n = sum(run.status == "finished" for run in trial.runs.values())
            values = (
                self.name, trial.index, trial.row, trial.source, trial.status, mean, std, n,
                len(progress.study.splits), trial.reason,
            )  # fmt: skip
            rows.append(dict(zip(fixed, values, strict=True)) | trial.params)
        return pandas.DataFrame(rows, columns=None if rows else list(fixed))

    def table(
        self,
        format: Format = "md",
        *,
        kind: Kind = "results",
        at: Literal["last", "best"] | None = None,
        ddof: int = 1,
        source: Source = "journal",
    ) -> str:
        """A table of mean ± std over the splits, as text.

        kind: the study's own table, all its trials with their settings, or how good the pseudo-labels are. at: the last step or
        the best evaluation; as the study says if not given. ddof: 1 for the sample std, 0 for the population's.
        Raises ValueError where there is no run to show, LookupError where MLflow does not know the study.
        """
        definition, records = self._read().study, self._records(source)
        objective = definition.objective
        settings: dict[str, Any] = {"at": at or objective.at, "ddof": ddof, "splits": len(definition.splits)}
        draw = _RENDERERS[format]
        if kind == "pseudo_labels":
            return draw(pseudo_label_table(records, **settings))
        settings |= {"metric": objective.metric, "mode": objective.mode}
        if objective.aggregate == "mean_minus_std":
            settings["std_weight"] = objective.std_weight
        if kind == "trials":
            # The row says the method and its fixed settings; what else the study varies has a column each.
            listed = (path for point in definition.trials for path in point)
            varied = dict.fromkeys((*definition.grid, *listed, *definition.space))
            varied.pop("method", None)
            return draw(trial_table(records, params=list(varied), labels=paper.SYMBOLS, **settings))
        compared = definition.table.compare_with
        published = None if compared is None else paper.paper_table(compared.removeprefix("paper/"))
        return draw(make_table(records, columns=definition.table.columns, compare_with=published, **settings))

    def summary(self) -> dict[str, Any]:
        """The study in one mapping that survives JSON.

        study, status, storage (without passwords); best (`68.09 ± 4.89`) with its mean, std, n, row, best_trial and params,
        None before a trial has finished; trials: how many ended in which way; hours spent, by device (GPU or CPU); table:
        Markdown, empty before a run began; text: the most of it in one line.
        """
        progress = self._read()
        best = progress.best
        value = None if best is None else score_text(best.mean, best.std, best.n, len(progress.study.splits))
        found = "no trial finished" if best is None else f"best {value} (trial {best.index}, {best.row})"
        spent = " and ".join(f"{hours:.2f} {device}-hours" for device, hours in progress.hours.items())
        counts = {status: progress.ended_as(status) for status in ("finished", "partial", "pruned", "failed")}
        return {
            "study": self.name,
            "status": progress.status,
            "storage": shown(self.storage),
            "best": value,
            "best_trial": None if best is None else best.index,
            "row": None if best is None else best.row,
            "params": None if best is None else dict(best.params),
            "mean": None if best is None else best.mean,
            "std": None if best is None else best.std,
            "n": None if best is None else best.n,
            "trials": counts,
            "hours": {device: round(hours, 4) for device, hours in progress.hours.items()},
            "table": self.table("md") if self._ledger.records else "",
            "text": f"{self.name}: {progress.status}, {found}; {spent}",
        }

    def _records(self, source: Source) -> list[Record]:
        self._read()
        if source == "journal":
            return self._ledger.records
        from css_ray.tracking import read_records

        return read_records(self.tracking_uri, self.name)


def _overrides(given: Mapping[str, Any] | Sequence[str]) -> list[str]:
    """As the command line writes them: KEY=VALUE, the value in YAML, of which JSON is a part."""
    if isinstance(given, str):
        raise ValueError(f"set is a mapping or a list of KEY=VALUE, got the text {given!r}")
    if not isinstance(given, Mapping):
        return list(given)
    try:
        return [f"{key}={json.dumps(value)}" for key, value in given.items()]
    except TypeError as error:
        raise ValueError(f"set takes plain values (numbers, text, lists, mappings): {error}") from None


def _begun_definition(name: str, storage: str) -> schema.StudyDefinition:
    """The study of that name as its journal tells it. Raises StudyMissingError with the names that exist."""
    # The latest: a study may have been given more since it began.
    specs = [event["spec"] for event in Journal(study_folder(storage, name)).events if "spec" in event]
    if not specs:
        known = studies_in(storage) if is_url(storage) or Path(storage).exists() else []
        raise StudyMissingError(
            f"no study {shown(name)} in {shown(storage)}; "
            + (f"there are: {', '.join(known)}" if known else "it holds none yet")
        )
    return schema.parse(specs[-1], f"the journal of {name}")
