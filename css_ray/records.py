"""What tables are made of: one record per run, and the mean ± standard deviation of a trial over its splits."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["running", "finished", "failed", "pruned"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """One run: one trial trained on one split.

    params: all that the study varies, flat (`method.temperature: 0.5`); row: the label of the table's row.
    last, best: metrics in percent at the last step and at the best evaluation; empty until the run finished.
    reason: why the run failed or was pruned; run_id: the MLflow run, if the record was read from MLflow.
    """

    study: str
    trial: int
    split: int
    row: str
    source: str
    params: Mapping[str, Any]
    status: Status = "running"
    seed: int = 0
    split_hash: str = ""
    step: int = 0
    last: Mapping[str, float] = field(default_factory=dict)
    best: Mapping[str, float] = field(default_factory=dict)
    best_step: int = 0
    seconds: float = 0.0
    reason: str = ""
    run_id: str | None = None


def mean_std(values: Sequence[float], ddof: int = 1) -> tuple[float | None, float | None]:
    """Mean and standard deviation of the values of a trial's splits, in their own unit.

    ddof 1 (default) is the sample standard deviation; ddof 0 the population's, 0.816 times as large at three splits. The paper
    does not state which it prints. Both are None without values; the std is None if there are not more than ddof values.
    """
    if not values:
        return None, None
    mean = statistics.fmean(values)
    if len(values) <= ddof:
        return mean, None
    return mean, (sum((value - mean) ** 2 for value in values) / (len(values) - ddof)) ** 0.5


def score_text(mean: float | None, std: float | None, n: int | None = None, num_splits: int | None = None) -> str:
    """A score as tables, the live view and MLflow show it: `68.09 ± 4.89`, and `66.00 (n=1 of 3)` if splits are missing.

    Args:
        mean: In percent; None, of which a dash is made, without a value.
        std: None if one split gives none.
        n: Over how many splits the mean is; left out if not given.
        num_splits: How many there should be.
    """
    text = "–" if mean is None else f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"
    whole = n is None or (n == num_splits and mean is not None)
    return text if whole else f"{text} (n={n} of {num_splits})"
