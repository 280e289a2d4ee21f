"""What a process costs that starts ranks and does not train: `python -m benchmarks.workloads.beside TRAINER`.

TRAINER: `css-ray` to make a trainer as a slot does, `torch-trainer` to make Ray's TorchTrainer; and the backend that its
controller is sent. Prints the processor time in seconds that this took, and the private memory of the process in megabytes.
"""

from __future__ import annotations

import json
import pickle
import sys
import time

from benchmarks.workloads.memory import private_megabytes


def start_ranks(trainer: str) -> None:
    """All that is done before the first message to Ray."""
    from ray.train import ScalingConfig

    if trainer == "css-ray":
        from css_ray.execution.process_group import ProcessGroup
        from css_ray.execution.ray_internals import data_parallel_trainer

        made = data_parallel_trainer()(print, scaling_config=ScalingConfig(), backend_config=ProcessGroup("gloo"))
    else:
        from ray.train.torch import TorchConfig, TorchTrainer

        made = TorchTrainer(print, scaling_config=ScalingConfig(), torch_config=TorchConfig("gloo"))
    pickle.loads(pickle.dumps(made.backend_config)).backend_cls()


if __name__ == "__main__":
    began = time.process_time()
    start_ranks(sys.argv[1])
    print(json.dumps({"seconds": time.process_time() - began, "megabytes": private_megabytes()}))
