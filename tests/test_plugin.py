"""A package with a method of its own, as the README shows it: its tests, the commands, a run and a study."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from css_ray.testing import MethodContract
from tests.journals import Telling
from tests.places import SPEC, Place, runs_finished
from tests.plugin import install, install_readme_package, on_path

ENTROPY = {"name": "entropy", "row": "Entropy", "entropy_weight": 0.2}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """The README's package, and one that breaks when it is imported."""
    folder = tmp_path / "site"
    install_readme_package(folder)
    install(folder, "failing-methods", {"failing": "failing:X"}, {"failing.py": "raise RuntimeError('no licence')"})
    return folder


def python(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=site.parent)


def css_ray(*arguments: str) -> Result:
    from css_ray_cli.main import main

    return CliRunner().invoke(main, list(arguments))


def study(folder: Path, data: Path, *methods: dict[str, object]) -> Path:
    spec = {key: value for key, value in SPEC.items() if key != "search"}
    spec |= {"data": {**SPEC["data"], "root": str(data)}, "grid": {"method": list(methods)}}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


def test_the_shipped_contract_holds_for_it(site: Path) -> None:
    done = python(site, "-m", "pytest", "-p", "no:cacheprovider", str(site / "test_entropy_methods.py"))
    rules = [name for name in vars(MethodContract) if name.startswith("test_")]
    assert f"{len(rules)} passed" in done.stdout, done.stdout + done.stderr


def test_the_commands_know_it(site: Path) -> None:
    with on_path(site):
        listed, shown, refused = (css_ray("methods", *more) for more in ((), ("entropy", "entropy_weight=0.2"), ("failing",)))
    assert listed.exit_code == 0
    assert re.search(
        r"^entropy +The student becomes sure of unlabelled pixels, too\..*\n +from entropy-methods 1\.0$", listed.stdout, re.M
    )
    (warning,) = [line for line in listed.stderr.splitlines() if line.startswith("warning: ")]
    for part in ("failing", "failing-methods 1.0", "failing = failing:X", "no licence", "pip uninstall failing-methods"):
        assert part in warning
    assert shown.exit_code == 0 and "warning" not in shown.stderr
    assert re.search(r"^  entropy_weight +0\.2\n +weight of the entropy of unlabelled pixels \(>= 0\)$", shown.stdout, re.M)
    assert refused.exit_code == 2 and refused.stderr.strip() == f"Error: {warning.removeprefix('warning: ')}"


def test_a_study_names_it_and_a_run_trains_it(site: Path, data: Path) -> None:
    file = study(site.parent, data, {"name": "supervised", "row": "Sup."}, ENTROPY)
    program = "from css_ray_cli.main import main; main()"
    done = python(site, "-c", program, "train", str(file), "--trial", "1", "--split", "1")
    assert done.returncode == 0, done.stderr
    assert "small trial 1 (Entropy) split 1 on cpu" in done.stdout
    assert re.search(r"entropy \d\.\d+", done.stdout) and re.search(r"^last \d+\.\d+ %", done.stdout, re.M), done.stdout


def test_its_settings_are_checked_and_a_broken_one_is_refused_where_it_is_named(site: Path, data: Path) -> None:
    wrong = [{"name": "entropy", "row": "a", "entropy_weight": -1.0}, {"name": "entropy", "row": "b", "entropy_wait": 1.0}]
    file = study(site.parent, data, *wrong, {"name": "failing"})
    with on_path(site):
        done = css_ray("study", "plan", str(file), "--no-measure")
        assert css_ray("study", "plan", str(study(site.parent, data, ENTROPY)), "--no-measure").exit_code == 0
    assert done.exit_code == 2
    assert "3 problems" in done.stderr
    assert "grid.method[0].entropy_weight: must be >= 0, got -1.0" in done.stderr
    assert "did you mean entropy_weight?" in done.stderr
    assert re.search(
        r"grid\.method\[2\]\.name: the method 'failing' of failing-methods 1\.0 .*no licence.*pip uninstall", done.stderr
    )


def test_where_the_package_is_not_installed_the_study_says_so(tmp_path: Path, data: Path) -> None:
    done = css_ray("study", "plan", str(study(tmp_path, data, ENTROPY)), "--no-measure")
    assert done.exit_code == 2
    assert "grid.method[0].name: entropy is unknown" in done.stderr and "install the package that registers it" in done.stderr


def test_a_study_whose_package_is_gone_hides_no_other(site: Path, tmp_path: Path) -> None:
    storage = tmp_path / "runs"
    with on_path(site):
        for name, method in (("one", ENTROPY), ("two", {"name": "supervised"})):
            Telling(storage / name / "journal.jsonl", study=name, grid={"method": [method]}, search=None).start()
        both = css_ray("study", "list", "--storage", str(storage))
    assert re.findall(r"^(one|two) +running", both.stdout, re.M) == ["one", "two"]
    one = css_ray("study", "list", "--storage", str(storage))
    assert one.exit_code == 0 and re.findall(r"^(one|two) +running", one.stdout, re.M) == ["two"]
    assert one.stderr.startswith("warning: one is not listed: ") and "entropy is unknown" in one.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_whole_study_trains_it_under_ray(site: Path, place: Place, data: Path) -> None:
    """Ray's workers find the package, and the broken one beside it stops nothing."""
    place.environment["PYTHONPATH"] = str(site)
    assert study(place.folder, data, {"name": "supervised", "row": "Sup."}, ENTROPY) == place.file
    code, output = place.run()
    assert code == 0, output
    events = place.events()
    assert events[-1]["event"] == "study_finished" and runs_finished(events) == 4
    assert events[0]["versions"]["entropy-methods"] == "1.0"
    losses = {event["trial"]: set(event["metrics"]) for event in events if event["event"] == "run_logged"}
    assert "train/entropy" in losses[1] and "train/entropy" not in losses[0]
    with on_path(site):  # this process reads the study, too
        assert [line["row"] for line in place.table()] == ["Sup.", "Entropy"]
    place.wait_until_empty()
