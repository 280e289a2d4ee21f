"""No secret of a user's lies about: what is refused, what is shown, and what a whole study leaves behind."""

from __future__ import annotations

import ast
import base64
import json
import socket
import sqlite3
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from css_ray import tracking
from css_ray.events import StudyStarted
from css_ray.secrets import secret_in, shown, without_secrets
from css_ray.study.definition import StudyError, parse
from tests.places import SPEC, Place

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
        ("s3://AKIA:ab/cd+ef@bucket/x", "a user or a password"),  # as AWS writes them, not percent-encoded
        ("http://ann:p@w@host/x", "a user or a password"),
        ("http://ann:pw@[::1/x", "a user or a password"),  # no URL, and a password all the same
        ("http://host:5000/a@b", ""),
        ("http://[::1]:5000/a@b", ""),
        ("see https://host/x and ask ann@host", ""),
        ("s3://bucket/x;token=abc", "what looks like a secret (token)"),
        ("//ann:pw@host/x", "a user or a password"),  # as a browser takes it
        ("//share/studies", ""),
        ("s3://bucket/a;b/c", ""),
    ],
)
def test_what_counts_as_a_secret(place: str, secret: str) -> None:
    assert secret_in(place) == secret


def test_places_and_messages_are_shown_without_them() -> None:
    assert shown("https://ann:pw@host:80/a?token=1") == "https://host:80/a"
    assert shown("s3://AKIA:ab/cd@bucket/x") == "s3://bucket/x"
    assert shown("s3://bucket/x;token=abc;region=eu") == "s3://bucket/x;token=...;region=eu"
    assert shown("//ann:p/w@host/x") == "//host/x" and shown("/mnt/a;token=1") == "/mnt/a;token=1"
    assert shown("http://ann:p@w@[::1]:80/a#token=1") == "http://[::1]:80/a"
    message = "GET http://ann:p/w@host/x failed; postgresql+psycopg://u:p%40@db/mlflow, http://host:80/a@b"
    assert without_secrets(message) == "GET http://host/x failed; postgresql+psycopg://db/mlflow, http://host:80/a@b"
    for address in ("ann:hunter2@host:6379", "ann:hun/ter2@host:6379", "ann:hunt@er2@host:6379"):
        told = f"no cluster at {address}; --address={address} ('{address}')"
        assert without_secrets(told) == "no cluster at host:6379; --address=host:6379 ('host:6379')"
    for plain in ("ask ann@host", "trial 3: ann@host", "host:80/a@b", "at 12:30", "a:b", "file.py:12: x@y"):
        assert without_secrets(plain) == plain
    assert without_secrets("got 's3://b/x?region=eu&access_key=1&secret_key=2'") == (
        "got 's3://b/x?region=eu&access_key=...&secret_key=...'"
    )


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
        assert result.exit_code == 2 and "s3://bucket/x contains credentials (a user or a password)" in result.output, (
            result.output
        )
        assert SECRET not in result.output


@pytest.mark.parametrize(
    "address", [f"ann:{SECRET}@there:6379", f"http://ann:{SECRET}@there:8265", f"ray://ann:{SECRET}@there:1"]
)
@pytest.mark.parametrize("command", [["data", "prepare", "digits", "--out", "x"], ["study", "run", "FILE"]])
def test_an_address_with_a_secret_is_refused(command: list[str], address: str, tmp_path: Path) -> None:
    from css_ray_cli.main import main

    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(SPEC | {"data": SPEC["data"] | {"root": str(tmp_path / "d")}}))
    arguments = [str(file) if part == "FILE" else part for part in command]
    result = CliRunner().invoke(main, [*arguments, "--address", address])
    assert result.exit_code == 2 and "contains credentials" in result.output, result.output
    assert SECRET not in result.output


