"""Any pruner of Optuna, asked about the trials of a study."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from css_ray import config
from css_ray.config import Problem, knob
from css_ray.messages import did_you_mean
from css_ray.study.pruning.base import Pruner, PruningContext, Verdict

OPTUNA_PRUNERS = (
    "HyperbandPruner", "MedianPruner", "PatientPruner", "PercentilePruner", "SuccessiveHalvingPruner", "ThresholdPruner",
    "WilcoxonPruner",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class OptunaConfig(config.Config):
    """A pruner of Optuna, by the name of its class, and its settings."""

    pruner: str = knob(help=f"one of {', '.join(OPTUNA_PRUNERS)}")
    settings: dict[str, Any] | None = knob(
        None, help="its arguments; a wrapped_pruner is a mapping of `pruner` and `settings` again"
    )

    def problems(self) -> Iterator[Problem]:
        """Adds to the bounds: Optuna has the pruner, and takes its settings."""
        yield from super().problems()
        yield from _optuna_problems("", self.pruner, self.settings or {})


class Optuna(Pruner):
    """Asks a pruner of Optuna. Each evaluation is an intermediate value, with steps counted over all splits.

    Only WilcoxonPruner takes a step for one of several problems: it gets the finished splits. What Optuna infers from the
    trials that have ended ("auto") is taken from the study instead, so that it does not depend on which ends first.
    Holds Optuna's study and reports to it what is new, so that asking stays cheap; a fresh one decides the same.
    """

    name = "optuna"
    Config = OptunaConfig
    config: OptunaConfig

    def __init__(self, config: OptunaConfig) -> None:
        super().__init__(config)
        self._study: Any = None
        self._shown: dict[int, set[int]] = {}  # the steps of a trial
        self._ended: set[int] = set()
        self._prunes: dict[int, bool] = {}

    def judge(self, context: PruningContext) -> Verdict | None:
        if self._study is None:
            self._open(context)
        # Optuna's trial numbers are ours, since its Hyperband goes by them.
        for trial in range(
            len(self._study.get_trials(deepcopy=False)), max((context.trial, *context.curves, *context.values)) + 1
        ):
            self._study.add_trial(_running_trial())
            self._shown[trial] = set()
        for trial in sorted(self._shown.keys() - self._ended):
            self._show(trial, self._reports(context, trial))
            if trial != context.trial and (trial in context.scores or trial in context.pruned):
                self._close(trial, context)
        reports = self._reports(context, context.trial)
        last_of_all = len(context.values.get(context.trial, {})) == len(context.splits) or (
            context.split == context.splits[-1] and context.iterations in context.curve
        )
        if not reports or last_of_all or not self._prunes.get(context.trial):
            return None
        where = f"split {context.split}, step {max(context.curve, default=0)}"
        return self.verdict(f"Optuna's {self.config.pruner} prunes it at its step {max(reports)} ({where})")

    def _open(self, context: PruningContext) -> None:
        import optuna

        settings, steps = dict(self.config.settings or {}), len(context.splits) * context.iterations
        if self.config.pruner == "SuccessiveHalvingPruner" and settings.get("min_resource", "auto") == "auto":
            settings["min_resource"] = max(1, steps // 100)
        if self.config.pruner == "HyperbandPruner" and settings.get("max_resource", "auto") == "auto":
            settings["max_resource"] = steps
        pruner = _optuna_pruner(self.config.pruner, settings)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(study_name="css-ray", direction="maximize", pruner=pruner)

    def _reports(self, context: PruningContext, trial: int) -> dict[int, float]:
        """What is reported to Optuna of a trial, by its step."""
        if self.config.pruner == "WilcoxonPruner":
            values = context.values.get(trial, {})
            return {place: values[split] for place, split in enumerate(context.splits) if split in values}
        curves = context.curves.get(trial, {})
        return {
            place * context.iterations + step: curves[split][step]
            for place, split in enumerate(context.splits)
            for step in sorted(curves.get(split, {}))
        }

    def _show(self, trial: int, reports: Mapping[int, float]) -> None:
        shown, trial_of_optuna = self._shown[trial], self._trial(trial)
        for step, value in reports.items():
            if step not in shown:
                shown.add(step)
                trial_of_optuna.report(value, step)
                # Asked at each step, as Optuna expects: successive halving notes then which trials reached a rung.
                self._prunes[trial] = trial_of_optuna.should_prune()

    def _close(self, trial: int, context: PruningContext) -> None:
        import optuna

        if trial in context.scores:  # even if a verdict came, too late
            self._study.tell(trial, context.scores[trial])
        else:
            self._study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        self._ended.add(trial)

    def _trial(self, number: int) -> Any:
        from css_ray.study.optuna_internals import trial_of

        return trial_of(self._study, number)


def _running_trial() -> Any:
    import optuna

    return optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING)


def _optuna_pruner(name: str, settings: Mapping[str, Any]) -> Any:
    import optuna

    wrapped = settings.get("wrapped_pruner")
    if wrapped is not None:
        settings = {**settings, "wrapped_pruner": _optuna_pruner(wrapped["pruner"], wrapped.get("settings", {}))}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return getattr(optuna.pruners, name)(**settings)


def _optuna_problems(above: str, name: str, settings: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with a pruner's name and settings; `above` is where both are, such as `settings.wrapped_pruner.`."""
    if name not in OPTUNA_PRUNERS:
        yield Problem(f"{above}pruner", f"must be a pruner of Optuna, got {name!r}{did_you_mean(name, OPTUNA_PRUNERS)}")
        return
    import optuna

    path = f"{above}settings"
    parameters = dict(inspect.signature(getattr(optuna.pruners, name).__init__).parameters)
    del parameters["self"]
    if unknown := [key for key in settings if key not in parameters]:
        for key in unknown:
            yield Problem(f"{path}.{key}", f"is unknown to {name}{did_you_mean(key, parameters)}", joint=" ")
        return
    if missing := [key for key, value in parameters.items() if value.default is value.empty and key not in settings]:
        for key in missing:
            yield Problem(f"{path}.{key}", f"is missing, and {name} needs it", joint=" ")
        return
    wrapped = settings.get("wrapped_pruner")
    if wrapped is not None:
        if (
            not isinstance(wrapped, dict)
            or not isinstance(wrapped.get("pruner"), str)
            or not isinstance(wrapped.get("settings", {}), dict)
            or wrapped.keys() - {"pruner", "settings"}
        ):
            yield Problem(f"{path}.wrapped_pruner", f"must be a mapping of pruner and settings, got {wrapped!r}")
            return
        problems = list(_optuna_problems(f"{path}.wrapped_pruner.", wrapped["pruner"], wrapped.get("settings", {})))
        yield from problems
        if problems:
            return
    try:
        _optuna_pruner(name, settings)
    except (TypeError, ValueError) as error:
        yield Problem(path, f"are refused by {name}: {str(error).rstrip('.')}", joint=" ")
