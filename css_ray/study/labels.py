"""What trials of a grid are called if their rows alone would look alike."""

from __future__ import annotations

import json
from collections.abc import Iterable

from css_ray.study.definition import TrialSpec


def labels(trials: Iterable[TrialSpec]) -> dict[int, str]:
    """The label of each trial by its index: its row, and if others share it, what differs between them: `Sup., labelled=92`."""
    groups: dict[str, list[TrialSpec]] = {}
    for trial in trials:
        groups.setdefault(trial.row, []).append(trial)
    found = {}
    for row, alike in groups.items():
        paths = dict.fromkeys(path for trial in alike for path in trial.params)
        differing = [path for path in paths if len({_text(trial, path) for trial in alike}) > 1]
        for trial in alike:
            parts = [f"{path.partition('.')[2]}={_text(trial, path)}" for path in differing if path in trial.params]
            found[trial.index] = ", ".join([row, *parts])
    return dict(sorted(found.items()))


def _text(trial: TrialSpec, path: str) -> str:
    value = trial.params.get(path)
    return value if isinstance(value, str) else json.dumps(value)
