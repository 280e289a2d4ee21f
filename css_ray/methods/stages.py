"""The stages of a training, and what a method may look at between two of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

BatchKind = Literal["pair", "labelled", "union"]
"""pair: labelled and unlabelled images. labelled: no unlabelled ones, which are then not read. union: as many images as a
pair, drawn from one list of the labelled ones and of those that have pseudo-labels; see `PseudoLabels`."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a training.

    share: of its steps; 0 for a stage that is entered and left. batch: what its steps see. schedule: the learning rate begins
    again and falls over the stage, falls on as if there were no stages, or stays `train.lr`.
    """

    name: str
    share: float
    batch: BatchKind = "pair"
    schedule: Literal["restart", "continue", "constant"] = "restart"


WHOLE = (Stage("training", 1.0),)
"""The stages of a method that has one."""


class PseudoLabels(Protocol):
    """Labels of unlabelled images that a method makes at its borders, which the `union` batches of later stages show.

    They are kept outside of the method and its checkpoints, which hold the digest.

    ids: of all unlabelled images, ascending. labelled: of those that have labels, ascending. digest: of the labels, the same on
    all ranks; empty if there are none.
    """

    @property
    def ids(self) -> Sequence[str]: ...
    @property
    def labelled(self) -> Sequence[str]: ...
    @property
    def digest(self) -> str: ...

    def images(self, ids: Sequence[str]) -> Iterable[tuple[Sequence[str], Tensor]]:
        """This rank's share of the images of these ids, whole and untouched: ids, and images [B, 3, H, W] in [0, 1]."""

    def put(self, labels: Iterable[tuple[str, Tensor]]) -> None:
        """Add labels [H, W] by ids; every rank calls it with those of its share. Labels that were put before stay."""

    def open(self, digest: str) -> None:
        """Take the labels of this digest. Raises ValueError if they are not there, or were altered."""


@dataclass(frozen=True, slots=True)
class Border:
    """What lies between two stages: all training images of this rank's share, whole and untouched, on the method's device.

    labelled: pairs of images [B, 3, H, W] in [0, 1] and labels [B, H, W]. unlabelled: images alone. Each call begins with the
    first. pseudo_labels: what was labelled at the borders before, and takes more. seed: of what is to be drawn alike on all
    ranks, another at each border of each run; the loop sets it.
    """

    labelled: Callable[[], Iterable[tuple[Tensor, Tensor]]] = tuple
    unlabelled: Callable[[], Iterable[Tensor]] = tuple
    pseudo_labels: PseudoLabels | None = None
    seed: int = 0


def longest(stages: Sequence[Stage]) -> int:
    """The number of the stage with the most steps, the last of them: it is what a training costs, mostly."""
    return max(range(len(stages)), key=lambda number: (stages[number].share, number))


def ends(stages: Sequence[Stage], iterations: int) -> list[int]:
    """The step at which each stage ends; that of the last is `iterations`.

    Raises ValueError if the shares are not numbers from 0 to 1 that add up to 1, or two stages have one name.
    """
    shares = [stage.share for stage in stages]
    if not stages or not all(0 <= share <= 1 for share in shares) or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"the shares of a training's stages must be from 0 to 1 and add up to 1, got {shares}")
    if len({stage.name for stage in stages}) < len(stages):
        raise ValueError(f"stages must have different names, got {', '.join(stage.name for stage in stages)}")
    done = [sum(shares[: number + 1]) for number in range(len(stages))]
    return [*(round(share * iterations) for share in done[:-1]), iterations]
