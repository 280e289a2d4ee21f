"""The process group of a slot's workers; that two ranks share one is in test_runner.py."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import GetTimeoutError

from css_ray.execution.process_group import LEAVING_SECONDS, ProcessGroup

# What the process of a trial does to start workers, up to what it sends the controller; and what the controller unpacks.
TRIAL = """
import sys
from pathlib import Path
from ray import cloudpickle
from css_ray.execution.slot import Slot, SlotResources

slot = Slot(SlotResources(cpus_per_worker=1, gpus_per_worker=0, concurrent_trials=1, retries=1), sys.argv[1])
slot._size, slot._queue, slot._handover = 2, None, None
trainer = slot._trainer("slot", elastic=False)
assert trainer.backend_config.backend == "gloo"
Path(sys.argv[1], "sent").write_bytes(cloudpickle.dumps([trainer._get_train_func(), trainer._create_default_callbacks()]))
print("torch" in sys.modules)
"""
CONTROLLER = """
import sys
from pathlib import Path
import ray.train
from ray import cloudpickle
from ray.train.v2._internal.execution.controller.controller import TrainController

train, callbacks = cloudpickle.loads(Path(sys.argv[1], "sent").read_bytes())
assert "BackendSetupCallback" in {type(callback).__name__ for callback in callbacks}
print("torch" in sys.modules)
"""


def test_neither_the_process_of_a_trial_nor_its_controller_imports_torch(tmp_path: Path) -> None:
    for program in (TRIAL, CONTROLLER):
        ended = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
        assert ended.stdout == "False\n", ended.stdout + ended.stderr


def test_ranks_of_a_node_see_each_others_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or NCCL could not have them exchange gradients directly; Ray Train asks the backend."""
    from ray.train import ScalingConfig
    from ray.train.v2._internal.callbacks import accelerators

    shared: list[Any] = []
    monkeypatch.setattr(accelerators, "_share_cuda_visible_devices", shared.append)
    scaling: Any = ScalingConfig(num_workers=2, use_gpu=True)
    workers: Any = ["worker"]
    accelerators.AcceleratorSetupCallback(ProcessGroup("nccl"), scaling).before_init_train_context(workers)
    assert shared == [workers]


class Stuck:
    """A group of workers of which none leaves."""

    def __len__(self) -> int:
        return 2

    def execute_async(self, function: Any, *, grouped: bool) -> list[Any]:
        assert grouped
        return []


def test_workers_that_do_not_leave_are_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def get(futures: Any, *, timeout: float) -> None:
        assert timeout == LEAVING_SECONDS
        raise GetTimeoutError

    monkeypatch.setattr(ray, "get", get)
    group = ProcessGroup("gloo")
    with caplog.at_level(logging.WARNING):
        group.backend_cls().on_shutdown(Stuck(), group)  # type: ignore[arg-type]
    assert "workers did not leave their process group within 30 s" in caplog.text
