"""A server that takes webhooks, for tests of who is told that a study ended."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from css_ray.study import hooks


class Server:
    """A server on loopback that keeps what is posted. answers: the status of each request, the last for all further ones."""

    def __init__(self) -> None:
        self.answers = [204]
        self.delay = 0.0
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                outer.requests.append((self.path, dict(self.headers), body))
                time.sleep(outer.delay)
                self.send_response(outer.answers.pop(0) if len(outer.answers) > 1 else outer.answers[0])
                self.send_header("Location", "/elsewhere")
                self.end_headers()

            def do_GET(self) -> None:
                outer.requests.append(("GET", {}, b""))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *arguments: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self.server.server_port}"
        self.url = f"http://{self.host}/services/T00/s3cret?token=s3cret"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@contextlib.contextmanager
def webhook_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that is reached directly, without a pause before the second try."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(hooks, "_PAUSE_SECONDS", 0.01)
    server = Server()
    yield server
    server.server.shutdown()
    server.server.server_close()
