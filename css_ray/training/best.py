"""The best weights of a run, `best.pt`, and beside them `best.json`: all that is needed to use them without the study."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from css_ray import __version__, distributed
from css_ray.functional.windows import WindowAverage
from css_ray.models import Ensemble, ModelConfig, Predictor, Segmenter, make_segmenter
from css_ray.models.deeplabv3plus import ASPP_RATES
from css_ray.models.dpt import DPTDecoder
from css_ray.storage import write_whole
from css_ray.training.checkpoint import write_tensors
from css_ray.training.settings import TrainConfig
from css_ray.types import IGNORE_INDEX

FORMAT = 1
WEIGHTS_FILE, DESCRIPTION_FILE = "best.pt", "best.json"
BEST_FILES = (WEIGHTS_FILE, DESCRIPTION_FILE)
"""The files of the best weights, in the order in which they are replaced."""

Colour = tuple[int, int, int]

_SPACE = "space."
"""What the names of tensors begin with that are the method's, not the network's."""


class BestError(ValueError):
    """A folder whose best weights cannot be used as they are described there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BestDescription:
    """The best weights of a run: the network they belong to, what it sees and predicts, and where they come from.

    versions: of css_ray, torch and timm, which wrote the weights. method: by its name in a study.
    encoder, output_stride, decoder_channels, low_level_channels, aspp_rates, representation_dim, head_convs, decoder: the
    network, as in `ModelConfig`; representation_dim is None without a representation head. members: how many such networks
    predict together, by the mean of their logits; their tensors are then named `members.0.` and so on.
    images, mean, std: what the network takes, and how it normalises that itself. logits_stride: of `Segmenter.forward`.
    palette: one RGB colour per class, or None. ignored_label: of pixels that are not counted.
    evaluation, crop, window_average: how the images were predicted for `metrics`; crop is in pixels.
    step, metrics: the evaluation that was the best, its scores in percent.
    seed, split, split_hash: of the run. dataset, content: the data set's name and the SHA-256 of its content.
    batch, threads, workers, channels_last, deterministic: what the last digits of that evaluation depend on: the images of a
    batch, the threads of a CPU, the ranks that shared the images, the memory layout, a GPU's algorithms. image_size: (width,
    height) that all images of the evaluation have, None if they differ. initial_weights: what the encoder began with. Files of
    earlier versions lack these; None means unknown.
    """

    versions: dict[str, str]
    method: str
    encoder: str
    output_stride: int
    decoder_channels: int
    low_level_channels: int
    aspp_rates: tuple[int, ...]
    representation_dim: int | None
    images: str = "RGB in [0, 1]"
    mean: tuple[float, ...]
    std: tuple[float, ...]
    logits_stride: float
    num_classes: int
    class_names: tuple[str, ...]
    palette: tuple[Colour, ...] | None
    ignored_label: int = IGNORE_INDEX
    evaluation: Literal["whole_image", "sliding_window"]
    crop: int
    window_average: WindowAverage
    step: int
    metrics: dict[str, float]
    seed: int
    split: int
    split_hash: str
    dataset: str
    content: str
    head_convs: Literal[1, 2] = 1
    members: int = 1
    decoder: Literal["deeplabv3plus", "dpt"] = "deeplabv3plus"  # the only one of earlier versions
    batch: int | None = None
    threads: int | None = None
    workers: int = 1
    channels_last: bool = False
    deterministic: bool = False
    image_size: tuple[int, int] | None = None
    initial_weights: str | None = None

    @property
    def window(self) -> int | None:
        """Side in pixels of the windows of the evaluation, as `evaluate` takes it; None if whole images were predicted."""
        return self.crop if self.evaluation == "sliding_window" else None


