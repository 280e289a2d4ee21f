"""Data sets at URLs: written to a server that speaks S3, on loopback, and copied once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.fs
import pytest
import torch
from moto.server import ThreadedMotoServer

from css_ray.data import remote, writing
from css_ray.data.catalogue import ensure_dataset
from css_ray.data.digits import digits_source
from css_ray.data.processes import in_processes
from css_ray.data.remote import local_copy
from css_ray.data.shards import open_dataset
from css_ray.data.writing import write_dataset
from css_ray.secrets import shown
from css_ray.storage import below, locate, receive, send


class Bucket:
    """A bucket of the server, and a folder in it."""

    def __init__(self, port: int) -> None:
        self.options = f"?region=us-east-1&scheme=http&endpoint_override=127.0.0.1:{port}"
        self.files, _ = pyarrow.fs.FileSystem.from_uri(f"s3://sets{self.options}&allow_bucket_creation=true")
        self.files.create_dir("sets")

    def url(self, name: str) -> str:
        return f"s3://sets/{name}{self.options}"

    def names(self, folder: str) -> set[str]:
        found = self.files.get_file_info(pyarrow.fs.FileSelector(f"sets/{folder}", allow_not_found=True))
        return {entry.base_name for entry in found}

    def put(self, path: str, content: bytes) -> None:
        with self.files.open_output_stream(f"sets/{path}") as file:
            file.write(content)


@pytest.fixture(scope="module")
def server() -> Iterator[int]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@pytest.fixture
def bucket(server: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv(remote.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(writing, "SHARD_BYTES", 30_000)
    made = Bucket(server)
    yield made
    made.files.delete_dir_contents("sets")


SMALL = digits_source(num_train=12, num_val=4)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_remote_data_set_is_the_local_one(bucket: Bucket, tmp_path: Path, processes: int) -> None:
    url = bucket.url("digits")
    assert write_dataset(url, SMALL, spread=in_processes(processes))
    assert not write_dataset(url, SMALL)  # a second run finds it
    write_dataset(tmp_path / "local", SMALL)
    assert bucket.names("digits") == {path.name for path in (tmp_path / "local").iterdir()}
    remote, local = open_dataset(url), open_dataset(tmp_path / "local")
    assert remote.info == local.info and remote.train.ids == local.train.ids
    assert all(torch.equal(remote.train[index].image, local.train[index].image) for index in range(12))
    assert ensure_dataset("digits", url).info == local.info


def test_what_a_killed_run_left_is_not_read_and_removed(bucket: Bucket) -> None:
    url = bucket.url("digits")
    write_dataset(url, SMALL)
    whole = bucket.names("digits")
    bucket.files.delete_file("sets/digits/dataset.json")  # the last thing that is written
    bucket.put("digits/train-00007-0123abcd.arrow", b"half a sh")
    with pytest.raises(FileNotFoundError, match=r"s3://sets/digits holds no prepared data set"):
        open_dataset(url)
    assert write_dataset(url, SMALL)
    assert bucket.names("digits") == whole


def test_a_foreign_place_is_not_touched(bucket: Bucket) -> None:
    bucket.put("mine/thesis.tex", b"ten years of work")
    with pytest.raises(FileExistsError, match="s3://sets/mine is not empty"):
        write_dataset(bucket.url("mine"), SMALL)
    assert bucket.names("mine") == {"thesis.tex"}
    write_dataset(bucket.url("digits"), SMALL)
    with pytest.raises(FileExistsError, match="was not prepared from this source"):
        write_dataset(bucket.url("digits"), digits_source(num_train=3, num_val=4))


def test_a_copy_is_fetched_once_and_anew_when_the_data_set_is_another(bucket: Bucket, tmp_path: Path) -> None:
    url = bucket.url("digits")
    write_dataset(url, SMALL)
    first = local_copy(url)
    assert first.parent == tmp_path / "cache"
    kept = {path.name: path.stat().st_mtime_ns for path in first.iterdir()}
    assert local_copy(url) == first and {path.name: path.stat().st_mtime_ns for path in first.iterdir()} == kept
    bucket.files.delete_dir_contents("sets/digits")
    write_dataset(url, digits_source(num_train=5, num_val=4))
    second = local_copy(url)
    assert second != first and len(open_dataset(url).train) == 5


def test_a_damaged_file_is_refused_and_nothing_kept(bucket: Bucket, tmp_path: Path) -> None:
    url = bucket.url("digits")
    write_dataset(url, SMALL)
    name = min(bucket.names("digits") - {"dataset.json"})
    content = bytearray(bucket.files.open_input_stream(f"sets/digits/{name}").read())
    content[len(content) // 2] ^= 1
    bucket.put(f"digits/{name}", bytes(content))
    with pytest.raises(OSError, match=rf"s3://sets/digits/{name} has the SHA-256 .* damaged or replaced"):
        open_dataset(url)
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"] == []


def test_a_full_disk_is_said_before_anything_is_fetched(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = bucket.url("digits")
    write_dataset(url, SMALL)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000))
    with pytest.raises(OSError, match=r"takes 0\.00 GB, .*cache has 0\.00 GB free; make room, or point CSS_RAY_CACHE"):
        local_copy(url)
    assert not list((tmp_path / "cache").glob("*.arrow"))


AT_ONCE = """
import sys
from css_ray.data import remote
fetched = []
real = remote._fetch
remote._fetch = lambda *arguments: (fetched.append(1), real(*arguments))
print("ready", flush=True)
sys.stdin.readline()
folder = remote.local_copy(sys.argv[1])
print(len(fetched), (folder / "dataset.json").is_file())
"""


def test_of_several_workers_one_fetches(bucket: Bucket) -> None:
    url = bucket.url("digits")
    write_dataset(url, SMALL)
    command = [sys.executable, "-c", AT_ONCE, url]
    workers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for worker in workers:
        assert worker.stdout is not None and worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    assert sorted(worker.communicate()[0] for worker in workers) == ["0 True\n", "0 True\n", "1 True\n"]


def test_what_an_interrupted_copy_left_is_removed(bucket: Bucket, tmp_path: Path) -> None:
    url = bucket.url("digits")
    write_dataset(url, SMALL)
    folder = local_copy(url)
    shutil.rmtree(folder)
    left = folder.parent / f".{folder.name}.unfinished-abc"
    left.mkdir()
    (left / "train-00000-0123abcd.arrow").write_bytes(b"half")
    assert local_copy(url) == folder and not left.exists()


@pytest.mark.parametrize("text", [b"{", b"[]"])
def test_a_broken_description_is_named(bucket: Bucket, text: bytes) -> None:
    bucket.put("digits/dataset.json", text)
    with pytest.raises(ValueError, match=r"s3://sets/digits/dataset\.json"):
        open_dataset(bucket.url("digits"))


def test_a_description_from_elsewhere_cannot_write_outside_the_copy(bucket: Bucket, tmp_path: Path) -> None:
    url = bucket.url("digits")
    write_dataset(url, SMALL)
    described = json.loads(bucket.files.open_input_stream("sets/digits/dataset.json").read())
    described["name"] = "../../elsewhere"
    bucket.put("digits/dataset.json", json.dumps(described).encode())
    assert local_copy(url).parent == tmp_path / "cache"
    described["name"] = "planted"
    described["subsets"]["train"]["files"][0]["name"] = "../../planted"
    bucket.put("digits/dataset.json", json.dumps(described).encode())
    with pytest.raises(ValueError, match="not a plain name"):
        local_copy(url)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache"]


def test_urls_are_shown_without_their_secrets() -> None:
    assert shown("s3://key:secret@bucket/set?endpoint_override=host") == "s3://bucket/set"
    assert shown("data/set") == "data/set"
    with pytest.raises(ValueError) as caught:
        locate("nonsense://user:secret@host/set?token=secret")
    assert "secret" not in str(caught.value) and "nonsense://host/set" in str(caught.value)


def test_a_place_below_another_keeps_its_query_at_the_end() -> None:
    assert below("s3://bucket/studies/?region=x&scheme=http", "s", "ray") == "s3://bucket/studies/s/ray?region=x&scheme=http"
    assert below("s3://bucket", "s") == "s3://bucket/s"
    assert below("runs/what?", "s") == "runs/what?/s"
    assert below(Path("/"), "s") == "/s"


def test_files_are_sent_and_received_whole(bucket: Bucket, tmp_path: Path) -> None:
    contents = {"empty": b"", "small": b"state", "large": bytes(range(256)) * 100_000}
    filesystem, root = locate(bucket.url("there"))
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        send(tmp_path / name, filesystem, f"{root}/{name}")
    receive(filesystem, root, tmp_path / "back")
    assert {path.name: path.read_bytes() for path in (tmp_path / "back").iterdir()} == contents
    with pytest.raises(FileNotFoundError):
        receive(filesystem, f"{root}/elsewhere", tmp_path / "other")


def test_the_cache_lies_where_users_expect_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (remote.CACHE_VARIABLE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert remote.cache_folder() == tmp_path / ".cache" / "css-ray"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert remote.cache_folder() == tmp_path / "xdg" / "css-ray"
    monkeypatch.setenv(remote.CACHE_VARIABLE, os.fspath(tmp_path / "mine"))
    assert remote.cache_folder() == tmp_path / "mine"
