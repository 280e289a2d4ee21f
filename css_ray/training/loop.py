"""The training loop: one process per rank, DDP around the whole method, exact resume. It knows neither Ray nor MLflow."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from css_ray import distributed
from css_ray.matrices import At
from css_ray.methods.base import Method
from css_ray.methods.stages import BatchKind, Border, Stage, ends
from css_ray.models import Predictor
from css_ray.training.checkpoint import (
    STATE_FILE,
    DamagedError,
    check_state,
    read_random_state,
    read_state,
    set_random_state,
    write_checkpoint,
)
from css_ray.training.evaluate import evaluate, evaluation_metrics, pseudo_label_quality
from css_ray.training.optimizer import make_optimizer, set_learning_rate
from css_ray.training.reporter import Reporter
from css_ray.training.settings import TrainConfig
from css_ray.training.step import algorithms, place_method, train_step
from css_ray.types import Batch, Clock, Losses, Rate


class NonFiniteLossError(FloatingPointError):
    """A loss became NaN or infinite: the run cannot continue from here, and its settings are the likely cause."""


@dataclass(frozen=True, slots=True)
class Fit:
    """How a run ended.

    last, best: metrics in percent at the last and at the best evaluation. seconds: of training and evaluation.
    """

    step: int
    last: dict[str, float]
    best: dict[str, float]
    best_step: int
    seconds: float


def fit(
    method: Method,
    config: TrainConfig,
    *,
    make_batches: Callable[[int, int, BatchKind], Iterable[Batch]],
    val_batches: Iterable[tuple[Tensor, Tensor]],
    class_names: tuple[str, ...],
    seed: int,
    reporter: Reporter,
    unlabelled_batches: Iterable[tuple[Tensor, Tensor]] | None = None,
    border: Border | None = None,
    crop: int | None = None,
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    begun: Callable[[], None] = lambda: None,
    keep_best: Callable[[Predictor, int, dict[str, float]], None] = lambda predictor, step, metrics: None,
    keep_matrices: Callable[[At, Tensor], None] = lambda at, cells: None,
) -> Fit:
    """Train `method` stage by stage; evaluate its predictor every `config.evaluate_every` steps and after each stage's last.

    make_batches(first, end, kind): this rank's batches of the steps from `first` to before `end`, a pure function of the step.
    seed: of the generators that augmentation and sampling draw from; each rank draws its own numbers.
    unlabelled_batches: unlabelled images with their ground truth, on which each evaluation scores the method's pseudo-labels
    too; nothing is learnt from them. None on every rank, or on none.
    border: what the method may look at when it enters a stage; nothing if None. make_batches shows its pseudo-labels, which a
    checkpoint knows by their digest: what was labelled is not labelled again.
    crop: side in pixels of the training crop, which is the window if `config.evaluation` is sliding_window.
    checkpoint: a folder that the reporter's `write_checkpoint` filled; the run continues from there, bit for bit if
    the number of ranks is the same and the device computes deterministically (the CPU does, with the same number of threads).
    A stage that it had entered is not entered again.
    begun: called once before the first batch, when the checkpoint is loaded.
    keep_best(predictor, step, metrics): called on every rank after an evaluation that is better than all before, so that all
    wait if there is no room for what one writes.
    keep_matrices(at, cells): called likewise with the `Evaluation.cells` of such an evaluation, at "best", and of the one after
    the run's last step, at "last".

    Raises NonFiniteLossError with the step, the loss's name and where the last good checkpoint is. Before the first step it
    raises DamagedError if the checkpoint or its pseudo-labels are damaged or not of this run, ValueError if the evaluation
    needs a crop and has none or the method's stages do not add up.
    """
    window = crop if config.evaluation == "sliding_window" else None
    if config.evaluation == "sliding_window" and window is None:
        raise ValueError("evaluation is sliding_window and crop is None; give the training crop, which is the window's side")
    place_method(method, config, device)
    stages = method.stages()
    last_steps = ends(stages, config.iterations)
    progress, border = _Progress(), border or Border()
    torch.manual_seed(seed * 1_000_003 + distributed.rank())
    state: dict[str, Any] | None = None
    if checkpoint is not None:
        state = read_state(checkpoint, last_steps)
        progress = _Progress(**state["progress"])
    for number in range(max(progress.stage, 0) + 1):  # what an earlier stage froze stays frozen
        method.stage = number
        optimizer = make_optimizer(method, config)
    if checkpoint is not None and state is not None:
        check_state(checkpoint, state, method, optimizer)
        method.load_state_dict(state["method"])
        # Its groups are the config's: what a checkpoint says of them is not taken over.
        optimizer.load_state_dict(state["optimizer"] | {"param_groups": optimizer.state_dict()["param_groups"]})
        if border.pseudo_labels is not None and progress.step < config.iterations:  # a run that is over needs none
            try:
                border.pseudo_labels.open(state["labels"])
            except ValueError as error:
                raise DamagedError(checkpoint / STATE_FILE, error) from None
        state = None  # as large as the method
    curves = _Curves(device)
    started = time.monotonic() - progress.seconds
    last_good = (
        "no checkpoint was written yet" if checkpoint is None else f"the last good checkpoint is at step {progress.step}"
    )

    def write(folder: Path) -> None:
        labels = "" if border.pseudo_labels is None else border.pseudo_labels.digest
        shared = {"method": method.state_dict(), "optimizer": optimizer.state_dict(), "progress": progress.state()}
        write_checkpoint(folder, shared | {"labels": labels})

    first, has_begun = method.stage, False
    for number, (stage, end) in enumerate(zip(stages, last_steps, strict=True)):
        if number < first:
            continue
        begin, entering = last_steps[number - 1] if number else 0, number != progress.stage
        if entering:
            method.stage = progress.stage = number
            with algorithms(config, torch.device(device), fixed_shapes=False), _uncompiled(config):
                method.enter(replace(border, seed=Random(f"{seed}/border/{number}").getrandbits(63)))
            if number:
                _agree_on_buffers(method)
                for parameter in method.parameters():
                    parameter.grad = None  # what is frozen from now on would keep its last gradient
                optimizer = make_optimizer(method, config)  # without the momentum of the stage before
            if len(stages) > 1:
                reporter.stage_started(begin, number, stage.name, write if begin else None)
                if begin:
                    last_good = f"the last good checkpoint is at step {begin}"
        # A loader draws from the generators when it is built, which the checkpoint just written does not know.
        with torch.random.fork_rng(devices=[]) if number else nullcontext():
            batches = iter(make_batches(progress.step, end, stage.batch)) if progress.step < end else iter(())
        if not has_begun:
            if checkpoint is not None:
                # Last, because building loaders and modules draws from the generators too.
                random = read_random_state(checkpoint)
                if random is not None:
                    set_random_state(random)
            begun()
            has_begun = True
        module = _distributed(method)
        method.train()
        for batch in batches:
            clock = Clock(progress.step - begin, end - begin, number)
            lr = set_learning_rate(optimizer, config, _of_schedule(stage, clock, progress.step, config))
            losses = train_step(module, method, optimizer, batch.to(device), clock, config)
            progress.step += 1
            curves.add(progress.step, losses)

            evaluating = progress.step == end or progress.step % config.evaluate_every == 0
            if evaluating or progress.step % config.log_every == 0:
                means = curves.means(lr, last_good)
                reporter.logged(progress.step, means | _diagnostics(losses))
            del losses  # what a diagnostic holds on to would lie beside the next step's activations
            if evaluating:
                _agree_on_buffers(method)
                with algorithms(config, torch.device(device), fixed_shapes=False), _uncompiled(config):
                    predictor = method.predictor()
                    evaluation = evaluate(predictor, val_batches, device, window=window, average=config.window_average)
                    metrics = evaluation_metrics(evaluation, class_names)
                    if unlabelled_batches is not None:
                        metrics |= pseudo_label_quality(method, unlabelled_batches, class_names, device)
                progress.seconds = time.monotonic() - started
                progress.last = metrics
                if not progress.best or metrics["val/miou"] > progress.best["val/miou"]:
                    progress.best, progress.best_step = metrics, progress.step
                    keep_best(predictor, progress.step, metrics)
                    keep_matrices("best", evaluation.cells)
                if progress.step == last_steps[-1]:
                    keep_matrices("last", evaluation.cells)  # before the checkpoint, from which nothing is evaluated again
                reporter.evaluated(progress.step, metrics, write)
                last_good = f"the last good checkpoint is at step {progress.step}"
        if progress.step < end:
            raise RuntimeError(f"the batches ended at step {progress.step} of {end}; make_batches must yield them all")
        if len(stages) > 1:
            reporter.stage_finished(end, number, stage.name)
    return Fit(progress.step, progress.last, progress.best, progress.best_step, progress.seconds)


def _of_schedule(stage: Stage, clock: Clock, step: int, config: TrainConfig) -> float:
    """Where the schedule of the learning rate is, as a share of it."""
    if stage.schedule == "restart":
        return clock.progress
    return step / config.iterations if stage.schedule == "continue" else 0.0


class _Progress:
    """What a run has reached; plain values, so that a checkpoint can hold it."""

    def __init__(
        self,
        step: int = 0,
        last: dict[str, float] | None = None,
        best: dict[str, float] | None = None,
        best_step: int = 0,
        seconds: float = 0.0,
        stage: int = -1,
    ) -> None:
        self.step, self.last, self.best, self.best_step, self.seconds = step, last or {}, best or {}, best_step, seconds
        self.stage = stage  # that was entered last; -1: none

    def state(self) -> dict[str, Any]:
        return dict(vars(self))


class _Curves:
    """Means of the losses and rates since the last point of the curves, kept on the device: no host sync between two points.

    A step costs one kernel, which joins its numbers; what is made of them is made at the points.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = device
        self.steps: list[_Numbers] = []

    def add(self, step: int, losses: Losses) -> None:
        rates = {name: value for name, value in losses.logs.items() if isinstance(value, Rate)}
        single = losses.terms | {name: value for name, value in losses.logs.items() if isinstance(value, Tensor)}
        values = [*single.values(), *(rate.part for rate in rates.values()), *(rate.whole for rate in rates.values())]
        joined = torch.stack([value.detach() for value in values]).float()
        self.steps.append(_Numbers(step, tuple(losses.terms), (*single, *rates), joined))

    def means(self, lr: float, last_good: str) -> dict[str, float]:
        """Means over ranks, and over the steps that had a loss or rate, as `train/<name>`; resets them.

        Raises NonFiniteLossError, on every rank alike.
        """
        terms = list(dict.fromkeys(name for each in self.steps for name in each.terms))
        names = list(dict.fromkeys([*terms, *(name for each in self.steps for name in each.names)]))
        place = {name: index for index, name in enumerate(names)}
        sums = torch.zeros(2, len(names), device=self.device)  # what is added up, and what it is divided by
        # [ranks, terms]: the first step at which a loss of a rank was not finite.
        bad = torch.zeros(distributed.world_size(), len(terms), device=self.device)
        first_bad = bad[distributed.rank()].fill_(math.inf)
        for alike in _grouped(self.steps):
            values = torch.stack([each.values for each in alike])  # [steps, terms, logs, parts and wholes of rates]
            num_terms, num_names = len(alike[0].terms), len(alike[0].names)
            index = torch.tensor([place[name] for name in alike[0].names], device=self.device)
            added = values.sum(dim=0)
            wholes = torch.full_like(added[:num_names], len(alike))
            if rates := len(added) - num_names:
                wholes[-rates:] = added[num_names:]
            sums[0].index_add_(0, index, added[:num_names])
            sums[1].index_add_(0, index, wholes)
            steps = torch.tensor([float(each.step) for each in alike], device=self.device).unsqueeze(1)
            first = torch.where(values[:, :num_terms].isfinite(), math.inf, steps).amin(dim=0)
            first_bad[index[:num_terms]] = torch.minimum(first_bad[index[:num_terms]], first)
        self.steps = []
        flat = distributed.all_reduce_sum(torch.cat([sums.flatten(), bad.flatten()]))
        parts, wholes = flat[: sums.numel()].view_as(sums)
        means = dict(zip(names, (parts / wholes).tolist(), strict=True))
        # The sum over the ranks is the same number everywhere, so all ranks stop together.
        if not all(math.isfinite(means[name]) for name in terms):
            # Other losses and ranks follow the first one a step later.
            firsts = flat[sums.numel() :].view_as(bad).amin(dim=0).tolist()
            name, step = min(zip(terms, firsts, strict=True), key=lambda pair: pair[1])
            raise NonFiniteLossError(
                f"loss '{name}' became {means[name]} at step {step:.0f}; {last_good}; a lower train.lr often helps"
            )
        total = sum(means[name] for name in terms)
        finite = {f"train/{name}": value for name, value in means.items() if math.isfinite(value)}
        return {"train/loss": total, **finite, "train/lr": lr}