def describe_best(
    predictor: Predictor,
    model: ModelConfig,
    train: TrainConfig,
    *,
    step: int,
    metrics: dict[str, float],
    method: str,
    crop: int,
    class_names: tuple[str, ...],
    palette: tuple[Colour, ...],
    seed: int,
    split: int,
    split_hash: str,
    dataset: str,
    content: str,
    batch: int | None = None,
    image_size: tuple[int, int] | None = None,
) -> BestDescription:
    """The description of `predictor`, whose networks were made from `model`, evaluated here and now as `train` asks for."""
    network = predictor if isinstance(predictor, Segmenter) else predictor.members[0]
    assert isinstance(network, Segmenter)
    return BestDescription(
        versions={"css_ray": __version__, "torch": str(torch.__version__), "timm": version("timm")},
        method=method,
        encoder=model.encoder,
        output_stride=model.output_stride,
        decoder_channels=model.decoder_channels,
        low_level_channels=model.low_level_channels,
        aspp_rates=model.aspp_rates or ASPP_RATES[model.output_stride],
        representation_dim=network.representation_dim,
        mean=network.encoder.mean,
        std=network.encoder.std,
        logits_stride=network.decoder.stride,
        num_classes=predictor.num_classes,
        class_names=class_names,
        palette=palette or None,
        evaluation=train.evaluation,
        crop=crop,
        window_average=train.window_average,
        step=step,
        metrics={name: value for name, value in metrics.items() if name.startswith("val/")},
        seed=seed,
        split=split,
        split_hash=split_hash,
        dataset=dataset,
        content=content,
        head_convs=model.head_convs,
        members=1 if isinstance(predictor, Segmenter) else len(predictor.members),
        decoder="dpt" if isinstance(network.decoder, DPTDecoder) else "deeplabv3plus",
        batch=batch,
        threads=torch.get_num_threads(),
        workers=distributed.world_size(),
        channels_last=train.channels_last,
        deterministic=train.deterministic,
        image_size=image_size,
        initial_weights=_initial_weights(model),
    )


def _initial_weights(model: ModelConfig) -> str:
    """What an encoder began with, in words; of a file its name, since its path is of one machine."""
    if isinstance(model.pretrained, str):
        return f"the file {Path(model.pretrained).name}"
    return f"timm's weights of {model.encoder}" if model.pretrained else "random numbers"


def best_tensors(predictor: Predictor, space: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `write_best` takes of an evaluation: the network's tensors, and beside them `Method.space_state`."""
    return {**predictor.state_dict(), **{f"{_SPACE}{name}": tensor for name, tensor in space.items()}}


def write_best(folder: Path, weights: dict[str, Tensor], best: BestDescription) -> None:
    """Write both files into `folder`, which is made; each is replaced as a whole, and nothing is if there is no room for both.

    A reader that meets the new weights beside the old description knows it by their SHA-256.
    """
    folder.mkdir(parents=True, exist_ok=True)
    new = [folder / f"{name}.new" for name in BEST_FILES]
    try:
        _write_new(new[0], new[1], weights, best)
        # Both are on the disk before the first takes its place: a kill between the two is unlikely.
        for file, name in zip(new, BEST_FILES, strict=True):
            file.replace(folder / name)
    except BaseException:
        for file in new:
            file.unlink(missing_ok=True)
        raise


def _write_new(new_weights: Path, new_description: Path, weights: dict[str, Tensor], best: BestDescription) -> None:
    # From the CPU, so that a machine without a GPU reads them too.
    write_tensors(new_weights, {name: tensor.cpu() for name, tensor in weights.items()})
    with new_weights.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    content = {"format": FORMAT, "weights_sha256": digest, **dataclasses.asdict(best)}
    text = json.dumps(content | {"checksum": _checksum(content)}, indent=1, allow_nan=False)
    write_whole(new_description, text.encode())


def load_best(folder: str | Path) -> tuple[Predictor, BestDescription]:
    """Rebuild the predictor whose weights are in `folder`, and read what is known of it. Nothing is downloaded.

    Args:
        folder: of a run, with `best.pt` and `best.json`; a path.

    Returns:
        The segmenter, or the ensemble of several, on the CPU and in eval mode, and its description.

    Raises:
        BestError: a file is missing, altered or of another format, or the weights do not fit the network.
    """
    found = read_best(folder)
    return found.predictor, found.best


class Best(NamedTuple):
    """What a folder of best weights holds. digest: the SHA-256 of the weights. space: `Method.space_state` of then."""

    predictor: Predictor
    best: BestDescription
    digest: str
    space: dict[str, Tensor]


def read_best(folder: str | Path) -> Best:
    """All that is in a folder of best weights. Raises as `load_best`."""
    folder = Path(folder)
    content = _read_description(folder)
    digest = content.pop("weights_sha256")
    known = {field.name for field in dataclasses.fields(BestDescription)}
    if newer := sorted(content.keys() - known):
        raise BestError(
            f"{folder / DESCRIPTION_FILE} has fields that this version of css-ray does not know ({', '.join(newer)}); use the "
            "version of css-ray that wrote it, or a newer one"
        )
    best = BestDescription(**{key: _tuples(value) for key, value in content.items()})
    tensors = _read_weights(folder, digest)
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(_SPACE)}
    space = {name.removeprefix(_SPACE): tensor for name, tensor in tensors.items() if name.startswith(_SPACE)}
    try:
        with torch.random.fork_rng(devices=[]):  # drawing the first weights must not change the caller's random numbers
            predictor = _make(best)
    except ValueError as error:
        raise BestError(f"the network of {folder / DESCRIPTION_FILE} cannot be built: {error}; {_remedy(best)}") from None
    if differences := _differences(predictor.state_dict(), weights):
        raise BestError(
            f"{folder / WEIGHTS_FILE} does not fit the network of {DESCRIPTION_FILE} (tensors: {differences}); {_remedy(best)}"
        )
    predictor.load_state_dict(weights)
    return Best(predictor.eval(), best, digest, space)


