"""A training in stages: its batches, schedules and optimizer, what a border sees, and exact resumes within and between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from css_ray.methods import Method
from css_ray.methods.stages import BatchKind, Border, Stage, ends, longest
from css_ray.training.loop import fit
from css_ray.training.reporter import FolderReporter, SilentReporter
from css_ray.training.settings import TrainConfig
from css_ray.types import Batch, Clock, Losses
from tests.ranks import run_ranks
from tests.training.test_loop import NAMES, batch, make_method, val_batches

CONFIG = TrainConfig(iterations=10, lr=0.05, min_lr=0.0001, evaluate_every=3, log_every=1)
ENDS = [4, 4, 10]


class Relay(Method):
    """The labelled images alone; a stage without steps, which freezes the decoder; then all, by a factor that was drawn at the
    border, with the encoder frozen as well."""

    name = "relay"
    factor: Tensor
    brightness: Tensor
    entered: ClassVar[list[int]] = []
    clocks: ClassVar[list[tuple[int, int, int, int]]] = []
    dies_entering: ClassVar[int | None] = None

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.register_buffer("factor", torch.ones(()))
        self.register_buffer("brightness", torch.zeros(()))

    def stages(self) -> tuple[Stage, ...]:
        return Stage("first", 0.4, "labelled", "constant"), Stage("none", 0.0), Stage("last", 0.6)

    def enter(self, border: Border) -> None:
        if self.stage == self.dies_entering:
            raise Interrupted
        self.entered.append(self.stage)
        if self.stage == 2:
            self.factor = self.factor + torch.rand(())
            self.brightness = torch.cat([images.flatten() for images in border.unlabelled()]).mean()

    def lr_factors(self) -> Mapping[str, float]:
        return {1: {"student.decoder": 0.0}, 2: {"student.encoder": 0.0}}.get(self.stage, {})

    def forward(self, batch: Batch, clock: Clock) -> Losses:
        self.clocks.append((clock.stage, clock.step, clock.steps, len(batch.unlabelled_images)))
        prediction = self.student(self.strong_colours(batch.labelled_images))
        return Losses({"sup": self.factor * self.supervised(prediction, batch.labels)})


class Interrupted(Exception):
    pass


class DyingReporter(FolderReporter):
    """Dies at a moment: when a step is logged, when a stage was finished, or when one was started and its checkpoint written."""

    def __init__(self, folder: Path, moment: tuple[str, int]) -> None:
        super().__init__(folder)
        self.moment = moment

    def _die(self, *moment: Any) -> None:
        if moment == self.moment:
            raise Interrupted

    def logged(self, step: int, metrics: Any) -> None:
        super().logged(step, metrics)
        self._die("logged", step)

    def stage_started(self, step: int, number: int, name: str, write_checkpoint: Any) -> None:
        super().stage_started(step, number, name, write_checkpoint)
        self._die("started", number)

    def stage_finished(self, step: int, number: int, name: str) -> None:
        self._die("finished", number)


def batches(first: int, end: int, kind: BatchKind) -> Iterable[Batch]:
    assert (first, end, kind) in [(first, 4, "labelled"), (first, 10, "pair")]
    for step in range(first, end):
        given = batch(step)
        none = 0 if kind == "labelled" else len(given.unlabelled_images)
        yield Batch(given.labelled_images, given.labels, given.unlabelled_images[:none], given.unlabelled_valid[:none])


def border_images() -> list[Tensor]:
    return [batch(7).labelled_images, batch(8).labelled_images[:1]]


def border_pairs() -> list[tuple[Tensor, Tensor]]:
    return [(each.labelled_images, each.labels) for each in (batch(7), batch(8))]


def run(method: Method, reporter: SilentReporter, **changes: Any) -> Any:
    Relay.entered.clear()
    Relay.clocks.clear()
    border = Border(labelled=border_pairs, unlabelled=border_images)
    return fit(
        method, CONFIG, make_batches=batches, val_batches=val_batches(), class_names=NAMES, seed=3, reporter=reporter,
        border=border, **changes,
    )  # fmt: skip


def test_stages_have_their_batches_schedules_and_evaluations() -> None:
    method, reporter = make_method(Relay), SilentReporter()
    before = [parameter.clone() for parameter in method.student.encoder.parameters()]
    run(method, reporter)
    assert Relay.entered == [0, 1, 2]
    assert reporter.stages == [(0, "first"), (4, "none"), (4, "last")]
    assert Relay.clocks == [*((0, step, 4, 0) for step in range(4)), *((2, step, 6, 2) for step in range(6))]
    assert [step for step, _ in reporter.evaluations] == [3, 4, 6, 9, 10]
    rates = [metrics["train/lr"] for _, metrics in reporter.logs]
    assert rates[:4] == [0.05] * 4
    assert rates[4:] == pytest.approx([0.05 * (1 - step / 6) ** 0.9 for step in range(6)])
    assert method.brightness == torch.cat([images.flatten() for images in border_images()]).mean()
    for part in (method.student.encoder, method.student.decoder):
        assert all(not parameter.requires_grad and parameter.grad is None for parameter in part.parameters())
    assert any(
        not torch.equal(old, new) for old, new in zip(before, method.student.encoder.parameters(), strict=True)
    )  # the first stage trained it


MOMENTS = [
    ("logged", 2), ("logged", 4), ("finished", 0), ("started", 1), ("finished", 1), ("started", 2), ("logged", 5),
    ("logged", 8), ("finished", 2),
]  # fmt: skip


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_that_dies_anywhere_resumes_bit_for_bit(moment: tuple[str, int], tmp_path: Path) -> None:
    undisturbed, whole = make_method(Relay), SilentReporter()
    expected = run(undisturbed, whole)
    with pytest.raises(Interrupted):
        run(make_method(Relay), DyingReporter(tmp_path, moment))
    resumed, rest = make_method(Relay), FolderReporter(tmp_path)
    torch.manual_seed(12345)
    result = run(resumed, rest, checkpoint=rest.checkpoint)
    assert rest.logs == whole.logs[len(whole.logs) - len(rest.logs) :]
    assert rest.evaluations == whole.evaluations[len(whole.evaluations) - len(rest.evaluations) :]
    assert (result.last, result.best) == (expected.last, expected.best)
    for key, value in undisturbed.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    if moment[0] == "started" and moment[1] == 2:
        assert Relay.entered == [] and len(rest.logs) == 6  # what it made is in the checkpoint
    if moment == ("finished", 0):
        assert Relay.entered == [1, 2] and len(rest.logs) == 6


def test_a_stage_that_was_not_entered_whole_is_entered_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = make_method(Relay)
    run(undisturbed, SilentReporter())
    monkeypatch.setattr(Relay, "dies_entering", 2)
    with pytest.raises(Interrupted):
        run(make_method(Relay), FolderReporter(tmp_path))
    monkeypatch.setattr(Relay, "dies_entering", None)
    resumed, rest = make_method(Relay), FolderReporter(tmp_path)
    run(resumed, rest, checkpoint=rest.checkpoint)
    assert Relay.entered == [2]
    assert all(torch.equal(value, resumed.state_dict()[key]) for key, value in undisturbed.state_dict().items())


STAGED = {
    "psmt": {"warm_up": 0.4, "unsup_threshold": 0.3, "top_k": 2, "switch_every": 0.2},
    "pcr": {"warm_up": 0.4, "unsup_threshold": 0.3},
}


@pytest.mark.parametrize("name", STAGED)
@pytest.mark.parametrize("moment", [("logged", 2), ("finished", 0), ("started", 1), ("logged", 5), ("logged", 8)])
def test_a_method_that_dies_anywhere_resumes_bit_for_bit(name: str, moment: tuple[str, int], tmp_path: Path) -> None:
    settings = STAGED[name]
    undisturbed, whole = make_method(name, **settings), SilentReporter()
    run(undisturbed, whole)
    with pytest.raises(Interrupted):
        run(make_method(name, **settings), DyingReporter(tmp_path, moment))
    resumed, rest = make_method(name, **settings), FolderReporter(tmp_path)
    torch.manual_seed(12345)
    run(resumed, rest, checkpoint=rest.checkpoint)
    assert rest.logs == whole.logs[len(whole.logs) - len(rest.logs) :]
    for key, value in undisturbed.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key


@pytest.mark.parametrize(
    ("shares", "iterations", "expected"),
    [((1.0,), 7, [7]), ((0.1, 0.3, 0.6), 10, [1, 4, 10]), ((1 / 3, 1 / 3, 1 / 3), 10, [3, 7, 10]), ((0.01, 0.99), 20, [0, 20])],
)
def test_stages_share_the_steps(shares: tuple[float, ...], iterations: int, expected: list[int]) -> None:
    stages = [Stage(str(number), share) for number, share in enumerate(shares)]
    assert ends(stages, iterations) == expected


@pytest.mark.parametrize(("shares", "number"), [((1.0,), 0), ((0.6, 0.4), 0), ((0.2, 0.4, 0.4), 2), ((0.01, 0.99), 1)])
def test_the_longest_stage(shares: tuple[float, ...], number: int) -> None:
    assert longest([Stage(str(place), share) for place, share in enumerate(shares)]) == number


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: [], "add up to 1, got"),
        (lambda: [Stage("a", 0.5), Stage("b", 0.6)], r"add up to 1, got \[0.5, 0.6\]"),
        (lambda: [Stage("a", 1.5), Stage("b", -0.5)], "from 0 to 1"),
        (lambda: [Stage("a", 0.5), Stage("a", 0.5)], "different names, got a, a"),
    ],
)
def test_stages_that_are_none(make: Callable[[], list[Stage]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ends(make(), 10)


def _rank(rank: int, folder: str, name: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    reporter = SilentReporter()
    method = make_method(name, **STAGED[name])

    def mine(first: int, end: int, kind: BatchKind) -> Iterable[Batch]:
        for given in batches(first, end, kind):  # the other rank's images are the same, upside down
            yield given if rank == 0 else Batch(*(getattr(given, name).flip(-2) for name in IMAGES))

    fit(
        method, CONFIG, make_batches=mine, val_batches=val_batches() if rank == 0 else [], class_names=NAMES, seed=3,
        reporter=reporter, border=Border(labelled=lambda: border_pairs()[rank:]),
    )  # fmt: skip
    torch.save({"state": method.state_dict(), "logs": reporter.logs, "stages": reporter.stages}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


IMAGES = ("labelled_images", "labels", "unlabelled_images", "unlabelled_valid")


@pytest.mark.parametrize("name", STAGED)
def test_two_ranks_pass_the_border_together(name: str, tmp_path: Path) -> None:
    """DDP is made again for what the next stage trains; gradients of both stages are those of both ranks."""
    run_ranks(_rank, str(tmp_path), name)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert first["stages"] == second["stages"] == [(0, "warm_up"), (4, "main")]
    assert first["logs"] == second["logs"] and len(first["logs"]) == 10
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name]), name
