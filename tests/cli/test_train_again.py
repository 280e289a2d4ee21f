"""`css-ray train NAME`: one run of a study that has run, trained again and compared with its record."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.cli.made_up import SEARCH, SPEC, Journal, call, refused


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> str:
    from css_ray.data.catalogue import ensure_dataset

    root = str(tmp_path_factory.mktemp("data") / "digits")
    ensure_dataset("digits", root)
    return root


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CSS_RAY_STORAGE", raising=False)


def trained(temperature: float, digits: str) -> tuple[float, float, str]:
    """Last and best mIoU of the method on split 1 by the lower layers alone, and the hash of the split."""
    from css_ray.study.definition import parse
    from css_ray.study.inputs import prepare
    from css_ray.study.run import execute, run_spec
    from css_ray.training.reporter import SilentReporter

    method = {**SEARCH["method"], "temperature": temperature}
    study = parse({**SPEC, "data": {**SPEC["data"], "root": digits}, "grid": {"method": [method]}})
    prepared = prepare(run_spec(study, study.grid_trials()[0], 1))
    fit = execute(prepared, SilentReporter())
    return fit.last["val/miou"], fit.best["val/miou"], prepared.split.hash


def studied(digits: str, name: str = "small") -> Journal:
    return Journal(study=name, data={**SPEC["data"], "root": digits}, search=SEARCH)


def test_a_trial_of_a_search_is_trained_again_and_compared(digits: str) -> None:
    last, best, split_hash = trained(0.3, digits)
    assert trained(0.7, digits)[0] != last  # else the drawn setting would not show
    journal = studied(digits)
    journal.begin(2, **{"method.temperature": 0.3})
    journal.run(2, 1, last, best=best, split_hash=split_hash)
    result = call("train", "small", "--trial", "2", "--split", "1", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "small trial 2 (CSS (mix)) split 1 on cpu" in result.output
    assert re.search(rf"^last +{last:.4f} +{last:.4f} +0$", result.output, re.M), result.output
    assert re.search(rf"^best +{best:.4f} +{best:.4f} +0$", result.output, re.M), result.output
    assert "equal: the run repeats the recorded values" in result.output and "not equal" not in result.output

    other = studied(digits, "other")
    other.begin(2, **{"method.temperature": 0.3})
    other.run(2, 1, last - 0.25, best=best, split_hash=split_hash)
    result = call("train", "other", "--trial", "2", "--split", "1", "--device", "cpu")
    assert re.search(rf"^last +{last - 0.25:.4f} +{last:.4f} +\+0\.25$", result.output, re.M), result.output
    assert "not equal" in result.output


def test_a_run_without_a_value_says_so_and_is_trained_all_the_same(digits: str) -> None:
    _, _, split_hash = trained(0.3, digits)
    journal = studied(digits)
    for trial, end in ((2, "failed"), (3, "pruned")):
        journal.begin(trial, **{"method.temperature": 0.3})
        journal.run(trial, 1, end=end, split_hash=split_hash)
    journal.end(3, {}, "pruned", "3.1 below the best trial")
    arguments = ("--split", "1", "--device", "cpu")
    failed = call("train", "small", "--trial", "2", *arguments)
    said = (
        "warning: the study has no value to compare with: trial 2 on split 1 failed at step 4: loss 'sup' became nan at step 4"
    )
    assert failed.exit_code == 0 and said in failed.output and "recorded" not in failed.output
    assert "trial 3 on split 1 pruned at step 3" in call("train", "small", "--trial", "3", *arguments).output
    # Trials of the grid are known before they begin, and splits before they are reached.
    assert "compare with: trial 0 has not run" in call("train", "small", "--trial", "0", *arguments).output
    assert (
        "split 0 has not run: trial 3 was pruned before it" in call("train", "small", "--trial", "3", "--device", "cpu").output
    )


def test_what_cannot_be_trained_again_is_refused(digits: str) -> None:
    journal = studied(digits)
    assert "--trial 2: no trial has begun in small" in refused("train", "small", "--trial", "2")
    journal.begin(2, **{"method.temperature": 0.3})
    journal.run(2, 0, 40.0, split_hash="0123456789abcdef")
    assert "--trial 7: trials 0 to 2 have begun in small" in refused("train", "small", "--trial", "7")
    assert "--split 9: the study has the splits 0, 1" in refused("train", "small", "--split", "9")
    assert "--set: is for a study file; small has run" in refused("train", "small", "--set", "train.lr=0.1")
    assert "no study smal in runs; there are: small" in refused("train", "smal")
    changed = refused("train", "small", "--trial", "2", "--device", "cpu")
    assert "--split 0: its images are no longer those of the study" in changed and "was 0123456789ab" in changed
    assert digits in changed


def test_of_a_file_the_trials_of_the_grid_are_known(digits: str) -> None:
    spec = {**SPEC, "data": {**SPEC["data"], "root": digits}, "search": SEARCH}
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


def test_a_folder_that_cannot_be_written_is_refused_in_words(digits: str) -> None:
    Path("study.yaml").write_text(yaml.safe_dump({**SPEC, "data": {**SPEC["data"], "root": digits}}))
    Path("notes").write_text("mine")
    said = refused("train", "study.yaml", "--device", "cpu", "--out", "notes/run")
    assert "--out: cannot write notes/run: notes is a file, not a folder; choose another path" in said


def test_more_workers_than_one_are_a_warning(digits: str) -> None:
    from css_ray.events import RunStarted

    _, _, split_hash = trained(0.3, digits)
    journal = studied(digits)
    journal.begin(0)
    journal.write(
        RunStarted(
            time=1.0, trial=0, split=1, seed=1, dataset="digits", split_hash=split_hash, num_labelled=12, num_unlabelled=388,
            class_names=["background"], workers=2,
        )
    )  # fmt: skip
    result = call("train", "small", "--split", "1", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "the study trained this run with 2 workers, here one process does" in result.output
    assert "trial 0 on split 1 has not finished (step 0)" in result.output
