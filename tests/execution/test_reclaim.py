"""Cores that dead trials hold are given back, and nobody else's."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

# An actor makes a placement group of one core. A detached actor outlives its job, as one does of whose death Ray did not hear.
PREPARE = """
import json, logging, sys, time
from css_ray.execution.reclaim import driver_config, reclaim
import ray
from ray.util.placement_group import placement_group

@ray.remote(num_cpus=0)
class Controller:
    def hold(self):
        self.group = placement_group([{"CPU": 1}])
        ray.get(self.group.ready(), timeout=60)

def join(address, job_config):
    ray.init(address=address, job_config=job_config, log_to_driver=False, logging_level=logging.ERROR, namespace="test")

def hold(name, lifetime=None):
    controller = Controller.options(name=name, lifetime=lifetime).remote()
    ray.get(controller.hold.remote())
    return controller
"""

OTHER = PREPARE + "join(sys.argv[1], driver_config() if sys.argv[2] == 'driver' else None); hold(sys.argv[2], 'detached')"

DRIVER = (
    PREPARE
    + """
import subprocess
ray.init(num_cpus=8, job_config=driver_config(), log_to_driver=False, logging_level=logging.ERROR, namespace="test")

def free(at_least):
    limit = time.monotonic() + 30
    while (cores := ray.available_resources().get("CPU", 0)) < at_least and time.monotonic() < limit:
        time.sleep(0.1)
    return cores

address, told = ray.get_runtime_context().gcs_address, []
living, dying, own = hold("living"), hold("dying"), placement_group([{"CPU": 1}])
ray.get(own.ready(), timeout=60)
for kind in ("driver", "stranger"):
    subprocess.run([sys.executable, "-c", sys.argv[1], address, kind], check=True)
told.append(free(3))
ray.kill(dying)
time.sleep(2)
told.append(free(3))  # Ray leaves it held
told.append(reclaim())
told.append(free(5))
told.append(reclaim())
print(json.dumps(told))
"""
)


def test_only_what_dead_trials_of_studies_hold_is_given_back() -> None:
    ended = subprocess.run([sys.executable, "-c", DRIVER, OTHER], capture_output=True, text=True, timeout=200)
    assert ended.returncode == 0, ended.stderr
    # Of eight cores four actors and the driver itself hold five; those of the dead actor and of the dead driver come back.
    assert json.loads(ended.stdout.splitlines()[-1]) == [3.0, 3.0, 2, 5.0, 0]
