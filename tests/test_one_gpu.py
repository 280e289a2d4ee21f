"""benchmarks/one_gpu.py: what is trained without Ray gives the runs, and the journal, that the study's own driver would."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from benchmarks.one_gpu import main, steps_that_fit
from css_ray.events import Event, RunEvaluated, RunFinished, from_json
from css_ray.study.definition import read
from css_ray.study.driver import Driver
from css_ray.study.inputs import prepare
from css_ray.study.run import execute, run_spec
from css_ray.training.reporter import SilentReporter

STUDY = """
study: alone
data: {dataset: digits, root: ROOT, labelled: 6, crop: 24, labelled_batch: 2, unlabelled_batch: 2, val_batch: 50}
model: {encoder: tiny, output_stride: 4, pretrained: false, decoder_channels: 8, low_level_channels: 4, representation_dim: 8}
train: {iterations: 4, evaluate_every: 2, log_every: 1, diagnose_images: 2}
splits: [0, 1]
grid:
  method: [{name: supervised, row: Sup.}, {name: fixmatch, row: FixMatch}]
"""


def run(*arguments: object) -> str:
    command = [str(argument) for argument in arguments]
    result = CliRunner().invoke(main, command, catch_exceptions=False, standalone_mode=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def study(tmp_path: Path, data: Path) -> Path:
    path = tmp_path / "alone.yaml"
    path.write_text(STUDY.replace("ROOT", str(data)))
    return path


class NoTracker:
    """In place of MLflow, whose database takes longer than all the rest."""

    def __init__(self, uri: str) -> None: ...

    def record(self, event: Event) -> None: ...

    def close(self, timeout: float) -> int:
        return 0


def test_plan_train_and_collect(study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("css_ray.study.driver.Tracker", NoTracker)
    plan, out, storage = tmp_path / "plan.json", tmp_path / "out", tmp_path / "runs"
    assert run("plan", study, plan) == "4 runs\n"
    assert [(each["row"], each["run"]["split"]) for each in json.loads(plan.read_text())] == [
        ("Sup.", 0), ("FixMatch", 0), ("Sup.", 1), ("FixMatch", 1),
    ]  # fmt: skip
    run("train", plan, out, "--processes", 1, "--device", "cpu")
    events = sorted(out.glob("*.jsonl"))
    run("collect", study, *events, "--storage", storage)

    definition = read(study)
    driver = Driver(definition, str(storage))
    assert driver.standing.status == "finished" and len(driver.standing.records) == 4
    trial = driver.grid[1]
    reporter = SilentReporter()
    alone = execute(prepare(run_spec(definition, trial, 1)), reporter)
    record = next(record for record in driver.standing.records_of(1) if record.split == 1)
    assert record.last == alone.last
    events_of = [from_json(json.loads(line)) for file in events for line in file.read_text().splitlines()]
    of_run = [event for event in events_of if isinstance(event, RunEvaluated) and (event.trial, event.split) == (1, 1)]
    assert [(event.step, event.metrics) for event in of_run] == reporter.evaluations
    assert sum(isinstance(event, RunFinished) for event in events_of) == 4
    assert len(run("show", "--plan", plan, *events).splitlines()) == 4
    first, second = run("show", "--costs", "--plan", plan, *events).splitlines()
    steps, batch = definition.train.iterations, definition.data
    assert first.startswith("Sup. ") and f" {steps * batch.labelled_batch} labelled and 0 unlabelled images" in first
    assert second.startswith("FixMatch ") and f" and {steps * batch.unlabelled_batch} unlabelled images" in second

    with pytest.raises(click.ClickException) as refused:
        run("collect", study, *events, "--storage", tmp_path / "other", "--set", "train.iterations=40")
    assert refused.value.message.splitlines()[0] == (
        "trial 0, split 0: it was trained for 4 steps, the study has 40; add --set train.iterations=4"
    )
    assert len(refused.value.message.splitlines()) == 4 and not (tmp_path / "other").exists()


def test_a_run_that_fails_leaves_the_others(study: Path, tmp_path: Path) -> None:
    plan, out = tmp_path / "plan.json", tmp_path / "out"
    run("plan", study, plan, "--set", "splits=[0]")
    runs = json.loads(plan.read_text())
    runs[0]["run"]["settings"]["data"]["root"] = str(tmp_path / "missing")
    runs[0]["run"]["settings"]["data"]["dataset"] = "folder"
    plan.write_text(json.dumps(runs))
    printed = run("train", plan, out, "--processes", 1, "--device", "cpu", "--seconds", 1)
    assert printed.count("Sup., split 0: failed, ") == 2  # measured, and trained
    assert "FixMatch: " in printed and "ms per step" in printed and "1 of 2 runs" in printed
    assert json.loads((out / "steps.json").read_text()) == {"iterations": 100, "evaluate_every": 25}
    (end,) = [json.loads(line) for path in out.glob("*.jsonl") for line in path.open() if "run_finished" in line]
    assert end["step"] == 100
    assert run("show", "--plan", plan, *out.glob("*.jsonl")).startswith("FixMatch")


@pytest.mark.parametrize(
    ("seconds", "steps"),
    [
        (1000.0, 300),  # 2 rows x 3 splits on 2 processes: 4 evaluations cost 24 s, a step 3 s: 325 steps fit
        (10.0, 100),  # never fewer
    ],
)
def test_steps_that_fit(seconds: float, steps: int) -> None:
    assert steps_that_fit([(0.5, 1.0), (1.5, 3.0)], 3, 2, seconds) == steps
