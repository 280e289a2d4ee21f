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
from css_ray.functional import windows
from css_ray.functional.metrics import mean_iou
from css_ray.methods import METHODS, CutMix, Method, Supervised
from css_ray.methods.stages import BatchKind
from css_ray.models import ModelConfig, Segmenter, make_segmenter
from css_ray.training.loop import Fit, NonFiniteLossError, fit
from css_ray.training.optimizer import make_optimizer, set_learning_rate
from css_ray.training.reporter import FolderReporter, SilentReporter
from css_ray.training.settings import TrainConfig
from css_ray.types import IGNORE_INDEX, Batch, Clock, Losses, Rate
from css_ray.views import Views
from tests.ranks import run_ranks

torch.set_num_threads(1)  # the networks are so small that threads would only wait for each other

NUM_CLASSES = 3
NAMES = ("sky", "road", "tree")
MODEL = ModelConfig(
    encoder="tiny", output_stride=4, pretrained=False, decoder_channels=8, low_level_channels=4, representation_dim=8
)


def make_method(name: str | type[Method] = "css", **settings: Any) -> Method:
    method = METHODS[name] if isinstance(name, str) else name
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


def batches_to(iterations: int, rank: int = 0) -> Callable[[int, int, BatchKind], Iterable[Batch]]:
    def batches(first: int, end: int, kind: BatchKind) -> Iterable[Batch]:
        assert end <= iterations
        return (batch(step, rank) for step in range(first, end))

    return batches


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
    assert rest.evaluations == whole.evaluations[-1:]
    assert (result.last, result.best, result.best_step) == (expected.last, expected.best, expected.best_step)
    for key, value in undisturbed.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


def kept_in(folder: Path) -> Callable[[str, Tensor], None]:
    """Keeps the cells of evaluations as files of their names, as a run does."""

    def keep(at: str, cells: Tensor) -> None:
        folder.mkdir(exist_ok=True)
        torch.save(cells, folder / at)

    return keep


def read_cells(folder: Path) -> dict[str, list[list[int]]]:
    return {path.name: torch.load(path, weights_only=True).tolist() for path in folder.iterdir()}


def miou_of(cells: Tensor) -> float:
    """The mean IoU of the matrices' sum, cell by cell."""
    matrix = torch.zeros(NUM_CLASSES, NUM_CLASSES, dtype=torch.int64)
    for _, label, prediction, count in cells.T.tolist():
        matrix[label, prediction] += count
    return 100 * mean_iou(matrix)[0]


def test_the_matrices_of_the_best_and_of_the_last_evaluation_are_kept() -> None:
    """Scores are those of the sum of the kept matrices, to the last digit."""
    reporter = SilentReporter()
    kept: list[tuple[str, float]] = []
    config = TrainConfig(iterations=7, lr=0.05, evaluate_every=2, log_every=3)
    result = run(
        make_method("css"), config, reporter=reporter, keep_matrices=lambda at, cells: kept.append((at, miou_of(cells)))
    )
    scores = [metrics["val/miou"] for _, metrics in reporter.evaluations]
    better = [score for index, score in enumerate(scores) if score > max(scores[:index], default=-1)]
    assert kept == [*(("best", score) for score in better), ("last", scores[-1])]
    assert (better[-1], scores[-1]) == (result.best["val/miou"], result.last["val/miou"])


@pytest.mark.parametrize("step", [5, 6])
def test_a_resumed_run_keeps_the_matrices_of_an_undisturbed_one(step: int, tmp_path: Path) -> None:
    run(make_method("css"), CONFIG, keep_matrices=kept_in(tmp_path / "whole"))
    with pytest.raises(Interrupted):
        run(make_method("css"), CONFIG, reporter=InterruptAfter(tmp_path, step), keep_matrices=kept_in(tmp_path / "resumed"))
    assert "last" not in read_cells(tmp_path / "resumed")
    rest = FolderReporter(tmp_path)
    run(make_method("css"), CONFIG, reporter=rest, checkpoint=rest.checkpoint, keep_matrices=kept_in(tmp_path / "resumed"))
    assert read_cells(tmp_path / "resumed") == read_cells(tmp_path / "whole")


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
    kept: list[tuple[Segmenter, int, dict[str, float]]] = []
    method = make_method("css")
    config = TrainConfig(iterations=5, lr=0.05, evaluate_every=2, log_every=3)
    result = run(method, config, reporter=reporter, keep_best=lambda *best: kept.append(best))
    assert [step for step, _ in reporter.logs] == [2, 3, 4, 5]
    assert [step for step, _ in reporter.evaluations] == [2, 4, 5]
    _, first = reporter.logs[0]
    assert first["train/loss"] == pytest.approx(first["train/sup"] + first["train/unsup"] + first["train/contrast"])
    assert first["train/lr"] == pytest.approx(0.05 * (1 - 1 / 5) ** 0.9)
    known = {"val/miou", "val/pixel_accuracy", "val/absent_classes", *(f"val/iou/{name}" for name in NAMES)}
    assert set(reporter.evaluations[-1][1]) <= known
    assert result.best["val/miou"] == max(metrics["val/miou"] for _, metrics in reporter.evaluations)
    scores = [metrics["val/miou"] for _, metrics in reporter.evaluations]
    better = [index for index, score in enumerate(scores) if score > max(scores[:index], default=-1)]
    assert [(step, metrics) for _, step, metrics in kept] == [reporter.evaluations[index] for index in better]
    assert all(predictor is method.predictor() for predictor, _, _ in kept)


