"""How long and how fast a run learns."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from css_ray.config import Config, Problem, knob
from css_ray.functional.windows import WindowAverage


@dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """The optimiser and the rhythm of a run.

    The defaults are the paper's for VOC (Sec. 4.1), and the released code's if the paper is silent.
    """

    iterations: int = knob(40_000, ge=1, help="optimizer steps of a run")
    lr: float = knob(0.0064, gt=0, help="learning rate at the first step")
    encoder_lr_factor: float = knob(1.0, ge=0, help="learning rate of the encoder, as a multiple of `lr`; 0 freezes it")
    optimizer: Literal["sgd", "adamw"] = knob("sgd", help="adamw is usual for vision transformers")
    momentum: float = knob(0.9, ge=0, lt=1, help="of SGD")
    nesterov: bool = knob(True, help="Nesterov's momentum, if there is any; most released codes of other methods have it off")
    betas: tuple[float, float] = knob((0.9, 0.999), ge=0, lt=1, help="of AdamW")
    weight_decay: float = knob(0.0005, ge=0, help="L2 penalty of SGD, decoupled decay of AdamW")
    decay_norm_and_bias: bool = knob(True, help="whether it acts on the parameters of normalisations and on biases, too")
    poly_power: float = knob(0.9, gt=0, help="lr = lr0 (1 - step / iterations) ^ power")
    min_lr: float = knob(0.0001, ge=0, help="floor of the schedule (the released code's; the paper states none)")
    evaluate_every: int = knob(1000, ge=1, help="steps between two evaluations; each writes a checkpoint")
    log_every: int = knob(50, ge=1, help="steps between two points of the training curves")
    precision: Literal["fp32", "bf16"] = knob("fp32", help="bf16 runs the networks under autocast; losses stay in fp32")
    channels_last: bool = knob(False, help="memory layout of the networks; often faster on a GPU")
    compile: bool = knob(False, help="torch.compile the student and the teacher; worth its start-up time on a GPU")
    deterministic: bool = knob(
        False,
        help="on a GPU, only algorithms that give the same bits at every call, so that a resumed run is the run; slower. A CPU "
        "always does",
    )
    evaluation: Literal["whole_image", "sliding_window"] = knob(
        "whole_image", help="sliding_window averages windows of the training crop, as the paper does on Cityscapes"
    )
    window_average: WindowAverage = knob("probabilities", help="what the windows that cover a pixel are averaged in")
    diagnose_images: int = knob(
        32, ge=0, help="unlabelled images with ground truth whose pseudo-labels are scored at each evaluation; 0: none"
    )

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if len(self.betas) != 2:
            yield Problem("betas", f"must be two numbers, got {self.betas!r}")
        if self.min_lr > self.lr:
            yield Problem("min_lr", f"must be <= lr ({self.lr:g}), got {self.min_lr:g}")
