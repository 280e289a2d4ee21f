"""Figures 3 to 6 of the paper from trained models and the images of their study."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from css_ray.data.loaders import images_on
from css_ray.data.shards import Sample, Shards
from css_ray.figures import draw
from css_ray.figures.choice import (
    SMALLEST,
    Scores,
    binned,
    difference_boxes,
    evenly_ranked,
    evenly_spaced,
    image_scores,
)
from css_ray.figures.draw import Drawing, Panel, Row
from css_ray.matrices import ImageMatrices
from css_ray.messages import markdown
from css_ray.methods.base import Method
from css_ray.prediction.model import TrainedModel
from css_ray.types import IGNORE_INDEX

WINDOWS = ((0.80, 0.81), (0.78, 0.83), (0.7, 0.9), (0.0, 1.0))
"""Intervals of the confidence in Figure 4 (a): the paper's, and wider ones if too few pixels are in it."""

FEWEST, MOST = 200, 4000
"""Pixels that Figure 4 (a) should have, and those it draws at most."""

PIXELS = 50_000
"""Of an image, at most, in Figure 4."""

_BINS = 20
_SHOWN_CLASSES = 40  # in a key

_CONFUSING: draw.Key = (
    ("in neither space", (240, 240, 240)),
    ("in the logit space alone", (230, 159, 0)),
    ("in the representation space alone", (0, 114, 178)),
    ("in both spaces", (60, 60, 60)),
)

Progress = Callable[[int, int], None]


class NoPixelError(LookupError):
    """A class of which no pixel can be compared with a prototype."""


@dataclass(frozen=True, eq=False, slots=True)
class Candidate:
    """A row of the table and its best weights on the split that is shown.

    matrices: of the best evaluation, None if none are kept or needed. miou: what the journal has of it, in percent.
    """

    row: str
    model: TrainedModel
    matrices: ImageMatrices | None = None
    miou: float | None = None


@dataclass(frozen=True, eq=False, slots=True)
class TwoSpaces:
    """A row whose method labels in two spaces, and its settings."""

    row: str
    model: TrainedModel
    method: type[Method]
    config: Any

    @torch.no_grad()
    def maps(self, image: torch.Tensor) -> Maps:
        """What both spaces make of an image, uint8 [3, H, W], as a whole, also if the evaluation has windows."""
        images = images_on(image.unsqueeze(0), self.model.device)
        found = self.method.both_spaces(self.config, self.model.predictor, self.model.spaces[0], images)
        return Maps(*(each[0].cpu().numpy() for each in found))


class Maps(NamedTuple):
    """`BothSpaces` of one image, [H, W] each."""

    confidence: NDArray[Any]
    logit_labels: NDArray[Any]
    logit_mask: NDArray[Any]
    similarity: NDArray[Any]
    representation_labels: NDArray[Any]
    representation_mask: NDArray[Any]
    cosine: NDArray[Any]

    @property
    def disagreement(self) -> float:
        """Share of the pixels to which the spaces give different classes."""
        return float((self.logit_labels != self.representation_labels).mean())

    @property
    def confusing_in_one(self) -> float:
        """Share of the pixels that pass the threshold of exactly one space."""
        return float((self.logit_mask != self.representation_mask).mean())


# -------------------------------------------------------------------------------------------------------------- Figure 6


def qualitative(candidates: Sequence[Candidate], val: Shards, images: int) -> Drawing:
    """Predictions of some rows beside the truth, what differs between the first and the last row marked (Figure 6).

    Args:
        candidates: The base first, the row that is compared with it last. Both have matrices.
        val: The validation images.
        images: How many are shown.

    Raises:
        ValueError: A row has other validation images than these, or no matrices.
    """
    base, best = candidates[0], candidates[-1]
    scores = {each.row: _scores(each, val) for each in {id(each): each for each in (base, best)}.values()}
    alone = base is best
    values = scores[best.row] if alone else scores[best.row] - scores[base.row]
    chosen, ranked = evenly_ranked(values, images), int(np.isfinite(values).sum())
    if not chosen:
        raise ValueError("no validation image has a label")
    rows, seen = [], set()
    for index in chosen:
        sample = val.sample(index)
        truth = _truth(sample)
        predicted = [_predicted(each.model, sample) for each in candidates]
        boxes = () if alone else difference_boxes(truth, predicted[0], predicted[-1])
        seen.update(np.unique(np.stack([truth, *predicted])).tolist())
        palette = best.model.palette
        rows.append(
            Row(
                f"{sample.id} ({values[index]:+.1f})" if not alone else f"{sample.id} ({values[index]:.1f})",
                [
                    Panel(_rgb(sample), boxes),
                    Panel(draw.coloured(truth, palette), boxes),
                    *(Panel(draw.coloured(each, palette), boxes) for each in predicted),
                ],
            )
        )
    columns = ["image", "ground truth", *(each.row for each in candidates)]
    figure = draw.panels(columns, rows, [_key(seen, best.model)])
    measure, unit = "the mean IoU over the classes in the image's label", "percent"
    if not alone:
        measure, unit = f"the difference of {best.row} to {base.row} in {measure}", "points"
    rule = _rule(len(chosen), ranked, measure, unit, what="labelled validation image")
    caption = f"Predictions of the best weights of each row. {rule}"
    if not alone:
        caption += (
            " Boxes mark the two largest regions of an image in which exactly one of these two is right; those of less than "
            f"{100 * SMALLEST:g} % of the image are left out."
        )
    caption += _ids([val.ids[index] for index in chosen])
    alt = f"{_number(len(chosen), 'validation image')} with their ground truth and the predictions of {_listed(candidates)}."
    return Drawing("qualitative", "Qualitative results", caption, alt, figure)