class _Numbers(NamedTuple):
    """Of one step: the names of its losses, these first among all that it has a number of, and the numbers."""

    step: int
    terms: tuple[str, ...]
    names: tuple[str, ...]
    values: Tensor


def _grouped(steps: Sequence[_Numbers]) -> Iterable[list[_Numbers]]:
    """The steps that have the same losses and rates, mostly all: a loss may begin or end between two points."""
    groups: dict[tuple[tuple[str, ...], ...], list[_Numbers]] = {}
    for each in steps:
        groups.setdefault((each.terms, each.names), []).append(each)
    return groups.values()


@torch.no_grad()
def _diagnostics(losses: Losses) -> dict[str, float]:
    """The diagnostics of one step as `train/<name>`: means over the ranks, those that are not finite left out."""
    values = losses.diagnostics()
    if not values:
        return {}
    names = sorted(values)  # the same order on every rank
    sums = distributed.all_reduce_sum(torch.stack([values[name].detach().float() for name in names]))
    means = zip(names, (sums / distributed.world_size()).tolist(), strict=True)
    return {f"train/{name}": mean for name, mean in means if math.isfinite(mean)}


def _uncompiled(config: TrainConfig) -> AbstractContextManager[object]:
    """Within the block, compiled networks run uncompiled: whole images of many sizes would be compiled one by one."""
    return torch.compiler.set_stance("force_eager") if config.compile else nullcontext()


def _distributed(method: Method) -> nn.Module:
    if distributed.world_size() == 1:
        return method
    # Without SyncBatchNorm (there is none on the CPU) rank 0's running statistics are everyone's; with it they agree by
    # themselves.
    on_gpu = any(parameter.is_cuda for parameter in method.parameters())
    # A method's own buffers keep themselves equal on all ranks, or are meant not to be.
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(method, list(method.rank_local))  # type: ignore[no-untyped-call]
    return DistributedDataParallel(method, broadcast_buffers=not on_gpu, gradient_as_bucket_view=True)


def _agree_on_buffers(method: Method) -> None:
    """All ranks evaluate the same network: running statistics of the last step are made rank 0's."""
    if distributed.world_size() > 1:
        for buffer in method.buffers():
            distributed.broadcast_from_rank_zero(buffer)
