"""Studies on clusters of several nodes, and from afar: the same tables as on one machine, whatever dies."""

from __future__ import annotations

import configparser
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.workloads.nodes import HEAD, LocalCluster, can_hide
from css_ray.study.code import code_version, copy_code
from tests.places import Place, check_same, evaluations, runs_finished

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A head and two nodes."""
    cluster = LocalCluster(tmp_path_factory.mktemp("cluster"))
    try:
        cluster.start(2)
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def far(place: Place, cluster: LocalCluster) -> Place:
    """A place whose processes may enter the cluster."""
    place.environment |= {key: cluster.environment[key] for key in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")}
    return place


def drivers(cluster: LocalCluster, name: str) -> list[int]:
    """The processes on the cluster that drive the study, not those that start them anew."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if "-m css_ray_cli study r" in title and cluster.address in title and name in title:
            found.append(int(entry.name))
    return found


def finished(events: list[dict[str, Any]]) -> bool:
    return any(event["event"] == "study_finished" for event in events)


def wait_far(far: Place, cluster: LocalCluster, condition: Callable[[list[dict[str, Any]]], bool]) -> None:
    """Until the journal of a submitted study satisfies `condition`; says what its driver printed where it does not."""
    limit = time.monotonic() + 240
    while not condition(far.events()):
        if time.monotonic() > limit:
            _, output = far.call("study", "logs", "small", "--address", cluster.dashboard)
            pytest.fail(f"the study stands still: {far.events()[-1]}\n{output}\n{cluster.last_words()}")
        time.sleep(0.1)


def test_a_submitted_study_survives_its_driver_its_client_and_a_node(
    far: Place, cluster: LocalCluster, undisturbed: Place
) -> None:
    at = ["--address", cluster.dashboard]
    storage = far.environment["CSS_RAY_STORAGE"]
    # The right door, the wrong key.
    wrong = far.folder / "wrong"
    wrong.write_text("0" * 64)
    right = far.environment["RAY_AUTH_TOKEN_PATH"]
    far.environment["RAY_AUTH_TOKEN_PATH"] = str(wrong)
    code, output = far.call("study", "submit", str(far.file), *at)
    assert code == 1 and "did not accept the token" in output and "auth_token" in output, output
    far.environment["RAY_AUTH_TOKEN_PATH"] = right
    # The client is killed while it follows the study.
    client = far.start("study", "submit", str(far.file), *at, "--follow")
    far.wait_for(lambda events: evaluations(events) >= 1, client)
    client.kill()
    client.wait()
    code, output = far.call("study", "submit", str(far.file), *at)
    assert code == 1 and "is at work already" in output, output
    # A node is lost, and comes back; the driver is killed.
    cluster.kill("127.0.0.4")
    (driver,) = drivers(cluster, "study.yaml")
    before = evaluations(far.events())
    wait_far(far, cluster, lambda events: evaluations(events) > before)
    os.kill(driver, signal.SIGKILL)
    cluster.add(2)
    wait_far(far, cluster, finished)
    cluster.wait(lambda: not drivers(cluster, "small"), "the driver to end")
    check_same(far, undisturbed)
    code, output = far.call("study", "logs", "small", *at)
    assert code == 0 and "was killed by signal 9; another one continues" in output, output
    code, output = far.call("study", "status", "small", *at)
    assert code == 0 and "succeeded" in output and "trials 3/3" in output, output
    assert "_pkg_" not in output and "Running entrypoint" not in output
    code, output = far.call("study", "list", *at)
    assert code == 0 and "succeeded" in output and storage in output
    assert any(event["event"] == "study_resumed" for event in far.events())


