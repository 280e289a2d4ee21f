"""Reads mask files, whatever codes their classes, and refuses what it would have to guess.

- A grey 8-bit PNG holds class indices, or other values that `MaskCoding.values` names.
- So does a palette PNG; its colours are for the eye alone.
- An RGB PNG holds colours, all of which `MaskCoding.colours` must name.
- A `.mat` file of SBD, the Semantic Boundaries Dataset, holds class indices and no void.

If the values are the class indices already, the file's pixels are kept as they are compressed.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..types import IGNORE_INDEX
from . import png
from .files import Mask
from .images import read_png

Colour = tuple[int, int, int]
"""Red, green, blue in 0..255."""

_SHOWN = 8  # values or colours that a message names


def voc_palette(count: int = 256) -> tuple[Colour, ...]:
    """The first `count` (<= 256) colours of the VOC colour map, in which background is 0 and void is 255.

    The lowest three bits of an index are the highest bits of red, green and blue, the next three the second highest, and so on.
    """

    def channel(index: int, bit: int) -> int:
        return sum((index >> (3 * step + bit) & 1) << (7 - step) for step in range(3))

    return tuple((channel(index, 0), channel(index, 1), channel(index, 2)) for index in range(count))


@dataclass(frozen=True, slots=True)
class MaskCoding:
    """What the masks of a data set hold. Called with the bytes of a PNG, it reads the mask.

    values: the class index of each value that a grey or palette PNG may hold; IGNORE_INDEX for void.
    colours: the same for each colour of an RGB PNG; empty if no colour is known, then RGB PNGs are refused.
    remedy: what messages advise if a value or a colour is none of these.
    """

    values: Mapping[int, int]
    colours: Mapping[Colour, int]
    remedy: str

    def __call__(self, encoded: bytes) -> Mask:
        """Read a mask. Raises ValueError if it is not a whole PNG, is of another kind, or has values outside the coding."""
        try:
            chunks = png.read_chunks(encoded)
            png.check_pixels(png.read_header(chunks), chunks)  # Pillow forgives what the decoder of training does not
            image = read_png(encoded)
        except ValueError as error:
            raise ValueError(f"is not a readable PNG: {error}; fetch or write it again") from None
        # Of the header: Pillow spreads grey values of fewer bits over 0..255, and cuts colours of 16 bits.
        depth = encoded[24]
        if image.mode == "P" or (image.mode == "L" and depth == 8):
            return self._of_indices(image, chunks, encoded, depth)
        if image.mode in ("RGB", "RGBA") and depth == 8:
            return self._of_colours(image)
        raise ValueError(
            f"has mode {image.mode} with {depth} bits, must be L with 8 bits, P, or RGB with 8 bits; write class indices as "
            "grey 8-bit PNGs"
        )

    def check_values(self, present: Iterable[int]) -> None:
        """Raise ValueError if one of the values that a mask holds is neither a class nor void."""
        wrong = [value for value in present if value not in self.values]
        if not wrong:
            return
        message = f"has the values {_listed(wrong)}; {self._bounds()}"
        if self.colours and set(wrong) <= {grey for colour in self.colours for grey in _luminances(colour)}:
            message += (
                ". They look like the luminances of the palette's colours: something read a palette PNG as a grey picture; "
                "take the original files"
            )
        raise ValueError(f"{message}: {self.remedy}")

    def _bounds(self) -> str:
        classes = _ranges(value for value, index in self.values.items() if index != IGNORE_INDEX)
        void = _ranges(value for value, index in self.values.items() if index == IGNORE_INDEX)
        return f"classes are {classes}, void is {void or 'none'}"

    def _of_indices(self, image: Image.Image, chunks: list[tuple[bytes, bytes]], encoded: bytes, depth: int) -> Mask:
        present = [value for value, pixels in enumerate(image.histogram()) if pixels]
        self.check_values(present)
        if image.mode == "P":
            self._check_palette(image, present)
        if any(self.values[value] != value for value in present):
            table = bytes.maketrans(bytes(present), bytes(self.values[value] for value in present))
            translated = np.frombuffer(image.tobytes().translate(table), np.uint8)
            return Mask(translated.reshape(image.height, image.width), None)
        indices = np.asarray(image)
        if image.mode == "L":
            return Mask(indices, encoded)
        return Mask(indices, _grey(chunks) if depth == 8 else None)

    def _check_palette(self, image: Image.Image, present: Sequence[int]) -> None:
        """Refuse a palette with the colours of the data set in another order: either the indices or the colours are wrong."""
        flat = image.getpalette() or []
        shown = [(flat[3 * value], flat[3 * value + 1], flat[3 * value + 2]) for value in present if 3 * value + 2 < len(flat)]
        if len(set(shown)) < len(present) or not all(colour in self.colours for colour in shown):
            return  # colours of its own, from which nothing follows
        for value, colour in zip(present, shown, strict=True):
            if self.colours[colour] != self.values[value]:
                raise ValueError(
                    f"has the index {value} in the colour {colour}, which is that of {_named(self.colours[colour])}, not of "
                    f"{_named(self.values[value])}: some programs reorder the palettes of PNGs; write class indices as grey "
                    "8-bit PNGs, or fix the palette"
                )

    def _of_colours(self, image: Image.Image) -> Mask:
        if not self.colours:
            raise ValueError(
                f"has mode {image.mode}, so colours for classes, and no palette says which; give a `palette` of one "
                "[red, green, blue] per class, or write class indices as grey 8-bit PNGs"
            )
        if image.mode == "RGBA" and image.getchannel("A").getextrema() != (255, 255):
            raise ValueError("has mode RGBA and is transparent in places; write it as RGB, with a void colour there")
        image = image.convert("RGB")
        counted = image.getcolors(256)  # None: more than that
        if counted is None:
            raise ValueError(
                "has more than 256 colours: it is a photo, or was resized or compressed with loss; take the original file"
            )
        present = sorted((colour[0], colour[1], colour[2]) for _, colour in counted if isinstance(colour, tuple))
        if wrong := [colour for colour in present if colour not in self.colours]:
            raise ValueError(f"has the colours {_listed(wrong)}, which are neither of a class nor void: {self.remedy}")
        codes = np.asarray(image.convert("RGBA")).view("<u4")[..., 0]  # one number per pixel, alpha 255 its highest byte
        indices = np.empty(codes.shape, np.uint8)
        for colour in present:
            indices[codes == int.from_bytes(bytes([*colour, 255]), "little")] = self.colours[colour]
        return Mask(indices, None)


def make_coding(
    num_classes: int,
    void: Iterable[int] = (IGNORE_INDEX,),
    palette: Sequence[Colour] = (),
    void_colours: Iterable[Colour] = (),
    remedy: str = "fix the mask",
) -> MaskCoding:
    """Masks of class indices 0..num_classes-1, or of the colours of `palette`, one per class; void becomes IGNORE_INDEX."""
    values = {index: index for index in range(num_classes)} | dict.fromkeys(void, IGNORE_INDEX)
    colours = {colour: index for index, colour in enumerate(palette)} | dict.fromkeys(void_colours, IGNORE_INDEX)
    return MaskCoding(values, colours, remedy)


def read_mat(encoded: bytes) -> NDArray[np.uint8]:
    """The class indices uint8 [H, W] of a MATLAB file of SBD's folder `cls`.

    Raises ValueError if it is not such a file.
    """
    from scipy.io import loadmat  # only SBD needs it

    try:
        indices = loadmat(io.BytesIO(encoded), variable_names=["GTcls"])["GTcls"][0]["Segmentation"][0]
    except Exception:  # scipy raises whatever the damaged bytes lead it into
        indices = None
    if not isinstance(indices, np.ndarray) or indices.dtype != np.uint8 or indices.ndim != 2:
        raise ValueError("is not a .mat file of SBD (GTcls.Segmentation, uint8 [H, W]); fetch it again")
    return indices


def _grey(chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    """An 8-bit palette PNG as a grey one of the same values: both compress one byte a pixel, so the pixels stay as they are."""
    parts = [png.SIGNATURE]
    for kind, content in chunks:
        if kind == b"IHDR":
            content = content[:9] + bytes([png.GREY]) + content[10:]
        if kind in (b"IHDR", b"IDAT", b"IEND"):  # all others speak of colours, or are remarks
            parts += [struct.pack(">I", len(content)), kind, content, struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))]
    return b"".join(parts)


def _luminances(colour: Colour) -> tuple[int, int]:
    """How bright a colour is, 0..255, as programs round it: down, or to the nearest."""
    red, green, blue = colour
    thousandths = 299 * red + 587 * green + 114 * blue
    return thousandths // 1000, (thousandths + 500) // 1000


def _named(index: int) -> str:
    return "void" if index == IGNORE_INDEX else f"class {index}"


def _listed(found: Sequence[object]) -> str:
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(map(str, found[:_SHOWN])) + more


def _ranges(numbers: Iterable[int]) -> str:
    """The numbers as ranges, such as 0..10, 255."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][-1] + 1:
            runs[-1] = [runs[-1][0], number]
        else:
            runs.append([number])
    return ", ".join("..".join(map(str, run)) for run in runs)