def _read_description(folder: Path) -> dict[str, Any]:
    """The fields of a description and the SHA-256 of its weights."""
    path, again = folder / DESCRIPTION_FILE, "train the run again, or restore the folder from a copy"
    if not folder.is_dir():
        raise BestError(f"{folder} is not a folder of this machine; give the one that holds a run's {' and '.join(BEST_FILES)}")
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        if not (folder / WEIGHTS_FILE).exists():
            raise BestError(f"{folder} has no {DESCRIPTION_FILE}; give the folder that holds a run's best weights") from None
        raise BestError(
            f"{folder} has {WEIGHTS_FILE} but no {DESCRIPTION_FILE}, which earlier versions of css-ray did not write; "
            "read the weights with css_ray.training.checkpoint.read_tensors and load them into "
            "css_ray.models.make_segmenter with the model settings of the study, or train the run again"
        ) from None
    except OSError as error:
        raise BestError(f"{path} cannot be read ({error.strerror}); {again}") from None
    except ValueError:
        raise BestError(f"{path} is not JSON, so it was cut short or altered; {again}") from None
    if not isinstance(content, dict) or "format" not in content:
        raise BestError(f"{path} has no format, so it was altered; {again}")
    if content["format"] != FORMAT:
        raise BestError(
            f"{path} has format {content['format']!r}, this version of css-ray reads {FORMAT}; "
            "use the version of css-ray that wrote it, or a newer one"
        )
    if content.pop("checksum", None) != _checksum(content):
        raise BestError(f"{path} was altered: its checksum is wrong; {again}")
    del content["format"]
    return content


def _read_weights(folder: Path, digest: str) -> dict[str, Tensor]:
    path = folder / WEIGHTS_FILE
    try:
        # Opened once: should the file be replaced in the meantime, the old one is read to its end.
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != digest:
                raise BestError(
                    f"{path} has the SHA-256 {found[:12]}, {DESCRIPTION_FILE} expects {digest[:12]}: it was altered or is just "
                    "being replaced; try again, and if it stays so, train the run again or restore the folder from a copy"
                )
            file.seek(0)
            weights: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise BestError(
            f"{folder} has {DESCRIPTION_FILE} but no {WEIGHTS_FILE}; copy it there, or train the run again"
        ) from None
    except OSError as error:
        raise BestError(f"{path} cannot be read ({error.strerror}); check its permissions and its disk") from None
    return weights


def _make(best: BestDescription) -> Predictor:
    names = "encoder", "decoder", "output_stride", "decoder_channels", "low_level_channels", "aspp_rates", "head_convs"
    settings: dict[str, Any] = {key: getattr(best, key) for key in names}
    if best.representation_dim is not None:
        settings["representation_dim"] = best.representation_dim
    model = ModelConfig(**settings, pretrained=False)
    networks = [
        make_segmenter(model, best.num_classes, representation=best.representation_dim is not None) for _ in range(best.members)
    ]
    return networks[0] if best.members == 1 else Ensemble(networks)


def _differences(expected: dict[str, Tensor], weights: dict[str, Tensor]) -> str:
    """How the tensors of a file differ from those of a network, by names and shapes; empty if they do not."""
    kinds = {
        "missing": [name for name in expected if name not in weights],
        "unknown": [name for name in weights if name not in expected],
        "of another shape": [
            f"{name} is {list(weights[name].shape)}, not {list(tensor.shape)}"
            for name, tensor in expected.items()
            if name in weights and weights[name].shape != tensor.shape
        ],
    }
    return ", ".join(f"{len(names)} {kind}, such as {names[0]}" for kind, names in kinds.items() if names)


def _remedy(best: BestDescription) -> str:
    """What helps if the network is no longer, or never was, what the description alone builds."""
    versions = ", ".join(f"{name} {number}" for name, number in best.versions.items())
    return f"install what wrote it ({versions}); if the method {best.method} builds a network of its own, rebuild it as it does"


def _checksum(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
