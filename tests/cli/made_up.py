"""Journals of made-up studies, written with the types of the events, for tests of the commands that read them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from css_ray.events import (
    Event,
    RunEvaluated,
    RunFailed,
    RunFinished,
    RunPruned,
    RunStarted,
    StudyStarted,
    TrialFinished,
    TrialStarted,
)
from css_ray.records import mean_std
from css_ray.study.definition import StudyDefinition, TrialSpec, parse

SPEC: dict[str, Any] = {
    "study": "small",
    "data": {"dataset": "digits", "root": "digits", "labelled": 12, "crop": 32, "labelled_batch": 4, "unlabelled_batch": 4, "val_batch": 100},
    "views": {"flip": False},
    "model": {"encoder": "tiny", "output_stride": 4, "pretrained": False, "decoder_channels": 8, "low_level_channels": 4, "representation_dim": 8},
    "train": {"iterations": 6, "lr": 0.05, "evaluate_every": 3, "log_every": 2},
    "splits": [0, 1],
    "grid": {"method": [{"name": "supervised", "row": "Sup."}, {"name": "css", "row": "CSS (mix)", "num_queries": 8, "num_negatives": 8}]},
}  # fmt: skip
"""Two trials on two splits that train within a second."""

SEARCH: dict[str, Any] = {
    "method": {"name": "css", "row": "CSS (mix)", "num_queries": 8, "num_negatives": 8},
    "trials": 3,
    "space": {"method.temperature": {"uniform": [0.1, 0.9]}},
}


def call(*arguments: str) -> Result:
    """A command of css-ray, in this process."""
    from css_ray_cli.main import main

    return CliRunner().invoke(main, list(arguments))


def refused(*arguments: str) -> str:
    """The message of a command that the user's input makes fail: exit code 2, no traceback, no number of the system's error."""
    result = call(*arguments)
    assert result.exit_code == 2, (result.output, result.exception)
    assert "Traceback" not in result.output and "[Errno" not in result.output
    return result.output


class Journal:
    """Writes the events of a study into its folder in a storage; each method tells some more of them, a second apart."""

    def __init__(self, storage: Path | str = "runs", **sections: Any) -> None:
        self.definition: StudyDefinition = parse({**SPEC, **sections})
        self.path = Path(storage) / self.definition.name / "journal.jsonl"
        self.path.parent.mkdir(parents=True)
        self.time = 1000.0
        self.write(
            StudyStarted(time=self.time, study=self.definition.name, study_id="x", spec=self.definition.resolved(), versions={})
        )

    def write(self, event: Event) -> None:
        self.time += 1.0
        with self.path.open("a") as file:
            file.write(json.dumps(event.to_json()) + "\n")

    def begin(self, index: int, **drawn: Any) -> TrialSpec:
        """A trial of the grid, or of the search with what it drew."""
        trials = self.definition.grid_trials()
        trial = trials[index] if index < len(trials) else self.definition.search_trial(index, drawn)
        config = {f"{section}.{key}": value for section, values in trial.settings.items() for key, value in values.items()}
        self.write(
            TrialStarted(time=self.time, trial=index, row=trial.row, source=trial.source, params=trial.params, config=config)
        )
        return trial

    def run(
        self,
        trial: int,
        split: int,
        last: float | None = None,
        *,
        best: float | None = None,
        end: str = "finished",
        split_hash: str = "",
        class_names: Sequence[str] = ("sky", "road", "tree"),
        metrics: Mapping[str, float] | None = None,
        workers: int = 1,
    ) -> None:
        """A run with one evaluation. last, best: its mIoU; end: finished, failed, pruned or running; metrics: others at its end."""
        place: dict[str, Any] = {"time": self.time, "trial": trial, "split": split}
        self.write(
            RunStarted(
                **place, seed=split, dataset="made up", split_hash=split_hash or f"images of split {split}", num_labelled=12,
                num_unlabelled=388, class_names=list(class_names), workers=workers,
            )
        )  # fmt: skip
        if end == "failed":
            self.write(RunFailed(**place, step=4, reason="loss 'sup' became nan at step 4"))
        if end == "pruned":
            self.write(RunPruned(**place, step=3, reason="3.1 below the best trial"))
        if end == "finished":
            assert last is not None
            scores = {"val/miou": last, **(metrics or {})}
            self.write(RunEvaluated(**place, step=3, metrics={"val/miou": last}))
            at_best = scores | {"val/miou": last if best is None else best}
            self.write(RunFinished(**place, step=6, last=scores, best=at_best, best_step=3, seconds=1.0))

    def end(self, trial: int, scores: Mapping[int, float], status: str = "finished", reason: str = "") -> None:
        mean, std = mean_std(list(scores.values()))
        values = {str(split): score for split, score in scores.items()}
        self.write(
            TrialFinished(
                time=self.time, trial=trial, status=status, reason=reason, values=values, mean=mean, std=std, n=len(scores),  # type: ignore[arg-type]
                num_splits=len(self.definition.splits),
            )
        )  # fmt: skip

    def whole(self, trial: int, scores: Mapping[int, float], drawn: Mapping[str, Any] | None = None, **settings: Any) -> None:
        """A trial that finishes with these scores by split, if they are all; settings: as of `run`."""
        self.begin(trial, **(drawn or {}))
        for split, score in scores.items():
            self.run(trial, split, score, **settings)
        if scores.keys() == set(self.definition.splits):
            self.end(trial, scores)
