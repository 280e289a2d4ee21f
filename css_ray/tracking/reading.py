"""A study read back from MLflow as records, and tables attached to its run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from css_ray.records import Record
from css_ray.secrets import shown
from css_ray.tracking.client import answering, connect, search_runs
from css_ray.tracking.forms import (
    JOURNAL,
    KIND,
    MAX_TAG,
    NOTE,
    PROJECTED,
    SPLIT,
    STUDY_ID,
    TRIAL,
    Key,
    cut,
    decode,
    ends_of,
    key_of,
)
from css_ray.tracking.pages import run_page, study_page

if TYPE_CHECKING:
    from mlflow.entities import Run


def read_records(uri: str, study: str) -> list[Record]:
    """The records of a study as `records_from_events` makes them from its journal, with `run_id` besides.

    Of several journals under one study name, the one that started last. Metric names that MLflow does not allow, texts longer
    than a tag, and values that are not finite come back as they were stored: replaced, cut, left out.
    Raises LookupError if MLflow knows no study of that name, ConnectionError if it does not answer.
    """
    with answering(uri):
        client = connect(uri)
        experiment = client.get_experiment_by_name(study)
        found = search_runs(client, [experiment.experiment_id]) if experiment else []
    journals = [run for run in found if run.data.tags.get(KIND) == "study"]
    if not journals:
        raise LookupError(f"MLflow at {shown(uri)} has no study {study!r}")
    journal = max(journals, key=lambda run: run.info.start_time).data.tags[JOURNAL]
    splits: dict[Key, Run] = {}
    for run in found:
        if run.data.tags.get(KIND) == "split" and run.data.tags[JOURNAL] == journal:
            key = key_of(run.data.tags)
            splits[key] = max(splits.get(key, run), run, key=lambda run: int(run.data.tags.get(PROJECTED, 0)))
    return sorted((_record(study, run) for run in splits.values()), key=lambda record: (record.trial, record.split))


def _record(study: str, run: Run) -> Record:
    tags, metrics = run.data.tags, run.data.metrics
    finished, failed = run.info.status == "FINISHED", run.info.status == "FAILED"
    last, best = ends_of(metrics)
    pruned = run.info.status == "KILLED" and tags.get("css_ray.status") == "pruned"
    return Record(
        study=study,
        trial=int(tags[TRIAL]),
        split=int(tags[SPLIT]),
        row=tags["css_ray.row"],
        source=tags["css_ray.source"],
        params={name: decode(value) for name, value in run.data.params.items()},
        status="finished" if finished else "failed" if failed else "pruned" if pruned else "running",
        seed=int(tags.get("css_ray.seed", 0)),
        split_hash=tags.get("css_ray.split_hash", ""),
        step=int(tags.get("css_ray.step", 0)),
        last=last if finished else {},
        best=best if finished else {},
        best_step=int(tags["css_ray.best_step"]) if finished else 0,
        seconds=float(tags["css_ray.seconds"]) if finished else 0.0,
        reason=tags["css_ray.reason"] if failed or pruned else "",
        run_id=run.info.run_id,
    )


def log_tables(uri: str, study_id: str, tables: Mapping[str, str]) -> str:
    """Attach tables ({"results.md": text, "results.csv": text, ...}) to the study's run and return the run's id.

    A file of the same name is replaced. The first Markdown table also becomes the run's description, with links to all.
    Raises LookupError if MLflow does not know the study, ConnectionError if it does not answer.
    """
    with answering(uri):
        client = connect(uri)
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        found = search_runs(client, experiments, f"tags.`{KIND}` = 'study'")
        found = [run for run in found if run.data.tags[STUDY_ID] == study_id]
        if not found:
            raise LookupError(f"MLflow at {shown(uri)} has no study with the id {study_id!r}")
        newest = max(found, key=lambda run: run.info.start_time).info
        run_id: str = newest.run_id
        for name, text in tables.items():
            client.log_text(run_id, text, name)
        notes = [text for name, text in tables.items() if name.endswith(".md")]
        if notes:
            experiment = newest.experiment_id
            links = [f"[All runs, the best trial first]({study_page(experiment)})"]
            links += [f"[{name}]({run_page(experiment, run_id, name)})" for name in tables]
            below = f"\n\n{' · '.join(links)}\n"
            client.set_tag(run_id, NOTE, cut(notes[0].rstrip(), MAX_TAG - len(below)) + below)
    return run_id
