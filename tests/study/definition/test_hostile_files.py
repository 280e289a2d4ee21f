"""What a careless or hostile user puts into a study file: one message with the place and the bound, in bounded time."""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from css_ray.study.definition import StudyError, is_study_name, parse, read
from css_ray.study.definition.yaml_file import MAX_BYTES, MAX_DEPTH, MAX_VALUES, read_value
from tests.study.definition.specs import MINIMAL, SEARCH, minimal, printed, problems

BILLION = 10**9


def why(content: str | bytes, tmp_path: Path, *overrides: str) -> str:
    """The single problem of a file."""
    path = tmp_path / "study.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(StudyError) as caught:
        read(path, overrides)
    (problem,) = printed(caught.value)
    return problem


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1", "cp037"])
def test_a_file_in_another_encoding(encoding: str, tmp_path: Path) -> None:
    text = yaml.safe_dump(MINIMAL) + "# naïve\n"
    assert why(text.encode(encoding), tmp_path) == "is not a text file in UTF-8; give a study in YAML"


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(MINIMAL), encoding="utf-8-sig")
    assert read(path).name == "small"


def test_what_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    for place in ("pipe", "/dev/zero"):  # to open the one, or to read the other to its end, would take for ever
        with pytest.raises(StudyError, match=r"^1 problem in \S+:\n  is a pipe or a device; give a study in a file$"):
            read(place)
    with pytest.raises(StudyError, match=r"cannot read \.: it is a folder, not a file"):
        read(".")


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "study.yaml").write_text("x")

    def refuse(*arguments: Any, **settings: Any) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / "study.yaml"))

    monkeypatch.setattr(Path, "open", refuse)  # root may read all files
    with pytest.raises(StudyError, match="permission denied; change its permissions"):
        read(tmp_path / "study.yaml")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: [*nothing]", "line 1, column 5: found undefined alias 'nothing'"),
        ("a: &a [*a]", "line 1, column 8: the alias *a is inside of the value that it stands for"),
        ("a: &a {b: {c: *a}}", "line 1, column 15: the alias *a is inside of the value that it stands for"),
        ("a: !!python/object/apply:os.system [ls]", "line 1, column 4: the tag !!python/object/apply:os.system has no meaning in a study; remove it"),
        ("a: !!binary aGk=", "line 1, column 4: the tag !!binary has no meaning in a study; remove it"),
        ("a: !!set {b}", "line 1, column 4: the tag !!set has no meaning in a study; remove it"),
        ("a: !mine 1", "line 1, column 4: the tag !mine has no meaning in a study; remove it"),
        ("a: !!timestamp 2026-13-01", "line 1, column 4: the tag !!timestamp has no meaning in a study; remove it"),
        ("a: !!int x", "line 1, column 4: this cannot be read as a value of the type !!int"),
        ("a: !!map x", "line 1, column 4: expected a mapping node, but found scalar"),
        ("a: " + "9" * 5000, "line 1, column 4: this cannot be read as a value of the type !!int"),
        ("[a]: 1", "line 1, column 1: a key must be a word, not a list or a mapping"),
        ("a: 1\na: 2", "line 2, column 1: the key 'a' is listed twice"),
        ("a: " + "[" * 300 + "]" * 300, f"line 1, column {3 + MAX_DEPTH}: values are nested more than {MAX_DEPTH} levels deep"),
        ("a: '\0'", "character 5 is U+0000, which YAML does not allow; give a study in YAML"),
        ("x" * (MAX_BYTES + 1), "is larger than 1000 kB; give a study in YAML"),
    ],
)  # fmt: skip
def test_yaml_that_no_study_has_use_for(text: str, problem: str, tmp_path: Path) -> None:
    assert why(text, tmp_path) == problem


def bomb(width: int, levels: int, form: str) -> str:
    """Aliases of aliases: `width` to the power of `levels` values in some lines."""
    lines = ["k0: &k0 {a: 1}" if "<<" in form else "k0: &k0 [x]"]
    for level in range(1, levels):
        lines.append(f"k{level}: &k{level} " + form.format(", ".join([f"*k{level - 1}"] * width)))
    return "\n".join(lines)


@pytest.mark.parametrize("form", ["[{0}]", "{{<<: [{0}]}}"])
@pytest.mark.parametrize(("width", "levels"), [(9, 10), (2, 18), (300, 3)])
def test_an_alias_bomb_is_found_before_it_goes_off(form: str, width: int, levels: int, tmp_path: Path) -> None:
    began = time.process_time()
    bounds = (
        f"more than {MAX_VALUES} values, those behind aliases counted each time",
        f"nested more than {MAX_DEPTH} levels deep",
    )
    assert why(bomb(width, levels, form), tmp_path).endswith(bounds)
    assert time.process_time() - began < 20


