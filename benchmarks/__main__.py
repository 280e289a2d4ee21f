"""Run the benchmarks: `python -m benchmarks [GROUP ...]`."""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys

from benchmarks import Row, UnavailableError, groups


def main(names: list[str]) -> int:
    known = sorted(module.name for module in pkgutil.iter_modules(groups.__path__))
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    failed = 0
    for name in names or known:
        try:
            for row in importlib.import_module(f"benchmarks.groups.{name}").rows():
                show(row)
                failed += not row.holds
        except UnavailableError as reason:
            print(f"{name}: skipped, {reason}", flush=True)
    return 1 if failed else 0


def show(row: Row) -> None:
    verdict = "holds" if row.holds else "DOES NOT HOLD"
    ratio = f"ratio {row.ratio:.3f} <= {row.target:.3g}: {verdict}"
    print(f"{row.name:72} {row.ours:8.3g} vs {row.other:8.3g} {row.unit:2}  {ratio}")
    fields = ("name", "ours", "other", "ratio", "target", "holds")
    print(json.dumps({field: getattr(row, field) for field in fields}), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
