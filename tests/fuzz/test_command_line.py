"""Hostile words on the command line end with one message and exit code 2, or do what the command does; nothing is started."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml

from tests.cli.made_up import SEARCH, SPEC, Journal
from tests.fuzz.tally import Tally, bounded_memory, command

FEW, MANY = 120, 12_000
NOBODY = "http://127.0.0.1:9"

WORDS = [
    "", " ", ".", "..", "../x", "/", "/dev/null", "/dev/zero", "/proc/self/status", "file", "folder", "file/x", "loop", "digits", "small", "good.yaml", "bad.yaml",
    "a\n", "\n", "a\tb", "\x1b[31mx", "\x1b]52;c;eA==\x07", "\x9b1m", "\u202ex", "\udcff", "é", "x" * 300, "x/" * 3000, "-", "--", "-x", "--x", "--x=y", "@x", "*", "~", "$(x)",
    "`x`", "'", '"', "a b", ";", "|", "[", "{a", "a=b", "=", "a=", "=b", "1e9", "nan", "inf", "-1", "0", "1", "1000000000", str(2**63), str(10**30), "0x10", "1,2", ",",
    "x://y", "x://", "://", "//h/x", "//ann:pw@h/x", "ann:pw@h:1", "http://", "http://ann:pw@h/x", "http://[::1", "file:///nowhere", "file://h/x", "s3://b/x;token=abc",
    "127.0.0.1:9", "127.0.0.1", "10.0.0.1", "h:0", "h:99999", ":1", "[::1]:9", "nowhere.invalid:1", "ray://h:1", "local", NOBODY, "1x1", "0x0", "99999999999x1",
    "train.lr=0", "train.lr=[", "train.lr=!!python/name:os.system", "method.name=x", "grid.method=1", "search=1", "splits=[0, 0]", "data.root=/dev/zero", "study=../x", "a.b.c.d=1",
]  # fmt: skip
"""No word reaches another machine. None has a NUL, which no program can be given."""

ALPHABET = "ab0/.:=@[]{}-_ \n\t'\"\\$;|&<>*?~#%é\x1b\x7f\u202e\udc80"

COMMANDS: list[tuple[str, tuple[int, ...]]] = [
    ("study plan X --no-measure", (2,)),
    ("study plan good.yaml --no-measure --set X", (2,)),
    ("study plan good.yaml --no-measure --set X=1", (2,)),
    ("study plan good.yaml --no-measure --set train.lr=X --set method.X=1", (2,)),
    ("study plan good.yaml --no-measure --set grid.X=[1] --set data.root=X", (2,)),
    ("study plan good.yaml --no-measure --address X", (2,)),
    ("study run X", (2,)),
    ("study run good.yaml --storage X", (2,)),
    ("study run good.yaml --address X --on-finish X", (2,)),
    ("study run good.yaml --webhook X", (2,)),
    ("study resume X --storage studies", (1, 2)),
    ("study resume small --storage X", (1, 2)),
    ("study resume small --storage studies --set X", (1, 2)),
    ("study resume small --storage studies --set search.trials=X --address X", (1, 2)),
    ("study confirm X --storage studies", (2,)),
    ("study confirm small --storage studies --splits X --top X", (2,)),
    ("study confirm small --storage studies --set X", (2,)),
    ("study status X --storage studies", (2,)),
    ("study status small --storage X", (2,)),
    ("study status small --address X", (1, 2)),
    ("study list --storage X", (2,)),
    ("study list --address X", (1, 2)),
    ("study table X --storage studies", (2,)),
    ("study table small --storage studies --format X", (2,)),
    ("study table small --storage studies --out X", (2,)),
    ("study table small --storage studies --ddof X --at X", (2,)),
    ("study compare small X --storage studies", (2,)),
    ("study compare small --storage studies --row X --against X", (2,)),
    ("study pseudo-labels X --storage studies", (2,)),
    ("study sync X --storage nowhere", (2,)),
    ("study stop X --address http://127.0.0.1:9", (1, 2)),
    ("study logs X --address X", (1, 2)),
    ("study submit X --address http://127.0.0.1:9", (1, 2)),
    ("study submit good.yaml --address X --storage X", (1, 2)),
    ("study drive --file X --code X", (2,)),
    ("train X --trial 9", (2,)),
    ("train good.yaml --trial X --split X", (2,)),
    ("train good.yaml --device X --trial 1", (2,)),
    ("train good.yaml --trial 9 --out X", (2,)),
    ("train small --storage studies --trial X", (2,)),
    ("train good.yaml --ray --out folder/out --address X --trial 9", (2,)),
    ("methods X", (2,)),
    ("methods css X", (2,)),
    ("methods css temperature=X", (2,)),
    ("data info X", (2,)),
    ("data info digits --contact-sheet X", (2,)),
    ("data check X", (1, 2)),
    ("data prepare X --out folder/made", (2,)),
    ("data prepare digits --out folder/made --resize X --processes X", (2,)),
    ("data prepare digits --out folder/made --address X", (2,)),
    ("data prepare voc_classic --root X --out folder/made", (2,)),
    ("data prepare cityscapes --root X --out folder/made", (2,)),
    ("data splits show X --labelled 3", (2,)),
    ("data splits show digits --labelled X --split X", (2,)),
    ("data splits write digits --labelled 3 --out X", (2,)),
    ("data splits compare X X", (2,)),
    ("data splits check digits --labelled-list X", (2,)),
    ("data download X", (2,)),
    ("ui --storage X", (2,)),
    ("ui --uri X --port X", (2,)),
    ("cluster check --address X --storage X --tracking-uri X", (1, 2)),
    ("X", (2,)),
    ("study X", (2,)),
    ("X study plan good.yaml --no-measure", (2,)),
]
"""Commands with X for hostile words, and how they may end beside 0: with 1 where a cluster or Ray is asked that is not there."""


@pytest.fixture
def folder(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a study file, a data set and a study that has run; what would start Ray or a server fails instead."""
    import ray

    from css_ray import tracking
    from css_ray.execution.runner import Runner

    def refuse(*arguments: Any, **settings: Any) -> None:
        raise RuntimeError("not in this test")

    monkeypatch.setattr(Runner, "run", refuse)
    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(tracking, "start_server", refuse)
    monkeypatch.chdir(tmp_path)
    for name in ("CSS_RAY_STORAGE", "CSS_RAY_WEBHOOK", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    Path("digits").symlink_to(data)
    Path("loop").symlink_to("loop")
    Path("folder").mkdir()
    Path("file").write_text("x")
    Path("bad.yaml").write_text("[")
    sections = {**SPEC, "data": {**SPEC["data"], "root": "digits"}}
    Path("good.yaml").write_text(yaml.safe_dump(sections))
    journal = Journal("studies", data=sections["data"], search=SEARCH)
    for trial, drawn in enumerate([None, None, {"method.temperature": 0.2}]):
        journal.whole(trial, {0: 40.0 + trial, 1: 60.0}, drawn)
    return tmp_path


def word(random: Random) -> str:
    if random.random() < 0.75:
        return random.choice(WORDS)
    return "".join(random.choice(ALPHABET) for _ in range(random.randrange(1, 12)))


def arguments(template: Sequence[str], random: Random) -> list[str]:
    """The command with its places filled."""
    return [part.replace("X", word(random)) if "X" in part else part for part in template]


def altered(words: list[str], random: Random) -> list[str]:
    """The command with a word more, or one less."""
    place = random.randrange(len(words))
    fewer = len(words) > 1 and random.random() < 0.5
    return [*words[:place], *words[place + 1 :]] if fewer else [*words[:place], word(random), *words[place:]]


def fuzz(count: int) -> None:
    tally = Tally("command lines")
    with bounded_memory():
        for seed in range(count):
            random = Random(seed)
            template, codes = COMMANDS[seed % len(COMMANDS)]
            words = arguments(template.split(), random)
            if random.random() < 0.15:
                words, codes = altered(words, random), (1, 2)  # it may be another command
            command(tally, words, codes, f"seed {seed}: {words}"[:500])
            if not Path("good.yaml").is_file():
                tally.fail(f"seed {seed}: {words} removed a file")
                break
    assert sorted(os.listdir("studies")) == ["small"]
    tally.check()


def test_some_command_lines(folder: Path) -> None:
    fuzz(FEW)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(7200)
def test_many_command_lines(folder: Path) -> None:
    fuzz(MANY)
