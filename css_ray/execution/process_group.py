"""The process group of a slot's workers: what Ray's TorchConfig does, without torch in processes that do not train.

With TorchConfig the process of a trial and its controller import torch too, one after the other, before the workers start, and
keep it in memory (`make bench ONLY=study`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError
from ray.train.backend import Backend, BackendConfig

from css_ray.execution import ray_internals

_log = logging.getLogger(__name__)

LEAVING_SECONDS = 30.0
"""How long workers have to leave their group before Ray ends them."""


@dataclass(frozen=True)
class ProcessGroup(BackendConfig):
    """backend: of `torch.distributed`, gloo or nccl."""

    backend: str

    @property
    def backend_cls(self) -> type[Backend]:
        return _Setup

    def to_dict(self) -> dict[str, Any]:
        """What Ray's dashboard shows."""
        return {"backend": self.backend}


class _Setup(Backend):
    """Runs in the controller."""

    share_cuda_visible_devices = True  # ranks of one node exchange gradients directly only if they see each other's GPUs

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        assert isinstance(backend_config, ProcessGroup)
        address, port = worker_group.execute_single(0, ray_internals.free_address)
        size = len(worker_group)
        joining = [
            worker_group.execute_single_async(rank, _join, backend_config.backend, rank, size, address, port)
            for rank in range(size)
        ]
        ray.get(joining)

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        leaving = worker_group.execute_async(ray_internals.leave_process_group, grouped=len(worker_group) > 1)
        try:
            ray.get(leaving, timeout=LEAVING_SECONDS)
        except GetTimeoutError:
            _log.warning("workers did not leave their process group within %g s", LEAVING_SECONDS)


def _join(backend: str, rank: int, size: int, address: str, port: int) -> None:
    """Runs on each rank."""
    import css_ray.distributed  # noqa: F401 - before there is a group, see there

    ray_internals.join_process_group(backend, rank, size, address, port)
