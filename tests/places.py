"""Whole studies in a folder: the processes that run them, and what these leave behind."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner, Result

SPEC: dict[str, Any] = {
    "study": "small",
    "data": {"dataset": "digits", "labelled": 12, "crop": 32, "labelled_batch": 4, "unlabelled_batch": 4, "val_batch": 50},
    "views": {"flip": False},
    "model": {"encoder": "tiny", "output_stride": 4, "pretrained": False, "decoder_channels": 16, "low_level_channels": 8, "representation_dim": 16},
    "train": {"iterations": 40, "lr": 0.05, "evaluate_every": 10, "log_every": 5},
    "splits": [0, 1],
    "grid": {"method": [{"name": "supervised", "row": "Sup."}]},
    "search": {
        "method": {"name": "css", "row": "CSS (mix)", "num_queries": 16, "num_negatives": 32},
        "trials": 2,
        "startup_trials": 1,
        "space": {"method.temperature": {"loguniform": [0.1, 1.0]}, "method.unsup_threshold": {"uniform": [0.3, 0.9]}},
    },
    "resources": {"concurrent_trials": 2, "retries": 2},
}  # fmt: skip


class Place:
    """A storage folder with one study, the processes started for it, and what they left behind."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder = folder
        self.mark = uuid.uuid4().hex
        self.environment = {
            **os.environ,
            "CSS_RAY_TEST": self.mark,
            "CSS_RAY_STORAGE": str(folder / "runs"),
            "OMP_NUM_THREADS": "1",
        }
        self.file = folder / "study.yaml"
        spec = json.loads(json.dumps(SPEC))
        spec["data"]["root"] = str(data)
        self.file.write_text(yaml.safe_dump(spec))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", "from css_ray_cli.main import main; main()", *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self.environment, cwd=self.folder,
        )  # fmt: skip

    def call(self, *arguments: str) -> tuple[int, str]:
        process = self.start(*arguments)
        output, _ = process.communicate(timeout=500)
        return process.returncode, output

    def run(self, *sets: str) -> tuple[int, str]:
        return self.call("study", "run", str(self.file), *(part for pair in sets for part in ("--set", pair)))

    def ask(self, *arguments: str) -> tuple[int, str]:
        """As `call`, for a command that starts no study: in this process, which has imported all of it already."""
        result = self._invoke(*arguments)
        return result.exit_code, result.output

    def _invoke(self, *arguments: str) -> Result:
        from css_ray_cli.main import main

        result = CliRunner().invoke(main, arguments, env={"CSS_RAY_STORAGE": self.environment["CSS_RAY_STORAGE"]})
        assert result.exception is None or isinstance(result.exception, SystemExit), result.output
        return result

    def events(self) -> list[dict[str, Any]]:
        path = self.folder / "runs" / "small" / "journal.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def wait_for(self, condition: Callable[[list[dict[str, Any]]], bool], process: subprocess.Popen[str]) -> None:
        """Until the journal satisfies `condition`, while `process` lives."""
        limit = time.monotonic() + 240
        while not condition(self.events()):
            assert process.poll() is None, process.stdout.read() if process.stdout else ""
            assert time.monotonic() < limit, self.events()[-3:]
            time.sleep(0.1)

    def processes(self, name: str = "") -> list[int]:
        """Ids of the live processes that belong to this place, by the mark in their environment, whose title holds `name`."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                environment = (entry / "environ").read_bytes()
                title = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
            except OSError:
                continue
            if self.mark.encode() in environment and name in title and state != "Z":
                found.append(int(entry.name))
        return found

    def wait_until_empty(self) -> None:
        """Ray's processes go when their driver has gone, however it went.

        But for its agents, which hold no cores and may take minutes to notice that they are alone.
        """
        limit = time.monotonic() + 60
        while left := set(self.processes()) - set(self.processes("Agent")):
            assert time.monotonic() < limit, [Path(f"/proc/{process}/cmdline").read_text() for process in left]
            time.sleep(0.2)

    def table(self, source: str = "journal", *more: str) -> list[dict[str, str]]:
        """The table in full precision, without the ids of MLflow's runs, which the journal does not know."""
        result = self._invoke("study", "table", "small", "--format", "csv", "--source", source, *more)
        assert result.exit_code == 0, result.output
        output = result.stdout
        return [
            {key: value for key, value in line.items() if not key.startswith("run_")}
            for line in csv.DictReader(io.StringIO(output.strip()))
        ]

    def check_mlflow(self) -> None:
        """Each run once, none left RUNNING, and the table made from MLflow is the table made from the journal."""
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{self.folder}/runs/mlflow.db")
        (experiment,) = client.search_experiments(filter_string="name = 'small'")
        runs = client.search_runs([experiment.experiment_id])
        assert {run.info.status for run in runs} <= {"FINISHED", "FAILED"}, Counter(run.info.status for run in runs)
        counts = Counter((run.data.tags.get("css_ray.trial"), run.data.tags.get("css_ray.split")) for run in runs)
        assert set(counts.values()) == {1}, counts
        assert len(counts) == 1 + 3 + 6  # the study, its trials, their runs
        for run in runs:
            if run.data.tags.get("css_ray.split") is not None:
                history = client.get_metric_history(run.info.run_id, "val/miou")
                assert [point.step for point in history] == [10, 20, 30, 40], (run.info.run_name, history)
        assert self.table("mlflow") == self.table("journal")


def evaluations(events: list[dict[str, Any]]) -> int:
    return sum(event["event"] == "run_evaluated" for event in events)


def runs_finished(events: list[dict[str, Any]]) -> int:
    return sum(event["event"] == "run_finished" for event in events)


def curves(events: list[dict[str, Any]]) -> dict[tuple[Any, ...], Any]:
    """All that was measured, without the clock."""
    kinds = ("run_logged", "run_evaluated")
    return {
        (event["event"], event["trial"], event["split"], event["step"]): event["metrics"]
        for event in events
        if event["event"] in kinds
    }


def check_same(place: Place, undisturbed: Place) -> None:
    """The disturbed study told each thing once and has the numbers of the undisturbed one, digit for digit."""
    assert place.table("journal", "--trials") == undisturbed.table("journal", "--trials")
    assert curves(place.events()) == curves(undisturbed.events())
    told = Counter(
        (event["event"], event["trial"], event["split"], event.get("step"))
        for event in place.events()
        if event["event"].startswith("run_")
    )
    assert set(told.values()) == {1}
    place.check_mlflow()