def test_a_loss_that_is_not_finite_stops_with_its_name_step_and_checkpoint(tmp_path: Path) -> None:
    def poisoned(start: int, end: int, kind: BatchKind) -> Iterable[Batch]:
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


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_before_the_first_checkpoint_there_is_none_to_go_back_to(value: float) -> None:
    def poisoned(start: int, end: int, kind: BatchKind) -> Iterable[Batch]:
        for step in range(start, 6):
            good = batch(step)
            if step >= 1:
                good.labelled_images.fill_(value)
            yield good

    reporter = SilentReporter()
    with pytest.raises(NonFiniteLossError, match=r"loss 'sup' became nan at step 2; no checkpoint was written yet; a lower"):
        run(
            make_method("supervised"),
            TrainConfig(iterations=6, lr=0.05, evaluate_every=4, log_every=3),
            make_batches=poisoned,
            reporter=reporter,
        )
    assert reporter.logs == [] and reporter.evaluations == []  # step 3 was the first that would have said anything


def test_the_loss_that_failed_first_is_named() -> None:
    # Step 2's unlabelled images poison the weights, so that at step 3 every loss is NaN.
    def poisoned(start: int, end: int, kind: BatchKind) -> Iterable[Batch]:
        for step in range(start, 6):
            good = batch(step)
            if step == 1:
                good.unlabelled_images.fill_(math.nan)
            yield good

    config = TrainConfig(iterations=6, lr=0.05, evaluate_every=6, log_every=4)
    settings = {"consistency": "probabilities"}  # the mean of squares lets every NaN through
    with pytest.raises(NonFiniteLossError, match=r"loss 'unsup' became nan at step 2"):
        run(make_method("mean_teacher", **settings), config, make_batches=poisoned)


def test_a_loss_that_begins_between_two_points_is_averaged_over_its_steps() -> None:
    class Late(Supervised):
        """Step n has a loss of n, from step 3 on another of 10 n, and a rate of n pixels in 2 n."""

        step = 0

        def forward(self, batch: Batch, clock: Clock) -> Losses:
            self.step += 1
            number = torch.tensor(float(self.step))
            none = 0 * self.student(batch.labelled_images).logits.sum()
            terms = {"sup": number + none} | ({"late": 10 * number + none} if self.step >= 3 else {})
            return Losses(terms, {"pixels": Rate(torch.tensor(self.step), torch.tensor(2 * self.step)), "number": number})

    reporter = SilentReporter()
    config = TrainConfig(iterations=8, lr=0.05, evaluate_every=8, log_every=4)
    run(make_method(Late), config, reporter=reporter)
    (_, first), (_, second) = reporter.logs
    assert first["train/sup"] == first["train/number"] == pytest.approx((1 + 2 + 3 + 4) / 4)
    assert first["train/late"] == pytest.approx(10 * (3 + 4) / 2)
    assert first["train/loss"] == pytest.approx(first["train/sup"] + first["train/late"])
    assert second["train/late"] == pytest.approx(10 * (5 + 6 + 7 + 8) / 4)
    assert first["train/pixels"] == second["train/pixels"] == pytest.approx(0.5)


def test_a_loss_that_ended_before_the_point_is_named_if_it_failed() -> None:
    class Short(Supervised):
        step = 0

        def forward(self, batch: Batch, clock: Clock) -> Losses:
            self.step += 1
            none = 0 * self.student(batch.labelled_images).logits.sum()
            terms = {"sup": none} | ({"short": none + (math.inf if self.step == 2 else 0)} if self.step <= 2 else {})
            return Losses(terms)

    config = TrainConfig(iterations=8, lr=0.05, evaluate_every=8, log_every=8)
    with pytest.raises(NonFiniteLossError, match=r"loss 'short' became inf at step 2"):
        run(make_method(Short), config)


