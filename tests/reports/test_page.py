"""The report page: what it shows of a study, that it is text alone whatever the journal holds, and that it loads nothing."""

from __future__ import annotations

import html
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from css_ray import Study
from css_ray.events import StudyFinished
from css_ray.matrices import ImageMatrices, write_matrices
from css_ray.reporting import Reported, report_html
from css_ray.reports import search_charts
from css_ray.reports.charts import COLOURS, Figure, confusion, confusions
from css_ray.reports.picture import Picture
from css_ray.reports.search_charts import Tried
from css_ray.study.definition import read
from tests.cli.made_up import SEARCH, SPEC, Journal, call, refused

CLASSES = ("sky", "road", "tree")
MARKUP = "<script>alert(1)</script> & \"Co\" <img src=x onerror='alert(2)'>"
SECTIONS = ["verdict", "table", "splits", "curves", "search", "pseudo-labels", "classes", "pictures", "provenance", "again"]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CSS_RAY_STORAGE", raising=False)


def ious(score: float) -> dict[str, float]:
    return {f"val/iou/{name}": score + place for place, name in enumerate(CLASSES)}


def small(**sections: Any) -> Journal:
    """Two rows on two splits, 1.5 and 0.5 points apart."""
    journal = Journal(**sections)
    journal.whole(0, {0: 40.0, 1: 60.0}, metrics=ious(40.0))
    journal.whole(1, {0: 41.5, 1: 60.5}, metrics=ious(41.0))
    return journal