def _scores(of: Candidate, val: Shards) -> Scores:
    if of.matrices is None:
        raise ValueError(f"{of.row} has kept no confusion matrices of its validation images")
    if of.matrices.ids != val.ids:
        raise ValueError(f"{of.row} was evaluated on other images than the data set has now; restore the data set")
    right, labelled, predicted = of.matrices.class_pixels().sum(axis=1).astype(np.float64)
    union = labelled + predicted - right
    miou = 100 * float(np.mean(right[union > 0] / union[union > 0])) if union.any() else None
    if of.matrices.class_names != of.model.best.class_names or not _equal(miou, of.miou):
        raise ValueError(f"the confusion matrices of {of.row} are of another evaluation; restore them, or train the run again")
    return image_scores(of.matrices)


def _equal(found: float | None, recorded: float | None) -> bool:
    """Whether two scores in percent differ by rounding alone."""
    return found is not None and recorded is not None and abs(found - recorded) < 1e-6


def _predicted(model: TrainedModel, sample: Sample) -> NDArray[Any]:
    classes: NDArray[Any] = model.predict(sample.image.unsqueeze(0)).classes[0].cpu().numpy()
    return classes


# -------------------------------------------------------------------------------------------------------- Figures 3, 4 and 5


def pseudo_labels(
    of: TwoSpaces, train: Shards, unlabelled: Sequence[int], images: int, examined: int, progress: Progress
) -> Drawing:
    """The pseudo-labels of both spaces with the masks of their thresholds, on unlabelled images (Figure 3).

    Args:
        of: The row.
        train: The training images; unlabelled: the indices of those that the split does not label.
        images: How many are shown.
        examined: How many are looked at at most, evenly spaced among the unlabelled ones.
        progress: Told of each image.
    """
    looked_at = [unlabelled[place] for place in evenly_spaced(len(unlabelled), examined)]
    shares = [of.maps(train.sample(index, mask=False).image).disagreement for index in _counted(looked_at, progress)]
    chosen = evenly_ranked(shares, images)
    rows, seen, palette = [], set(), of.model.palette
    for place in chosen:
        sample = train.sample(looked_at[place])
        maps, truth = of.maps(sample.image), _truth(sample)
        seen.update(np.unique(np.stack([truth, maps.logit_labels, maps.representation_labels])).tolist())
        rows.append(
            Row(
                f"{sample.id} ({100 * shares[place]:.0f} %)",
                [
                    Panel(_rgb(sample)),
                    Panel(draw.coloured(truth, palette)),
                    Panel(draw.black_and_white(maps.logit_mask)),
                    Panel(draw.coloured(maps.logit_labels, palette)),
                    Panel(draw.black_and_white(maps.representation_mask)),
                    Panel(draw.coloured(maps.representation_labels, palette)),
                ],
            )
        )
    columns = [
        "(a) image",
        "(b) ground truth",
        "(c) mask, logits",
        "(d) labels, logits",
        "(e) mask, representations",
        "(f) labels, representations",
    ]
    measure, what = "the share of pixels to which the spaces give different classes", "unlabelled image"
    caption = (
        f"Pseudo-labels of {of.row} in the logit space and in the representation space. White pixels of a mask pass the "
        f"threshold of its space. {_rule(len(chosen), len(looked_at), measure, 'percent', of=len(unlabelled), what=what)}"
    )
    caption += _ids([train.ids[looked_at[place]] for place in chosen])
    alt = (
        f"{_number(len(chosen), 'unlabelled image')} with the pseudo-labels of both spaces of {of.row} and the pixels that "
        "pass the thresholds."
    )
    figure = draw.panels(columns, rows, [_key(seen, of.model)])
    return Drawing("pseudo-labels", "Pseudo-labels of the two spaces", caption, alt, figure)


