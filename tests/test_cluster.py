"""cluster.yaml against Ray's own schema."""

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent


def load() -> dict:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


def test_cluster_file_passes_rays_own_check() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(load()))


def test_rays_check_refuses_an_unknown_key() -> None:
    # Shows that the check above can fail.
    from jsonschema import ValidationError
    from ray.autoscaler._private.util import prepare_config, validate_config

    with pytest.raises(ValidationError, match="head_nod_type"):
        validate_config(prepare_config(load() | {"head_nod_type": "head"}))


def test_nothing_listens_beyond_loopback_and_the_token_is_on() -> None:
    config = load()
    commands = ";".join(config["head_start_ray_commands"] + config["worker_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in commands
    assert "mlflow server --host 127.0.0.1" in commands
    assert all("RAY_AUTH_MODE=token" in command for command in commands.split(";") if "ray start" in command)
    assert "~/.ray/auth_token" in config["file_mounts"]
