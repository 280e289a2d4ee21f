"""A Tune trial: one Ray Train run that takes the trial through all its splits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import ray.experimental.internal_kv as kv
import ray.tune
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback


@dataclass(frozen=True, slots=True)
class Verdicts:
    """What the driver thinks of the trials of one start of a study, for their workers to ask. It lies in Ray's own store."""

    start: str

    def say(self, trial: int, *, pruned: bool, after: int | None) -> None:
        """The trial was judged: after it finished the split `after`, or inside a split (None)."""
        kv._internal_kv_put(self._key(trial), json.dumps([pruned, after]).encode())

    def of(self, trial: int) -> tuple[bool, int | None]:
        """Whether the trial is pruned, and after which split it was judged, if that was the latest judgement."""
        said = kv._internal_kv_get(self._key(trial))
        pruned, after = json.loads(said) if said else (False, None)
        return pruned, after

    def _key(self, trial: int) -> str:
        return f"css-ray/verdicts/{self.start}/{trial}"


def _train(config: dict[str, Any]) -> None:
    """Runs on each rank. Imported there alone: the trial's and Ray Train's own processes start seconds sooner without it."""
    from css_ray.study.worker import train_splits

    train_splits(config)


class _Bridge(TuneReportCallback):  # type: ignore[misc]
    """Passes the reports of rank 0 that tell something on to Tune, without the checkpoint: that stays Ray Train's."""

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        events = [event for report in metrics for event in report["events"]]
        if events:
            super().after_report(run_context, [{"events": events}], None)


def make_trainer(config: dict[str, Any], callbacks: list[Any]) -> TorchTrainer:
    """The Ray Train run of a trial. config: name, storage, resources, and what `worker.train_splits` takes.

    The same name and storage go on from the last checkpoint, in this process or in one of a later day.
    """
    resources = config["resources"]
    gpus = resources["gpus_per_worker"]
    per_worker = {"CPU": resources["cpus_per_worker"]} | ({"GPU": gpus} if gpus else {})
    return TorchTrainer(
        _train,
        train_loop_config={key: config[key] for key in ("trial", "runs", "cpus_per_worker", "models", "verdicts")},
        scaling_config=ScalingConfig(num_workers=resources["workers"], use_gpu=gpus > 0, resources_per_worker=per_worker),
        torch_config=TorchConfig(backend="nccl" if gpus >= 1 else "gloo"),
        run_config=RunConfig(
            name=config["name"],
            storage_path=config["storage"],
            failure_config=FailureConfig(max_failures=resources["retries"]),
            # Two, so that a death while one is being replaced leaves the other.
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            callbacks=callbacks,
        ),
    )


def run_trial(config: dict[str, Any]) -> None:
    """The Tune trainable, with the config of `make_trainer`.

    Where Ray Train has spent its retries on the workers, the error is reported, not raised: Tune's retries are for the death
    of this process.
    """
    try:
        make_trainer(config, [_Bridge()]).fit()  # type: ignore[no-untyped-call]
    except TrainingFailedError as error:
        ray.tune.report({"error": last_line(error)})


def last_line(error: object) -> str:
    """The last line of an error's text, which names the exception."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:1000] if lines else "the process ended without a word"
