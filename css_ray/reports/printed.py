"""The published tables by the names that studies write."""

from __future__ import annotations

from css_ray.reports import field, paper
from css_ray.reports.published import PublishedTable

PRINTED: dict[str, PublishedTable] = {
    f"{group}/{name}": table
    for group, tables in (("paper", paper.TABLES), ("field", field.TABLES))
    for name, table in tables.items()
}


def printed_table(name: str) -> PublishedTable:
    """The table of a name: `paper/table1`, `field/voc_classic`. Raises ValueError that lists the names."""
    if name not in PRINTED:
        raise ValueError(f"no published table is called {name!r}; choose one of {', '.join(PRINTED)}")
    return PRINTED[name]
