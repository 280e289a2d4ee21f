"""Each private name of Ray that we touch is where we look for it, and does what we need of it: read this after an upgrade of Ray."""

from __future__ import annotations

import ast
import importlib
import logging
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.placement_group import placement_group, placement_group_table

from css_ray.execution import ray_internals
from css_ray.execution.reclaim import DRIVER, driver_config

SOURCE = Path(ray_internals.__file__)

IMPORTED = [
    f"{node.module}:{alias.name}"
    for node in ast.walk(ast.parse(SOURCE.read_text()))
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ray.")
    for alias in node.names
] + ["ray.dashboard.optional_deps:"]

USED = [
    "ray:ActorID.is_nil",
    "ray:PlacementGroupID",
    "ray._private.state:state._connect_and_get_accessor",
    "ray._raylet:GlobalStateAccessor.get_job_table",
    "ray._raylet:GlobalStateAccessor.get_placement_group_table",
    "ray.core.generated.gcs_pb2:PlacementGroupTableData.REMOVED",
    "ray.core.generated.gcs_pb2:JobTableData.FromString",
    "ray.train.v2.api.data_parallel_trainer:DataParallelTrainer._create_default_callbacks",
    "ray.train.v2._internal.callbacks.datasets:DatasetsCallback",
    "ray.util.queue:_QueueActor.put_nowait",
]
"""Of what is imported, the attributes that are used."""


@pytest.mark.parametrize("name", [*IMPORTED, *USED])
def test_a_private_name_is_where_we_look_for_it(name: str) -> None:
    module, _, attributes = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for attribute in filter(None, attributes.split(".")):
            found = getattr(found, attribute)
    except (ImportError, AttributeError):
        pytest.fail(f"{name.replace(':', '.').rstrip('.')} has moved: see css_ray/execution/ray_internals.py", pytrace=False)


@pytest.mark.parametrize("name", ray_internals.QUIET_LOGGERS)
def test_a_logger_that_is_kept_quiet_is_one_that_ray_has(name: str) -> None:
    loggers = [each for each in vars(importlib.import_module(name)).values() if isinstance(each, logging.Logger)]
    assert [each.name for each in loggers] == [name], f"{name} has moved: see css_ray/execution/ray_internals.py"


def test_the_titles_of_processes_are_names_that_ray_has() -> None:
    """Ray shows an actor as `ray::` and the name of its class; Tune makes one of a function."""
    from ray._private import ray_constants
    from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import _AutoscalingCoordinatorActor
    from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker
    from ray.tune.trainable.function_trainable import wrap_function

    trial = wrap_function(lambda config: None)
    titles = {"worker": f"ray::{RayTrainWorker.__name__}", "trial": f"ray::{trial.__name__}"}
    assert titles == ray_internals.TITLES, "a title has changed: see css_ray/execution/ray_internals.py"
    agents = ray_constants.AGENT_PROCESS_TYPE_DASHBOARD_AGENT, ray_constants.AGENT_PROCESS_TYPE_RUNTIME_ENV_AGENT
    titles_of_cluster = ("ray::IDLE", *agents, f"ray::{_AutoscalingCoordinatorActor.__name__}")
    assert titles_of_cluster == ray_internals.CLUSTER_TITLES, "a title has changed: see css_ray/execution/ray_internals.py"


def test_no_other_file_touches_a_private_name_of_ray() -> None:
    package, found = SOURCE.parents[1], []
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            parts = [name.split(".") for name in names if name.split(".")[0] == "ray"]
            if path != SOURCE and any(part.startswith("_") or part in ("core", "v2") for name in parts for part in name):
                found.append(f"{path.relative_to(package)}: {', '.join(names)}")
    assert found == []


# ----------------------------------------------------------------------------------------------------------- with a real Ray


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """A Ray of two cores, joined as the driver of a study joins it."""
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        job_config=driver_config(),
    )
    yield
    ray.shutdown()


with_ray = pytest.mark.usefixtures("cluster")


def wait_until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.1)


def this_job() -> bytes:
    return bytes.fromhex(ray.get_runtime_context().get_job_id())


@with_ray
def test_the_key_value_store() -> None:
    assert ray_internals.kv_get("css-ray/test") is None
    ray_internals.kv_put("css-ray/test", b"one")
    ray_internals.kv_put("css-ray/test", b"two")
    assert ray_internals.kv_get("css-ray/test") == b"two"
    ray_internals.kv_delete("css-ray/test")
    assert ray_internals.kv_get("css-ray/test") is None
    ray_internals.kv_delete("css-ray/test")


