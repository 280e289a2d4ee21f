"""`pretrained: true` downloads an encoder's weights: here from a server on loopback that speaks the hub's protocol."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save

NETWORKS = ("test_resnet.r160_in1k", "test_vit.r160_in1k")  # timm's own, half a million weights at most
COMMIT = "0" * 40


@pytest.fixture(scope="module", params=NETWORKS)
def network(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def weights(network: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    state: dict[str, torch.Tensor] = timm.create_model(network, pretrained=False).state_dict()
    return {name: torch.randn_like(value) if value.is_floating_point() else value for name, value in state.items()}


@pytest.fixture
def hub(network: str, weights: dict[str, torch.Tensor]) -> Iterator[tuple[str, list[str]]]:
    """The address of a hub that has the weights of `network` and nothing else, and the paths it was asked for."""
    body = save(weights)
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self, with_body: bool) -> None:
            asked.append(self.path)
            found = self.path == f"/timm/{network}/resolve/main/model.safetensors"
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(body) if found else 0))
            if found:
                self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
                self.send_header("X-Repo-Commit", COMMIT)
            else:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
            if found and with_body:
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.answer(with_body=False)

        def do_GET(self) -> None:
            self.answer(with_body=True)

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    server.server_close()


def test_pretrained_weights_come_from_the_hub_once(
    network: str, hub: tuple[str, list[str]], weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    address, asked = hub
    program = (
        "import torch; from css_ray.models.encoders import make_encoder\n"
        f"encoder = make_encoder({network!r}, 16, True)\n"
        "torch.save(encoder.network.state_dict(), 'got.pt')"
    )
    environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    for name in [name for name in environment if name.lower().endswith("_proxy") or name == "HF_HUB_OFFLINE"]:
        del environment[name]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, env=environment)
    got = torch.load(tmp_path / "got.pt", weights_only=True)
    shared = [name for name in got if name in weights]
    assert len(shared) > 20
    assert all(torch.equal(got[name], weights[name]) for name in shared)

    # A second run needs the hub no more.
    offline = environment | {"HF_HUB_OFFLINE": "1"}
    before = len(asked)
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, env=offline)
    assert len(asked) == before
