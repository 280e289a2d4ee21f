"""The loop: exact resume, what it reports, how it fails, and ranks that agree."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing
from torch import Tensor

from css_ray import distributed
from css_ray.methods import METHODS, Method
from css_ray.models import ModelConfig, make_segmenter
from css_ray.training.loop import Fit, NonFiniteLossError, fit
from css_ray.training.optimizer import make_optimizer, set_learning_rate
from css_ray.training.reporter import FolderReporter, SilentReporter
from css_ray.training.settings import TrainConfig
from css_ray.types import Batch
from css_ray.views import Views

NUM_CLASSES = 3
NAMES = ("sky", "road", "tree")
MODEL = ModelConfig(
    encoder="tiny", output_stride=4, pretrained=False, decoder_channels=8, low_level_channels=4, representation_dim=8
)


def make_method(name: str = "css", **settings: Any) -> Method:
    method = METHODS[name]
    torch.manual_seed(0)
    return method(
        lambda: make_segmenter(MODEL, NUM_CLASSES, representation=method.needs_representations),
        method.Config(**settings),
        Views(),
    )


def batch(step: int, rank: int = 0, size: int = 2) -> Batch:
    """Noise over coarse blocks of classes, a pure function of step and rank."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    labels = torch.randint(NUM_CLASSES, (size, 4, 4), generator=generator).repeat_interleave(6, 1).repeat_interleave(6, 2)
    images = (torch.rand(size, 3, 24, 24, generator=generator) + labels[:, None]) / NUM_CLASSES
    return Batch(images, labels, images.flip(0), torch.ones(size, 24, 24, dtype=torch.bool))


def batches_to(end: int, rank: int = 0) -> Callable[[int], Iterable[Batch]]:
    return lambda start: (batch(step, rank) for step in range(start, end))


def val_batches() -> list[tuple[Tensor, Tensor]]:
    held_out = batch(1000, size=4)
    return [(held_out.labelled_images, held_out.labels)]


def run(method: Method, config: TrainConfig, **changes: Any) -> Fit:
    arguments: dict[str, Any] = {
        "make_batches": batches_to(config.iterations), "val_batches": val_batches(), "class_names": NAMES, "seed": 3,
        "reporter": SilentReporter(),
    }  # fmt: skip
    return fit(method, config, **{**arguments, **changes})


CONFIG = TrainConfig(iterations=6, lr=0.05, evaluate_every=2, log_every=1)


class Interrupted(Exception):
    pass


class InterruptAfter(FolderReporter):
    """Dies at a step, as a kill would: after its checkpoint, or before it."""

    def __init__(self, folder: Path, step: int) -> None:
        super().__init__(folder)
        self.step = step

    def logged(self, step: int, metrics: Any) -> None:
        super().logged(step, metrics)
        if step == self.step:
            raise Interrupted


@pytest.mark.parametrize("name", list(METHODS))
def test_a_resumed_run_is_the_undisturbed_one_bit_for_bit(name: str, tmp_path: Path) -> None:
    undisturbed, whole = make_method(name), SilentReporter()
    expected = run(undisturbed, CONFIG, reporter=whole)

    with pytest.raises(Interrupted):
        run(make_method(name), CONFIG, reporter=InterruptAfter(tmp_path, step=5))
    resumed, rest = make_method(name), FolderReporter(tmp_path)
    torch.manual_seed(12345)  # what the resumed process did before must not matter
    result = run(resumed, CONFIG, reporter=rest, checkpoint=rest.checkpoint)

    assert [step for step, _ in rest.logs] == [5, 6]  # the last checkpoint is of step 4
    assert rest.logs == whole.logs[4:]
    assert rest.evaluations == whole.evaluations[2:]
    assert (result.last, result.best, result.best_step) == (expected.last, expected.best, expected.best_step)
    for key, value in undisturbed.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def test_a_finished_run_resumes_to_its_result(tmp_path: Path) -> None:
    reporter = FolderReporter(tmp_path)
    expected = run(make_method("supervised"), CONFIG, reporter=reporter)
    again = run(make_method("supervised"), CONFIG, checkpoint=reporter.checkpoint)
    assert (again.last, again.best_step, again.step) == (expected.last, expected.best_step, 6)


def test_it_learns(tmp_path: Path) -> None:
    config = TrainConfig(iterations=60, lr=0.1, evaluate_every=60, log_every=10)
    reporter = SilentReporter()
    result = run(make_method("supervised"), config, reporter=reporter)
    # Three classes told apart by brightness; chance is an IoU of about 20 %.
    assert result.last["val/miou"] > 60
    assert reporter.logs[-1][1]["train/loss"] < 0.7 * reporter.logs[0][1]["train/loss"]


