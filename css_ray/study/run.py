"""One run: a trial's settings on one split, trained in this process (one rank of it)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from css_ray import distributed
from css_ray.data.loaders import make_train_loader, make_unlabelled_val_loader, make_val_loader, make_whole_loader
from css_ray.matrices import At, ImageMatrices
from css_ray.methods import METHODS, Method
from css_ray.methods.stages import BatchKind, Border
from css_ray.models import Predictor
from css_ray.models.segmenter import ModelConfig, make_segmenter, synchronise
from css_ray.study.inputs import Prepared
from css_ray.study.job import RunSpec
from css_ray.study.label_store import LabelStore, WithRoom
from css_ray.study.paths import absolute_paths
from css_ray.training.best import BestDescription, best_tensors, describe_best
from css_ray.training.loop import Fit, fit
from css_ray.training.memory import keep_freed_memory
from css_ray.training.reporter import Reporter
from css_ray.training.settings import TrainConfig
from css_ray.views import Views

if TYPE_CHECKING:
    from css_ray.study.definition import StudyDefinition, TrialSpec


def run_spec(study: StudyDefinition, trial: TrialSpec, split: int) -> RunSpec:
    """The run of `trial` on `split`. Its seed depends on the split alone, so that all trials have the same one on it."""
    settings = absolute_paths(trial.settings)
    return RunSpec(trial.index, split, study.seed + split, settings)


def build_method(settings: Mapping[str, Any], num_classes: int, *, synchronise_batch_norm: bool = False) -> Method:
    """The method of a trial's settings, freshly initialised from torch's generator.

    synchronise_batch_norm: batch statistics are over all ranks, each on its GPU, in all that the method is made of.
    """
    method = METHODS[settings["method"]["name"]]
    model = model_config(settings)
    views = Views(**{key: _tuple(value) for key, value in settings["views"].items()})

    def segmenter() -> Any:
        return make_segmenter(model, num_classes, representation=method.needs_representations)

    built = method(segmenter, method_config(settings), views)
    if synchronise_batch_norm:
        synchronise(built)
    return built


def model_config(settings: Mapping[str, Any]) -> ModelConfig:
    """The network of a trial's settings."""
    return ModelConfig(**{key: _tuple(value) for key, value in settings["model"].items()})


def method_config(settings: Mapping[str, Any]) -> Any:
    """The Config of a trial's method; its preset has been applied, and is kept beside it for the record."""
    values = {key: _tuple(value) for key, value in settings["method"].items() if key not in ("name", "preset")}
    return METHODS[settings["method"]["name"]].Config(**values)


