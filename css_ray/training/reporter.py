"""The interface to which a training run reports what happens, so that the loop knows neither Ray nor MLflow nor files."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from css_ray.room import write_with_room

Metrics = Mapping[str, float]


class Reporter(Protocol):
    """What the loop calls. Every rank calls every method at the same steps, so that an implementation may synchronise."""

    def logged(self, step: int, metrics: Metrics) -> None:
        """Training curves at `step` (optimizer steps done): `train/loss`, one `train/<term>` each, `train/lr`.

        A metric that has no finite value at a step is left out there.
        """

    def evaluated(self, step: int, metrics: Metrics, write_checkpoint: Callable[[Path], None]) -> None:
        """Scores at `step`, in percent: those of `evaluate.evaluation_metrics`, and of `evaluate.pseudo_label_quality`.

        `write_checkpoint(folder)` writes this rank's files of a checkpoint from which the run resumes exactly after this
        evaluation. Call it before returning, or not at all.
        """

    def stage_started(self, step: int, number: int, name: str, write_checkpoint: Callable[[Path], None] | None) -> None:
        """A stage of a method that has several was entered after `step` steps; numbers are counted from 0.

        `write_checkpoint`: as of `evaluated`, of a run that has entered it; None before the first evaluation.
        """

    def stage_finished(self, step: int, number: int, name: str) -> None:
        """The stage is over after `step` steps, and its last evaluation was reported."""


class SilentReporter:
    """Keeps what is reported in memory and writes no checkpoint: for notebooks and tests."""

    def __init__(self) -> None:
        self.logs: list[tuple[int, dict[str, float]]] = []
        self.evaluations: list[tuple[int, dict[str, float]]] = []
        self.stages: list[tuple[int, str]] = []

    def logged(self, step: int, metrics: Metrics) -> None:
        self.logs.append((step, dict(metrics)))

    def evaluated(self, step: int, metrics: Metrics, write_checkpoint: Callable[[Path], None]) -> None:
        self.evaluations.append((step, dict(metrics)))

    def stage_started(self, step: int, number: int, name: str, write_checkpoint: Callable[[Path], None] | None) -> None:
        self.stages.append((step, name))

    def stage_finished(self, step: int, number: int, name: str) -> None:
        pass


class PrintingReporter(SilentReporter):
    """Prints a line for each point of the curves and each evaluation through `echo`; writes no checkpoint."""

    def __init__(self, echo: Callable[[str], None]) -> None:
        super().__init__()
        self.echo = echo

    def logged(self, step: int, metrics: Metrics) -> None:
        super().logged(step, metrics)
        self.echo(f"step {step:6d}  " + "  ".join(f"{key.split('/', 1)[1]} {value:.4g}" for key, value in metrics.items()))

    def evaluated(self, step: int, metrics: Metrics, write_checkpoint: Callable[[Path], None]) -> None:
        super().evaluated(step, metrics, write_checkpoint)
        self.echo(f"step {step:6d}  val mIoU {metrics['val/miou']:.2f} %")

    def stage_started(self, step: int, number: int, name: str, write_checkpoint: Callable[[Path], None] | None) -> None:
        super().stage_started(step, number, name, write_checkpoint)
        self.echo(f"step {step:6d}  stage {number}: {name}")


class FolderReporter(PrintingReporter):
    """Keeps the last checkpoint in a folder, replaced atomically; waits while there is no room for one."""

    def __init__(self, folder: Path, echo: Callable[[str], None] = lambda line: None) -> None:
        super().__init__(echo)
        self.folder = folder
        self._waits = ""

    @property
    def checkpoint(self) -> Path | None:
        """The checkpoint to continue from, or None."""
        path = self.folder / "checkpoint"
        return path if path.exists() else None

    def evaluated(self, step: int, metrics: Metrics, write_checkpoint: Callable[[Path], None]) -> None:
        super().evaluated(step, metrics, write_checkpoint)
        self.keep(lambda: self._replace(write_checkpoint), "the checkpoint")

    def stage_started(self, step: int, number: int, name: str, write_checkpoint: Callable[[Path], None] | None) -> None:
        super().stage_started(step, number, name, write_checkpoint)
        if write_checkpoint is not None:
            self.keep(lambda: self._replace(write_checkpoint), "the checkpoint")

    def keep(self, write: Callable[[], None], what: str) -> None:
        """Call `write`, again if there is no room for what it writes into the folder."""
        write_with_room(write, self.folder, what, waiting=self._wait)
        self._waits = ""

    def _wait(self, reason: str) -> None:
        if not self._waits:
            self.echo(f"{reason}; waiting for room, Ctrl-C ends this")
        self._waits = reason

    def _replace(self, write_checkpoint: Callable[[Path], None]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix="step-", dir=self.folder))
        # A folder cannot be replaced in one call; a link to it can, so a reader sees the old checkpoint or the new one.
        link, pending = self.folder / "checkpoint", self.folder / f"{new.name}.link"
        try:
            write_checkpoint(new)
            pending.symlink_to(new.name)
            pending.replace(link)
        except BaseException:
            pending.unlink(missing_ok=True)
            if not (link.exists() and link.samefile(new)):
                shutil.rmtree(new, ignore_errors=True)
            raise
        for old in self.folder.glob("step-*"):
            if old.is_symlink():  # left by a kill just above
                old.unlink()
            elif old.name != new.name:
                shutil.rmtree(old)
