"""A study on one GPU of a machine that has neither Ray nor MLflow: its runs in processes that share the device.

    python -m benchmarks.one_gpu plan STUDY.yaml PLAN.json            # on a machine that has css-ray
    python -m benchmarks.one_gpu train PLAN.json OUT --processes 6    # on the GPU: torch, torchvision, timm and pyarrow do
    python -m benchmarks.one_gpu collect STUDY.yaml OUT/*.jsonl       # a journal; css-ray study table makes the table of it

Paths in the study are relative to the current folder on both machines. `train --seconds S` first measures a step of each row,
then chooses the number of steps that fits into S seconds. Events are written as they happen, so an interruption loses none.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import click
import torch

from css_ray.events import (
    RunEvaluated,
    RunEvent,
    RunFailed,
    RunFinished,
    RunLogged,
    RunStarted,
    StageFinished,
    StageStarted,
    from_json,
)
from css_ray.methods.stages import ends
from css_ray.study.inputs import prepare
from css_ray.study.job import RunSpec
from css_ray.study.run import build_method, execute
from css_ray.training.loop import NonFiniteLossError
from css_ray.training.reporter import Metrics, SilentReporter

if TYPE_CHECKING:
    from css_ray.study.definition import TrialSpec

PROBE_STEPS, PROBE_LAST = 60, 20
"""How many steps of a row are trained to see what one takes, and on how many of them, the last, the clock runs."""

EVALUATIONS = 4
"""Of a run whose number of steps `train --seconds` chose."""


class EventWriter:
    """Writes what happens to one run, one event per line."""

    def __init__(self, run: RunSpec, stream: IO[str]) -> None:
        self.run, self.stream, self.step = run, stream, 0

    def write(self, kind: type[RunEvent], **content: Any) -> None:
        event = kind.now(trial=self.run.trial, split=self.run.split, **content)
        self.stream.write(json.dumps(event.to_json(), allow_nan=False, separators=(",", ":")) + "\n")
        self.stream.flush()

    def logged(self, step: int, metrics: Metrics) -> None:
        self.step = step
        self.write(RunLogged, step=step, metrics=dict(metrics))

    def evaluated(self, step: int, metrics: Metrics, write_checkpoint: Callable[[Path], None]) -> None:
        self.step = step
        self.write(RunEvaluated, step=step, metrics=dict(metrics))

    def stage_started(self, step: int, number: int, name: str, write_checkpoint: Callable[[Path], None] | None) -> None:
        self.write(StageStarted, step=step, number=number, name=name)

    def stage_finished(self, step: int, number: int, name: str) -> None:
        self.write(StageFinished, step=step, number=number, name=name)


class Probe(SilentReporter):
    """Of a short run: when each point of the curves was reached, and its evaluation done."""

    def __init__(self) -> None:
        super().__init__()
        self.at: dict[int, float] = {}
        self.evaluated_at = 0.0

    def logged(self, step: int, metrics: Metrics) -> None:
        self.at[step] = time.perf_counter()

    def evaluated(self, step: int, metrics: Metrics, write_checkpoint: Callable[[Path], None]) -> None:
        self.evaluated_at = time.perf_counter()

    def seconds(self) -> tuple[float, float]:
        """Of a step, and of an evaluation."""
        step = (self.at[PROBE_STEPS] - self.at[PROBE_STEPS - PROBE_LAST]) / PROBE_LAST
        return step, self.evaluated_at - self.at[PROBE_STEPS]


def train(run: RunSpec, stream: IO[str], device: str) -> None:
    """Train a run and write its events; a loss that is not finite fails it."""
    writer, prepared = EventWriter(run, stream), prepare(run)
    writer.write(RunStarted, **prepared.started(), workers=1)
    try:
        fit = execute(prepared, writer, device=device)
    except NonFiniteLossError as error:
        writer.write(RunFailed, step=writer.step, reason=str(error))
    else:
        ends = dataclasses.asdict(fit)
        writer.write(RunFinished, **ends | {"seconds": round(fit.seconds, 3)})


def probe(run: RunSpec, device: str) -> tuple[float, float]:
    """Seconds of a step and of an evaluation of a run, beside what else the machine does."""
    observed = Probe()
    execute(
        prepare(with_train(run, iterations=PROBE_STEPS, evaluate_every=PROBE_STEPS, log_every=PROBE_LAST)),
        observed,
        device=device,
    )
    return observed.seconds()


def with_train(run: RunSpec, **values: Any) -> RunSpec:
    """The run with other settings of its training."""
    return dataclasses.replace(run, settings={**run.settings, "train": {**run.settings["train"], **values}})


def steps_that_fit(costs: Sequence[tuple[float, float]], runs_each: int, processes: int, seconds: float) -> int:
    """How many steps all runs can have, a multiple of 100 and at least that.

    costs: seconds of a step and of an evaluation of each row, which is trained on `runs_each` splits.
    """
    of_steps = sum(step for step, _ in costs) * runs_each / processes
    of_evaluations = EVALUATIONS * sum(evaluation for _, evaluation in costs) * runs_each / processes
    steps = int((seconds - of_evaluations) / of_steps) // 100 * 100
    return max(100, steps)


# ------------------------------------------------------------------------------------------------------------- the processes


Task = Callable[[dict[str, Any], str, str], Any]
"""What a process does with a run as plain values, for a folder and on a device."""


def _train(plain: dict[str, Any], folder: str, device: str) -> None:
    with open(Path(folder) / f"events-{os.getpid()}.jsonl", "a") as stream:
        train(RunSpec.from_json(plain), stream, device)


def _probe(plain: dict[str, Any], folder: str, device: str) -> tuple[float, float]:
    return probe(RunSpec.from_json(plain), device)


def _results(
    pool: ProcessPoolExecutor, task: Task, runs: Sequence[tuple[str, RunSpec]], out: Path, device: str
) -> list[tuple[str, Any]]:
    """The row and the result of each run that succeeded; a failure is printed, and the other runs continue."""
    futures = {pool.submit(task, run.to_json(), str(out), device): (row, run) for row, run in runs}
    results = []
    for future in as_completed(futures):
        row, run = futures[future]
        if (error := future.exception()) is None:
            results.append((row, future.result()))
            click.echo(f"{row}, split {run.split}: done")
        else:
            click.echo(f"{row}, split {run.split}: failed, {type(error).__name__}: {error}")
    return results


# --------------------------------------------------------------------------------------------------------------- the commands


@click.group(help=__doc__)
def main() -> None: ...


@main.command()
@click.argument("study", type=click.Path(exists=True))
@click.argument("plan", type=click.Path())
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE")
def plan(study: str, plan: str, overrides: Sequence[str]) -> None:
    """Write the runs of a study's grid, split by split."""
    definition = _definition(study, overrides)
    runs = [
        {"row": trial.row, "run": RunSpec(trial.index, split, definition.seed + split, trial.settings).to_json()}
        for split in definition.splits
        for trial in definition.grid_trials()
    ]
    Path(plan).write_text(json.dumps(runs, indent=0) + "\n")
    click.echo(f"{len(runs)} runs")


