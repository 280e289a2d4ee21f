"""The pages of MLflow that a study opens with: what the view asks for, and what a browser shows of it."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import time
from pathlib import Path

import aiohttp
import pytest
from click.testing import CliRunner
from mlflow import MlflowClient

from css_ray import tracking
from css_ray.events import TrialFinished
from css_ray.tracking import forms, pages
from tests.tracking.test_tracking import CLASSES, Journal, empty_database, uri, whole_journal

__all__ = ["empty_database", "uri"]  # fixtures

HOSTILE = ["<script>alert(1)</script>", "a & b_c", "=cmd|' /C calc'!A0", "[x](javascript:alert(1))"]


def three_trials(rows: tuple[str, ...] = ("CSS (mix)", "Sup.", "MT")) -> Journal:
    """Trials of two splits whose means are 53.5, 60.25 and 57."""
    journal = Journal()
    for trial, (row, mean) in enumerate(zip(rows, (53.5, 60.25, 57.0), strict=False)):
        journal.start_trial(trial, row=row)
        for split in (0, 1):
            journal.start_run(trial, split)
            journal.train(trial, split, range(1, 4))
            journal.finish_run(trial, split, step=3)
        journal.finish_trial(trial, {"0": mean - 0.5, "1": mean + 0.5}, num_splits=2, mean=mean)
    return journal


def test_a_study_has_a_view_of_its_trials(uri: str) -> None:
    tracking.sync(whole_journal(), uri)
    value = json.loads(MlflowClient(uri).get_experiment("1").tags["mlflow.sharedViewState.css-ray"])
    # As MLflow's page checks it: a name, whole milliseconds, and the state as text.
    assert set(value) == {"name", "createdAt", "updatedAt", "state"} and value["createdAt"] == 1_700_000_001_125
    state = json.loads(value["state"])
    assert (state["orderByKey"], state["orderByAsc"]) == ("metrics.`mean`", False)
    shown = [column.partition(".")[2].strip("`") for column in state["selectedColumns"]]
    assert shown == ["mean", "std", "n", "method.name", "data.labelled"]
    (address,) = tracking.study_pages(uri, "http://127.0.0.1:5000").values()
    assert address == ("http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=css-ray")


def test_a_view_that_a_user_changed_is_kept_and_a_missing_one_made(uri: str) -> None:
    tracking.sync(whole_journal()[:5], uri)
    client = MlflowClient(uri)
    client.set_experiment_tag("1", pages.VIEW, "theirs")
    tracking.sync(whole_journal(), uri)
    assert client.get_experiment("1").tags[pages.VIEW] == "theirs"
    client.delete_experiment_tag("1", pages.VIEW)
    assert tracking.study_pages(uri, "") == {}
    tracking.sync(whole_journal(), uri)
    assert client.get_experiment("1").tags[pages.VIEW] == pages.view(1_700_000_001_125)


def test_single_dots_come_after_the_curves(uri: str) -> None:
    """MLflow draws the charts in the order of the metrics' names."""
    tracking.sync(whole_journal(), uri)
    client = MlflowClient(uri)
    (run,) = client.search_runs(["1"], "tags.`css_ray.trial` = '0' and tags.`css_ray.split` = '0'")
    dots = {name for name in run.data.metrics if len(client.get_metric_history(run.info.run_id, name)) == 1}
    curves = set(run.data.metrics) - dots
    assert dots == {"values/last/val/miou", "values/best/val/miou"}
    assert {"train/loss", "val/miou", f"val/iou/{CLASSES[0]}"} <= curves and max(curves) < min(dots)


def test_names_of_earlier_versions_are_read() -> None:
    metrics = {"last/val/miou": 1.0, "best/val/miou": 2.0, "val/miou": 3.0}
    assert forms.ends_of(metrics) == ({"val/miou": 1.0}, {"val/miou": 2.0})
    assert forms.ends_of({f"values/{name}": value for name, value in metrics.items()}) == ({"val/miou": 1.0}, {"val/miou": 2.0})


