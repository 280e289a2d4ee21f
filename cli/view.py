"""What a study shows while it runs: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from css_ray.study.progress import Progress, TrialProgress

MAX_ROWS = 14
MARKS = {"running": "[cyan]…[/]", "finished": "[green]✓[/]", "partial": "[yellow]![/]", "failed": "[red]✗[/]"}


def duration(seconds: float | None) -> str:
    """Seconds as a reader says them: `42 s`, `3 min 05 s`, `2 h 10 min`; `?` for None."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def mean_std_text(mean: float | None, std: float | None) -> str:
    """`68.09 ± 4.89`; the mean alone where one split gives no std; a dash without a value."""
    if mean is None:
        return "–"
    return f"{mean:.2f}" if std is None else f"{mean:.2f} ± {std:.2f}"


def headline(progress: Progress, now: float) -> str:
    """One line: trials, runs, steps, best mean so far, time left."""
    best = progress.best
    parts = [
        f"trials {progress.trials_ended}/{progress.num_trials}",
        f"runs {progress.runs_ended}/{progress.num_runs}",
        f"steps {progress.steps_done}/{progress.num_steps}",
        "best " + ("–" if best is None else f"{best.mean:.2f} (trial {best.index})"),
        f"left {duration(progress.seconds_left(now))}",
    ]
    return " · ".join(parts)


def trial_rows(progress: Progress) -> Iterator[tuple[TrialProgress, list[str]]]:
    """A trial and its cells: row, one a split, mean ± std, mark."""
    for trial in progress.trials.values():
        cells = [trial.row]
        for split in progress.study.splits:
            run = trial.runs.get(split)
            if run is None:
                cells.append("·")
            elif run.status == "failed":
                cells.append("[red]failed[/]")
            elif run.status == "finished":
                cells.append(f"{run.score:.2f}")
            else:
                cells.append(
                    f"[dim]{100 * run.step / trial.iterations:.0f} %[/]"
                    + ("" if run.score is None else f" [dim]{run.score:.1f}[/]")
                )
        mean, std = progress.partial(trial)
        cells += [mean_std_text(mean, std), MARKS[trial.status]]
        yield trial, cells


def progress_table(progress: Progress, limit: int | None = None) -> Table:
    """One row a trial, one cell a split."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("trial", justify="right")
    table.add_column("row", max_width=22, no_wrap=True)
    for split in progress.study.splits:
        table.add_column(f"split {split}", justify="right")
    table.add_column("mean ± std", justify="right")
    table.add_column("")
    rows = list(trial_rows(progress))
    best = progress.best
    hidden = 0 if limit is None else max(0, len(rows) - limit)
    if hidden:
        # Those that run are what a watcher wants to see; of the rest, the latest.
        running = [row for row in rows if row[0].status == "running"]
        ended = [row for row in rows if row[0].status != "running"]
        keep = max(0, (limit or 0) - len(running))
        rows = ended[len(ended) - keep :] + running
    for trial, cells in rows:
        table.add_row(str(trial.index), *cells, style="bold" if best is trial else "")
    if hidden:
        table.caption = f"{hidden} earlier trials not shown"
    return table


class Watcher:
    """Shows a running study.

    On a terminal a table that follows it; elsewhere a line when a trial ends, and one every half minute.
    """

    def __init__(self, progress: Progress, console: Console) -> None:
        self.progress = progress
        self.console = console
        self.last_line = 0.0
        self.lock = threading.Lock()

    def event(self, event: dict[str, Any]) -> None:
        """Take an event; called by the runner."""
        with self.lock:
            self.progress.event(event)
            if not self.console.is_terminal:
                self._line(event)

    def _line(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        now = time.time()
        if kind == "trial_finished":
            trial = self.progress.trials[event["trial"]]
            value = f"{mean_std_text(event['mean'], event['std'])} (n={event['n']} of {event['num_splits']})"
            self._print(
                f"trial {trial.index} ({trial.row}) {event['status']}: {value}"
                + (f"; {event['reason']}" if event["reason"] else "")
            )
        elif now - self.last_line > 30 or kind in ("study_started", "study_resumed"):
            self._print(headline(self.progress, now))

    def _print(self, text: str) -> None:
        self.last_line = time.time()
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def __rich__(self) -> Group:
        with self.lock:
            name = Text(f"{self.progress.study.name} ", style="bold")
            return Group(name, progress_table(self.progress, MAX_ROWS), Text(headline(self.progress, time.time())))

    @contextmanager
    def live(self) -> Iterator[None]:
        """Show the table while inside, on a terminal."""
        if not self.console.is_terminal:
            yield
            return
        with Live(self, console=self.console, refresh_per_second=2, transient=True):
            yield
