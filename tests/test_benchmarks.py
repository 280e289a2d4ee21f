"""What the benchmarks compare does run; what it takes is no test's business."""

from __future__ import annotations

import pytest
import torch

from benchmarks import Row, UnavailableError, __main__
from benchmarks.groups import gpu
from benchmarks.simulations import coverage
from benchmarks.workloads import contrast, pil_views
from benchmarks.workloads.steps import Pairs
from css_ray.methods import PRCL
from css_ray.models import ModelConfig
from css_ray.training.settings import TrainConfig
from css_ray.views import Views

TINY = ModelConfig(
    encoder="tiny", output_stride=4, pretrained=False, decoder_channels=8, low_level_channels=4, representation_dim=8
)


def test_the_gpu_table_and_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    settings = TrainConfig(precision="bf16", channels_last=True)
    measured = gpu.measure(TINY, 32, 2, settings, torch.device("cpu"), repeats=1)
    assert measured is not None and measured.seconds > 0 and measured.passes > 0
    line = gpu.table_line(TINY, 2, settings, measured)
    assert line.startswith("| 4 | bf16 | yes | no |") and line.count("|") == gpu.TABLE_HEAD[0].count("|")
    assert gpu.table_line(TINY, 2, settings, None).count("|") == line.count("|")
    assert len(list(gpu.rows_of(TINY, [measured] * len(gpu.SETTINGS)))) == 2
    cells = gpu.launch_line(TINY, 32, 2, settings, torch.device("cpu")).split("|")
    assert cells[1:3] == [" bf16 ", " yes "] and cells[3].endswith(" ms ") and len(cells) == gpu.LAUNCH_HEAD[0].count("|") + 1
    assert list(gpu.rows_of(TINY, [None] * len(gpu.SETTINGS))) == []


@pytest.mark.slow
def test_the_rows_of_prcl() -> None:
    torch.set_num_threads(1)
    scores, step = gpu.pairs_rows(torch.device("cpu"), TINY, 32, 2)
    assert scores.name.startswith("prcl's scores") and step.name.startswith("prcl step, tiny, 2 + 2 of 32 x 32")
    Pairs(PRCL.Config(num_queries=3, num_negatives=4), channels=8).one_by_one()


def test_both_sides_run() -> None:
    given = contrast.inputs(batch=1, channels=8, size=16, queries=4, negatives=4)
    contrast.ours(given, "per_anchor")
    contrast.ours(given, "shared")
    contrast.published(given)
    images, labels, confidence = torch.rand(2, 3, 32, 32), torch.randint(21, (2, 32, 32)), torch.rand(2, 32, 32)
    for given_map, moved in zip(
        (images, labels, confidence), pil_views.strong_view(images, labels, confidence, Views()), strict=True
    ):
        assert moved.shape == given_map.shape and moved.dtype == given_map.dtype


@pytest.mark.parametrize(("ours", "code"), [(1.0, 0), (3.0, 1)])
def test_the_exit_code_says_whether_all_rows_hold(
    ours: float, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def skipped() -> None:
        raise UnavailableError("torch sees no CUDA device")

    monkeypatch.setattr("benchmarks.groups.gpu.rows", skipped)
    monkeypatch.setattr("benchmarks.groups.method.rows", lambda: [Row("step", ours, 1.0, 2.0)])
    assert __main__.main(["gpu", "method"]) == code
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "gpu: skipped, torch sees no CUDA device"
    assert f'"holds": {"false" if code else "true"}' in printed[2]


def test_a_simulated_coverage_is_a_share_in_percent() -> None:
    scene = coverage.SCENES[1]
    ours, plain = coverage.coverages(scene, 3, studies=4)
    assert ours in (0, 25, 50, 75, 100) and plain in (0, 25, 50, 75, 100)
    assert coverage.table_line(scene, 3, ours, plain).count("|") == coverage.HEAD[0].count("|")
    # Wrong pixels are fewer in the better row, by about the same difference whatever the luck.
    assert all(2 < coverage.true_difference(each, images=2000) < 6 for each in coverage.SCENES)
