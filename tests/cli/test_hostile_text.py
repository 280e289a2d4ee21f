"""What others wrote (a journal, a file's name) is shown, and commands neither a terminal nor a browser nor a spreadsheet."""

from __future__ import annotations

import ast
import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt
from rich.console import Console

from css_ray import Study
from css_ray.events import TrialFinished
from css_ray.records import Record
from css_ray.reports.render import to_csv, to_html, to_latex, to_markdown, to_text
from css_ray.reports.table import make_table, trial_table
from css_ray.tracking.forms import trial_note
from tests.cli.made_up import SPEC, Journal, call, refused

ROOT = Path(__file__).parents[2]
CLIPBOARD = "\x1b]52;c;cm0gLXJmIH4=\x07"  # OSC 52: a terminal puts the text into the clipboard
HOSTILE = [
    CLIPBOARD,
    "\x9b31m",  # an escape sequence in one character
    "up\x1b[1A\rdown",
    "\u202emoc.elpmaxe",  # reads from right to left
    "bell\x07\x00\x7f",
]
COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def harmless(text: str) -> bool:
    return COMMANDS.search(text) is None


def studied(row: str, reason: str) -> Study:
    """A study whose journal is another's: a row and reasons that are hostile. What no study may hold is in the reason alone."""
    method = {**SPEC["grid"]["method"][0], "row": row.replace("\x00", "")}
    journal = Journal(grid={"method": [method, {**method, "row": "Sup."}]})
    journal.begin(0)
    journal.run(0, 0, end="failed")
    journal.run(0, 1, 40.0)
    journal.end(0, {1: 40.0}, "partial", reason)
    journal.whole(1, {0: 50.0, 1: 60.0})
    return Study.open("small")