class Read(HTMLParser):
    """The page as a browser takes it: elements with their attributes, and the text outside of styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.shown: list[str] = []
        self._style = False
        self.feed(page)
        self.text = " ".join(" ".join(self.shown).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._style = False

    def handle_data(self, data: str) -> None:
        if not self._style:
            self.shown.append(data)

    def values(self, name: str) -> list[str]:
        return [value for _, attributes in self.elements if (value := attributes.get(name)) is not None]


def check_self_contained(page: str) -> Read:
    """No element that runs or loads anything, no attribute that points elsewhere, and an alt text for each chart."""
    found = Read(page)
    tags = {tag for tag, _ in found.elements}
    assert not tags & {"script", "iframe", "img", "image", "link", "object", "embed", "base", "form", "use", "foreignobject"}
    names = {name for _, attributes in found.elements for name in attributes}
    assert not [name for name in names if name.startswith("on")] and "src" not in names
    assert all(value.startswith("#") for name in ("href", "xlink:href") for value in found.values(name))
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", page) and "@import" not in page
    drawn = [attributes for tag, attributes in found.elements if attributes.get("role") == "img"]
    assert len(drawn) == sum(tag == "svg" for tag, _ in found.elements) > 0
    assert all(len(attributes["aria-label"] or "") > 40 for attributes in drawn)
    ids = found.values("id")
    assert len(ids) == len(set(ids))  # those of one chart are not taken for those of another
    assert len(page.encode()) < 2e6
    return found


def test_sections_and_numbers_are_those_of_the_table() -> None:
    small().write(StudyFinished(time=2000.0, status="finished", best_trial=1))
    result = call("study", "report", "small")
    assert result.exit_code == 0 and "wrote report.html" in result.output, (result.output, result.exception)
    page = Path("report.html").read_text()
    found = check_self_contained(page)
    assert [name for name in found.values("id") if name in SECTIONS] == SECTIONS
    # 50 and 51 over the splits, 1.5 and 0.5 between them: by hand.
    assert "CSS (mix) has the highest mean val/miou, 51.00 ± 13.44 % over 2 splits, 1.00 points above Sup." in found.text
    assert "better on 2 of 2 splits" in found.text and "has no confusion matrices of its images" in found.text
    for arguments in (["table", "small", "--against", "Sup."], ["compare", "small"]):
        listed = call("study", *arguments, "--format", "md").stdout
        cells = [cell.strip().strip("*") for line in listed.splitlines() if line[:2] == "| " for cell in line.split("|")[1:-1]]
        assert len(cells) > 6 and all(cell in found.text for cell in cells), cells
    assert "Sup.: split 0 40.00, split 1 60.00" in " ".join(found.values("aria-label"))
    for class_name, mean in zip(CLASSES, ("41.00", "42.00", "43.00"), strict=True):
        assert f"{class_name} 40.00 ± 0.00" in found.text or f"{class_name} {mean} ± 0.00" in found.text
    assert "is running" not in found.text


def test_a_command_of_the_page_trains_the_best_run_and_its_file_is_the_study(tmp_path: Path) -> None:
    small()
    found = Read(Study.open("small").report())
    assert "css-ray train small --trial 1 --split 0" in found.text
    spec = next(text for text in found.shown if text.lstrip().startswith("{"))
    Path("small.yaml").write_text(spec)
    begun = Study.open("small").definition
    assert json.loads(spec) == begun.resolved() and read("small.yaml").resolved() == begun.resolved()
    assert "css-ray study run small.yaml --storage again" in found.text


def test_a_study_that_runs_is_reported_as_far_as_it_is() -> None:
    journal = Journal()
    journal.whole(0, {0: 40.0, 1: 60.0})
    journal.begin(1)
    journal.run(1, 0, 45.0)
    journal.run(1, 1, end="running")
    found = check_self_contained(Study.open("small").report())
    assert "small is running: 3 of 4 runs have ended" in found.text
    assert "Sup. has the highest mean val/miou, 50.00 ± 14.14 % over 2 splits" in found.text
    assert "no other row has finished on all its splits" in found.text
    assert "45.00 (n=1 of 2)" in found.text and "split 1 has not finished" in found.text


def test_without_a_row_that_finished_on_all_splits() -> None:
    journal = Journal()
    journal.begin(0)
    journal.run(0, 1, 45.0)
    found = Read(Study.open("small").report())
    assert (
        "No row has finished on all its splits yet; the fullest is Sup. with a mean val/miou of 45.00 (n=1 of 2)" in found.text
    )


def test_a_study_without_a_finished_run_is_refused() -> None:
    journal = Journal()
    journal.begin(0)
    journal.run(0, 0, end="failed")
    said = " ".join(refused("study", "report", "small").split())
    assert "small has no finished run to report (it is running; 1 run began)" in said and "css-ray study status small" in said
    assert not Path("report.html").exists()
    small(study="other")
    assert "small has no finished run" in refused("study", "report", "other", "small")


def test_what_cannot_be_reported_is_refused() -> None:
    small()
    assert "no study other in runs" in refused("study", "report", "small", "other")
    assert "small is given twice" in refused("study", "report", "small", "small")
    assert "has no row 'CPS' to compare with; choose one of Sup., CSS (mix)" in refused(
        "study", "report", "small", "--against", "CPS"
    )
    small(study="wide", table={"columns": "data.labelled"}, grid={"data.labelled": [12], **SPEC["grid"]})
    assert "small none, wide data.labelled" in refused("study", "report", "small", "wide")
    assert "--out" in refused("study", "report", "small", "--out", "missing/report.html")
    Path("taken").write_text("")
    assert "--figures" in refused("study", "report", "small", "--figures", "taken/below")


@pytest.mark.parametrize(
    "text", [MARKUP, "& < > ' \"", "]]></style><svg onload=alert(3)>", "\u202emoc \x9b31m", "{{ 7*7 }}{% x %}"]
)
def test_whatever_a_journal_holds_is_text(text: str) -> None:
    """As a row's name, a class's, a reason's, a description and a data set's path."""
    rows = [{**method, "row": f"{number} {text}"} for number, method in enumerate(SPEC["grid"]["method"])]
    journal = Journal(grid={"method": rows}, description=text, data={**SPEC["data"], "root": f"/data/{text}"})
    for trial, score in enumerate((40.0, 50.0)):
        journal.begin(trial)
        metrics = {f"val/iou/{text}": score, "val/iou/road": 3.0}
        metrics |= {"pseudo/kept/" + text: 50.0, "pseudo/miou/" + text: 40.0, f"pseudo/iou/{text}/{text}": 40.0}
        journal.run(trial, 0, score, class_names=(text, "road"), metrics=metrics)
        keep(trial, 0, (text, "road"))
        journal.run(trial, 1, end="failed")
        journal.end(trial, {0: score}, "partial", f"split 1: {text}")
    page = Study.open("small").report()
    found = check_self_contained(page)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", page)
    shown = text if text.isprintable() else "\\u202emoc \\x9b31m"
    shown = " ".join(shown.split())
    assert f"1 {shown}" in found.text
    assert sum(shown in " ".join(label.split()) for label in found.values("aria-label")) >= 3


def keep(trial: int, split: int, names: tuple[str, ...]) -> None:
    """The matrices of one image with ten pixels right and five wrong."""
    cells = np.array([0, 1])
    found = ImageMatrices(("0",), names, np.zeros(2, np.int64), cells, np.array([10, 5]))
    write_matrices(Path("runs", "small", "matrices", f"trial_{trial:04d}", f"split_{split}"), "last", found)


def test_several_studies_in_one_table() -> None:
    small()
    other = Journal(study="other", splits=[0, 1, 2])
    other.whole(0, {0: 50.0, 1: 70.0, 2: 60.0})
    result = call("study", "report", "small", "other", "--out", "both.html")
    assert result.exit_code == 0, (result.output, result.exception)
    found = check_self_contained(Path("both.html").read_text())
    assert "other: Sup. has the highest mean val/miou, 60.00 ± 10.00 % over 3 splits" in found.text
    assert "10.00 points above small: Sup." in found.text and "over n=2 to 3 splits" in found.text
    # Each study has its own splits: the third is not missed in the one of two.
    assert "50.00 ± 14.14 2 –" in found.text and "(n=2 of 3)" not in found.text
    assert "css-ray train other --trial 0 --split 0" in found.text
    assert "51.00 points" not in found.text
    against = Study.open("small").report(Study.open("other"), against="other: Sup.")
    assert "-10.00" in Read(against).text


def test_rows_on_other_images_are_not_subtracted() -> None:
    small()
    other = Journal(study="other")
    other.whole(0, {0: 50.0, 1: 70.0}, split_hash="others")
    found = Read(Study.open("small").report(Study.open("other")))
    assert "There are no differences: other: Sup. and small: Sup. have different images on splits 0, 1" in found.text
    assert "it cannot be compared with the other rows" in found.text


def test_a_search_shows_its_trials_and_what_pruned_ones_cost() -> None:
    journal = Journal(grid={"method": SPEC["grid"]["method"][:1]}, search={**SEARCH, "trials": 30})
    journal.whole(0, {0: 40.0, 1: 60.0})
    for trial in range(1, 25):
        far = abs(trial - 12)
        journal.whole(trial, {0: 50.0 - far, 1: 70.0 - far}, {"method.temperature": 0.1 + 0.03 * trial})
    journal.begin(25, **{"method.temperature": 0.9})
    journal.run(25, 0, end="pruned")
    journal.end(25, {}, "pruned", "3.1 below the best trial")
    found = check_self_contained(Study.open("small").report())
    assert "CSS (mix) has the highest mean val/miou, 60.00 ± 14.14 % over 2 splits, the best of 24 trials" in found.text
    labels = " ".join(found.values("aria-label"))
    assert "Scatter plot of 24 trials (24 finished, 1 pruned). The best mean, 60.00, is that of trial 12." in labels
    assert "Parallel coordinates of 24 finished trials. The best is trial 12, 60.00: τ 0.46." in labels
    assert "Bar chart of the importance of each setting: τ 100 %." in labels  # there is one setting
    assert "Dots of the mean of 24 trials (24 finished) by each setting: τ from 0.13 to 0.82. The best mean" in labels
    # 24 trials of two splits of 6 steps, and 3 steps of the pruned one.
    assert "1 of 25 trials were pruned; they cost 3 of the 291 steps" in found.text
    few = Journal(study="few", grid={"method": SPEC["grid"]["method"][:1]}, search=SEARCH)
    few.whole(1, {0: 40.0, 1: 60.0}, {"method.temperature": 0.2})
    found = Read(Study.open("few").report())
    assert "needs 20 finished trials; 1 have finished" in found.text and "Dots of" not in " ".join(found.values("aria-label"))


SPACE = {
    "method.temperature": {"loguniform": [0.01, 10.0]},
    "method.valid_threshold": {"uniform": [0.1, 0.9]},
    "train.nesterov": {"choice": [True, False]},
    "model.head_convs": {"choice": [1, 2]},
}


def drawn_dots(svg: str) -> list[list[tuple[float, float, str]]]:
    """The dots of each small chart, the highest first: x and y in pixels, and what fills them."""
    panels = []
    for group in ElementTree.fromstring(svg).iter():
        if re.fullmatch(r".* concat_\d+_group", group.get("class", "")):
            dots = []
            for path in group.iter():
                place = re.fullmatch(r"translate\((.+),(.+)\)", path.get("transform", ""))
                if place and path.tag.endswith("path"):
                    dots.append((float(place[1]), float(place[2]), path.get("fill") or "none"))
            panels.append(sorted(dots, key=lambda dot: dot[1]))
    return panels


def test_slices_draw_each_tried_value() -> None:
    """The oracle is what the journal holds: places in pixels are linear in the values, or in their logarithms."""
    journal = Journal(grid=None, search={**SEARCH, "trials": 12, "space": SPACE})
    tried: list[tuple[dict[str, Any], float]] = []
    for trial in range(12):
        values = (0.01 * 1.7**trial, 0.1 + 0.37 * trial % 0.8, trial % 3 == 0, 1 + trial % 2)
        mean = 40.0 + 7 * trial % 11 + trial / 100
        drawn = dict(zip(SPACE, values, strict=True))
        tried.append((drawn, mean))
        if trial == 7:  # with one split that finished before it was pruned
            journal.begin(trial, **drawn)
            journal.run(trial, 0, mean)
            journal.run(trial, 1, end="pruned")
            journal.end(trial, {0: mean}, "pruned", "3.1 below the best trial")
        else:
            journal.whole(trial, {0: mean - 10, 1: mean + 10}, drawn)
    Study.open("small").report(figures="charts")
    panels = drawn_dots(Path("charts/slices.svg").read_text())
    tried.sort(key=lambda each: -each[1])
    means = [mean for _, mean in tried]
    assert len(panels) == len(SPACE)
    for path, panel in zip(SPACE, panels, strict=True):
        ring, dots = [dot for dot in panel if dot[2] == "none"], [dot for dot in panel if dot[2] != "none"]
        assert len(dots) == 12 and [dot[:2] for dot in ring] == [dots[0][:2]]
        assert [mean for dot, mean in zip(dots, means, strict=True) if dot[2] == "white"] == [45.07]  # 40 + 49 % 11 + 0.07
        settings = [drawn[path] for drawn, _ in tried]
        numbers = np.log(settings) if path == "method.temperature" else np.array(settings, float)
        for pixels, measured in ((1, means), (0, numbers)):
            found = np.array([dot[pixels] for dot in dots])
            slope, offset = np.polyfit(measured, found, 1)
            assert np.allclose(found, slope * np.array(measured) + offset, atol=1e-3) and (slope < 0) == (pixels == 1)


def test_slices_of_several_searches() -> None:
    for name in ("one", "other"):
        journal = Journal(study=name, grid=None, search=SEARCH)
        for trial, temperature in enumerate((0.2, 0.8)):
            journal.whole(trial, {0: 40.0 + trial, 1: 60.0}, {"method.temperature": temperature})
    found = check_self_contained(Study.open("one").report(Study.open("other"), figures="charts"))
    assert " ".join(found.values("aria-label")).count("by each setting: τ from 0.2 to 0.8. The best mean, 50.50,") == 2
    assert {path.name for path in Path("charts").glob("slices*.svg")} == {"slices-0.svg", "slices-1.svg"}


def slices(tried: list[Tried], *params: str) -> Figure | None:
    return search_charts.slices("slices", "val/miou", tried, params, {})


def test_slices_without_two_values_or_a_score() -> None:
    assert slices([], "a") is None
    assert slices([Tried(0, "failed", None, {"a": 1.0}), Tried(1, "failed", None, {"a": 2.0})], "a") is None
    assert slices([Tried(0, "finished", 50.0, {"a": 1.0})], "a") is None
    one = [Tried(trial, "finished", 50.0, {"a": 1.0, "b": trial}) for trial in range(3)]
    found = slices(one, "a", "b", "of the grid")
    assert found is not None and found.note == "The best finished trial has a ring. All trials have the same value of a."
    ((ring, *_),) = drawn_dots(found.svg())  # one chart; the means are equal, and so the first trial is the best
    assert "The best mean, 50.00, is that of trial 0: b 0." in found.alt and ring[1] > 0
    pruned = slices([Tried(trial, "pruned", 40.0 + trial, {"a": trial}) for trial in range(3)], "a")
    assert (
        pruned is not None
        and "best" not in pruned.alt + pruned.note
        and "(3 pruned) by each setting: a from 0 to 2." in pruned.alt
    )
    assert [fill for _, _, fill in drawn_dots(pruned.svg())[0]] == ["white"] * 3


def test_slices_of_choices_are_in_order_and_text() -> None:
    kinds = [None, 10, 2, MARKUP, "\u202emoc", 10.5]
    found = slices([Tried(trial, "finished", 50.0 + trial, {MARKUP: kind}) for trial, kind in enumerate(kinds)], MARKUP)
    assert found is not None and f"{MARKUP} 2 / 10 / 10.5 / {MARKUP} / None / \\u202emoc." in found.alt
    root = ElementTree.fromstring(found.svg())
    assert {element.tag.rpartition("}")[2] for element in root.iter()} == {"svg", "rect", "g", "path", "line", "text"}
    (panel,) = drawn_dots(found.svg())
    places = {kinds[place]: x for place, (x, _, _) in enumerate(reversed([dot for dot in panel if dot[2] != "none"]))}
    assert sorted(places, key=lambda kind: places[kind]) == [2, 10, 10.5, MARKUP, None, "\u202emoc"]


def test_slices_of_a_long_search_show_some_of_its_trials() -> None:
    tried = [Tried(trial, "finished", 50 - abs(trial - 1234) / 100, {"a": trial, "b": -trial}) for trial in range(4000)]
    found = slices(tried, "a", "b")
    assert found is not None and "Shown are 1,001 of 4,000 trials, evenly spaced in their order, and the best." in found.note
    assert "Dots of the mean of 4000 trials" in found.alt and "is that of trial 1234: a 1234, b -1234." in found.alt
    assert [len(panel) for panel in drawn_dots(found.svg())] == [1002, 1002] and len(found.svg()) < 1e6


def test_the_page_is_logged_to_mlflow_once_a_run_has_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    from css_ray import tracking

    sent: dict[str, str] = {}
    monkeypatch.setattr(tracking, "log_tables", lambda uri, study_id, files: sent.update(files))
    journal = Journal()
    journal.begin(0)
    journal.run(0, 0, end="running")
    Study.open("small")._log_report()
    assert sent == {}
    journal.run(0, 1, 60.0)
    Study.open("small")._log_report()
    assert sent == {"report.html": Study.open("small").report()}


def test_charts_are_files_for_a_paper() -> None:
    small()
    result = call("study", "report", "small", "--figures", "a/charts")
    assert result.exit_code == 0, (result.output, result.exception)
    files = {path.name: path.read_bytes() for path in Path("a/charts").iterdir()}
    assert {name for name in files if name.endswith(".svg")} == {"splits.svg", "curves.svg", "classes.svg"}
    for name, data in files.items():
        if name.endswith(".svg"):
            assert ElementTree.fromstring(data).tag.endswith("svg")
            assert files[name.replace("svg", "pdf")].startswith(b"%PDF-")


def test_a_confusion_matrix_by_hand() -> None:
    counts = np.array([[8, 2, 0], [1, 9, 0], [0, 0, 0]])
    assert confusions(counts, CLASSES, 5) == ["sky as road 20.0 %", "road as sky 10.0 %"]
    figure = confusion("confusion", "Sup.", counts, CLASSES)
    numbers = [
        text for element in ElementTree.fromstring(figure.svg()).iter() if (text := (element.text or "").strip()).isdigit()
    ]
    assert sorted(numbers, key=int) == ["10", "20", "80", "90"]
    many = np.eye(60, dtype=np.int64) * np.arange(60)
    assert (
        "Shown are the 40 classes with the most labelled pixels, of 60."
        in confusion("c", "r", many, [*map(str, range(60))]).note
    )


def test_a_page_of_many_trials_rows_and_classes_stays_small() -> None:
    names = tuple(f"class number {number}" for number in range(60))
    rows = [{"name": "supervised", "row": f"row {number}"} for number in range(14)]
    search = {**SEARCH, "trials": 80}
    journal = Journal(grid={"method": rows}, search=search)
    for trial in range(94):
        drawn = {"method.temperature": 0.1 + trial / 1000} if trial >= 14 else {}
        metrics = {f"val/iou/{name}": 50.0 for name in names} if trial < 14 else {}
        journal.whole(trial, {0: 40.0 + trial % 7, 1: 50.0}, drawn, class_names=names, metrics=metrics)
    page = Study.open("small").report()
    found = check_self_contained(page)
    assert "Shown are the 12 rows with the highest mean; the table has the other 3, too." in found.text
    assert "44 more are listed by css-ray study table small --trials" in found.text


def contrast(one: str, other: str) -> float:
    """Of WCAG 2."""

    def light(colour: str) -> float:
        digits = colour.lstrip("#")
        digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
        parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
        red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_enough() -> None:
    assert contrast("#000", "#fff") == pytest.approx(21)
    assert all(contrast(colour, "#fff") >= 3 for colour in COLOURS)  # WCAG 1.4.11, of lines and symbols
    small()
    style = Study.open("small").report().split("<style>")[1].split("</style>")[0]
    texts = re.findall(r"(?<![-\w])color: (#\w+)", style)
    grounds = ["#fff", *re.findall(r"background: (#\w+)", style)]
    assert len(texts) >= 3 and len(grounds) >= 3
    assert all(contrast(text, ground) >= 4.5 for text in texts for ground in grounds)  # WCAG 1.4.3


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
@pytest.mark.parametrize("width", [1400, 400])
def test_a_browser_shows_it_without_a_request_or_an_error(width: int, tmp_path: Path) -> None:
    from PIL import Image

    journal = small(description=MARKUP, search={**SEARCH, "trials": 4, "space": SPACE})
    for trial, values in enumerate([(0.01, 0.1, True, 1), (0.1, 0.3, False, 2), (1.0, 0.5, True, 2), (10.0, 0.9, False, 1)], 2):
        journal.whole(trial, {0: 40.0 + trial, 1: 60.0}, dict(zip(SPACE, values, strict=True)))
    page = tmp_path / "page.html"
    # A script of the test's own asks the browser how wide the page is, and what it has loaded.
    probe = (
        "<script>addEventListener('load', () => { document.title = JSON.stringify({wide: document.documentElement.scrollWidth, "
        "inner: innerWidth, loaded: performance.getEntriesByType('resource').filter(each => !each.name.startsWith('data:')).length, "
        "pictures: [...document.images].map(each => [each.naturalWidth, each.clientWidth, each.alt]), "
        "small: Math.min(...[...document.querySelectorAll('svg text')].filter(each => each.textContent)"
        ".map(each => each.getBoundingClientRect().height))}) })</script>"
    )
    encoded = io.BytesIO()
    Image.new("RGB", (1074, 500), (200, 40, 40)).save(encoded, "webp")
    shown = Picture("Predictions", 'Of <b>all</b> "images"', 'a "red" <area>', encoded.getvalue())
    plain = report_html([Reported(Study.open("small").standing, "runs")], pictures=[shown])
    page.write_text(plain)
    options = [
        "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},3000",
    ]  # fmt: skip

    def browse(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(CHROMIUM), *options, *more, page.as_uri()], check=True, capture_output=True, text=True, timeout=200
        )

    picture = tmp_path / "page.png"
    assert "CONSOLE" not in browse(f"--screenshot={picture}").stderr
    with Image.open(picture) as image:
        assert image.width == width and len(image.convert("L").getcolors() or ()) > 50
    policy = re.search(r"<meta http-equiv[^>]*>", plain)
    assert policy is not None
    page.write_text(plain.replace(policy[0], "").replace("</body>", f"{probe}</body>"))
    title = re.search(r"<title>(.*?)</title>", browse("--dump-dom").stdout)
    assert title is not None
    seen = json.loads(html.unescape(title[1]))
    assert seen["loaded"] == 0 and seen["wide"] <= seen["inner"], seen
    assert seen["small"] >= 9, seen  # pixels of the smallest text of a chart
    ((natural, wide, alt),) = seen["pictures"]
    assert natural == 1074 and min(natural, seen["inner"]) * 0.8 <= wide <= seen["inner"] and alt == 'a "red" <area>'
