"""Commands that css-ray prints: a shell splits each into the words that css-ray takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from css_ray import Study
from css_ray.messages import at_storage, command, study_command
from tests.cli.made_up import SEARCH, SPEC, Journal, call, refused


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CSS_RAY_STORAGE", raising=False)


def parsed(line: str) -> tuple[str, dict[str, Any]]:
    """The command of a line, and what it would be called with; fails where it does not parse."""
    from css_ray_cli.main import main

    words = shlex.split(line, comments=True)
    assert words[0] == "css-ray"
    group: Any = main
    context: Any = None
    while hasattr(group, "get_command"):
        words = words[1:]
        group = group.get_command(context, words[0])
        assert group is not None, line
    context = group.make_context(words[0], words[1:])
    return words[0], context.params


def commands(output: str) -> list[str]:
    """The commands of an output, without what is said beside them."""
    return [re.split(r" {3,}", found)[0] for found in re.findall(r"css-ray \S.*", output)]


def test_words_are_quoted_by_need() -> None:
    assert command("study", "run", "a.yaml", "--set", "train.lr=0.1") == "css-ray study run a.yaml --set train.lr=0.1"
    awkward = ["it's", "two words", "$HOME", "s3://b/x?a=1&b=2", "[0, 1]", ""]
    assert shlex.split(command(*awkward)) == ["css-ray", *awkward]
    assert study_command("table", "small") == "css-ray study table small" and at_storage("runs") == ()
    assert (
        study_command("table", "small", "my runs", "--format", "md")
        == "css-ray study table small --storage 'my runs' --format md"
    )


def finished(storage: str) -> Study:
    journal = Journal(storage, grid={"method": SPEC["grid"]["method"][:1]}, search=SEARCH)
    journal.whole(0, {0: 40.0, 1: 60.0})
    journal.whole(1, {0: 41.0, 1: 61.0}, {"method.temperature": 0.2})
    return Study.open("small", storage)


def test_the_next_steps_find_a_storage_with_a_blank(capsys: pytest.CaptureFixture[str]) -> None:
    from css_ray_cli.study.run import report

    study = finished("my runs")
    report(study, ["--address", "auto", "--on-finish", "echo 'all done'"])
    found = [parsed(line) for line in commands(capsys.readouterr().out)]
    assert [name for name, _ in found] == ["ui", "table", "resume", "confirm"]
    assert {settings["storage"] for _, settings in found} == {"my runs"}
    assert all(settings["name"] == "small" for name, settings in found if name != "ui")
    assert found[2][1]["on_finish"] == "echo 'all done'" and found[2][1]["address"] == "auto"


@pytest.mark.parametrize("status", ["interrupted", "budget"])
def test_the_command_that_continues(status: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from css_ray.study.driver import Outcome
    from css_ray_cli.study.run import Terminal

    study = finished("my runs")
    Terminal(["--on-finish", "echo $CSS_RAY_STATUS"]).study_ended(study, Outcome(status, study.definition, [], 0))
    printed = capsys.readouterr()
    name, settings = parsed(commands(printed.err if status == "interrupted" else printed.out)[-1])
    assert (name, settings["name"], settings["storage"]) == ("resume", "small", "my runs")
    assert settings["on_finish"] == "echo $CSS_RAY_STATUS"
    assert settings["overrides"] == (() if status == "interrupted" else ("budget.KEY=VALUE",))


def test_a_study_that_exists_says_how_it_continues(data: Path) -> None:
    sections = {"data": {**SPEC["data"], "root": str(data)}}
    Journal("my runs", **sections)
    Path("study.yaml").write_text(yaml.safe_dump({**SPEC, **sections}))
    said = refused("study", "run", "study.yaml", "--storage", "my runs")
    (line,) = commands(said.partition("; another")[0])
    assert parsed(line)[1]["storage"] == "my runs" and "exists in my runs" in said


def test_the_plan_ends_with_the_command_that_runs_it(data: Path) -> None:
    Path("my study.yaml").write_text(yaml.safe_dump({**SPEC, "data": {**SPEC["data"], "root": str(data)}}))
    output = call(
        "study", "plan", "my study.yaml", "--no-measure", "--set", "splits=[0, 2]", "--set", "description=it's"
    ).output
    name, settings = parsed(commands(output)[-1])
    assert (name, settings["file"]) == ("run", "my study.yaml")
    assert settings["overrides"] == ("splits=[0, 2]", "description=it's")


def test_a_study_that_was_submitted(capsys: pytest.CaptureFixture[str]) -> None:
    from css_ray.execution.jobs import Submitted
    from css_ray_cli.study.remote import show_submitted

    class Cluster:
        address = "http://head:8265/?a=1&b=2"

    show_submitted(Cluster(), Submitted("small", "/mnt/my runs", "job", "RUNNING", 0.0, ""), follow=False)
    found = [parsed(line) for line in commands(capsys.readouterr().out)]
    assert [(name, settings["address"]) for name, settings in found] == [
        (name, Cluster.address) for name in ("logs", "status", "stop")
    ]


def test_what_mlflow_lacks_is_sent_from_the_right_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    finished("my runs")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    result = call("study", "table", "small", "--storage", "my runs", "--source", "mlflow")
    assert result.exit_code == 1 and "backfill it from the journal" in result.output
    assert parsed(commands(result.output)[-1]) == ("sync", {"name": "small", "storage": "my runs"})


def test_an_empty_storage_says_how_to_start() -> None:
    line = commands(call("study", "list", "--storage", "my runs").output)[-1]
    assert parsed(line)[1]["storage"] == "my runs"
