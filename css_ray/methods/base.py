"""What every method is: a module that holds its networks and turns a batch into losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from css_ray import config
from css_ray.config import knob
from css_ray.distributed import share_of_rank
from css_ray.functional.augmentation import colour_jitter, gaussian_blur, grey
from css_ray.functional.losses import cross_entropy, ohem_cross_entropy
from css_ray.functional.resizing import upsample
from css_ray.methods.stages import WHOLE, Border, Stage
from css_ray.models import Predictor, Segmenter
from css_ray.types import IGNORE_INDEX, Batch, BothSpaces, Clock, Losses, Prediction
from css_ray.views import Views


class Method(nn.Module, ABC):
    """A way to train a segmenter. A subclass costs one file, one line in METHODS (or an entry point) and one test class.

    All state lives in parameters and buffers, and all randomness comes from torch's default generators, so that `state_dict`
    and the generators' states resume a training exactly. The module is trained as a whole, under DDP if there are several
    ranks.

    name: its key in METHODS and in a study; in another package, the name of its entry point, too.
    needs_unlabelled: whether `forward` reads the unlabelled images.
    needs_representations: whether `make_segmenter` must give a representation head.
    presets: named sets of defaults; explicit settings of a study override the preset's.
    rank_local: buffers that may differ between ranks in training.
    stage: which of `stages` it is in, counted from 0; set by the loop.
    """

    name: ClassVar[str]
    needs_unlabelled: ClassVar[bool] = True
    needs_representations: ClassVar[bool] = False
    presets: ClassVar[tuple[str, ...]] = ("default",)
    rank_local: ClassVar[tuple[str, ...]] = ()
    stage: int = 0

    @dataclass(frozen=True, kw_only=True)
    class Config(config.Config):
        """The supervised loss, which all methods share."""

        ohem: bool = knob(False, help="supervised loss on hard pixels only, as the paper does on Cityscapes")
        ohem_threshold: float = knob(0.7, help="a pixel is hard if the probability of its class is at most this", gt=0, le=1)
        ohem_min_kept: int = knob(50_000, help="hardest pixels that count in any case, per labelled image", ge=1)

    config: Config

    def __init__(self, make_segmenter: Callable[[], Segmenter], config: Config, views: Views) -> None:
        super().__init__()
        self.config, self.views = config, views
        self.student = make_segmenter()

    @classmethod
    def preset_values(cls, preset: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The values in which `preset` departs from the defaults of `Config`, given the explicit `settings`."""
        return {}

    @classmethod
    def configure(cls, preset: str = "default", **settings: Any) -> Config:
        """The Config of a preset with `settings` on top. Raises ValueError for an unknown preset, and as Config does."""
        if preset not in cls.presets:
            raise ValueError(f"{cls.name} has no preset {preset!r}; it has {', '.join(cls.presets)}")
        return cls.Config(**(cls.preset_values(preset, settings) | settings))

    @classmethod
    def warnings(cls, config: Any, num_classes: int) -> list[str]:
        """What is valid in `config`, but probably a mistake: one sentence each, with the remedy."""
        return []

    @abstractmethod
    def forward(self, batch: Batch, clock: Clock) -> Losses:
        """The losses of one step, at this time."""

    def stages(self) -> tuple[Stage, ...]:
        """The parts of a training, by default one. In each the optimizer begins again, and remembers no step before it."""
        return WHOLE

    def enter(self, border: Border) -> None:
        """Called on every rank before the first step of each stage, `stage` being its number, but not again after a resume.

        What it makes must be in parameters and buffers, equal on all ranks: a checkpoint is written right after it.
        """

    def lr_factors(self) -> Mapping[str, float]:
        """Factors of the learning rate by the beginnings of parameter names, the longest wins; 0 freezes from then on.

        What it does not name learns at `train.encoder_lr_factor` in an encoder, and at 1 elsewhere.
        """
        return {}

    def after_step(self, clock: Clock) -> None:
        """Called once after each optimizer step with the time of its losses, such as to let a teacher follow its student."""

    def predictor(self) -> Predictor:
        """The segmenter that is evaluated and kept, or an ensemble of several."""
        return self.student

    def pseudo_labels(self, images: Tensor) -> dict[str, Tensor]:
        """[B, 3, H, W] -> labels [B, H, W] by source, IGNORE_INDEX where the method would reject them: what Table 4 scores.

        The networks are in eval mode and no state changes. A method without pseudo-labels has none.
        """
        return {}

    def space_state(self) -> dict[str, Tensor]:
        """What `both_spaces` needs besides the evaluated network, such as prototypes; it is kept with the best weights.

        Empty for a method that labels in one space, and for no other.
        """
        return {}

    @classmethod
    def both_spaces(cls, config: Any, network: Predictor, state: Mapping[str, Tensor], images: Tensor) -> BothSpaces:
        """What the two spaces make of images [B, 3, H, W] in [0, 1]: what Figures 3 to 5 of the paper show.

        network: what `predictor` returned, in eval mode; state: what `space_state` returned then. Raises NotImplementedError
        for a method that labels in one space.
        """
        raise NotImplementedError(f"{cls.name} labels in one space")

    def strong_colours(self, images: Tensor) -> Tensor:
        """Colour jitter, loss of colour and blur on the batch's device, each image its own."""
        views = self.views
        images = colour_jitter(images, views.jitter, views.jitter_probability, views.jitter_hue)
        if views.grey_probability:
            images = grey(images, views.grey_probability)
        return gaussian_blur(images, views.blur_sigma, views.blur_probability)

    def labelled_colours(self, images: Tensor, *, strong: bool) -> Tensor:
        """Labelled images [B, 3, H, W] as the student sees them: with strong colours or their own.

        strong: What the paper of the method has; `views.labelled_colours` may ask for the same in all methods.
        """
        asked = self.views.labelled_colours
        return self.strong_colours(images) if asked == "strong" or (asked == "method" and strong) else images

    def supervised(self, prediction: Prediction, labels: Tensor, *, share: Tensor | None = None) -> Tensor:
        """Eq. 7 over the labelled pixels of all ranks: the student's prediction against labels [B_l, H, W].

        share: the weight of this rank, see `share_of_rank`; by default that of its labelled pixels. With `ohem` each rank mines
        its own pixels, as in the published code, and ranks weigh the same.
        """
        logits = upsample(prediction.logits, (labels.shape[1], labels.shape[2]))
        if self.config.ohem:
            min_kept = self.config.ohem_min_kept * len(labels)
            return ohem_cross_entropy(logits, labels, threshold=self.config.ohem_threshold, min_kept=min_kept)
        share = share_of_rank((labels != IGNORE_INDEX).sum()) if share is None else share
        return cross_entropy(logits, labels) * share

    def see(self, labelled: Tensor, strong: Tensor, *, joint: bool) -> tuple[Prediction, Prediction]:
        """The student's predictions for the labelled images [B_l, 3, H, W], their colours changed, and for the strong view.

        joint: one forward pass for both, faster on a GPU; batch statistics are then of both together.
        """
        if not joint:
            return self.student(labelled), self.student(strong)
        both: Prediction = self.student(torch.cat([labelled, strong]))
        parts = [(None, None) if item is None else torch.split(item, [len(labelled), len(strong)]) for item in both]
        first, second = (Prediction(*(part[index] for part in parts)) for index in (0, 1))  # type: ignore[arg-type]
        return first, second
