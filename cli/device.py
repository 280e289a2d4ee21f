"""`--device`: where a command computes in its own process."""

from __future__ import annotations

import re

from .errors import BadInput


def chosen_device(device: str | None) -> str:
    """The device that was asked for, by default a GPU if there is one. Raises BadInput if torch does not see it."""
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if re.fullmatch(r"cpu|cuda(:[0-9]{1,4})?", device) is None:
        raise BadInput(f"--device {device}: must be cpu, cuda, or cuda:N for the GPU of that number")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise BadInput(f"--device {device}: torch sees no CUDA device; use --device cpu")
    if device.startswith("cuda:") and int(device.removeprefix("cuda:")) >= torch.cuda.device_count():
        last = torch.cuda.device_count() - 1
        raise BadInput(f"--device {device}: torch sees the GPUs 0 to {last}; use one of them")
    return device
