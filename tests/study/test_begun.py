"""A study that an earlier version began keeps what that version meant by the settings that it does not name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from css_ray.methods import METHODS
from css_ray.study.begun import begun_definition
from tests.journals import Telling

CSS: dict[str, Any] = {"name": "css", "row": "CSS (mix)"}
SUPERVISED: dict[str, Any] = {"name": "supervised", "row": "Sup."}
EARLIER = {"method.name": "css", "method.valid_gate": None}  # and no label_grid, which it did not know


def begun(storage: Path, *trained: dict[str, Any], **spec: Any) -> list[tuple[str, Any, Any]]:
    """Name, label_grid and valid_gate of each trial of a study that resumes, of which trials with these settings have begun."""
    telling = Telling(storage / "s" / "journal.jsonl", study="s", search=None, **spec)
    telling.start()
    for index, config in enumerate(trained):
        telling.tell("trial_started", index, row="row", source="grid", params={}, config={"train.iterations": 100} | config)
    methods = [trial.settings["method"] for trial in begun_definition("s", str(storage)).grid_trials()]
    return [(method["name"], method.get("label_grid"), method.get("valid_gate")) for method in methods]


def test_what_was_trained_on_the_old_grid_goes_on_there(tmp_path: Path) -> None:
    grid = {"method": [SUPERVISED, CSS, {**CSS, "row": "mine", "label_grid": "aligned", "valid_gate": "similarity"}]}
    assert begun(tmp_path, EARLIER, grid=grid) == [
        ("supervised", None, None), ("css", "corner", None), ("css", "aligned", "similarity")
    ]  # fmt: skip


def test_a_preset_keeps_its_values(tmp_path: Path) -> None:
    grid = {"method": [CSS, {**CSS, "row": "published", "preset": "published"}]}
    assert begun(tmp_path, EARLIER, grid=grid) == [("css", "corner", None), ("css", "corner", "confidence")]


def test_listed_trials_and_searches_as_well(tmp_path: Path) -> None:
    assert begun(tmp_path / "a", EARLIER, grid=None, trials=[{"method": CSS}]) == [("css", "corner", None)]
    telling = Telling(tmp_path / "b" / "s" / "journal.jsonl", study="s", grid=None)
    telling.start()
    telling.tell(
        "trial_started",
        0,
        row="row",
        source="search",
        params={"method.temperature": 0.2},
        config={"train.iterations": 100} | EARLIER,
    )
    drawn = begun_definition("s", str(tmp_path / "b")).search_trial(1, {"method.temperature": 0.5})
    assert (drawn.settings["method"]["label_grid"], drawn.settings["method"]["valid_gate"]) == ("corner", None)


def test_what_this_version_began_or_nobody_trained_is_as_the_file_says(tmp_path: Path) -> None:
    now = {f"method.{field}": getattr(METHODS["css"].Config(), field) for field in ("label_grid", "valid_gate")}
    for number, trained in enumerate(([], [{"method.name": "supervised"}], [{"method.name": "css", **now}])):
        assert begun(tmp_path / str(number), *trained, grid={"method": [CSS]}) == [("css", "aligned", "auto")]
