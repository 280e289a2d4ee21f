"""Encoded images and masks: which are whole, how large they are, and their pixels.

Nothing here trusts the bytes: what is wrong with them is a ValueError, whatever Pillow and torchvision make of them.
"""

from __future__ import annotations

import io

import pyarrow as pa
import torch
from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from css_ray.data import png

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")

MAX_PIXELS = 2 * 89_478_485
"""The pixels that an image may have unless more are allowed: beyond that Pillow, too, supposes an attack."""

_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"


def decode_rgb(encoded: bytes | pa.Buffer) -> Tensor:
    """A JPEG, PNG or WebP that is whole, see `image_size`, as uint8 [3, H, W]. Raises ValueError for anything else."""
    return _decode(encoded, ImageReadMode.RGB)


def decode_mask(encoded: bytes | pa.Buffer) -> Tensor:
    """A mask that is whole, see `mask_size`, as uint8 [H, W]."""
    # torchvision gives the indices as they are only in this mode.
    return _decode(encoded, ImageReadMode.UNCHANGED)[0]


def _decode(encoded: bytes | pa.Buffer, mode: ImageReadMode) -> Tensor:
    # torch wants writable memory, and a mapped file is not: copy the encoded bytes, which are few.
    writable = bytearray(encoded)
    if _kind(writable) is None:
        raise ValueError(f"it starts with {bytes(writable[:8])!r}")
    try:
        decoded: Tensor = decode_image(torch.frombuffer(writable, dtype=torch.uint8), mode)
    except RuntimeError as error:
        raise ValueError(_first_line(error)) from None
    return decoded


def _kind(encoded: bytes | bytearray) -> str | None:
    """JPEG, PNG or WebP; None if it is none of them."""
    if encoded.startswith(png.SIGNATURE):
        return "PNG"
    if encoded.startswith(_JPEG_START):
        return "JPEG"
    return "WebP" if encoded.startswith(b"RIFF") and encoded[8:12] == b"WEBP" else None


class _UnfitError(ValueError):
    """A whole image, but not one to train on."""


def image_size(encoded: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(height, width) in pixels of a JPEG, PNG or WebP that is whole, has one frame, and at most `max_pixels` pixels.

    Of a JPEG or WebP it reads the header and looks for the end, and decodes only an unusual one; `css-ray data check` decodes
    them all. Of a PNG it looks at every byte, see `png`.

    Raises ValueError with what is wrong.
    """
    if not encoded:
        raise ValueError("image is empty (0 bytes); fetch it again")
    try:
        kind = _kind(encoded)
        if kind is None:
            raise ValueError(f"it starts with {encoded[:8]!r}")
        return _png_size(encoded, max_pixels) if kind == "PNG" else _other_size(encoded, kind, max_pixels)
    except _UnfitError as error:
        raise ValueError(f"image {error}") from None
    except Exception as error:  # Pillow raises whatever the damaged bytes lead it into
        raise ValueError(f"image is not a readable {'/'.join(IMAGE_SUFFIXES)} ({_first_line(error)})") from None


def _png_size(encoded: bytes, max_pixels: int) -> tuple[int, int]:
    chunks = png.read_chunks(encoded)
    header = png.read_header(chunks)
    frames = next((int.from_bytes(content[:4], "big") for kind, content in chunks if kind == b"acTL"), 1)
    _refuse_unfit(header.height, header.width, frames, max_pixels)
    if header.depth > 8:
        raise _UnfitError(f"has {header.depth} bits per channel, must have 8; convert it")
    png.check_pixels(header, chunks)
    return header.height, header.width


def _other_size(encoded: bytes, kind: str, max_pixels: int) -> tuple[int, int]:
    # The plugins themselves: `Image.open` has a bound of its own, one for the whole process.
    plugin = JpegImagePlugin.JpegImageFile if kind == "JPEG" else WebPImagePlugin.WebPImageFile
    with plugin(io.BytesIO(encoded)) as image:
        width, height = image.size
        _refuse_unfit(height, width, getattr(image, "n_frames", 1), max_pixels)
        usual = image.mode in ("RGB", "L") and _ends_well(encoded, kind)
        if not usual:
            image.load()
    if not usual:
        decode_rgb(encoded)
    return height, width


def _refuse_unfit(height: int, width: int, frames: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise _UnfitError(
            f"has {width * height:,} pixels ({width}x{height}, width x height), at most {max_pixels:,} are allowed; if it is "
            f"meant to be so large, give --max-pixels {width * height}, else make it smaller or cut it into tiles"
        )
    if frames > 1:
        raise _UnfitError(f"is an animation of {frames} frames, must have one; save the frame that is meant")


def _ends_well(encoded: bytes, kind: str) -> bool:
    """Whether the last bytes are those that its kind ends with; padding after them is left to a decoder to judge."""
    if kind == "JPEG":
        return encoded.endswith(_JPEG_END)
    return len(encoded) >= 8 + int.from_bytes(encoded[4:8], "little")  # RIFF: the length of what follows


def _first_line(error: Exception) -> str:
    """What a decoder said, if it is for users."""
    lines = str(error).splitlines()
    return lines[0] if lines and lines[0].isprintable() and "object at 0x" not in lines[0] else type(error).__name__


def mask_size(encoded: bytes) -> tuple[int, int]:
    """(height, width) of a mask as shards hold it: a grey 8-bit PNG that is whole. Raises ValueError with what is wrong."""
    try:
        chunks = png.read_chunks(encoded)
        header = png.read_header(chunks)
        if (header.depth, header.colours) != (8, png.GREY):
            raise ValueError(f"it has {header.depth} bits per channel and the colour type {header.colours}")
        png.check_pixels(header, chunks)
    except ValueError as error:
        raise ValueError(f"is not a whole grey 8-bit PNG: {error}") from None
    return header.height, header.width


def read_png(encoded: bytes) -> Image.Image:
    """A PNG with its pixels, of any size: whoever calls has compared its size with what is allowed.

    Raises ValueError if it cannot be decoded.
    """
    try:
        with PngImagePlugin.PngImageFile(io.BytesIO(encoded)) as image:
            image.load()
    except Exception as error:  # Pillow raises whatever the damaged bytes lead it into
        raise ValueError(_first_line(error)) from None
    return image