@main.command("train")
@click.argument("plan", type=click.Path(exists=True))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--processes", default=6, show_default=True)
@click.option("--seconds", type=float, help="Choose the number of steps that fits into this time, instead of the plan's.")
@click.option("--device", default="cuda", show_default=True)
def train_command(plan: str, out: Path, processes: int, seconds: float | None, device: str) -> None:
    """Train the runs of a plan; their events go to OUT/events-N.jsonl."""
    started = time.monotonic()
    runs = [(each["row"], RunSpec.from_json(each["run"])) for each in json.loads(Path(plan).read_text())]
    out.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        if seconds is not None:
            firsts = list({row: (row, run) for row, run in reversed(runs)}.values())
            found = _results(pool, _probe, firsts, out, device)
            runs = _with_steps_that_fit(runs, found, processes, started + seconds, out)
        done = _results(pool, _train, runs, out, device)
    click.echo(f"{len(done)} of {len(runs)} runs in {time.monotonic() - started:.1f} s")


def _with_steps_that_fit(
    runs: list[tuple[str, RunSpec]], found: list[tuple[str, Any]], processes: int, deadline: float, out: Path
) -> list[tuple[str, RunSpec]]:
    if not found:
        raise click.ClickException("no row could be measured; the errors are above")
    for row, (step, evaluation) in found:
        click.echo(f"{row}: {step * 1e3:.1f} ms per step, {evaluation:.2f} s per evaluation")
    num_rows = len({row for row, _ in runs})
    costs = [cost for _, cost in found]
    steps = steps_that_fit(costs, len(runs) // num_rows, processes, deadline - time.monotonic())
    values = {"iterations": steps, "evaluate_every": steps // EVALUATIONS}
    click.echo(f"a run has {steps} steps")
    (out / "steps.json").write_text(json.dumps(values) + "\n")
    return [(row, with_train(run, **values)) for row, run in runs]


@main.command()
@click.argument("events", type=click.Path(exists=True), nargs=-1, required=True)
@click.option("--plan", type=click.Path(exists=True), required=True)
@click.option("--metric", default="val/miou", show_default=True)
@click.option("--costs", is_flag=True, help="Print what each row cost instead: hours, and the images that a run saw.")
def show(events: Sequence[str], plan: str, metric: str, costs: bool) -> None:
    """Print each row's last and best value by split."""
    planned = json.loads(Path(plan).read_text())
    rows = {each["run"]["trial"]: each["row"] for each in planned}
    if costs:
        _show_costs({each["run"]["trial"]: RunSpec.from_json(each["run"]) for each in planned}, rows, _by_run(events))
        return
    for (trial, split), of_run in sorted(_by_run(events).items()):
        for event in of_run:
            if isinstance(event, RunFinished):
                last, best = event.last[metric], event.best[metric]
                click.echo(f"{rows[trial]:28} split {split}: {last:6.2f}, best {best:6.2f}, {event.seconds:6.1f} s")


def _show_costs(
    specs: Mapping[int, RunSpec], rows: Mapping[int, str], by_run: Mapping[tuple[int, int], list[RunEvent]]
) -> None:
    """One line per row: its finished runs, the hours of their training, and the images that one of them saw."""
    for trial, spec in sorted(specs.items()):
        ended = [
            event for (of, _), events in by_run.items() if of == trial for event in events if isinstance(event, RunFinished)
        ]
        if ended:
            (classes,) = {
                len(each.class_names) for (of, _), events in by_run.items() if of == trial for each in _started(events)
            }
            hours = sum(event.seconds for event in ended) / 3600
            labelled, unlabelled = images_seen(spec, classes)
            click.echo(
                f"{rows[trial]:28} {len(ended)} runs, {hours:.2f} h, {labelled:,} labelled and {unlabelled:,} unlabelled images"
            )


def _started(events: Sequence[RunEvent]) -> list[RunStarted]:
    return [event for event in events if isinstance(event, RunStarted)]


def images_seen(spec: RunSpec, num_classes: int) -> tuple[int, int]:
    """How many labelled and unlabelled images the batches of a run hold, each counted as often as it is drawn.

    A union batch counts as half of each: its list repeats the labelled images until they are as many as the others. What a
    method reads at a border between two stages is not counted.
    """
    data, train = spec.settings["data"], spec.settings["train"]
    method = build_method(spec.settings, num_classes)
    labelled = unlabelled = 0.0
    stages, begin = method.stages(), 0
    for stage, end in zip(stages, ends(stages, train["iterations"]), strict=True):
        steps, begin = end - begin, end
        first, second = data["labelled_batch"], data["unlabelled_batch"]
        if stage.batch == "union":
            first = second = (first + second) / 2
        labelled += steps * first
        if stage.batch != "labelled" and method.needs_unlabelled:
            unlabelled += steps * second
    return round(labelled), round(unlabelled)


@main.command()
@click.argument("study", type=click.Path(exists=True))
@click.argument("events", type=click.Path(exists=True), nargs=-1, required=True)
@click.option("--set", "overrides", multiple=True, metavar="PATH=VALUE")
@click.option("--storage", default="runs", show_default=True)
def collect(study: str, events: Sequence[str], overrides: Sequence[str], storage: str) -> None:
    """Make a study of what was trained elsewhere: its journal, its runs in MLflow and its tables."""
    from css_ray.study.driver import Driver

    driver, by_run = Driver(_definition(study, overrides), storage), _by_run(events)
    if problems := list(_mismatches(driver.grid, by_run)):
        raise click.ClickException("\n".join(problems))
    driver.check_new()
    with driver.driving():
        driver.begin_or_resume()
        for trial in driver.grid:
            if all(trial.index != index for index, _ in by_run):
                continue  # it was not trained
            driver.begin(trial)
            for split in driver.study.splits:
                for event in by_run.get((trial.index, split), []):
                    driver.hear(event)
            driver.end(trial.index, None)
        driver.finish()
    click.echo(f"{len(driver.standing.records)} runs; css-ray study table {driver.study.name}")


def _mismatches(grid: Sequence[TrialSpec], by_run: Mapping[tuple[int, int], list[RunEvent]]) -> Iterator[str]:
    """Why events are not of these trials: a journal of them would describe runs that nobody trained."""
    for (trial, split), of_run in by_run.items():
        if trial >= len(grid):
            yield f"trial {trial}, split {split}: the study has trials 0 to {len(grid) - 1}; give the study that was planned"
            continue
        asked = grid[trial].settings["train"]["iterations"]
        for event in of_run:
            if isinstance(event, RunFinished) and event.step != asked:
                yield (
                    f"trial {trial}, split {split}: it was trained for {event.step} steps, the study has {asked}; "
                    f"add --set train.iterations={event.step}"
                )


def _definition(study: str, overrides: Sequence[str]) -> Any:
    from css_ray.study.definition import read  # pydantic and Optuna, which the machine with the GPU may lack

    return read(study, overrides)


def _by_run(files: Sequence[str]) -> Mapping[tuple[int, int], list[RunEvent]]:
    """The events of each run, by trial and split."""
    by_run = defaultdict(list)
    for file in files:
        for line in Path(file).read_text().splitlines():
            event = from_json(json.loads(line))
            assert isinstance(event, RunEvent)
            by_run[event.trial, event.split].append(event)
    return by_run


if __name__ == "__main__":
    main()
