"""MLflow's registry: the confirmed winner is put there, and predicts the same masks in another process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from css_ray import Study
from css_ray.registration import RegistrationError, register
from css_ray.selection import load_model
from tests.cli.made_up import SEARCH, Journal, call, refused
from tests.prediction.trained import train_study

torch.set_num_threads(1)


def test_the_winner_of_a_search_must_be_confirmed(here: Path) -> None:
    journal = Journal(here / "runs", study="found", grid={}, search=SEARCH)
    journal.whole(0, {0: 50.0, 1: 51.0}, {"method.temperature": 0.3})
    for split in (0, 1):
        folder = here / f"runs/found/models/trial_0000/split_{split}"
        folder.mkdir(parents=True)
        (folder / "best.pt").touch()
    with pytest.raises(RegistrationError, match=r"css-ray study confirm found --storage .*; or give --unconfirmed"):
        register("found", storage=here / "runs")
    assert "not of a study" in refused("register", "runs/small/models/trial_0000/split_0")
    assert "no study other in runs" in refused("register", "other")


@pytest.mark.slow
def test_a_registered_model_predicts_in_another_process(here: Path, data: Path) -> None:
    import mlflow

    train_study(here / "runs", data, (1,), study="small-confirm", splits=[4, 5])
    assert "backfill it from the journal with: css-ray study sync small-confirm" in refused("register", "small")
    for name in ("small", "small-confirm"):
        Study.open(name).sync()
    result = call("register", "small")
    assert result.exit_code == 0, result.output
    assert "registered as models:/small/1, alias champion" in result.output
    assert "css-ray predict models:/small@champion IMAGES --out DIR" in result.output

    uri = f"sqlite:///{here}/runs/mlflow.db"
    client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    version = client.get_model_version_by_alias("small", "champion")
    chosen = load_model("small")
    origin = chosen.origin
    assert origin is not None and origin.study == "small-confirm" and origin.mean is not None
    tags = version.tags
    assert tags["css_ray.score"] == f"{origin.mean:.2f} ± {origin.std:.2f}" and tags["css_ray.confirmed"] == "true"
    assert (tags["css_ray.dataset"], tags["css_ray.split_hash"]) == ("digits", chosen.best.split_hash)
    assert version.description is not None and chosen.best.split_hash in version.description
    assert version.run_id is not None
    run = client.get_run(version.run_id)
    assert run.inputs is not None
    assert run.data.metrics["values/best/val/miou"] == pytest.approx(chosen.best.metrics["val/miou"])
    assert run.inputs.dataset_inputs[0].dataset.name.startswith("digits/12/split")

    # Again: the same version, and an ensemble is another one.
    assert "was registered before as models:/small/1" in call("register", "small").output
    assert (
        "registered as models:/small/2, alias both"
        in call("register", "small-confirm", "--trial", "1", "--alias", "both").output
    )

    seen = np.random.RandomState(0).randint(0, 256, (2, 24, 31, 3), np.uint8)
    np.save(here / "seen.npy", seen)
    program = (
        "import json, mlflow, numpy as np\n"
        f"mlflow.set_tracking_uri({uri!r}); mlflow.set_registry_uri({uri!r})\n"
        "model = mlflow.pyfunc.load_model('models:/small@champion')\n"
        "np.save('found.npy', model.predict(np.load('seen.npy')))\n"
        "print(json.dumps([model.metadata.signature.inputs.to_dict(), model.metadata.signature.outputs.to_dict()]))\n"
        "np.save('both.npy', mlflow.pyfunc.load_model('models:/small@both').predict(np.load('seen.npy')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=here)
    assert done.returncode == 0, done.stderr
    inputs, outputs = json.loads(done.stdout.splitlines()[-1])
    assert inputs[0]["tensor-spec"] == {"dtype": "uint8", "shape": [-1, -1, -1, 3]}
    assert outputs[0]["tensor-spec"] == {"dtype": "uint8", "shape": [-1, -1, -1]}
    pixels = torch.from_numpy(seen).permute(0, 3, 1, 2)
    assert np.array_equal(np.load(here / "found.npy"), chosen.predict(pixels).classes.numpy())
    assert np.array_equal(np.load(here / "both.npy"), load_model("small-confirm", trial=1).predict(pixels).classes.numpy())

    # And by css-ray's own name for it.
    assert call("predict", "models:/small@champion", str(data), "--out", "by-alias").exit_code == 0
    assert call("predict", chosen.name, str(data), "--out", "by-name").exit_code == 0
    for path in (here / "by-name").glob("*.png"):
        assert (here / "by-alias" / path.name).read_bytes() == path.read_bytes()
    for wrong in ("models:/small/9", "models:/smal@champion", "runs:/0123/model"):
        output = refused("predict", wrong, str(data), "--out", "masks")
        assert f"has no model {wrong}" in output
    assert "MLflow refuses the model" in refused("register", "small", "--name", "a/b:c")