@with_ray
def test_what_is_free_on_each_node() -> None:
    (node,) = ray.nodes()  # type: ignore[no-untyped-call]
    wait_until(lambda: ray_internals.free_resources()[node["NodeID"]]["CPU"] == 2.0)
    assert ray_internals.free_resources().keys() == {node["NodeID"]}


@with_ray
def test_the_jobs_of_drivers() -> None:
    assert ray_internals.jobs_with(DRIVER) == {this_job(): False}
    assert ray_internals.jobs_with("another key") == {}


@ray.remote(num_cpus=0)
class Controller:
    def hold(self) -> bytes:
        self.group = placement_group([{"CPU": 1}])
        ray.get(self.group.ready(), timeout=60)
        made: bytes = self.group.id.binary()
        return made


@with_ray
def test_placement_groups_are_listed_with_their_makers_and_removed() -> None:
    own = placement_group([{"CPU": 1}], lifetime="detached", name="own")
    ray.get(own.ready(), timeout=60)
    controller = Controller.remote()  # type: ignore[attr-defined]
    its = ray.get(controller.hold.remote(), timeout=60)

    def held() -> dict[bytes, ray_internals.HeldGroup]:
        return {group.id: group for group in ray_internals.held_groups()}

    def facts(group: ray_internals.HeldGroup) -> tuple[bytes, bool, bool]:
        return group.job, group.detached, group.by_actor

    found = held()
    assert found.keys() == {own.id.binary(), its}
    assert facts(found[own.id.binary()]) == (this_job(), True, False)
    assert facts(found[its]) == (this_job(), False, True) and not found[its].actor_dead
    ray.kill(controller)
    wait_until(lambda: held()[its].actor_dead)
    for group in held().values():
        ray_internals.remove_group(group)
    wait_until(lambda: not held())
    assert {each["state"] for each in placement_group_table().values()} == {"REMOVED"}


@with_ray
def test_an_item_is_put_into_a_queue() -> None:
    from ray.util.queue import Queue

    queue = Queue(actor_options={"num_cpus": 0})
    ray_internals.put_without_waiting(queue, {"step": 10})
    assert queue.get(timeout=60) == {"step": 10}
    queue.shutdown()


@with_ray
@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning:ray.data.context")  # of its own settings
def test_a_trainer_starts_no_process_for_data_sets() -> None:
    from ray.train import ScalingConfig

    def names(trainer: Any) -> set[str]:
        return {type(callback).__name__ for callback in trainer._create_default_callbacks()}

    trainer = ray_internals.data_parallel_trainer()(lambda: None, scaling_config=ScalingConfig(num_workers=1))
    before = names(trainer)
    ray_internals.without_data(trainer)
    assert before - names(trainer) == {"DatasetsCallback"}


def test_the_trainer_is_what_torch_trainer_is_made_of() -> None:
    from ray.train.torch import TorchTrainer

    assert issubclass(TorchTrainer, ray_internals.data_parallel_trainer())


@with_ray
def test_the_coordinator_is_the_one_that_controllers_look_for() -> None:
    from ray.train.v2._internal.execution.scaling_policy.autoscaling_coordinator_client import TrainAutoscalingCoordinatorClient

    ray_internals.start_coordinator()
    started = ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
    assert TrainAutoscalingCoordinatorClient("test")._autoscaling_coordinator == started


@with_ray
def test_an_address_where_ranks_can_meet() -> None:
    address, port = ray_internals.free_address()
    assert address == ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    socket.create_server((address, port)).close()


def test_tune_passes_on_no_key_of_a_store() -> None:
    from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE

    before = set(ENV_VARS_TO_PROPAGATE)
    try:
        ray_internals.keep_from_trials(["RAY_TRAIN_", "AWS_"])
        assert set(ENV_VARS_TO_PROPAGATE) == {name for name in before if not name.startswith(("RAY_TRAIN_", "AWS_"))} < before
        ray_internals.keep_from_trials(["AWS_"])
    finally:
        ENV_VARS_TO_PROPAGATE.update(before)


def test_what_the_dashboard_needs_is_there() -> None:
    ray_internals.check_dashboard()
