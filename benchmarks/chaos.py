"""Kills whatever a study runs on, at random moments, and checks that nothing shows: `python -m benchmarks.chaos --help`.

One study is run twice: undisturbed, on a Ray of its own; and on a Ray cluster of two nodes on this machine with an MLflow
server, while SIGKILL hits the driver, a worker, the process of a trial, the MLflow server and the raylet of the second node.
Server and node come back after some seconds; a dead driver is followed by `css-ray study resume`. At the end both studies must
have the same numbers, digit for digit, each once, in the journal and in MLflow, and nothing may be left: no run that is
RUNNING, no core held, no process, no port.

The checks read the journal as JSON and MLflow by its client; of css-ray they use the commands alone. Needs Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.workloads.nodes import HEAD
from benchmarks.workloads.processes import MARK, Part, free_port, listening, processes, sockets_of
from css_ray.execution.ray_internals import CLUSTER_TITLES, TITLES

NAME = "chaos"
SPLITS = [0, 1]
GRID = [{"name": "supervised", "row": "Sup."}, {"name": "mean_teacher", "row": "MT"}]
ITERATIONS, EVALUATE_EVERY = 200, 20

VICTIMS = ("driver", "worker", "trial", "server", "node")
"""What is killed; `node` is the raylet of the second node."""

SECOND = "127.0.0.3"
"""The second node's address, of the loopback device."""

STALL_SECONDS = 300.0
"""A study that reports nothing for this long hangs."""

LATEST_KILL = 0.9
"""Share of the evaluations after which a kill does not wait any longer, so that it falls inside the study."""


