"""Real street scenes, read by the description that ships with the studies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from css_ray.data.catalogue import prepare
from css_ray.data.shards import DataSet, open_dataset
from css_ray.data.splits import make_split
from css_ray.types import IGNORE_INDEX

ROOT = Path(__file__).parents[2]
CAMVID = ROOT.parent / "shared" / "camvid"

pytestmark = pytest.mark.skipif(
    not CAMVID.is_dir(), reason="CamVid is not in ../shared/camvid beside the repository; its licence keeps it out of it"
)


@pytest.fixture(scope="module")
def camvid(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    out = tmp_path_factory.mktemp("data") / "camvid"
    assert prepare(ROOT / "studies" / "data" / "camvid.yaml", out, root=CAMVID, resize=(160, 120))
    return open_dataset(out)


def test_counts_and_sizes(camvid: DataSet) -> None:
    assert (len(camvid.train), len(camvid.val), camvid.info.num_classes) == (367, 101, 11)
    assert set(camvid.train.sizes + camvid.val.sizes) == {(120, 160)}
    assert camvid.train.ids == tuple((CAMVID / "train.txt").read_text().split())


def test_masks_are_the_original_ones_with_void_ignored(camvid: DataSet) -> None:
    for index in (0, 50, 100):
        sample = camvid.val[index]
        original = np.array(Image.open(CAMVID / "valannot" / f"{sample.id}.png"))
        centres = original[1::3, 1::3]  # a third of each side: nearest takes the middle pixel of 3 x 3
        assert sample.mask is not None
        assert np.array_equal(sample.mask.numpy(), np.where(centres == 11, IGNORE_INDEX, centres))


def test_images_look_like_the_original_ones(camvid: DataSet) -> None:
    sample = camvid.train[0]
    original = np.array(Image.open(CAMVID / "train" / f"{sample.id}.jpg")).astype(float)
    means = torch.from_numpy(original.reshape(120, 3, 160, 3, 3).mean((1, 3))).permute(2, 0, 1)
    assert (sample.image - means).abs().mean() < 6


def test_prepared_checked_shown_and_split_by_the_commands(tmp_path: Path) -> None:
    from css_ray_cli.data import data

    def run(*arguments: object) -> str:
        result = CliRunner().invoke(data, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        return result.output

    out = tmp_path / "camvid"
    prepare_it = ("prepare", ROOT / "studies" / "data" / "camvid.yaml", "--root", CAMVID, "--out", out)
    assert "367 images, 367 with masks, 480x360" in run(*prepare_it)
    assert "nothing was done" in run(*prepare_it)
    assert "468 images read, nothing is wrong" in run("check", out)
    sheet = tmp_path / "sheet.png"
    assert "Bicyclist" in run("info", out, "--contact-sheet", sheet) and sheet.stat().st_size > 10_000
    assert "11 of 11" in run("splits", "show", out, "--labelled", 20)
    run("splits", "write", out, "--labelled", 20, "--out", tmp_path / "splits")
    listed = (tmp_path / "splits" / "20" / "0" / "labeled.txt").read_text().split()
    split = make_split(open_dataset(out), 20, 0)
    assert tuple(listed) == split.labelled
    assert split.hash[:12] in run("splits", "check", out, "--labelled-list", tmp_path / "splits" / "20" / "0" / "labeled.txt")
    # The images' bytes are those of the files.
    train = open_dataset(out).train
    assert train.encoded(7)[0].to_pybytes() == (CAMVID / "train" / f"{train.ids[7]}.jpg").read_bytes()


def test_twenty_labels_show_every_class(camvid: DataSet) -> None:
    classes = dict(zip(camvid.train.ids, camvid.train.classes, strict=True))
    for index in range(3):
        split = make_split(camvid, 20, index)
        assert set().union(*(classes[id] or () for id in split.labelled)) == set(range(11))
        assert len(split.unlabelled) == 347