def test_a_resumed_run_that_fails_names_the_checkpoint_it_came_from(tmp_path: Path) -> None:
    config = TrainConfig(iterations=6, lr=0.05, evaluate_every=3, log_every=1)
    with pytest.raises(Interrupted):
        run(make_method("supervised"), config, reporter=InterruptAfter(tmp_path, step=4))

    def poisoned(start: int, end: int, kind: BatchKind) -> Iterable[Batch]:
        assert start == 3
        for step in range(start, 6):
            good = batch(step)
            good.labelled_images.fill_(math.nan)
            yield good

    checkpoint = FolderReporter(tmp_path).checkpoint
    with pytest.raises(NonFiniteLossError, match="became nan at step 4; the last good checkpoint is at step 3"):
        run(make_method("supervised"), config, make_batches=poisoned, checkpoint=checkpoint)


class Diagnosed(Supervised):
    """Says, when asked, at which step it was asked and what is not finite."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.step = 0
        self.asked: list[int] = []

    def forward(self, batch: Batch, clock: Clock) -> Losses:
        losses = super().forward(batch, clock)
        self.step += 1

        def diagnostics(step: int = self.step) -> dict[str, Tensor]:
            self.asked.append(step)
            return {
                "step": torch.tensor(step + distributed.rank() / 2),
                "infinite": torch.tensor(math.inf),
                "undefined": torch.tensor(math.nan),
            }

        return Losses(losses.terms, losses.logs, diagnostics)


def make_diagnosed() -> Method:
    torch.manual_seed(0)
    return Diagnosed(lambda: make_segmenter(MODEL, NUM_CLASSES, representation=False), Diagnosed.Config(), Views())


def test_diagnostics_are_computed_at_the_points_of_the_curves_alone() -> None:
    method, reporter = make_diagnosed(), SilentReporter()
    run(method, TrainConfig(iterations=8, lr=0.05, evaluate_every=5, log_every=3), reporter=reporter)
    assert method.asked == [3, 5, 6, 8]
    assert [(step, metrics["train/step"]) for step, metrics in reporter.logs] == [(3, 3.0), (5, 5.0), (6, 6.0), (8, 8.0)]
    for _, metrics in reporter.logs:
        assert set(metrics) == {"train/loss", "train/sup", "train/lr", "train/step"}


def unlabelled_batches() -> list[tuple[Tensor, Tensor]]:
    """Of two sizes, some pixels void."""
    found = []
    for step, size in ((2000, 24), (2001, 20)):
        held_out = batch(step, size=3)
        labels = held_out.labels[:, :size].clone()
        labels[:, :5] = IGNORE_INDEX
        found.append((held_out.labelled_images[:, :, :size], labels))
    return found


class Guessing(CutMix):
    """Its pseudo-labels come from the teacher, with a gate."""

    def pseudo_labels(self, images: Tensor) -> dict[str, Tensor]:
        confidence, labels = self.teacher.model.predict(images).softmax(dim=1).max(dim=1)
        return {"all": labels, "sure": torch.where(confidence > 0.4, labels, IGNORE_INDEX)}


def make_guessing() -> Method:
    torch.manual_seed(0)
    return Guessing(lambda: make_segmenter(MODEL, NUM_CLASSES, representation=False), Guessing.Config(), Views())


@pytest.mark.parametrize("make", [make_guessing, lambda: make_method("css"), lambda: make_method("cutmix")])
def test_scoring_pseudo_labels_does_not_disturb_training(make: Callable[[], Method]) -> None:
    plain, scored = make(), make()
    without, along = SilentReporter(), SilentReporter()
    run(plain, CONFIG, reporter=without)
    after_plain = torch.get_rng_state()
    run(scored, CONFIG, reporter=along, unlabelled_batches=unlabelled_batches())
    assert torch.equal(torch.get_rng_state(), after_plain)
    assert along.logs == without.logs
    for (step, metrics), (same, expected) in zip(along.evaluations, without.evaluations, strict=True):
        assert step == same
        assert {name: value for name, value in metrics.items() if not name.startswith("pseudo/")} == expected
    # Running statistics and the numbers of batches they saw included.
    for key, value in plain.state_dict().items():
        assert torch.equal(value, scored.state_dict()[key]), key
    if make is make_guessing:
        last = along.evaluations[-1][1]
        assert last["pseudo/kept/all"] == 100 and 0 < last["pseudo/kept/sure"] < 100
        assert {"pseudo/miou/all", "pseudo/miou/sure"} <= set(last)


def test_sliding_windows_need_the_crop_before_anything_is_trained() -> None:
    config = TrainConfig(iterations=6, evaluation="sliding_window")

    def none(start: int, end: int, kind: BatchKind) -> Iterable[Batch]:
        raise AssertionError("a batch was asked for")

    with pytest.raises(ValueError, match="evaluation is sliding_window and crop is None; give the training crop"):
        run(make_method("supervised"), config, make_batches=none)


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_windows_are_the_training_crop(average: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []
    sliding_window = windows.sliding_window

    def watched(predict: Callable[[Tensor], Tensor], images: Tensor, window: int, average: Any) -> Tensor:
        seen.append((tuple(images.shape), window, average))
        return sliding_window(predict, images, window, average)

    monkeypatch.setattr(windows, "sliding_window", watched)
    config = TrainConfig(iterations=1, lr=0.05, evaluation="sliding_window", window_average=average)
    run(make_method("supervised"), config, crop=16)
    assert seen == [((4, 3, 24, 24), 16, average)]
    run(make_method("supervised"), TrainConfig(iterations=1, lr=0.05, window_average=average), crop=16)
    assert len(seen) == 1  # whole images are the default


@pytest.mark.slow
@pytest.mark.parametrize("name", ["css", "unimatch"])
def test_a_compiled_run_is_the_plain_one(name: str) -> None:
    try:
        torch.compile(lambda value: value.sin() + 1)(torch.ones(3))
    except Exception as error:  # no C++ compiler, or none that inductor can use
        pytest.skip(f"torch.compile does not work here: {type(error).__name__}: {str(error)[:200]}")
    plain, compiled = make_method(name), make_method(name)
    logs = []
    for method, compile in ((plain, False), (compiled, True)):
        reporter = SilentReporter()
        config = TrainConfig(iterations=3, lr=0.01, evaluate_every=2, log_every=1, compile=compile)
        run(method, config, reporter=reporter, unlabelled_batches=unlabelled_batches())
        logs.append([metrics["train/loss"] for _, metrics in reporter.logs])
    assert logs[1] == pytest.approx(logs[0], rel=1e-3)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    assert compiled.student._compiled_call_impl is not None and plain.student._compiled_call_impl is None


def test_the_schedule_is_the_papers() -> None:
    config = TrainConfig(iterations=100, lr=0.5, encoder_lr_factor=0.1, min_lr=0.001)
    optimizer = make_optimizer(make_method("supervised"), config)
    for step in (0, 37, 99):
        lr = set_learning_rate(optimizer, config, step / 100)
        assert lr == pytest.approx(max(0.001, 0.5 * (1 - step / 100) ** 0.9))
        head, encoder = optimizer.param_groups
        assert (head["lr"], encoder["lr"]) == pytest.approx((lr, 0.1 * lr))


def test_every_trainable_parameter_is_optimised_once() -> None:
    method = make_method("css")
    optimizer = make_optimizer(method, CONFIG)
    chosen = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(chosen) == sorted(id(parameter) for parameter in method.parameters() if parameter.requires_grad)
    assert all(not parameter.requires_grad for parameter in method.teacher.parameters())  # type: ignore[union-attr]


def _uneven_rank(rank: int, folder: str, world_size: int) -> None:
    """Diagnostics, pseudo-labels with images on rank 0 alone, and a loss that is NaN on rank 1 alone."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world_size)
    config = TrainConfig(iterations=4, lr=0.05, evaluate_every=4, log_every=2)
    batches, diagnosed = batches_to(4, rank), SilentReporter()
    run(make_diagnosed(), config, make_batches=batches, reporter=diagnosed)
    mine = unlabelled_batches() if rank == 0 else []
    scored = run(make_guessing(), config, make_batches=batches, unlabelled_batches=mine).last

    def poisoned(start: int, end: int, kind: BatchKind) -> Iterable[Batch]:
        for step in range(start, 4):
            good = batch(step, rank)
            if rank == 1 and step >= 2:
                good.labelled_images.fill_(math.nan)
            yield good

    error = ""
    try:
        run(make_method("supervised"), config, make_batches=poisoned)
    except NonFiniteLossError as caught:
        error = str(caught)
    torch.distributed.destroy_process_group()
    # A thread of gloo that is left may abort the process where it exits.
    threads = [task.read_text() for task in Path("/proc/self/task").glob("*/comm")]
    left = [name for name in threads if "gloo" in name]
    steps = [metrics["train/step"] for _, metrics in diagnosed.logs]
    result = {"steps": steps, "scored": scored, "error": error, "threads": left}
    torch.save(result, Path(folder) / f"result{rank}.pt")


def test_ranks_agree_on_what_only_one_of_them_sees() -> None:
    with tempfile.TemporaryDirectory() as folder:
        run_ranks(_uneven_rank, folder, 2)
        first, second = (torch.load(Path(folder) / f"result{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["steps"] == second["steps"] == [2.25, 4.25]  # the mean of step and step + 1/2
    assert first["scored"] == second["scored"] and first["scored"]["pseudo/kept/all"] == 100
    assert first["threads"] == second["threads"] == []
    # The gradients spread it to rank 0 at step 4; both name the step at which it began.
    assert first["error"] == second["error"] and "loss 'sup' became nan at step 3; no checkpoint" in first["error"]


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
        run_ranks(_rank, folder, 2)
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
