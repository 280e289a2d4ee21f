"""`css-ray ui`: MLflow's pages over the studies of a storage folder."""

from __future__ import annotations

from pathlib import Path

import click

from css_ray.messages import DEFAULT_STORAGE

from .errors import BadInput
from .output import echo

MOST_PAGES = 20


@click.command()
@click.option(
    "--storage", default=DEFAULT_STORAGE, show_default=True, envvar="CSS_RAY_STORAGE", help="Folder that contains the studies."
)
@click.option(
    "--uri", envvar="MLFLOW_TRACKING_URI", help="MLflow tracking URI; by default the SQLite file in the storage folder."
)
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535), help="Port of the pages.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; the pages have no password.")
@click.option("--open", "open_", is_flag=True, help="Open the page of the study that changed last in the browser.")
def ui(storage: str, uri: str | None, port: int, host: str, open_: bool) -> None:
    """Show studies in the browser until Ctrl-C.

    Prints the page of each study: its trials with mean, std, n, method and number of labels, the best first.
    """
    import signal
    import socket
    import webbrowser

    from css_ray import tracking
    from css_ray.secrets import shown
    from css_ray.storage import is_url

    uri = uri or None
    if uri is not None and uri.startswith("http"):
        raise BadInput(f"MLflow is a server already: open {uri}")
    if is_url(storage):
        raise BadInput(f"{shown(storage)} is not a local folder; give the MLflow tracking URI of your studies with --uri")
    if uri is None:
        _check_holds_studies(storage)
    # Closing the terminal or ending this process must also end the server, which has a process group of its own.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    echo("Starting MLflow, this takes some seconds ...")
    try:
        server = tracking.start_server(uri or tracking.default_uri(storage), tracking.default_artifacts(storage), host, port)
    except (ValueError, RuntimeError, TimeoutError) as error:
        raise BadInput(str(error)) from error
    try:
        echo(f"MLflow: {server.url}  (Ctrl-C ends it)")
        try:
            pages = tracking.study_pages(uri or tracking.default_uri(storage), server.url)
        except ConnectionError as error:  # the server has started, and may have more luck
            echo(f"warning: the pages of the studies are not known: {error}", err=True)
            pages = {}
        for name, page in list(pages.items())[:MOST_PAGES]:
            echo(f"  {name}: {page}")
        if len(pages) > MOST_PAGES:
            echo(f"  and {len(pages) - MOST_PAGES} more, which MLflow lists")
        if open_ and not webbrowser.open(next(iter(pages.values()), server.url)):
            echo("warning: --open: this machine has no browser to open; copy an address above into one", err=True)
        target = server.url.removeprefix("http://")
        echo(f"From another machine: ssh -N -L {port}:{target} {socket.gethostname()}")
        status = server.wait()
        raise click.ClickException(f"the MLflow server exited by itself with status {status}")
    except KeyboardInterrupt:
        echo("\nEnding MLflow ...")
    finally:
        server.stop()


def _check_holds_studies(storage: str) -> None:
    """Refuse a folder without a study: MLflow would make an empty store of a misspelt name."""
    if _holds_studies(Path(storage)):
        return
    from css_ray.messages import command, did_you_mean

    folder = Path(storage).absolute()
    beside = folder.parent.iterdir() if folder.parent.is_dir() else ()
    near = did_you_mean(folder.name, sorted(path.name for path in beside if _holds_studies(path)))
    run = command("study", "run", "studies/quickstart.yaml")
    raise BadInput(f"--storage: {storage} holds no study and no mlflow.db{near or f'; start a study with: {run}'}")


def _holds_studies(folder: Path) -> bool:
    from css_ray.study.journal import studies_in

    return (folder / "mlflow.db").is_file() or bool(studies_in(str(folder)))
