"""What `ray up` reads, against Ray's own schema, and what must hold of it besides."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
FILES = ("cluster.yaml", "cluster/on-prem.yaml")


def load(name: str) -> dict[str, Any]:
    made: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return made


def commands(config: dict[str, Any]) -> list[str]:
    phases = ("setup_commands", "head_setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
    return [command for phase in phases for command in config[phase]]


def the(config: dict[str, Any], part: str) -> str:
    """The one command with `part` in it."""
    return the_one(commands(config), part)


def the_one(commands: list[str], part: str) -> str:
    (command,) = (command for command in commands if part in command)
    return command


def checked(config: dict[str, Any], home: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    from ray.autoscaler._private.util import prepare_config, validate_config

    monkeypatch.setenv("HOME", str(home))  # a local cluster's state is written there
    prepared: dict[str, Any] = prepare_config(config)
    validate_config(prepared)
    return prepared


def bash(command: str, home: Path, **environment: str) -> str:
    """What a command prints on a machine whose home is `home`. Raises CalledProcessError where it fails."""
    environment = {"HOME": str(home), "PATH": "/usr/bin:/bin"} | environment
    return subprocess.run(["/bin/bash", "-c", command], env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("name", FILES)
def test_rays_own_check_passes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checked(load(name), tmp_path, monkeypatch)


@pytest.mark.parametrize("name", FILES)
def test_rays_own_check_refuses_an_unknown_key(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Shows that the check above can fail.
    from jsonschema import ValidationError

    with pytest.raises(ValidationError, match="head_nod_type"):
        checked(load(name) | {"head_nod_type": "head"}, tmp_path, monkeypatch)


@pytest.mark.parametrize("name", FILES)
def test_the_commands_are_bash(name: str) -> None:
    for command in commands(load(name)):
        ended = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
        assert ended.returncode == 0, f"{command}\n{ended.stderr}"
    assert subprocess.run(["bash", "-n", "-c", "if true; then"], capture_output=True).returncode != 0


@pytest.mark.parametrize("name", FILES)
def test_the_token_is_on_and_the_doors_are_shut(name: str) -> None:
    config = load(name)
    starts = [command for command in commands(config) if "ray start" in command]
    assert len(starts) == 2
    for start in starts:
        assert re.search(r"RAY_AUTH_MODE=token\b.*\bray start", start, re.DOTALL), start
    assert "~/.ray/auth_token" in config["file_mounts"]
    (head,) = (start for start in starts if "--head" in start)
    assert "--dashboard-host=127.0.0.1" in head


def test_the_nodes_get_what_the_installation_needs_and_nothing_that_changes_by_itself() -> None:
    """`ray up` reads every file below a mount, whatever rsync leaves out, and sets all nodes up anew when one has changed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {
        "pyproject.toml",
        "constraints.txt",
        "cluster",
        project["project"]["readme"],
        *project["project"]["license-files"],
    }
    needed |= {project["tool"]["setuptools"]["package-dir"].get(name, name) for name in ("css_ray", "css_ray_cli")}
    for name in FILES:
        mounts = load(name)["file_mounts"]
        assert mounts.pop("~/.ray/auth_token") == "~/.ray/auth_token"
        assert set(mounts.values()) == needed
        assert mounts == {f"~/css-ray/{source}": source for source in needed}
        assert all((ROOT / source).exists() for source in needed)


def test_a_lab_uses_all_its_machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load("cluster/on-prem.yaml")
    config["provider"]["worker_ips"] = [f"10.0.0.{number}" for number in range(2, 9)]
    (workers,) = checked(config, tmp_path, monkeypatch)["available_node_types"].values()
    assert workers["min_workers"] == workers["max_workers"] == 7


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("before", [None, "", "case $- in *i*) ;; *) return;; esac\nalias ll='ls -l'\n"])
def test_each_shell_finds_ray_and_the_token_mode(name: str, before: str | None, tmp_path: Path) -> None:
    """Ubuntu's .bashrc ends at once where a shell is not interactive, so the line must be the first; and stand there once."""
    file, command = tmp_path / ".bashrc", the(load(name), ".bashrc")
    if before is not None:
        file.write_text(before)
    bash(command, tmp_path)
    bash(command, tmp_path)
    assert file.read_text().splitlines()[0] == "source ~/venv/bin/activate; export RAY_AUTH_MODE=token"
    assert file.read_text().count("activate") == 1 and (before or "") in file.read_text()


