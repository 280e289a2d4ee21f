"""Whole studies through the CLI: real Ray, real training, real MLflow; killed in every way and resumed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.places import Place, check_same, evaluations, runs_finished

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def test_an_undisturbed_study_finishes_and_says_what_it_found(undisturbed: Place) -> None:
    output = undisturbed.output  # type: ignore[attr-defined]
    assert "Sup." in output and "CSS (mix)" in output and "best configuration" in output
    assert "css-ray ui" in output and "css-ray study resume small" in output
    events = undisturbed.events()
    assert events[0]["event"] == "study_started" and events[-1]["event"] == "study_finished"
    assert runs_finished(events) == 6
    # The value of a trial is the mean over its splits, and its std has one degree of freedom less than splits.
    for end in (event for event in events if event["event"] == "trial_finished"):
        first, second = (
            event["last"]["val/miou"] for event in events if event["event"] == "run_finished" and event["trial"] == end["trial"]
        )
        assert end["mean"] == pytest.approx((first + second) / 2)
        assert end["std"] == pytest.approx(abs(first - second) / 2**0.5)
    undisturbed.check_mlflow()
    undisturbed.wait_until_empty()


def test_a_finished_study_is_not_run_again(undisturbed: Place) -> None:
    before = undisturbed.events()
    code, output = undisturbed.ask("study", "run", str(undisturbed.file))
    assert code == 2 and "css-ray study resume small" in output
    code, output = undisturbed.ask("study", "resume", "small")
    assert code == 0 and "Sup." in output
    assert undisturbed.events() == before


def test_mlflow_is_rebuilt_from_the_journal(place: Place, undisturbed: Place) -> None:
    (place.folder / "runs").mkdir()
    shutil.copytree(undisturbed.folder / "runs" / "small", place.folder / "runs" / "small")
    code, output = place.ask("study", "table", "small", "--source", "mlflow")
    assert code == 1 and "css-ray study sync small" in output
    code, output = place.ask("study", "sync", "small")
    assert code == 0 and "10 MLflow runs created" in output, output
    place.check_mlflow()
    code, output = place.ask("study", "sync", "small")
    assert code == 0 and "0 MLflow runs created, 0 metric points sent" in output, output


def test_a_finished_study_is_shown(undisturbed: Place) -> None:
    code, output = undisturbed.ask("study", "status", "small")
    assert code == 0 and "small: finished" in output and "trials 3/3" in output and "runs 6/6" in output
    code, output = undisturbed.ask("study", "list")
    assert code == 0 and "small" in output and "trials 3/3" in output
    for format_, mark in (("md", "| Sup. |"), ("latex", r"\begin{tabular}"), ("html", "<table>"), ("text", "n=2 splits")):
        code, output = undisturbed.ask("study", "table", "small", "--format", format_)
        assert code == 0 and mark in output, output


def test_the_best_weights_load_without_the_platform(undisturbed: Place) -> None:
    from css_ray.training.best import load_best

    segmenter, best = load_best(undisturbed.folder / "runs" / "small" / "models" / "trial_0001" / "split_1")
    assert segmenter.num_classes == 6
    journal = (undisturbed.folder / "runs" / "small" / "journal.jsonl").read_text()
    (ended,) = [
        event for event in map(json.loads, journal.splitlines())
        if event["event"] == "run_finished" and (event["trial"], event["split"]) == (1, 1)
    ]  # fmt: skip
    assert (best.step, best.split) == (ended["best_step"], 1)
    assert best.metrics == {name: value for name, value in ended["best"].items() if name.startswith("val/")}


def test_rows_have_intervals(undisturbed: Place) -> None:
    code, output = undisturbed.ask("study", "compare", "small")
    assert code == 0 and "95 % interval" in output and "P(rank 1)" in output, output
    code, output = undisturbed.ask("study", "table", "small", "--against", "Sup.", "--format", "latex")
    assert code == 0 and r"$\Delta$ to Sup." in output and " to " in output, output


@pytest.mark.parametrize(
    "moment",
    [
        "first evaluation",
        pytest.param("between splits", marks=pytest.mark.long),
        pytest.param("second trial", marks=pytest.mark.long),
    ],
)
def test_kill_the_driver_then_resume(moment: str, place: Place, undisturbed: Place) -> None:
    ready = {
        "first evaluation": lambda events: evaluations(events) >= 1,
        "between splits": lambda events: runs_finished(events) >= 1,
        "second trial": lambda events: any(event["event"] == "trial_finished" for event in events),
    }[moment]
    driver = place.start("study", "run", str(place.file))
    place.wait_for(ready, driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    place.wait_until_empty()
    assert not any(event["event"] == "study_finished" for event in place.events())
    code, output = place.call("study", "resume", "small")
    assert code == 0, output
    check_same(place, undisturbed)


def test_killed_just_before_the_last_word_a_resume_says_it(place: Place, undisturbed: Place) -> None:
    shutil.copytree(undisturbed.folder / "runs", place.folder / "runs")
    journal = place.folder / "runs" / "small" / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:-1]))
    code, output = place.call("study", "resume", "small")
    assert code == 0, output
    assert place.events()[-1]["event"] == "study_finished"
    assert place.table() == undisturbed.table()
    place.check_mlflow()


def test_killed_between_the_end_of_the_runs_and_that_of_their_trial(place: Place, undisturbed: Place) -> None:
    shutil.copytree(undisturbed.folder / "runs", place.folder / "runs")
    journal = place.folder / "runs" / "small" / "journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    last = max(number for number, line in enumerate(lines) if json.loads(line)["event"] == "run_finished")
    journal.write_text("".join(lines[: last + 1]))
    code, output = place.call("study", "resume", "small")
    assert code == 0, output
    written = [event["event"] for event in place.events()[last + 1 :]]
    assert written == ["study_resumed", "trial_finished", "study_finished"]
    assert place.table() == undisturbed.table()
    place.check_mlflow()


def test_interrupted_while_ray_starts_nothing_is_left(place: Place) -> None:
    driver = place.start("study", "run", str(place.file))
    lock = place.folder / "runs" / "small" / "driver.lock"
    limit = time.monotonic() + 60
    while not lock.exists() and time.monotonic() < limit:
        time.sleep(0.02)
    time.sleep(0.5)
    driver.send_signal(signal.SIGINT)
    output, _ = driver.communicate(timeout=60)
    assert driver.returncode == 130, output
    assert place.events() == []
    assert "interrupted before anything was started" in output


@pytest.fixture
def another_ray(place: Place) -> Iterator[None]:
    """A second Ray on this machine, as another study would start it: what asks for "the" Ray must not find two."""
    code = "import ray; ray.init(num_cpus=1, include_dashboard=False, logging_level=40); print('up', flush=True); input()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield
        process.stdin.write("\n")


@pytest.mark.parametrize("victim", ["RayTrainWorker", pytest.param("ImplicitFunc", marks=pytest.mark.long)])
def test_kill_processes_of_the_trials_and_the_study_goes_on(
    victim: str, place: Place, undisturbed: Place, another_ray: None
) -> None:
    driver = place.start("study", "run", str(place.file))
    place.wait_for(lambda events: evaluations(events) >= 2, driver)
    victims = place.processes(victim)
    assert victims, "no such process; its title may have changed with Ray"
    for process in victims:  # of all trials: a core that is never given back would not be missed else
        os.kill(process, signal.SIGKILL)
    output, _ = driver.communicate(timeout=500)
    assert driver.returncode == 0, output
    check_same(place, undisturbed)
    assert any(event["event"] == "trial_retried" for event in place.events())


def test_a_rank_that_hangs_costs_a_retry(place: Place) -> None:
    sets = ["resources.workers=2", "resources.concurrent_trials=1", "resources.hang_seconds=20", "search=null"]
    driver = place.start("study", "run", str(place.file), *(part for pair in sets for part in ("--set", pair)))
    place.wait_for(lambda events: evaluations(events) >= 2, driver)
    ranks = place.processes("RayTrainWorker")
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGSTOP)  # it lives, and does nothing; its peer waits for it
    output, _ = driver.communicate(timeout=500)
    assert driver.returncode == 0, output
    (retry,) = (event for event in place.events() if event["event"] == "trial_retried")
    assert "made no progress for more than 20 s" in retry["reason"]
    assert "trial 0 continues from its last checkpoint: rank" in output
    assert runs_finished(place.events()) == 2
    assert not Path(f"/proc/{ranks[1]}").exists()


def test_an_interrupt_ends_in_seconds_with_the_command_that_resumes(place: Place, undisturbed: Place) -> None:
    driver = place.start("study", "run", str(place.file))
    place.wait_for(lambda events: evaluations(events) >= 1, driver)
    second_code, second = place.call("study", "resume", "small")
    assert second_code == 2 and "another driver is at work" in second
    # Ctrl-C; then what systemd, Slurm and Ray's jobs send.
    for number in (signal.SIGINT, signal.SIGTERM):
        sent = time.monotonic()
        driver.send_signal(number)
        output, _ = driver.communicate(timeout=60)
        assert driver.returncode == 130, output
        assert "css-ray study resume small" in output
        assert time.monotonic() - sent < 15
        assert place.events()[-1]["event"] == "study_interrupted"
        before = evaluations(place.events())
        driver = place.start("study", "resume", "small")
        place.wait_for(lambda events, before=before: evaluations(events) > before, driver)  # type: ignore[misc]
    output, _ = driver.communicate(timeout=500)
    assert driver.returncode == 0, output
    check_same(place, undisturbed)


def test_a_split_that_fails_is_told_not_averaged_away(place: Place) -> None:
    sets = ["resources.retries=0", "search=null", "resources.concurrent_trials=1"]
    driver = place.start("study", "run", str(place.file), *(part for pair in sets for part in ("--set", pair)))
    place.wait_for(lambda events: any(event["event"] == "run_logged" and event["split"] == 1 for event in events), driver)
    os.kill(place.processes("RayTrainWorker")[0], signal.SIGKILL)
    output, _ = driver.communicate(timeout=500)
    assert driver.returncode == 1, output
    assert "n=1 of 2" in output
    (end,) = [event for event in place.events() if event["event"] == "trial_finished"]
    assert (end["status"], end["n"], end["num_splits"]) == ("failed", 1, 2)
    # What failed for the machine's reasons is done again on resume; what was finished is not.
    code, output = place.call("study", "resume", "small")
    assert code == 0, output
    assert [event["split"] for event in place.events() if event["event"] == "run_finished"] == [0, 1]


@pytest.mark.parametrize("method", ["css", pytest.param("supervised", marks=pytest.mark.long)])
def test_a_loss_that_is_not_finite_fails_the_split_with_its_reason(method: str, place: Place) -> None:
    code, output = place.run("train.lr=1e30", "search=null", f"grid.method=[{{name: {method}}}]")
    assert code == 1, output
    # It is no fault of the machine: each split is tried once, and a resume does not try it again.
    assert [event["split"] for event in place.events() if event["event"] == "run_failed"] == [0, 1]
    (end,) = [event for event in place.events() if event["event"] == "trial_finished"]
    assert (end["status"], end["n"]) == ("partial", 0)
    assert "loss 'sup' became" in end["reason"]


def test_two_workers_share_the_batch(place: Place) -> None:
    code, output = place.run(
        "resources.workers=2", "resources.concurrent_trials=1", "search=null", "splits=[0]", "train.iterations=10"
    )
    assert code == 0, output
    assert runs_finished(place.events()) == 1


def test_a_study_that_fits_nowhere_starts_nothing(place: Place) -> None:
    code, output = place.run("resources.workers=64", "data.labelled_batch=128", "data.unlabelled_batch=128")
    assert code == 2 and "a trial needs 64 CPU, but this machine has" in output, output
    assert place.events() == []


def test_one_run_with_ray_is_the_run_without_it(place: Place) -> None:
    arguments = ["train", str(place.file), "--trial", "0", "--split", "1", "--device", "cpu"]
    code, alone = place.call(*arguments, "--out", "alone")
    assert code == 0, alone
    code, with_ray = place.call(*arguments, "--ray", "--out", "with-ray")
    assert code == 0, with_ray
    assert with_ray.splitlines()[-1].rpartition(",")[0] == alone.splitlines()[-1].rpartition(",")[0]
    code, output = place.call(*arguments, "--ray")
    assert code == 2 and "--ray needs --out" in output


@pytest.mark.long  # test_driver.py has the like of it without Ray
def test_a_spent_budget_ends_a_study_and_a_larger_one_goes_on(place: Place, undisturbed: Place) -> None:
    code, output = place.run("budget.cpu_hours=0.0002")
    assert code == 0, output
    assert place.events()[-1]["status"] == "budget"
    assert "is spent" in output and re.search(r"css-ray study resume small --storage \S+ --set budget", output)
    assert runs_finished(place.events()) < 6
    code, output = place.call("study", "resume", "small")  # nothing is left of the budget
    assert code == 0 and runs_finished(place.events()) < 6, output
    code, output = place.call("study", "resume", "small", "--set", "budget.cpu_hours=10")
    assert code == 0, output
    clocks = {"time": 0, "worked": 0}
    assert place.events()[-1] | clocks == undisturbed.events()[-1] | clocks
    check_same(place, undisturbed)


@pytest.mark.long  # test_driver.py has the like of it without Ray
def test_a_finished_study_gets_more_splits_and_trials(place: Place, undisturbed: Place) -> None:
    shutil.copytree(undisturbed.folder / "runs", place.folder / "runs")
    before = place.events()
    code, output = place.call("study", "resume", "small", "--set", "train.iterations=80")
    assert code == 2 and "train: decides what has been trained already" in output
    assert place.events() == before
    code, output = place.call("study", "resume", "small", "--set", "splits=[0, 1, 7]", "--set", "search.trials=3")
    assert code == 0, output
    events = place.events()
    assert events[: len(before)] == before
    started = {(event["trial"], event["split"]) for event in events[len(before) :] if event["event"] == "run_started"}
    assert started == {(0, 7), (1, 7), (2, 7), (3, 0), (3, 1), (3, 7)}  # only what was missing
    assert {len(row) for row in (event["values"] for event in events[-30:] if event["event"] == "trial_finished")} == {3}
    assert events[-1]["event"] == "study_finished" and events[-1]["status"] == "finished"


PRUNED = (
    "resources.concurrent_trials=1",
    "grid=null",
    "splits=[0, 1, 2]",
    "search.space={train.lr: {loguniform: [1.0e-4, 0.1]}}",
    "search.first=[{train.lr: 0.05}, {train.lr: 1.0e-4}]",
)


def test_a_pruned_trial_stays_pruned_over_a_kill(place: Place) -> None:
    asha = "search.pruners=[{name: asha, startup: 1, reduction_factor: 2, grace: 0.5}]"
    sets = [part for pair in (*PRUNED, asha) for part in ("--set", pair)]
    driver = place.start("study", "run", str(place.file), *sets)
    place.wait_for(lambda events: any(event["event"] == "trial_pruned" for event in events), driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    place.wait_until_empty()
    code, output = place.call("study", "resume", "small")
    assert code == 0, output
    events = place.events()
    (verdict,) = (event for event in events if event["event"] == "trial_pruned")
    assert (verdict["trial"], verdict["split"], verdict["step"]) == (1, 0, 20)
    assert "asha: at step 20 of 40 on split 0" in verdict["reason"]
    assert {event["split"] for event in events if event["event"] == "run_started" and event["trial"] == 1} == {0}
    ends = {event["trial"]: event["status"] for event in events if event["event"] == "trial_finished"}
    assert ends == {0: "finished", 1: "pruned"} and events[-1]["best_trial"] == 0 and events[-1]["status"] == "finished"
    # Its run is kept, in the journal, the table and MLflow alike, and is no part of the ranking.
    assert place.table("mlflow", "--trials") == place.table("journal", "--trials")
    assert "best of 1 trials" in place.call("study", "table", "small")[1]


@pytest.mark.long  # test_driver.py has the like of it without Ray
def test_a_trial_that_loses_on_the_first_splits_is_spared_the_others(place: Place) -> None:
    code, output = place.run(*PRUNED, "search.pruners=[{name: paired, prior_std: 0.5}]", "search.confirm=2")
    assert code == 0, output
    events = place.events()
    finished = [(event["trial"], event["split"]) for event in events if event["event"] == "run_finished"]
    assert finished[:3] == [(0, 0), (0, 1), (0, 2)] and 1 <= len(finished[3:]) <= 2
    (verdict,) = (event for event in events if event["event"] == "trial_pruned")
    assert verdict["trial"] == 1 and "below the best trial (0) on the same splits" in verdict["reason"]
    assert "run_pruned" not in {event["event"] for event in events}  # it waited for the verdict between two splits
    # The one that finished was trained again on splits that the search never saw.
    confirmed = [
        json.loads(line) for line in (place.folder / "runs" / "small-confirm" / "journal.jsonl").read_text().splitlines()
    ]
    assert {(event["trial"], event["split"]) for event in confirmed if event["event"] == "run_finished"} == {
        (0, 3),
        (0, 4),
        (0, 5),
    }
    assert [event["params"]["train.lr"] for event in confirmed if event["event"] == "trial_started"] == [0.05]
    assert confirmed[-1]["status"] == "finished" and "small-confirm: the best of the search again" in output


@pytest.mark.long  # test_driver.py has the like of it without Ray
def test_a_study_whose_trials_all_fail_is_given_up(place: Place) -> None:
    sets = ["grid=null", "search.trials=30", "splits=[0]", "search.space={train.lr: {loguniform: [1.0e+6, 1.0e+7]}}"]
    code, output = place.run(*sets)
    assert code == 1 and "trials that ended have failed" in output, output
    events = place.events()
    ends = [event for event in events if event["event"] == "trial_finished"]
    assert 4 <= len(ends) <= 6 and {end["status"] for end in ends} == {"partial"}  # two run side by side
    assert all("split 0: " in end["reason"] for end in ends)
    assert events[-1]["event"] == "study_finished" and events[-1]["status"] == "failed"
    assert place.call("study", "resume", "small")[0] == 1 and place.events()[-1]["event"] == "study_finished"