def execute(
    prepared: Prepared,
    reporter: Reporter,
    *,
    device: torch.device | str = "cpu",
    checkpoint: Path | None = None,
    begun: Callable[[], None] = lambda: None,
    keep_best: Callable[[dict[str, Tensor], BestDescription], None] = lambda weights, best: None,
    keep_matrices: Callable[[At, ImageMatrices], None] = lambda at, matrices: None,
    labels: str | None = None,
    with_room: WithRoom = lambda write, place: write(),
    beat: Callable[[], None] = lambda: None,
) -> Fit:
    """Train the run, from `checkpoint` if given, as this rank of the process group (or alone). Raises as `loop.fit` does.

    begun: called once the checkpoint is loaded, if there is one. keep_best: called on every rank with the predictor's weights
    and their description, as `write_best` takes them, after each evaluation that is better than all before. keep_matrices:
    called on every rank with the confusion matrix of each validation image, of such an evaluation and of the last one. labels:
    a folder that all ranks see, or a URL, for pseudo-labels that the method makes at the borders of its stages; without one
    they last as long as this call, and one rank alone can train. with_room: calls what writes there. beat: called before each
    batch, of training and of an evaluation alike: a sign of life.
    """
    spec, dataset = prepared.spec, prepared.dataset
    data, rank, world_size = spec.settings["data"], distributed.rank(), distributed.world_size()
    train = TrainConfig(**spec.settings["train"])
    if torch.device(device).type == "cpu":
        keep_freed_memory()
    torch.manual_seed(spec.seed)
    on_gpus = world_size > 1 and torch.device(device).type == "cuda"
    method = build_method(spec.settings, dataset.info.num_classes, synchronise_batch_norm=on_gpus)
    views = Views(**{key: _tuple(value) for key, value in spec.settings["views"].items()})

    loaders = ExitStack()  # ends their worker processes, however the run ends
    loading: dict[str, Any] = {"rank": rank, "world_size": world_size, "num_workers": data["loader_workers"], "device": device}

    stage = loaders.enter_context(ExitStack())  # those of the stage before end when the next one's begin

    def batches(start_step: int, end_step: int, kind: BatchKind) -> Any:
        stage.close()
        labelled, unlabelled = (data[name] // world_size for name in ("labelled_batch", "unlabelled_batch"))
        loader = make_train_loader(
            dataset,
            prepared.split,
            crop=data["crop"],
            labelled_batch=labelled + unlabelled if kind == "union" else labelled,
            unlabelled_batch=unlabelled if method.needs_unlabelled and kind == "pair" else 0,
            pseudo_labels=store.file if kind == "union" else None,
            views=views,
            seed=spec.seed,
            start_step=start_step,
            num_steps=end_step,
            **loading,
        )
        return _Beating(stage.enter_context(loader), beat)

    def whole(ids: Sequence[str], *, masks: bool) -> Iterator[tuple[Tensor, Tensor]]:
        with make_whole_loader(dataset, ids, masks=masks, batch_size=data["val_batch"], **loading) as loader:
            yield from _Beating(loader, beat)

    def unlabelled_images(ids: Sequence[str]) -> Iterator[Tensor]:
        return (images for images, _ in whole(ids, masks=False))

    scratch = loaders.enter_context(tempfile.TemporaryDirectory())
    store = LabelStore(
        labels or scratch,
        prepared.split.unlabelled,
        unlabelled_images,
        scratch=Path(scratch),
        with_room=with_room,
        device=device,
    )
    border = Border(
        labelled=partial(whole, prepared.split.labelled, masks=True),
        unlabelled=partial(unlabelled_images, prepared.split.unlabelled),
        pseudo_labels=store,
    )

    with loaders:
        val = loaders.enter_context(make_val_loader(dataset.val, batch_size=data["val_batch"], **loading))
        unlabelled = None
        if method.needs_unlabelled:
            unlabelled = make_unlabelled_val_loader(
                dataset, prepared.split, count=train.diagnose_images, batch_size=data["val_batch"], **loading
            )
            if unlabelled is not None:
                loaders.enter_context(unlabelled)
        return fit(
            method,
            train,
            make_batches=batches,
            val_batches=_Beating(val, beat),
            class_names=tuple(dataset.info.class_names),
            seed=spec.seed,
            reporter=reporter,
            border=border,
            unlabelled_batches=None if unlabelled is None else _Beating(unlabelled, beat),
            crop=data["crop"],
            device=device,
            checkpoint=checkpoint,
            begun=begun,
            keep_best=lambda predictor, step, metrics: keep_best(
                best_tensors(predictor, method.space_state()), _describe(prepared, train, predictor, step, metrics)
            ),
            keep_matrices=lambda at, cells: keep_matrices(at, _with_ids(prepared, cells)),
        )


def _describe(
    prepared: Prepared, train: TrainConfig, predictor: Predictor, step: int, metrics: dict[str, float]
) -> BestDescription:
    spec, info, split = prepared.spec, prepared.dataset.info, prepared.split
    return describe_best(
        predictor,
        model_config(spec.settings),
        train,
        step=step,
        metrics=metrics,
        method=spec.settings["method"]["name"],
        crop=spec.settings["data"]["crop"],
        class_names=info.class_names,
        palette=info.palette,
        seed=spec.seed,
        split=spec.split,
        split_hash=split.hash,
        dataset=info.name,
        content=info.content,
        batch=spec.settings["data"]["val_batch"],
        image_size=_one_size(prepared.dataset.val.sizes),
    )


def _one_size(sizes: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    """The (width, height) of all of these (height, width); None if they differ."""
    height, width = sizes[0]
    return (width, height) if set(sizes) == {(height, width)} else None


def _with_ids(prepared: Prepared, cells: Tensor) -> ImageMatrices:
    images, labels, predictions, pixels = cells.numpy()
    names = tuple(prepared.dataset.info.class_names)
    return ImageMatrices(prepared.dataset.val.ids, names, images, labels * len(names) + predictions, pixels)


class _Beating:
    """Batches, with a call of `beat` before each."""

    def __init__(self, batches: Iterable[Any], beat: Callable[[], None]) -> None:
        self._batches, self._beat = batches, beat

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            self._beat()
            yield batch


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