def test_aliases_that_a_study_needs_are_read(tmp_path: Path) -> None:
    text = yaml.safe_dump({**MINIMAL, "grid": None})
    text += (
        "grid:\n  method:\n  - &css {name: css, row: A}\n  - {<<: *css, row: B}\n  - {<<: [*css], row: C, temperature: 0.2}\n"
    )
    (tmp_path / "study.yaml").write_text(text.replace("grid: null\n", ""))
    assert [trial.row for trial in read(tmp_path / "study.yaml").grid_trials()] == ["A", "B", "C"]


def test_a_date_is_text(tmp_path: Path) -> None:
    """Whether it exists or not: YAML 1.2 has no dates, and a folder is often named by one."""
    for date in ("2026-01-01", "2026-13-99", "2026-02-30"):
        assert read_value(date) == date
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(MINIMAL).replace("data/digits", date))
        assert read(tmp_path / "study.yaml", [f"description={date}"]).data.root == date


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"train__iterations": 10**400}, "train.iterations: must be a number of at most 64 bits, got one of 1329"),
        ({"train__lr": -(10**400)}, "train.lr: must be a number of at most 64 bits, got one of 1329"),
        ({"search": {**SEARCH, "space": {"method.temperature": {"uniform": [0.1, 10**400]}}}},
         "search.space.method.temperature.uniform[1]: must be a number of at most 64 bits, got one of 1329"),
        ({"data__root": "a\0b"}, "data.root: has characters that no file name and no text in UTF-8 can hold, got 'a\\x00b'"),
        ({"description": "\ud800"}, "description: has characters that no file name and no text in UTF-8 can hold, got '\\ud800'"),
        ({"data__root": b"x"}, "data.root: must be a number, text, true, false, null, a list or a mapping, got bytes"),
        ({"views": {1: 2}}, "views: has the key 1, which is not text; put it into quotes, or remove it"),
        ({"seed": 2**40}, "seed: must be from -4294967296 to 4294967296, got 1099511627776"),
        ({"splits": [0, 10**10]}, "splits[1]: must be a whole number >= 0 and <= 1000000000, got 10000000000"),
        ({"splits": list(range(1001))}, "splits: must have at most 1000 entries, got 1001"),
        ({"data__crop": 100_000}, "data.crop: must be <= 16384, got 100000"),
        ({"data__labelled_batch": BILLION}, "data.labelled_batch: must be <= 65536, got 1000000000"),
        ({"data__loader_workers": BILLION}, "data.loader_workers: must be <= 1024, got 1000000000"),
        ({"data__root": ""}, "data.root: must not be empty, got ''"),
        ({"data__labelled_list": "{split:999999999}"}, "data.labelled_list: pads a number to more than 99 characters (999999999); the fields of a path are {labelled} and {split}, got '{split:999999999}'"),
        ({"data__labelled_list": "{split:{labelled}}"}, "data.labelled_list: pads a number to more than 99 characters ({labelled}); the fields of a path are {labelled} and {split}, got '{split:{labelled}}'"),
        ({"model__decoder_channels": BILLION}, "model.decoder_channels: must be <= 65536, got 1000000000"),
        ({"model__representation_dim": BILLION}, "model.representation_dim: must be <= 65536, got 1000000000"),
        ({"model__aspp_rates": [1] * 1000}, "model.aspp_rates: must have 1 to 16 entries, got 1000"),
        ({"model__pretrained": ""}, "model.pretrained: must be true, false or the path of a file, got ''"),
        ({"views": {"scale": [1, 1e300]}}, "views.scale: must be > 0 and <= 16, got (1, 1e+300)"),
        ({"resources": {"workers": BILLION}}, "resources.workers: must be <= 4096, got 1000000000"),
        ({"resources": {"concurrent_trials": BILLION}}, "resources.concurrent_trials: must be <= 10000, got 1000000000"),
        ({"resources": {"gpus_per_worker": math.inf}}, "resources.gpus_per_worker: must be a finite number, got inf"),
        ({"budget": {"hours": math.inf}}, "budget.hours: must be a finite number, got inf"),
        ({"search": {**SEARCH, "trials": BILLION}}, "search.trials: must be <= 10000, got 1000000000"),
        ({"search": {**SEARCH, "trials": 9999}}, "search.trials: the study has 10001 trials, at most 10000; lower it"),
        ({"grid": {"method": [{"name": "supervised"}], **{f"train.{key}": [0.2 + place / 1e5 for place in range(1000)] for key in ("lr", "momentum", "poly_power")}}},
         "grid: has 1000000000 trials, at most 1000; list fewer values, or have a search draw them (its sampler `grid` goes through all)"),
        ({"trials": [{"method": {"name": "css"}, "train.lr": 0.2}] * 999}, "grid: has 2 trials, 1001 with those of trials, at most 1000; list fewer values, or have a search draw them (its sampler `grid` goes through all)"),
        ({"study": "x" * 60, "search": {**SEARCH, "confirm": 1}}, "study: has 60 characters, at most 55 if it is confirmed as NAME-confirm; shorten it"),
    ],
)  # fmt: skip
def test_values_and_sizes_have_bounds(changes: dict[str, Any], problem: str) -> None:
    began = time.process_time()
    assert problem in problems(**changes)
    assert time.process_time() - began < 20


