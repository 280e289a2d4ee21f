"""Memory: how this process treats what it has freed, and whether an error reports that there was too little."""

from __future__ import annotations

import ctypes
import platform
import sys

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # the parameters of glibc's mallopt
_LARGEST_MMAP_THRESHOLD = 32 * 2**20


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory for the next step instead of giving it back; True if it can (glibc).

    A step on a CPU frees and asks for the same large tensors again and again, and the kernel would hand out, and clear, each of
    their pages again: half of the time of what is not a convolution. The process stays as large as its largest step.
    """
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    settings = {_MMAP_THRESHOLD: _LARGEST_MMAP_THRESHOLD, _TRIM_THRESHOLD: 2**31 - 1}
    return all([library.mallopt(parameter, value) == 1 for parameter, value in settings.items()])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error is a device's or this machine's lack of memory."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
