"""The driver in the terms of Ray Tune: a searcher that hands out its trials, a callback that reports to it what became of them.

Tune holds no state that matters. On resume a new Tune run starts; the driver first hands out the trials that the journal knows
as begun but not ended (same index, same settings, so that their checkpoints are found), then those of the grid, then new ones.
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray.tune
from ray.tune.search import Searcher

from css_ray.events import RunResized, RunRewound
from css_ray.execution.handover import Message
from css_ray.execution.reclaim import reclaim
from css_ray.execution.session import raise_if_interrupted
from css_ray.execution.slot import SlotResources, run_trial
from css_ray.execution.verdicts import Verdicts
from css_ray.messages import last_line
from css_ray.storage import below
from css_ray.study import upkeep
from css_ray.study.driver import Driver
from css_ray.temporary import temporary_folder

_log = logging.getLogger(__name__)

RECLAIM_SECONDS = 10.0
"""How often the driver looks for cores that dead trials hold."""


def notes_folder(folder: str) -> str:
    """Where Ray Train keeps what it writes for itself, of no use once a driver has ended."""
    return below(folder, "ray")


def tune(driver: Driver, concurrent: int, code: str | None, *, trainable: Callable[[dict[str, Any]], None] = run_trial) -> None:
    """Have Tune execute the driver's trials until it has none left, `concurrent` of them side by side.

    Args:
        driver: Its study has begun, and this process has joined a Ray cluster.
        concurrent: The number of slots.
        code: The `code_version` that workers must have; None if they have this process's.
        trainable: What a trial's process does. By default it trains; see `slot.run_trial` for what it is given.

    Raises:
        OSError, StudyLockedError: The journal could not be written.
    """
    link = _Link(driver, Verdicts(uuid.uuid4().hex) if driver.pruners else None, code)
    with tempfile.TemporaryDirectory(prefix="tune-", dir=temporary_folder()) as scratch:
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(trainable, {"memory": 50e6}),
            tune_config=ray.tune.TuneConfig(
                search_alg=_Searcher(_Hand(link)), num_samples=-1, max_concurrent_trials=concurrent, reuse_actors=True
            ),
            run_config=ray.tune.RunConfig(
                name=f"{driver.study.name}-{uuid.uuid4().hex[:8]}",
                storage_path=scratch,
                failure_config=ray.tune.FailureConfig(max_failures=driver.study.resources.retries),
                callbacks=[_Listener(_Hand(link))],
                stop=_BudgetStop(_Hand(link)),
                verbose=0,
            ),
        )
        try:
            tuner.fit()
        except Exception:
            # Of an error that its callbacks raise, Tune passes on only a traceback.
            if driver.journal.error is not None:
                raise driver.journal.error from None
            raise
    upkeep.remove(notes_folder(driver.folder))


@dataclass(slots=True)
class _Link:
    """What searcher and callback share. verdicts: where the ranks ask for the driver's judgement, if trials are judged."""

    driver: Driver
    verdicts: Verdicts | None
    code: str | None


class _Hand:
    """Lets Tune's parts reach the driver without Tune pickling it: Tune saves them, and needs nothing of ours back."""

    def __init__(self, link: _Link | None) -> None:
        self._link = link

    @property
    def link(self) -> _Link:
        assert self._link is not None
        return self._link

    def __reduce__(self) -> tuple[type[_Hand], tuple[None]]:
        return _Hand, (None,)


class _Searcher(Searcher):
    def __init__(self, hand: _Hand) -> None:
        # Required by Tune, and of no meaning here: the journal holds the scores.
        super().__init__(metric="training_iteration", mode="max")
        self.hand = hand
        self.trials: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        driver, verdicts = self.hand.link.driver, self.hand.link.verdicts
        trial = driver.next_trial(set(self.trials.values()))
        if trial is None:
            return None
        if isinstance(trial, str):
            finished: str = Searcher.FINISHED
            return finished
        self.trials[trial_id] = trial.index
        return {
            "trial": trial.index,
            "resources": dataclasses.asdict(SlotResources.of(driver.study.resources)),
            "place": notes_folder(driver.folder),
            "code": self.hand.link.code,
            "job": driver.begin(trial, verdicts.start if verdicts else None).to_json(),
        }

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self.trials.pop(trial_id, None)

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return not config

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the journal is the state."""


class _BudgetStop(ray.tune.Stopper):
    """Ends what runs once the budget is spent; it continues from its last evaluation should the budget be raised."""

    def __init__(self, hand: _Hand) -> None:
        self.hand = hand

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return bool(self.hand.link.driver.overdrawn())


class _Listener(ray.tune.Callback):
    def __init__(self, hand: _Hand) -> None:
        self.hand = hand
        self.errors: dict[int, str] = {}
        self.reclaimed = -RECLAIM_SECONDS

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        raise_if_interrupted()
        self.hand.link.driver.watch_disk()
        if time.monotonic() - self.reclaimed >= RECLAIM_SECONDS:
            self.reclaimed = time.monotonic()
            if held := reclaim():
                _log.warning("gave back the cores of %d dead trial%s", held, "s" if held > 1 else "")

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any) -> None:
        driver, verdicts = self.hand.link.driver, self.hand.link.verdicts
        message = Message.from_json(result)
        driver.waits(trial.config["trial"], message.waits)
        for event in message.events:
            judgement = driver.hear(event)
            if judgement is not None and verdicts is not None:
                verdicts.say(judgement.trial, pruned=judgement.pruned, after=judgement.after)
            if isinstance(event, RunRewound | RunResized):
                _log.warning("trial %d, split %d: %s", event.trial, event.split, event.reason)
        if message.retry:
            driver.retried(trial.config["trial"], message.retry)
        if message.error:
            self.errors[trial.config["trial"]] = message.error

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.hand.link.driver.retried(trial.config["trial"], "the process of the trial died")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        index = trial.config["trial"]
        self.hand.link.driver.end(index, self.errors.pop(index, None))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.hand.link.driver.end(trial.config["trial"], last_line(trial.get_error()))
