"""No secret of a user's lies about: what is refused, what is shown, and what a whole study leaves behind."""

from __future__ import annotations

import ast
import json
import sqlite3
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from places import SPEC, Place

from css_ray.places import secret_in, shown, without_secrets
from css_ray.study.schema import StudyError, parse

ROOT = Path(__file__).parent.parent
SECRET = "hunter2-7f3a"


@pytest.mark.parametrize(
    ("place", "secret"),
    [
        ("runs", ""),
        ("/mnt/a?token=1", ""),  # a path, however odd
        ("s3://bucket/studies?region=eu-west-1&scheme=http&endpoint_override=127.0.0.1:9000", ""),
        ("http://mlflow:5000", ""),
        ("sqlite:///runs/mlflow.db", ""),
        ("s3://AKIA:abc@bucket/x", "a user or a password"),
        ("http://ann@host/", "a user or a password"),
        ("https://host/x?sig=abc&se=2026", "what looks like a secret (sig)"),
        ("https://host/x?X-Amz-Signature=1&X-Amz-Credential=2", "what looks like a secret (X-Amz-Signature, X-Amz-Credential)"),
        ("s3://bucket?access_key=", "what looks like a secret (access_key)"),
    ],
)
def test_what_counts_as_a_secret(place: str, secret: str) -> None:
    assert secret_in(place) == secret


def test_places_and_messages_are_shown_without_them() -> None:
    assert shown("https://ann:pw@host:80/a?token=1") == "https://host:80/a"
    message = "GET http://ann:pw@host/x failed; postgresql+psycopg://u:p%40@db/mlflow, http://host/a@b"
    assert without_secrets(message) == "GET http://host/x failed; postgresql+psycopg://db/mlflow, http://host/a@b"


def test_a_study_file_with_secrets_is_refused_with_all_of_them() -> None:
    spec = json.loads(json.dumps(SPEC))
    spec["data"] |= {"root": f"s3://AKIA:{SECRET}@bucket/voc", "labelled_list": f"https://h/{{split}}?token={SECRET}"}
    spec["tracking"] = {"uri": f"http://ann:{SECRET}@mlflow:5000"}
    spec["grid"]["model.pretrained"] = [False, f"https://h/w?sig={SECRET}"]
    with pytest.raises(StudyError) as caught:
        parse(spec)
    told = str(caught.value)
    assert SECRET not in told
    for path, name in (
        ("data.root: s3://bucket/voc", "AWS_SECRET_ACCESS_KEY"),
        ("data.labelled_list: https://h/{split}", "the environment"),
        ("tracking.uri: http://mlflow:5000", "MLFLOW_TRACKING_PASSWORD"),
        ("grid.model.pretrained[1]: https://h/w", "the environment"),
    ):
        (line,) = (line for line in told.splitlines() if line.strip().startswith(path))
        assert name in line


@pytest.mark.parametrize(
    "command", [["run", "FILE"], ["list"], ["status", "x"], ["resume", "x"], ["submit", "FILE", "--address", "http://h"]]
)
def test_a_storage_with_a_secret_is_refused(command: list[str], tmp_path: Path) -> None:
    from css_ray_cli.main import main

    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(SPEC | {"data": SPEC["data"] | {"root": str(tmp_path / "d")}}))
    arguments = [str(file) if part == "FILE" else part for part in command]
    for given in (["--storage", f"s3://AKIA:{SECRET}@bucket/x"], []):
        environment = {} if given else {"CSS_RAY_STORAGE": f"s3://AKIA:{SECRET}@bucket/x"}
        result = CliRunner().invoke(main, ["study", *arguments, *given], env=environment)
        assert result.exit_code == 2 and "s3://bucket/x comes with a user or a password" in result.output, result.output
        assert SECRET not in result.output


def test_the_python_interface_refuses_it_too(tmp_path: Path) -> None:
    from css_ray import Study

    definition = parse(SPEC | {"data": SPEC["data"] | {"root": str(tmp_path / "d")}})
    with pytest.raises(ValueError, match=r"^storage: s3://bucket/x comes with"):
        Study(definition, f"s3://AKIA:{SECRET}@bucket/x")


