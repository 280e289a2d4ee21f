"""`css-ray study export`: every number of the journal, once, with its unit and the hash of its split."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pandas
import pytest

from css_ray import Study
from css_ray.reports.numbers import unit_of
from tests.cli.made_up import call, refused
from tests.journals import FORMULA, begun, mixed


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CSS_RAY_STORAGE", raising=False)


def exported(format_: str) -> pandas.DataFrame:
    result = call("study", "export", "small", "--format", format_, "--out", f"numbers.{format_}")
    assert result.exit_code == 0 and result.output == f"wrote numbers.{format_}\n", (result.output, result.exception)
    return pandas.read_parquet("numbers.parquet") if format_ == "parquet" else pandas.read_csv("numbers.csv")


@pytest.mark.parametrize("format_", ["parquet", "csv"])
def test_every_number_once(format_: str) -> None:
    """Counted from the events themselves: points, two ends and the seconds of each finished run, mean, std and n of a trial."""
    telling = mixed(Path("runs/small/journal.jsonl"))
    frame = exported(format_)
    wanted: list[tuple[str, float]] = []
    for event in telling.events:
        plain = event.to_json()
        wanted += [("curve", value) for value in plain.get("metrics", {}).values()]
        if event.kind == "run_finished":
            wanted += [(kind, value) for kind in ("last", "best") for value in plain[kind].values()] + [
                ("run", plain["seconds"])
            ]
        if event.kind == "trial_finished" and plain["n"]:
            wanted += [("trial", plain[name]) for name in ("mean", "std", "n") if plain[name] is not None]
    found = list(zip(frame["kind"], frame["value"], strict=True))
    assert sorted(found) == sorted(wanted) and len(found) > 70
    # What it is, on which images: nothing is left to be guessed.
    assert set(frame["unit"]) == {"percent", "s", "splits"} and set(frame["study_id"]) == {"x"}
    assert set(frame["split_hash"].dropna()) - {""} == {"h"}
    assert frame[frame["kind"] == "trial"]["split"].isna().all()
    scores = frame[(frame["kind"] == "last") & (frame["trial"] == 1)].sort_values("split")
    assert scores["value"].tolist() == [50.0, 52.0, 60.0] and set(scores["metric"]) == {"val/miou"}
    assert set(frame[frame["trial"] == 5]["method.temperature"]) == {0.5}


def test_parquet_describes_itself() -> None:
    mixed(Path("runs/small/journal.jsonl"))
    attributes = exported("parquet").attrs
    assert (attributes["study"], attributes["study_id"], attributes["ddof"]) == ("small", "x", 1)
    assert attributes["units"]["val"] == "percent" and attributes["status"] == "running"


def test_json_is_the_study_as_a_tree() -> None:
    telling = mixed(Path("runs/small/journal.jsonl"))
    whole = json.loads(call("study", "export", "small", "--format", "json").output)
    assert (whole["study"], whole["units"]["seconds"], whole["classes"]) == ("small", "s", ["a"])
    assert whole["definition"] == telling.study.resolved()
    trial = whole["trials"][1]
    assert (trial["mean"], trial["n"], trial["params"]) == (54.0, 3, {"method.temperature": 0.1})
    run = trial["runs"][2]
    assert (run["split"], run["split_hash"], run["last"], run["seconds"]) == (2, "h", {"val/miou": 60.0}, 12.5)
    assert run["curve"] == [{"step": 10 * place, "val/miou": value} for place, value in ((1, 15.0), (2, 30.0), (3, 60.0))]
    assert whole["trials"][4]["runs"][1]["reason"] == "the loss became nan at step 14"


@pytest.mark.parametrize(
    ("metric", "unit"),
    [
        ("val/miou", "percent"),
        ("val/iou/n", "percent"),
        ("val/absent_classes", "classes"),
        ("pseudo/unkept_classes/mix", "classes"),
        ("pseudo/kept/mix", "percent"),
        ("train/loss", "1"),
        ("train/lr", "1"),
        ("seconds", "s"),
    ],
)
def test_units(metric: str, unit: str) -> None:
    assert unit_of(metric) == unit


def test_values_of_several_types_share_a_column() -> None:
    """Text, a list, a number and nothing, as a grid may vary; a file's column has one type."""
    telling = begun(search=None)
    telling.start()
    for trial, value in enumerate(["x", [1, 2], 3, None]):
        params = {"data.root": value}
        telling.tell("trial_started", trial, row="Sup.", source="grid", params=params, config={"train.iterations": 100})
        telling.run(trial, 0, 30.0, end="running")
    # The order of trials is not that of the grid's only one, so this is read without the checks of a study's journal.
    from css_ray.reports.frames import numbers_frame, to_bytes

    frame = pandas.read_parquet(io.BytesIO(to_bytes(numbers_frame(telling.events), "parquet")))
    assert frame["data.root"].tolist()[:3] == ["x", "[1, 2]", "3"] and pandas.isna(frame["data.root"][3])


def test_a_study_without_a_finished_run() -> None:
    telling = begun()
    telling.start()
    for format_ in ("csv", "parquet"):
        result = call("study", "export", "small", "--format", format_, "--out", "x")
        assert result.exit_code == 1 and "no run of small has measured anything yet" in result.output
    assert json.loads(call("study", "export", "small", "--format", "json").output)["trials"] == []
    telling.trial(0)
    telling.run(0, 0, 30.0, end="running")
    (line,) = csv.DictReader(io.StringIO(call("study", "export", "small").output))
    assert (line["kind"], line["value"], line["status"], line["step"]) == ("curve", "30.0", "running", "10")
    assert Study.open("small").best is None


def test_what_cannot_be_printed_or_followed_is_refused() -> None:
    begun().start()
    for format_ in ("parquet", "optuna"):
        assert f"--format {format_} is not text; name a file" in refused("study", "export", "small", "--format", format_)
    assert "not one of csv" in refused("study", "export", "small", "--follow")
    assert "--out: cannot write" in refused("study", "export", "small", "--out", "no/such/folder/x.csv")
    assert "no study other in runs" in refused("study", "export", "other")


@pytest.mark.parametrize("name", [FORMULA, "<script>alert(1)</script>", "a & b_c", '"quoted", x'])
def test_names_of_others_are_text(name: str) -> None:
    telling = begun(grid={"method": [{"name": "supervised", "row": name}]}, search=None)
    telling.start()
    telling.tell("trial_started", 0, row=name, source="grid", params={"method.name": name}, config={"train.iterations": 100})
    telling.run(0, 0, 30.0, end="running")
    telling.tell("run_logged", 0, 0, step=10, metrics={f"={name}": 1.5})
    lines = list(csv.DictReader(io.StringIO(call("study", "export", "small").output)))
    safe = f"'{name}" if name.startswith("=") else name
    assert {line["row"] for line in lines} == {line["method.name"] for line in lines} == {safe}
    assert {line["metric"] for line in lines} == {"val/miou", f"'={name}"}
    printed = call("study", "export", "small", "--format", "json").output
    assert "<" not in printed and json.loads(printed)["trials"][0]["row"] == name