@pytest.mark.long
def test_two_studies_at_once_one_is_stopped_and_goes_on(
    far: Place, cluster: LocalCluster, data: Path, undisturbed: Place, tmp_path: Path
) -> None:
    at = ["--address", cluster.dashboard]
    (tmp_path / "other").mkdir()
    other = Place(tmp_path / "other", data)
    other.environment |= {key: far.environment[key] for key in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")}
    other.file.write_text(other.file.read_text().replace("study: small", "study: wide"))
    # Of one worker each, and of two on two nodes.
    sets = ["resources.workers=2", "resources.concurrent_trials=1", "search=null", "train.iterations=400"]
    code, output = far.call("study", "submit", str(far.file), *at)
    assert code == 0, output
    wide = other.start(
        "study", "run", str(other.file), "--address", cluster.address, *(part for each in sets for part in ("--set", each))
    )
    wait_far(far, cluster, lambda events: evaluations(events) >= 1)
    started = time.monotonic()
    code, output = far.call("study", "stop", "small", *at)
    assert code == 0 and "study resume small" in output, output
    assert time.monotonic() - started < 60
    assert far.events()[-1]["event"] == "study_interrupted", far.call("study", "logs", "small", *at)[1]
    assert not drivers(cluster, "small")
    done = runs_finished(far.events())
    printed, _ = wide.communicate(timeout=400)
    assert wide.returncode == 0, printed
    (row,) = read_table(other, "wide")
    assert row["n"] == "2"
    assert done < 6
    code, output = far.call("study", "resume", "small", *at)
    assert code == 0 and "submitted" in output, output
    wait_far(far, cluster, finished)
    cluster.wait(lambda: not drivers(cluster, "small"), "the driver to end")
    check_same(far, undisturbed)


@pytest.mark.long
def test_a_head_that_dies_is_started_again_and_the_study_resumes(far: Place, cluster: LocalCluster, undisturbed: Place) -> None:
    driver = far.start("study", "run", str(far.file), "--address", cluster.address)
    far.wait_for(lambda events: evaluations(events) >= 3, driver)
    for address in list(cluster.processes):
        cluster.kill(address)  # the nodes go with their head
    output, _ = driver.communicate(timeout=400)
    assert driver.returncode != 0, output
    cluster.start(2)
    code, output = far.call("study", "resume", "small", "--address", cluster.address)
    assert code == 0, output
    check_same(far, undisturbed)


@pytest.mark.long
def test_a_trial_goes_on_with_as_many_workers_as_there_are(far: Place, cluster: LocalCluster) -> None:
    sets = ["resources.workers=[1,2]", "resources.concurrent_trials=1", "search=null", "train.iterations=200"]
    sets.append("trials=[{method: {name: mean_teacher, row: MT}}, {method: {name: cutmix, row: CutMix}}]")
    driver = far.start(
        "study", "run", str(far.file), "--address", cluster.address, *(part for each in sets for part in ("--set", each))
    )
    far.wait_for(lambda events: evaluations(events) >= 2, driver)
    cluster.kill("127.0.0.4")
    far.wait_for(lambda events: runs_finished(events) >= 1, driver)
    cluster.add(2)
    output, _ = driver.communicate(timeout=400)
    assert driver.returncode == 0, output
    events = far.events()
    sizes = [(event["trial"], event["split"], event["workers"]) for event in events if "workers" in event]
    assert sizes[:2] == [(0, 0, 2), (0, 0, 1)]
    (resized,) = (event for event in events if event["event"] == "run_resized")
    assert resized["before"] == 2 and resized["reason"].endswith("on 1 workers train it, 2 did before")
    assert sizes[-1] == (2, 1, 2)  # the last trial found the node again
    steps = [
        event["step"] for event in events if event["event"] == "run_evaluated" and (event["trial"], event["split"]) == (0, 0)
    ]
    assert steps == list(range(10, 201, 10))
    assert [event["status"] for event in events if event["event"] == "trial_finished"] == ["finished"] * 3
    # One worker's share of the batch is twice as large, the schedule the same: the learning rate at each step is that of a
    # trial which had two.
    rates = {
        trial: [event["metrics"]["train/lr"] for event in events if event["event"] == "run_logged" and event["trial"] == trial]
        for trial in (0, 2)
    }
    assert sorted(rates[0]) == sorted(rates[2])


@pytest.mark.long
def test_a_cluster_is_checked_node_by_node(far: Place, cluster: LocalCluster) -> None:
    shared = far.folder / "shared"
    code, output = far.call("cluster", "check", "--address", cluster.address, "--storage", str(shared))
    assert code == 0, output
    assert f"css-ray {code_version()} on all nodes" in output
    assert f"all-reduce {HEAD} – 127.0.0.3" in output and "GB/s" in output
    assert "each node writes, and reads what the others wrote" in output
    assert list(shared.iterdir()) == []
    code, output = far.call("cluster", "check", "--address", cluster.dashboard, "--storage", str(shared))
    assert code == 0 and "each node writes" in output and "Running entrypoint" not in output, output
    # A node with other code, and an MLflow server that is not there.
    odd = far.folder / "odd"
    copy_code(odd)
    with (odd / "css_ray" / "types.py").open("a") as file:
        file.write("\n# edited\n")
    address = cluster.add(3, PYTHONPATH=str(odd))
    try:
        code, output = far.call(
            "cluster", "check", "--address", cluster.address, "--tracking-uri", "http://ann:s3cret@127.0.0.1:9"
        )
        assert code == 1 and "s3cret" not in output
        assert f"{address} has 0.1.0+" in output and "install the same there" in output, output
        assert "does not reach http://127.0.0.1:9" in output
        code, output = far.call("study", "run", str(far.file), "--address", cluster.address)
        assert code == 2 and f"node {address}" in output and "All nodes must run the same" in output, output
        assert far.events() == []
    finally:
        cluster.kill(address)
    # MLflow as a head runs it, behind a password.
    home = far.folder / "home"
    home.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = Path(__file__).parents[2] / "cluster" / "start-mlflow.sh"
    environment = {"HOME": str(home), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["bash", str(script), "127.0.0.1", "127.0.0.1", str(far.folder / "artifacts"), str(port)]
    subprocess.run(command, env=environment, check=True, timeout=250)
    try:
        at = ["--address", cluster.address, "--tracking-uri", f"http://127.0.0.1:{port}"]
        code, output = far.call("cluster", "check", *at)
        assert code == 1 and "does not take the user and the password; give its own by" in output, output
        credentials = configparser.ConfigParser()
        credentials.read(home / ".mlflow" / "credentials")
        far.environment |= {name.upper(): value for name, value in credentials["mlflow"].items()}
        code, output = far.call("cluster", "check", *at)
        assert code == 0 and f"mlflow at http://127.0.0.1:{port} answers each node, and takes the password" in output, output
    finally:
        os.killpg(int((home / "mlflow" / "pid").read_text()), signal.SIGKILL)


@pytest.mark.long
def test_the_data_is_copied_once_to_each_node(
    far: Place, cluster: LocalCluster, data: Path, undisturbed: Place, tmp_path: Path
) -> None:
    caches = {number: tmp_path / f"cache-{number}" for number in (1, 2)}
    for number in caches:
        cluster.kill(f"127.0.0.{2 + number}")
    for number, cache in caches.items():
        cluster.add(number, CSS_RAY_CACHE=str(cache))
    far.environment["CSS_RAY_CACHE"] = str(tmp_path / "cache-driver")
    shutil.copytree(data, tmp_path / "remote")
    remote = f"data.root={(tmp_path / 'remote').as_uri()}"
    code, output = far.call("study", "run", str(far.file), "--address", cluster.address, "--set", remote)
    assert code == 0, output
    check_same(far, undisturbed)
    for cache in caches.values():
        (copy,) = (folder for folder in cache.iterdir() if (folder / "dataset.json").is_file())
        assert (copy / "dataset.json").read_bytes() == (data / "dataset.json").read_bytes()


@pytest.mark.long
@pytest.mark.skipif(not can_hide(), reason="this user may not mount, so nodes of one machine see all of it")
def test_nodes_need_nothing_of_the_drivers_machine_but_the_storage_and_the_data(
    far: Place, cluster: LocalCluster, undisturbed: Place, tmp_path: Path
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    (temporary / "mark").touch()
    head = Path(cluster.scratch) / HEAD.rpartition(".")[2]
    for number in (1, 2):
        address = f"127.0.0.{2 + number}"
        cluster.kill(address)
        cluster.add(number, hidden=[temporary, head])
        there = Path(f"/proc/{cluster.processes[address].pid}/root")
        assert list((there / temporary.relative_to("/")).iterdir()) == list((there / head.relative_to("/")).iterdir()) == []
    far.environment["TMPDIR"] = str(temporary)
    code, output = far.call("study", "run", str(far.file), "--address", cluster.address)
    assert code == 0, output
    check_same(far, undisturbed)


def read_table(place: Place, name: str) -> list[dict[str, Any]]:
    import csv
    import io

    code, output = place.call("study", "table", name, "--format", "csv")
    assert code == 0, output
    return list(csv.DictReader(io.StringIO(output.strip())))
