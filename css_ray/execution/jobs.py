"""Studies on a remote cluster: by Ray Jobs their driver runs on the cluster, and outlives the laptop that submitted it.

A job carries the code of css-ray and the study file, no data and no secrets. Its driver is started again when it dies.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from css_ray.execution.address import dashboard_problem
from css_ray.messages import DEFAULT_STORAGE, command, quoted, study_command
from css_ray.secrets import BY_CLUSTER, credentials_text, shown
from css_ray.storage import is_url
from css_ray.study.code import code_version, copy_code
from css_ray.study.definition import Problem, StudyDefinition, StudyError, to_yaml
from css_ray.study.journal import Journal

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

NAME, STORAGE, CODE = "css_ray.study", "css_ray.storage", "css_ray.code"
"""The keys under which a job's metadata describes its study."""

STUDY_FILE = "study.yaml"

STOP_SECONDS = 30
"""How long a driver that is to stop may take to write down what it has; it needs a few."""

AGENT_SECONDS = 60.0
"""How long a job waits for a head that started a moment ago."""

FRUITLESS = 3
"""The number of drivers in a row that may die without an event in the journal, before no other one is started."""

ACTIVE = ("PENDING", "RUNNING")


class ClusterError(RuntimeError):
    """A cluster that does not answer, does not let us in, or has no such study."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """A study that was submitted. status: of its job, PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED; reason: of a failure."""

    name: str
    storage: str
    job: str
    status: str
    started: float
    reason: str

    @property
    def active(self) -> bool:
        """Whether its driver is at work, or about to be."""
        return self.status in ACTIVE


class Cluster:
    """The jobs of the Ray cluster whose dashboard is at `address`. Raises ClusterError if it does not answer."""

    def __init__(self, address: str) -> None:
        if problem := dashboard_problem(address):
            raise ClusterError(problem)
        self.address = address
        with self._answering():
            self._client = _client(address)

    def submit(self, study: StudyDefinition | str, storage: str, overrides: Sequence[str] = ()) -> Submitted:
        """Have the cluster run a study; or continue the one of that name, with `overrides` of it.

        storage: a URL, or an absolute path that all nodes see. Raises StudyError if a path in the study means nothing on
        another machine or an override holds a secret, ClusterError if the study is at work already, or the cluster refuses.
        """
        name = study if isinstance(study, str) else study.name
        problems: list[Problem] = [] if isinstance(study, str) else _homely(study)
        if not is_url(storage) and not Path(storage).is_absolute():
            sentence = f"{storage} is a path of this machine; give an absolute one that all nodes see, or a URL (s3://...)"
            problems.append(Problem("--storage", sentence))
        for key, _, value in (override.partition("=") for override in overrides):
            if refused := credentials_text(value, BY_CLUSTER):
                problems.append(Problem(f"--set {key}", refused))
        if problems:
            raise StudyError(problems, f"{name}, as a study for a cluster")
        for there in self.studies():
            if there.name == name and there.storage == storage and there.active:
                stop = study_command("stop", name, DEFAULT_STORAGE, "--address", self.address)
                raise ClusterError(f"{name} is at work already, as the job {there.job}; stop it with: {stop}")
        what = ["--name", name] if isinstance(study, str) else ["--file", STUDY_FILE]
        sets = [part for override in overrides for part in ("--set", override)]
        words = ["study", "drive", *what, "--storage", storage, "--code", code_version(), *sets]
        job = self._start(f"css-ray-{name}-{uuid.uuid4().hex[:6]}", words, study, {NAME: name, STORAGE: storage})
        return self.find(name, job)

    def studies(self) -> list[Submitted]:
        """Those that were submitted to this cluster since its head started, the latest first."""
        with self._answering():
            jobs: list[JobDetails] = self._client.list_jobs()
        found = [_submitted(job) for job in jobs if (job.metadata or {}).get(NAME)]
        return sorted(found, key=lambda each: each.started, reverse=True)

    def find(self, name: str, job: str | None = None) -> Submitted:
        """The latest submission of the study `name`, or the one that is `job`. Raises ClusterError if there is none."""
        for submitted in self.studies():
            if submitted.name == name and job in (None, submitted.job):
                return submitted
        known = command("study", "list", "--address", self.address)
        raise ClusterError(
            f"{name} was not submitted to the cluster at {shown(self.address)} since its head started; "
            f"list those that were with: {known}"
        )

    def stop(self, name: str) -> Submitted:
        """Stop the driver of a study, and wait until it has ended. What was trained stays, and a resume continues with it."""
        submitted = self.find(name)
        if not submitted.active:
            return submitted
        with self._answering():
            self._client.stop_job(submitted.job)
        self._wait(submitted.job, STOP_SECONDS + 30)
        return self.find(name, submitted.job)

    def logs(self, submitted: Submitted, *, follow: bool = False) -> Iterator[str]:
        """What the driver has printed, in pieces; with `follow` until it has ended."""
        with self._answering():
            if not follow:
                yield self._client.get_job_logs(submitted.job)
                return
            tail = self._client.tail_job_logs(submitted.job)
            with asyncio.Runner() as runner:
                while True:
                    try:
                        yield runner.run(_next(tail))
                    except StopAsyncIteration:
                        return

    def call(self, *arguments: str, timeout: float = 300.0) -> tuple[bool, str]:
        """Run a command of css-ray on the cluster, where its storage is seen; returns whether it succeeded, and its output."""
        job = self._start(f"css-ray-call-{uuid.uuid4().hex[:6]}", list(arguments), None, {})
        status = self._wait(job, timeout)
        with self._answering():
            printed = self._client.get_job_logs(job)
            if status not in ACTIVE:
                self._client.delete_job(job)
        # Ray's own lines about the job come before what the command prints.
        return status == "SUCCEEDED", printed.partition(f"{shlex.join(arguments)}\n")[2] or printed

    def _start(self, job: str, command: Sequence[str], study: StudyDefinition | str | None, metadata: dict[str, str]) -> str:
        from css_ray.execution.ray_internals import NO_AGENT

        with tempfile.TemporaryDirectory() as scratch, self._answering():
            copy_code(Path(scratch))
            if isinstance(study, StudyDefinition):
                (Path(scratch) / STUDY_FILE).write_text(to_yaml(study))
            limit = time.monotonic() + AGENT_SECONDS
            while True:
                try:
                    self._client.submit_job(
                        entrypoint=shlex.join(["python", "-m", "css_ray_cli", *command]),
                        submission_id=job,
                        runtime_env={
                            "working_dir": scratch,
                            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), "PYTHONDONTWRITEBYTECODE": "1"},
                        },
                        metadata={**metadata, CODE: code_version()},
                    )
                    return job
                except RuntimeError as error:
                    if NO_AGENT not in str(error) or time.monotonic() > limit:
                        raise
                    time.sleep(1.0)

    def _wait(self, job: str, timeout: float) -> str:
        limit = time.monotonic() + timeout
        while True:
            with self._answering():
                status = str(self._client.get_job_status(job).value)
            if status not in ACTIVE or time.monotonic() > limit:
                return status
            time.sleep(0.5)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        from ray.exceptions import AuthenticationError

        where = shown(self.address)
        try:
            yield
        except AuthenticationError as error:
            raise ClusterError(
                f"the cluster at {where} did not accept the token ({str(error).splitlines()[0]}); copy the head's "
                "~/.ray/auth_token to this machine, or set RAY_AUTH_TOKEN"
            ) from None
        except (ConnectionError, OSError) as error:
            raise ClusterError(
                f"no dashboard answers at {where} ({type(error).__name__}); is the tunnel open "
                "(ray dashboard cluster.yaml, or ssh -L 8265:localhost:8265 HEAD)?"
            ) from None
        except RuntimeError as error:
            raise ClusterError(f"the cluster at {where} refused: {error}") from None


def keep_driving(run: Sequence[str], resume: Sequence[str], folder: str) -> int:
    """Run the driver of the study in `folder` as a process, and another one if it dies; returns the exit code of the last.

    run, resume: the commands that begin and continue it. SIGTERM and SIGINT end it: the driver gets the signal as well, and
    writes down what it has.
    """
    stopped: list[float] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: stopped.append(time.monotonic()))
    known, fruitless = -1, 0
    while True:
        driver = subprocess.Popen(resume if Journal(folder).events else run)
        while (code := driver.poll()) is None:
            # Ray signals all processes of a job. Another signal right away would cut the driver's shutdown short.
            if stopped and time.monotonic() - stopped[0] > STOP_SECONDS / 2:
                driver.terminate()
            time.sleep(0.1)
        if stopped:
            return code if code >= 0 else 130
        events = Journal(folder).events
        last = next((event.kind for event in reversed(events) if event.kind.startswith("study_")), "")
        ended = code in (0, 2, 130) or (code > 0 and last == "study_finished")
        fruitless = fruitless + 1 if len(events) == known else 1
        known = len(events)
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        if ended or fruitless > FRUITLESS:
            if not ended:
                print(f"the driver {how}, {FRUITLESS} times without getting anywhere; giving up", flush=True)
            return abs(code)
        print(f"the driver {how}; another one continues", flush=True)
        time.sleep(fruitless)


def _client(address: str) -> JobSubmissionClient:
    from ray.job_submission import JobSubmissionClient

    from css_ray.execution.ray_internals import QUIET_LOGGERS

    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    return JobSubmissionClient(address)


def _homely(study: StudyDefinition) -> list[Problem]:
    """The paths in a study that mean something in this folder of this machine alone."""
    trials = study.grid_trials()
    if study.search is not None and not trials:
        from css_ray.study.definition import ends

        trials = [study.search_trial(0, study.search.first[0] if study.search.first else ends(study.space)[0])]
    places = (("data", "root"), ("data", "labelled_list"), ("data", "unlabelled_list"), ("model", "pretrained"))
    found = {
        (f"{section}.{key}", value)
        for trial in trials
        for section, key in places
        if isinstance(value := trial.settings[section][key], str) and not is_url(value) and not Path(value).is_absolute()
    }
    return [
        Problem(
            path,
            f"{value} is a path of this machine; give an absolute one that all nodes see, or a URL "
            f"(--set {quoted(f'{path}=/mnt/shared/{Path(value).name}')})",
        )
        for path, value in sorted(found)
    ]


def _submitted(job: JobDetails) -> Submitted:
    metadata: dict[str, Any] = job.metadata or {}
    status = str(job.status.value)
    return Submitted(
        name=metadata[NAME],
        storage=metadata.get(STORAGE, ""),
        job=job.submission_id or "",
        status=status,
        started=(job.start_time or 0) / 1000,
        reason=(job.message or "") if status == "FAILED" else "",
    )


async def _next(pieces: Any) -> str:
    piece: str = await anext(pieces)
    return piece


def drive_commands(storage: str, file: str | None, name: str, overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """The commands that begin and that continue a study on the node that this runs on; for `keep_driving`."""
    common = ["--storage", storage, "--address", os.environ.get("RAY_ADDRESS", "auto")]
    sets = [part for override in overrides for part in ("--set", override)]
    css_ray = [sys.executable, "-m", "css_ray_cli", "study"]
    resume = [*css_ray, "resume", name, *common, *(sets if file is None else [])]
    return ([*css_ray, "run", file, *common, *sets] if file else resume), resume
