"""Settings: each bound is held and named, all problems of a config in one error."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import pytest

from css_ray.config import Config, ConfigError, Problem, bounds_text, choices, knob, within


@dataclass(frozen=True, kw_only=True)
class Settings(Config):
    rate: float = knob(0.1, help="a rate", gt=0, le=1)
    steps: int = knob(10, help="steps", ge=1)
    kind: Literal["mix", "cross"] = knob("mix", help="a choice")
    sizes: tuple[int, ...] = knob([1, 2], help="sizes", ge=1)
    flag: bool = knob(True, help="a switch", ge=5)

    def problems(self) -> Iterator[Problem]:
        yield from super().problems()
        if self.steps == 13:
            yield Problem("steps", "must not be 13")


@dataclass(frozen=True, kw_only=True)
class Required(Config):
    root: str = knob(help="a folder")


def test_defaults_are_valid_and_hashable() -> None:
    assert hash(Settings()) == hash(Settings(sizes=(1, 2))) and Settings().sizes == (1, 2)


@pytest.mark.parametrize(
    ("field", "wrong", "right", "message"),
    [
        ("rate", 0.0, 1e-9, "rate must be > 0 and <= 1, got 0.0"),
        ("rate", 1.0001, 1.0, "rate must be > 0 and <= 1, got 1.0001"),
        ("rate", float("nan"), 0.5, "rate must be > 0 and <= 1, got nan"),
        ("rate", float("inf"), 0.5, "got inf"),
        ("steps", 0, 1, "steps must be >= 1, got 0"),
        ("steps", 13, 14, "steps must not be 13"),
        ("kind", "max", "cross", "kind must be one of mix, cross, got 'max'"),
        ("sizes", (3, 0, -1), (3, 4), r"sizes must be >= 1, got \(3, 0, -1\)"),
    ],
)
def test_bounds(field: str, wrong: object, right: object, message: str) -> None:
    assert getattr(Settings(**{field: right}), field) == right  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"^Settings: .*{message}$"):
        Settings(**{field: wrong})  # type: ignore[arg-type]


def test_all_problems_in_one_error_and_one_sentence_a_field() -> None:
    with pytest.raises(ConfigError) as error:
        Settings(rate=2.0, steps=-1, kind="no", sizes=(0, 0))  # type: ignore[arg-type]
    assert error.value.problems == (
        Problem("rate", "must be > 0 and <= 1, got 2.0"),
        Problem("steps", "must be >= 1, got -1"),
        Problem("kind", "must be one of mix, cross, got 'no'"),
        Problem("sizes", "must be >= 1, got (0, 0)"),
    )
    sentences = "rate must be > 0 and <= 1, got 2.0; steps must be >= 1, got -1; kind must be one of mix, cross, got 'no'"
    assert str(error.value) == f"Settings: {sentences}; sizes must be >= 1, got (0, 0)"
    # It crosses processes, such as from a worker to the driver.
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


def test_settings_are_frozen_keyword_only_and_may_be_required() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().rate = 0.5  # type: ignore[misc]
    with pytest.raises(TypeError):
        Settings(0.5)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="root"):
        Required()
    # A changed copy is checked as well.
    with pytest.raises(ValueError, match="rate"):
        dataclasses.replace(Settings(), rate=7.0)


def test_knob_keeps_help_and_bounds_for_the_reader_of_yaml() -> None:
    fields = {field.name: field.metadata for field in dataclasses.fields(Settings)}
    assert fields["rate"] == {"help": "a rate", "bounds": {"gt": 0, "le": 1}} and fields["kind"]["bounds"] == {}


@pytest.mark.parametrize(
    ("bound", "inside", "outside"), [("gt", 1.5, 1.0), ("ge", 1.0, 0.5), ("lt", 0.5, 1.0), ("le", 1.0, 1.5)]
)
def test_within_each_bound(bound: str, inside: float, outside: float) -> None:
    assert within(inside, {bound: 1.0}) and not within(outside, {bound: 1.0})
    assert not within(float("inf"), {}) and not within(float("nan"), {bound: 1.0})


def test_bounds_text() -> None:
    assert bounds_text({"gt": 0.0, "lt": 2.5}) == "> 0 and < 2.5"


def test_the_choices_of_an_annotation() -> None:
    assert choices(Literal["a", "b"]) == choices(Literal["a"] | Literal["b"]) == ("a", "b")
    assert choices(Literal["a"] | None) == ("a", None)
    # What also takes other values has no list of choices.
    assert choices(Literal["a"] | int) == choices(int | None) == choices(int) == choices(type(None)) == ()
