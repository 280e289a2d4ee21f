"""`css-ray study plan`: the trials that the machine can hold, the classes of the data set, and no file left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from css_ray import Study
from css_ray.study.capacity import Capacity
from css_ray.study.cost import ASSUMED_CLASSES, num_classes
from css_ray.study.definition import Resources
from tests.cli.made_up import SPEC, call, refused

MACHINE = Capacity("this machine", 2, 0)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CSS_RAY_STORAGE", raising=False)
    holds(monkeypatch, MACHINE)


def holds(monkeypatch: pytest.MonkeyPatch, there: Capacity) -> None:
    monkeypatch.setattr("css_ray.execution.session.capacity", lambda address: there)


def study(data: Path | str, **sections: Any) -> str:
    Path("study.yaml").write_text(yaml.safe_dump({**SPEC, "data": {**SPEC["data"], "root": str(data)}, **sections}))
    return "study.yaml"


@pytest.mark.parametrize(
    ("resources", "there", "fits"),
    [
        ({}, (2, 0), 2),
        ({"workers": 3}, (8, 0), 2),  # 8 cores hold two trials of three workers
        ({"workers": [2, 8], "cpus_per_worker": 2}, (8, 0), 2),  # the fewest workers count
        ({"gpus_per_worker": 1, "cpus_per_worker": 4}, (64, 3), 3),
        ({"gpus_per_worker": 1, "cpus_per_worker": 32}, (64, 3), 2),
        ({"gpus_per_worker": 0.1}, (64, 1), 10),
        ({"workers": 3}, (2, 0), 0),
    ],
)
def test_how_many_trials_fit_by_hand(resources: dict[str, Any], there: tuple[float, float], fits: int) -> None:
    asked = Resources(**resources, concurrent_trials=6)
    capacity = Capacity("this machine", *there)
    assert capacity.fits(asked) == fits and capacity.side_by_side(asked) == min(fits, 6)
    assert bool(capacity.shortage(asked)) == (fits == 0)


def test_more_trials_than_fit_are_not_promised(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("css_ray.study.cost._seconds_a_step", lambda *arguments: 10.0)
    file = study(data, splits=[0, 1, 2], resources={"concurrent_trials": 8})
    result = call("study", "plan", file)
    assert result.exit_code == 0, result.output
    # Two trials on three splits of 6 steps of 10 s, two at a time: 180 s.
    assert "2 trials x 3 splits = 6 runs, 36 steps" in result.output
    assert "each trial: 1 worker of 1 CPU; 2 trials side by side (8 asked for, the study has 2)" in result.output
    assert "about 3 min 00 s of training" in result.output
    assert "this machine: 2 CPU cores, 0 GPUs (no --address: Ray starts here)" in result.output
    holds(monkeypatch, Capacity("this machine", 1, 0))
    result = call("study", "plan", file)
    assert "1 trial side by side (8 asked for, this machine has 1 CPU core, 0 GPUs)" in result.output
    assert "about 6 min 00 s of training" in result.output
    assert "side by side\n" in call("study", "plan", file, "--set", "resources.concurrent_trials=1").output


def test_the_plan_lists_what_each_row_needs(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("css_ray.study.cost._seconds_a_step", lambda *arguments: 10.0)
    rows = [{"name": "supervised", "row": "a"}, {"name": "supervised", "row": "b"}, {"name": "cps", "row": "c"}]
    output = call("study", "plan", study(data, grid={"method": rows})).output
    alike, pair = [line.strip() for line in output.splitlines() if "of memory per worker" in line]
    assert alike.startswith("a, b: at least ") and pair.startswith("c: at least ")

    def checkpoint(line: str) -> float:
        number, unit = line.split("; ")[1].split(" per checkpoint")[0].split()
        return float(number) * {"MB": 1e6, "GB": 1e9}[unit]

    # CPS trains two networks of the size of the one of `supervised`; two digits are printed.
    assert checkpoint(pair) == pytest.approx(2 * checkpoint(alike), rel=0.06)
    assert alike.split(", ")[-1] == pair.split(", ")[-1]  # and evaluates one


def test_a_trial_that_does_not_fit_is_refused_with_the_other_problems(data: Path) -> None:
    file = study(data, resources={"cpus_per_worker": 3})
    for command in ("plan", "run"):
        said = refused("study", command, file, "--set", "data.labelled=401")
        assert "2 problems in small" in said
        assert "resources: a trial needs 3 CPU, but this machine has 2 CPU; lower resources.workers or" in said
    assert not Path("runs").exists()


def test_on_a_cluster_the_study_would_wait_for_nodes(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("css_ray.study.cost._seconds_a_step", lambda *arguments: 10.0)
    holds(monkeypatch, Capacity("the cluster at auto", 0, 0, nodes=1))
    result = call("study", "plan", study(data), "--address", "auto")
    assert result.exit_code == 0, result.output
    waits = "0 trials side by side (1 asked for, the cluster at auto has 0 CPU cores, 0 GPUs; the study would wait for nodes)"
    assert waits in result.output and "about 4 min 00 s of training" in result.output
    assert "the cluster at auto: 0 CPU cores, 0 GPUs on 1 node\n" in result.output


def test_no_cluster_is_one_sentence(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(address: str) -> Capacity:
        raise ConnectionError(f"no Ray cluster answers at {address}: refused")

    monkeypatch.setattr("css_ray.execution.session.capacity", none)
    assert refused("study", "plan", study(data), "--address", "auto") == "Error: no Ray cluster answers at auto: refused\n"


def test_a_plan_leaves_no_file(tmp_path: Path) -> None:
    file = study("data/digits")
    before = sorted(tmp_path.rglob("*"))
    result = call("study", "plan", file, "--no-measure")
    assert result.exit_code == 0, result.output
    assert sorted(tmp_path.rglob("*")) == before
    # What it looked at all the same: there are 400 training images.
    assert "401" in refused("study", "plan", file, "--no-measure", "--set", "data.labelled=401")
    Study.load(file).plan(measure=False)
    assert sorted(tmp_path.rglob("*")) == before


def test_the_classes_are_those_of_the_data_set(data: Path) -> None:
    settings = {"root": str(data), "num_classes": None}
    assert num_classes(settings) == 6
    assert num_classes({**settings, "num_classes": 9}) == 9
    assert num_classes({"root": "nowhere", "num_classes": None}) == ASSUMED_CLASSES
    assert num_classes({"root": "nothing://nowhere", "num_classes": None}) == ASSUMED_CLASSES


@pytest.mark.parametrize("known", [True, False])
def test_what_depends_on_classes_that_were_assumed_is_no_warning(data: Path, known: bool) -> None:
    """Eq. 5 at τ = 0.5 reaches 0.916 with the six classes of the digits, but only 0.732 with 21: δ_s = 0.8 lies between."""
    grid = {"method": [{"name": "css", "row": "lit", "preset": "paper", "num_queries": 8, "num_negatives": 8}]}
    result = call("study", "plan", study(data if known else "data/digits", grid=grid))
    assert result.exit_code == 0, result.output
    assert "out of reach" not in result.output and "warning" not in result.output.lower()


@pytest.mark.filterwarnings("default:valid_threshold")
def test_a_warning_of_pythons_is_shown_in_words(data: Path) -> None:
    """In a run by itself nothing but the method says that a threshold is out of reach."""
    css = {"name": "css", "similarity_temperature": 0.5, "valid_threshold": 0.95, "num_queries": 8, "num_negatives": 8}
    grid = {"method": [css]}
    result = call("train", study(data, grid=grid), "--device", "cpu")
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.output.splitlines() if "out of reach" in line]
    assert line.startswith("warning: valid_threshold 0.95 is out of reach") and "UserWarning" not in result.output


def test_trials_of_one_row_are_told_apart(data: Path) -> None:
    grid = {"data.labelled": [12, 24], "method": SPEC["grid"]["method"][:1]}
    output = call("study", "plan", study(data, grid=grid), "--no-measure").output
    assert "  trial 0: Sup., labelled=12\n  trial 1: Sup., labelled=24\n" in output


@pytest.mark.slow
def test_the_cores_are_those_that_ray_finds() -> None:
    import ray

    from css_ray.execution.ray_internals import machine_cpus

    ray.init(include_dashboard=False, log_to_driver=False)
    try:
        assert ray.cluster_resources()["CPU"] == machine_cpus()  # type: ignore[no-untyped-call]
    finally:
        ray.shutdown()