@pytest.mark.parametrize("text", HOSTILE)
def test_no_command_prints_it(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CSS_RAY_STORAGE", raising=False)
    studied(f"row {text}", f"reason {text}")
    for command in (["status", "small"], ["list"], ["table", "small"], ["table", "small", "--trials"], ["compare", "small"]):
        for more in ([], ["--format", "md"], ["--format", "csv"], ["--format", "latex"], ["--format", "html"]):
            if more and command[0] in ("status", "list"):
                continue
            result = call("study", *command, *more)
            assert result.exit_code == 0, (result.output, result.exception)
            assert harmless(result.output), (command, more, result.output)
            assert "row " in result.output or command == ["list"]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_message_quotes_it(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("study.yaml").write_text(yaml.safe_dump({**SPEC, "description": text, "seed": text, text: 1}))
    assert harmless(refused("study", "plan", "study.yaml"))
    for command in (["study", "plan", text], ["study", "status", text], [text], ["methods", text], [f"--{text}"]):
        assert harmless(refused(*[part.replace("\x00", "") for part in command]))


def test_the_plan_shows_a_description_and_a_path_that_are_hostile(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = f"s{CLIPBOARD.replace('/', '')}.yaml"
    Path(file).write_text(yaml.safe_dump({**SPEC, "data": {**SPEC["data"], "root": str(data)}, "description": CLIPBOARD}))
    result = call("study", "plan", file, "--no-measure")
    assert result.exit_code == 0 and harmless(result.output), result.output
    assert r"\x1b]52;c;" in result.output and r"css-ray study run $'s\x1b]52;c;" in result.output


@pytest.mark.parametrize("text", HOSTILE)
def test_the_live_view_shows_no_command(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from css_ray_cli.view import View, Watcher

    monkeypatch.chdir(tmp_path)
    standing = studied(f"row {text}", f"reason {text}").standing
    console = Console(file=io.StringIO(), width=200, force_terminal=False)
    console.print(View(standing))
    watcher = Watcher(standing, console)
    trial = standing.trials[0]
    watcher._line(
        TrialFinished(
            time=0.0, trial=0, status="failed", reason=text, values={}, mean=None, std=None, n=0, num_splits=len(trial.runs)
        )
    )
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "row " in shown and harmless(shown)


def test_the_log_is_plain_and_without_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    import logging

    from css_ray_cli.main import _log_in_words

    with _log_in_words():
        logging.getLogger("css_ray.execution").warning("node %s at http://ann:hunter2@h/x", CLIPBOARD)
    said = capsys.readouterr().err
    assert said == "node \\x1b]52;c;cm0gLXJmIH4=\\x07 at http://h/x\n"


def test_every_command_prints_by_echo() -> None:
    """click's own `echo` prints what it is given, and so does `print`."""
    for path in sorted((ROOT / "cli").rglob("*.py")):
        names = [ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        used = {"click.echo", "click.secho", "print", "sys.stdout.write"}.intersection(names)
        assert not used or path.name == "output.py", (path, used)


# -------------------------------------------------------------------------------------------------------------------- tables

LINKS = [
    "[x](javascript:alert(1))",
    "![x](http://h/track.png)",
    "<script>alert(1)</script>",
    "<javascript:alert(1)>",
    "<img src=x onerror=alert(1)>",
    "a | b | c",
    "[x][y]\n\n[y]: javascript:alert(1)",
    "`code` **bold** __bold__ ~~gone~~ _it_ \\",
    "&lt;b&gt; &#106;avascript",
    "method.num_queries",
    "x\n\n# heading\n<b>",
]


def record(row: str, reason: str = "", **params: Any) -> Record:
    status: Any = "failed" if reason else "finished"
    last = {} if reason else {"val/miou": 50.0}
    return Record(
        study="toy", trial=0, split=0, row=row, source="grid", params=params, status=status, last=last, best=last, reason=reason
    )


class Page(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert not {"href", "src", "onerror"} & dict(attrs).keys()

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize("text", LINKS)
def test_markdown_has_no_link_and_no_html_of_others(text: str) -> None:
    """By another program's reading: what comes out is the text itself, in the cells of our table alone."""
    markdown = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    for table in (
        make_table([record(text)]),
        trial_table([record("x", **{"data.root": text})], params=["data.root"]),
        make_table([record("x", text)]),
    ):
        page = Page(markdown.render(to_markdown(table)))
        assert page.tags <= {"p", "table", "thead", "tbody", "tr", "th", "td", "ul", "li", "strong"}, page.tags
        assert " ".join(text.split()) in " ".join(page.text.split())
    note = Page(markdown.render(trial_note("–", _finished(" ".join(text.split())), {0: text})))
    assert note.tags <= {"p", "table", "thead", "tbody", "tr", "th", "td", "strong"} and " ".join(text.split()) in note.text


def _finished(reason: str) -> TrialFinished:
    return TrialFinished(time=0.0, trial=0, status="failed", reason=reason, values={}, mean=None, std=None, n=0, num_splits=1)


@pytest.mark.parametrize("text", [*LINKS, *HOSTILE])
def test_html_is_text_alone(text: str) -> None:
    page = Page(to_html(make_table([record(text)])))
    assert page.tags <= {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "table",
        "caption",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "b",
    }
    assert harmless(page.text)
    if text not in HOSTILE:
        assert " ".join(text.split()) in " ".join(page.text.split())


FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", '=HYPERLINK("http://h","x")', "-a", "- 1", "-1e"]


@pytest.mark.parametrize("text", FORMULAS)
def test_a_spreadsheet_computes_no_text(text: str) -> None:
    (line,) = csv.DictReader(io.StringIO(to_csv(trial_table([record(text, **{"data.root": text})], params=["data.root"]))))
    assert line["row"][0] == line["data.root"][0] == "'"
    assert line["row"][1:].removeprefix("\\r").lstrip() == text.lstrip()


@pytest.mark.parametrize("value", [-0.5, -3, "-0.5", "+1e-3", 1e-05, None, "CSS (mix)", "a=b"])
def test_numbers_stay_numbers(value: Any) -> None:
    (line,) = csv.DictReader(io.StringIO(to_csv(trial_table([record("x", **{"train.lr": value})], params=["train.lr"]))))
    assert line["train.lr"] == ("" if value is None else str(value))


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("render", [to_text, to_markdown, to_csv, to_latex, to_html])
def test_no_format_holds_control_characters(text: str, render: Any) -> None:
    for table in (make_table([record(text)]), make_table([record("x", text)]), trial_table([record("x", **{text: text})])):
        assert harmless(render(table))