def test_a_value_that_contains_itself() -> None:
    spec = minimal()
    spec["views"] = spec
    with pytest.raises(StudyError, match=f"is nested more than {MAX_DEPTH} levels deep"):
        parse(spec)


def test_what_a_study_of_the_largest_size_may_be() -> None:
    """The bounds themselves are allowed, and a billion values of a setting that a search draws cost nothing."""
    grid = {"method": [{"name": "supervised"}], "train.lr": [0.2 + place / 1e4 for place in range(1000)]}
    space = {"train.iterations": {"int": [1, 2**62]}, "data.labelled": {"int": [1, BILLION]}}
    search = {**SEARCH, "trials": 9000, "space": space, "sampler": "grid"}
    began = time.process_time()
    study = parse(minimal(grid=grid, search=search, splits=list(range(1000)), resources={"workers": [1, 2]}))
    assert study.num_trials == 10_000 and len(study.planned_iterations()) == 10_000
    assert time.process_time() - began < 40


@pytest.mark.parametrize(
    "name",
    [
        "a\n",
        "\na",
        "a\nb",
        "mlflow.db",
        "mlflow.db-wal",
        "artifacts",
        "",
        ".",
        "..",
        "a/b",
        "-a",
        "A",
        "é",
        "a" * 64,
        "a\0",
        "１",
    ],
)
def test_names_that_no_study_may_have(name: str) -> None:
    assert not is_study_name(name)
    assert any(problem.startswith("study: ") for problem in problems(study=name))


@pytest.mark.parametrize("name", ["a", "0", "mlflow", "artifacts-2", "my.db", "a" * 63])
def test_names_that_a_study_may_have(name: str) -> None:
    assert is_study_name(name) and parse(minimal(study=name)).name == name


def test_what_mlflow_has_in_a_storage_is_no_name(tmp_path: Path) -> None:
    """By what MLflow and SQLite make there."""
    from mlflow import MlflowClient

    from css_ray.tracking import default_uri
    from css_ray.tracking.client import connect

    client: MlflowClient = connect(default_uri(tmp_path))
    client.create_experiment("x")
    made = [path.name for path in tmp_path.iterdir()]
    assert "mlflow.db" in made and not any(map(is_study_name, made))


def test_a_message_is_bounded_however_much_is_wrong() -> None:
    with pytest.raises(StudyError) as caught:
        parse({**minimal(), **{f"x{place}": "y" * 10_000 for place in range(500)}, "seed": "z" * 10_000})
    text = str(caught.value)
    assert text.startswith("501 problems in the study:") and text.endswith("  and 481 more") and len(text) < 10_000


@pytest.mark.parametrize(
    "value", ["study", 1, [1], [[1]], {"x": 1}, [{"x": 1}], [["css"]], {"name": ["css"]}, [{"name": ["css"]}], None, "", [None]]
)
@pytest.mark.parametrize("place", ["study", "trials", "method", "grid", "grid__method", "search", "splits", "table__columns"])
def test_anything_in_the_place_of_a_name_or_a_section(place: str, value: Any) -> None:
    """Most is refused; nothing ends in another exception."""
    spec = minimal()
    above, _, key = place.rpartition("__")
    (spec.setdefault(above, {}) if above else spec)[key] = value
    try:
        parse(spec)
    except StudyError as error:
        assert all("Error" not in problem for problem in printed(error))


@pytest.mark.parametrize("value", [0.5, [1], ["css"], {"name": ["css"]}, None, [[]]])
@pytest.mark.parametrize("key", ["method", "pruners", "first", "space", "sampler", "trials"])
def test_anything_in_a_search(key: str, value: Any) -> None:
    with pytest.raises(StudyError):
        parse(minimal(search={**SEARCH, key: [value] if key in ("pruners", "first") else value}))
