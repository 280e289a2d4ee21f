"""Reads any folder of images and index masks that a small YAML file describes."""

from __future__ import annotations

import colorsys
import hashlib
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image

from ..types import IGNORE_INDEX
from .shards import DatasetInfo, Row, Source, decode_rgb


def folder_source(description: str | Path, root: Path | None, resize: tuple[int, int] | None = None) -> Source:
    raise NotImplementedError