def test_what_is_reported() -> None:
    reporter = SilentReporter()
    kept: list[dict[str, Tensor]] = []
    method = make_method("css")
    result = run(
        method, TrainConfig(iterations=5, lr=0.05, evaluate_every=2, log_every=3), reporter=reporter, keep_best=kept.append
    )
    assert [step for step, _ in reporter.logs] == [2, 3, 4, 5]
    assert [step for step, _ in reporter.evaluations] == [2, 4, 5]
    _, first = reporter.logs[0]
    assert first["train/loss"] == pytest.approx(first["train/sup"] + first["train/unsup"] + first["train/contrast"])
    assert first["train/lr"] == pytest.approx(0.05 * (1 - 1 / 5) ** 0.9)
    assert set(reporter.evaluations[-1][1]) <= {"val/miou", "val/pixel_accuracy", *(f"val/iou/{name}" for name in NAMES)}
    assert result.best["val/miou"] == max(metrics["val/miou"] for _, metrics in reporter.evaluations)
    assert kept and kept[0].keys() == method.predictor().state_dict().keys()


def test_a_loss_that_is_not_finite_stops_with_its_name_step_and_checkpoint(tmp_path: Path) -> None:
    def poisoned(start: int) -> Iterable[Batch]:
        for step in range(start, 6):
            good = batch(step)
            if step == 4:
                good.labelled_images.fill_(math.nan)
            yield good

    reporter = FolderReporter(tmp_path)
    with pytest.raises(NonFiniteLossError, match=r"loss 'sup' became nan at step 5; the last good checkpoint is at step 4"):
        run(
            make_method("supervised"),
            TrainConfig(iterations=6, lr=0.05, evaluate_every=2, log_every=10),
            make_batches=poisoned,
            reporter=reporter,
        )
    assert [step for step, _ in reporter.evaluations] == [2, 4]


def test_the_schedule_is_the_papers() -> None:
    config = TrainConfig(iterations=100, lr=0.5, encoder_lr_factor=0.1, min_lr=0.001)
    optimizer = make_optimizer(make_method("supervised"), config)
    for step in (0, 37, 99):
        lr = set_learning_rate(optimizer, config, step)
        assert lr == pytest.approx(max(0.001, 0.5 * (1 - step / 100) ** 0.9))
        head, encoder = optimizer.param_groups
        assert (head["lr"], encoder["lr"]) == pytest.approx((lr, 0.1 * lr))


def test_every_trainable_parameter_is_optimised_once() -> None:
    method = make_method("css")
    optimizer = make_optimizer(method, CONFIG)
    chosen = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(chosen) == sorted(id(parameter) for parameter in method.parameters() if parameter.requires_grad)
    assert all(not parameter.requires_grad for parameter in method.teacher.parameters())  # type: ignore[union-attr]


def _rank(rank: int, folder: str, world_size: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size)
    method = make_method("css")
    reporter = FolderReporter(Path(folder) / f"rank{rank}")
    result = run(method, CONFIG, make_batches=batches_to(CONFIG.iterations, rank), reporter=reporter)
    torch.save({"state": method.state_dict(), "last": result.last, "logs": reporter.logs}, Path(folder) / f"result{rank}.pt")
    assert distributed.world_size() == world_size
    torch.distributed.destroy_process_group()


def test_two_ranks_end_with_the_same_network_prototypes_and_scores() -> None:
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_rank, (folder, 2), nprocs=2)
        first, second = (torch.load(Path(folder) / f"result{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["last"] == second["last"]
    assert first["logs"] == second["logs"]  # curves are means over the ranks
    for key, value in first["state"].items():
        assert torch.equal(value, second["state"][key]), key


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    reporter = FolderReporter(tmp_path)
    run(make_method("supervised"), CONFIG, reporter=reporter)
    assert reporter.checkpoint is not None
    state = reporter.checkpoint / "state.pt"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(RuntimeError, match=r"state\.pt cannot be read"):
        run(make_method("supervised"), CONFIG, checkpoint=reporter.checkpoint)


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    import pickle

    class Evil:
        def __reduce__(self) -> Any:
            return print, ("executed",)

    (tmp_path / "state.pt").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(RuntimeError, match="cannot be read"):
        run(make_method("supervised"), CONFIG, checkpoint=tmp_path)
