"""The file of the validation images' matrices: what is read is what was written, and nothing damaged passes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from css_ray.matrices import ImageMatrices, MatricesError, decoded, encoded, read_matrices, write_matrices


def made(images: int = 5, classes: int = 3, seed: int = 0, present: float = 0.5, largest: int = 10_000) -> ImageMatrices:
    random = np.random.default_rng(seed)
    dense = random.integers(1, largest, (images, classes * classes)) * (random.random((images, classes * classes)) < present)
    where, cells = dense.nonzero()
    names = tuple(f"class {number}" for number in range(classes))
    ids = tuple(f"2007_{number:06d}" for number in range(images))
    return ImageMatrices(ids, names, where, cells, dense[where, cells])


def same(first: ImageMatrices, second: ImageMatrices) -> bool:
    arrays = zip((first.images, first.cells, first.pixels), (second.images, second.cells, second.pixels), strict=True)
    return (first.ids, first.class_names) == (second.ids, second.class_names) and all(np.array_equal(*pair) for pair in arrays)


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    before = made()
    folder = tmp_path / "matrices" / "split_0"
    assert read_matrices(folder, "last") is None
    write_matrices(folder, "last", before)
    assert read_matrices(folder, "best") is None
    after = read_matrices(folder, "last")
    assert after is not None and same(before, after)
    assert [path.name for path in folder.iterdir()] == ["last.npz"]
    other = made(seed=1)
    write_matrices(folder, "last", other)
    assert (folder / "last.npz").read_bytes() == encoded(other) != encoded(before)


def test_images_without_a_labelled_pixel_keep_their_place() -> None:
    few = ImageMatrices(("a", "b", "c", "d"), ("x", "y"), np.array([1, 1, 3]), np.array([0, 3, 2]), np.array([7, 5, 2**32 - 1]))
    again = decoded(encoded(few), "x")
    assert same(few, again)
    assert again.dense().tolist() == [[[0, 0], [0, 0]], [[7, 0], [0, 5]], [[0, 0], [0, 0]], [[0, 0], [2**32 - 1, 0]]]


def test_class_pixels_are_those_of_the_dense_matrices() -> None:
    matrices = made(images=9, classes=4)
    dense = matrices.dense()
    right, labelled, predicted = matrices.class_pixels()
    for image in range(9):
        assert right[image].tolist() == np.diag(dense[image]).tolist()
        assert labelled[image].tolist() == dense[image].sum(axis=1).tolist()
        assert predicted[image].tolist() == dense[image].sum(axis=0).tolist()


def test_many_classes() -> None:
    matrices = made(images=2, classes=300, present=0.001)
    assert same(matrices, decoded(encoded(matrices), "x"))


def test_the_size_for_a_set_like_voc_val() -> None:
    """1,449 images and 21 classes with a third of all cells taken, many more than predictions have: below 3 MB."""
    assert 100_000 < len(encoded(made(1449, 21, present=1 / 3, largest=180_000))) < 3_000_000


@pytest.mark.parametrize("end", [0, 1, 100, -1])
def test_a_file_that_was_cut_short_is_named(end: int, tmp_path: Path) -> None:
    (tmp_path / "last.npz").write_bytes(encoded(made())[:end])
    with pytest.raises(MatricesError, match=r"last\.npz is damaged; remove it to have tables without its intervals"):
        read_matrices(tmp_path, "last")


def test_no_altered_bit_changes_a_count() -> None:
    before = made()
    data = encoded(before)
    refused = 0
    for place in range(len(data)):
        altered = bytearray(data)
        altered[place] ^= 1 << place % 8
        try:
            assert same(before, decoded(bytes(altered), "x"))  # a bit of a time stamp
        except MatricesError:
            refused += 1
    assert refused > 0.5 * len(data)


def test_arrays_that_do_not_fit_together_are_refused() -> None:
    def file(images: list[int], cells: list[int], pixels: list[int]) -> bytes:
        return encoded(ImageMatrices(("a", "b"), ("x", "y"), np.array(images), np.array(cells), np.array(pixels)))

    with pytest.raises(MatricesError, match="its arrays do not fit together"):
        decoded(file([0, 1], [0, 4], [1, 1]), "x")
    with pytest.raises(MatricesError, match="its arrays do not fit together"):
        decoded(file([0, 1], [0, 1], [1, 0]), "x")
    with pytest.raises(MatricesError, match="its cells are not in order"):
        decoded(file([0, 0], [3, 1], [1, 1]), "x")


def test_a_newer_format_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("css_ray.matrices.FORMAT", 2)
    data = encoded(made())
    monkeypatch.undo()
    with pytest.raises(MatricesError, match=r"x has format 2, this version of css-ray reads 1"):
        decoded(data, "x")
    assert json.loads(np.load(__import__("io").BytesIO(data))["about"].tobytes())["format"] == 2
