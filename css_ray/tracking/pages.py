r"""MLflow's pages of a study: addresses within its server, and the view of the trials that a study opens with.

A view is a tag of the experiment, `mlflow.sharedViewState.KEY`, which the page loads if its address ends with
`viewStateShareKey=KEY`. Its value is JSON: name, createdAt and updatedAt in milliseconds, and state, JSON within JSON: filters
and order, which the page also writes into its address, and the columns, each `kind.\`name\``. Its form is that of MLflow's
pages, which have no documentation of it: try `css-ray ui` in a browser when MLflow is upgraded.
"""

from __future__ import annotations

import json
from urllib.parse import quote

from css_ray.tracking.client import answering, connect

_KEY = "css-ray"
VIEW = f"mlflow.sharedViewState.{_KEY}"
_COLUMNS = ("metrics.`mean`", "metrics.`std`", "metrics.`n`", "params.`method.name`", "params.`data.labelled`")


def view(milliseconds: int) -> str:
    """The tag's value: the trials by their mean, best first, with std, n, method and labels. Runs without a mean come last."""
    state = {"orderByKey": _COLUMNS[0], "orderByAsc": False, "selectedColumns": list(_COLUMNS)}
    made = {"name": "css-ray: trials, best first", "createdAt": milliseconds, "updatedAt": milliseconds}
    return json.dumps(made | {"state": json.dumps(state)})


def study_page(experiment_id: str) -> str:
    """Where the runs of a study are shown by `view`. Without the workflow's type MLflow opens a page for language models."""
    return f"#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={_KEY}"


def run_page(experiment_id: str, run_id: str, file: str | None = None) -> str:
    """Where a run is shown, or a file among its artifacts."""
    more = "" if file is None else f"/artifacts/{quote(file)}"
    return f"#/experiments/{experiment_id}/runs/{run_id}{more}"


def study_pages(uri: str, server: str) -> dict[str, str]:
    """The addresses of the pages of all studies at `uri`, by name, the one that changed last first.

    Raises ConnectionError if MLflow does not answer.
    """
    with answering(uri):
        found = connect(uri).search_experiments(order_by=["last_update_time DESC"])
    return {each.name: f"{server}/{study_page(each.experiment_id)}" for each in found if VIEW in each.tags}
