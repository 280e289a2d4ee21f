"""Checkpoints from which a run resumes exactly: state shared by all ranks in one file, random generators in one per rank."""

from __future__ import annotations

import hashlib
import math
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import torch
from torch import Tensor, nn

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
    if os.path.lexists(path) and not path.is_file():  # a pipe would be waited for
        raise DamagedError(path, "it is not a file")
    try:
        # torch compares no checksums: a block that a dying machine never wrote would be read as zeros.
        with zipfile.ZipFile(path) as archive:
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise DamagedError(path, "it is compressed, as no checkpoint is")
            altered = archive.testzip()
        if altered is not None:
            raise DamagedError(path, f"the checksum of {altered!r:.80} is wrong")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, DamagedError):
        raise
    except Exception as error:
        raise DamagedError(path, next(iter(str(error).splitlines()), type(error).__name__)) from error
    if not isinstance(state, dict):
        raise DamagedError(path, f"it holds a {type(state).__name__}, not a state")
    return state


def fingerprint(path: Path) -> str:
    """A digest of what a file of tensors holds: of the checksums in its directory, which `read_tensors` compares with the rest.

    Raises FileNotFoundError with the path, or DamagedError.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = sorted((member.filename, member.CRC, member.file_size) for member in archive.infolist())
    except FileNotFoundError:
        raise
    except Exception as error:
        raise DamagedError(path, next(iter(str(error).splitlines()), type(error).__name__)) from error
    return hashlib.sha256(repr(members).encode()).hexdigest()


def read_state(folder: Path, ends: Sequence[int]) -> dict[str, Any]:
    """The shared state in a checkpoint's folder. ends: the step at which each stage of its run ends.

    What an earlier version wrote, which knew no stages, is of the first, and has no pseudo-labels. Raises DamagedError if it is
    not of this run.
    """
    path = folder / STATE_FILE
    state = read_tensors(path)
    if problem := _progress_problem(state.get("progress"), ends):
        raise DamagedError(path, problem)
    state["progress"] = {"stage": 0, **state["progress"]}
    state["labels"] = _labels_of(path, state)
    return state


def _labels_of(path: Path, state: Mapping[str, Any]) -> str:
    """The digest of the pseudo-labels with which a run continues from this state; empty if there are none."""
    digest = state.get("labels", "")
    if not isinstance(digest, str) or re.fullmatch("([0-9a-f]{64})?", digest) is None:
        raise DamagedError(path, f"its pseudo-labels cannot be {digest!r:.80}")
    return digest


def check_state(folder: Path, state: Mapping[str, Any], method: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Raise DamagedError if the state that `read_state` read is not of this method and its optimizer."""
    if problem := _method_problem(state.get("method"), method.state_dict()) or _optimizer_problem(
        state.get("optimizer"), optimizer
    ):
        raise DamagedError(folder / STATE_FILE, problem)


def _progress_problem(progress: object, ends: Sequence[int]) -> str:
    """Why something is not what a run has reached, in words; empty if it is."""
    kinds = {"step": int, "last": dict, "best": dict, "best_step": int, "seconds": float, "stage": int}
    # Earlier versions had no stages.
    if not isinstance(progress, dict) or progress.keys() not in (kinds.keys(), kinds.keys() - {"stage"}):
        return "it does not hold what the run has reached"
    progress = {"stage": 0, **progress}
    wrong = [name for name, kind in kinds.items() if type(progress[name]) is not kind]
    if not wrong:
        last, best = progress["last"], progress["best"]
        numbers = [*last.values(), *best.values(), progress["seconds"]]
        finite = all(isinstance(value, float) and math.isfinite(value) for value in numbers)
        scored = "val/miou" in last and "val/miou" in best
        stage, begins = progress["stage"], [0, *ends]
        reached = 0 <= stage < len(ends) and begins[stage] <= progress["step"] <= ends[stage]
        if finite and scored and reached and 0 < progress["best_step"] <= progress["step"]:
            return ""
    return f"what the run has reached cannot be: {progress!r:.200}"


