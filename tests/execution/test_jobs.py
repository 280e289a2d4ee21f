"""Studies for a cluster, without one: what is refused before anything travels, what travels, and drivers that die."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from css_ray.execution import jobs, nodes
from css_ray.execution.address import is_jobs_address
from css_ray.execution.jobs import Cluster, ClusterError
from css_ray.execution.nodes import Node, Report
from css_ray.study.code import code_version, copy_code
from css_ray.study.definition import StudyError, parse
from tests.places import SPEC

NOBODY = "http://127.0.0.1:9"


def spec(**data: Any) -> dict[str, Any]:
    made: dict[str, Any] = json.loads(json.dumps(SPEC))
    made["data"] |= {"root": "/mnt/shared/digits", **data}
    return made


def call(*arguments: str) -> tuple[int, str]:
    from css_ray_cli.main import main

    result = CliRunner().invoke(main, list(arguments))
    return result.exit_code, result.output


def test_which_addresses_are_dashboards() -> None:
    assert is_jobs_address("http://head:8265") and is_jobs_address("https://head")
    assert not any(map(is_jobs_address, (None, "auto", "10.0.0.1:6379", "ray://head:10001")))


def test_a_cluster_that_does_not_answer(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(spec()))
    for arguments in (
        ["submit", str(tmp_path / "study.yaml"), "--storage", "/mnt/shared/studies"],
        ["resume", "small", "--storage", "/mnt/shared/studies"],
        ["status", "small"],
        ["list"],
        ["logs", "small"],
        ["stop", "small"],
    ):
        code, output = call("study", *arguments, "--address", NOBODY)
        assert code == 1 and "no dashboard answers at http://127.0.0.1:9" in output, output
        assert "Traceback" not in output


def test_a_dashboard_is_no_place_to_run_from(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(spec()))
    code, output = call("study", "run", str(tmp_path / "study.yaml"), "--address", NOBODY)
    assert code == 2 and "study submit" in output
    code, output = call("study", "submit", str(tmp_path / "study.yaml"), "--address", "10.0.0.1:6379", "--storage", "/s")
    assert code == 2 and "http://127.0.0.1:8265" in output


class Silent(Cluster):
    """A cluster that no test asks for anything."""

    def __init__(self) -> None:
        self.address = NOBODY


def test_paths_that_mean_nothing_elsewhere_are_refused_all_at_once() -> None:
    study = parse(spec(root="data/digits", labelled_list="lists/{labelled}/{split}.txt"))
    with pytest.raises(StudyError) as caught:
        Silent().submit(study, "runs")
    assert len(caught.value.problems) == 3
    told = str(caught.value)
    assert "data.root: data/digits is a path of this machine" in told and "--set data.root=/mnt/shared/digits" in told
    assert "data.labelled_list: lists/{labelled}/{split}.txt" in told
    assert "--storage: runs is a path of this machine" in told


def test_an_override_with_a_secret_is_refused() -> None:
    with pytest.raises(StudyError) as caught:
        Silent().submit("mine", "/mnt/shared/studies", ["splits=[0]", "tracking.uri=http://ann:s3cret@mlflow:5000"])
    (problem,) = caught.value.problems
    assert str(problem).startswith("--set tracking.uri: http://mlflow:5000 contains credentials (a user or a password); ")
    assert "s3cret" not in str(caught.value)


def test_a_job_waits_for_the_agent_of_a_head_that_has_just_started(monkeypatch: pytest.MonkeyPatch) -> None:
    told = "Request failed with status code 500: No available agent to submit job, please try again later."
    answers: list[Exception | None] = [RuntimeError(told), RuntimeError(told), None]
    asked: list[str] = []

    class Client:
        def submit_job(self, submission_id: str, **settings: Any) -> None:
            asked.append(submission_id)
            if (answer := answers.pop(0)) is not None:
                raise answer

    cluster = Silent()
    cluster._client = Client()  # type: ignore[assignment]
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert cluster._start("job-1", ["cluster", "check"], None, {}) == "job-1"
    assert asked == ["job-1"] * 3
    for error, tries in ((RuntimeError("Request failed with status code 500: no"), 1), (RuntimeError(told), 2)):
        answers[:], asked[:] = [error] * 5, []
        monkeypatch.setattr(jobs, "AGENT_SECONDS", -1.0 if tries == 1 else 0.0)
        with pytest.raises(ClusterError, match="status code 500"):
            cluster._start("job-2", ["cluster", "check"], None, {})
        assert len(asked) <= tries


def test_the_code_that_travels_is_the_code_that_runs_here(tmp_path: Path) -> None:
    copy_code(tmp_path)
    assert not list(tmp_path.rglob("__pycache__"))
    program = "from css_ray.study import code; print(code.__file__, code.code_version())"

    def there() -> list[str]:
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            [sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
        ).stdout.split()

    place, version = there()
    assert place.startswith(str(tmp_path)) and version == code_version()
    with (tmp_path / "css_ray" / "views.py").open("a") as file:
        file.write("#\n")
    assert there()[1] != code_version()


def test_a_node_with_other_code_does_not_drive(tmp_path: Path) -> None:
    code, output = call("study", "drive", "--name", "small", "--storage", str(tmp_path), "--code", "0.0.1+abc")
    assert code == 2 and "0.0.1+abc was submitted" in output and code_version() in output


# -------------------------------------------------------------------------------------------------------- drivers that die


DRIVER = """
import json, os, pathlib, signal, sys, time
folder, deeds = pathlib.Path(sys.argv[1]), sys.argv[2]
FIELDS = {
    "study_started": {"study": "small", "study_id": "x", "spec": {}, "versions": {}},
    "trial_retried": {"trial": 0, "reason": "it died"},
    "study_finished": {"status": "finished", "best_trial": None},
}
turn = len(list(folder.glob("turn-*")))
(folder / f"turn-{turn}").write_text(sys.argv[3])
for deed in deeds.split("|")[turn].split():
    if deed.startswith("tell="):
        with (folder / "journal.jsonl").open("a") as file:
            file.write(json.dumps({"event": deed[5:], "time": time.time(), **FIELDS[deed[5:]]}) + "\\n")
    elif deed == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif deed == "wait":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
        (folder / "waiting").touch()
        time.sleep(60)
    else:
        sys.exit(int(deed))
