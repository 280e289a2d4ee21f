"""The names and forms in which a study is written to MLflow: tags, parameters, metric names, notes."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Mapping
from typing import Any

from css_ray.events import Event, TrialFinished
from css_ray.messages import markdown

MAX_PARAM = 6000  # characters; MLflow would cut longer values without a warning
MAX_TAG = 8000
MAX_NAME = 250
MAX_DIGEST = 36
MAX_METRICS = 1000  # a call

KIND = "css_ray.kind"  # study, trial or split
STUDY_ID = "css_ray.study_id"
JOURNAL = "css_ray.journal"  # study id and start time: a second journal of the same study gets runs of its own
TRIAL = "css_ray.trial"
SPLIT = "css_ray.split"
PROJECTED = "css_ray.projected"  # events of the journal, counted from its start, that this run has seen
NOTE = "mlflow.note.content"
PARENT = "mlflow.parentRunId"

Key = tuple[int | None, int | None]
"""(trial, split) of a split's run, (trial, None) of a trial's, (None, None) of the study's."""


def key_of(tags: Mapping[str, str]) -> Key:
    return (int(tags[TRIAL]) if TRIAL in tags else None, int(tags[SPLIT]) if SPLIT in tags else None)


def milliseconds(event: Event) -> int:
    return round(event.time * 1000)


def allowed_name(name: str) -> str:
    """A name that MLflow allows: letters, digits and `_ - . : /` and space, and a clean relative path."""
    return posixpath.normpath(re.sub(r"[^\w./\-: ]", "_", name)).lstrip("/")[:MAX_NAME]


def cut(text: str, limit: int) -> str:
    """The text itself, or its start with a mark, at most `limit` characters."""
    mark = " … (cut)"
    return text if len(text) <= limit else text[: limit - len(mark)] + mark


def params_of(values: Mapping[str, Any]) -> dict[str, str]:
    return {allowed_name(name): cut(encode(value), MAX_PARAM) for name, value in values.items()}


def encode(value: Any) -> str:
    """A parameter as text that `decode` turns back: a string as it is, unless it could be read as JSON, all else as JSON."""
    return value if isinstance(value, str) and value and decode(value) == value else json.dumps(value)


def decode(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def without_prefix(metrics: Mapping[str, float], prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in metrics.items() if name.startswith(prefix)}


LAST, BEST = "values/last/", "values/best/"
"""Before the names of a run's metrics at its last step and at its best evaluation: MLflow draws each as a single dot, in the
order of their names, so these come after the curves."""

_LAST_BEFORE, _BEST_BEFORE = "last/", "best/"  # of earlier versions


def ends_of(metrics: Mapping[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    """What the metrics of a run hold of its last step and of its best evaluation."""
    last = without_prefix(metrics, _LAST_BEFORE) | without_prefix(metrics, LAST)
    return last, without_prefix(metrics, _BEST_BEFORE) | without_prefix(metrics, BEST)


def trial_note(
    score: str, event: TrialFinished, reasons: Mapping[int, str], pages: Mapping[int | None, str] | None = None
) -> str:
    """Markdown: the score of a trial, and one line per split with its value or the reason why it has none.

    pages: the address of each split's run, and at None that of the study's tables.
    """
    pages = pages or {}

    def linked(split: int) -> str:
        return f"[{split}]({pages[split]})" if split in pages else str(split)

    values = {int(split): value for split, value in event.values.items()}
    lines = [f"**{score}**", "", "| split | value |", "|---|---|"]
    lines += [f"| {linked(split)} | {value:.2f} |" for split, value in sorted(values.items())]
    failed = {split: reason for split, reason in reasons.items() if split not in values}
    for split, reason in sorted(failed.items()):
        line = markdown(" ".join(reason.split())[:200])
        lines.append(f"| {linked(split)} | {line} |")
    if event.reason:
        lines += ["", markdown(event.reason)]
    if None in pages:
        lines += ["", f"[The tables of the study]({pages[None]})"]
    return "\n".join(lines)
