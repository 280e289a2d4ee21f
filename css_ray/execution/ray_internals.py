"""Every private name of Ray that css-ray touches, in one file: the list to check when Ray is upgraded.

`tests/execution/test_ray_internals.py` uses each of them, and names the one that an upgrade has moved. Each is imported where
it is used, since the processes of a study import no more of Ray than they need.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray

QUIET_LOGGERS = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
"""Loggers that report each upload of a job's code."""

NO_AGENT = "No available agent"
"""Part of what the dashboard says of a job while the head's agent, which would start it, is still starting itself."""

TITLES = {"worker": "ray::RayTrainWorker", "trial": "ray::ImplicitFunc"}
"""How the titles of the processes begin that a study starts under Ray, by which `benchmarks/chaos.py` finds them."""

NO_IDLE_WORKERS = {"_system_config": {"prestart_worker_first_driver": False}}
"""For `ray.init`: no workers are started in advance, which would lack a study's runtime environment and so be of no use."""

CLUSTER_TITLES = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::_AutoscalingCoordinatorActor")
"""The same of Ray's own processes, which stay when a study has ended."""


# ------------------------------------------------------------------------------------------------------ the key-value store


def kv_put(key: str, value: bytes) -> None:
    """Keep a value in the cluster's key-value store."""
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(key, value)


def kv_get(key: str) -> bytes | None:
    """The value of a key, None if there is none."""
    from ray.experimental.internal_kv import _internal_kv_get

    value: bytes | None = _internal_kv_get(key)
    return value


def kv_delete(key: str) -> None:
    """Remove a key, if it is there."""
    from ray.experimental.internal_kv import _internal_kv_del

    _internal_kv_del(key)


# ---------------------------------------------------------------------------------------------------- what the cluster holds


def free_resources() -> dict[str, dict[str, float]]:
    """What is free on each node, by the node's id."""
    from ray._private.state import available_resources_per_node

    free: dict[str, dict[str, float]] = available_resources_per_node()  # type: ignore[no-untyped-call]
    return free


def machine_cpus() -> int:
    """The CPU cores that Ray would find if it started on this machine: in a container, those that it may use."""
    from ray._private.utils import get_num_cpus

    return int(get_num_cpus(override_docker_cpu_warning=True))


@dataclass(frozen=True, slots=True)
class HeldGroup:
    """A placement group. by_actor: whether an actor made it, not the driver itself; actor_dead: whether that is dead."""

    id: bytes
    job: bytes
    detached: bool
    by_actor: bool
    actor_dead: bool


def jobs_with(key: str) -> dict[bytes, bool]:
    """The jobs whose metadata have `key`, and whether each is dead."""
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import JobTableData  # type: ignore[attr-defined]

    accessor = state._connect_and_get_accessor()
    jobs = [JobTableData.FromString(job) for job in accessor.get_job_table()]
    return {job.job_id: job.is_dead for job in jobs if key in job.config.metadata}


def held_groups() -> Iterator[HeldGroup]:
    """The placement groups that were not removed."""
    from ray._private.state import state
    from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]

    accessor = state._connect_and_get_accessor()
    for text in accessor.get_placement_group_table():
        group = PlacementGroupTableData.FromString(text)
        if group.state != PlacementGroupTableData.REMOVED:
            by_actor = not ray.ActorID(group.creator_actor_id).is_nil()
            yield HeldGroup(
                group.placement_group_id, group.creator_job_id, group.is_detached, by_actor, group.creator_actor_dead
            )


def remove_group(group: HeldGroup) -> None:
    """Give back what a placement group holds."""
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.id)))


# -------------------------------------------------------------------------------------------------------- Tune, Train, queues


def keep_from_trials(prefixes: Sequence[str]) -> None:
    """Have Tune pass on to its trials no environment variable that begins with one of `prefixes`."""
    from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE

    ENV_VARS_TO_PROPAGATE.difference_update({name for name in ENV_VARS_TO_PROPAGATE if name.startswith(tuple(prefixes))})


def start_coordinator() -> None:
    """Start the process that Ray Train's controllers ask for resources, which the first of them would start and wait for."""
    from ray.data._internal.cluster_autoscaler import get_or_create_autoscaling_coordinator

    get_or_create_autoscaling_coordinator()  # type: ignore[no-untyped-call]


def data_parallel_trainer() -> type[Any]:
    """Ray Train's trainer for any framework: TorchTrainer's base class, which imports no torch."""
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    return DataParallelTrainer


def free_address() -> tuple[str, int]:
    """This node's address, and a port that nothing listens on."""
    from ray.train._internal.utils import get_address_and_port

    address, port = get_address_and_port()
    return address, port


def join_process_group(backend: str, rank: int, size: int, address: str, port: int) -> None:
    """Have this worker join torch's process group that meets at `address` and `port`, as Ray's TorchConfig does."""
    from ray.train.torch.config import _set_torch_distributed_env_vars, _setup_torch_process_group

    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))
    _set_torch_distributed_env_vars()  # type: ignore[no-untyped-call]
    _setup_torch_process_group(backend, rank, size, "env://")


def leave_process_group(*, grouped: bool) -> None:
    """Have this worker leave torch's process group, if it is to, and give back what torch holds of its GPU."""
    from ray.train.torch.config import _shutdown_torch

    _shutdown_torch(destroy_process_group=grouped)  # type: ignore[no-untyped-call]


def without_data(trainer: Any) -> None:
    """Have a trainer start no process that hands out Ray Data's data sets: there are none."""
    callbacks = trainer._create_default_callbacks

    def without_datasets() -> list[Any]:
        return [callback for callback in callbacks() if type(callback).__name__ != "DatasetsCallback"]

    trainer._create_default_callbacks = without_datasets


def put_without_waiting(queue: Any, item: object) -> None:
    """Send `item` to a queue without waiting for its arrival."""
    queue.actor.put_nowait.remote(item)


def check_dashboard() -> None:
    """Raise ImportError if what the dashboard needs is missing; without it a killed trial keeps its cores."""
    import ray.dashboard.optional_deps  # noqa: F401
