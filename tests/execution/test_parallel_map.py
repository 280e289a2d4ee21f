"""Work shared out among Ray's tasks gives what it gives in one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from css_ray.data import writing
from css_ray.data.digits import digits_source
from css_ray.data.writing import write_dataset

pytestmark = pytest.mark.slow


def test_shards_written_by_ray_tasks(tmp_path: Path) -> None:
    from css_ray.execution.parallel_map import on_cluster

    source = digits_source(num_train=300, num_val=100)
    small = writing.SHARD_BYTES
    try:
        writing.SHARD_BYTES = 100_000
        write_dataset(tmp_path / "here", source)
        with on_cluster(None) as parallel_map:
            done: list[int] = []
            assert write_dataset(tmp_path / "there", source, done.append, parallel_map)
            assert sum(done) == 400
            assert list(parallel_map(int, [str(number) for number in range(50)])) == list(range(50))
            with pytest.raises(ValueError, match=r"^invalid literal for int.*'three'$"):
                list(parallel_map(int, ["1", "2", "three", *"456789"]))
    finally:
        writing.SHARD_BYTES = small
    here = {path.name: path.read_bytes() for path in (tmp_path / "here").iterdir()}
    assert len(here) > 10
    assert {path.name: path.read_bytes() for path in (tmp_path / "there").iterdir()} == here