"""


def driven(folder: Path, deeds: str) -> tuple[int, list[str]]:
    """Drivers that do, life by life, what `deeds` says; the exit code, and how each was called."""
    (folder / "driver.py").write_text(DRIVER)
    command = [sys.executable, str(folder / "driver.py"), str(folder), deeds]
    program = (
        "import sys, json; from css_ray.execution.jobs import keep_driving;"
        "command = json.loads(sys.argv[1]);"
        "sys.exit(keep_driving([*command, 'run'], [*command, 'resume'], sys.argv[2]))"
    )
    keeper = subprocess.Popen([sys.executable, "-c", program, json.dumps(command), str(folder)])
    if "wait" in deeds:
        limit = time.monotonic() + 60
        while not (folder / "waiting").exists():
            assert time.monotonic() < limit
            time.sleep(0.05)
        # As Ray does: the keeper and its driver at once.
        for process in (keeper.pid, int(subprocess.check_output(["pgrep", "-P", str(keeper.pid)], text=True))):
            os.kill(process, signal.SIGTERM)
    code = keeper.wait(timeout=120)
    return code, [(folder / f"turn-{turn}").read_text() for turn in range(len(list(folder.glob("turn-*"))))]


def test_a_driver_that_dies_is_followed_by_another(tmp_path: Path) -> None:
    deeds = "tell=study_started die|tell=trial_retried 1|tell=study_finished 0"
    assert driven(tmp_path, deeds) == (0, ["run", "resume", "resume"])


def test_a_study_that_ended_is_not_driven_again(tmp_path: Path) -> None:
    # Code 1 says that some runs failed; the journal says that this is all.
    assert driven(tmp_path, "tell=study_started tell=study_finished 1") == (1, ["run"])


def test_bad_input_is_not_tried_again(tmp_path: Path) -> None:
    assert driven(tmp_path, "2") == (2, ["run"])


def test_a_driver_that_dies_before_its_first_event_begins_again(tmp_path: Path) -> None:
    assert driven(tmp_path, "die|tell=study_started tell=study_finished 0") == (0, ["run", "run"])


def test_drivers_that_get_nowhere_are_given_up(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, calls = driven(tmp_path, "tell=study_started 1|1|1|1|1|1")
    assert code == 1 and calls == ["run", "resume", "resume", "resume"]
    assert "giving up" in capfd.readouterr().out


def test_a_driver_that_is_stopped_stays_stopped(tmp_path: Path) -> None:
    assert driven(tmp_path, "tell=study_started wait") == (130, ["run"])


# ----------------------------------------------------------------------------------------------------- what a check compares


def node(address: str, **changes: Any) -> Node:
    facts: dict[str, Any] = {
        "id": address,
        "host": address,
        "address": address,
        "cpus": 4.0,
        "gpus": (),
        "python": "3.12.1",
        "code": code_version(),
        "versions": {name: "1.0" for name in nodes.PACKAGES},
        "clock": (0.001, 0.002),
    }
    return Node(**(facts | changes))


def compared(*there: Node) -> Report:
    report = Report(nodes=list(there))
    nodes._compare(report)
    return report


def test_nodes_that_are_alike_pass() -> None:
    report = compared(node("10.0.0.1"), node("10.0.0.2"))
    assert report.problems == []
    assert any("torch 1.0" in line and "python 3.12.1" in line for line in report.passed)
    assert "clocks within 0.00 s of this machine's" in report.passed


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        ({"code": "0.0.9+abc"}, ["10.0.0.3 has 0.0.9+abc", "study submit"]),
        ({"python": "3.11.2"}, ["python: 3.12.1 on most nodes, 3.11.2 on 10.0.0.3", "constraints.txt"]),
        ({"versions": {name: "1.0" for name in nodes.PACKAGES} | {"torch": "missing"}}, ["torch", "missing on 10.0.0.3"]),
        ({"clock": (-7.5, 0.1)}, ["10.0.0.3 is 7.5 s off", "chrony"]),
    ],
)
def test_a_node_that_is_unlike_the_others_is_named(odd: dict[str, Any], words: list[str]) -> None:
    (problem,) = compared(node("10.0.0.1"), node("10.0.0.2"), node("10.0.0.3", **odd)).problems
    assert all(word in problem for word in words), problem


def test_a_clock_is_not_blamed_for_a_slow_answer() -> None:
    assert compared(node("10.0.0.1", clock=(5.5, 1.0))).problems == []


# ------------------------------------------------------------------------------------------------------------------- the token


@pytest.mark.parametrize(
    ("before", "given", "mode"),
    [
        ("", {}, "None"),
        ("", {"RAY_AUTH_TOKEN": "0" * 64}, "token"),
        ("", {"RAY_AUTH_TOKEN_PATH": "FILE"}, "token"),
        ("", {"RAY_AUTH_TOKEN_PATH": "FILE", "RAY_AUTH_MODE": "disabled"}, "disabled"),
        ("import ray;", {"RAY_AUTH_TOKEN_PATH": "FILE"}, "None"),  # too late: Ray has asked
    ],
)
def test_a_token_that_is_there_is_used(before: str, given: dict[str, str], mode: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0" * 64)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    environment |= {"HOME": str(tmp_path)} | {
        name: value.replace("FILE", str(tmp_path / "token")) for name, value in given.items()
    }
    program = f"{before}import os, css_ray.execution; print(os.environ.get('RAY_AUTH_MODE'))"
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == mode


def test_what_knows_no_ray_shows_no_token() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    program = (
        "import os, sys, css_ray.api, css_ray.study.driver, css_ray.study.preflight\n"
        "print('RAY_AUTH_MODE' in os.environ, 'ray' in sys.modules)"
    )
    environment["RAY_AUTH_TOKEN"] = "0" * 64
    ended = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False False"
