"""The pseudo-labels that a run's method makes at its borders: one file for each border, named by the digest of its content.

A file is written once, by rank 0 with the labels of all ranks, and never changed. Checkpoints hold the digest, so that a run
that resumes reads the labels with which it began the stage, and makes none again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor

from css_ray import distributed
from css_ray.data.label_file import LabelFile, encode_file, encode_labels
from css_ray.secrets import shown
from css_ray.storage import is_url, locate, put, read_blocks

WithRoom = Callable[[Callable[[], None], str], None]
"""Calls a function, on all ranks, that writes into a folder or at a URL; again after a wait if there is no room."""


class LabelStore:
    """Pseudo-labels at `place`, a folder that all ranks see, or a URL; see `methods.stages.PseudoLabels`.

    ids: of all unlabelled images. images: gives batches of this rank's share of the images of some ids, which is every
    world_size-th of them, in their order. scratch: a folder of this machine, for copies of what lies at a URL.
    """

    def __init__(
        self,
        place: str,
        ids: Sequence[str],
        images: Callable[[Sequence[str]], Iterable[Tensor]],
        *,
        scratch: Path,
        with_room: WithRoom,
        device: torch.device | str = "cpu",
    ) -> None:
        self.ids = tuple(sorted(ids))
        self.digest = ""
        self.file: LabelFile | None = None
        self._place, self._images, self._scratch, self._with_room, self._device = place, images, scratch, with_room, device

    @property
    def labelled(self) -> tuple[str, ...]:
        """The ids of the images that have labels, ascending."""
        return () if self.file is None else self.file.ids

    def images(self, ids: Sequence[str]) -> Iterator[tuple[Sequence[str], Tensor]]:
        """This rank's share of the images of these ids, with their ids."""
        mine = iter(ids[distributed.rank() :: distributed.world_size()])
        for images in self._images(ids):
            yield tuple(islice(mine, len(images))), images

    def put(self, labels: Iterable[tuple[str, Tensor]]) -> None:
        """Write a file of all labels that are there, and of these, those of the other ranks included."""
        parts = distributed.gather_on_rank_zero({id: encode_labels(each) for id, each in labels})
        digest = torch.zeros(32, dtype=torch.uint8)
        write: Callable[[], None] = lambda: None  # noqa: E731 (of the other ranks)
        if distributed.rank() == 0:
            before = {} if self.file is None else {id: self.file.encoded(index) for index, id in enumerate(self.file.ids)}
            content = encode_file({id: mask for part in (before, *parts) for id, mask in part.items()})
            hashed = hashlib.sha256(content)
            digest = torch.frombuffer(bytearray(hashed.digest()), dtype=torch.uint8)
            write = partial(self._write, file_name(hashed.hexdigest()), content)
        self._with_room(write, self._place)
        digest = digest.to(self._device)
        distributed.broadcast_from_rank_zero(digest)  # after the write: who knows the digest finds the file
        self.open(bytes(digest.tolist()).hex())

    def open(self, digest: str) -> None:
        """Take the labels of this digest, none if it is empty. Raises ValueError if they are not there, or were altered."""
        self.digest, self.file = digest, None
        if digest:
            check_labels(self._place, digest)
            self.file = LabelFile(self._local(file_name(digest)))

    def _write(self, name: str, content: pa.Buffer) -> None:
        filesystem, root = locate(self._place)
        filesystem.create_dir(root, recursive=True)
        put(filesystem, f"{root}/{name}", content)

    def _local(self, name: str) -> Path:
        filesystem, root = locate(self._place)
        if not is_url(self._place):
            return Path(root) / name
        with (self._scratch / name).open("wb") as file:
            file.writelines(read_blocks(filesystem, f"{root}/{name}"))
        return self._scratch / name


def file_name(digest: str) -> str:
    """The name of the file of a digest."""
    return f"labels-{digest}.arrow"


def check_labels(place: str, digest: str) -> None:
    """Raise ValueError if the labels of this digest are not at `place`, or were altered. They are read whole."""
    filesystem, root = locate(place)
    found = hashlib.sha256()
    where = f"the pseudo-labels {shown(place)}/{file_name(digest)} of its stage"
    try:
        for block in read_blocks(filesystem, f"{root}/{file_name(digest)}"):
            found.update(block)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(f"{where} are missing") from None
    if found.hexdigest() != digest:
        raise ValueError(f"{where} were altered")
