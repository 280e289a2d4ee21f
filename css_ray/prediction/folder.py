"""Masks of many images, written into a folder; what a run that was killed has written is kept.

    masks/
      prediction.json                 which weights made the masks, and how: another model is refused
      street/0001.png                 class indices, 8 bits, with the palette
      overlay/street/0001.png         the image under the colours of its classes
      confidence/street/0001.png      grey, 16 bits: the probability of the class times 65535

Each file is written under another name and renamed once it is on the disk, so what has its name is whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from css_ray import __version__
from css_ray.data.files import resized
from css_ray.data.images import MAX_PIXELS, decode_rgb, image_size, read_png
from css_ray.data.masks import Colour
from css_ray.data.overview import overlaid
from css_ray.data.png import declared_size
from css_ray.functional.metrics import confusion_matrix
from css_ray.messages import quoted
from css_ray.prediction.model import TrainedModel
from css_ray.prediction.pictures import Picture, Pictures
from css_ray.storage import check_folder, check_writable_folder, whole_file, write_whole
from css_ray.training.evaluate import evaluation_of
from css_ray.types import Evaluation

RECORD = "prediction.json"
FORMAT = 1
OVERLAY, CONFIDENCE = "overlay", "confidence"
CONFIDENCE_SCALE = 65535

_SHOWN = 10
_READERS = 4
"""Threads that read, decode and write images while the network is at work."""


class PredictionError(ValueError):
    """A folder that cannot take these masks; nothing was written."""


@dataclass(slots=True)
class Done:
    """What was predicted.

    written, kept: how many images have new masks, and masks of an earlier run. failed: by the image's place, why it could not
    be read. evaluation: over all images, if each of them has a mask; None otherwise. other_sizes: how many images have another
    size than those of the model's evaluation, which all had one.
    """

    written: int = 0
    kept: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    evaluation: Evaluation | None = None
    other_sizes: int = 0


class Progress(Protocol):
    """Called after each batch with how many images are done, and of how many."""

    def __call__(self, done: int, total: int, /) -> None: ...


@dataclass(frozen=True, slots=True)
class _Image:
    """An image of a batch. pixels: uint8 [3, H, W] as the network sees it; own: as it is, if that is another size."""

    picture: Picture
    size: tuple[int, int]
    pixels: Tensor | None
    own: Tensor | None = None


def predict_folder(
    model: TrainedModel,
    pictures: Pictures,
    out: str | Path,
    *,
    overlay: bool = False,
    confidence: bool = False,
    batch: int | None = None,
    threads: int | None = None,
    resize: tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: Progress = lambda done, total: None,
) -> Done:
    """Write the masks of images into a folder, and continue what an earlier call with the same model has begun.

    Batches are those that the evaluation of the study would make of these images, and so are the threads of a CPU: on the same
    kind of machine, the masks of its images are the ones that it counted, bit for bit. An image that is newer than its mask is
    predicted again.

    Args:
        model: What predicts.
        pictures: The images, as `find_pictures` lists them.
        out: The folder, which is made.
        overlay, confidence: Write these, too.
        batch: Images of one size that are predicted together; by default as in the evaluation.
        threads: Of a CPU; by default as in the evaluation.
        resize: (width, height) that images get first, as `css-ray data prepare --resize` makes them; masks get the size of
            their image again. For studies whose data set was prepared so.
        max_pixels: How many pixels an image may have.
        progress: Told of each batch.

    Returns:
        What was done. Images that cannot be read are named in it, and the others are predicted.

    Raises:
        PredictionError: The folder has masks of another model or other settings, two images would be written to one file, the
            data set has other classes than the model, or another process is at work on the folder.
        OSError: A file cannot be written.
    """
    if resize is not None and min(resize) < 1:
        raise ValueError(f"resize must be at least 1x1, got {resize[0]}x{resize[1]}")
    folder = Path(out)
    _check_classes(model, pictures)
    best = model.best
    batch = batch or best.batch or 1
    threads = threads or best.threads
    writer = _Writer(folder, model.palette, overlay, confidence)
    writer.check_targets(pictures.pictures)
    how = {
        "evaluation": best.evaluation, "crop": best.crop, "window_average": best.window_average, "batch": batch,
        "threads": threads, "resize": resize and list(resize),
    }  # fmt: skip
    with _claimed(folder, _record(model, how), writer, pictures.pictures), ThreadPoolExecutor(_READERS) as pool:
        done = Done()
        matrix = torch.zeros(best.num_classes, best.num_classes, dtype=torch.int64)
        reader = _Reader(writer, resize, max_pixels, done)
        ordered = shared_out(pictures.pictures, best.workers)
        count = 0
        writing: list[Future[None]] = []
        for images in _batches(_read_ahead(ordered, reader, pool), batch):
            missing = [image for image in images if image.pixels is None]
            if len(missing) == len(images):
                done.kept += len(images)
            else:
                # All of the batch, so that each has the bits that it would have had without the interruption.
                whole = [image if image.pixels is not None else reader.read(image.picture) for image in images]
                pixels = torch.stack([image.pixels for image in whole if image.pixels is not None])
                classes, sure = (maps.cpu().numpy() for maps in model.predict(pixels, threads=threads))
                for future in writing:
                    future.result()
                writing = [
                    pool.submit(writer.write, image, classes[index], sure[index])
                    for index, image in enumerate(whole)
                    if images[index].pixels is not None
                ]
                done.written += len(writing)
                done.kept += len(missing)
            if pictures.has_truth:
                for future in writing:
                    future.result()
                for image in images:
                    matrix += _counted(writer.mask(image.picture), image.picture.truth(), best.num_classes)
            count += len(images)
            progress(count + len(done.failed), len(pictures.pictures))
        for future in writing:
            future.result()
        if best.image_size is not None and resize is None:
            width, height = best.image_size
            done.other_sizes = sum(size != (height, width) for size in reader.sizes)
    if pictures.has_truth and not done.failed and bool(matrix.any()):
        done.evaluation = evaluation_of(matrix, len(pictures.pictures))
    return done


def shared_out(pictures: Sequence[Picture], workers: int) -> list[list[Picture]]:
    """The images of each rank of an evaluation, in its order."""
    return [list(pictures[rank::workers]) for rank in range(workers)]


def _check_classes(model: TrainedModel, pictures: Pictures) -> None:
    if pictures.info is None or (theirs := pictures.info.class_names) == (ours := model.best.class_names):
        return
    unknown = [name for name in theirs if name not in ours]
    lacking = [name for name in ours if name not in theirs]
    parts = [f"{text} {', '.join(names[:_SHOWN])}" for text, names in (("has", unknown), ("lacks", lacking)) if names]
    raise PredictionError(
        f"the data set {pictures.info.name} has other classes than {model.name}, which was trained on {model.best.dataset}: it "
        f"{' and '.join(parts) or 'has them in another order'}; give a folder of its image files, which have no classes"
    )


def _counted(mask: NDArray[np.uint8], truth: Tensor | None, num_classes: int) -> Tensor:
    assert truth is not None
    return confusion_matrix(torch.from_numpy(mask.copy()).long()[None], truth.long()[None], num_classes)


# ------------------------------------------------------------------------------------------------------------------ reading


class _Reader:
    """Reads images; those that cannot be read go to `done.failed`. sizes: (height, width) of those that it has read."""

    def __init__(self, writer: _Writer, resize: tuple[int, int] | None, max_pixels: int, done: Done) -> None:
        self._writer, self._resize, self._max_pixels, self._done = writer, resize, max_pixels, done
        self.sizes: list[tuple[int, int]] = []

    def look(self, picture: Picture) -> _Image | None:
        """The image with its pixels, without them if all its files are there; None if it cannot be read."""
        if (size := self._writer.finished(picture)) is not None:
            return _Image(picture, self._seen(size), None)
        try:
            return self.read(picture)
        except (OSError, ValueError) as error:
            self._done.failed[picture.place] = str(error)
            return None

    def read(self, picture: Picture) -> _Image:
        encoded = picture.encoded()
        size = image_size(encoded, self._max_pixels)
        self.sizes.append(size)
        own = decode_rgb(encoded)
        if self._seen(size) == size:
            return _Image(picture, size, own)
        assert self._resize is not None
        return _Image(picture, self._seen(size), decode_rgb(resized(encoded, self._resize)), own)

    def _seen(self, size: tuple[int, int]) -> tuple[int, int]:
        """The (height, width) in which the network sees an image of this size."""
        return size if self._resize is None else (self._resize[1], self._resize[0])


def _read_ahead(ranks: Sequence[Sequence[Picture]], reader: _Reader, pool: ThreadPoolExecutor) -> Iterator[_Image | None]:
    """The images in order, some of them read before they are asked for; None at the end of a rank's."""
    for pictures in ranks:
        rest, ahead = iter(pictures), deque[Future[_Image | None]]()
        while True:
            while len(ahead) < 2 * _READERS and (picture := next(rest, None)) is not None:
                ahead.append(pool.submit(reader.look, picture))
            if not ahead:
                break
            if (image := ahead.popleft().result()) is not None:
                yield image
        yield None


