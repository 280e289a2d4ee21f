"""`css-ray train NAME`: one run of a study that has run, trained again and compared with its record."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.cli.made_up import SEARCH, SPEC, Journal, call, refused
from tests.places import Place

ON_SPLIT_1 = ("--split", "1", "--device", "cpu")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CSS_RAY_STORAGE", raising=False)


@pytest.fixture(scope="module")
def trained(data: Path) -> tuple[float, float, str]:
    """Last and best mIoU at temperature 0.3 on split 1 by the lower layers alone, and the hash of the split."""
    from css_ray.study.definition import parse
    from css_ray.study.inputs import prepare
    from css_ray.study.run import execute, run_spec
    from css_ray.training.reporter import SilentReporter

    method = {**SEARCH["method"], "temperature": 0.3}
    study = parse({**SPEC, "data": {**SPEC["data"], "root": str(data)}, "grid": {"method": [method]}})
    prepared = prepare(run_spec(study, study.grid_trials()[0], 1))
    fit = execute(prepared, SilentReporter())
    return fit.last["val/miou"], fit.best["val/miou"], prepared.split.hash


def studied(data: Path) -> Journal:
    return Journal(data={**SPEC["data"], "root": str(data)}, search=SEARCH)


def test_a_trial_of_a_search_is_trained_again_and_compared(data: Path, trained: tuple[float, float, str]) -> None:
    last, best, split_hash = trained
    journal = studied(data)
    journal.begin(2, **{"method.temperature": 0.3})
    journal.run(2, 1, last, best=best, split_hash=split_hash)
    result = call("train", "small", "--trial", "2", *ON_SPLIT_1)
    assert result.exit_code == 0, result.output
    assert "small trial 2 (CSS (mix)) split 1 on cpu" in result.output
    assert re.search(rf"^last +{last:.4f} +{last:.4f} +0$", result.output, re.M), result.output
    assert re.search(rf"^best +{best:.4f} +{best:.4f} +0$", result.output, re.M), result.output
    assert "equal: the run repeats the recorded values" in result.output and "not equal" not in result.output
    # What the study recorded of trial 3 was not trained with the temperature that trial 3 drew.
    journal.begin(3, **{"method.temperature": 0.9})
    journal.run(3, 1, last - 20, best=best, split_hash=split_hash)
    result = call("train", "small", "--trial", "3", *ON_SPLIT_1)
    found = re.search(rf"^last +{last - 20:.4f} +(\S+) +(\S+)$", result.output, re.M)
    assert found is not None and "not equal" in result.output, result.output
    assert float(found[2]) == pytest.approx(float(found[1]) - (last - 20), abs=0.01)


def test_a_run_without_a_value_says_so_and_is_trained_all_the_same(data: Path, trained: tuple[float, float, str]) -> None:
    journal = studied(data)
    journal.begin(2, **{"method.temperature": 0.3})
    journal.run(2, 1, end="failed", split_hash=trained[2])
    result = call("train", "small", "--trial", "2", *ON_SPLIT_1)
    said = (
        "warning: the study has no value to compare with: trial 2 on split 1 failed at step 4: loss 'sup' became nan at step 4"
    )
    assert result.exit_code == 0 and said in result.output and "recorded" not in result.output
    assert f"last {trained[0]:.2f} %, best {trained[1]:.2f} %" in result.output


def test_why_there_is_no_value(data: Path) -> None:
    from css_ray import Study
    from css_ray.study.rerun import run_of_study

    journal = studied(data)
    journal.begin(2, **{"method.temperature": 0.3})
    journal.run(2, 1, end="pruned")
    journal.end(2, {}, "pruned", "3.1 below the best trial")
    journal.begin(3, **{"method.temperature": 0.4})
    journal.run(3, 0, end="running")
    standing = Study.open("small").standing
    reasons = {place: run_of_study(standing, *place).missing for place in ((0, 1), (2, 1), (2, 0), (3, 0), (3, 1))}
    assert reasons == {
        (0, 1): "trial 0 has not run",  # of the grid, whose trials are known before they begin
        (2, 1): "trial 2 on split 1 pruned at step 3: 3.1 below the best trial",
        (2, 0): "split 0 has not run: trial 2 was pruned before it",
        (3, 0): "trial 3 on split 0 has not finished (step 0)",
        (3, 1): "split 1 has not run: trial 3 has not reached it",
    }
    assert run_of_study(standing, 3, 0).trial.settings["method"]["temperature"] == 0.4


def test_what_cannot_be_trained_again_is_refused(data: Path) -> None:
    journal = studied(data)
    assert "--trial 2: no trial has begun in small" in refused("train", "small", "--trial", "2")
    journal.begin(2, **{"method.temperature": 0.3})
    journal.run(2, 0, 40.0, split_hash="0123456789abcdef")
    assert "--trial 7: trials 0 to 2 have begun in small" in refused("train", "small", "--trial", "7")
    assert "--split 9: the study has the splits 0, 1" in refused("train", "small", "--split", "9")
    assert "--set: is for a study file; small has run" in refused("train", "small", "--set", "train.lr=0.1")
    assert "no study smal in runs; there are: small" in refused("train", "smal")
    changed = refused("train", "small", "--trial", "2", "--device", "cpu")
    assert "--split 0: its images are no longer those of the study" in changed and "was 0123456789ab" in changed
    assert str(data) in changed


def test_of_a_file_the_trials_of_the_grid_are_known(data: Path) -> None:
    spec = {**SPEC, "data": {**SPEC["data"], "root": str(data)}, "search": SEARCH}
    Path("study.yaml").write_text(yaml.safe_dump(spec))
    said = refused("train", "study.yaml", "--trial", "2")
    assert (
        "--trial 2: trials of the grid are 0 to 1; the others exist once the study has run: css-ray train small --trial 2"
        in said
    )
    Path("first.yaml").write_text(yaml.safe_dump({**spec, "search": {**SEARCH, "first": [{"method.temperature": 0.5}]}}))
    assert "trials of the grid and search.first are 0 to 2" in refused("train", "first.yaml", "--trial", "3")
    Path("drawn.yaml").write_text(yaml.safe_dump({key: value for key, value in spec.items() if key != "grid"}))
    assert "--trial 0: trials of a search exist once it has run: css-ray train small" in refused("train", "drawn.yaml")


def test_a_folder_that_cannot_be_written_is_refused_in_words(data: Path) -> None:
    Path("study.yaml").write_text(yaml.safe_dump({**SPEC, "data": {**SPEC["data"], "root": str(data)}}))
    Path("notes").write_text("mine")
    said = refused("train", "study.yaml", "--device", "cpu", "--out", "notes/run")
    assert "--out: cannot write notes/run: notes is a file, not a folder; choose another path" in said


def test_more_workers_than_one_are_a_warning(
    data: Path, trained: tuple[float, float, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from css_ray.training.loop import NonFiniteLossError

    def stop(*arguments: object, **settings: object) -> None:
        raise NonFiniteLossError("far enough for this test")

    monkeypatch.setattr("css_ray.study.run.execute", stop)
    journal = studied(data)
    journal.begin(0)
    journal.run(0, 1, trained[0], split_hash=trained[2], workers=2)
    result = call("train", "small", *ON_SPLIT_1)
    assert result.exit_code == 1 and "far enough" in result.output
    assert "the study trained this run with 2 workers, here one process does" in result.output


@pytest.mark.slow
def test_a_cell_of_a_study_under_ray_is_repeated_digit_for_digit(undisturbed: Place) -> None:
    for trial, split in ((0, 0), (2, 1)):
        code, output = undisturbed.call("train", "small", "--trial", str(trial), "--split", str(split), "--device", "cpu")
        assert code == 0 and "\nequal: the run repeats the recorded values digit for digit\n" in output, output
