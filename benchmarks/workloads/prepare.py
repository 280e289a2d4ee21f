"""Preparing a data set of loose files, against copying the files."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import tempfile
from pathlib import Path

import yaml

from benchmarks import Row, compare
from benchmarks.workloads.photographs import CLASSES, write_loose
from css_ray.data.catalogue import prepare
from css_ray.data.processes import in_processes

_IMAGES = 1500


def row(num_images: int = _IMAGES) -> Row:
    """`data prepare` with two processes against `cp -r`; both put what they wrote on the disk, not only into its cache."""
    with tempfile.TemporaryDirectory() as temporary:
        root, written = Path(temporary) / "root", Path(temporary) / "written"
        description = _make_files(root, num_images)
        written.mkdir()
        number = itertools.count()

        def ours() -> None:
            prepare(description, written / str(next(number)), root=root, spread=in_processes(2))

        def other() -> None:
            copy = str(written / str(next(number)))
            subprocess.run(["cp", "-r", str(root), copy], check=True)
            subprocess.run(["sync", "--file-system", copy], check=True)

        return compare(f"data prepare, {num_images:,} images, two processes, vs cp -r and sync", ours, other, 3.0)


def _make_files(root: Path, num_images: int) -> Path:
    """Loose files in folders as CamVid has them, and their description. The last tenth is for validation."""
    for folder in ("images", "masks", "some"):
        (root / folder).mkdir(parents=True)
    some = write_loose(root / "some", 40)
    ids = [f"{number:05d}" for number in range(num_images)]
    for id, path in zip(ids, itertools.cycle(some), strict=False):
        shutil.copyfile(path, root / "images" / f"{id}.jpg")
        shutil.copyfile(path.with_suffix(".png"), root / "masks" / f"{id}.png")
    shutil.rmtree(root / "some")
    parts = {}
    for name, listed in (("train", ids[: -num_images // 10]), ("val", ids[-num_images // 10 :])):
        (root / f"{name}.txt").write_text("\n".join(listed))
        parts[name] = {"images": "images", "masks": "masks", "list": f"{name}.txt"}
    description = root / "noise.yaml"
    classes = [f"class {number}" for number in range(CLASSES)]
    description.write_text(yaml.safe_dump({"name": "noise", "classes": classes, **parts}))
    return description