def _batches(images: Iterator[_Image | None], batch: int) -> Iterator[list[_Image]]:
    """Consecutive images of one size, as an evaluation groups them."""
    held: list[_Image] = []
    for image in images:
        if held and (image is None or image.size != held[0].size or len(held) == batch):
            yield held
            held = []
        if image is not None:
            held.append(image)


# ------------------------------------------------------------------------------------------------------------------ writing


class _Writer:
    """The files of each image in a folder."""

    def __init__(self, folder: Path, palette: Sequence[Colour], overlay: bool, confidence: bool) -> None:
        self._folder, self._palette, self._overlay, self._confidence = folder, palette, overlay, confidence

    def mask_file(self, picture: Picture) -> Path:
        return self._folder / f"{picture.name}.png"

    def files(self, picture: Picture) -> list[Path]:
        kinds = [kind for kind, asked in ((OVERLAY, self._overlay), (CONFIDENCE, self._confidence)) if asked]
        return [self.mask_file(picture), *(self._folder / kind / f"{picture.name}.png" for kind in kinds)]

    def check_targets(self, pictures: Sequence[Picture]) -> None:
        """Refuse two images with one file, and a file that is an image itself."""
        first: dict[Path, Picture] = {}
        sources = {os.path.realpath(picture.place) for picture in pictures}
        clashes = []
        for picture in pictures:
            for file in self.files(picture):
                other = first.setdefault(file, picture)
                if other is not picture:
                    clashes.append(f"{quoted(other.place)} and {quoted(picture.place)} (both {quoted(file)})")
                if os.path.realpath(file) in sources:
                    raise PredictionError(f"--out: {quoted(file)} is one of the images; choose another folder")
        if clashes:
            more = f" and {len(clashes) - _SHOWN} more" if len(clashes) > _SHOWN else ""
            raise PredictionError(
                f"two images would be written to one file: {', '.join(clashes[:_SHOWN])}{more}; rename one of the two, or "
                "predict them into two folders"
            )

    def finished(self, picture: Picture) -> tuple[int, int] | None:
        """(height, width) of an image whose files are all there and not older than it; None if one is to be written."""
        try:
            if any(file.stat().st_mtime < picture.changed() for file in self.files(picture)):
                return None
            with self.mask_file(picture).open("rb") as file:
                return declared_size(file.read(24))
        except OSError:
            return None

    def mask(self, picture: Picture) -> NDArray[np.uint8]:
        """The mask that was written, [H, W]."""
        return np.asarray(read_png(self.mask_file(picture).read_bytes()))

    def write(self, image: _Image, classes: NDArray[np.uint8], confidence: NDArray[np.float32]) -> None:
        """Write the files of an image, the mask last."""
        shown = image.pixels if image.own is None else image.own
        assert shown is not None
        height, width = shown.shape[1:]
        if classes.shape != (height, width):
            classes, confidence = (_sized(each, (height, width)) for each in (classes, confidence))
        files = self.files(image.picture)
        pictures: list[Image.Image] = [_indexed(classes, self._palette)]
        if self._overlay:
            pictures.append(Image.fromarray(overlaid(shown.permute(1, 2, 0).numpy(), classes, self._palette)))
        if self._confidence:
            scaled = (confidence.astype(np.float64) * CONFIDENCE_SCALE).round()
            pictures.append(Image.fromarray(scaled.clip(0, CONFIDENCE_SCALE).astype(np.uint16)))
        for file, picture in reversed(list(zip(files, pictures, strict=True))):
            file.parent.mkdir(parents=True, exist_ok=True)
            encoded = io.BytesIO()
            picture.save(encoded, "PNG")
            with whole_file(file) as target:
                target.write(encoded.getvalue())


