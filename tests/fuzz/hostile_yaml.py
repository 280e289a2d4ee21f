"""Hostile study files, from a seed: other types, other sizes, other structures, and other bytes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import yaml

SPEC: dict[str, Any] = {
    "study": "small",
    "description": "a small study",
    "objective": {"aggregate": "mean", "at": "last"},
    "data": {"dataset": "digits", "root": "digits", "labelled": 12, "crop": 32, "labelled_batch": 4, "unlabelled_batch": 4, "val_batch": 50},
    "views": {"flip": False, "scale": [0.5, 1.5]},
    "model": {"encoder": "tiny", "output_stride": 4, "pretrained": False, "decoder_channels": 8, "low_level_channels": 4, "aspp_rates": [1, 2]},
    "train": {"iterations": 6, "lr": 0.05, "evaluate_every": 3, "log_every": 2},
    "seed": 0,
    "method": {"name": "css", "row": "CSS", "num_queries": 8, "num_negatives": 8},
    "splits": [0, 1],
    "grid": {"method": [{"name": "supervised", "row": "Sup."}, {"name": "css", "preset": "paper"}], "train.lr": [0.05, 0.1]},
    "trials": [{"train.lr": 0.2}, {"method": {"name": "cutmix"}, "data.labelled": 24}],
    "search": {
        "method": {"name": "css", "num_queries": 8, "num_negatives": 8},
        "trials": 3,
        "space": {"method.temperature": {"loguniform": [0.1, 1.0]}, "train.iterations": {"int": [4, 8]}, "model.output_stride": {"choice": [4, 8]}},
        "sampler": "tpe",
        "pruners": [{"name": "median"}],
        "first": [{"method.temperature": 0.5, "train.iterations": 6, "model.output_stride": 4}],
        "confirm": 1,
    },
    "resources": {"workers": 1, "cpus_per_worker": 1, "concurrent_trials": 1, "retries": 1, "hang_seconds": 60},
    "budget": {"hours": 1.5, "cpu_hours": 2},
    "keep": {"top": 2, "min_free_gb": 0.001},
    "table": {"columns": "train.lr", "compare_with": "paper/table1"},
    "tracking": {"uri": None},
}  # fmt: skip
"""A study with all that a study may have."""

BILLION = 10**9
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 2.5, -0.0, BILLION, -BILLION, 2**31, 2**63, 2**64, 10**30, 10**400, -(10**400),
    float("nan"), float("inf"), float("-inf"), 1e308, 5e-324, "", " ", "x", "0", "1e9", "null", "x" * 300, "x" * 20_000, "\x00",
    "\ud800", "\x1b]52;c;eA==\x07", "a\nb", "..", "../x", "/", "/dev/null", "~", "{split}", "{labelled", "{0}", "{split:9999999999d}", "%s%n",
    "x://y", "http://ann:pw@h/x", "s3://b/x;token=abc", "//ann:pw@h/x", "é", "\u202ea", "css", "tiny", "resnet18", "resnet18.x", "mean",
    "mlflow.db", "artifacts", "data.labelled", "method.preset", "method", "grid", "train.lr.x", ".", "a.b",
    [], [None], [[]], [0], [1, 2], [2, 1], [BILLION] * 3, ["x"], [{}], [["css"]], [{"name": "css"}], list(range(2000)), [1.0] * 2000,
    {}, {"x": 1}, {"name": "css"}, {"name": ["css"]}, {"name": "css", "row": ["a"]}, {"name": "css", "row": "CSS"}, {1: 2}, {None: 1}, {"": {}},
    {"uniform": [0, 1]}, {"uniform": [0, 10**400]}, {"int": [1, BILLION]}, {"int": [1, 2**63]}, {"choice": []}, {"choice": [[]]}, {"loguniform": [0, 1]},
    {"choice": [{"name": "css"}]}, {"uniform": "x"}, {"train.lr": 0.1}, {"method": "css"}, {"method": {"name": "css"}},
]  # fmt: skip
"""What may stand in the place of any value."""

SNIPPETS = [
    "!!python/object/apply:os.system [touch PAYLOAD]", "!!python/name:os.system", "!!binary aGk=", "!!set {a, b}", "!!omap [a: 1]", "!foo x",
    "!!int x", "!!int ''", "!!float x", "!!bool x", "!!null x", "!!timestamp 2026-99-99", "!!str [a]", "!!map [a]", "!!seq {a: 1}", "!!merge x", "!<x> y",
    "2026-99-99", "2026-02-30", "2026-01-01", "2026-01-01T25:00:00Z", "1:99", "0x_", "0b2", "0o9", "1_000", "+.inf", "1e400", "9" * 5000, "=", "<<",
    "*nothing", "&a [*a]", "&a {b: *a}", "&a {*a : 1}", "{<<: *nothing}", "&a {<<: *a}", "{<<: 1}", "{<<: [1]}", "? [a]", "{[a]: 1}", "{{a: 1}: 1}",
    "[" * 25 + "]" * 25, "[" * 300 + "]" * 300, "{a: " * 300 + "1" + "}" * 300, "[" * 5000, "- " * 300 + "a", "{a: 1, a: 2}", "'", '"', '"\\ud800"', '"\\0"',
    "|\n  a\n b", "> x", "%YAML 9.9", "--- a", "...", "@x", "`x`", "# x", "\t- a", "a: b: c", "[a", "}", "!", "&", "*", "? ", ": ", "-", "- - - -",
]  # fmt: skip
"""What may stand in the place of any value in the text of a file."""


def bomb(levels: int, width: int) -> str:
    """Aliases of aliases: `width` to the power of `levels` values."""
    lines = [f"b0: &b0 [{', '.join('x' * width)}]"]
    lines += [f"b{level}: &b{level} [{', '.join([f'*b{level - 1}'] * width)}]" for level in range(1, levels)]
    return "\n".join(lines) + "\n"


def merge_bomb(levels: int, width: int) -> str:
    """The same with merged mappings."""
    lines = ["m0: &m0 {a: 1}"]
    lines += [
        f"m{level}: &m{level} {{<<: [{', '.join([f'*m{level - 1}'] * width)}], k{level}: 1}}" for level in range(1, levels)
    ]
    return "\n".join(lines) + "\n"


def nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    """All places of a value: (container, key)."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from nodes(value[key])