# ------------------------------------------------------------------------------------------------------------- a whole study


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_whole_study_leaves_no_secret_behind(tmp_path: Path) -> None:
    """Planted in the environment of the driver, which starts Ray: searched for in all that is written, and in MLflow."""
    from css_ray.data.catalogue import ensure_dataset

    ensure_dataset("digits", str(tmp_path / "digits"))
    place = Place(tmp_path, tmp_path / "digits")
    ray = tmp_path / "r"
    planted = {
        "AWS_ACCESS_KEY_ID": f"{SECRET}-a",
        "AWS_SECRET_ACCESS_KEY": f"{SECRET}-b",
        "MLFLOW_TRACKING_USERNAME": f"{SECRET}-c",
        "MLFLOW_TRACKING_PASSWORD": f"{SECRET}-d",
        "MY_TOKEN": f"{SECRET}-e",
        "CSS_RAY_WEBHOOK": f"http://ann:{SECRET}-f@127.0.0.1:9/{SECRET}-g?{SECRET}-h",
    }
    place.environment |= planted | {"RAY_TMPDIR": str(ray)}
    sets = ["search=null", "splits=[0]"]
    # One study whose MLflow does not answer, so that errors speak; one with MLflow's own file.
    place.environment["MLFLOW_TRACKING_URI"] = f"http://ann:{SECRET}-i@127.0.0.1:9"
    code, told = place.run(*sets)
    assert code == 0 and "http://127.0.0.1:9" in told, told
    del place.environment["MLFLOW_TRACKING_URI"]
    code, more = place.run(*sets, "study=other")
    assert code == 0, more
    place.environment["MLFLOW_TRACKING_URI"] = f"http://ann:{SECRET}-j@127.0.0.1:9"
    _, failed = place.call("study", "sync", "small")
    _, unwell = place.call("doctor")
    for output in (told, more, failed, unwell):
        assert SECRET not in output, output
    files = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert any(ray in path.parents and path.suffix in (".log", ".out", ".err") for path in files)
    assert any(path.name == "mlflow.db" for path in files) and any(path.name == "journal.jsonl" for path in files)
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    with sqlite3.connect(next(path for path in files if path.name == "mlflow.db")) as database:
        assert SECRET not in "\n".join(database.iterdump())


# ------------------------------------------------------------------------------------------------------- no code from storage


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def dangers(text: str) -> list[str]:
    """What in a source file would run code that somebody else wrote."""
    tree, found = ast.parse(text), []
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [
            name for name in names if name.split(".")[0] in ("pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib")
        ]
    for name, call in calls(tree):
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if (
            (name in ("torch.load",) and given.get("weights_only") != "True")
            or (name in ("np.load", "numpy.load") and given.get("allow_pickle", "False") != "False")
            or (name == "yaml.load" and given.get("Loader") not in ("_Loader", "yaml.SafeLoader"))
            or name
            in ("yaml.unsafe_load", "yaml.full_load", "eval", "exec", "os.system", "pd.read_pickle", "pandas.read_pickle")
            or (name.endswith(".extractall") and "filter" not in given)
            or given.get("shell") == "True"
        ):
            found.append(name)
    return found


@pytest.mark.parametrize(
    "path",
    sorted([*(ROOT / "css_ray").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_nothing_that_is_read_is_run(path: Path) -> None:
    # The one command that is run by a shell is the user's own, of --on-finish.
    allowed = ["subprocess.Popen"] if path.name == "hooks.py" else []
    assert dangers(path.read_text()) == allowed


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from cloudpickle import loads",
        "import torch\ntorch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, Loader=yaml.Loader)",
        "archive.extractall(folder)",
        "subprocess.run(command, shell=True)",
        "eval(text)",
    ],
)  # fmt: skip
def test_what_would_run_it_is_found(text: str) -> None:
    assert dangers(text)
