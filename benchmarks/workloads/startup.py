"""How long the trials of a study take to begin: `python -m benchmarks.workloads.startup FOLDER`, in a process of its own.

A real study of small supervised trials, one after another, one worker each, on the CPU. A trial has begun when its first ten
steps are done, which take half a second. Prints the seconds from `trial_started` to there, of the first trial and the median of
the later ones, and the median from the end of a split to the tenth step of the trial's next one.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path

from css_ray.data.catalogue import ensure_dataset
from css_ray.events import Event, RunFinished, RunLogged, TrialStarted
from css_ray.execution.runner import Runner
from css_ray.study.definition import parse
from css_ray.study.journal import Journal

TRIALS, SPLITS = 5, 2


def first_steps(events: Iterable[Event]) -> dict[tuple[int, int], float]:
    """By trial and split, the time of its first point of the curves."""
    first: dict[tuple[int, int], float] = {}
    for event in events:
        if isinstance(event, RunLogged):
            first.setdefault((event.trial, event.split), event.time)
    return first


def main(folder: Path) -> None:
    data = folder / "digits"
    ensure_dataset("digits", str(data))
    study = parse(
        {
            "study": "startup",
            "data": {
                "dataset": "digits", "root": str(data), "labelled": 24, "crop": 40, "labelled_batch": 8, "unlabelled_batch": 8,
            },
            "model": {"encoder": "tiny", "output_stride": 4, "pretrained": False},
            "train": {"iterations": 50, "lr": 0.1, "log_every": 10, "evaluate_every": 50},
            "splits": list(range(SPLITS)),
            "search": {
                "method": {"name": "supervised"}, "trials": TRIALS, "sampler": "random",
                "space": {"train.lr": {"uniform": [0.05, 0.2]}},
            },
        }
    )  # fmt: skip
    runner = Runner(study, str(folder / "runs"))
    outcome = runner.run(resume=False)
    assert outcome.status == "finished", outcome
    events = Journal(runner.driver.folder).events
    begun = {event.trial: event.time for event in events if isinstance(event, TrialStarted)}
    ended = {(event.trial, event.split): event.time for event in events if isinstance(event, RunFinished)}
    first = first_steps(events)
    starts = [first[trial, 0] - begun[trial] for trial in range(TRIALS)]
    between = [first[trial, 1] - ended[trial, 0] for trial in range(TRIALS)]
    print(json.dumps({"first": starts[0], "later": statistics.median(starts[1:]), "split": statistics.median(between)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
