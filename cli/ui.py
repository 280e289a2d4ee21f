"""`css-ray ui`: MLflow's pages over the studies of a storage folder."""

from __future__ import annotations

import click


@click.command()
@click.option("--storage", default="runs", show_default=True, envvar="CSS_RAY_STORAGE", help="Folder that holds the studies.")
@click.option(
    "--uri", envvar="MLFLOW_TRACKING_URI", help="MLflow tracking URI; by default the SQLite file in the storage folder."
)
@click.option("--port", default=5000, show_default=True, type=click.IntRange(1, 65535), help="Port of the pages.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; the pages have no password.")
def ui(storage: str, uri: str | None, port: int, host: str) -> None:
    """Show studies in the browser until Ctrl-C."""
    import signal
    import socket

    from css_ray import tracking

    from .errors import BadInput

    if uri is not None and uri.startswith("http"):
        raise BadInput(f"MLflow is a server already: open {uri}")
    if "://" in storage:
        raise BadInput(f"{storage} is no local folder; give the MLflow tracking URI of your studies with --uri")
    # Closing the terminal or ending this process must end the server too, which has a process group of its own.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    click.echo("Starting MLflow, this takes some seconds ...")
    try:
        server = tracking.start_server(uri or tracking.default_uri(storage), tracking.default_artifacts(storage), host, port)
    except (ValueError, RuntimeError, TimeoutError) as error:
        raise BadInput(str(error)) from error
    try:
        click.echo(f"MLflow: {server.url}  (Ctrl-C ends it)")
        target = server.url.removeprefix("http://")
        click.echo(f"From another machine: ssh -N -L {port}:{target} {socket.gethostname()}")
        status = server.wait()
        raise click.ClickException(f"the MLflow server ended by itself with status {status}")
    except KeyboardInterrupt:
        click.echo("\nEnding MLflow ...")
    finally:
        server.stop()