def a_study(random: Random) -> dict[str, Any]:
    """A study of some of the parts that one may have, which is right."""
    spec = copy.deepcopy(SPEC)
    kept = {"grid", "trials", "search"}
    for part in random.sample(["grid", "trials", "search"], random.randrange(3)):
        del spec[part]
        kept.discard(part)
    if not kept:
        spec["grid"] = copy.deepcopy(SPEC["grid"])
    if "grid" not in spec:
        del spec["table"]
    for part in random.sample(
        ["description", "objective", "views", "seed", "resources", "budget", "keep", "tracking"], random.randrange(6)
    ):
        del spec[part]
    return spec


def _replace(spec: dict[str, Any], random: Random) -> None:
    container, key = random.choice([*nodes(spec)])
    container[key] = copy.deepcopy(random.choice(VALUES))


def _remove(spec: dict[str, Any], random: Random) -> None:
    container, key = random.choice([*nodes(spec)])
    del container[key]


def _wrap(spec: dict[str, Any], random: Random) -> None:
    container, key = random.choice([*nodes(spec)])
    container[key] = random.choice([[container[key]], {"x": container[key]}, [[[container[key]]]], [container[key]] * 3])


def _rename(spec: dict[str, Any], random: Random) -> None:
    container, key = random.choice([place for place in nodes(spec) if isinstance(place[0], dict)])
    new = random.choice(
        [
            *SPEC,
            "x",
            "",
            1,
            None,
            True,
            2.5,
            "lr",
            "name",
            "row",
            "train.lr",
            "method.temperature",
            f"{key}x",
            "\x00",
            "x" * 5000,
        ]
    )
    container[new] = container.pop(key)


