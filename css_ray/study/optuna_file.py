"""A study for Optuna's tools, such as `optuna-dashboard`: its journal as a file of Optuna's JournalStorage.

The study of that name has the trials of the search. Those of the grid, which have other settings, are in `NAME-grid` beside it,
or Optuna would find no setting that all trials share. A study without a search has its grid under its own name.
"""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from css_ray.events import Event, TrialFinished, TrialStarted
from css_ray.standing import Standing, TrialStanding
from css_ray.study.definition import StudyDefinition, contains
from css_ray.study.journal import Follower, in_order
from css_ray.study.order import Order
from css_ray.study.sampling import distribution_of

optuna.logging.set_verbosity(optuna.logging.WARNING)

_STATES = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "running": TrialState.RUNNING}
"""Of a trial by its status; all others have failed, or lack splits."""


class OptunaFile:
    """Writes the file, and keeps it up to date while the study runs.

    Args:
        folder: The study's.
        path: The file. One that is there is replaced by the first `update`, in one step.
    """

    def __init__(self, folder: str, path: str | Path) -> None:
        self.path = Path(path)
        self._follower, self._order = Follower(folder), Order()
        self.standing: Standing[StudyDefinition] = Standing(self._order.parsed)
        self._began: dict[int, float] = {}
        self._ended: dict[int, float] = {}
        self._storage: JournalStorage | None = None
        self._written: dict[int, FrozenTrial] = {}

    def update(self) -> int:
        """Read what is new in the journal, and bring the file up to it; returns the number of trials.

        Raises JournalError if the journal is damaged, OSError if the file cannot be written.
        """
        events = list(in_order(self._follower.new(), self._order, self._follower.folder))
        self._fold(events)
        if not events and self._storage is not None:
            return len(self._written)
        trials = {index: self._trial(trial) for index, trial in sorted(self.standing.trials.items())}
        # Optuna's own programs change no trial that has ended; one of a resumed study may run again.
        reopened = any(before.state.is_finished() and before != trials[index] for index, before in self._written.items())
        if self._storage is None or reopened:
            self._rebuild(trials)
        else:
            self._append(trials)
        self._written = trials
        return len(trials)

    def _fold(self, events: Iterable[Event]) -> None:
        for event in events:
            self.standing.add(event)
            if isinstance(event, TrialStarted):
                self._began.setdefault(event.trial, event.time)
            elif isinstance(event, TrialFinished):
                self._ended[event.trial] = event.time

    def _rebuild(self, trials: Mapping[int, FrozenTrial]) -> None:
        """Write the whole file beside its place, and move it there."""
        with tempfile.TemporaryDirectory(prefix=".optuna-", dir=self.path.parent) as folder:
            new = Path(folder) / "journal.log"
            self._storage = JournalStorage(JournalFileBackend(str(new)))
            for name in self._names:
                self._create(name)
            for index, trial in trials.items():
                self._add(index, trial)
            os.replace(new, self.path)
        self._storage = JournalStorage(JournalFileBackend(str(self.path)))

    def _append(self, trials: Mapping[int, FrozenTrial]) -> None:
        assert self._storage is not None
        for index, trial in trials.items():
            before = self._written.get(index)
            if before is None:
                self._add(index, trial)
                continue
            study_id = self._storage.get_study_id_from_name(self._name(index))
            trial_id = self._storage.get_trial_id_from_study_id_trial_number(study_id, self._number(index))
            for step, value in trial.intermediate_values.items():
                if before.intermediate_values.get(step) != value:
                    self._storage.set_trial_intermediate_value(trial_id, step, value)
            for key, value in trial.user_attrs.items():
                if before.user_attrs.get(key) != value:
                    self._storage.set_trial_user_attr(trial_id, key, value)
            if trial.state != before.state:
                self._storage.set_trial_state_values(trial_id, trial.state, trial.values)

    # ------------------------------------------------------------------------------------------------- studies and trials

    @property
    def _definition(self) -> StudyDefinition:
        return self.standing.definition

    @property
    def _names(self) -> list[str]:
        """The studies of the file; that of the search comes first."""
        if self._definition.search is None:
            return [self.standing.study]
        has_grid = bool(self._definition.grid or self._definition.trials)
        return [self.standing.study, *([f"{self.standing.study}-grid"] if has_grid else [])]

    def _name(self, index: int) -> str:
        return self._names[0 if self.standing.trials[index].source == "search" else -1]

    def _number(self, index: int) -> int:
        """The number of a trial in its study."""
        name = self._name(index)
        return [other for other in sorted(self.standing.trials) if self._name(other) == name].index(index)

    @property
    def _several(self) -> bool:
        return self._definition.objective.aggregate == "mean_and_std"

    def _create(self, name: str) -> None:
        objective = self._definition.objective
        maximize, minimize = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE
        directions = [maximize, minimize] if self._several else [maximize]
        study = optuna.create_study(storage=self._storage, study_name=name, directions=directions)
        words = {"mean": ["mean"], "mean_and_std": ["mean", "std"], "mean_minus_std": [f"mean - {objective.std_weight:g} std"]}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([f"{each} of {objective.metric} in percent" for each in words[objective.aggregate]])
        study.set_user_attr("css_ray.study", self.standing.study)
        study.set_user_attr("css_ray.study_id", self.standing.study_id)
        study.set_user_attr("css_ray.objective", objective.model_dump())
        study.set_user_attr("css_ray.splits", list(self._definition.splits))

    def _add(self, index: int, trial: FrozenTrial) -> None:
        assert self._storage is not None
        self._storage.create_new_trial(self._storage.get_study_id_from_name(self._name(index)), trial)

    def _trial(self, trial: TrialStanding) -> FrozenTrial:
        params, distributions = self._settings(trial)
        state = _STATES.get(trial.status, TrialState.FAIL)
        return FrozenTrial(
            number=-1,  # Optuna counts them itself
            trial_id=-1,
            state=state,
            value=None,
            values=self._values(trial) if state == TrialState.COMPLETE else None,
            datetime_start=datetime.fromtimestamp(self._began[trial.index]),
            datetime_complete=datetime.fromtimestamp(self._ended[trial.index]) if state.is_finished() else None,
            params=params,
            distributions=distributions,
            user_attrs=self._attributes(trial),
            system_attrs={},
            intermediate_values=dict(sorted(trial.curve_over(self._definition.splits).items())),
        )

    def _values(self, trial: TrialStanding) -> list[float]:
        if self._several:
            assert trial.mean is not None and trial.std is not None
            return [trial.mean, trial.std]
        score = self._definition.objective.score(trial.mean, trial.std)
        assert score is not None
        return [score]

    def _settings(self, trial: TrialStanding) -> tuple[dict[str, Any], dict[str, BaseDistribution]]:
        """What was drawn, from what; of a trial of the grid, its row and its settings, as choices among the grid's."""
        if trial.source == "search":
            # Of a space that was narrowed since, what lies in it; the attributes have all settings.
            space = {path: of for path, of in self._definition.space.items() if contains(of, trial.params.get(path))}
            return {path: trial.params[path] for path in space}, {path: distribution_of(of) for path, of in space.items()}
        choices: dict[str, dict[Any, None]] = {"row": {}}
        for listed in self._definition.grid_trials():
            choices["row"][listed.row] = None
            for path in self._varied:
                if path in listed.params:
                    choices.setdefault(path, {})[_plain(listed.params[path])] = None
        own = {"row": trial.row} | {path: _plain(trial.params[path]) for path in self._varied if path in trial.params}
        known = {path: value for path, value in own.items() if value in choices.get(path, {})}
        return known, {path: CategoricalDistribution(tuple(choices[path])) for path in known}

    @property
    def _varied(self) -> list[str]:
        """The settings that the grid and the listed trials vary, but for the method, of which the row is the name."""
        paths = [*self._definition.grid, *(path for point in self._definition.trials for path in point)]
        return [path for path in dict.fromkeys(paths) if path != "method"]

    def _attributes(self, trial: TrialStanding) -> dict[str, Any]:
        runs = dict(sorted(trial.runs.items()))
        finished = {split: run.score for split, run in runs.items() if run.status == "finished" and run.score is not None}
        found = {
            "trial": trial.index,
            "row": trial.row,
            "source": trial.source,
            "status": trial.status,
            "reason": trial.reason,
            "mean": trial.mean,
            "std": trial.std,
            "n": len(finished),
            "by_split": {str(split): score for split, score in finished.items()},
            "split_hashes": {str(split): run.split_hash for split, run in runs.items()},
            "settings": dict(trial.params),
        }
        return {name: value for name, value in found.items() if value not in (None, "")}


def _plain(value: Any) -> Any:
    """A choice as Optuna keeps it: text, a number, true, false or none."""
    return value if value is None or isinstance(value, bool | int | float | str) else json.dumps(value)