class Examined(NamedTuple):
    """What one look at the validation images gives Figures 4 and 5.

    looked_at: the indices of the images. shares: of each, the share of pixels that confuse exactly one space. labels (of the
    logits), confidence, cosine: of the pixels of all these images, at most `PIXELS` of an image, evenly spaced. every: one of
    how many pixels these are, at most.
    """

    looked_at: list[int]
    shares: list[float]
    labels: NDArray[np.uint8]
    confidence: NDArray[np.float32]
    cosine: NDArray[np.float32]
    every: int


def examine(of: TwoSpaces, val: Shards, examined: int, progress: Progress) -> Examined:
    """Look at up to `examined` validation images, evenly spaced; progress is told of each."""
    looked_at = evenly_spaced(len(val), examined)
    shares, parts, every = [], [], 1
    for index in _counted(looked_at, progress):
        maps = of.maps(val.sample(index, mask=False).image)
        shares.append(maps.confusing_in_one)
        step = -(-maps.confidence.size // PIXELS)
        every = max(every, step)
        labels = maps.logit_labels.astype(np.uint8)
        # Copies: a view of every few pixels would keep the whole map.
        parts.append([each.ravel()[::step].copy() for each in (labels, maps.confidence, maps.cosine)])
    labels, confidence, cosine = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Examined(looked_at, shares, labels, confidence, cosine, every)


def confusion(of: TwoSpaces, val: Shards, found: Examined, images: int) -> Drawing:
    """Which regions confuse the one space and which the other, on validation images (Figure 5); images: how many are shown."""
    looked_at, shares = found.looked_at, found.shares
    chosen = evenly_ranked(shares, images)
    rows, seen = [], set()
    for place in chosen:
        sample = val.sample(looked_at[place])
        maps, truth = of.maps(sample.image), _truth(sample)
        seen.update(np.unique(truth).tolist())
        kind = 1 * ~maps.logit_mask + 2 * ~maps.representation_mask
        rows.append(
            Row(
                f"{sample.id} ({100 * shares[place]:.0f} %)",
                [
                    Panel(_rgb(sample)),
                    Panel(draw.coloured(truth, of.model.palette)),
                    Panel(maps.confidence),
                    Panel(maps.similarity),
                    Panel(draw.coloured(kind, [colour for _, colour in _CONFUSING])),
                ],
            )
        )
    columns = ["(a) image", "(b) ground truth", "(c) confidence", "(d) similarity", "(e) confusing"]
    measure = "the share of pixels that confuse exactly one space"
    caption = (
        f"How sure {of.row} is in the logit space (confidence) and in the representation space (similarity to a prototype, as "
        "a softmax over the classes). A pixel is confusing in a space if it does not pass its threshold. "
        f"{_rule(len(chosen), len(looked_at), measure, 'percent', of=len(val))}"
    )
    caption += _ids([val.ids[looked_at[place]] for place in chosen])
    alt = (
        f"{_number(len(chosen), 'validation image')} with the confidence and the similarity of {of.row} and the regions that "
        "confuse it."
    )
    figure = draw.panels(columns, rows, [_key(seen, of.model), _CONFUSING])
    return Drawing("confusing-regions", "Confusing regions of the two spaces", caption, alt, figure)


def similarity_against_confidence(of: TwoSpaces, val: Shards, found: Examined, class_name: str | None) -> Drawing:
    """How the similarity of pixels to the prototype of a class varies with the confidence in that class (Figure 4).

    class_name: by default the class that the row predicts second most often, the first beside a background.

    Raises NoPixelError if the row predicts the class nowhere, or it has no prototype.
    """
    names = of.model.best.class_names
    index = _second(found.labels) if class_name is None else names.index(class_name)
    chosen = found.labels == index
    if not chosen.any():
        raise NoPixelError(
            f"{of.row} predicts no pixel of the images that were looked at as {names[index]}; choose another class"
        )
    confidence, cosine = found.confidence[chosen], found.cosine[chosen]
    if not np.isfinite(cosine).all() or not cosine.any():
        raise NoPixelError(f"{of.row} has no prototype of {names[index]}; choose another class")
    window, inside = _window(confidence)
    drawn = inside[evenly_spaced(len(inside), MOST)]
    bins = binned(confidence, cosine, _BINS)
    rule = f", the class that it predicts {_ordinal(found.labels)}most often," if class_name is None else ""
    some = f" ({len(drawn):,} of them are drawn, evenly spaced)" if len(drawn) < len(inside) else ""
    spread = f": their similarity is from {cosine[inside].min():.2f} to {cosine[inside].max():.2f}" if len(inside) else ""
    looked_at = f"the {_number(len(val), 'validation image')}"
    if len(found.looked_at) < len(val):
        looked_at = f"{len(found.looked_at)} of {looked_at}, evenly spaced"
    every = f" (at least one pixel of {found.every})" if found.every > 1 else ""
    caption = (
        f"Cosine similarity to the prototype against confidence, for the pixels that {of.row} predicts as {names[index]}{rule} "
        f"in {looked_at}{every}. (a) The {_number(len(inside), 'pixel')} with a confidence from {window[0]:.2f} to "
        f"{window[1]:.2f}{some}{spread}. (b) Mean and standard deviation of the similarity in {_BINS} intervals of the "
        f"confidence, and the share of the {_number(len(confidence), 'pixel')} in each.{_correlation(confidence, cosine)}"
    )
    alt = f"Similarity of {of.row} to the prototype of {names[index]} over its confidence: {caption}"
    figure = draw.relation(window, confidence[drawn], cosine[drawn], bins)
    return Drawing("similarity-confidence", f"Similarity against confidence of {names[index]}", caption, alt, figure)


def _second(labels: NDArray[np.uint8]) -> int:
    """The second most frequent class, or the only one."""
    counts = np.bincount(labels)
    order = np.argsort(-counts, kind="stable")
    return int(order[1] if len(counts) > 1 and counts[order[1]] else order[0])


def _ordinal(labels: NDArray[np.uint8]) -> str:
    return "second " if (np.bincount(labels) > 0).sum() > 1 else ""


def _window(confidence: NDArray[Any]) -> tuple[tuple[float, float], NDArray[np.intp]]:
    """The narrowest of `WINDOWS` with enough pixels, and the indices of its pixels; else the widest."""
    for low, high in WINDOWS:
        inside = np.flatnonzero((confidence >= low) & ((confidence < high) | (high == 1)))
        if len(inside) >= FEWEST:
            break
    return (low, high), inside


def _correlation(confidence: NDArray[Any], cosine: NDArray[Any]) -> str:
    if len(confidence) < 3 or confidence.std() == 0 or cosine.std() == 0:
        return ""
    found = np.corrcoef(confidence.astype(np.float64), cosine.astype(np.float64))[0, 1]
    return f" Their correlation over all these pixels is {found:.2f}."


# ------------------------------------------------------------------------------------------------------------- what they share


def _counted(indices: Sequence[int], progress: Progress) -> Iterator[int]:
    for done, index in enumerate(indices):
        progress(done, len(indices))
        yield index
    progress(len(indices), len(indices))


def _rule(count: int, looked_at: int, measure: str, unit: str, *, of: int | None = None, what: str = "validation image") -> str:
    """How the images that are shown were chosen: by their ranks in `measure`, among those that were looked at."""
    among = f"the {_number(looked_at, what)}" if looked_at > 1 else f"the only {what}"
    if of not in (None, looked_at):
        among = f"{looked_at} of the {_number(of or 0, what)}, evenly spaced"
    ranks = "The image is at the middle rank"
    if count > 1:
        ranks = f"The {count} images are at evenly spaced ranks, from the highest to the lowest,"
    return f"{ranks} of {measure} (in {unit} beside each), among {among}."


def _number(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _ids(ids: Sequence[str]) -> str:
    """Which images are shown, so that they can be found again."""
    return f" From the top: {', '.join(ids)}."


def _listed(candidates: Sequence[Candidate]) -> str:
    return ", ".join(each.row for each in candidates)


def _rgb(sample: Sample) -> draw.Pixels:
    return sample.image.permute(1, 2, 0).numpy()


def _truth(sample: Sample) -> NDArray[Any]:
    """The mask [H, W]; void everywhere for an image without one."""
    if sample.mask is None:
        return np.full(sample.image.shape[1:], IGNORE_INDEX, np.uint8)
    mask: NDArray[Any] = sample.mask.numpy()
    return mask


def _key(seen: set[int], model: TrainedModel) -> draw.Key:
    """The colours of the classes that are seen, and of pixels without a label; none if these are too many to read."""
    classes = sorted(index for index in seen if index < len(model.best.class_names))
    if len(classes) > _SHOWN_CLASSES:
        return []
    key = [(model.best.class_names[index], model.palette[index]) for index in classes]
    return [*key, ("no label", draw.UNLABELLED)] if IGNORE_INDEX in seen else key


def captions(drawings: Sequence[Drawing], about: Mapping[str, str]) -> str:
    """The captions in Markdown, as a file beside the figures."""
    lines = "\n".join(f"- {name}: {markdown(text)}" for name, text in about.items())
    parts = [f"## {markdown(each.title)}\n\n`{each.name}`: {markdown(each.caption)}" for each in drawings]
    return "\n\n".join([lines, *parts]) + "\n"