def _swap(spec: dict[str, Any], random: Random) -> None:
    (first, one), (second, other) = random.sample([*nodes(spec)], 2)
    value = copy.deepcopy(first[one])
    first[one] = copy.deepcopy(second[other])
    second[other] = value


def _grow(spec: dict[str, Any], random: Random) -> None:
    """More of something than any study has."""
    numbers = [0.01 + place / 1e6 for place in range(1000)]
    changes: list[Callable[[], Any]] = [
        lambda: spec.update(splits=list(range(BILLION, BILLION - 1500, -1))),
        lambda: spec.update(grid={f"train.{key}": numbers for key in ("lr", "momentum", "poly_power")}),
        lambda: spec.update(trials=[{"train.lr": number} for number in numbers * 2]),
        lambda: spec.setdefault("search", copy.deepcopy(SPEC["search"])).update(trials=BILLION),
        lambda: spec.setdefault("resources", {}).update(workers=random.choice([BILLION, [1, BILLION]])),
        lambda: spec["data"].update({random.choice([*SPEC["data"], "loader_workers", "num_classes"]): BILLION}),
        lambda: spec["data"].update(crop=random.choice([10_000, 100_000, 16_384])),
        lambda: spec["model"].update({random.choice(["decoder_channels", "low_level_channels", "representation_dim"]): random.choice([BILLION, 65_536])}),
        lambda: spec["model"].update(aspp_rates=random.choice([[BILLION] * 3, [1] * 10_000, [1024] * 16])),
        lambda: spec.update({f"x{place}": place for place in range(3000)}),
        lambda: spec.update(keep={"top": None}, resources={"concurrent_trials": BILLION, "cpus_per_worker": BILLION}),
    ]  # fmt: skip
    random.choice(changes)()


STRUCTURAL: list[Callable[[dict[str, Any], Random], None]] = [
    _replace,
    _replace,
    _replace,
    _remove,
    _wrap,
    _rename,
    _swap,
    _grow,
]


def hostile_spec(random: Random) -> dict[str, Any]:
    """A study in which one to three things are wrong, or merely odd."""
    spec = a_study(random)
    changes = random.choices(STRUCTURAL, k=random.choice([1, 1, 1, 2, 3]))
    for change in sorted(changes, key=lambda change: change is not _grow):  # which needs the sections as they were
        change(spec, random)
    return spec


def hostile_text(random: Random) -> bytes:
    """A file of a study, of which some text or some bytes are others."""
    spec = a_study(random)
    kind = random.randrange(6)
    if kind < 3:
        container, key = random.choice([*nodes(spec)])
        container[key] = "SNIPPET"
        return yaml.safe_dump(spec).replace("SNIPPET", random.choice(SNIPPETS)).encode("utf-8", "surrogatepass")
    text = yaml.safe_dump(spec)
    if kind == 3:
        big = random.choice(
            [
                bomb(9, 9),
                bomb(30, 2),
                merge_bomb(9, 9),
                merge_bomb(30, 2),
                "a: &a [" + "x, " * 50_000 + "]\nb: [*a, *a, *a]\n",
                "x" * 2_000_000,
                "- a\n" * 200_000,
            ]
        )
        return (random.choice([text + big, big + text])).encode()
    if kind == 4:
        return text.encode(random.choice(["utf-16", "utf-32", "utf-16-le", "utf-8-sig", "cp037", "ascii"]))
    content = bytearray(("# é\n" + text).encode(random.choice(["utf-8", "latin-1"])))
    for _ in range(random.choice([1, 1, 3, 30])):
        place = random.randrange(len(content) + 1)
        match random.randrange(4):
            case 0:
                content[place:] = b""
            case 1:
                content[place : place + 1] = bytes([random.randrange(256)])
            case 2:
                content[place:place] = random.choice(
                    [b"\x00", b"\xff\xfe", b"\t", b"\r", b"[", b"{", b"'", b"\xef\xbb\xbf", b": ", b"- ", b"&a ", b"*a "]
                )
            case _:
                del content[place : place + random.randrange(1, 200)]
        if not content:
            break
    return bytes(content)