def _indexed(classes: NDArray[np.uint8], palette: Sequence[Colour]) -> Image.Image:
    """A palette image of class indices. All 256 colours are given: with fewer, Pillow would pack several pixels into a byte."""
    image = Image.fromarray(classes)
    image.putpalette([value for colour in palette for value in colour] + [0] * (3 * (256 - len(palette))))
    return image


def _sized(values: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """[h, w] -> [H, W]: of each pixel the value below its centre."""
    rows, columns = (((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(size, values.shape, strict=True))
    sized: NDArray[Any] = values[rows[:, None], columns[None, :]]
    return sized


# ------------------------------------------------------------------------------------------------------------ whose they are


def _record(model: TrainedModel, how: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "css_ray": __version__,
        "model": model.name,
        "weights": list(model.digests),
        "how": dict(how),
        "classes": list(model.best.class_names),
        "palette": [list(colour) for colour in model.palette],
        "confidence": f"16-bit grey, probability times {CONFIDENCE_SCALE}",
    }


_SAME = ("weights", "how", "classes", "palette")
"""What masks in one folder have in common."""


@contextmanager
def _claimed(folder: Path, record: dict[str, Any], writer: _Writer, pictures: Sequence[Picture]) -> Iterator[None]:
    """The folder is this model's within the block, and no other process writes to it."""
    check_folder(folder)
    check_writable_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RECORD
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PredictionError(f"--out: another process writes masks to {quoted(folder)}; wait for its end") from None
        if path.exists():
            _check_same(path, record)
        elif taken := [file for picture in pictures for file in writer.files(picture) if file.exists()]:
            raise PredictionError(
                f"--out: {quoted(taken[0])} exists, and no {RECORD} shows where it is from; choose another folder, or remove it"
            )
        else:
            write_whole(path, (json.dumps(record, indent=1) + "\n").encode())
        yield
    finally:
        os.close(descriptor)


def _check_same(path: Path, record: Mapping[str, Any]) -> None:
    remedy = "choose another folder, or remove this one"
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise PredictionError(f"--out: {quoted(path)} was not written by this version of css-ray, or was altered; {remedy}")
    differing = [key for key in _SAME if found.get(key) != record[key]]
    if not differing:
        return
    if "weights" in differing:
        before, now = (f"{each.get('model')} (weights {_short(each.get('weights'))})" for each in (found, record))
        what = f"the masks of {before[:200]}, not of {now}"
    else:
        how = found["how"] if isinstance(found.get("how"), dict) else {}
        changes = [f"{key} {how.get(key)!r}, now {value!r}" for key, value in record["how"].items() if how.get(key) != value]
        what = f"masks that were made in another way ({', '.join(changes) or ', '.join(differing)})"
    raise PredictionError(f"--out: {quoted(path.parent)} has {what}; {remedy}")


def _short(digests: object) -> str:
    """The hash of some weights, in a few digits."""
    each = [str(digest) for digest in digests] if isinstance(digests, list) else []
    text = each[0] if len(each) == 1 else hashlib.sha256(" ".join(each).encode()).hexdigest()
    return text[:12]
