"""Checkpoints from which a run resumes exactly: state shared by all ranks in one file, random generators in one per rank."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import torch

from css_ray import distributed
from css_ray.storage import whole_file

STATE_FILE = "state.pt"

_Place = TypeVar("_Place")
_Found = TypeVar("_Found")


class DamagedError(RuntimeError):
    """A file of a checkpoint is cut short, altered or missing. reason: the same without the remedy."""

    def __init__(self, path: Path, cause: object) -> None:
        super().__init__(
            f"checkpoint {path} cannot be read ({cause}); remove its folder to train this run again from its start"
        )
        self.reason = f"{path.name}: {cause}"


def write_tensors(path: Path, state: dict[str, Any]) -> None:
    """Write `state` so that `path` holds all of it or is as it was, also when the machine stops half-way.

    Raises OSError if it cannot be written, of a full disk with its errno.
    """
    with whole_file(path) as file:
        kept = _KeepsError(file)
        try:
            torch.save(state, cast(BinaryIO, kept))
        except RuntimeError:
            if kept.error is not None:
                raise kept.error from None
            raise


class _KeepsError:
    """A file for torch to write to, which of an error in between raises one of its own that names no cause."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def read_tensors(path: Path) -> dict[str, Any]:
    """Read what `write_tensors` wrote, as tensors and plain values only: a checkpoint cannot run code.

    Raises FileNotFoundError with the path, or DamagedError.
    """
    try:
        # torch compares no checksums: a block that a dying machine never wrote would be read as zeros.
        with zipfile.ZipFile(path) as archive:
            altered = archive.testzip()
        if altered is not None:
            raise DamagedError(path, f"the checksum of {altered} is wrong")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, DamagedError):
        raise
    except Exception as error:
        raise DamagedError(path, next(iter(str(error).splitlines()), type(error).__name__)) from error
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
        write_tensors(folder / STATE_FILE, state | {"num_ranks": distributed.world_size()})


def read_random_state(folder: Path) -> dict[str, Any] | None:
    """This rank's generators, or None if fewer ranks wrote the checkpoint: the run then continues, but not bit for bit."""
    path = folder / f"random_rank{distributed.rank()}.pt"
    return read_tensors(path) if path.exists() else None


def check_checkpoint(folder: Path) -> None:
    """Read this rank's files of a checkpoint. Raises DamagedError if one is damaged or missing."""
    path = folder / STATE_FILE
    try:
        if distributed.rank() < read_tensors(path).get("num_ranks", 1):
            path = folder / f"random_rank{distributed.rank()}.pt"
            read_tensors(path)
    except FileNotFoundError:
        raise DamagedError(path, "it is missing") from None


def newest_readable(
    checkpoints: Iterable[_Place], read: Callable[[_Place], _Found], device: torch.device | str = "cpu"
) -> tuple[_Found | None, list[str]]:
    """What `read` makes of the first of `checkpoints`, newest first, that every rank can read; and why not of those before it.

    None if no rank has any, or none is readable. All ranks call it with the same checkpoints and take the same one. read:
    raises DamagedError; what else it raises is passed on, since storage that is away for a moment is no reason to go back.
    """
    reasons: list[str] = []
    for checkpoint in checkpoints:
        found: _Found | None = None
        reason = ""
        try:
            found = read(checkpoint)
        except DamagedError as error:
            reason = error.reason
        unreadable = torch.tensor(int(bool(reason)), device=device)
        if not distributed.all_reduce_sum(unreadable):
            return found, reasons
        reasons.append(reason or "another rank cannot read its part")
    return None, reasons
