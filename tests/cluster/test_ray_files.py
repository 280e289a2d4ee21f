"""What `ray up` reads, against Ray's own schema, and what must hold of it besides."""

from __future__ import annotations

import re
import subprocess
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
    return [*config["setup_commands"], *config["head_start_ray_commands"], *config["worker_start_ray_commands"]]


def checked(config: dict[str, Any], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    monkeypatch.setenv("HOME", str(home))  # a local cluster's state is written there
    validate_config(prepare_config(config))


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
    (mlflow,) = (command for command in commands(config) if "mlflow server" in command)
    (allowed,) = re.findall(r'--allowed-hosts "([^"]*)"', mlflow)
    assert allowed.split(",") == ["localhost:5000", "127.0.0.1:5000", "$IP:5000"]
    assert "disable-security" not in mlflow


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
    for line in (ROOT / name).read_text().splitlines():
        if re.search(r"ami-0{8}|fs-0{8}|10\.0\.0\.\d|ssh_private_key:|region:|storageClassName", line):
            assert "CHOOSE" in line, line