def specification(data: Path, trials: int, retries: int) -> dict[str, Any]:
    """The study: the grid's two trials and a search for the others, with a tiny network on the digits."""
    return {
        "study": NAME,
        "data": {
            "dataset": "digits", "root": str(data), "labelled": 12, "crop": 32, "labelled_batch": 4, "unlabelled_batch": 4,
            "val_batch": 50,
        },
        "views": {"flip": False},
        "model": {
            "encoder": "tiny", "output_stride": 4, "pretrained": False, "decoder_channels": 16, "low_level_channels": 8,
            "representation_dim": 16,
        },
        "train": {"iterations": ITERATIONS, "lr": 0.05, "evaluate_every": EVALUATE_EVERY, "log_every": EVALUATE_EVERY // 2},
        "splits": SPLITS,
        "grid": {"method": GRID},
        "search": {
            "method": {"name": "css", "row": "CSS (mix)", "num_queries": 16, "num_negatives": 32},
            "trials": trials - len(GRID),
            "startup_trials": 2,
            "space": {"method.temperature": {"loguniform": [0.1, 1.0]}, "method.unsup_threshold": {"uniform": [0.3, 0.9]}},
        },
        "resources": {"concurrent_trials": 2, "retries": retries},
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------- study


class Place:
    """A storage folder with the study, and the environment in which its commands run."""

    def __init__(self, folder: Path, environment: dict[str, str], study: dict[str, Any]) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.environment = environment | {"CSS_RAY_STORAGE": str(folder / "runs")}
        self.file = folder / "study.yaml"
        self.file.write_text(yaml.safe_dump(study))

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-c", "from css_ray_cli.main import main; main()", *arguments]

    def call(self, *arguments: str, timeout: float = 300) -> str:
        """What the command prints. Raises ChaosError if it fails."""
        ended = subprocess.run(
            self.command(*arguments), env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=timeout
        )
        if ended.returncode:
            raise ChaosError(f"css-ray {' '.join(arguments)} ended with code {ended.returncode}: {ended.stdout}{ended.stderr}")
        return ended.stdout

    def events(self) -> list[dict[str, Any]]:
        """The whole lines of the journal."""
        path = self.folder / "runs" / NAME / "journal.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def evaluations(self) -> int:
        return sum(event["event"] == "run_evaluated" for event in self.events())

    def tables(self, source: str) -> list[list[dict[str, str]]]:
        """The study's table and that of its trials in full precision, without the ids of MLflow's runs."""
        tables = []
        for more in ([], ["--trials"]):
            text = self.call("study", "table", NAME, "--format", "csv", "--source", source, *more)
            rows = csv.DictReader(io.StringIO(text.strip()))
            tables.append([{key: value for key, value in row.items() if not key.startswith("run_")} for row in rows])
        return tables


class ChaosError(Exception):
    """The chaos cannot continue; the message says why."""


# ---------------------------------------------------------------------------------------------------------------------- kills


@dataclass
class Kill:
    """One death: of whom, at which second of the study, and how many of its evaluations and events the journal had then.

    under_way: the trials that had begun and not ended; waiting: those of them that have reported nothing since.
    printed: whether the line about it was.
    """

    number: int
    victim: str
    process: int
    second: float
    evaluations: int
    events: int
    under_way: frozenset[int]
    waiting: set[int]
    printed: bool = False


class Chaos:
    """The disturbed study: a cluster of two nodes, an MLflow server, the driver, and who kills them."""

    def __init__(self, place: Place, mark: str, draw: random.Random, kills: int, evaluations: int) -> None:
        self.place, self.mark, self.draw, self.total = place, mark, draw, evaluations
        self.plan = [VICTIMS[number % len(VICTIMS)] for number in range(kills)]
        draw.shuffle(self.plan)
        self.kills: list[Kill] = []
        self.sockets: dict[str, int] = {}
        self.began = time.monotonic()
        self.heard = (0, time.monotonic())  # events in the journal, and when their number last grew

        gcs, dashboard, mlflow = free_port(), free_port(), free_port()
        self.address, self.tracking_uri = f"{HEAD}:{gcs}", f"http://127.0.0.1:{mlflow}"
        # Short: Ray's sockets lie there, and the path of a socket has 107 bytes at most.
        self.scratch = tempfile.mkdtemp(prefix="chaos-", dir="/tmp")
        place.environment["MLFLOW_TRACKING_URI"] = self.tracking_uri
        self.ray = [sys.executable, "-m", "ray.scripts.scripts"]
        common = ["--num-cpus", "1", "--object-store-memory", "100000000", "--disable-usage-stats", "--block"]
        head = ["start", "--head", "--node-ip-address", HEAD, "--port", str(gcs), "--temp-dir", self.scratch]
        head += ["--include-dashboard", "true", "--dashboard-port", str(dashboard)]
        second = ["start", "--address", self.address, "--node-ip-address", SECOND]
        server = ["mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(mlflow)]
        server += ["--backend-store-uri", f"sqlite:///{place.folder}/mlflow.db"]
        server += ["--artifacts-destination", str(place.folder / "artifacts")]
        self.head = self._part("head", [*self.ray, *head, *common])
        self.node = self._part("node", [*self.ray, *second, *common])
        self.server = self._part("server", [sys.executable, "-m", *server])
        self.driver = self._part("driver", place.command("study", "run", str(place.file), "--address", self.address))

    def _part(self, name: str, command: list[str]) -> Part:
        return Part(command, self.place.environment, self.place.folder / f"{name}.log")

    def run(self) -> None:
        """Take the study to its end through all kills. Raises ChaosError where it cannot come there."""
        for part in (self.server, self.head):
            part.start()
        self._wait(self._server_answers, 180, "the MLflow server to answer")
        self._wait(lambda: bool(self._raylet(self.head)), 120, "the head's raylet")
        self.node.start()
        self._wait(lambda: bool(self._raylet(self.node)), 120, "the second node's raylet")
        self.began = time.monotonic()
        self.heard = (0, self.began)
        self.driver.start()
        shares = sorted(self.draw.uniform(0, LATEST_KILL) for _ in self.plan)
        for number, (victim, share) in enumerate(zip(self.plan, shares, strict=True), 1):
            self._await_moment(share)
            self._kill(number, victim)
        self._study_until(lambda: False)
        self._tell()

    def _await_moment(self, share: float) -> None:
        """Wait for a share of the evaluations, and then for some seconds.

        So kills are spread over the whole study, and fall into start-ups too, of which the evaluations know nothing.
        """
        self._study_until(lambda: self.place.evaluations() >= share * self.total)
        latest = time.monotonic() + self.draw.uniform(0, 8)
        self._study_until(lambda: time.monotonic() > latest or self.place.evaluations() >= LATEST_KILL * self.total)

    def _kill(self, number: int, victim: str) -> None:
        candidates: list[int] = []

        def found() -> bool:
            candidates[:] = self._candidates(victim)
            return bool(candidates)

        self._study_until(found)
        if self._ended():
            return
        self._note_sockets()
        process = self.draw.choice(candidates)
        events = self.place.events()
        under_way = {event["trial"] for event in events if event["event"] == "trial_started"}
        under_way -= {event["trial"] for event in events if event["event"] == "trial_finished"}
        if victim == "server":  # with its group: the process that was started hands the port on to another
            self.server.kill()
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        now = time.monotonic()
        self._tell()
        evaluations = sum(event["event"] == "run_evaluated" for event in events)
        self.kills.append(
            Kill(number, victim, process, now - self.began, evaluations, len(events), frozenset(under_way), under_way)
        )
        if not under_way:
            self._tell()
        part = {"driver": self.driver, "server": self.server, "node": self.node}.get(victim)
        if part is not None:
            assert part.process is not None
            part.process.wait(60)
            part.due = now + self.draw.uniform(0, 4 if victim == "driver" else 10)

    def _candidates(self, victim: str) -> list[int]:
        """The processes of which one is to die."""
        if victim in TITLES:
            return sorted(process for process, title in processes(self.mark).items() if title.startswith(TITLES[victim]))
        if victim == "node":
            return self._raylet(self.node)
        part = self.driver if victim == "driver" else self.server
        return [part.process.pid] if part.process is not None and part.alive() else []

    def _raylet(self, node: Part) -> list[int]:
        """The raylet of a node: it is in the process group of the command that started it; its workers are not."""
        if node.process is None or not node.alive():
            return []
        found = []
        for process in processes(self.mark, "/raylet/raylet "):
            with contextlib.suppress(ProcessLookupError):
                if os.getpgid(process) == node.process.pid:
                    found.append(process)
        return found

    def _study_until(self, condition: Callable[[], bool]) -> None:
        """Look after the study until `condition` holds, or the study has ended."""
        while not condition():
            if self._ended():
                return
            events = self.place.events()
            if len(events) > self.heard[0]:
                self.heard = (len(events), time.monotonic())
            elif time.monotonic() - self.heard[1] > STALL_SECONDS:
                raise ChaosError(f"nothing was reported for {STALL_SECONDS:g} s after {events[-1:]}\n{self._state()}")
            if self.kills and self.kills[-1].waiting:
                news = [event for event in events[self.kills[-1].events :] if event["event"] != "trial_started"]
                self.kills[-1].waiting -= {event.get("trial") for event in news}
                if not self.kills[-1].waiting:
                    self._tell()
            for part in (self.node, self.server, self.driver):
                if part.due is not None and time.monotonic() >= part.due:
                    if part is self.driver and events:
                        part.command = self.place.command("study", "resume", NAME, "--address", self.address)
                    part.start()
            time.sleep(0.2)

    def _ended(self) -> bool:
        """Whether the driver has taken the study to its end. Raises ChaosError if it ended in another way, and not killed."""
        assert self.driver.process is not None
        if self.driver.alive() or self.driver.due is not None:
            return False
        if code := self.driver.process.returncode:
            raise ChaosError(f"the driver ended by itself with code {code}:\n{self.driver.last_words()}")
        return True

    def _state(self) -> str:
        """What lives, and the last words of those that write logs."""
        lines = [f"  {process} {title[:100]}" for process, title in sorted(processes(self.mark).items())]
        for name in ("driver", "head", "node", "server"):
            lines += [f"last lines of {name}:", getattr(self, name).last_words()]
        return "\n".join(lines)

    def _tell(self) -> None:
        """Print the line of the latest kill, once: when its trials have continued, or when the next one comes."""
        if not self.kills or self.kills[-1].printed:
            return
        kill, now = self.kills[-1], time.monotonic() - self.began
        kill.printed = True
        if kill.waiting:
            followed = f"trial {' and '.join(map(str, sorted(kill.waiting)))} had not continued when the next one came"
        elif kill.under_way:
            followed = f"trial {' and '.join(map(str, sorted(kill.under_way)))} continued within {now - kill.second:.1f} s"
        else:
            followed = "no trial was under way"
        print(
            f"{kill.second:7.1f} s  kill {kill.number:2} of {len(self.plan)}: {kill.victim:6} (process {kill.process}), "
            f"{kill.evaluations} of {self.total} evaluations reported; {followed}",
            flush=True,
        )

    def _note_sockets(self) -> None:
        """Remember the sockets on which processes of ours listen."""
        everybody = listening()
        for process in processes(self.mark):
            self.sockets.update({inode: everybody[inode] for inode in sockets_of(process) & everybody.keys()})

    def _server_answers(self) -> bool:
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with contextlib.suppress(OSError), direct.open(f"{self.tracking_uri}/health", timeout=2) as answer:
            return bool(answer.status == 200)
        return False

    def _wait(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        limit = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > limit:
                raise ChaosError(f"waited {seconds:g} s in vain for {what}\n{self._state()}")
            time.sleep(0.2)

    def settle(self) -> None:
        """After the study's end: the server is back, and the study has given back what it held of the cluster."""
        for part in (self.server, self.node):
            if not part.alive():
                part.start()
        self._wait(self._server_answers, 180, "the MLflow server to answer")
        self._wait(lambda: not self._of_the_study(), 90, "the end of the study's processes")
        self._wait(self._cores_are_free, 90, "the cores that the study held")
        self._note_sockets()

    def _of_the_study(self) -> dict[int, str]:
        found = processes(self.mark, "ray::")
        return {process: title for process, title in found.items() if not title.startswith(CLUSTER_TITLES)}

    def _cores_are_free(self) -> bool:
        """No core is in use, nor reserved by a placement group."""
        ended = subprocess.run(
            [*self.ray, "status", "--address", self.address], env=self.place.environment, capture_output=True, text=True
        )
        return re.search(r"^ *0(\.0)?/2(\.0)? CPU *$", ended.stdout, re.MULTILINE) is not None

    def close(self) -> None:
        """End all parts, the head last."""
        for part in (self.driver, self.node, self.server, self.head):
            part.end()
        with contextlib.suppress(OSError, shutil.Error):
            shutil.copytree(Path(self.scratch) / "session_latest" / "logs", self.place.folder / "ray-logs")
        shutil.rmtree(self.scratch, ignore_errors=True)


# --------------------------------------------------------------------------------------------------------------------- checks


def measured(events: list[dict[str, Any]]) -> dict[tuple[Any, ...], Any]:
    """All that a study found, without the clock: its trials' settings, every curve, every end."""
    clock = {"time", "worked", "seconds", "event", "trial", "split", "step"}
    kinds = ("trial_started", "trial_finished", "run_logged", "run_evaluated", "run_finished")
    return {
        (event["event"], event["trial"], event.get("split"), event.get("step")): {
            key: value for key, value in event.items() if key not in clock
        }
        for event in events
        if event["event"] in kinds
    }


def check_journal(events: list[dict[str, Any]], undisturbed: list[dict[str, Any]], trials: int) -> Iterator[str]:
    """What is wrong with the journal of the disturbed study."""
    reported = Counter(
        (event["event"], event["trial"], event["split"], event.get("step"))
        for event in events
        if event["event"].startswith("run_")
    )
    twice = [key for key, count in reported.items() if count > 1]
    if twice:
        yield f"the journal has {len(twice)} events of runs more than once, such as {twice[0]}"
    ended = Counter((event["trial"], event["split"]) for event in events if event["event"] == "run_finished")
    wanted = {(trial, split): 1 for trial in range(trials) for split in SPLITS}
    if ended != wanted:
        yield f"the journal has the ends of the runs {dict(ended)}, not each of {len(wanted)} once"
    for event in events:
        failed = event["event"] == "trial_finished" and event["status"] != "finished"
        if failed or event["event"] in ("run_failed", "run_pruned", "trial_pruned"):
            yield f"the journal has {event}"
    if [event["event"] for event in events].count("study_finished") != 1 or events[-1].get("status") != "finished":
        yield f"the journal ends with {events[-1]}, not with the one end of a finished study"
    ours, theirs = measured(events), measured(undisturbed)
    for key in sorted(ours.keys() ^ theirs.keys(), key=str)[:5]:
        yield f"only the {'disturbed' if key in ours else 'undisturbed'} study tells {key}"
    for key in [key for key in theirs if key in ours and ours[key] != theirs[key]][:5]:
        yield f"{key} is {ours[key]}, undisturbed {theirs[key]}"


def check_mlflow(uri: str, events: list[dict[str, Any]], trials: int) -> Iterator[str]:
    """What is wrong in MLflow, compared with the journal."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string=f"name = '{NAME}'")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    statuses = Counter(run.info.status for run in runs)
    if set(statuses) != {"FINISHED"}:
        yield f"MLflow has runs that are {dict(statuses)}"
    found = Counter((run.data.tags.get("css_ray.trial"), run.data.tags.get("css_ray.split")) for run in runs)
    wanted: Counter[tuple[str | None, str | None]] = Counter([(None, None)])  # the study itself
    for trial in range(trials):
        wanted.update((str(trial), split) for split in (None, *map(str, SPLITS)))
    if found != wanted:
        yield f"MLflow lacks the runs {wanted - found} and has too many of {found - wanted}"
    curves: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for event in events:
        if event["event"] == "run_evaluated":
            key = str(event["trial"]), str(event["split"])
            curves.setdefault(key, []).append((event["step"], event["metrics"]["val/miou"]))
    for run in runs:
        key = run.data.tags.get("css_ray.trial", ""), run.data.tags.get("css_ray.split", "")
        if key[1]:
            points = [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "val/miou")]
            if sorted(points) != sorted(curves[key]):
                yield f"the curve of trial {key[0]}, split {key[1]} in MLflow is {points}, in the journal {curves[key]}"


def check_nothing_left(mark: str, sockets: dict[str, int], seconds: float = 60) -> Iterator[str]:
    """What still lives or listens of all that was started, after the `seconds` that it has to go."""
    limit = time.monotonic() + seconds
    while (left := processes(mark)) and time.monotonic() < limit:
        time.sleep(0.5)
    for process, title in left.items():
        yield f"process {process} is left: {title[:150]}"
    for inode in sockets.keys() & listening().keys():
        yield f"port {sockets[inode]} is still listened on"


# ------------------------------------------------------------------------------------------------------------------------ all


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=(__doc__ or "").split("\n\n")[1])
    parser.add_argument("--kills", type=int, default=25, help="how many processes die (default 25)")
    parser.add_argument("--trials", type=int, default=8, help="trials of the study, at least 3 (default 8)")
    parser.add_argument("--seed", type=int, default=None, help="of who is killed and when; by default a new one")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave studies and logs there, instead of removing them")
    options = parser.parse_args(arguments)
    if options.trials <= len(GRID):
        parser.error(f"--trials {options.trials}: the grid has {len(GRID)}, and the search needs one at least")
    if options.keep is not None and (options.keep / "disturbed").exists():
        parser.error(f"--keep {options.keep}: it holds a study of an earlier call; choose another folder")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that an end from outside leaves no process either
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    print(f"seed {seed}: {options.trials} trials x {len(SPLITS)} splits, {options.kills} kills", flush=True)
    with contextlib.ExitStack() as stack:
        folder = options.keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="css-ray-chaos-")))
        problems = run(folder.resolve(), options.trials, options.kills, random.Random(seed))
    for problem in problems:
        print(f"WRONG: {problem}")
    print("chaos: failed" if problems else "chaos: every run once, the same table, nothing left", flush=True)
    return 1 if problems else 0


def run(folder: Path, trials: int, kills: int, draw: random.Random) -> list[str]:
    """Run both studies in `folder`, killing in the second; returns what is wrong."""
    mark = uuid.uuid4().hex
    environment = {
        **os.environ,
        MARK: mark,
        "OMP_NUM_THREADS": "1",
        # A token of its own: the cluster is closed to others, and no file in the user's home is read or written.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": uuid.uuid4().hex + uuid.uuid4().hex,
        "RAY_USAGE_STATS_ENABLED": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS"):
        environment.pop(name, None)
    study = specification(folder / "digits", trials, retries=4 * kills)
    problems: list[str] = []
    sockets: dict[str, int] = {}
    try:
        undisturbed = Place(folder / "undisturbed", environment, study)
        started = time.monotonic()
        undisturbed.call("study", "run", str(undisturbed.file), timeout=1800)
        evaluations = undisturbed.evaluations()
        print(f"undisturbed: {time.monotonic() - started:.0f} s, {evaluations} evaluations", flush=True)

        disturbed = Place(folder / "disturbed", environment, study)
        chaos = Chaos(disturbed, mark, draw, kills, evaluations)
        sockets = chaos.sockets
        try:
            chaos.run()
            print(f"disturbed: {time.monotonic() - chaos.began:.0f} s, {len(chaos.kills)} kills", flush=True)
            if len(chaos.kills) < kills:
                problems.append(f"the study ended after {len(chaos.kills)} of {kills} kills; give it more --trials")
            chaos.settle()
            problems += check_journal(disturbed.events(), undisturbed.events(), trials)
            print(disturbed.call("study", "sync", NAME).strip(), flush=True)
            problems += check_mlflow(chaos.tracking_uri, disturbed.events(), trials)
            wanted = undisturbed.tables("journal")
            for source in ("journal", "mlflow"):
                if (table := disturbed.tables(source)) != wanted:
                    problems.append(f"the tables from {source} are {table}, undisturbed {wanted}")
        finally:
            chaos.close()
    except (ChaosError, subprocess.TimeoutExpired) as error:
        problems.append(str(error))
    finally:
        problems += check_nothing_left(mark, sockets)
        for process in processes(mark):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
    return problems


if __name__ == "__main__":
    sys.exit(main())
