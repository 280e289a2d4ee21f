"""Recorded trainings: `record` adds to `recorded.jsonl`, `replay` runs studies over it. Both are commands."""

from __future__ import annotations

from pathlib import Path

TABLE = Path(__file__).parent / "recorded.jsonl"
"""200 settings of the quick start's search: one line per configuration."""
