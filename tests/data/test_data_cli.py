"""`css-ray data prepare` and `css-ray data info`: what they print, and how they fail."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner, Result
from PIL import Image, ImageDraw

from css_ray.data.shards import open_dataset


def run(*arguments: object) -> Result:
    from css_ray_cli.data import data

    return CliRunner().invoke(data, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "digits"
    result = run("prepare", "digits", "--out", out)
    assert result.exit_code == 0, result.output
    assert "train    400 images, 400 with masks, 40x40" in result.output
    return out


def test_prepare_again_does_nothing_and_says_so(digits: Path) -> None:
    result = run("prepare", "digits", "--out", digits)
    assert result.exit_code == 0 and "nothing was done" in result.output


def test_info_counts_classes(digits: Path) -> None:
    result = run("info", digits)
    assert result.exit_code == 0, result.output
    train = open_dataset(digits).train
    masks = np.stack([np.asarray(train[index].mask) for index in range(len(train))])
    for index, name in enumerate(("background", "zero", "one", "three", "four", "seven")):
        share, images = 100 * (masks == index).mean(), (masks == index).any((1, 2)).sum()
        assert re.search(rf"^ *{index} +{name} +{share:.2f} % +[\d.]+ % +{images} ", result.output, re.M), result.output


def test_contact_sheet(digits: Path, tmp_path: Path) -> None:
    result = run("info", digits, "--contact-sheet", tmp_path / "sheet.png")
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "sheet.png") as sheet:
        colours = np.array(sheet.convert("RGB")).reshape(-1, 3)
    for colour in open_dataset(digits).info.palette:  # the legend has each class's own
        assert (colours == colour).all(1).any(), colour


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare", "digts", "--out", "new"], "did you mean digits?"),
        (["prepare", "absent.yaml", "--out", "new"], "no description absent.yaml"),
        (["prepare", "digits", "--out", "new", "--resize", "10"], "must be WIDTHxHEIGHT"),
        (["prepare", "digits", "--out", "new", "--resize", "10x10"], "digits are built in"),
        (["prepare", "digits"], "--out"),
        (["info", "new"], "css-ray data prepare"),
    ],
)
def test_bad_input_exits_2_with_one_message(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2 and message in result.output and "Traceback" not in result.output, result.output
    assert not (tmp_path / "new").exists()


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    result = run("prepare", "digits", "--out", tmp_path)
    assert result.exit_code == 2 and "not empty" in result.output


# --------------------------------------------------------------------------------------------------- images without a mask


@pytest.fixture
def rooms(tmp_path: Path) -> Path:
    """A description beside 30 training images, of which every tenth has a mask, and two validation images."""
    for part, count in (("train", 30), ("val", 2)):
        for name in ("images", "masks"):
            (tmp_path / part / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (16, 12), (number, 0, 90 * (part == "val"))).save(
                tmp_path / part / "images" / f"{part}{number:02d}.png"
            )
            if part == "val" or number % 10 == 0:
                Image.new("L", (16, 12), number % 2).save(tmp_path / part / "masks" / f"{part}{number:02d}.png")
    spec: dict[str, object] = {"name": "rooms", "classes": ["floor", "wall"]}
    spec |= {part: {"images": f"{part}/images", "masks": f"{part}/masks"} for part in ("train", "val")}
    (tmp_path / "rooms.yaml").write_text(yaml.safe_dump(spec))
    return tmp_path / "rooms.yaml"


def test_the_commands_count_unlabelled_images(rooms: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run("prepare", rooms, "--out", out)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines()[1:] == [
        "  train     30 images, 3 with masks, the other 27 unlabelled, 16x12 (width x height)",
        "  val        2 images, 2 with masks, 16x12 (width x height)",
    ]
    assert run("check", out).output == f"{out}: 32 images read, 27 of them unlabelled, nothing is wrong\n"
    assert "  0        floor  100.00 %  50.00 %        3      1\n" in run("info", out).output
    assert re.search(r"^ +0 +3 +27 +1 of 1 ", run("splits", "show", out, "--labelled", 3).output, re.M)
    result = run("splits", "show", out, "--labelled", 4)
    assert result.exit_code == 2
    assert result.output == (
        "Error: cannot label 4 images: 3 of the 30 training images of rooms have a mask; label 1 to 3, or add masks and "
        "prepare the data set again\n"
    )
    listed = tmp_path / "labelled.txt"
    listed.write_text("train00\ntrain07\n")
    result = run("splits", "check", out, "--labelled-list", listed)
    assert result.exit_code == 2
    assert f"{listed}: train07 (line 2): has no mask, so it cannot be labelled" in result.output


def test_the_contact_sheet_shows_masks_where_few_images_have_one(rooms: Path, tmp_path: Path) -> None:
    run("prepare", rooms, "--out", tmp_path / "out")
    titles: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageDraw.ImageDraw, "text", lambda self, place, text, **options: titles.append(text))
        assert run("info", tmp_path / "out", "--contact-sheet", tmp_path / "sheet.png").exit_code == 0
    assert titles[:-3] == [  # of 30 images at equal distances only the first would have a mask
        *("train train00", "train train01, unlabelled", "train train10", "train train15, unlabelled"),
        *("train train20", "train train29, unlabelled", "val val00", "val val01"),
    ]


# ------------------------------------------------------------------------------------------------- what cannot be written


@pytest.mark.parametrize(
    "arguments",
    [
        ["prepare", "digits", "--out", "{path}"],
        ["info", "{digits}", "--contact-sheet", "{path}"],
        ["splits", "write", "{digits}", "--labelled", "8", "--split", "1", "--out", "{path}"],
        ["download", "voc", "--root", "{path}"],
    ],
    ids=lambda arguments: arguments[0],
)
@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("notes.txt/new", "notes.txt is a file, not a folder; choose another path"),
        ("/sys/css-ray", "(permission denied; change its permissions, or|its file system is read-only;) choose .*"),
    ],
    ids=["below a file", "forbidden"],
)
def test_what_cannot_be_written_is_one_sentence(
    arguments: list[str], path: str, reason: str, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path.startswith("/sys") and not Path("/sys/kernel").is_dir():
        pytest.skip("there is no folder here that nobody may write")
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("mine")
    result = run(*(argument.format(path=path, digits=digits) for argument in arguments))
    assert result.exit_code == 2, result.output
    below = "/8/1" if arguments[0] == "splits" else ""
    assert re.fullmatch(f"Error: cannot write {path}{below}: {reason}", result.output.splitlines()[-1]), result.output
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"] and Path("notes.txt").read_text() == "mine"


def test_prepare_into_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    result = run("prepare", "digits", "--out", tmp_path / "notes.txt")
    assert result.exit_code == 2
    assert result.output == f"Error: cannot write {tmp_path}/notes.txt: it is a file, not a folder; choose another path\n"


def test_a_contact_sheet_on_a_full_disk_is_one_sentence(digits: Path) -> None:
    result = run("info", digits, "--contact-sheet", "/dev/full")
    assert result.exit_code == 2
    assert result.output.splitlines()[-1] == (
        "Error: cannot write /dev/full: the disk is full; make room, or choose a path on another disk"
    )


def test_original_files_that_cannot_be_read_are_told_in_words(rooms: Path, tmp_path: Path) -> None:
    image = tmp_path / "train" / "images" / "train03.png"
    image.unlink()
    image.mkdir()  # a folder with the name of an image
    result = run("prepare", rooms, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "train03: image is a folder, not a file; remove it" in result.output and "rrno" not in result.output


def test_a_fifo_and_a_device_are_not_opened(rooms: Path, tmp_path: Path) -> None:
    images, masks = tmp_path / "train" / "images", tmp_path / "train" / "masks"
    (images / "train03.png").unlink()
    os.mkfifo(images / "train03.png")
    (images / "train04.png").unlink()
    (images / "train04.png").symlink_to("/dev/zero")
    (images / "train05.png").unlink()
    (images / "train05.png").symlink_to("nowhere")
    (masks / "train10.png").unlink()
    os.mkfifo(masks / "train10.png")
    result = run("prepare", rooms, "--out", tmp_path / "out")
    assert result.exit_code == 2 and not (tmp_path / "out").exists()
    assert "train03, train04, train05: image is neither a file nor a link to one; remove it" in result.output
    assert "train10: mask is neither a file nor a link to one; remove it" in result.output


def test_a_name_that_is_not_utf_8_or_not_of_one_line(rooms: Path, tmp_path: Path) -> None:
    images = os.fsencode(tmp_path / "train" / "images")
    os.rename(os.path.join(images, b"train03.png"), os.path.join(images, b"train\xff03.png"))
    os.rename(os.path.join(images, b"train04.png"), os.path.join(images, b"train\n04.png"))
    result = run("prepare", rooms, "--out", tmp_path / "out")
    assert result.exit_code == 2 and not (tmp_path / "out").exists()
    assert r"'train\udcff03': has a name that is not UTF-8; rename the file" in result.output
    assert r"'train\n04': has a name with control characters" in result.output


def test_a_limit_of_pixels_for_prepare_and_check(rooms: Path, tmp_path: Path) -> None:
    Image.new("RGB", (20, 12)).save(tmp_path / "train" / "images" / "train03.png")
    out = tmp_path / "out"
    result = run("prepare", rooms, "--out", out, "--max-pixels", 200)
    assert result.exit_code == 2 and not out.exists()
    assert "train03: image has 240 pixels (20x12, width x height), at most 200 are allowed" in result.output
    assert "give --max-pixels 240" in result.output
    assert run("prepare", rooms, "--out", out, "--max-pixels", 240).exit_code == 0
    result = run("check", out, "--max-pixels", 200)
    assert result.exit_code == 1 and "train03: image cannot be decoded (image has 240 pixels" in result.output
    assert run("check", out, "--max-pixels", 240).exit_code == 0
    assert run("check", out, "--max-pixels", 0).exit_code == 2


def test_an_aerial_photograph(rooms: Path, tmp_path: Path) -> None:
    Image.new("1", (20_000, 10_000)).save(tmp_path / "train" / "images" / "train03.png")
    result = run("prepare", rooms, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "train03: image has 200,000,000 pixels (20000x10000, width x height)" in result.output, result.output
    result = run("prepare", rooms, "--out", tmp_path / "out", "--max-pixels", 200_000_000)
    assert result.exit_code == 0 and "16x12 to 20000x10000" in result.output, result.output


def test_a_validation_image_that_is_trained_on_under_another_name(rooms: Path, tmp_path: Path) -> None:
    shutil.copy(tmp_path / "train" / "images" / "train07.png", tmp_path / "val" / "images" / "val01.png")
    result = run("prepare", rooms, "--out", tmp_path / "out")
    assert result.exit_code == 2 and not (tmp_path / "out").exists()
    assert "val01: is in val, and byte for byte the training image train07" in result.output


def test_a_mask_of_another_size_is_not_decoded(rooms: Path, tmp_path: Path) -> None:
    """Its header tells: decoded, it would take 400 MB."""
    Image.new("L", (20_000, 20_000)).save(tmp_path / "train" / "masks" / "train10.png")
    result = run("prepare", rooms, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "train10: mask is 20000x20000 (width x height), must be as its image 16x12" in result.output


def test_info_names_an_image_that_cannot_be_decoded(rooms: Path, tmp_path: Path) -> None:
    whole = tmp_path / "train" / "images" / "train10.png"
    whole.unlink()
    with Image.new("RGB", (16, 12), "red") as image:
        image.save(tmp_path / "train" / "images" / "train10.jpg", quality=90)
    path = tmp_path / "train" / "images" / "train10.jpg"
    content = bytearray(path.read_bytes())
    content[content.index(b"\xff\xc0") + 12] = 3  # the number of a quantization table that is not there
    path.write_bytes(content)
    out = tmp_path / "out"
    assert run("prepare", rooms, "--out", out).exit_code == 0  # a JPEG is not decoded there
    result = run("info", out)
    assert result.exit_code == 2, result.output
    assert re.search(rf"{out}/train-00000-\w+\.arrow: the image of train10 cannot be decoded", result.output), result.output
    result = run("check", out)
    assert result.exit_code == 1 and "train10: image cannot be decoded" in result.output
