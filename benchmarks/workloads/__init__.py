"""What the groups measure, and what it is compared with. Some are commands, which run in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from benchmarks import ROOT


def run_alone(workload: str, *arguments: object) -> Any:
    """The JSON on the last line that `python -m benchmarks.workloads.<workload> ARGUMENTS` prints."""
    command = [sys.executable, "-m", f"benchmarks.workloads.{workload}", *map(str, arguments)]
    ended = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(ended.stdout.splitlines()[-1])
