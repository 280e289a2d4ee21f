"""Masks: those that the evaluation counted, of any images, once each, whatever interrupts; and what is refused."""

from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import css_ray
from css_ray.data.masks import make_coding
from css_ray.data.shards import open_dataset
from css_ray.functional.windows import sliding_window
from css_ray.prediction.folder import predict_folder
from css_ray.prediction.pictures import find_pictures
from css_ray.selection import load_model
from css_ray.training.best import load_best
from tests.cli.made_up import Journal, call, refused
from tests.prediction.trained import best_of_runs, train_study
from tests.training.awkward import make_awkward

torch.set_num_threads(1)


def photo(path: Path, height: int = 20, width: int = 30, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.RandomState(seed).randint(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(path, quality=95)
    return path


def mask(path: Path) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(path))


def by_hand(masks: Path, data: Path) -> dict[str, float]:
    """Scores in percent from the written masks: a plain loop over images and classes."""
    dataset = open_dataset(data)
    classes = dataset.info.num_classes
    hits, unions = np.zeros(classes), np.zeros(classes)
    right = known = 0
    for index, id in enumerate(dataset.val.ids):
        truth, found = dataset.val[index].mask, mask(masks / f"{id}.png")
        assert truth is not None
        true, seen = truth.numpy(), truth.numpy() != 255
        for each in range(classes):
            hits[each] += ((true == each) & (found == each) & seen).sum()
            unions[each] += (((true == each) | (found == each)) & seen).sum()
        right += ((true == found) & seen).sum()
        known += seen.sum()
    iou = {name: 100 * hits[each] / unions[each] for each, name in enumerate(dataset.info.class_names) if unions[each]}
    named = {f"val/iou/{name}": value for name, value in iou.items()}
    return {"val/miou": float(np.mean(list(iou.values()))), "val/pixel_accuracy": 100 * right / known, **named}


def tolerance(name: str) -> float:
    """The accuracy is a ratio in float32; less than that is a single pixel."""
    return 1e-6 if name == "val/pixel_accuracy" else 1e-12


def test_the_masks_are_those_that_the_evaluation_counted(trained: Journal, here: Path, data: Path) -> None:
    for (trial, split), recorded in best_of_runs(trained).items():
        result = call("predict", f"small:{trial}/{split}", str(data), "--out", f"masks-{trial}-{split}")
        assert result.exit_code == 0, result.output
        scores = by_hand(here / f"masks-{trial}-{split}", data)
        for name, value in scores.items():
            assert math.isclose(value, recorded[name], rel_tol=tolerance(name)), name
        assert f"val/miou {recorded['val/miou']:.2f} %" in result.output


@pytest.mark.parametrize("average", ["probabilities", "logits"])
def test_windows_of_images_of_many_sizes(average: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole images and windows, of three sizes, one of which is smaller than the crop; the journal's scores are met again."""
    monkeypatch.chdir(tmp_path)
    make_awkward(tmp_path / "awkward")
    settings = {"dataset": "folder", "labelled": 2, "crop": 16, "labelled_batch": 2, "unlabelled_batch": 2, "val_batch": 2}
    train = {"iterations": 6, "lr": 0.05, "evaluate_every": 3, "evaluation": "sliding_window", "window_average": average}
    journal = train_study(tmp_path / "runs", tmp_path / "awkward", (0,), data=settings, train=train, splits=[0])
    assert call("predict", "small:0/0", "awkward", "--out", "masks", "--confidence").exit_code == 0
    recorded = best_of_runs(journal)[0, 0]
    for name, value in by_hand(tmp_path / "masks", tmp_path / "awkward").items():
        assert math.isclose(value, recorded[name], rel_tol=tolerance(name)), name

    # Each pixel against the windows of one image, and the confidence against the scores of the windows.
    segmenter, best = load_best(tmp_path / "runs/small/models/trial_0000/split_0")
    assert best.window == 16
    val = open_dataset(tmp_path / "awkward").val
    for index, id in enumerate(val.ids):
        with torch.no_grad():
            scores = sliding_window(segmenter.predict, val[index].image[None] / 255, 16, average)[0]  # type: ignore[arg-type]
        likely = scores if average == "probabilities" else scores.softmax(dim=0)
        assert np.array_equal(mask(tmp_path / "masks" / f"{id}.png"), scores.argmax(dim=0).numpy())
        sure = mask(tmp_path / "masks/confidence" / f"{id}.png")
        assert sure.dtype == np.uint16 and np.abs(sure - 65535 * likely.amax(dim=0).numpy()).max() < 1


def test_files_of_a_data_set_have_the_masks_of_the_data_set(here: Path, data: Path) -> None:
    dataset = open_dataset(data)
    for index, id in enumerate(dataset.val.ids[:7]):
        (here / "photos" / "deep").mkdir(parents=True, exist_ok=True)
        (here / "photos" / "deep" / f"{id}.png").write_bytes(bytes(memoryview(dataset.val.encoded(index)[0])))
    assert call("predict", "small:0/0", "photos", "--out", "of-files", "--overlay").exit_code == 0
    assert call("predict", "small:0/0", str(data), "--out", "of-set").exit_code == 0
    for id in dataset.val.ids[:7]:
        of_file = Image.open(here / "of-files/deep" / f"{id}.png")
        assert of_file.mode == "P" and of_file.getpalette()[:18] == [v for colour in dataset.info.palette for v in colour]  # type: ignore[index]
        assert np.array_equal(np.asarray(of_file), mask(here / "of-set" / f"{id}.png"))
        # What `data prepare` reads as class indices.
        coding = make_coding(dataset.info.num_classes, palette=dataset.info.palette)
        assert np.array_equal(coding((here / "of-files/deep" / f"{id}.png").read_bytes()).indices, np.asarray(of_file))
    id = dataset.val.ids[0]
    pixels, shown = dataset.val[0].image.permute(1, 2, 0).numpy(), mask(here / "of-files/overlay/deep" / f"{id}.png")
    classes = mask(here / "of-files/deep" / f"{id}.png")
    for row, column in ((0, 0), (20, 20), (39, 5)):
        colour = dataset.info.palette[classes[row, column]]
        assert shown[row, column].tolist() == [
            (2 * int(p) + 3 * c) // 5 for p, c in zip(pixels[row, column], colour, strict=True)
        ]


def test_an_ensemble_is_the_mean_of_the_logits_of_its_splits(here: Path, data: Path) -> None:
    images = torch.randint(0, 256, (2, 3, 24, 33), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    members = [load_best(here / f"runs/small/models/trial_0001/split_{split}")[0] for split in (0, 1)]
    with torch.no_grad():
        logits = (members[0].predict(images / 255) + members[1].predict(images / 255)) / 2
    model = load_model("small", trial=1)
    classes, confidence = model.predict(images)
    assert torch.equal(classes, logits.argmax(dim=1).to(torch.uint8))
    assert torch.allclose(confidence, logits.softmax(dim=1).amax(dim=1), atol=1e-6)
    assert [best.split for best in model.bests] == [0, 1] and model.origin is not None and model.origin.n == 2
    assert call("predict", "small", str(data), "--trial", "1", "--out", "masks").exit_code == 0
    assert len(json.loads((here / "masks/prediction.json").read_text())["weights"]) == 2


def test_a_model_takes_uint8_images_alone(here: Path) -> None:
    model = css_ray.load_model("small:0/0")
    for wrong in (torch.rand(1, 3, 8, 8), torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(0, 3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"must be uint8 \[B, 3, H, W\], got"):
            model.predict(wrong)


# ------------------------------------------------------------------------------------------------------------------- which model


def test_which_model_a_text_means(trained: Journal, here: Path) -> None:
    best = best_of_runs(trained)
    chosen = {trial: max((0, 1), key=lambda split: (best[trial, split]["val/miou"], -split)) for trial in (0, 1)}
    assert load_model("small:1").bests[0].split == chosen[1]
    winner = css_ray.Study.open("small").best
    assert winner is not None
    first = winner.index
    assert load_model("small").name == f"small:{first}/{chosen[first]}"
    folder = "runs/small/models/trial_0001/split_0"
    digests = {
        load_model(text).digests
        for text in ("small:1/0", folder, f"{folder}/best.pt", f"{folder}/best.json", f"file://{here}/{folder}")
    }
    assert len(digests) == 1
    assert load_model("runs/small").name == f"small:{first}/{chosen[first]}"
    (here / "small").mkdir()  # a folder that happens to have the name of the study
    assert load_model("small").name == f"small:{first}/{chosen[first]}"


def test_the_confirmed_winner_comes_first(here: Path, data: Path) -> None:
    train_study(here / "runs", data, (1,), study="small-confirm", splits=[5])
    result = call("predict", "small", str(data), "--out", "masks")
    assert "trial 1 of small-confirm is the best on splits that the search never saw" in result.output
    assert "predicted by small-confirm:1/5" in result.output


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (["smal"], "there are: small (did you mean small?)"),
        (["small:7"], "small has no trial 7; trials 0 to 1 have begun"),
        (["small:0/7"], "trial 0 of small has no run on split 7; it has 0, 1"),
        (["small:x"], "neither a study nor an existing folder; give STUDY"),
        (["small:0/1", "--trial", "0"], "give one of the two"),
        (["runs/small/models/trial_0000/split_0", "--trial", "0"], "is one model already"),
        (["runs/small/journal.jsonl"], "is not best.pt or best.json"),
        (["runs/small/models"], "has no best.json"),
        (["a/b/c"], "neither a study nor an existing folder"),
        (["file:///nowhere/at/all"], "give the folder of a run's best weights"),
        (["<b>$&\\textbf{x}\x1b]0;x\x07"], "no study <b>$&\\textbf{x}\\x1b]0;x\\x07 in runs"),
    ],
)  # fmt: skip
def test_a_model_that_does_not_exist(model: list[str], said: str, here: Path, data: Path) -> None:
    output = refused("predict", *model, str(data), "--out", "masks")
    assert said in output and "\x1b" not in output
    assert not Path("masks").exists()


def test_a_study_without_finished_runs(here: Path, data: Path) -> None:
    journal = Journal(here / "runs", study="young")
    assert "young has no trial that finished on all its splits (it is running); no run has finished yet" in refused(
        "predict", "young", str(data), "--out", "masks"
    )
    journal.begin(0)
    journal.run(0, 0, end="running")
    for model in (["young:0"], ["young", "--trial", "0"]):
        assert "trial 0 of young has no finished run (it is running)" in refused("predict", *model, str(data), "--out", "masks")
    assert "the weights of young:0/0 are not in" in refused("predict", "young:0/0", str(data), "--out", "masks")


def test_a_damaged_file_of_weights(here: Path, data: Path) -> None:
    file = here / "runs/small/models/trial_0000/split_0/best.pt"
    file.write_bytes(file.read_bytes()[:-50] + bytes(50))
    output = refused("predict", "small:0/0", str(data), "--out", "masks")
    assert "SHA-256" in output and "train the run again" in output
    for text in ("{", "[]", '{"format": 99}'):
        (file.parent / "best.json").write_text(text)
        assert "best.json" in refused("predict", "small:0/0", str(data), "--out", "masks")
    file.unlink()
    assert "the weights of small:0/0 are not in" in refused("predict", "small:0/0", str(data), "--out", "masks")


def test_prediction_needs_neither_ray_nor_mlflow_nor_optuna(here: Path, data: Path) -> None:
    photo(here / "photos/a.jpg")
    program = (
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('ray', 'optuna', 'mlflow'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from css_ray_cli.main import main\n"
        "main(['predict', 'small', 'photos', '--out', 'masks'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=here)
    assert done.returncode == 0 and (here / "masks/a.png").is_file(), done.stderr
    bare = program.replace("'mlflow')", "'mlflow', 'pydantic', 'yaml', 'click', 'rich')").partition("from css_ray_cli")[0] + (
        "from css_ray.prediction import TrainedModel, predict_folder\n"
        "from css_ray.prediction.pictures import find_pictures\n"
        "from pathlib import Path\n"
        "model = TrainedModel(['runs/small/models/trial_0000/split_0'], name='it')\n"
        "print(predict_folder(model, find_pictures(['photos'], out=Path('bare')), 'bare').written)"
    )
    done = subprocess.run([sys.executable, "-c", bare], capture_output=True, text=True, cwd=here)
    assert done.stdout == "1\n", done.stderr


# ------------------------------------------------------------------------------------------------------------------ which images


def test_folders_lists_globs_and_files_keep_their_paths(here: Path) -> None:
    for name in ("x/a.jpg", "x/deep/b.PNG", "x/c.webp", "y/d.jpeg", "x/.hidden/e.jpg", "x/notes.md"):
        photo(here / name) if not name.endswith(".md") else (here / name).write_text("")
    (here / "x/list.txt").write_text("\ufeffdeep/b.PNG\r\n\n../y/d.jpeg\n", encoding="utf-8")

    def names(*places: str) -> list[str]:
        return [picture.name for picture in find_pictures(places, out=here / "masks").pictures]

    assert names("x") == ["a", "c", "deep/b"]
    assert names("x/list.txt") == ["x/deep/b", "y/d"]
    assert names("x/*.jpg") == ["a"] and names("**/*.jp*g") == ["x/a", "y/d"]
    assert names("x/a.jpg") == ["a"] and names("x/a.jpg", "./x/a.jpg", "y/d.jpeg") == ["x/a", "y/d"]
    assert call("predict", "small:0/0", "x", "--out", "x/masks").exit_code == 0
    assert sorted(str(path.relative_to(here / "x/masks")) for path in (here / "x/masks").rglob("*.png")) == [
        "a.png",
        "c.png",
        "deep/b.png",
    ]
    assert "3 were there already" in call("predict", "small:0/0", "x", "--out", "x/masks").output  # its own masks are no images


@pytest.mark.parametrize(
    ("places", "said"),
    [
        (["phots"], "phots does not exist (did you mean photos?)"),
        (["photos/*.gif"], "matches no file"),
        (["empty"], "empty has no image (.jpg, .jpeg, .png, .webp)"),
        (["empty.txt"], "is empty; list one image per line"),
        (["binary.txt"], "is not text"),
        (["same"], "two images would be written to one file: same/a.jpg and same/a.png (both masks/a.png)"),
        (["photos", "--resize", "0x3"], "must be WIDTHxHEIGHT"),
        (["photos", "--out", "photos"], "--out photos is the folder of the images; choose another, such as photos-masks"),
        (["photos", "--out", "s3://bucket/masks"], "is a URL; give a folder of this machine"),
        (["photos", "--out", "photos/a.jpg"], "it is a file, not a folder"),
        (["nested", "--overlay"], "would be written to one file"),
        (["photos", "--device", "cuda"], "torch sees no CUDA device"),
    ],
)  # fmt: skip
def test_images_that_are_not_there_or_would_overwrite_each_other(places: list[str], said: str, here: Path) -> None:
    for name in ("photos/a.jpg", "same/a.jpg", "same/a.png", "nested/a.jpg", "nested/overlay/a.jpg"):
        photo(here / name)
    (here / "empty").mkdir()
    (here / "empty.txt").touch()
    (here / "binary.txt").write_bytes(b"\xff\xfe\x00")
    if "cuda" in places and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    before = sorted(here.rglob("*.*"))
    assert said in refused("predict", "small:0/0", *places, *([] if "--out" in places else ["--out", "masks"]))
    assert sorted(here.rglob("*.*")) == before


def test_images_that_cannot_be_read_are_named_and_the_others_done(here: Path) -> None:
    photo(here / "photos/good.jpg")
    whole = photo(here / "photos/cut.png").read_bytes()
    (here / "photos/cut.png").write_bytes(whole[:-30])
    (here / "photos/empty.jpg").touch()
    (here / "photos/text.jpg").write_text("not an image")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(here / "photos/old.bmp")
    os.mkfifo(here / "photos/fifo.png")
    os.symlink("nowhere", here / "photos/gone.png")
    photo(here / "photos/large.png", 40, 40)
    hostile = "<script>$\\textbf{x}\x1b]0;x.jpg"
    (here / "photos" / hostile).write_text("no")
    result = call("predict", "small:0/0", "photos", "--out", "masks", "--max-pixels", "1000")
    assert (
        result.exit_code == 1 and "Error: 8 images could not be read" in result.output and "1 image predicted" in result.output
    )
    for name, why in {
        "cut.png": "cut off", "empty.jpg": "is empty (0 bytes)", "text.jpg": "not a readable", "old.bmp": "starts with b'BM",
        "fifo.png": "neither a file", "gone.png": "does not exist", "large.png": "give --max-pixels 1600", r"\x1b]0;x.jpg": "not a readable",
    }.items():  # fmt: skip
        assert any(name in line and why in line for line in result.output.splitlines()), (name, result.output)
    assert "\x1b" not in result.output and "Traceback" not in result.output
    assert [path.name for path in (here / "masks").glob("*.png")] == ["good.png"]
    # Once they are there, the rest is done.
    photo(here / "photos/cut.png")
    output = call("predict", "small:0/0", "photos", "--out", "masks", "--max-pixels", "1000").output
    assert "1 image predicted by small:0/0, 1 were there already" in output


def test_other_classes_than_the_models(here: Path) -> None:
    make_awkward(here / "awkward")
    output = refused("predict", "small:0/0", "awkward", "--out", "masks")
    assert "the data set awkward has other classes than small:0/0, which was trained on digits" in output
    assert "has dark, bright, unicorn and lacks background" in output and not Path("masks").exists()


def test_ids_of_a_data_set_cannot_lead_out_of_the_folder(here: Path) -> None:
    from css_ray.data.shards import DatasetInfo
    from css_ray.data.writing import rows_source, write_dataset
    from tests.training.awkward import CLASSES, PALETTE, row

    rows = {"train": [row("a", 0, True)], "val": [row("../../b", 1, True)]}
    write_dataset(here / "evil", rows_source(DatasetInfo("evil", CLASSES, PALETTE), rows))
    assert "which is not a path below a folder" in refused("predict", "small:0/0", "evil", "--out", "masks")


# --------------------------------------------------------------------------------------------------------- sizes and settings


def test_images_of_another_size_than_the_data_sets(here: Path) -> None:
    photo(here / "photos/a.jpg", 80, 120)
    result = call("predict", "small:0/0", "photos", "--out", "as-they-are")
    assert result.exit_code == 0 and "1 images are not 40x40" in result.output and "--resize 40x40" in result.output
    assert mask(here / "as-they-are/a.png").shape == (80, 120)
    result = call("predict", "small:0/0", "photos", "--out", "resized", "--resize", "40x40")
    assert result.exit_code == 0 and "warning" not in result.output
    # By Pillow, as the data set's preparation resizes, and each pixel the one below its centre.
    small = Image.open(here / "photos/a.jpg").convert("RGB").resize((40, 40), Image.Resampling.BILINEAR)
    encoded = io.BytesIO()
    small.save(encoded, "JPEG", quality=95)
    from css_ray.data.images import decode_rgb

    classes, _ = load_model("small:0/0").predict(decode_rgb(encoded.getvalue())[None])
    expected = classes[0].repeat_interleave(2, 0).repeat_interleave(3, 1).numpy()
    found = mask(here / "resized/a.png")
    assert found.shape == (80, 120) and (found == expected).mean() > 0.99  # Pillow's and torchvision's decoders differ in a bit


def test_weights_of_an_earlier_version_are_predicted_with_defaults(here: Path) -> None:
    """Without what makes the last digits: one image per batch, and the threads that there are."""
    folder = here / "runs/small/models/trial_0000/split_0"
    described = json.loads((folder / "best.json").read_text())
    for name in ("checksum", "batch", "threads", "workers", "channels_last", "deterministic", "image_size", "initial_weights"):
        del described[name]
    import hashlib

    checksum = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    (folder / "best.json").write_text(json.dumps(described | {"checksum": checksum}))
    photo(here / "photos/a.jpg", 80, 120)
    result = call("predict", "small:0/0", "photos", "--out", "masks")
    assert result.exit_code == 0 and "warning" not in result.output
    how = json.loads((here / "masks/prediction.json").read_text())["how"]
    assert (how["batch"], how["threads"]) == (1, None)


# ------------------------------------------------------------------------------------------------------------------- restarts


def test_what_is_complete_is_skipped_and_the_rest_has_the_same_bits(here: Path, data: Path) -> None:
    arguments = ["predict", "small:0/0", str(data), "--out", "masks", "--confidence", "--batch", "7"]
    assert call(*arguments).exit_code == 0
    files = sorted(path for path in (here / "masks").rglob("*.png"))
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
    lost = files[3], files[len(files) // 2 + 5]
    for path in lost:
        path.unlink()
    (here / "masks/val-0001.png.partial").write_bytes(b"half")  # as a kill leaves it
    result = call(*arguments)
    assert result.exit_code == 0 and "2 images predicted by small:0/0, 198 were there already" in result.output
    changed = {path for path in files if path.stat().st_mtime_ns != before[path][1]}
    assert {path.stem for path in changed} == {path.stem for path in lost}
    assert all(path.read_bytes() == content for path, (content, _) in before.items())


def test_an_image_that_is_newer_than_its_mask_is_predicted_again(here: Path) -> None:
    path = photo(here / "photos/a.jpg")
    photo(here / "photos/b.jpg")
    assert call("predict", "small:0/0", "photos", "--out", "masks").exit_code == 0
    os.utime(path, (time.time() + 5, time.time() + 5))
    assert (
        "1 image predicted by small:0/0, 1 were there already"
        in call("predict", "small:0/0", "photos", "--out", "masks").output
    )
    # An overlay that was not asked for before is added.
    assert "2 images predicted" in call("predict", "small:0/0", "photos", "--out", "masks", "--overlay").output


def test_a_folder_of_another_model_is_refused(here: Path) -> None:
    photo(here / "photos/a.jpg")
    assert call("predict", "small:0/0", "photos", "--out", "masks").exit_code == 0
    output = refused("predict", "small:1/0", "photos", "--out", "masks")
    assert "masks has the masks of small:0/0 (weights" in output and "choose another folder, or remove this one" in output
    output = refused("predict", "small:0/0", "photos", "--out", "masks", "--batch", "3")
    assert "batch 100, now 3" in output
    (here / "masks/prediction.json").write_text("{")
    assert "was altered" in refused("predict", "small:0/0", "photos", "--out", "masks")
    (here / "masks/prediction.json").unlink()
    assert "no prediction.json shows where it is from" in refused("predict", "small:0/0", "photos", "--out", "masks")
    # The same weights under another name are the same model.
    assert call("predict", "small:0/0", "photos", "--out", "more").exit_code == 0
    assert call("predict", "runs/small/models/trial_0000/split_0", "photos", "--out", "more").exit_code == 0


def test_two_processes_do_not_write_one_folder(here: Path) -> None:
    import fcntl

    photo(here / "photos/a.jpg")
    (here / "masks").mkdir()
    held = os.open(here / "masks", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        assert "another process writes masks to masks" in refused("predict", "small:0/0", "photos", "--out", "masks")
    finally:
        os.close(held)


def test_a_kill_leaves_whole_masks_and_the_same_command_continues(here: Path, data: Path) -> None:
    """A second process is killed between two files; what has its name is whole, and the end is that of an undisturbed run."""
    model = load_model("small:0/0")
    predict_folder(model, find_pictures([data], out=here / "whole"), here / "whole")
    program = (
        "import os, signal, sys\n"
        "from css_ray.prediction import folder\n"
        "write, count = folder._Writer.write, 0\n"
        "def killed(*arguments):\n"
        "    global count\n"
        "    count += 1\n"
        "    if count == 60: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    write(*arguments)\n"
        "folder._Writer.write = killed\n"
        "from css_ray_cli.main import main\n"
        f"main(['predict', 'small:0/0', {str(data)!r}, '--out', 'masks'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=here, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == -signal.SIGKILL
    left = list((here / "masks").glob("*.png"))
    assert 0 < len(left) < 60 and all(mask(path).shape == (40, 40) for path in left)
    again = predict_folder(model, find_pictures([data], out=here / "masks"), here / "masks")
    assert (again.kept, again.written) == (len(left), 200 - len(left))
    for path in (here / "whole").glob("*.png"):
        assert (here / "masks" / path.name).read_bytes() == path.read_bytes()
