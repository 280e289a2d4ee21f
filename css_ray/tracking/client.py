"""The way to MLflow: a client with short time limits, and the reason in one line if it does not answer."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from css_ray.secrets import shown, without_secrets

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


# With the client's own defaults one call to a dead server blocks for four minutes, and one to a hung server for twenty. It also
# repeats `create_run` blindly; the tracker tries again by itself, after a look at what is there.
SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


DATABASE, ARTIFACTS = "mlflow.db", "artifacts"
"""What MLflow has in a storage folder, beside the studies."""


def default_uri(storage: str | Path) -> str:
    """The tracking URI of a storage folder: an SQLite file in it. The folder must be on a local disk."""
    return f"sqlite:///{Path(storage).resolve() / DATABASE}"


def default_artifacts(storage: str | Path) -> str:
    """The folder of a storage folder that holds MLflow's artifacts."""
    return str(Path(storage).resolve() / ARTIFACTS)


def load() -> None:
    """Import MLflow with our settings, which takes seconds the first time."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    # Only now: telemetry starts with the import.
    import mlflow  # noqa: F401


def connect(uri: str) -> MlflowClient:
    load()
    from mlflow import MlflowClient

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    if (file := sqlite_file(uri)) is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Readers no longer block the writer, which makes several of them twice as fast. The file itself remembers it.
        with closing(sqlite3.connect(file, timeout=20)) as database:
            database.execute("PRAGMA journal_mode=wal")
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https") and parts.username is not None:
        # MLflow quotes its URI in what it raises and logs, but not what it is given this way.
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(parts.username)
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(parts.password or "")
        uri = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    try:
        return MlflowClient(tracking_uri=uri)
    except Exception as error:
        raise ValueError(f"MLflow cannot open {shown(uri)}: {without_secrets(error).strip()}") from None


def check(uri: str) -> str:
    """Reach MLflow at `uri` and report what is there. Raises ConnectionError if it does not answer."""
    from mlflow import __version__

    with answering(uri):
        experiments = connect(uri).search_experiments()
    return f"{__version__}, {len(experiments)} experiments at {shown(uri)}"


@contextmanager
def answering(uri: str) -> Iterator[None]:
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, OSError) as error:
        raise ConnectionError(f"MLflow at {shown(uri)} does not answer: {cause(error)}") from error


def cause(error: BaseException) -> str:
    """Why a call failed, in a line: MLflow wraps a silence or a refused connection in four exceptions with one text."""
    seconds = os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT", "")
    words = {
        "ReadTimeoutError": f"it took a request and did not answer within {seconds} s",
        "ConnectTimeoutError": f"no connection within {seconds} s",
        "ConnectionRefusedError": "the connection was refused",
    }
    if "error code 401" in str(error):
        return (
            "it does not take the user and the password; give its own by MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or in ~/.mlflow/credentials"
        )
    inner: BaseException | None = error
    while inner is not None:
        if type(inner).__name__ in words:
            return words[type(inner).__name__]
        inner = inner.__cause__ or inner.__context__
    return next(iter(without_secrets(error).splitlines()), type(error).__name__)[:300]


def sqlite_file(uri: str) -> Path | None:
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]) if uri.startswith("sqlite:///") else None


def artifact_root_of(uri: str, artifact_root: str | Path | None) -> str | None:
    file = sqlite_file(uri)
    if artifact_root is None and file is not None:
        artifact_root = default_artifacts(file.parent)
    if artifact_root is None or "://" in str(artifact_root):
        return artifact_root if artifact_root is None else str(artifact_root)
    return Path(artifact_root).resolve().as_uri()


def search_runs(client: MlflowClient, experiment_ids: list[str], filter_string: str = "") -> list[Run]:
    runs: list[Run] = []
    token = None
    while True:
        page = client.search_runs(experiment_ids, filter_string, page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs
