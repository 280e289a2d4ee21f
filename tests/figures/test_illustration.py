"""The figures of a study: which rows, images and weights they are of, and what is refused or left out."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from css_ray import Study
from css_ray.data.shards import open_dataset
from css_ray.figures import paper
from css_ray.figures.draw import coloured
from css_ray.figures.paper import (
    Candidate,
    Examined,
    NoPixelError,
    TwoSpaces,
    captions,
    qualitative,
    similarity_against_confidence,
)
from css_ray.illustration import Illustration
from css_ray.matrices import ImageMatrices
from css_ray.methods.css import CSS
from css_ray.selection import load_model
from css_ray.study.inputs import prepare
from css_ray.study.run import method_config, run_spec
from css_ray.training.best import best_tensors, read_best, write_best
from tests.cli.made_up import Journal, call, refused
from tests.prediction.trained import train_study

torch.set_num_threads(1)

NAMES = ["pseudo-labels", "similarity-confidence", "confusing-regions", "qualitative"]


def illustrate(**settings: Any) -> Illustration:
    return Study.open("small").illustrate(**{"examine": 12, **settings})


def figure(of: Illustration, name: str) -> Any:
    (found,) = (each.figure for each in of.drawings if each.name == name)
    return found


def shown(of: Any) -> list[str]:
    """The names beside the rows."""
    return [axes.get_ylabel() for axes in of.axes if axes.get_ylabel()]


def image_iou(truth: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> float:
    ious = []
    for each in sorted(set(truth.ravel().tolist()) - {255}):
        true, seen = truth == each, (found == each) & (truth != 255)
        ious.append((true & seen).sum() / (true | seen).sum())
    return 100 * float(np.mean(ious))


def test_the_four_figures_of_a_study(here: Path) -> None:
    of = illustrate()
    assert [each.name for each in of.drawings] == NAMES and of.remarks == ()
    assert of.about["study"] == "small" and of.about["split"].startswith("0 (")
    written = {path.name for path in of.write("figures")}
    assert written == {f"{name}.{suffix}" for name in NAMES for suffix in ("png", "pdf")} | {"captions.md"}
    assert all(Path("figures", name).stat().st_size > 500 for name in written)
    text = Path("figures/captions.md").read_text()
    assert all(f"`{name}`: " in text for name in NAMES)
    again = illustrate()
    assert [each.caption for each in again.drawings] == [each.caption for each in of.drawings]
    assert [each.encoded("png") for each in again.drawings] == [each.encoded("png") for each in of.drawings]


def test_qualitative_images_are_chosen_by_the_difference_of_two_rows(here: Path, data: Path) -> None:
    """By a plain loop over all validation images: predict each with both models, and rank."""
    of = illustrate(images=3)
    picture = figure(of, "qualitative")
    titles = [axes.get_title() for axes in picture.axes if axes.get_title()]
    assert titles[:2] == ["image", "ground truth"] and titles[2] == "Sup." and titles[-1] == "CSS (mix)"
    val, models = open_dataset(data).val, [load_model(f"small:{trial}/0") for trial in (0, 1)]
    gains, predicted = [], []
    for index in range(len(val)):
        sample = val[index]
        assert sample.mask is not None
        maps = [model.predict(sample.image.unsqueeze(0)).classes[0].numpy() for model in models]
        predicted.append(maps)
        truth = sample.mask.numpy()
        gains.append(image_iou(truth, maps[1]) - image_iou(truth, maps[0]))
    order = sorted(range(len(val)), key=lambda index: -gains[index])
    expected = [order[0], order[round((len(order) - 1) / 2)], order[-1]]
    assert shown(picture) == [f"{val.ids[index]} ({gains[index]:+.1f})" for index in expected]
    palette = models[0].palette
    for row, index in enumerate(expected):
        panels = [picture.axes[row * 4 + column].images[0].get_array() for column in range(4)]
        sample = val[index]
        assert sample.mask is not None
        assert np.array_equal(panels[0], sample.image.permute(1, 2, 0).numpy())
        assert np.array_equal(panels[1], coloured(sample.mask.numpy(), palette))
        assert np.array_equal(panels[2], coloured(predicted[index][0], palette))
        assert np.array_equal(panels[3], coloured(predicted[index][1], palette))


def test_pseudo_labels_are_of_unlabelled_images_by_their_disagreement(here: Path, data: Path) -> None:
    picture = figure(illustrate(examine=10_000, images=2), "pseudo-labels")
    study, train, model = Study.open("small"), open_dataset(data).train, load_model("small:1/0")
    trial = study.definition.grid_trials()[1]
    unlabelled = prepare(run_spec(study.definition, trial, 0)).split.unlabelled
    shares = {}
    for id, index in zip(unlabelled, train.positions(unlabelled), strict=True):
        images = train[index].image.unsqueeze(0) / 255
        with torch.no_grad():
            maps = CSS.both_spaces(method_config(trial.settings), model.predictor, model.spaces[0], images)
        shares[id] = (maps.logit_labels != maps.representation_labels).double().mean().item()
    order = sorted(unlabelled, key=lambda id: -shares[id])
    assert shown(picture) == [f"{id} ({100 * shares[id]:.0f} %)" for id in (order[0], order[-1])]


def test_rows_split_and_class_are_chosen(here: Path) -> None:
    of = illustrate(rows=["CSS (mix)", "Sup."], split=1, class_name="background", images=1)
    titles = [axes.get_title() for axes in figure(of, "qualitative").axes if axes.get_title()]
    assert titles == ["image", "ground truth", "CSS (mix)", "Sup."]
    assert of.about["split"].startswith("1 (")
    assert "that CSS (mix) predicts as background in 12 of the 200 validation images" in of.drawings[1].caption
    alone = illustrate(rows=["Sup."])
    assert [axes.get_title() for axes in figure(alone, "qualitative").axes if axes.get_title()] == [
        "image",
        "ground truth",
        "Sup.",
    ]
    # The spaces of a row that was not chosen are shown, since the chosen one has none.
    assert [each.name for each in alone.drawings] == NAMES


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rows": ["Oops"]}, "small has no row 'Oops' with a finished run; choose from Sup., CSS (mix)"),
        ({"against": "Oops"}, "small has no row 'Oops' with a finished run; choose from Sup., CSS (mix)"),
        ({"split": 7}, "split 7 has no finished run of all these rows; choose from 0, 1"),
        ({"column": "x"}, "small has no column 'x'"),
        ({"images": 0}, "images and examine must be at least 1, got 0 and 12"),
        ({"examine": 0}, "images and examine must be at least 1, got 3 and 0"),
        ({"class_name": "nine"}, "unknown class 'nine'; the classes are background"),
    ],
)
def test_what_is_unknown_is_refused(here: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as found:
        illustrate(**settings)
    assert message in str(found.value)


def test_the_command_refuses_the_same(here: Path) -> None:
    assert "unknown class 'nine'" in refused("study", "figures", "small", "--class", "nine", "--examine", "4")
    assert "has no row 'Oops'" in refused("study", "figures", "small", "--row", "Oops")
    assert "small" in refused("study", "figures", "smal")
    Path("taken").write_text("")
    assert "--out" in refused("study", "figures", "small", "--examine", "4", "--out", "taken/figures")


def test_the_command_writes_what_it_lists(here: Path) -> None:
    result = call("study", "figures", "small", "--examine", "6", "--images", "1", "--out", "a folder")
    assert result.exit_code == 0, result.output
    paths = [line.strip("'") for line in result.output.splitlines() if line.startswith("'a folder")]
    assert len(paths) == 9 and all(Path(path).is_file() for path in paths)


def test_a_study_without_a_finished_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    journal = Journal()
    journal.begin(0)
    assert "no run has begun, so a table would be empty; run the study first" in refused("study", "figures", "small")
    journal.run(0, 0, end="failed")
    assert "small has no finished run to show (it is " in refused("study", "figures", "small")


def test_what_is_missing_is_left_out_and_named(here: Path) -> None:
    shutil.rmtree("runs/small/matrices")
    of = illustrate()
    assert [each.name for each in of.drawings] == NAMES[:3]
    assert of.remarks == ("Figure 6 (qualitative) is left out: Sup. has kept no confusion matrices of its validation images",)
    folder = Path("runs/small/models/trial_0001/split_0")
    kept = read_best(folder)
    write_best(folder, kept.predictor.state_dict(), kept.best)  # as earlier versions did
    result = call("study", "figures", "small", "--examine", "4")
    assert result.exit_code == 1 and "no figure could be drawn" in result.output
    said = " ".join(result.output.split())
    assert "small:1/0 was trained by an earlier version, which kept no prototypes; run the study again" in said


def test_weights_that_are_gone_or_damaged(here: Path) -> None:
    with Path("runs/small/models/trial_0000/split_0/best.pt").open("r+b") as file:
        file.seek(100)
        file.write(b"\0\0\0")
    of = illustrate()
    assert [each.name for each in of.drawings] == NAMES[:3] and "has the SHA-256" in of.remarks[0]
    shutil.rmtree("runs/small/models")
    result = call("study", "figures", "small", "--examine", "4")
    assert result.exit_code == 1 and "are not in" in result.output and "no figure could be drawn" in result.output


def test_other_data_is_refused(here: Path, data: Path, tmp_path: Path) -> None:
    folder = Path("runs/small/models/trial_0001/split_0")
    kept = read_best(folder)
    for split in (0, 1):
        write_best(
            folder.parent / f"split_{split}", kept.predictor.state_dict(), dataclasses.replace(kept.best, content="0" * 64)
        )
    result = call("study", "figures", "small", "--examine", "4")
    assert result.exit_code == 1 and "no figure could be drawn" in result.output
    assert "is not the one that small:1/0 was trained on; restore it" in result.output


def test_names_stay_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    monkeypatch.chdir(tmp_path)
    rows = ["$\\frac{1}{0}$ <script>", "_a_ | **b** [c](d)"]
    grid = {"method": [
        {"name": "supervised", "row": rows[0]}, {"name": "css", "row": rows[1], "num_queries": 8, "num_negatives": 8}
    ]}  # fmt: skip
    train_study(tmp_path / "runs", data, grid=grid, splits=[0])
    of = illustrate()
    assert of.write("figures") and len(of.drawings) == 4
    text = captions(of.drawings, of.about)
    assert "\\_a\\_ \\| \\*\\*b\\*\\* \\[c](d)" in text and "&lt;script>" in text
    page = Study.open("small").report(pictures=of)
    assert "<script>" not in page


def test_the_report_page_takes_the_figures(here: Path) -> None:
    plain = Study.open("small").report()
    assert "css-ray study report small --pictures" in plain and "<img" not in plain
    result = call("study", "report", "small", "--pictures", "--out", "page.html", "--device", "cpu")
    assert result.exit_code == 0, result.output
    page = Path("page.html").read_text()
    assert page.count('<img src="data:image/webp;base64,') == 4 and page.count("alt=") >= 4
    assert "img-src data:" in page and "study report small --pictures" not in page


def test_a_split_that_changed_since_is_not_shown(here: Path) -> None:
    folder = Path("runs/small/models/trial_0001/split_0")
    kept = read_best(folder)
    write_best(folder, best_tensors(kept.predictor, kept.space), dataclasses.replace(kept.best, split_hash="1" * 64))
    of = illustrate()
    assert of.drawings == () and "split 0 no longer has the images that small:1/0 was trained on" in of.remarks[0]


def test_matrices_of_another_evaluation_choose_no_images(here: Path) -> None:
    shutil.copy("runs/small/matrices/trial_0001/split_0/best.npz", "runs/small/matrices/trial_0000/split_0/best.npz")
    of = illustrate()
    assert [each.name for each in of.drawings] == NAMES[:3]
    assert "the confusion matrices of Sup. are of another evaluation" in of.remarks[0]


def test_the_spaces_are_those_of_the_best_row_that_has_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    """Also if it is the base, has other labels than the last row, or the better one cannot be used."""
    monkeypatch.chdir(tmp_path)
    css = {"name": "css", "num_queries": 8, "num_negatives": 8}
    grid = {"method": [{**css, "row": "CSS A"}, {**css, "row": "CSS B", "contrast_weight": 0.0}]}
    journal = train_study(tmp_path / "runs", data, grid=grid, splits=[0])
    scores = {trial: metrics["val/miou"] for trial, metrics in _last(journal).items()}
    better, worse = ("CSS A", "CSS B") if scores[0] >= scores[1] else ("CSS B", "CSS A")
    for settings, row in (({}, better), ({"rows": ["CSS A", "CSS B"]}, "CSS B"), ({"rows": ["CSS B", "CSS A"]}, "CSS A")):
        assert illustrate(**settings).drawings[0].caption.startswith(f"Pseudo-labels of {row} ")
    shutil.rmtree(f"runs/small/models/trial_000{'AB'.index(better[-1])}")
    of = illustrate()
    assert of.drawings[0].caption.startswith(f"Pseudo-labels of {worse} ")
    assert any(remark.startswith(f"Figures 3 to 5 are not of {better}: the weights of") for remark in of.remarks)


def _last(journal: Journal) -> dict[int, dict[str, float]]:
    events = [json.loads(line) for line in journal.path.read_text().splitlines()]
    return {event["trial"]: event["last"] for event in events if event["event"] == "run_finished"}


def test_figures_that_are_left_out_leave_no_file_of_before(here: Path) -> None:
    assert Path("figures/qualitative.png") in illustrate().write("figures")
    shutil.rmtree("runs/small/matrices")
    illustrate().write("figures")
    assert {path.name for path in Path("figures").iterdir() if path.stem == "qualitative"} == set()


@pytest.mark.parametrize("error", [KeyError("memory"), RuntimeError("boom"), torch.OutOfMemoryError("CUDA out of memory")])
def test_a_method_that_fails_to_show_its_spaces_leaves_the_rest(
    here: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*arguments: Any) -> Any:
        raise error

    monkeypatch.setattr(CSS, "both_spaces", classmethod(fails))
    of = illustrate()
    assert [each.name for each in of.drawings] == ["qualitative"]
    assert of.remarks[0].startswith("Figures 3 to 5 are not all drawn (CSS (mix), method css): ")
    assert ("--device cpu" in of.remarks[0]) == isinstance(error, torch.OutOfMemoryError)


@pytest.mark.parametrize("error", [RuntimeError("boom"), torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_a_network_that_fails_to_predict_leaves_the_rest(here: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails(*arguments: Any) -> Any:
        raise error

    monkeypatch.setattr(paper, "_predicted", fails)
    of = illustrate()
    assert {each.name for each in of.drawings} == set(NAMES) - {"qualitative"}
    (remark,) = (remark for remark in of.remarks if remark.startswith("Figure 6 (qualitative) is left out: "))
    assert ("--device cpu" in remark) == (not str(error).startswith("boom"))


def examined(labels: list[int], confidence: list[float], cosine: list[float], every: int = 1) -> Examined:
    given = (np.array(values, kind) for values, kind in ((labels, np.uint8), (confidence, np.float32), (cosine, np.float32)))
    return Examined([0, 1], [0.0, 0.0], *given, every)  # type: ignore[call-arg, arg-type]


def of_css(here: Path, data: Path) -> tuple[TwoSpaces, Any]:
    model, trial = load_model("small:1/0"), Study.open("small").definition.grid_trials()[1]
    return TwoSpaces("CSS", model, CSS, method_config(trial.settings)), open_dataset(data).val


def test_the_relation_is_of_the_class_that_is_predicted_second_most_often(here: Path, data: Path) -> None:
    of, val = of_css(here, data)
    names = of.model.best.class_names
    found = examined(
        [0] * 5 + [2] * 3 + [1] * 2, [0.9] * 5 + [0.2, 0.8, 0.6] + [0.5] * 2, [0.0] * 5 + [0.1, 0.7, 0.4] + [0.3] * 2, 4
    )
    drawn = similarity_against_confidence(of, val, found, None)
    assert f"predicts as {names[2]}, the class that it predicts second most often, in 2 of the 200" in drawn.caption
    # Fewer than FEWEST pixels in every window: the widest has them all.
    assert "(a) The 3 pixels with a confidence from 0.00 to 1.00: their similarity is from 0.10 to 0.70." in drawn.caption
    assert "(at least one pixel of 4)" in drawn.caption
    assert f"correlation over all these pixels is {np.corrcoef([0.2, 0.8, 0.6], [0.1, 0.7, 0.4])[0, 1]:.2f}." in drawn.caption
    only = similarity_against_confidence(of, val, examined([1], [0.5], [0.3]), None)
    assert (
        f"predicts as {names[1]}, the class that it predicts most often, in" in only.caption
        and "The 1 pixel with" in only.caption
    )


@pytest.mark.parametrize(
    ("cosines", "message"),
    [
        ([0.5, 0.4], "predicts no pixel of the images that were looked at as"),
        ([0.0, 0.0], "has no prototype of"),
        ([float("nan"), 0.3], "has no prototype of"),
    ],
)
def test_a_class_that_cannot_be_compared_is_named(here: Path, data: Path, cosines: list[float], message: str) -> None:
    of, val = of_css(here, data)
    names = of.model.best.class_names
    wanted = names[3] if cosines[0] == 0.5 else names[2]
    with pytest.raises(NoPixelError, match=f"CSS {message} {wanted}; choose another class"):
        similarity_against_confidence(of, val, examined([2, 2], [0.5, 0.6], cosines), wanted)


def test_validation_images_without_any_label_are_not_ranked(here: Path, data: Path) -> None:
    val, models = open_dataset(data).val, [load_model(f"small:{trial}/0") for trial in (0, 1)]
    names = models[0].best.class_names
    void = ImageMatrices(val.ids, names, *(np.empty(0, np.int64) for _ in range(3)))
    candidates = [Candidate(row, model, void, None) for row, model in zip("ab", models, strict=True)]
    with pytest.raises(ValueError, match="another evaluation"):
        qualitative(candidates, val, 3)
    one = ImageMatrices(val.ids, names, np.array([7]), np.array([0]), np.array([9]))
    candidates = [Candidate(row, model, one, 100.0) for row, model in zip("ab", models, strict=True)]
    drawn = qualitative(candidates, val, 3)
    assert "among the only labelled validation image. " in drawn.caption and drawn.caption.endswith(
        f"From the top: {val.ids[7]}."
    )
