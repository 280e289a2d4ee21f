"""The best weights of a run: rebuilt from their folder alone, to the numbers that were recorded; and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import css_ray
from css_ray.data.loaders import make_val_loader
from css_ray.data.shards import DataSet
from css_ray.methods import Method
from css_ray.models import Ensemble, ModelConfig, Predictor, Segmenter, make_segmenter
from css_ray.study import run as module
from css_ray.training.best import BestDescription, BestError, describe_best, load_best, write_best
from css_ray.training.checkpoint import write_tensors
from css_ray.training.evaluate import evaluate, evaluation_metrics
from css_ray.training.reporter import SilentReporter
from css_ray.training.settings import TrainConfig
from tests.training.awkward import CLASSES, PALETTE, make_awkward, prepared

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return make_awkward(tmp_path_factory.mktemp("prepared") / "awkward")


def images() -> Tensor:
    return torch.rand(2, 3, 37, 29, generator=torch.Generator().manual_seed(5))


@dataclass
class Kept:
    """The folder of a run's best weights, and what its networks gave for `images` when they were written."""

    folder: Path
    predictor: Tensor
    student: Tensor
    evaluations: list[tuple[int, dict[str, float]]]


def train(dataset: DataSet, folder: Path, method: str, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Kept:
    methods: list[Method] = []
    build = module.build_method

    def watched(*arguments: Any, **options: Any) -> Method:
        methods.append(build(*arguments, **options))
        return methods[-1]

    monkeypatch.setattr(module, "build_method", watched)
    written: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def predictions(predictor: Predictor) -> Tensor:
        return copy.deepcopy(predictor).eval().predict(images())

    def keep(weights: dict[str, Tensor], best: BestDescription) -> None:
        write_best(folder, weights, best)
        written.append((predictions(methods[0].predictor()), predictions(methods[0].student)))

    reporter = SilentReporter()
    module.execute(prepared(dataset, method, (2, 3), **settings), reporter, keep_best=keep)
    return Kept(folder, *written[-1], reporter.evaluations)


@pytest.mark.parametrize(
    "settings", [{}, {"evaluation": "sliding_window", "window_average": "logits"}], ids=["whole", "windows"]
)
@pytest.mark.parametrize("method", ["supervised", "mean_teacher", "css"])
def test_the_network_is_rebuilt_to_its_predictions_and_scores(
    method: str, settings: dict[str, Any], dataset: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = train(dataset, tmp_path / "kept", method, monkeypatch, **settings)
    moved = tmp_path / "elsewhere"
    shutil.move(kept.folder, moved)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    segmenter, best = load_best(moved)
    assert torch.equal(torch.get_rng_state(), before)
    assert not any(part.training for part in segmenter.modules())
    with torch.no_grad():
        assert torch.equal(segmenter.predict(images()), kept.predictor)
    assert torch.equal(kept.predictor, kept.student) == (method == "supervised")  # the others are judged by their teacher

    # The score that was recorded, computed again from the folder and the data set alone.
    step, metrics = max(kept.evaluations, key=lambda evaluation: evaluation[1]["val/miou"])
    assert best.step == step
    assert best.metrics == {name: value for name, value in metrics.items() if name.startswith("val/")}
    with make_val_loader(dataset.val, rank=0, world_size=1, batch_size=4) as loader:
        again = evaluate(segmenter, loader, window=best.window, average=best.window_average)
    assert evaluation_metrics(again, best.class_names) == best.metrics
    assert best.window == (32 if settings else None)


def test_the_description_says_it_all(dataset: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = train(dataset, tmp_path / "kept", "css", monkeypatch)
    assert sorted(path.name for path in kept.folder.iterdir()) == ["best.json", "best.pt"]
    text = (kept.folder / "best.json").read_text()
    described = json.loads(text)
    metrics, checksum = described.pop("metrics"), described.pop("checksum")
    assert {"val/miou", "val/pixel_accuracy", "val/iou/dark"} <= metrics.keys() and len(checksum) == 64
    assert described.pop("step") in (2, 3)
    assert described == {
        "format": 1,
        "weights_sha256": hashlib.sha256((kept.folder / "best.pt").read_bytes()).hexdigest(),
        "versions": {"css_ray": css_ray.__version__, "torch": torch.__version__, "timm": version("timm")},
        "method": "css",
        "encoder": "tiny",
        "output_stride": 4,
        "decoder_channels": 8,
        "low_level_channels": 4,
        "aspp_rates": [1, 2, 4],
        "representation_dim": 8,
        "images": "RGB in [0, 1]",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "logits_stride": 4,
        "num_classes": 3,
        "class_names": list(CLASSES),
        "palette": [list(colour) for colour in PALETTE],
        "ignored_label": 255,
        "head_convs": 1,
        "members": 1,
        "decoder": "deeplabv3plus",
        "evaluation": "whole_image",
        "crop": 32,
        "window_average": "probabilities",
        "seed": 1,
        "split": 0,
        "split_hash": "0" * 64,
        "dataset": "awkward",
        "content": dataset.info.content,
        "batch": 4,
        "threads": 1,
        "workers": 1,
        "channels_last": False,
        "deterministic": False,
        "image_size": None,
        "initial_weights": "random numbers",
    }
    segmenter, _ = load_best(kept.folder)
    assert isinstance(segmenter, Segmenter)
    logits = segmenter(torch.rand(1, 3, 32, 48)).logits
    assert logits.shape == (1, described["num_classes"], 32 // described["logits_stride"], 48 // described["logits_stride"])
    assert segmenter.mean.flatten().tolist() == pytest.approx(described["mean"])
    assert segmenter.std.flatten().tolist() == pytest.approx(described["std"])
    assert str(tmp_path) not in text and str(Path.home()) not in text


def describe(segmenter: Predictor, model: ModelConfig, **changes: Any) -> BestDescription:
    best = describe_best(
        segmenter, model, TrainConfig(), step=7, metrics={"val/miou": 50.0, "pseudo/miou/logits": 40.0}, method="supervised",
        crop=32, class_names=("a", "b"), palette=(), seed=0, split=0, split_hash="", dataset="two", content="",
    )  # fmt: skip
    return dataclasses.replace(best, **changes)


def test_a_pretrained_network_is_rebuilt_without_its_weights_file(tmp_path: Path) -> None:
    small: dict[str, Any] = {"encoder": "resnet18", "output_stride": 16, "decoder_channels": 8, "low_level_channels": 4}
    model = ModelConfig(**small, pretrained=str(tmp_path / "private" / "weights.pth"), aspp_rates=(2, 3))
    torch.manual_seed(0)
    source = make_segmenter(dataclasses.replace(model, pretrained=False), 2, representation=False).eval()
    write_best(tmp_path, source.state_dict(), describe(source, model))
    segmenter, best = load_best(str(tmp_path))
    with torch.no_grad():
        assert torch.equal(segmenter.predict(images()), source.predict(images()))
    assert best.aspp_rates == (2, 3) and best.representation_dim is None and best.palette is None
    assert best.metrics == {"val/miou": 50.0}
    assert "private" not in (tmp_path / "best.json").read_text()


TINY = ModelConfig(encoder="tiny", output_stride=4, pretrained=False, decoder_channels=8, low_level_channels=4)


def make_tiny() -> Segmenter:
    return make_segmenter(TINY, 2, representation=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    source = make_tiny()
    write_best(tmp_path / "run", source.state_dict(), describe(source, TINY))
    return tmp_path / "run"


def change(**fields: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "best.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return edit


def cut(name: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        (folder / name).write_bytes((folder / name).read_bytes()[:-200])

    return edit


def flip(folder: Path) -> None:
    content = bytearray((folder / "best.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "best.pt").write_bytes(content)


def write_again(folder: Path, **changes: Any) -> None:
    source = make_tiny()
    write_best(folder, source.state_dict(), describe(source, TINY, **changes))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, r"run is not a folder of this machine; give the one that holds a run's best\.pt and best\.json"),
        (lambda folder: [path.unlink() for path in folder.iterdir()], r"run has no best\.json; give the folder that holds"),
        (lambda folder: (folder / "best.json").unlink(), r"has best\.pt but no best\.json, which earlier versions .*read_tensors"),
        (lambda folder: (folder / "best.pt").unlink(), r"has best\.json but no best\.pt; copy it there, or train the run again"),
        (cut("best.json"), r"best\.json is not JSON, so it was cut short or altered; train the run again"),
        (lambda folder: (folder / "best.json").write_bytes(b"\xff\xfe\x00"), r"best\.json is not JSON"),
        (lambda folder: (folder / "best.json").write_text("[1]"), r"best\.json has no format"),
        (change(format=2), r"best\.json has format 2, this version of css-ray reads 1; use the version of css-ray that wrote it"),
        (change(format="1"), r"best\.json has format '1', this version of css-ray reads 1"),
        (change(class_names=["b", "a"]), r"best\.json was altered: its checksum is wrong; train the run again, or restore"),
        (change(crop=64), r"best\.json was altered"),
        (change(colour="red"), r"best\.json was altered"),
        (cut("best.pt"), r"best\.pt has the SHA-256 [0-9a-f]{12}, best\.json expects [0-9a-f]{12}: it was altered or is just being"),
        (flip, r"best\.pt has the SHA-256"),
        (partial(write_again, encoder="resnet999"), r"the network of .*best\.json cannot be built: unknown encoder 'resnet999'"),
        (
            partial(write_again, decoder_channels=16),
            r"best\.pt does not fit the network of best\.json \(tensors: \d+ of another shape, such as decoder\.\S+ is \[8, .*\], "
            r"not \[16, .*\]\); install what wrote it \(css_ray .*, torch .*, timm .*\); if the method supervised builds a network",
        ),
        (partial(write_again, representation_dim=8), r"\(tensors: \d+ missing, such as representation_head\.0\.weight\)"),
        (partial(write_again, aspp_rates=(1,)), r"\(tensors: \d+ unknown, such as decoder\.aspp\.branches\.2\.0\.weight, \d+ of another"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_in_one_sentence(damage: Any, message: str, folder: Path) -> None:
    load_best(folder)
    damage(folder)
    with pytest.raises(BestError, match=message) as caught:
        load_best(folder)
    assert "\n" not in str(caught.value) and "[Errno" not in str(caught.value)


def test_weights_of_an_earlier_version_are_still_read_as_its_error_says(folder: Path) -> None:
    from css_ray.training.checkpoint import read_tensors

    source = make_tiny()
    (folder / "best.json").unlink()
    write_tensors(folder / "best.pt", source.state_dict())
    with pytest.raises(BestError, match=r"load them into css_ray\.models\.make_segmenter with the model settings of the study"):
        load_best(folder)
    again = make_tiny()
    again.load_state_dict(read_tensors(folder / "best.pt"))
    with torch.no_grad():
        assert torch.equal(again.eval().predict(images()), source.eval().predict(images()))


@pytest.mark.parametrize("file", ["best.pt", "best.json"])
def test_a_kill_while_they_are_replaced_never_pairs_new_with_old(
    file: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before `file` is replaced: the pair is the old one, or is noticed; the next writer puts it right."""
    replace = Path.replace

    def killed(path: Path, target: Path) -> Path:
        if target.name == file:
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_again(folder, step=8)
    monkeypatch.undo()
    if file == "best.pt":
        assert load_best(folder)[1].step == 7
    else:
        with pytest.raises(BestError, match=r"best\.pt has the SHA-256"):
            load_best(folder)
    write_again(folder, step=9)
    assert load_best(folder)[1].step == 9
    assert sorted(path.name for path in folder.iterdir()) == ["best.json", "best.pt"]


def test_weights_are_written_from_the_cpu(folder: Path) -> None:
    """Else a machine without a GPU could not read what one with a GPU wrote."""
    source, moved = make_tiny(), []

    class OnGPU:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

        def cpu(self) -> Tensor:
            moved.append(self.tensor)
            return self.tensor

    far: Any = {name: OnGPU(tensor) for name, tensor in source.state_dict().items()}
    write_best(folder, far, describe(source, TINY))
    assert len(moved) == len(far)
    segmenter, _ = load_best(folder)
    assert all(torch.equal(tensor, source.state_dict()[name]) for name, tensor in segmenter.state_dict().items())


def test_an_ensemble_is_rebuilt_as_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = dataclasses.replace(TINY, head_convs=2)
    source = Ensemble([make_segmenter(model, 2, representation=False) for _ in range(2)]).eval()
    write_best(tmp_path, source.state_dict(), describe(source, model))
    predictor, best = load_best(tmp_path)
    assert isinstance(predictor, Ensemble) and (best.members, best.head_convs) == (2, 2)
    with torch.no_grad():
        assert torch.equal(predictor.predict(images()), source.predict(images()))
        first, second = source.members
        assert isinstance(first, Segmenter) and isinstance(second, Segmenter)
        mean = (first.predict(images()) + second.predict(images())) / 2
        assert torch.allclose(source.predict(images()), mean)