def _method_problem(weights: object, expected: Mapping[str, Any]) -> str:
    """Why something is not the state of a method, of which `expected` is another, in words; empty if it is."""
    if not isinstance(weights, dict):
        return "it does not hold the weights of a method"
    if other := sorted(map(str, weights.keys() ^ expected.keys())):
        return f"its weights are of another network: {len(other)} differ, such as {other[0]:.80}"
    for name, own in expected.items():
        if isinstance(own, Tensor) and not _is_like(weights[name], own.shape, own.dtype):
            now = weights[name]
            found = f"{list(now.shape)} of {now.dtype}" if isinstance(now, Tensor) else type(now).__name__
            return f"its weights are of another network: {name} is {found}, not {list(own.shape)} of {own.dtype}"
    return ""


def _is_like(value: object, shape: torch.Size, dtype: torch.dtype) -> bool:
    """Whether a value is an ordinary tensor of this shape and type."""
    if not isinstance(value, Tensor):
        return False
    return (value.layout, value.device.type, value.shape, value.dtype) == (torch.strided, "cpu", shape, dtype)


def _optimizer_problem(state: object, optimizer: torch.optim.Optimizer) -> str:
    """Why something is not the state of an optimizer, in words; empty if it is."""
    if not isinstance(state, dict) or state.keys() != {"state", "param_groups"}:
        return "it does not hold the state of an optimizer"
    groups, of_parameters = state["param_groups"], state["state"]
    own = [group["params"] for group in optimizer.state_dict()["param_groups"]]
    found = [group.get("params") if isinstance(group, dict) else None for group in groups] if isinstance(groups, list) else None
    if str(found) != str(own):  # as text: a tensor in it would be compared value by value
        return "its optimizer has other groups of parameters"
    parameters = dict(enumerate(parameter for group in optimizer.param_groups for parameter in group["params"]))
    if not isinstance(of_parameters, dict) or of_parameters.keys() - parameters.keys():
        return "its optimizer has other parameters"
    for number, values in of_parameters.items():
        own_shape, dtype = parameters[number].shape, parameters[number].dtype
        if not isinstance(values, dict) or not all(
            value is None or _is_like(value, *((torch.Size(), torch.float32) if name == "step" else (own_shape, dtype)))
            for name, value in values.items()
        ):
            return f"the optimizer's state of parameter {number} is not of its shape"
    return ""


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


def random_file(rank: int) -> str:
    """The file of a rank's generators."""
    return f"random_rank{rank}.pt"


def write_checkpoint(folder: Path, state: dict[str, Any]) -> None:
    """Write this rank's files of a checkpoint into `folder`: every rank its generators, rank 0 the shared `state`."""
    write_tensors(folder / random_file(distributed.rank()), random_state())
    if distributed.rank() == 0:
        write_tensors(folder / STATE_FILE, state | {"num_ranks": distributed.world_size()})


def read_random_state(folder: Path) -> dict[str, Any] | None:
    """This rank's generators, or None if fewer ranks wrote the checkpoint: the run then continues, but not bit for bit."""
    path = folder / random_file(distributed.rank())
    return read_tensors(path) if path.exists() else None


def check_checkpoint(folder: Path, step: int) -> str:
    """Read this rank's files of a checkpoint that was written at `step`; the digest of the pseudo-labels that it needs, if any.

    Raises DamagedError if one is damaged or missing.
    """
    path = folder / STATE_FILE
    try:
        state = read_tensors(path)
        ranks, progress = state.get("num_ranks", 1), state.get("progress")
        if type(ranks) is not int or ranks < 1:
            raise DamagedError(path, f"num_ranks must be a whole number >= 1, got {ranks!r:.80}")
        reached = progress.get("step") if isinstance(progress, dict) else step
        if type(reached) is not int or reached != step:
            raise DamagedError(path, f"it was written at step {reached!r:.80}, not at step {step}")
        labels = _labels_of(path, state)
        if distributed.rank() < ranks:
            path = folder / random_file(distributed.rank())
            _check_random(path, read_tensors(path))
    except FileNotFoundError:
        raise DamagedError(path, "it is missing") from None
    return labels


def _check_random(path: Path, state: Mapping[str, Any]) -> None:
    try:
        torch.Generator().set_state(state["cpu"])
        cuda = state.get("cuda")
        if state.keys() - {"cpu", "cuda"} or (cuda is not None and (cuda.dtype, cuda.dim()) != (torch.uint8, 1)):
            raise TypeError(path)
    except (AttributeError, KeyError, TypeError, RuntimeError):
        raise DamagedError(path, "it holds no state of random generators") from None


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
