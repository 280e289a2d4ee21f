"""A small study and its driver, without Ray or MLflow: trials are made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from css_ray.data.catalogue import ensure_dataset
from css_ray.events import RunFinished, RunStarted
from css_ray.study.definition import StudyDefinition, parse
from css_ray.study.driver import Driver


def small(tmp_path: Path, **changes: Any) -> StudyDefinition:
    """A trial of a grid and five of a search, on two splits."""
    ensure_dataset("digits", str(tmp_path / "digits"))
    return parse(
        {
            "study": "small",
            "data": {
                "dataset": "digits",
                "root": str(tmp_path / "digits"),
                "labelled": 12,
                "crop": 32,
                "labelled_batch": 4,
                "unlabelled_batch": 4,
            },
            "model": {"encoder": "tiny", "output_stride": 4, "pretrained": False},
            "train": {"iterations": 10, "evaluate_every": 10},
            "splits": [0, 1],
            "grid": {"method": [{"name": "supervised"}]},
            "search": {
                "method": {"name": "supervised"},
                "trials": 5,
                "sampler": "random",
                "space": {"train.lr": {"uniform": [0.01, 0.1]}},
            },
            "keep": {"top": 2},
            **changes,
        }
    )


def new_driver(study: StudyDefinition, tmp_path: Path) -> Driver:
    """Its driver, with the study begun or resumed."""
    driver = Driver(study, str(tmp_path / "runs"))
    driver.begin_or_resume()
    return driver


def train(driver: Driver, score: float, *, error: str | None = None) -> int:
    """Take the next trial to its end, with files as its ranks would leave."""
    trial = driver.next_trial(set())
    assert trial is not None and not isinstance(trial, str)
    job = driver.begin(trial)
    for kind in (job.checkpoints, job.models, job.matrices):
        folder = Path(kind)
        folder.mkdir(parents=True)
        (folder / "weights").write_text(str(trial.index))
    if error is None:
        for split in (0, 1):
            of: dict[str, Any] = {"time": 1.0, "trial": trial.index, "split": split}
            data: dict[str, Any] = {"dataset": "digits", "split_hash": "", "num_labelled": 12, "num_unlabelled": 4}
            driver.hear(RunStarted(**of, seed=0, **data, class_names=["a"]))
            metrics = {"val/miou": score + split}
            driver.hear(RunFinished(**of, step=10, last=metrics, best=metrics, best_step=10, seconds=1.0))
    driver.end(trial.index, error)
    return trial.index
