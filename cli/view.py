"""What a study shows while it runs: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from css_ray.messages import printable
from css_ray.records import score_text

if TYPE_CHECKING:
    from css_ray.events import Event
    from css_ray.standing import Standing, TrialStanding, Trouble
    from css_ray.study.definition import StudyDefinition

    Study = Standing[StudyDefinition]

BLOCKS = "▁▂▃▄▅▆▇█"
MARKS = {"running": "…", "finished": "✓", "partial": "!", "failed": "✗", "pruned": "✂", "retried": "↻"}
COLORS = {"running": "cyan", "finished": "green", "partial": "yellow", "failed": "red", "pruned": "magenta"} | {
    "retried": "yellow"
}

ASCII = str.maketrans(
    dict(zip(BLOCKS, "_.:-=+*#", strict=True))
    | {"✓": "ok", "✗": "x", "✂": "%", "↻": "~", "…": "...", "·": ".", "–": "-", "±": "+-"}
)
"""What replaces the signs of the view on a terminal whose encoding lacks them."""

MAX_ROWS = 40  # of `status`; while the study runs, the number that fits the window
MAX_TROUBLES = 3
BEST_ROWS = 3
QUIET_SECONDS = 120.0  # without an event, before the view reports it
PLAIN_SECONDS = 30.0  # between two lines if there is no terminal

_GAP = 2  # columns between two columns of the table
_CURVE_WIDTH = 8
_REASON_LENGTH = 240  # characters; the run keeps the whole of it


def duration(seconds: float | None) -> str:
    """Seconds for a reader: `42 s`, `3 min 05 s`, `2 h 10 min`; `?` for None."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def sparkline(values: Sequence[float], lowest: float, highest: float, width: int = _CURVE_WIDTH) -> str:
    """The course of `values` in at most `width` blocks, from `lowest` to `highest`.

    Of more values than blocks, each block shows the last of its share, so that the line ends at the latest value.
    """
    count = min(width, len(values))
    shown = [values[(place + 1) * len(values) // count - 1] for place in range(count)]
    reach = (highest - lowest) or 1.0
    levels = (int((value - lowest) / reach * len(BLOCKS)) for value in shown)
    return "".join(BLOCKS[min(max(level, 0), len(BLOCKS) - 1)] for level in levels)


def fitting(text: str, encoding: str) -> str:
    """`text` as a terminal of `encoding` can show it, without what would command it."""
    text = printable(text)
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return text.translate(ASCII).encode("ascii", "replace").decode()
    return text


def labels_of(standing: Study) -> dict[int, str]:
    """What each trial of the grid is called, by index, see `css_ray.study.labels`."""
    from css_ray.study.labels import labels

    return labels(standing.definition.grid_trials())


def headline(standing: Study, labels: Mapping[int, str], now: float) -> list[str]:
    """Two lines: how far the study is, and the incumbent, what was spent and the time left."""
    ended = [f"{count} {status}" for status in ("pruned", "failed", "partial") if (count := standing.ended_as(status))]
    steps = standing.num_steps
    far = [
        f"trials {standing.trials_ended}/{standing.num_trials}" + (f" ({', '.join(ended)})" if ended else ""),
        f"runs {standing.runs_ended}/{standing.num_runs}",
        f"{100 * standing.steps_done // steps if steps else 100} % of the steps",
    ]
    best = standing.best
    value = (
        "–" if best is None else f"{score_text(best.mean, best.std)} (trial {best.index}, {labels.get(best.index, best.row)})"
    )
    objective = standing.definition.objective
    if best is not None and best.score is not None and objective.aggregate == "mean_minus_std":
        value = f"{best.score:.2f} = {objective.formula} of {value}"
    bounds = {"GPU": standing.definition.budget.gpu_hours, "CPU": standing.definition.budget.cpu_hours}
    worth = [f"best {value}"]
    for device, hours in standing.hours.items():
        bound = bounds[device]
        worth.append(f"{hours:.{2 if hours < 100 else 0}f} {'' if bound is None else f'of {bound:g} '}{device}-hours")
    if standing.status == "running":
        quiet = now - standing.latest
        # A stalled study has no pace, and one whose driver was killed cannot report that itself.
        worth.append(
            f"nothing new for {duration(quiet)}" if quiet > QUIET_SECONDS else f"left {duration(standing.seconds_left(now))}"
        )
    return [" · ".join(far), " · ".join(worth)]


def _run_cell(trial: TrialStanding, split: int) -> str:
    run = trial.runs.get(split)
    if run is None:
        return "·"
    if run.status in ("failed", "pruned"):
        return f"{MARKS[run.status]} {run.step}"
    if run.status == "finished":
        return f"{run.score:.2f}"
    return f"{100 * run.step / trial.iterations:.0f} %" + ("" if run.score is None else f" {run.score:.1f}")


def _splits_cell(trial: TrialStanding, splits: Sequence[int]) -> str:
    """All splits of a trial in one cell: how many are finished, and how far the one in progress is."""
    finished = sum(run.status == "finished" for run in trial.runs.values())
    others = [
        f"{split}: {_run_cell(trial, split)}"
        for split in splits
        if split in trial.runs and trial.runs[split].status != "finished"
    ]
    return " ".join([f"{finished}/{len(splits)}", *others[-1:]])


def chosen(standing: Study, limit: int) -> list[TrialStanding]:
    """The trials to show, by index: those that run, the best few, and the latest that ended; at most `limit`."""
    picked = {trial.index: trial for trial in list(standing.running.values())[:limit]}
    for trial in (*standing.best_trials(BEST_ROWS), *standing.latest_ended(limit)):
        if len(picked) < limit:
            picked[trial.index] = trial
    return [picked[index] for index in sorted(picked)]


def progress_table(
    standing: Study, labels: Mapping[int, str], width: int, limit: int = MAX_ROWS, encoding: str = "utf-8"
) -> Table:
    """One row per trial, one column per split, in `width` characters; splits that do not fit share one column."""
    trials, splits, best = chosen(standing, limit), standing.definition.splits, standing.best
    curves = {
        trial.index: sparkline(trial.curve, standing.lowest or 0.0, standing.highest or 0.0) if trial.curve else ""
        for trial in trials
    }
    apart = [f"split {split}" for split in splits]
    cells = {trial.index: [_run_cell(trial, split) for split in splits] for trial in trials}
    ends = {trial.index: [score_text(*trial.partial), curves[trial.index], MARKS[trial.status]] for trial in trials}
    headers = ["trial", "row", *apart, "mean ± std", "val mIoU", ""]
    rows = {
        trial.index: [str(trial.index), labels.get(trial.index, trial.row), *cells[trial.index], *ends[trial.index]]
        for trial in trials
    }
    needed = [max(map(cell_len, column)) for column in zip(headers, *rows.values(), strict=True)]
    if sum(needed) - max(0, needed[1] - 12) + _GAP * (len(headers) - 1) > width:
        headers[2 : 2 + len(splits)] = ["splits"]
        for trial in trials:
            rows[trial.index][2 : 2 + len(splits)] = [_splits_cell(trial, splits)]
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for position, header in enumerate(headers):
        # The row's label alone may take a second line.
        right = header not in ("row", "val mIoU", "splits", "")
        table.add_column(
            fitting(header, encoding), justify="right" if right else "left", no_wrap=position != 1, overflow="fold"
        )
    for trial in trials:
        texts = [Text(fitting(text, encoding)) for text in rows[trial.index]]
        texts[-1].stylize(COLORS[trial.status])
        if trial.status != "finished":
            texts[-3].stylize("dim")  # a mean over some of the splits
        table.add_row(*texts, style="bold" if best is trial else "")
    if hidden := len(standing.trials) - len(trials):
        table.caption = Text(f"{hidden} more trial{'s' if hidden > 1 else ''} not shown")
        table.caption_justify = "left"
    return table


def _trouble_row(trouble: Trouble) -> tuple[str, str]:
    place = f"trial {trouble.trial}" + ("" if trouble.split is None else f" split {trouble.split}")
    step = "" if trouble.step is None else f"step {trouble.step}: "
    reason = " ".join(trouble.reason.split())
    short = reason if len(reason) <= _REASON_LENGTH else f"{reason[: _REASON_LENGTH - 1]}…"
    return f"{MARKS[trouble.status]} {place} {trouble.status}", step + short


def trouble_table(standing: Study, limit: int = MAX_TROUBLES, encoding: str = "utf-8") -> RenderableType:
    """Why the latest runs and trials failed or were pruned, latest first."""
    table = Table.grid(padding=(0, _GAP, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for trouble in standing.latest_troubles(limit):
        place, reason = _trouble_row(trouble)
        table.add_row(Text(fitting(place, encoding), style=COLORS[trouble.status]), Text(fitting(reason, encoding)))
    if (more := len(standing.troubles) - limit) > 0:
        table.add_row(Text(f"and {more} more"), Text(""))
    return table


class View:
    """All of a study's progress as rich draws it.

    rows: the most trials to show; by default the number that fits the window. troubles: the most reasons to show. labels: what
    trials are called, made of the definition if not given.
    """

    def __init__(
        self,
        standing: Study,
        rows: int | None = None,
        troubles: int = MAX_TROUBLES,
        labels: Mapping[int, str] | None = None,
    ) -> None:
        self.standing = standing
        self.rows = rows
        self.troubles = troubles
        self.labels = labels_of(standing) if labels is None else labels

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        standing, encoding = self.standing, options.encoding
        # The window also holds the head, the table's header and caption, and two lines for each trouble.
        rows = self.rows or max(4, console.size.height - 7 - 2 * self.troubles)
        why = f", {standing.pause}" if standing.pause else ""
        yield Text(fitting(f"{standing.definition.name}: {standing.status}{why}", encoding), style="bold")
        for line in headline(standing, self.labels, time.time()):
            yield Text(fitting(line, encoding))
        if standing.trials:
            yield progress_table(standing, self.labels, options.max_width, rows, encoding)
        if standing.troubles:
            yield Group(Text(""), trouble_table(standing, self.troubles, encoding))


class Watcher:
    """Shows a running study.

    On a terminal it is a table that follows the study; elsewhere one line when a trial ends, and one every half minute.
    """

    def __init__(self, standing: Study, console: Console) -> None:
        self.standing = standing
        self.console = console
        self.moving = console.is_terminal and not console.is_dumb_terminal
        self.last_line = 0.0
        self.lock = threading.Lock()
        self._labels: dict[int, str] | None = None

    @property
    def labels(self) -> dict[int, str]:
        """Made once: the grid of a study does not change."""
        if self._labels is None:
            self._labels = labels_of(self.standing)
        return self._labels

    def event(self, event: Event) -> None:
        """Take an event into account; called by the runner."""
        with self.lock:
            self.standing.add(event)
            if not self.moving:
                self._line(event)

    def _line(self, event: Event) -> None:
        from css_ray.events import (
            StudyFinished,
            StudyInterrupted,
            StudyPaused,
            StudyResumed,
            StudyStarted,
            TrialFinished,
            TrialRetried,
        )  # fmt: skip

        if isinstance(event, TrialFinished):
            row, n = self.standing.trials[event.trial].row, f"n={event.n} of {event.num_splits}"
            label = self.labels.get(event.trial, row)
            self._print(
                f"trial {event.trial} ({label}) {event.status}: {score_text(event.mean, event.std)} ({n})"
                + (f"; {event.reason}" if event.reason else "")
            )
        elif isinstance(event, StudyInterrupted | StudyPaused):
            self._print(f"{self.standing.status}: {event.reason}")
        elif isinstance(event, TrialRetried):
            self._print(f"trial {event.trial} continues from its last checkpoint: {event.reason}")
        elif time.time() - self.last_line > PLAIN_SECONDS or isinstance(event, StudyStarted | StudyResumed | StudyFinished):
            self.summary()

    def summary(self) -> None:
        """Print how far the study is, in one line."""
        self._print(" · ".join(headline(self.standing, self.labels, time.time())))

    def _print(self, text: str) -> None:
        self.last_line = time.time()
        self.console.print(fitting(text, self.console.encoding), markup=False, highlight=False, soft_wrap=True)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        with self.lock:
            yield from View(self.standing, labels=self.labels).__rich_console__(console, options)

    @contextmanager
    def live(self) -> Iterator[None]:
        """Show the table within the block, if this is a terminal."""
        if not self.moving:
            yield
            return
        with Live(self, console=self.console, refresh_per_second=2, transient=True):
            yield
