"""What became of hostile inputs, by kind: accepted and right, refused in one message, or neither."""

from __future__ import annotations

from collections import Counter
from typing import Literal

Outcome = Literal["accepted", "refused", "failed"]


class Outcomes:
    """Counts outcomes by kind; `failures` are those that must not be."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, Outcome]] = Counter()
        self.failures: list[str] = []

    def add(self, kind: str, outcome: Outcome, why: str = "") -> None:
        self.counts[kind, outcome] += 1
        if outcome == "failed":
            self.failures.append(f"{kind}: {why}")

    def count(self, outcome: Outcome) -> int:
        """How many of all kinds ended so."""
        return sum(number for (_, each), number in self.counts.items() if each == outcome)

    def check(self, title: str) -> None:
        """Print the figures (`pytest -rP` shows them), and fail with the first of the failures."""
        columns: tuple[Outcome, ...] = ("refused", "accepted", "failed")
        lines = [f"{title:40}  {'tried':>6}  {'refused well':>12}  {'accepted':>8}  {'failed':>6}"]
        for kind in [*sorted({kind for kind, _ in self.counts}), "all"]:
            numbers = [self.count(each) if kind == "all" else self.counts[kind, each] for each in columns]
            lines.append(f"{kind:40}  {sum(numbers):6}  {numbers[0]:12}  {numbers[1]:8}  {numbers[2]:6}")
        print("\n".join(lines))
        assert not self.failures, f"{len(self.failures)} failed, such as:\n" + "\n".join(self.failures[:5])
