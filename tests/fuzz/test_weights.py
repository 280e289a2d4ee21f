"""Hostile files of weights are refused by one message that names what differs, or fit; none runs code, and none ends a process."""

from __future__ import annotations

import io
import json
import pickle
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from css_ray.models.encoders import WeightsError, make_encoder
from tests.fuzz.mutate import Tally, alter, apart, case_random, damage, outcome_of, share_and_whole

ENCODER = "test_efficientnet"
"""A network of timm for tests, with 80 tensors of 0.3 MB together."""


def judge(path: str) -> str:
    """What becomes of a file as the weights of the encoder."""
    return outcome_of(lambda: make_encoder(ENCODER, 16, path), (WeightsError,))


def right_weights() -> dict[str, Tensor]:
    return dict(make_encoder(ENCODER, 16, False).network.state_dict())  # type: ignore[union-attr]


def saved(value: Any, **settings: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **settings)
    return stream.getvalue()


def safetensors_of(weights: dict[str, Tensor]) -> bytes:
    from safetensors.torch import save

    return save({name: tensor.contiguous().clone() for name, tensor in weights.items()})


class Payload:
    """Runs code when it is unpickled by a program that lets it."""

    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (Path.touch, (Path(self.target),))


def other_tensors(weights: dict[str, Tensor], random: Random) -> Any:
    """Weights of which some are others, or are missing, or are no tensors; or something else than weights."""
    name = random.choice(list(weights))
    tensor = weights[name]
    others: list[Callable[[], Any]] = [
        lambda: tensor.unsqueeze(0),
        lambda: tensor.reshape(-1)[: tensor.numel() // 2],
        lambda: torch.zeros(0),
        lambda: torch.zeros(*tensor.shape, 2),
        lambda: tensor.to(random.choice([torch.int8, torch.float64, torch.float16, torch.bool, torch.complex64])),
        lambda: torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else tensor * 0 - 1,
        lambda: torch.zeros(1).expand(10**6, 10**6),  # 4 bytes that claim to be 4 TB
        lambda: torch.empty(2**40, device="meta"),
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.nn.Parameter(tensor.float()),
        lambda: tensor.tolist(),
        lambda: None,
        lambda: "x" * 1000,
        lambda: {"inside": tensor},
        lambda: Payload("PAYLOAD"),
        lambda: torch.nn.Linear(2, 2),
    ]
    whole: list[Callable[[], Any]] = [
        lambda: {"state_dict": weights},
        lambda: {"epoch": 3, "model": weights},
        lambda: {f"module.{key}": value for key, value in weights.items()},
        lambda: [*weights.values()],
        lambda: OrderedDict(reversed(list(weights.items()))),
        lambda: {key: value for key, value in weights.items() if not key.endswith("num_batches_tracked")},
        lambda: {**weights, "classifier.weight": torch.zeros(1000, 8), 3: "x", None: None},
        lambda: make_encoder(ENCODER, 16, False),
        lambda: next(iter(weights.values())),
        lambda: {},
        lambda: "weights",
        lambda: Payload("PAYLOAD"),
    ]
    kind = random.randrange(4)
    if kind == 0:
        return random.choice(whole)()
    changed: dict[Any, Any] = dict(weights)
    for _ in range(random.choice([1, 1, 2, 5])):
        name = random.choice(list(weights))
        tensor = weights[name]
        if kind == 1:
            changed.pop(name, None)
        else:
            changed[name] = random.choice(others)()
    return changed


def other_archive(content: bytes, random: Random) -> bytes:
    """The archive that torch wrote with members that are compressed, damaged, twice, absent or elsewhere."""
    source, stream = zipfile.ZipFile(io.BytesIO(content)), io.BytesIO()
    members = {info.filename: source.read(info) for info in source.infolist()}
    compression = random.choice([zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
    with zipfile.ZipFile(stream, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, data in members.items():
            match random.randrange(40):
                case 0:
                    continue
                case 1:
                    data = damage(data, random)[1]
                case 2:
                    archive.writestr(name, data)
                case 3:
                    name = random.choice([f"../{name}", f"/{name}", name.replace("archive", "x"), "x" * 1000, "."])
                case 4 if name.endswith("data.pkl"):
                    data = bytes(2**26)
                case 5 if name.endswith("data.pkl"):
                    data = pickle.dumps(Payload("PAYLOAD"), protocol=2)
                case 6 if name.endswith("data.pkl"):
                    data = damage(data, random)[1]
            archive.writestr(name, data)
    return stream.getvalue()


def other_header(content: bytes, random: Random) -> bytes:
    """A safetensors file with another header, whose length fits or not."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    if random.random() < 0.5:
        entry: Any = header[random.choice(list(header))]
        entry.update(random.choice([
            {"dtype": random.choice(["F64", "I8", "BOOL", "F8_E4M3", "x", None, 3])},
            {"shape": random.choice([[10**18], [2**62, 4], [-1], [], [0], [1] * 1000, None, "x", [1.5]])},
            {"data_offsets": random.choice([[0, 10**18], [10, 0], [-1, 4], [0], None, [0, 0], [2**63, 2**64]])},
        ]))  # fmt: skip
    else:
        header = alter(header, random)[1]
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    claimed = random.choice([len(text), len(text), len(text), 0, len(text) + 1, 2**40, 2**63, 2**64 - 1])
    return struct.pack("<Q", claimed) + text + content[8 + length :]


def hostile(weights: dict[str, Tensor], random: Random) -> tuple[str, bytes]:
    """A file of weights: its suffix, and its content."""
    kind = random.randrange(8)
    if kind == 0:
        return ".pth", saved(other_tensors(weights, random))
    if kind == 1:
        return ".pth", saved(other_tensors(weights, random), _use_new_zipfile_serialization=False)
    if kind == 2:
        return ".pth", damage(saved(weights), random)[1]
    if kind == 3:
        return ".pth", damage(saved(weights, _use_new_zipfile_serialization=False), random)[1]
    if kind == 4:
        return ".pth", other_archive(saved(weights), random)
    if kind == 5:
        return ".safetensors", damage(safetensors_of(weights), random)[1]
    if kind == 6:
        return ".safetensors", other_header(safetensors_of(weights), random)
    contents = [
        b"",
        b"PK",
        b"\x80",
        b"\x80\x02.",
        b"x" * 100,
        pickle.dumps([1], 5),
        pickle.dumps(Payload("PAYLOAD"), 4),
        b"<html>404</html>",
    ]
    return random.choice([".pth", ".safetensors", ".bin"]), random.choice([*contents, saved(weights), safetensors_of(weights)])


@share_and_whole(80, 6000)
def test_files_of_weights(count: int, tmp_path: Path, monkeypatch: Any, record_property: Callable[[str, object], None]) -> None:
    monkeypatch.chdir(tmp_path)
    tally, weights = Tally("weights"), right_weights()
    for start in range(0, count, 200):
        paths = []
        for number in range(start, min(start + 200, count)):
            suffix, content = hostile(weights, case_random(tally.kind, number))
            paths.append(tmp_path / f"case{number}{suffix}")
            paths[-1].write_bytes(content)
        for path, outcome in zip(paths, apart(judge, list(map(str, paths)), ["css_ray.models.encoders", "timm"]), strict=True):
            if "weights_only=False" in outcome:
                outcome = f"failed: it advises to run what the file holds: {outcome}"
            tally.count(path.name, outcome, path.name)
            path.unlink()
    assert not (tmp_path / "PAYLOAD").exists()
    tally.check(record_property)