@pytest.mark.parametrize("option", ["--storage", "--tracking-uri"])
def test_a_check_from_afar_sends_none(option: str) -> None:
    from css_ray_cli.main import main

    command = ["cluster", "check", "--address", "http://127.0.0.1:9", option, f"http://ann:{SECRET}@there:5000"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2 and f"{option}: http://there:5000 contains credentials (a user or a password)" in result.output
    assert SECRET not in result.output


def test_the_python_interface_refuses_it_too(tmp_path: Path) -> None:
    from css_ray import Study

    definition = parse(SPEC | {"data": SPEC["data"] | {"root": str(tmp_path / "d")}})
    with pytest.raises(ValueError, match=r"^storage: s3://bucket/x contains credentials"):
        Study(definition, f"s3://AKIA:{SECRET}@bucket/x")


# Wherever a place, or anything else, may be written, and so be quoted by the message that it is wrong there.
SETS = [
    "study=URL", "description=URL", "data=URL", "data.root=URL", "data.dataset=URL", "data.labelled_list=URL{x}", "train.lr=URL",
    "tracking=URL", "tracking.uri=[URL]", "tracking.url=URL", "model.pretrained=URL", "splits=URL", "trials=[URL]", "data.root='URL",
    "grid.model.pretrained=URL", "grid.model.pretrained=[false, URL, URL]", "search.pruners=[{name: URL}]",
    "search.space.model.pretrained=URL", "search.space.model.pretrained={choice: [URL]}", "URL=1", "URL",
]  # fmt: skip
COMMANDS = [
    *(["study", "plan", "FILE", "--set", each] for each in SETS),
    ["study", "plan", "URL"], ["study", "run", "URL"], ["study", "URL"], ["URL"],
    ["study", "run", "FILE", "--storage", "URL"], ["study", "run", "FILE", "--webhook", "URL:port"],
    *(["study", each, "URL"] for each in ("status", "table", "resume", "sync", "confirm", "logs")),
    ["study", "submit", "FILE", "--address", "http://127.0.0.1:9", "--storage", "URL"],
    ["train", "FILE", "--set", "data.root=URL"],
    ["data", "prepare", "URL", "--out", "o"], ["data", "prepare", "digits", "--out", "URL"],
    ["data", "check", "URL"], ["data", "info", "URL"], ["data", "splits", "show", "URL", "--labelled", "3"],
    ["ui", "--storage", "URL"], ["methods", "URL"], ["doctor", "URL"],
]  # fmt: skip


@pytest.mark.parametrize(
    "url", [f"s3://AKIA:ab/{SECRET}@bucket/x", f"ftp://ann:{SECRET}@127.0.0.1/x", f"ftp://h/x?token={SECRET}"]
)
def test_no_message_of_the_command_line_shows_one(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from css_ray_cli.main import main

    monkeypatch.chdir(tmp_path)
    Path("study.yaml").write_text(yaml.safe_dump(SPEC | {"data": SPEC["data"] | {"root": str(tmp_path / "d")}}))
    for command in COMMANDS:
        arguments = [part.replace("URL", url).replace("FILE", "study.yaml") for part in command]
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code in (1, 2) and result.output, (command, result.output)
        assert isinstance(result.exception, SystemExit), (command, result.exception)  # a message, no traceback
        assert SECRET not in result.output, (command, result.output)


# -------------------------------------------------------------------------------------------------------------------- MLflow


class Guarded(BaseHTTPRequestHandler):
    """An MLflow without experiments that lets in whoever knows the password, and tells everybody else so."""

    def do_GET(self) -> None:
        known = self.headers.get("Authorization") == f"Basic {base64.b64encode(f'ann:{SECRET}'.encode()).decode()}"
        answer = b'{"experiments": []}' if known else b'{"error_code": "UNAUTHENTICATED", "message": "who are you?"}'
        self.send_response(200 if known else 401)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_POST = do_GET

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture
def mlflow_port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")  # so that what css-ray sets is gone after the test
        monkeypatch.delenv(name)
    with ThreadingHTTPServer(("127.0.0.1", 0), Guarded) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_a_password_of_mlflow_opens_it_and_is_not_told(mlflow_port: int) -> None:
    told = tracking.check(f"http://ann:{SECRET}@127.0.0.1:{mlflow_port}")
    assert told.endswith(f"0 experiments at http://127.0.0.1:{mlflow_port}")


@pytest.mark.parametrize(
    "uri",
    [
        "http://ann:{wrong}@127.0.0.1:{port}",
        "http://ann:{wrong}@127.0.0.1:9",
        "nosuch://ann:{wrong}@h/x",
        "mysql+a+b://ann:{wrong}@h/x",
    ],
)
def test_no_error_of_mlflow_shows_its_uri(uri: str, mlflow_port: int, caplog: pytest.LogCaptureFixture) -> None:
    """Not even the traceback, of which MLflow writes a part."""
    uri = uri.format(wrong=f"{SECRET}-wrong", port=mlflow_port)
    start = StudyStarted(time=0.0, study="small", study_id="1", spec={}, versions={})
    calls: list[Callable[[], object]] = [
        lambda: tracking.check(uri),
        lambda: tracking.read_records(uri, "small"),
        lambda: tracking.log_tables(uri, "1", {}),
        lambda: tracking.sync([start], uri),
    ]
    for call in calls:
        with pytest.raises(Exception) as caught:
            call()
        assert SECRET not in "".join(traceback.format_exception(caught.value))
    tracker = tracking.Tracker(uri)
    tracker.record(start)
    assert tracker.close(timeout=20) == 1
    assert "MLflow at" in caplog.text and SECRET not in caplog.text


def test_the_server_is_not_told_its_database_by_an_argument(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    """Everybody on the machine may read the arguments of a process, and none but its user the environment."""
    started: dict[str, Any] = {}

    def popen(command: list[str], env: dict[str, str], **named: object) -> None:
        started.update(command=command, env=env)
        raise OSError("enough")

    monkeypatch.setattr("subprocess.Popen", popen)
    uri = f"sqlite:///{tmp_path}/mlflow.db?password={SECRET}"
    with pytest.raises(OSError, match="enough"):
        tracking.start_server(uri, tmp_path, port=free_port)
    assert SECRET not in " ".join(started["command"])
    assert started["env"]["MLFLOW_BACKEND_STORE_URI"] == uri


# ------------------------------------------------------------------------------------------------------------- a whole study


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder for Ray, whose sockets allow no path as long as pytest's."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_whole_study_leaves_no_secret_behind(tmp_path: Path, short_path: Path) -> None:
    """Planted in the environment of the driver, which starts Ray: searched for in all that is written, and in MLflow."""
    from css_ray.data.catalogue import ensure_dataset

    ensure_dataset("digits", str(tmp_path / "digits"))
    place = Place(tmp_path, tmp_path / "digits")
    planted = {
        "AWS_ACCESS_KEY_ID": f"{SECRET}-a",
        "AWS_SECRET_ACCESS_KEY": f"{SECRET}-b",
        "MLFLOW_TRACKING_USERNAME": f"{SECRET}-c",
        "MLFLOW_TRACKING_PASSWORD": f"{SECRET}-d",
        "MY_TOKEN": f"{SECRET}-e",
        "CSS_RAY_WEBHOOK": f"http://ann:{SECRET}-f@127.0.0.1:9/{SECRET}-g?{SECRET}-h",
    }
    home = tmp_path / "home"
    home.mkdir()
    place.environment |= planted | {"RAY_TMPDIR": str(short_path), "HOME": str(home)}
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
    files = [path for top in (tmp_path, short_path) for path in top.rglob("*") if path.is_file() and not path.is_symlink()]
    assert any(short_path in path.parents and path.suffix in (".log", ".out", ".err") for path in files)
    assert any(path.name == "mlflow.db" for path in files) and any(path.name == "journal.jsonl" for path in files)
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    token = home / ".ray" / "auth_token"
    assert [path for path in files if token.read_bytes().strip() in path.read_bytes()] == [token]
    assert token.parent.stat().st_mode & 0o077 == 0
    with sqlite3.connect(next(path for path in files if path.name == "mlflow.db")) as database:
        assert SECRET not in "\n".join(database.iterdump())


# ------------------------------------------------------------------------------------------------------- no code from storage


UNPICKLERS = {"pickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "pickle5", "jsonpickle"}
RUNNERS = {
    "eval", "exec", "compile", "builtins.eval", "builtins.exec", "os.system", "os.popen", "subprocess.getoutput",
    "subprocess.getstatusoutput", "yaml.unsafe_load", "yaml.unsafe_load_all", "yaml.full_load", "yaml.full_load_all",
    "pd.read_pickle", "pandas.read_pickle", "shutil.unpack_archive", "torch.jit.load", "torch.hub.load",
}  # fmt: skip


def dangers(text: str) -> list[str]:
    """What in a source file would run code that somebody else wrote."""
    tree, found = ast.parse(text), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [each.name for each in node.names if UNPICKLERS & set(each.name.split("."))]
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{each.name}" for each in node.names}
            # By its bare name a call could not be told from another.
            found += sorted(name for name in names if UNPICKLERS & set(name.split(".")) or _is_loader(name) or name in RUNNERS)
        elif isinstance(node, ast.ClassDef):
            found += [base for base in map(ast.unparse, node.bases) if base.startswith("yaml.") and base != "yaml.SafeLoader"]
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if (
                name in RUNNERS
                or (_is_loader(name) and not _is_harmless(name, given))
                or (name.endswith((".extractall", ".extract")) and given.get("filter") != "'data'")
                or given.get("shell", "False") != "False"
            ):
                found.append(name)
    return found


def _is_loader(name: str) -> bool:
    return name in {"torch.load", "np.load", "numpy.load", "yaml.load", "yaml.load_all"}


def _is_harmless(name: str, given: Mapping[str | None, str]) -> bool:
    """Every class that inherits from one of yaml's inherits from its safe one, as is seen to above."""
    if name == "torch.load":
        return given.get("weights_only") == "True"
    if name.startswith("yaml."):
        return given.get("Loader") in ("StudyLoader", "yaml.SafeLoader")
    return given.get("allow_pickle", "False") == "False"


@pytest.mark.parametrize(
    "path",
    sorted([*(ROOT / "css_ray").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_nothing_that_is_read_is_run(path: Path) -> None:
    # The one command that is run by a shell is the user's own, of --on-finish. An export tries the file that it has written.
    allowed = {"css_ray/study/hooks.py": ["subprocess.Popen"], "css_ray/prediction/export.py": ["torch.jit.load"]}
    assert dangers(path.read_text()) == allowed.get(str(path.relative_to(ROOT)), [])


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "import ray.cloudpickle as p",
        "from ray import cloudpickle",
        "from torch import load",
        "torch.load(path, weights_only=safe)",
        "class Loader(yaml.FullLoader): ...",
        "archive.extractall(folder, filter='fully_trusted')",
        "subprocess.run(command, shell=chosen)",
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
