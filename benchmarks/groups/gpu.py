"""On a GPU: the contrastive loss against the published one, and the step of CSS (mix) with each setting on and off."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from benchmarks import Row, UnavailableError, compare
from benchmarks.workloads import contrast
from benchmarks.workloads.steps import Pairs, Steps
from css_ray.methods import PRCL
from css_ray.models import ModelConfig
from css_ray.training.settings import TrainConfig

PRECISIONS: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")
SETTINGS = [
    *(TrainConfig(precision=precision, channels_last=last) for precision in PRECISIONS for last in (False, True)),
    TrainConfig(precision="bf16", channels_last=True, compile=True),  # compiling takes minutes: where the rest is at its best
]


@dataclass(frozen=True, slots=True)
class Measured:
    """seconds: of a step. passes: of its passes through the networks alone. peak: bytes at a step's peak, 0 on a CPU."""

    seconds: float
    passes: float
    peak: int


def rows() -> Iterator[Row]:
    if not torch.cuda.is_available():
        raise UnavailableError("torch sees no CUDA device")
    yield from _contrast_rows(torch.device("cuda"))
    yield from pairs_rows(torch.device("cuda"))
    print("\n".join(["", "tf_efficientnet_lite0, 8 + 8 of 320 x 320:", "", *LAUNCH_HEAD]), flush=True)
    small = ModelConfig(
        encoder="tf_efficientnet_lite0",
        output_stride=16,
        pretrained=False,
        decoder_channels=128,
        low_level_channels=32,
        representation_dim=128,
    )
    for settings in SETTINGS[:-1]:
        print(launch_line(small, 320, 8, settings, torch.device("cuda")), flush=True)
    print(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}, CSS (mix), resnet101, 8 + 8 of 512 x 512:\n")
    print("\n".join(TABLE_HEAD), flush=True)
    for stride in (8, 16):
        model = ModelConfig(encoder="resnet101", output_stride=stride, pretrained=False)
        measured = []
        for settings in SETTINGS if stride == 16 else SETTINGS[:-1]:
            measured.append(measure(model, 512, 8, settings, torch.device("cuda")))
            print(table_line(model, 8, settings, measured[-1]), flush=True)
        yield from rows_of(model, measured)


def _contrast_rows(device: torch.device) -> Iterator[Row]:
    """At the sizes of the paper's tables: 16 images, 128 x 128 cells, 256 channels."""
    given = contrast.inputs(batch=16, size=128, device=device)
    name = f"contrast + prototypes on 16 x 128 x 128 cells, {given.queries} anchors x {given.negatives}"

    def waited(function: Callable[[], None]) -> Callable[[], None]:
        return _waited(function, device)

    published = waited(lambda: contrast.published(given))
    yield compare(f"{name} per anchor, vs published", waited(lambda: contrast.ours(given, "per_anchor")), published, 1.0)
    yield compare(f"{name} shared, vs published", waited(lambda: contrast.ours(given, "shared")), published, 1.0)


RESNET101 = ModelConfig(encoder="resnet101", output_stride=16, pretrained=False)


def pairs_rows(device: torch.device, model: ModelConfig = RESNET101, size: int = 512, batch_size: int = 8) -> Iterator[Row]:
    """PRCL scores pairs channel by channel, which no matrix product does."""
    pairs = Pairs(PRCL.Config(), device=device)
    ours, together = _waited(pairs.ours, device), _waited(pairs.together, device)
    yield compare("prcl's scores of a class, vs autograd through all pairs", ours, together, 1.0)
    steps = Steps(model, size, batch_size, TrainConfig(precision="bf16", channels_last=True), device, PRCL)
    for _ in range(3):
        steps.whole()
    name = f"prcl step, {model.encoder}, {batch_size} + {batch_size} of {size} x {size}, bf16, vs passes without scores"
    yield compare(name, _waited(steps.whole, device), _waited(steps.passes, device), 1.10)