def test_the_study_links_to_its_runs_and_to_its_tables(uri: str) -> None:
    tracking.sync(whole_journal(), uri)
    run_id = tracking.log_tables(uri, "id-1", {"results.md": "| a |\n", "results.tex": "x"})
    note = MlflowClient(uri).get_run(run_id).data.tags["mlflow.note.content"]
    view = "#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=css-ray"
    assert note == (
        f"| a |\n\n[All runs, the best trial first]({view}) · [results.md](#/experiments/1/runs/{run_id}/artifacts/results.md)"
        f" · [results.tex](#/experiments/1/runs/{run_id}/artifacts/results.tex)\n"
    )
    tracking.log_tables(uri, "id-1", {"results.md": "x" * 9000})
    note = MlflowClient(uri).get_run(run_id).data.tags["mlflow.note.content"]
    assert len(note) == 8000 and note.endswith("results.md)\n")


@pytest.mark.parametrize("text", HOSTILE)
def test_a_note_has_no_link_of_others(text: str) -> None:
    event = TrialFinished(time=0.0, trial=0, status="failed", reason=text, values={}, mean=None, std=None, n=0, num_splits=1)
    note = forms.trial_note("–", event, {0: text}, {0: pages.run_page("1", "abc"), None: pages.run_page("1", "def", "a b.md")})
    assert "| [0](#/experiments/1/runs/abc) | " in note and "(#/experiments/1/runs/def/artifacts/a%20b.md)" in note
    assert note.replace("\\[", "").count("[") == 2 and "<script" not in note


class Started:
    """In place of a server."""

    url = "http://127.0.0.1:5000"

    def wait(self) -> int:
        raise KeyboardInterrupt

    def stop(self) -> None: ...


@pytest.mark.parametrize("browser", [True, False])
def test_ui_prints_and_opens_the_page(browser: bool, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from css_ray_cli.main import main

    tracking.sync(whole_journal(), uri)
    opened: list[str] = []

    def open_page(address: str) -> bool:
        opened.append(address)
        return browser

    monkeypatch.setattr("webbrowser.open", open_page)
    monkeypatch.setattr(tracking, "start_server", lambda *arguments: Started())
    monkeypatch.setattr("signal.signal", lambda *arguments: None)
    page = "http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=css-ray"
    printed = CliRunner().invoke(main, ["ui", "--uri", uri])
    assert printed.exit_code == 0 and f"  toy: {page}\n" in printed.output and not opened
    printed = CliRunner().invoke(main, ["ui", "--uri", uri, "--open"])
    assert printed.exit_code == 0 and opened == [page]
    assert ("no browser to open" in printed.output) != browser


async def shown_text(chromium: str, profile: Path, page: str, wanted: str, seconds: float = 240.0) -> str:
    """The text of a page, as innerText has it, once `wanted` is a part of it."""
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1800,1000"]
    options += ["--disable-background-networking", "--no-first-run", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
    browser = subprocess.Popen([chromium, *options, page], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    text, limit = "", time.monotonic() + seconds
    try:
        while not (profile / "DevToolsActivePort").exists() and time.monotonic() < limit:
            await asyncio.sleep(0.2)
        port = (profile / "DevToolsActivePort").read_text().split()[0]
        async with aiohttp.ClientSession() as session:
            while wanted not in text and time.monotonic() < limit:
                await asyncio.sleep(1.0)
                tabs = await (await session.get(f"http://127.0.0.1:{port}/json")).json(content_type=None)
                (address,) = [tab["webSocketDebuggerUrl"] for tab in tabs if tab["type"] == "page"]
                async with session.ws_connect(address, max_msg_size=0) as socket_:
                    await socket_.send_json(
                        {"id": 1, "method": "Runtime.evaluate", "params": {"expression": "document.body.innerText"}}
                    )
                    text = (await socket_.receive_json())["result"]["result"].get("value", "")
    finally:
        browser.terminate()
        browser.wait(30)
    return text


@pytest.mark.slow
def test_a_browser_shows_the_trials_by_their_mean(uri: str, tmp_path: Path) -> None:
    """The real page in a real browser: MLflow documents neither the address nor the view."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium")
    tracking.sync(three_trials(("CSS (mix)", "<b>Sup.</b>", "MT")).events, uri)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = tracking.start_server(uri, tmp_path / "artifacts", port=port)
    try:
        (page,) = tracking.study_pages(uri, server.url).values()
        text = asyncio.run(shown_text(chromium, tmp_path / "profile", page, "60.25"))
    finally:
        server.stop()
    order = [text.index(name) for name in ("<b>Sup.</b> #1", "MT #2", "CSS (mix) #0")]
    assert order == sorted(order), text
    assert [mean for mean in ("60.25", "57", "53.5") if mean in text] == ["60.25", "57", "53.5"]
    assert all(column in text for column in ("mean", "std", "method.name", "data.labelled")), text
