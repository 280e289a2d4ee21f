"""The ranks of a training, as processes that begin in no time: forked from one that has imported torch, which takes seconds."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

import torch.multiprocessing

PRELOADED = ("torch._dynamo", "css_ray.training.loop", "css_ray.methods", "css_ray.data.catalogue", "css_ray.study.run")
"""What that process imports: most of what ranks need."""


def run_ranks(function: Callable[..., None], *arguments: Any, ranks: int = 2) -> None:
    """Run `function(rank, *arguments)` in a process for each rank until all have ended; an exception of one is raised here.

    function: of a module. The processes have the environment variables that were set when the first of them began.
    """
    multiprocessing.set_forkserver_preload([*PRELOADED])
    torch.multiprocessing.start_processes(function, arguments, nprocs=ranks, start_method="forkserver")  # type: ignore[attr-defined, no-untyped-call]
