"""Folders of images and masks as a YAML file describes them: what is read, and that all that is wrong is said at once."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image

from css_ray.data.catalogue import ensure_dataset, prepare
from css_ray.data.folder import read_description
from css_ray.data.shards import DataSet, open_dataset
from css_ray.types import IGNORE_INDEX

SPEC: dict[str, Any] = {
    "name": "rooms",
    "classes": ["floor", "wall", "chair"],
    "train": {"images": "images", "masks": "masks", "list": "train.txt"},
    "val": {"images": "images", "masks": "masks", "list": "val.txt"},
}


def image_of(seed: int, height: int = 12, width: int = 16) -> NDArray[np.uint8]:
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3), np.uint8)


def mask_of(seed: int, height: int = 12, width: int = 16) -> NDArray[np.uint8]:
    return np.random.RandomState(seed).choice(np.array([0, 1, 2, 255], np.uint8), (height, width))


class Folder:
    """A root with three training and two validation images, and a description beside it."""

    def __init__(self, path: Path) -> None:
        self.root, self.out, self.yaml = path / "root", path / "out", path / "rooms.yaml"
        for name in ("images", "masks"):
            (self.root / name).mkdir(parents=True)
        for seed, id in enumerate(("a", "b", "c", "d", "e")):
            Image.fromarray(image_of(seed)).save(self.root / "images" / f"{id}.{'jpg' if id == 'a' else 'png'}")
            self.mask(id, Image.fromarray(mask_of(seed)))
        (self.root / "train.txt").write_text("a\nb\r\nc")  # as lists are: a carriage return, no last end of line
        (self.root / "val.txt").write_text("d\ne\n\n")
        self.describe()

    def mask(self, id: str, mask: Image.Image) -> None:
        mask.save(self.root / "masks" / f"{id}.png")

    def describe(self, **changes: Any) -> None:
        spec = {key: value for key, value in {**SPEC, **changes}.items() if value is not None}
        self.yaml.write_text(yaml.safe_dump(spec))

    def prepared(self, **options: Any) -> DataSet:
        assert prepare(self.yaml, self.out, root=self.root, **options)
        return open_dataset(self.out)

    def stored(self, column: str) -> list[bytes]:
        """What the training shard holds."""
        (path,) = self.out.glob("train-*.arrow")
        with pa.memory_map(str(path)) as file:
            found: list[bytes] = pa.ipc.open_file(file).read_all().column(column).to_pylist()
        return found

    def refused(self, **options: Any) -> str:
        with pytest.raises(ValueError) as caught:
            prepare(self.yaml, self.out, root=self.root, **options)
        assert not self.out.exists()
        return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_images_and_masks_are_read(folder: Folder) -> None:
    dataset = folder.prepared()
    assert (dataset.info.name, dataset.info.class_names) == ("rooms", ("floor", "wall", "chair"))
    assert len(set(dataset.info.palette)) == 3
    assert (dataset.train.ids, dataset.val.ids) == (("a", "b", "c"), ("d", "e"))
    for seed, sample in enumerate([*map(dataset.train.__getitem__, range(3)), *map(dataset.val.__getitem__, range(2))]):
        assert sample.mask is not None and np.array_equal(sample.mask.numpy(), mask_of(seed))
        if seed > 0:  # the first is a JPEG
            assert torch.equal(sample.image, torch.from_numpy(image_of(seed)).permute(2, 0, 1))


def test_progress_counts_to_the_end(folder: Folder) -> None:
    seen: list[tuple[int, int]] = []
    folder.prepared(progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (5, 5) and seen == sorted(seen)


def test_palette_masks_give_indices_not_colours(folder: Folder) -> None:
    mask = Image.fromarray(mask_of(1))
    mask.putpalette(np.random.RandomState(0).randint(0, 256, 768).tolist())  # turns the mode to P
    assert mask.mode == "P"
    folder.mask("b", mask)
    few = Image.new("P", (16, 12), 2)
    few.putpalette([200, 10, 10, 10, 200, 10, 10, 10, 200])
    folder.mask("c", few)  # Pillow stores three colours in two bits a pixel
    train = folder.prepared().train
    b, c = train[1].mask, train[2].mask
    assert b is not None and np.array_equal(b.numpy(), mask_of(1))
    assert c is not None and (c == 2).all()


def test_void_values_are_ignored_and_are_no_class(folder: Folder) -> None:
    for seed, id in enumerate("abcde"):
        mask = mask_of(seed)
        mask[mask == 255] = 3
        folder.mask(id, Image.fromarray(mask))
    folder.describe(void=[3])
    dataset = folder.prepared()
    sample = dataset.train[0].mask
    assert sample is not None and np.array_equal(sample.numpy() == IGNORE_INDEX, mask_of(0) == 255)
    assert dataset.train.classes == ((0, 1, 2),) * 3


def test_without_resize_the_bytes_are_kept(folder: Folder) -> None:
    coloured = Image.fromarray(mask_of(1))
    coloured.putpalette(np.random.RandomState(0).randint(0, 256, 768).tolist())
    folder.mask("b", coloured)
    folder.prepared()
    images, masks = folder.stored("image"), folder.stored("mask")
    assert images == [(folder.root / "images" / name).read_bytes() for name in ("a.jpg", "b.png", "c.png")]
    originals = [(folder.root / "masks" / f"{id}.png").read_bytes() for id in "abc"]
    assert masks[0] == originals[0] and masks[2] == originals[2]
    # A palette mask becomes a grey one around the same compressed pixels.
    pixels = originals[1][originals[1].index(b"IDAT") : originals[1].index(b"IEND")]
    assert masks[1] != originals[1] and pixels in masks[1]


def test_resize(folder: Folder) -> None:
    mask = np.zeros((12, 16), np.uint8)
    mask[:, 8:] = 2
    folder.mask("b", Image.fromarray(mask))
    Image.fromarray(np.full((12, 16, 3), 90, np.uint8)).save(folder.root / "images" / "b.png")
    dataset = folder.prepared(resize=(8, 6))
    assert set(dataset.train.sizes) == {(6, 8)}
    sample = dataset.train[1]
    assert sample.image.shape == (3, 6, 8) and (sample.image == 90).all()
    assert sample.mask is not None and (sample.mask[:, :4] == 0).all() and (sample.mask[:, 4:] == 2).all()
    assert [Image.open(io.BytesIO(image)).format for image in folder.stored("image")] == ["JPEG", "PNG", "PNG"]
    # Half the size: bilinear with antialiasing keeps the mean, sampling every second pixel of noise would not.
    assert abs(float(dataset.train[2].image.float().mean()) - image_of(2).mean()) < 4


def test_a_size_has_at_least_one_pixel(folder: Folder) -> None:
    assert "resize must be at least 1x1, got 0x5" in folder.refused(resize=(0, 5))


def test_without_a_list_every_image_counts_also_in_subfolders(folder: Folder) -> None:
    for name, seed in (("images", 5), ("masks", 6)):
        (folder.root / "more" / name / "zurich").mkdir(parents=True)
        picture = image_of(seed) if name == "images" else mask_of(seed)
        Image.fromarray(picture).save(folder.root / "more" / name / "zurich" / "x.0.png")
    folder.describe(train={"images": "more/images", "masks": "more/masks"})
    assert folder.prepared().train.ids == ("zurich/x.0",)


def test_unlabelled_images_join_train_without_masks(folder: Folder) -> None:
    (folder.root / "val.txt").write_text("d")
    folder.describe(unlabelled={"images": "images"})
    dataset = folder.prepared()
    assert dataset.train.ids == ("a", "b", "c", "e")  # d is judged on, and never trained on
    assert [classes is None for classes in dataset.train.classes] == [False, False, False, True]


def test_images_of_train_without_a_mask_are_unlabelled(folder: Folder) -> None:
    (folder.root / "masks" / "b.png").unlink()
    assert folder.prepared().train.ids == ("a", "b", "c")  # in the order of the list
    dataset = open_dataset(folder.out)
    assert [classes is None for classes in dataset.train.classes] == [False, True, False]
    assert (dataset.train.num_masks, dataset.val.num_masks) == (2, 2)
    masks = [dataset.train[index].mask for index in range(3)]
    assert masks[1] is None and masks[0] is not None and np.array_equal(masks[0].numpy(), mask_of(0))
    described = json.loads((folder.out / "dataset.json").read_text())["subsets"]
    assert [(described[name]["images"], described[name]["masks"]) for name in ("train", "val")] == [(3, 2), (2, 2)]


def test_without_a_list_the_rest_of_the_folder_is_unlabelled(folder: Folder) -> None:
    for id in "de":
        for name in ("images", "masks"):
            (folder.root / f"val_{name}").mkdir(exist_ok=True)
            (folder.root / name / f"{id}.png").rename(folder.root / f"val_{name}" / f"{id}.png")
    for id in "xyz":
        Image.fromarray(image_of(7)).save(folder.root / "images" / f"{id}.png")
    folder.describe(train={"images": "images", "masks": "masks"}, val={"images": "val_images", "masks": "val_masks"})
    train = folder.prepared().train
    assert dict(zip(train.ids, train.classes, strict=True)) == dict.fromkeys("abc", (0, 1, 2)) | dict.fromkeys("xyz")


def test_an_image_of_val_needs_a_mask(folder: Folder) -> None:
    (folder.root / "masks" / "b.png").unlink()
    (folder.root / "masks" / "d.png").unlink()
    assert folder.refused().splitlines()[1:] == [
        "  d: is in val and has no mask in masks (ID.png); add the mask, or take the image out of val"
    ]


def test_a_mask_under_another_name_is_refused(folder: Folder) -> None:
    masks = folder.root / "masks"
    (masks / "b.png").rename(masks / "b_mask.png")
    assert folder.refused().splitlines()[1:] == [
        "  b_mask: is a mask in masks that belongs to no image; name it as its image (mask_suffix may help), remove it, or put "
        "the images without masks under unlabelled"
    ]
    # The masks of images that are not described harm nobody where no image lacks one,
    folder.mask("b", Image.fromarray(mask_of(1)))
    assert folder.prepared().train.num_masks == 3
    # or where the user says which images are unlabelled.
    (masks / "b.png").unlink()
    (folder.root / "train.txt").write_text("a\nc\n")
    folder.describe(unlabelled={"images": "images"})
    folder.out = folder.root / "again"
    assert [classes is None for classes in folder.prepared().train.classes] == [False, False, True]


@pytest.mark.parametrize("suffix", ["jpg", "TIF"])
def test_a_mask_of_another_format_is_refused(folder: Folder, suffix: str) -> None:
    masks = folder.root / "masks"
    Image.fromarray(mask_of(1)).save(masks / f"b.{suffix}")
    (masks / "c.json").write_text("{}")
    assert folder.prepared().train.num_masks == 3  # beside a PNG it is nothing
    folder.out = folder.root / "again"
    (masks / "b.png").unlink()
    assert folder.refused().splitlines()[1:] == [
        f"  b: has b.{suffix} in masks, which is not a mask: masks are PNGs; convert it, or remove it"
    ]


def test_images_in_the_folder_of_the_masks_are_no_masks(folder: Folder) -> None:
    for path in (folder.root / "masks").iterdir():
        path.rename(folder.root / "images" / path.name.replace(".png", "_mask.png"))
    for id in "bcde":
        Image.open(folder.root / "images" / f"{id}.png").save(folder.root / "images" / f"{id}.jpg")
        (folder.root / "images" / f"{id}.png").unlink()
    (folder.root / "images" / "b_mask.png").unlink()
    shared = {"images": "images", "masks": "images"}
    folder.describe(
        train={**shared, "list": "train.txt"},
        val={**shared, "list": "val.txt"},
        image_suffix=".jpg",
        mask_suffix="_mask.png",
    )
    assert [classes is None for classes in folder.prepared().train.classes] == [False, True, False]


def test_a_train_without_any_mask_is_refused(folder: Folder) -> None:
    for id in "abc":
        (folder.root / "masks" / f"{id}.png").unlink()
    assert folder.refused().splitlines()[1:] == [
        "  train: none of its 3 images has a mask in masks (ID.png); without any nothing can be learned: check masks and "
        "mask_suffix"
    ]


def test_the_source_is_the_content_not_the_date(folder: Folder) -> None:
    folder.prepared()
    for path in folder.root.rglob("*.png"):
        path.touch()
    assert not prepare(folder.yaml, folder.out, root=folder.root)
    folder.mask("e", Image.fromarray(mask_of(9)))
    with pytest.raises(FileExistsError):
        prepare(folder.yaml, folder.out, root=folder.root)


def test_all_that_is_wrong_with_the_files_is_said_at_once(folder: Folder) -> None:
    images, masks = folder.root / "images", folder.root / "masks"
    (images / "a.jpg").write_bytes((images / "a.jpg").read_bytes()[:100])  # cut off
    folder.mask("b", Image.fromarray(image_of(0)))  # colours
    folder.mask("c", Image.new("L", (16, 12), 7))  # no such class
    folder.mask("d", Image.new("L", (16, 11)))  # another size
    (masks / "e.png").write_text("no picture")
    for id in ("f", "g"):
        Image.fromarray(image_of(0)).save(images / f"{id}.png")
    Image.fromarray(image_of(0)).save(images / "g.jpg")  # two files, one id
    folder.mask("g", Image.new("L", (16, 12)))
    (folder.root / "train.txt").write_text("a\nb\nc\nb\nf\ng\nnowhere\nd\n")
    message = folder.refused()
    for expected in (
        "nothing was written",
        "a: image is not a readable .jpg/.jpeg/.png",
        "b: mask has mode RGB, so colours for classes, and no palette says which; give a `palette`",
        "c: mask has the values 7; classes are 0..2, void is 255",
        "d: mask is 16x11 (width x height), must be as its image 16x12",
        "e: mask is not a readable PNG: it starts with b'no pictu'",
        "b: is listed 2 times in train.txt",
        "  g: is more than one file in images: g.jpg, g.png",
        "nowhere (line 7): listed in train.txt, is not in the data set",
        "d: is in train and in val",
    ):
        assert expected in message, message


@pytest.mark.parametrize("mode", ["1", "I;16", "LA"])
def test_masks_of_other_modes_are_refused(folder: Folder, mode: str) -> None:
    folder.mask("b", Image.new(mode, (16, 12)))
    assert "b: mask has mode" in folder.refused()


def test_grey_masks_of_few_bits_are_refused(folder: Folder) -> None:
    # Pillow would read the 4-bit index 1 as 17, and 15 as 255, which is void by default.
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 16, 12, 4, 0, 0, 0, 0)
    pixels = zlib.compress((b"\0" + b"\xff" * 8) * 12)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    (folder.root / "masks" / "b.png").write_bytes(png)
    assert "b: mask has mode L with 4 bits" in folder.refused()


def test_unlabelled_list_adds_what_is_new_and_holds_nothing_of_val(folder: Folder) -> None:
    (folder.root / "train.txt").write_text("a\nb\n")
    (folder.root / "more.txt").write_text("a\nb\nc\nd\n")
    folder.describe(unlabelled={"images": "images", "list": "more.txt"})
    assert "d: is in unlabelled and in val" in folder.refused()
    (folder.root / "more.txt").write_text("a\nb\nc\n")
    train = folder.prepared().train
    assert train.ids == ("a", "b", "c") and [classes is None for classes in train.classes] == [False, False, True]


def test_many_images_with_one_problem_take_one_line(folder: Folder) -> None:
    for id in "abcde":
        folder.mask(id, Image.new("L", (16, 12), 9))
    (folder.root / "train.txt").write_text("a\nb\nc\nd\ne\n")
    (folder.root / "val.txt").write_text("a\n")
    message = folder.refused()
    assert message.count("has the values 9") == 1 and "a, b, c, d, e and 1 more" in message


PALETTE = [[10, 200, 30], [0, 0, 128], [255, 255, 0]]


def test_masks_coded_by_colour_are_read_through_the_palette(folder: Folder) -> None:
    colours = np.zeros((256, 3), np.uint8)
    colours[:3], colours[255] = PALETTE, [90, 90, 90]
    for seed, id in enumerate("abcde"):
        folder.mask(id, Image.fromarray(colours[mask_of(seed)]))
    folder.describe(palette=PALETTE, void=[[90, 90, 90]])
    dataset = folder.prepared()
    for seed in range(3):
        mask = dataset.train[seed].mask
        assert mask is not None and np.array_equal(mask.numpy(), mask_of(seed))
    # The colours of void are part of the source.
    folder.describe(palette=PALETTE, void=[[90, 90, 90], [1, 2, 3]])
    with pytest.raises(FileExistsError):
        prepare(folder.yaml, folder.out, root=folder.root)


def test_a_colour_of_no_class_is_named(folder: Folder) -> None:
    folder.mask("b", Image.new("RGB", (16, 12), (1, 2, 3)))
    folder.describe(palette=PALETTE)
    assert (
        "b: mask has the colours (1, 2, 3), which are neither of a class nor void: fix the mask, or classes" in folder.refused()
    )


def test_suffixes_match_images_and_masks_in_the_layout_of_cityscapes(folder: Folder) -> None:
    for seed, name in enumerate(("bonn/bonn_0", "jena/jena_0", "jena/jena_1")):
        image, mask = folder.root / "left" / f"{name}_left.png", folder.root / "fine" / f"{name}_ids.png"
        for path, picture in ((image, image_of(seed)), (mask, mask_of(seed))):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
        Image.new("RGB", (3, 3)).save(mask.with_name(f"{mask.stem}_colour.png"))  # not asked for
    (folder.root / "train.txt").write_text("left/jena/jena_1_left.png fine/jena/jena_1_ids.png\r\n/left/bonn/bonn_0_left.png")
    (folder.root / "val.txt").write_text("jena/jena_0\n")
    part = {"images": "left", "masks": "fine"}
    folder.describe(
        image_suffix="_left.png",
        mask_suffix="_ids.png",
        train={**part, "list": "train.txt"},
        val={**part, "list": "val.txt"},
    )
    dataset = folder.prepared()
    assert (dataset.train.ids, dataset.val.ids) == (("jena/jena_1", "bonn/bonn_0"), ("jena/jena_0",))
    for shards, seeds in ((dataset.train, (2, 0)), (dataset.val, (1,))):
        for index, seed in enumerate(seeds):
            sample = shards[index]
            assert sample.mask is not None and np.array_equal(sample.mask.numpy(), mask_of(seed))
            assert torch.equal(sample.image, torch.from_numpy(image_of(seed)).permute(2, 0, 1))


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "studies" / "data").glob("*.yaml")), ids=lambda path: path.stem
)
def test_the_descriptions_that_ship_are_right(path: Path) -> None:
    assert read_description(path).info.name == path.stem


def test_the_layout_of_the_streets_example(folder: Folder) -> None:
    example = Path(__file__).parents[2] / "studies" / "data" / "streets.yaml"
    table = np.zeros((256, 3), np.uint8)
    table[:3] = [(128, 64, 128), (70, 70, 70), (107, 142, 35)]  # void is black
    for seed, name in enumerate(("train/bonn/bonn_0", "val/jena/jena_0", "train_extra/ulm/ulm_0")):
        for kind, ending, pixels in (
            ("leftImg8bit", "leftImg8bit", image_of(seed)),
            ("gtFine", "gtFine_color", table[mask_of(seed)]),
        ):
            path = folder.root / kind / f"{name}_{ending}.png"
            path.parent.mkdir(parents=True)
            Image.fromarray(pixels).save(path)
    assert prepare(example, folder.out, root=folder.root)
    dataset = open_dataset(folder.out)
    assert (dataset.train.ids, dataset.val.ids) == (("bonn/bonn_0", "ulm/ulm_0"), ("jena/jena_0",))
    mask = dataset.train[0].mask
    assert mask is not None and np.array_equal(mask.numpy(), mask_of(0))
    assert dataset.train[1].mask is None  # though there is one


def test_a_list_may_hold_paths(folder: Folder) -> None:
    (folder.root / "train.txt").write_text("/images/c.png /masks/c.png\nimages/a.jpg\nb.png\n")
    assert folder.prepared().train.ids == ("c", "a", "b")


def test_a_list_that_names_a_mask_which_does_not_exist_is_refused(folder: Folder) -> None:
    (folder.root / "masks" / "b.png").unlink()
    (folder.root / "train.txt").write_text("images/a.jpg masks/a.png\nimages/b.png masks/b.png\nimages/c.png\n")
    assert folder.refused().splitlines()[1:] == [
        "  b: is listed in train.txt with the mask masks/b.png, and has no mask in masks (ID.png); add the mask, or list the "
        "image alone if it is unlabelled"
    ]
    (folder.root / "train.txt").write_text("images/a.jpg masks/a.png\nimages/b.png\nimages/c.png\n")
    assert [classes is None for classes in folder.prepared().train.classes] == [False, True, False]


def test_an_empty_list_is_refused(folder: Folder) -> None:
    (folder.root / "val.txt").write_text("\n")
    message = folder.refused()
    assert "val.txt: is empty or not text" in message and "val: has no image" in message


def test_the_masks_of_unlabelled_images_are_never_opened(folder: Folder) -> None:
    (folder.root / "masks" / "c.png").write_bytes(b"no mask at all")
    (folder.root / "train.txt").write_text("a\nb\n")
    folder.describe(unlabelled={"images": "images"})
    assert folder.prepared().train.ids == ("a", "b", "c")


def test_all_that_is_wrong_with_a_description_is_said_at_once(folder: Folder) -> None:
    folder.describe(
        name="",
        classes=["a", "b", "a"],
        void=[1, 300],
        palette=[[0, 0, 0]],
        val={"images": "images"},
        trian={"images": "x"},
        image_suffix="_rgb.tif",
        mask_suffix=".jpg",
    )
    with pytest.raises(ValueError) as caught:
        read_description(folder.yaml)
    message = str(caught.value)
    for expected in (
        "name must be",
        "classes has a more than once",
        "void must be",
        "palette must have",
        "val must have",
        "trian is unknown",
        "image_suffix must end with .jpg or .jpeg or .png or .webp, got '_rgb.tif'",
        "mask_suffix must end with .png, got '.jpg'",
    ):
        assert expected in message, message


def test_a_void_value_may_not_be_a_class(folder: Folder) -> None:
    folder.describe(void=[2])
    assert "void 2 is the class chair" in folder.refused()


def test_colours_are_told_apart(folder: Folder) -> None:
    folder.describe(palette=[[1, 1, 1], [2, 2, 2], [1, 1, 1]], void=[[2, 2, 2]])
    message = folder.refused()
    assert "(1, 1, 1) stands for 2 of the classes and void" in message and "(2, 2, 2) stands for 2" in message
    folder.describe(void=[[2, 2, 2]])
    assert "void has the colour (2, 2, 2), but there is no palette" in folder.refused()


@pytest.mark.parametrize("text", ["- a\n- b\n", "name: [", ""])
def test_what_is_no_description(folder: Folder, text: str) -> None:
    folder.yaml.write_text(text)
    with pytest.raises(ValueError, match=r"rooms\.yaml"):
        read_description(folder.yaml)


def test_absent_folders_are_named_together(folder: Folder) -> None:
    (folder.root / "val.txt").unlink()
    folder.describe(train={"images": "pictures", "masks": "masks", "list": "train.txt"})
    with pytest.raises(FileNotFoundError, match=r"pictures, .*val\.txt; is .* the right root\?"):
        prepare(folder.yaml, folder.out, root=folder.root)
    with pytest.raises(FileNotFoundError, match="no description"):
        prepare("absent.yaml", folder.out)


def test_names(folder: Folder, tmp_path: Path) -> None:
    folder.prepared()
    assert ensure_dataset("rooms", folder.out).info.name == "rooms"
    assert ensure_dataset("folder", folder.out).info.name == "rooms"
    with pytest.raises(ValueError, match="holds the data set rooms, not digits"):
        ensure_dataset("digits", folder.out)
    # A set that css-ray cannot make by itself says how to have it.
    remedy = "describe its folders .*studies/data/camvid.yaml.*css-ray data prepare offices.yaml --root .* --out"
    with pytest.raises(FileNotFoundError, match=remedy):
        ensure_dataset("offices", tmp_path / "offices")
    with pytest.raises(ValueError, match="did you mean digits"):
        prepare("digit", tmp_path / "other")
    with pytest.raises(ValueError, match="built in"):
        prepare("digits", tmp_path / "other", resize=(8, 8))
    with pytest.raises(ValueError, match="needs a description"):
        prepare("folder", tmp_path / "other")


def test_a_description_may_not_take_a_built_in_name(folder: Folder) -> None:
    # Else a study that asks for digits would train on it.
    folder.describe(name="digits")
    assert "the name digits is taken" in folder.refused()
