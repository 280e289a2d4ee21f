"""The peak memory of one side of a comparison, in a process of its own.

`python -m benchmarks.workloads.peak_memory SIDE` prints it in megabytes.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.workloads import contrast, run_alone
from css_ray.methods import CSS, css
from css_ray.models import ModelConfig, make_segmenter
from css_ray.types import Prediction
from css_ray.views import Views


def peak_above_inputs(side: str) -> float:
    """Megabytes that a side holds at its peak, above the inputs, the library and its thread pools."""
    return float(run_alone("peak_memory", side))


def _contrast(kind: str) -> tuple[Callable[[], object], Callable[[], object]]:
    """One forward and backward pass, small and whole."""
    small = contrast.inputs(batch=1, channels=16, size=32, queries=16, negatives=16)
    whole = contrast.inputs()

    def run(given: contrast.Inputs) -> None:
        if kind == "published":
            contrast.published(given)
        else:
            contrast.ours(given, "per_anchor")

    return lambda: run(small), lambda: run(whole)


def _spaces(together: bool) -> tuple[Callable[[], object], Callable[[], object]]:
    """The pseudo-labels of both spaces: of one small image, and of 8 of 512 x 512 with 21 classes."""
    if together:
        css._MAP_BYTES = 2**40
    tiny = ModelConfig(encoder="tiny", output_stride=4, pretrained=False)
    method = CSS(lambda: make_segmenter(tiny, 21), CSS.Config(), Views())

    def run(images: int, size: int) -> Callable[[], object]:
        weak = Prediction(torch.rand(images, 21, size // 4, size // 4), torch.rand(images, 256, size // 4, size // 4))
        valid = torch.ones(images, size, size, dtype=torch.bool)
        return torch.no_grad()(lambda: method._pseudo_labels(weak, valid, 0.5, {}))

    return run(1, 64), run(8, 512)


SIDES: dict[str, Callable[[], tuple[Callable[[], object], Callable[[], object]]]] = {
    "contrast": lambda: _contrast("per_anchor"),
    "published contrast": lambda: _contrast("published"),
    "spaces": lambda: _spaces(False),
    "spaces together": lambda: _spaces(True),
}


def _peak() -> float:
    status = Path("/proc/self/status")
    if status.exists():
        # On Linux a process starts with the `ru_maxrss` of the one that started it; this number is its own.
        found = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        if found:
            return int(found[0]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e6


def main(side: str) -> None:
    torch.set_num_threads(2)
    warm_up, measured = SIDES[side]()
    warm_up()
    before = _peak()
    measured()
    print(_peak() - before)


if __name__ == "__main__":
    main(sys.argv[1])