def _waited(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
    def run() -> None:
        function()
        _wait(device)

    return run


def measure(
    model: ModelConfig, size: int, batch_size: int, settings: TrainConfig, device: torch.device, *, repeats: int = 7
) -> Measured | None:
    """None where the device's memory is too small."""
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
    torch.compiler.reset()
    try:
        steps = Steps(model, size, batch_size, settings, device)
        for _ in range(3):  # compilation, the choice of algorithms, momentum
            steps.whole()
        if on_gpu:
            torch.cuda.reset_peak_memory_stats()
        seconds = _median(steps.whole, repeats, device)
        peak = torch.cuda.max_memory_allocated() if on_gpu else 0
        steps.passes()
        return Measured(seconds, _median(steps.passes, repeats, device), peak)
    except torch.OutOfMemoryError:
        return None


def launch_line(model: ModelConfig, size: int, batch_size: int, settings: TrainConfig, device: torch.device) -> str:
    """Of a small network: how long a step takes, when the host has launched it, and for how long the device works."""
    steps, repeats = Steps(model, size, batch_size, settings, device), 10
    for _ in range(3):
        steps.whole()
    _wait(device)
    started = time.perf_counter()
    for _ in range(repeats):
        steps.whole()
    launched = time.perf_counter() - started
    _wait(device)
    taken = time.perf_counter() - started
    activities = [torch.profiler.ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        steps.whole()
        _wait(device)
    kernels = [event for event in profile.key_averages() if event.device_type.name == "CUDA"]
    count, busy = sum(event.count for event in kernels), sum(event.self_device_time_total for event in kernels) / 1e3
    times = [f"{1e3 * seconds / repeats:.1f} ms" for seconds in (taken, launched)]
    last = "yes" if settings.channels_last else "no"
    return f"| {settings.precision} | {last} | {' | '.join(times)} | {count} | {busy:.1f} ms |"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _median(function: Callable[[], None], repeats: int, device: torch.device) -> float:
    times = []
    for _ in range(repeats):
        _wait(device)
        started = time.perf_counter()
        function()
        _wait(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


LAUNCH_HEAD = [
    "| precision | channels_last | a step | launched after | kernels | the device works |",
    "|---|---|---|---|---|---|",
]

TABLE_HEAD = [
    "| output stride | precision | channels_last | compile | images/s | peak memory | share of the losses |",
    "|---|---|---|---|---|---|---|",
]


def table_line(model: ModelConfig, batch_size: int, settings: TrainConfig, measured: Measured | None) -> str:
    """images/s counts labelled and unlabelled images; the losses are all of a step but its passes through the networks."""
    cells = [str(model.output_stride), settings.precision, *("yes" if on else "no" for on in _switches(settings))]
    if measured is None:
        cells += ["out of memory", "–", "–"]
    else:
        rate, share = 2 * batch_size / measured.seconds, 1 - measured.passes / measured.seconds
        cells += [f"{rate:.1f}", f"{measured.peak / 2**30:.1f} GiB", f"{share:.0%}"]
    return f"| {' | '.join(cells)} |"


def _switches(settings: TrainConfig) -> tuple[bool, bool]:
    return settings.channels_last, settings.compile


def rows_of(model: ModelConfig, measured: list[Measured | None]) -> Iterator[Row]:
    """Settings that must not cost time: bf16 with channels_last against neither, and compiling against not."""
    by_settings: dict[tuple[str, bool, bool], Measured | None] = {
        (settings.precision, *_switches(settings)): result for settings, result in zip(SETTINGS, measured, strict=False)
    }
    keys = ("fp32", False, False), ("bf16", True, False), ("bf16", True, True)
    plain, fast, compiled = (by_settings.get(key) for key in keys)
    name = f"CSS (mix) step, resnet101, output stride {model.output_stride}"
    if plain is not None and fast is not None:
        yield Row(f"{name}: bf16 + channels_last, vs fp32", fast.seconds, plain.seconds, 1.0)
    if fast is not None and compiled is not None:
        yield Row(f"{name}: compiled, vs not", compiled.seconds, fast.seconds, 1.05)
