"""The card of a model: what it is, what it was trained on, how good it is, and who may use it; in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from css_ray.messages import markdown
from css_ray.prediction.model import TrainedModel
from css_ray.records import score_text

if TYPE_CHECKING:
    from css_ray.prediction.export import Difference


def model_card(
    model: TrainedModel,
    file: str = "",
    format: str = "",
    difference: Difference | None = None,
    remarks: Sequence[str] = (),
) -> str:
    """The card of a model, or of a file that it was exported to. Names of others are escaped: they command no browser."""
    best = model.best
    facts: dict[str, str] = {
        "method": best.method,
        "network": f"DeepLabv3+ on {best.encoder}, output stride {best.output_stride}"
        + (f", mean of the logits of {count} networks" if (count := sum(each.members for each in model.bests)) > 1 else ""),
        "data set": f"{best.dataset}, content {best.content}",
        "labelled images": "; ".join(f"split {each.split}, hash {each.split_hash}, seed {each.seed}" for each in model.bests),
        "score": _score(model),
        "score of these weights": "; ".join(
            f"{each.metrics['val/miou']:.2f} % val/miou at step {each.step}"
            for each in model.bests
            if "val/miou" in each.metrics
        ),
        "weights": "; ".join(f"SHA-256 {digest}" for digest in model.digests),
        "began with": best.initial_weights or "not recorded",
        "licence of the weights": licence(model),
        "made by": ", ".join(f"{name} {number}" for name, number in best.versions.items()),
    }
    lines = [f"# {markdown(file or model.name)}", "", f"Semantic segmentation by {markdown(model.name)}.", ""]
    lines += ["| | |", "|---|---|", *(f"| {name} | {markdown(text)} |" for name, text in facts.items() if text), ""]
    if format:
        lines += [
            f"**Use.** Format {format}. Takes `images`, uint8 RGB [B, 3, H, W], any B, H and W; gives `classes`, uint8 "
            "[B, H, W], the index of a class, and `confidence`, float32 [B, H, W], its probability. Normalisation is inside.",
            "",
        ]
    if difference is not None:
        lines += [
            f"**Checked** against torch on images of several sizes: {difference}.",
            "",
        ]
    lines += [f"**Note.** {markdown(remark)}." for remark in remarks] + [""] * bool(remarks)
    lines += ["| index | class | colour |", "|---|---|---|"]
    for index, (name, colour) in enumerate(zip(best.class_names, model.palette, strict=True)):
        lines.append(f"| {index} | {markdown(name)} | {', '.join(map(str, colour))} |")
    return "\n".join([*lines, ""])


def _score(model: TrainedModel) -> str:
    """The trial's mean and std over splits, as its study scores it."""
    origin = model.origin
    if origin is None:
        return "not known: the weights were given without their study"
    at = "the last step" if origin.at == "last" else "the best evaluation"
    text = score_text(origin.mean, origin.std, origin.n, origin.num_splits)
    of = f"trial {origin.trial} ({origin.row}) of {origin.study}"
    flattered = "; of a search, on the splits that it chose by: an optimistic number" if origin.searched else ""
    fresh = "; on splits that the search never saw" if origin.confirmed else ""
    return f"{text} % {origin.metric} at {at}, mean and sample std over {origin.n} splits, {of}{flattered}{fresh}"


def licence(model: TrainedModel) -> str:
    """Under what the weights may be used, as far as that is known."""
    best = model.best
    rest = "the data set's own terms hold for what was learnt from it"
    if best.initial_weights == "random numbers":
        return f"yours; {rest}"
    if best.initial_weights is None or not best.initial_weights.startswith("timm's"):
        began = best.initial_weights or "not recorded"
        return f"that of the weights that it began with ({began}): see where they are from; {rest}"
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(best.encoder)
    stated = None if config is None else config.license
    return f"that of timm's weights of {best.encoder}: {stated or 'timm states none'}; {rest}"
