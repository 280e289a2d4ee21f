"""Run the benchmarks: `python -m benchmarks [GROUP ...]`."""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys

import benchmarks


def main(groups: list[str]) -> int:
    known = sorted(module.name for module in pkgutil.iter_modules(benchmarks.__path__) if not module.name.startswith("_"))
    unknown = [group for group in groups if group not in known]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    failed = 0
    for group in groups or known:
        for row in importlib.import_module(f"benchmarks.{group}").rows():
            verdict = "holds" if row.holds else "DOES NOT HOLD"
            ratio = f"ratio {row.ratio:.3f} <= {row.target:g}: {verdict}"
            print(f"{row.name:64} {row.ours:8.3g} vs {row.other:8.3g} {row.unit}  {ratio}")
            print(
                json.dumps(
                    {
                        "name": row.name,
                        "ours": row.ours,
                        "other": row.other,
                        "ratio": row.ratio,
                        "target": row.target,
                        "holds": row.holds,
                    }
                ),
                flush=True,
            )
            failed += not row.holds
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