@pytest.mark.parametrize("name", FILES)
def test_mlflow_is_asked_under_the_address_that_it_answers_for(name: str, tmp_path: Path) -> None:
    """The head's commands, with stand-ins for what they start, on a head with two addresses."""
    config = load(name)
    head = config["provider"].get("head_ip", "172.31.7.7")
    (tmp_path / "ray_bootstrap_config.yaml").write_text(json.dumps(config))  # as `ray up` leaves it on the head
    for program in ("ray", "bash"):
        (tmp_path / program).write_text('#!/bin/sh\necho "$MLFLOW_TRACKING_URI" "$RAY_AUTH_MODE" "$@"\n')
    (tmp_path / "hostname").write_text("#!/bin/sh\necho '172.31.7.7 192.168.200.1 fe80::1 '\n")
    for program in ("ray", "bash", "hostname"):
        (tmp_path / program).chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"
    script, listen, answers_for, artifacts = bash(the(config, "start-mlflow.sh"), tmp_path, PATH=path).split()
    assert script == f"{tmp_path}/css-ray/cluster/start-mlflow.sh" and artifacts.startswith("/mnt/shared/")
    assert answers_for == head
    # A lab's machine may have a card to the world as well.
    assert listen == (head if name == "cluster/on-prem.yaml" else "0.0.0.0")
    uri, mode, *started = bash(the(config, "ray start --head"), tmp_path, PATH=path).split()
    assert (uri, mode, started[:2]) == (f"http://{head}:5000", "token", ["start", "--head"])


@pytest.mark.parametrize("name", FILES)
def test_rays_folder_lies_in_one_that_was_shut_to_others_before(name: str) -> None:
    config = load(name)
    for phase in ("head_start_ray_commands", "worker_start_ray_commands"):
        script, start = (config[phase].index(the_one(config[phase], part)) for part in ("private-folder.sh", "ray start"))
        assert script < start
        assert "--temp-dir=/tmp/css-ray-$(id -u)/ray" in config[phase][start]


def test_the_private_folder_of_a_cluster_is_where_css_ray_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from css_ray.temporary import private_folder

    script = (ROOT / "cluster" / "private-folder.sh").read_text().replace("/tmp/", f"{tmp_path}/")
    folder = tmp_path / f"css-ray-{os.getuid()}"
    for _ in range(2):
        bash(script, tmp_path)
        assert folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.setattr("css_ray.temporary._LONGEST", 1000)
    assert private_folder(str(tmp_path)) == folder
    folder.chmod(0o777)
    with pytest.raises(subprocess.CalledProcessError) as caught:
        bash(script, tmp_path)
    assert f"{folder} is not a folder that only" in caught.value.stderr
    assert private_folder(str(tmp_path)) != folder
    shutil.rmtree(folder)
    (tmp_path / "theirs").mkdir(mode=0o700)
    folder.symlink_to(tmp_path / "theirs")
    with pytest.raises(subprocess.CalledProcessError):
        bash(script, tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_no_secret_stands_in_the_file(name: str) -> None:
    text = (ROOT / name).read_text()
    assert not re.search(r"AKIA|aws_secret|password\s*[:=]\s*\S|://[^/\s]+:[^/\s]+@", text, re.IGNORECASE)


def test_gpu_machines_come_from_zero() -> None:
    gpu = load("cluster.yaml")["available_node_types"]["gpu"]
    assert gpu["min_workers"] == 0 and gpu["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert load("cluster.yaml")["available_node_types"]["head"]["resources"]["CPU"] == 0


@pytest.mark.parametrize("name", FILES)
def test_what_must_be_chosen_is_marked(name: str) -> None:
    """Values that only a user can know are marked on their line."""
    lines = (ROOT / name).read_text().splitlines()
    for line in (line for line in lines if not line.startswith("#")):
        if re.search(r"ami-0{8}|fs-0{8}|_ips?: .*10\.0\.0|ssh_private_key:|region:|max_workers:", line):
            assert "CHOOSE" in line, line


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "change",
    [
        lambda config: config["file_mounts"].pop("~/.ray/auth_token"),
        lambda config: config["worker_start_ray_commands"].append("ray start --address=$RAY_HEAD_IP:6379"),
        lambda config: config.update(worker_start_ray_commands=["ray start --address=$RAY_HEAD_IP:6379"]),
        lambda config: config["head_start_ray_commands"].append(
            config["head_start_ray_commands"].pop().replace("127.0.0.1", "0.0.0.0")
        ),
    ],
)
def test_an_open_door_is_found(name: str, change: Callable[[dict[str, Any]], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(name)
    change(config)
    monkeypatch.setitem(globals(), "load", lambda name: config)
    with pytest.raises(AssertionError):
        test_the_token_is_on_and_the_doors_are_shut(name)
