"""Records the table that `replay` runs studies over: `python -m benchmarks.recorded.record`.

200 settings of the quick start's search, drawn at random from a space as wide as one who knows nothing would give it, each
trained by its network on three splits. `recorded.jsonl` has one line per configuration: its settings and, by split, its val
mIoU in percent at every EVALUATE_EVERY steps. It takes an hour or two on two CPU cores; stopped, it continues where it was.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import tempfile
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch

from benchmarks import ROOT
from benchmarks.recorded import TABLE
from css_ray.data.catalogue import ensure_dataset
from css_ray.study.definition import StudyDefinition, read
from css_ray.study.driver import Driver
from css_ray.study.inputs import prepare
from css_ray.study.run import execute, run_spec
from css_ray.study.sampling import Sampling
from css_ray.training.loop import NonFiniteLossError
from css_ray.training.reporter import SilentReporter

STUDY = ROOT / "studies" / "quickstart.yaml"
CONFIGURATIONS, SPLITS = 200, (0, 1, 2)
SPACE = {
    "method.prototype_decay": {"uniform": [0.5, 0.999]},
    "method.temperature": {"loguniform": [0.05, 5.0]},
    "method.unsup_threshold": {"uniform": [0.2, 0.99]},
    "method.valid_threshold": {"uniform": [0.1, 0.95]},
    "method.hard_threshold": {"uniform": [0.3, 1.0]},
    "method.contrast_weight": {"loguniform": [0.005, 10.0]},
}
ITERATIONS, EVALUATE_EVERY = 160, 16


def table_study() -> StudyDefinition:
    """The quick start with the table's size, drawn at random."""
    sets = [
        f"train.iterations={ITERATIONS}",
        f"train.evaluate_every={EVALUATE_EVERY}",
        f"train.log_every={ITERATIONS}",
        "train.diagnose_images=0",
        f"splits={list(SPLITS)}",
        f"search.trials={CONFIGURATIONS}",
        "search.sampler=random",
        "search.first=[]",
        f"search.space={json.dumps(SPACE)}",
        "grid=null",
    ]
    return read(STUDY, sets)


def record(position: int, params: dict[str, Any]) -> dict[str, Any]:
    """Train one configuration on all splits."""
    torch.set_num_threads(1)
    study = table_study()
    trial = study.search_trial(position, params)
    curves = {}
    for split in SPLITS:
        reporter = SilentReporter()
        with contextlib.suppress(NonFiniteLossError):  # its curve ends there
            execute(prepare(run_spec(study, trial, split)), reporter)
        curves[split] = [round(metrics["val/miou"], 2) for _, metrics in reporter.evaluations]
    return {"configuration": position, "params": params, "miou": curves}


def main() -> None:
    study = table_study()
    ensure_dataset(study.data.dataset, study.data.root)
    assert study.search is not None
    sampling = Sampling(study.search, study.space, study.objective, Driver(study, tempfile.gettempdir()).feasible)
    drawn: list[dict[str, Any]] = []
    for _ in range(CONFIGURATIONS):
        drawn.append(sampling.suggest(drawn, []))
    have = [json.loads(line) for line in TABLE.read_text().splitlines()] if TABLE.exists() else []
    missing = [position for position in range(CONFIGURATIONS) if position not in {line["configuration"] for line in have}]
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool, TABLE.open("a") as file:
        for line in pool.map(record, missing, [drawn[position] for position in missing]):
            print(json.dumps(line), file=file, flush=True)


if __name__ == "__main__":
    main()
