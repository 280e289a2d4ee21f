"""Gives back the cores and GPUs that dead trials hold on a Ray cluster.

The workers of a trial have a placement group, made by the controller of their slot. Ray removes the group of a controller that
died by a guard, a process of its own, and the groups of a job as the job ends. But a guard dies with its node, as its
controller may; and a controller outlives its driver for a moment, in which it may make a group that nothing removes.
"""

from __future__ import annotations

import ray
from ray.job_config import JobConfig

from css_ray.execution.ray_internals import held_groups, jobs_with, remove_group

DRIVER = "css_ray.driver"
"""The key in a Ray job's metadata that marks it as the driver of a study."""


def driver_config() -> JobConfig:
    """What lets other drivers know that this process is one."""
    return JobConfig(metadata={DRIVER: "study"})


def reclaim() -> int:
    """Remove the placement groups of this driver's dead controllers, and all of dead drivers; returns how many there were.

    Those of other users' jobs, and detached ones, are left alone.
    """
    # By the jobs, not by the group's own state: one that was made after the end of its job does not know of that.
    dead = jobs_with(DRIVER)
    this = bytes.fromhex(ray.get_runtime_context().get_job_id())
    held = 0
    for group in held_groups():
        if group.detached or group.job not in dead:
            continue
        # A group that the driver made itself, as Tune does for its trials, has no actor, which Ray calls dead.
        if dead[group.job] or (group.job == this and group.by_actor and group.actor_dead):
            held += 1
            remove_group(group)
    return held
