"""Checkpoints from which a run goes on exactly: state shared by all ranks in one file, random generators in one a rank."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from css_ray import distributed

STATE_FILE = "state.pt"


def write_tensors(path: Path, state: dict[str, Any]) -> None:
    """Write `state` so that `path` holds all of it or does not exist, also when the machine stops half-way."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def read_tensors(path: Path) -> dict[str, Any]:
    """Read what `write_tensors` wrote, as tensors and plain values only: a checkpoint cannot run code.

    Raises FileNotFoundError with the path, or RuntimeError naming a file that is damaged.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise RuntimeError(
            f"checkpoint {path} cannot be read ({error}); remove its folder to train this run again from its start"
        ) from error
    return state


def random_state() -> dict[str, Any]:
    """State of the generators that training draws from, on this rank's CPU and current GPU."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Put the generators back to what `random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def write_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write this rank's files of a checkpoint into `folder`: every rank its generators, rank 0 the shared `state`."""
    write_tensors(folder / f"random_rank{distributed.rank()}.pt", random_state())
    if distributed.rank() == 0:
        write_tensors(folder / STATE_FILE, state)


def read_random_state(folder: Path) -> dict[str, Any] | None:
    """This rank's generators, or None where fewer ranks wrote the checkpoint: the run then goes on, but not bit for bit."""
    path = folder / f"random_rank{distributed.rank()}.pt"
    return read_tensors(path) if path.exists() else None
