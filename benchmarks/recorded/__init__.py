"""Recorded trainings: `record` adds to `recorded.jsonl`, `replay` runs studies over it. Both are commands.

`digits_all.jsonl` and `camvid_all_h200.jsonl` are what `benchmarks.one_gpu train` wrote, for its `collect`; the first without
the points of the curves between two evaluations (`run_logged`), which no table needs.
"""

from __future__ import annotations

from pathlib import Path

TABLE = Path(__file__).parent / "recorded.jsonl"
"""200 settings of the quick start's search: one line per configuration."""
