"""One run of a study by itself: which settings it has, and what the study recorded of it, to check one cell of a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from css_ray.messages import command
from css_ray.standing import RunStanding, Standing
from css_ray.study.definition import StudyDefinition, TrialSpec


@dataclass(frozen=True, slots=True)
class KnownRun:
    """A run that can be trained by itself.

    record: what the study recorded of it, None before it began. missing: why there is no value to compare with, in words; empty
    if the run finished, and for a run of a study file, of which nothing is recorded.
    """

    trial: TrialSpec
    split: int
    record: RunStanding | None = None
    missing: str = ""

    @property
    def finished(self) -> RunStanding | None:
        """The record with its values, None if it has none."""
        return None if self.missing else self.record


def run_of_file(definition: StudyDefinition, trial: int, split: int | None) -> KnownRun:
    """A run of a study file; the study need not have run. split: the study's first if None.

    Raises:
        ValueError: The study has no such split, or no such trial before it runs.
    """
    known = definition.grid_trials()
    kinds = "the grid" if known else ""
    if definition.search is not None and definition.search.first:
        first = definition.search.first
        kinds = " and ".join(filter(None, (kinds, "search.first")))
        known += [definition.search_trial(len(known) + place, point) for place, point in enumerate(first)]
    if not 0 <= trial < len(known):
        if definition.search is None:
            raise ValueError(f"--trial {trial}: the study has trials 0 to {len(known) - 1}")
        later = command("train", definition.name, "--trial", str(trial))
        if not known:
            raise ValueError(f"--trial {trial}: trials of a search exist once it has run: {later}")
        raise ValueError(
            f"--trial {trial}: trials of {kinds} are 0 to {len(known) - 1}; the others exist once the study has run: {later}"
        )
    return KnownRun(known[trial], _split(definition, split))


def run_of_study(standing: Standing[StudyDefinition], trial: int, split: int | None) -> KnownRun:
    """A run of a study that has begun, with the settings of its journal. split: the study's first if None.

    Raises:
        ValueError: The study has no such split, or the trial has not begun and is none of the grid.
    """
    definition = standing.definition
    split = _split(definition, split)
    if (begun := standing.trials.get(trial)) is None:
        grid = definition.grid_trials()
        if not 0 <= trial < len(grid):
            known = f"trials 0 to {max(standing.trials)} have begun" if standing.trials else "no trial has begun"
            raise ValueError(f"--trial {trial}: {known} in {definition.name}")
        return KnownRun(grid[trial], split, None, f"trial {trial} has not run")
    spec, run = definition.trial_begun(begun.start), begun.runs.get(split)
    if run is None:
        ended = f"was {begun.status} before it" if begun.status in ("pruned", "failed") else "has not reached it"
        return KnownRun(spec, split, None, f"split {split} has not run: trial {trial} {ended}")
    words = {"running": f"has not finished (step {run.step})", "finished": ""}
    reason = words.get(run.status, f"{run.status} at step {run.step}: {run.reason}")
    return KnownRun(spec, split, run, reason and f"trial {trial} on split {split} {reason}")


def _split(definition: StudyDefinition, split: int | None) -> int:
    if split is None:
        return definition.splits[0]
    if split not in definition.splits:
        raise ValueError(f"--split {split}: the study has the splits {', '.join(map(str, definition.splits))}")
    return split


def comparison(recorded: RunStanding, last: Mapping[str, float], best: Mapping[str, float]) -> list[str]:
    """The recorded mIoU beside that of a run trained again, in percent, with their difference; and whether they are equal."""
    lines = [f"{'mIoU':4}  {'recorded':>10}  {'now':>10}  difference"]
    equal = True
    for name, before, now in (("last", recorded.last, last), ("best", recorded.best, best)):
        difference = now["val/miou"] - before["val/miou"]
        equal = equal and difference == 0
        text = "0" if difference == 0 else f"{difference:+.4g}"
        lines.append(f"{name:4}  {before['val/miou']:10.4f}  {now['val/miou']:10.4f}  {text:>10}")
    verdict = (
        "equal: the run repeats the recorded values digit for digit"
        if equal
        else "not equal; digits repeat on the CPU alone, with the same number of workers and threads, and the same versions"
    )
    return [*lines, verdict]
