"""The commands: exit codes, messages, and that nothing starts on bad input."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from tests.journals import PRUNED, FakeRunner, Telling, mixed
from tests.rayless import Rayless

ROOT = Path(__file__).parent.parent
CLI = [sys.executable, "-c", "from css_ray_cli.main import main; main()"]

SPEC: dict[str, Any] = {
    "study": "small",
    "data": {"dataset": "digits", "labelled": 12, "crop": 32, "labelled_batch": 4, "unlabelled_batch": 4},
    "views": {"flip": False},
    "model": {"encoder": "tiny", "output_stride": 4, "pretrained": False, "decoder_channels": 8, "low_level_channels": 4, "representation_dim": 8},
    "train": {"iterations": 6, "lr": 0.05, "evaluate_every": 3, "log_every": 2},
    "splits": [0, 1],
    "grid": {"method": [{"name": "supervised", "row": "Sup."}, {"name": "css", "row": "CSS (mix)", "num_queries": 8, "num_negatives": 8}]},
}  # fmt: skip


SEARCH = "search={method: {name: css}, trials: 2, space: {method.temperature: {uniform: [0.1, 0.5]}}}"


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> str:
    from css_ray.data.catalogue import ensure_dataset

    root = str(tmp_path_factory.mktemp("data") / "digits")
    ensure_dataset("digits", root)
    return root


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has a folder of its own, without the studies of whoever runs the tests."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def file(tmp_path: Path, digits: str) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**SPEC, "data": {**SPEC["data"], "root": digits}}))
    return path


def call(*arguments: str) -> Result:
    from css_ray_cli.main import main

    return CliRunner().invoke(main, list(arguments))


def refused(*arguments: str) -> str:
    """The message of a call that must exit with 2 and start nothing."""
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert not Path("runs").exists()
    return result.output


def test_plan_prints_trials_runs_steps_and_an_estimate(file: Path) -> None:
    result = call("study", "plan", str(file))
    assert result.exit_code == 0, result.output
    assert "trial 0: Sup." in result.output and "trial 1: CSS (mix)" in result.output
    assert "2 trials x 2 splits = 4 runs, 24 steps" in result.output
    assert re.search(r"Sup.: \d+ ms per step", result.output) and "CPU cores" in result.output
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["train.itertions=5"], "train.itertions is unknown (did you mean iterations?)"),
        (["data.labelled=401"], "401"),
        (["data.num_classes=7"], "data.num_classes: 7 here, but the shards"),
        (["data.root=nowhere", "data.dataset=folder"], "css-ray data prepare"),
        (["data.dataset=digts"], "did you mean digits?"),
        (["model.encoder=resnet999", "model.output_stride=8"], "unknown encoder 'resnet999'"),
        (
            ["model.encoder=resnet18", "model.output_stride=8", "model.pretrained=nowhere.pth"],
            "nowhere.pth does not exist or is not a file; give a .safetensors or .pth file",
        ),
        (["data.labelled=400"], "400 labels all training images, but CSS (mix) learns from unlabelled ones"),
        (
            ["data.unlabelled_batch=1"],
            "data.unlabelled_batch: BatchNorm needs at least 2 images per worker, got 1 image; use 2",
        ),
        (["data.root=nowhere", "data.dataset=folder", "grid=null", SEARCH], "css-ray data prepare"),
        (["resources.gpus_per_worker=8"], "a trial wants 8 GPUs, this machine has"),
        (["data.crop=100000"], "data.crop: must be <= 16384, got 100000"),
        (["data.crop=16384", "data.labelled_batch=1000"], "GB of memory or more, this machine has"),
        (["splits=[0, 0]"], "split 0 is listed twice"),
        (["grid.method=[{name: css, unsup_threshold: 1.5}]"], "grid.method[0].unsup_threshold: must be <= 1, got 1.5"),
    ],
)
def test_bad_input_starts_nothing(file: Path, sets: list[str], message: str) -> None:
    arguments = [part for pair in sets for part in ("--set", pair)]
    for command in ("plan", "run"):
        assert message in refused("study", command, str(file), *arguments)


def test_several_problems_come_together(file: Path) -> None:
    output = refused(
        "study",
        "run",
        str(file),
        "--set",
        "data.labelled=401",
        "--set",
        "data.num_classes=7",
        "--set",
        "resources.gpus_per_worker=8",
    )
    assert "3 problems in small" in output


def test_problems_of_the_file_and_of_what_it_names_come_together(file: Path) -> None:
    sets = [
        "train.itertions=5",
        "data.labelled=0",
        "data.dataset=folder",
        "data.root=nowhere",
        "model.encoder=beit_base_patch16_224",
        "model.output_stride=8",
        "data.unlabelled_batch=1",
        "resources.gpus_per_worker=8",
        "method.temprature=1",
    ]
    expected = [
        "--set method.temprature: no method of the study has the setting temprature (did you mean temperature?)",
        "data.labelled: must be >= 1, got 0",
        "train.itertions is unknown (did you mean iterations?)",
        "data.unlabelled_batch: BatchNorm needs at least 2 images per worker, got 1 image; use 2",
        "resources.gpus_per_worker: a trial wants 8 GPUs, this machine has ",
        "model: encoder beit_base_patch16_224 gives no features at output_stride 8",
        "data: nowhere holds no prepared data set",
    ]
    for command in ("plan", "run"):
        lines = refused("study", command, str(file), *(part for each in sets for part in ("--set", each))).splitlines()
        assert lines[0] == f"Error: 7 problems in {file}:"
        for line, start in zip(lines[1:], expected, strict=True):
            assert line.startswith(f"  {start}"), line


def test_what_is_wrong_in_a_file_hides_what_depends_on_it(file: Path) -> None:
    # The encoder is unknown, so nothing is known of its stride; and GPUs of `none` workers cannot be counted.
    wrong = ["model.encoder=resnet999", "model.output_stride=16", "resources.workers=none", "resources.gpus_per_worker=8"]
    lines = refused("study", "plan", str(file), *(part for each in wrong for part in ("--set", each))).splitlines()
    assert [line.split(":")[0].strip() for line in lines] == ["Error", "model.encoder", "resources.workers"]


def test_the_networks_of_a_plan_are_built_without_memory_or_downloads(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm
    import torch

    built = []
    make = timm.create_model

    def create(name: str, **settings: Any) -> Any:
        network = make(name, **settings)
        built.append((name, settings["pretrained"], next(network.parameters()).device))
        return network

    monkeypatch.setattr(timm, "create_model", create)
    sets = ["model.encoder=resnet999", "grid.model.encoder=[resnet18]"]
    refused("study", "plan", str(file), *(part for each in sets for part in ("--set", each)))
    assert built == []  # with a name that is wrong, the others are checked by their names alone
    sets = ["model={encoder: resnet18, output_stride: 8, pretrained: true}", "data.root=nowhere", "data.dataset=folder"]
    refused("study", "plan", str(file), *(part for each in sets for part in ("--set", each)))
    assert set(built) == {("resnet18", False, torch.device("meta"))}


def test_unknown_names_are_answered(file: Path) -> None:
    assert "no study file" in refused("study", "plan", "nowhere.yaml")
    assert "no study other in runs; it holds none yet" in refused("study", "resume", "other")
    assert "did you mean study?" in refused("stduy")
    assert "did you mean css?" in refused("methods", "csss")


def test_list_of_an_empty_storage(file: Path) -> None:
    result = call("study", "list")
    assert result.exit_code == 0 and "css-ray study run" in result.output


def test_train_runs_without_ray_and_goes_on_from_its_checkpoint(file: Path) -> None:
    arguments = [*CLI, "train", str(file), "--trial", "1", "--split", "1", "--device", "cpu", "--out"]
    whole = subprocess.run([*arguments, "whole"], capture_output=True, text=True, cwd=file.parent, check=True).stdout
    assert "small trial 1 (CSS (mix)) split 1 on cpu" in whole and "step      6  val mIoU" in whole
    assert (file.parent / "whole" / "best.pt").exists()
    assert sorted(path.name for path in (file.parent / "whole" / "matrices").iterdir()) == ["best.npz", "last.npz"]
    again = subprocess.run([*arguments, "whole"], capture_output=True, text=True, cwd=file.parent, check=True).stdout
    assert "continuing from its checkpoint" in again
    assert again.splitlines()[-1].split(",")[:2] == whole.splitlines()[-1].split(",")[:2]
    # Another run's checkpoint is not taken for this one's.
    assert "contains another run" in refused("train", str(file), "--trial", "1", "--split", "0", "--out", "whole")


@pytest.mark.parametrize("scheme", ["", "file://"], ids=["path", "URL"])
def test_train_and_a_worker_keep_the_same_best_weights(scheme: str, file: Path) -> None:
    import torch

    from css_ray.execution.worker import keeper
    from css_ray.study.definition import read
    from css_ray.study.inputs import prepare
    from css_ray.study.run import execute, run_spec
    from css_ray.training.best import load_best
    from css_ray.training.reporter import SilentReporter

    result = call("train", str(file), "--trial", "1", "--split", "1", "--device", "cpu", "--out", "out")
    assert result.exit_code == 0, result.output
    study = read(file)
    torch.set_num_threads(study.resources.cpus_per_worker)
    worker = file.parent / "models" / "split_1"
    spec = run_spec(study, study.grid_trials()[1], 1)
    execute(prepare(spec), SilentReporter(), keep_best=keeper(f"{scheme}{worker}"))
    for name in ("best.pt", "best.json"):
        assert (worker / name).read_bytes() == Path("out", name).read_bytes(), name
    _, best = load_best(worker)
    assert (best.method, best.dataset, best.split, best.crop) == ("css", "digits", 1, 32)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "--device gpu: must be cpu, cuda, or cuda:N for the GPU of that number"),
        ("cuda:-1", "--device cuda:-1: must be cpu, cuda, or cuda:N"),
        ("cuda:7", "--device cuda:7: torch sees the GPUs 0 to 1; use one of them"),
    ],
)
def test_train_refuses_a_device_that_is_not_there(
    device: str, message: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert message in refused("train", str(file), "--device", device)


def test_train_refuses_a_gpu_where_none_is(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "torch sees no CUDA device; use --device cpu" in refused("train", str(file), "--device", "cuda")


def test_train_refuses_what_the_study_does_not_have(file: Path) -> None:
    assert "the study has trials 0 to 1" in refused("train", str(file), "--trial", "2")
    assert "the study has the splits 0, 1" in refused("train", str(file), "--split", "7")


def test_methods_shows_every_setting_with_its_default() -> None:
    import dataclasses

    from css_ray.methods import METHODS

    listed = call("methods").output
    for name, method in METHODS.items():
        assert name in listed
        shown = call("methods", name).output
        for field in dataclasses.fields(method.Config):
            written = re.search(rf"^  {field.name} +(.+?)(  |$)", shown, re.M)
            expected = list(field.default) if isinstance(field.default, tuple) else field.default
            assert written is not None and yaml.safe_load(written[1]) == expected, field.name


def test_methods_shows_what_a_preset_changes() -> None:
    shown = call("methods", "css", "pseudo_labelling=logits").output
    assert re.search(r"^ +default +paper +published$", shown, re.M)
    assert re.search(r"^  hard_threshold +0\.8 +0\.8 +0\.97 \*$", shown, re.M)
    assert re.search(r"^  contrast_schedule +ramp_down +constant \* +constant \*$", shown, re.M)
    wrong = refused("methods", "css", "pseudo_labelling=mixed", "temprature=1")
    assert "must be one of" in wrong and "did you mean temperature?" in wrong
    assert "KEY=VALUE" in refused("methods", "css", "mix")


def test_a_crop_larger_than_every_image_is_a_warning(file: Path) -> None:
    said = (
        "warning: data.crop: 48 is larger than every training image of digits (at most 40x40, width x height), so at least 30 %"
    )
    result = call("study", "plan", str(file), "--no-measure", "--set", "data.crop=48")  # 1 - (40 / 48)^2 = 30.6 %
    assert result.exit_code == 0 and result.output.count(said) == 1, result.output
    result = call("study", "plan", str(file), "--no-measure", "--set", "data.crop=40")
    assert result.exit_code == 0 and "warning" not in result.output, result.output


def test_more_labels_than_masks_are_one_problem(file: Path) -> None:
    search = SEARCH.replace("trials: 2", "trials: 2, confirm: 1")
    output = refused("study", "plan", str(file), "--set", "data.labelled=401", "--set", search)
    assert output.count("401") == 1 and "400 of the 400 training images of digits have a mask; label 1 to 400" in output


def test_a_threshold_out_of_reach_is_a_warning_before_anything_starts(file: Path) -> None:
    result = call(
        "study", "plan", str(file), "--no-measure", "--set", "grid.method=[{name: css, row: lit, similarity_temperature: 0.5}]"
    )
    assert result.exit_code == 0
    # Eq. 5 at τ = 0.5 with the 6 classes of the digits: 1 / (1 + 5 exp(-4)) = 0.916; δ_w and δ_s lie below, 0.95 does not.
    assert "warning" not in result.output
    grid = "grid.method=[{name: css, row: lit, similarity_temperature: 0.5, valid_threshold: 0.95}]"
    result = call("study", "plan", str(file), "--no-measure", "--set", grid)
    assert result.exit_code == 0
    assert "warning: lit: valid_threshold 0.95 is out of reach" in result.output and "above 0.916" in result.output


def test_doctor_names_what_is_wrong_and_how_to_mend_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Port 9 of loopback (discard) has no server.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    from css_ray_cli import doctor

    monkeypatch.setattr(doctor, "_ray", lambda: "not started in this test")
    monkeypatch.setattr(doctor, "MIN_FREE_GB", 10**9)
    result = call("doctor")
    assert result.exit_code == 1
    assert re.search(r"WRONG  disk .*choose another disk with --storage", result.output)
    assert re.search(r"WRONG  mlflow .*css-ray ui", result.output)
    assert re.search(r"ok     packages .*torch", result.output)


@pytest.mark.slow
def test_doctor_finds_this_machine_well(file: Path) -> None:
    result = subprocess.run([*CLI, "doctor"], capture_output=True, text=True, cwd=file.parent)
    assert result.returncode == 0, result.stdout
    assert result.stdout.count("ok ") == 6


def test_every_command_of_the_readme_exists() -> None:
    """Each `css-ray ...` line parses: its command is there and knows its options."""
    from css_ray_cli.main import main

    blocks = (ROOT / "README.md").read_text().split("```")[1::2]
    lines = [line.strip().split("#")[0] for block in blocks for line in block.splitlines()]
    commands = [line.split() for line in lines if line.startswith("css-ray ")]
    assert len(commands) > 10
    for words in commands:
        context = main.make_context("css-ray", words[1:], resilient_parsing=True)
        command: Any = main
        rest = words[1:]
        while hasattr(command, "get_command"):
            found = command.get_command(context, rest[0])
            assert found is not None, words
            command, rest = found, rest[1:]
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in rest if word.startswith("--")} <= options, words


def test_the_problems_of_the_readme_are_what_plan_prints(tmp_path: Path) -> None:
    (tmp_path / "studies").symlink_to(ROOT / "studies")
    blocks = (ROOT / "README.md").read_text().split("```text\n")[1:]
    (block,) = [block.split("```")[0] for block in blocks if block.startswith("$ css-ray study plan")]
    command, _, printed = block.partition("\n")
    assert refused(*shlex.split(command.removeprefix("$ css-ray "))) == printed


def test_the_study_of_the_readme_is_one() -> None:
    from css_ray.study.definition import parse

    (block,) = [block for block in (ROOT / "README.md").read_text().split("```yaml")[1:] if block.lstrip().startswith("study:")]
    study = parse(yaml.safe_load(block.split("```")[0]), "README.md")
    assert len(study.grid_trials()) == 4


# -------------------------------------------------------------------------------------------------------- seeing a study


def journal() -> Path:
    return Path("runs/small/journal.jsonl")


def test_status_shows_a_study_from_its_journal(file: Path) -> None:
    mixed(journal())
    output = call("study", "status", "small").output
    assert max(map(len, output.splitlines())) <= 80
    for part in ("small: running", "trials 5/8", "54.00 ± 5.29", "✂ 20", "trial 4 split 1 failed"):
        assert part in output
    assert all(word in output for word in PRUNED.split())
    assert "no study other in runs; there are: small" in call("study", "status", "other").output
    assert re.search(r"small +running +trials 5/8  best 54.00 \(trial 1, CSS \(mix\)\)", call("study", "list").output)


@pytest.mark.parametrize(("end", "code"), [("finished", 0), ("failed", 1), ("budget", 0), ("interrupted", 130)])
def test_watch_waits_for_a_study_follows_it_and_ends_with_it(
    file: Path, end: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from css_ray_cli.study import show

    monkeypatch.setattr(show, "WATCH_SECONDS", 0.05)

    def drive() -> None:
        time.sleep(0.3)
        telling = Telling(journal(), search=None)
        telling.start()
        time.sleep(0.2)
        telling.whole(0, 40.0, 44.0, 48.0)
        telling.tell("study_paused", reason="runs has 0.10 GB free")
        time.sleep(0.2)
        telling.tell("study_continued")
        # A line whose end has not been written yet is not read.
        with journal().open("a") as half:
            half.write('{"event":"study_resumed",')
            half.flush()
            time.sleep(0.2)
            half.write(f'"time":{telling.time}}}\n')
        if end == "interrupted":
            telling.tell("study_interrupted", reason="interrupted by the user")
        else:
            telling.tell("study_finished", status=end, best_trial=0)

    driver = threading.Thread(target=drive)
    driver.start()
    result = call("study", "status", "small", "--watch")
    driver.join()
    assert result.exit_code == code, result.output
    lines = result.output.splitlines()
    assert lines[0] == "waiting for the study small to begin in runs (Ctrl-C ends this)"
    assert "paused: runs has 0.10 GB free" in lines
    assert "trial 0 (Sup.) finished: 44.00 ± 4.00 (n=3 of 3)" in lines
    assert lines[-1].startswith("interrupted: " if end == "interrupted" else "trials 1/1")


def test_ctrl_c_ends_the_watching(file: Path) -> None:
    telling = mixed(journal())
    watcher = subprocess.Popen(
        [*CLI, "study", "status", "small", "--watch"], stdout=subprocess.PIPE, text=True, cwd=file.parent
    )
    assert watcher.stdout is not None
    assert watcher.stdout.readline().startswith("trials 5/8")
    watcher.send_signal(signal.SIGINT)
    assert watcher.wait(10) == 130
    assert len(journal().read_text().splitlines()) == len(telling.events)


# ----------------------------------------------------------------------------------------------- telling that it ended


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> type[FakeRunner]:
    FakeRunner.install(monkeypatch)
    return FakeRunner


def run_search(file: Path, *arguments: str) -> Result:
    """Run the study of `mixed`, eight trials on three splits, under the fake runner."""
    sets = ["splits=[0,1,2]", "grid.method=[{name: supervised, row: Sup.}]", SEARCH.replace("trials: 2", "trials: 7")]
    return call("study", "run", str(file), *(part for each in sets for part in ("--set", each)), *arguments)


@pytest.mark.parametrize(("status", "code"), [("finished", 0), ("failed", 1), ("interrupted", 130), ("budget", 0)])
def test_on_finish_is_told_how_the_study_ended(file: Path, runner: type[FakeRunner], status: Any, code: int) -> None:
    runner.status = status
    program = "import json, os, sys; json.dump([os.environ['CSS_RAY_STATUS'], json.load(sys.stdin)], open('told.json', 'w'))"
    result = run_search(file, "--on-finish", f'{sys.executable} -c "{program}"')
    assert result.exit_code == code, result.output
    told, summary = json.loads(Path("told.json").read_text())
    assert told == summary["status"] == status
    assert (summary["study"], summary["best"]) == ("small", "54.00 ± 5.29")
    if status == "interrupted":
        assert "css-ray study resume small --on-finish" in result.output
    if status == "budget":
        assert "--set budget.KEY=VALUE" in result.output
    # The command is told of a resume, and of nothing else that comes next.
    following = [line for line in result.output.splitlines() if line.startswith(("  css-ray ui", "  css-ray study table"))]
    assert len(following) == (0 if status == "interrupted" else 2) and not any("--on-finish" in line for line in following)


def test_what_goes_wrong_in_telling_is_a_warning(file: Path, runner: type[FakeRunner], monkeypatch: pytest.MonkeyPatch) -> None:
    from css_ray.study import hooks

    runner.status = "finished"
    monkeypatch.setattr(hooks, "_PAUSE_SECONDS", 0.01)
    # Port 9 of loopback (discard) has no server.
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("CSS_RAY_WEBHOOK", "http://ann:s3cret@127.0.0.1:9/s3cret?s3cret")
    result = run_search(file, "--on-finish", "exit 3")
    assert result.exit_code == 0, result.output
    assert "warning: the command of --on-finish exited with status 3" in result.output
    assert "warning: the webhook at http://127.0.0.1:9 did not accept the summary: Connection refused" in result.output
    assert "s3cret" not in result.output


def test_a_study_that_breaks_down_is_told_as_failed(file: Path, runner: type[FakeRunner]) -> None:
    runner.error = OSError(28, "the disk is full")
    result = run_search(file, "--on-finish", "echo $CSS_RAY_STATUS > told")
    assert (
        result.exit_code == 1 and "the disk is full" in result.output and "continue with: css-ray study resume" in result.output
    )
    assert Path("told").read_text() == "failed\n"


def test_nobody_is_told_of_a_study_that_did_not_start(file: Path, runner: type[FakeRunner]) -> None:
    result = call("study", "run", str(file), "--set", "data.labelled=401", "--on-finish", "touch told")
    assert result.exit_code == 2 and not Path("told").exists()
    result = run_search(file, "--webhook", "htp://host/s3cret")
    assert result.exit_code == 2 and "not an http:// or https:// URL" in result.output and "s3cret" not in result.output
    assert runner.calls == []


def test_resume_takes_more_of_the_study(file: Path, runner: type[FakeRunner]) -> None:
    run_search(file)
    result = call("study", "resume", "small", "--set", "search.trials=12", "--set", "budget.hours=2")
    assert result.exit_code == 1, result.output
    assert runner.calls[-1]["resume"] and runner.calls[-1]["definition"].num_trials == 13
    assert "data" in refused_resume("small", "--set", "data.labelled=13")


def test_confirm_runs_the_best_on_fresh_splits(file: Path, runner: type[FakeRunner]) -> None:
    run_search(file)
    result = call("study", "confirm", "small", "--top", "1", "--splits", "7,8")
    definition = runner.calls[-1]["definition"]
    assert (definition.name, definition.splits, definition.num_trials) == ("small-confirm", (7, 8), 1), result.output
    assert call("study", "confirm", "small", "--top", "9").exit_code == 2
    wrong = call("study", "confirm", "small", "--splits", "a")
    assert wrong.exit_code == 2 and "whole numbers with commas" in wrong.output


@pytest.mark.parametrize(("ending", "code"), [("nan", 1), ("50", 0), ("50", 130)])
def test_run_goes_on_with_the_confirmation_and_ends_as_that_does(
    ending: str, code: int, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The search finishes; its confirmation, whose runs end with `ending`, fails, finishes, or is interrupted."""

    class Driver(Rayless):
        def run(self, *, resume: bool) -> Any:
            if code == 130 and self.driver.study.name == "small-confirm":
                monkeypatch.setattr(self.driver, "next_trial", interrupt)
            return super().run(resume=resume)

    def interrupt(running: set[int]) -> Any:
        raise KeyboardInterrupt

    Driver.install(monkeypatch, lambda spec: 30.0 + spec.trial if spec.split < 2 else float(ending))
    sets = ("--set", f"{SEARCH[:-1]}, confirm: 1}}", "--set", "grid.method=[{name: supervised, row: Sup.}]")
    result = call("study", "run", str(file), *sets, "--on-finish", "echo $CSS_RAY_STUDY $CSS_RAY_STATUS >> told")
    assert result.exit_code == code, result.output
    assert "small-confirm: the best of the search again, on splits that it never saw (2, 3)" in result.output
    ended = {0: "finished", 1: "failed", 130: "interrupted"}[code]
    assert Path("told").read_text().splitlines() == ["small finished", f"small-confirm {ended}"]
    if code == 130:
        assert "  css-ray study resume small-confirm --on-finish " in result.output


def refused_resume(*arguments: str) -> str:
    result = call("study", "resume", *arguments)
    assert result.exit_code == 2, result.output
    return result.output
