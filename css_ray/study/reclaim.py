"""Gives back the cores and GPUs that dead trials hold on a Ray cluster.

The workers of a trial have a placement group, made by the controller of their slot. Ray removes the group of a controller that
died by a guard, a process of its own, and the groups of a job as the job ends. But a guard dies with its node, as its
controller may; and a controller outlives its driver for a moment, in which it may make a group that nobody removes.
"""

from __future__ import annotations

import ray
from ray._private.state import state
from ray.core.generated.gcs_pb2 import JobTableData, PlacementGroupTableData  # type: ignore[attr-defined]
from ray.job_config import JobConfig
from ray.util.placement_group import PlacementGroup, remove_placement_group

DRIVER = "css_ray.driver"
"""By this key in its metadata a job of Ray is known as the driver of a study."""


def driver_config() -> JobConfig:
    """What tells other drivers that this process is one."""
    return JobConfig(metadata={DRIVER: "study"})  # type: ignore[no-untyped-call]


def reclaim() -> int:
    """Remove the placement groups of this driver's dead controllers, and all of dead drivers; returns how many there were.

    Those of other users' jobs, and detached ones, are left alone.
    """
    accessor = state._connect_and_get_accessor()  # type: ignore[no-untyped-call]
    jobs = [JobTableData.FromString(job) for job in accessor.get_job_table()]
    # By the jobs, not by what a group says of its own: one that was made after the end of its job does not know of that.
    dead = {job.job_id: job.is_dead for job in jobs if DRIVER in job.config.metadata}
    this = bytes.fromhex(ray.get_runtime_context().get_job_id())
    held = 0
    for text in accessor.get_placement_group_table():
        group = PlacementGroupTableData.FromString(text)
        if group.state == PlacementGroupTableData.REMOVED or group.is_detached or group.creator_job_id not in dead:
            continue
        # A group that the driver made itself, as Tune does for its trials, has no actor, which Ray calls dead.
        by_actor = not ray.ActorID(group.creator_actor_id).is_nil()  # type: ignore[attr-defined]
        if dead[group.creator_job_id] or (group.creator_job_id == this and by_actor and group.creator_actor_dead):
            held += 1
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))  # type: ignore[attr-defined]
    return held
