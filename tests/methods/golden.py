"""The first twenty losses of every method under a fixed seed, kept in golden_losses.json: a refactor must not change them.

`make golden` rewrites the file; do so only where the mathematics was meant to change, and say in the commit why it did.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from css_ray.methods import METHODS
from css_ray.testing import make_batch, make_method

FILE = Path(__file__).with_name("golden_losses.json")
NUM_STEPS = 20

OPEN = {"unsup_threshold": 0.3, "valid_threshold": 0.2, "num_queries": 16, "num_negatives": 16}
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "supervised": ("supervised", "default", {}),
    "mean_teacher": ("mean_teacher", "default", {"unsup_threshold": 0.3}),
    "cutmix": ("cutmix", "default", {"unsup_threshold": 0.3}),
    "css logits (Baseline)": ("css", "default", OPEN | {"pseudo_labelling": "logits", "indicator": "confidence"}),
    "css representations": ("css", "default", OPEN | {"pseudo_labelling": "representations"}),
    "css mix": ("css", "default", OPEN),
    "css cross": ("css", "default", OPEN | {"pseudo_labelling": "cross", "cross_warm_up": 0.03}),
    "css mix, paper": ("css", "paper", OPEN),
    "css mix, published": ("css", "published", OPEN),
}
"""Name: method, preset, settings. The thresholds let an untrained network's pixels pass."""


def losses(case: str) -> list[dict[str, float]]:
    """Each term of each of NUM_STEPS steps of plain SGD, of a training of 100 steps.

    In float64, because batch statistics of so few pixels make what differs between processors' float32 grow fast.
    """
    torch.set_default_dtype(torch.float64)
    try:
        return _losses(*CASES[case])
    finally:
        torch.set_default_dtype(torch.float32)


def _losses(name: str, preset: str, settings: dict[str, Any]) -> list[dict[str, float]]:
    torch.manual_seed(0)
    method = make_method(METHODS[name], preset=preset, **settings)
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.02)
    found = []
    for step in range(NUM_STEPS):
        step_losses = method(make_batch(step), step / 100)
        optimizer.zero_grad()
        step_losses.total.backward()
        optimizer.step()
        method.after_step()
        found.append({term: round(value.item(), 8) for term, value in step_losses.terms.items()})
    return found


if __name__ == "__main__":
    FILE.write_text(json.dumps({case: losses(case) for case in CASES}, indent=1) + "\n")
    print(f"wrote {FILE}")
