"""Runs a study, or one run of it, under Ray: joins or starts a cluster, has Tune execute what the driver asks for."""

from __future__ import annotations

import threading

import ray

from css_ray.events import Event
from css_ray.execution.session import connect, interruptible, raise_if_interrupted
from css_ray.execution.slot import Slot, SlotResources
from css_ray.execution.tune import notes_folder, tune
from css_ray.study.code import code_version
from css_ray.study.definition import StudyDefinition
from css_ray.study.driver import Driver, Observer, Outcome, make_job
from css_ray.study.job import RunSpec

_LEAVING_SECONDS, _HASTY_SECONDS = 30.0, 5.0  # for the shutdown of Ray and MLflow, and if the user waits after Ctrl-C


class Runner:
    """Runs or resumes one study to its end. Raises JournalError if its journal is damaged.

    address: of the Ray cluster to join; None starts Ray here.
    """

    def __init__(
        self, study: StudyDefinition, storage: str, *, address: str | None = None, observer: Observer | None = None
    ) -> None:
        self.address = address
        self.driver = Driver(study, storage, observer)

    def run(self, *, resume: bool) -> Outcome:
        """Take the study to its end. Raises StudyExistsError, StudyLockedError, or what Ray raises if no cluster answers.

        An interrupt (SIGINT, SIGTERM) ends it within seconds with status `interrupted`.
        """
        driver, interrupted = self.driver, False
        with driver.driving():
            if not resume:
                driver.check_new()
            with interruptible():
                try:
                    self._drive()
                except KeyboardInterrupt:
                    interrupted = True
                    driver.interrupt()
                finally:
                    # Ray's orderly shutdown can take longer than a user who pressed Ctrl-C wants to wait; the journal and
                    # the checkpoints need none.
                    shutdown = threading.Thread(target=ray.shutdown, daemon=True)
                    shutdown.start()
                    limit = _HASTY_SECONDS if interrupted else _LEAVING_SECONDS
                    driver.close(limit)
                    shutdown.join(limit)
        return driver.outcome(interrupted=interrupted)

    def _drive(self) -> None:
        driver = self.driver
        # Before the first event: a study that no disk and no cluster can hold leaves nothing behind.
        driver.check_disk()
        concurrent = connect(driver.study, self.address) if driver.has_work else 0
        raise_if_interrupted()
        driver.begin_or_resume()
        if driver.has_work:
            tune(driver, concurrent, None if self.address is None else code_version())
        driver.finish()


def train_one(study: StudyDefinition, spec: RunSpec, folder: str, address: str | None) -> Event:
    """Train one run on the study's workers under Ray Train, without Tune; returns its `RunFinished` or `RunFailed`.

    folder: where its checkpoints and best weights go; the same folder continues from the last checkpoint.
    Raises RuntimeError with the reason if the workers failed more often than `resources.retries`.
    """
    connect(study, address)
    last: Event | None = None
    slot = Slot(SlotResources.of(study.resources), notes_folder(folder), None if address is None else code_version())
    try:
        for message in slot.train(make_job(study, spec.trial, [spec], folder, None)):
            if message.error:
                raise RuntimeError(message.error)
            last = message.events[-1] if message.events else last
    finally:
        slot.end()
    assert last is not None
    return last
