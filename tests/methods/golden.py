"""The first losses of css-ray's methods under a fixed seed, kept in golden_losses.json: a refactor must not change them.

Each test class of the contract in this folder is a case, named as the class is. Its losses are those of its `settings`, or of
the `golden` that it states beside them; `golden = None` leaves it out.

`make golden` rewrites the file; do so only where the mathematics was meant to change, and say in the commit why it did.
"""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("MKL_CBWR", "COMPATIBLE")  # as tests/conftest.py has it, before torch is imported

import torch

from css_ray.testing import MethodContract, batch_of, clock_at, enter_stages, make_method

FILE = Path(__file__).with_name("golden_losses.json")
NUM_STEPS = 20

Case = type[MethodContract]


def cases() -> dict[str, Case]:
    """The cases of all test files of this folder, by name."""
    found: dict[str, Case] = {}
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        module = importlib.import_module(f"tests.methods.{path.stem}")
        for value in vars(module).values():
            if isinstance(value, type) and issubclass(value, MethodContract) and value.__module__ == module.__name__:
                name = value.__name__.removeprefix("Test")
                assert name not in found, f"two test classes are named {value.__name__}; rename one"
                if _settings(value) is not None:
                    found[name] = value
    return found


def losses(case: Case) -> list[dict[str, float]]:
    """Each term of each of NUM_STEPS steps of plain SGD, of a training of 100 steps.

    In float64, because batch statistics of so few pixels make what differs between processors' float32 grow fast.
    """
    torch.set_default_dtype(torch.float64)
    try:
        return _losses(case)
    finally:
        torch.set_default_dtype(torch.float32)


def _settings(case: Case) -> dict[str, Any] | None:
    settings: dict[str, Any] | None = getattr(case, "golden", case.settings)
    return settings


def _losses(case: Case) -> list[dict[str, float]]:
    torch.manual_seed(0)
    method = enter_stages(make_method(case.method_class, preset=case.preset, **(_settings(case) or {})))
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.02)
    found = []
    for step in range(NUM_STEPS):
        clock = clock_at(step / 100, method.stage)
        step_losses = method(batch_of(method, step), clock)
        optimizer.zero_grad()
        step_losses.total.backward()
        optimizer.step()
        method.after_step(clock)
        found.append({term: round(value.item(), 8) for term, value in step_losses.terms.items()})
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)  # as the tests have it
    FILE.write_text(json.dumps({name: losses(case) for name, case in cases().items()}, indent=1) + "\n")
    print(f"wrote {FILE}")
