"""S3 on loopback with faults: a server that stands before moto's, passes requests on, and fails those that it is told to fail."""

from __future__ import annotations

import http.client
import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

import pyarrow.fs
from moto.server import ThreadedMotoServer

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret-of-the-store", "AWS_EC2_METADATA_DISABLED": "true"}

BUSY = b'<?xml version="1.0"?><Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>'


@dataclass
class Fault:
    """What befalls the next `times` requests of a method (any if empty) whose path and query hold `path`.

    busy: answered with 503. slow: answered after `seconds`. cut_request: the connection ends after `bytes` of the request's body,
    which the store never sees. cut_response: the store has done what it was asked for, and the connection ends after `bytes` of
    the answer's body; before its first line where `bytes` is None.
    """

    kind: Literal["busy", "slow", "cut_request", "cut_response"]
    method: str = ""
    path: str = ""
    times: int = 1
    seconds: float = 0.0
    bytes: int | None = None


class FaultyStore:
    """A store at `endpoint` (127.0.0.1:PORT) that passes on to the one at `port`. `requests`: (method, path) of all that came."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.requests: list[tuple[str, str]] = []
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._server = self._listen(0)
        self.endpoint = f"127.0.0.1:{self._server.server_address[1]}"

    def url(self, path: str) -> str:
        """Of a path in a bucket, through the faults."""
        return f"s3://{path}?region=us-east-1&scheme=http&endpoint_override={self.endpoint}"

    @property
    def files(self) -> pyarrow.fs.FileSystem:
        """The store itself, where no fault is."""
        store = f"scheme=http&endpoint_override=127.0.0.1:{self.port}"
        return pyarrow.fs.FileSystem.from_uri(f"s3://any/?region=us-east-1&allow_bucket_creation=true&{store}")[0]

    def names(self, path: str) -> list[str]:
        """What lies below a path, whole paths without it, in order."""
        found = self.files.get_file_info(pyarrow.fs.FileSelector(path, allow_not_found=True, recursive=True))
        return sorted(info.path.removeprefix(f"{path}/") for info in found if info.is_file)

    def fail(self, *faults: Fault) -> None:
        """Add faults; a request meets the first that it matches."""
        with self._lock:
            self._faults.extend(faults)

    def heal(self) -> int:
        """Forget all faults; returns how many requests they still waited for."""
        with self._lock:
            left = sum(fault.times for fault in self._faults)
            self._faults.clear()
        return left

    @contextmanager
    def away(self) -> Iterator[None]:
        """Inside, connections are refused, as by a machine whose server is down."""
        port = self._server.server_address[1]
        self.close()
        try:
            yield
        finally:
            self._server = self._listen(int(port))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def met(self, method: str, path: str) -> Fault | None:
        """The fault that this request meets."""
        with self._lock:
            self.requests.append((method, path))
            for fault in self._faults:
                if fault.method in ("", method) and fault.path in path:
                    fault.times -= 1
                    if not fault.times:
                        self._faults.remove(fault)
                    return fault
        return None

    def _listen(self, port: int) -> ThreadingHTTPServer:
        store = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle(self) -> None:
                _open.add(self.connection)
                try:
                    super().handle()
                except (ConnectionError, ValueError):
                    pass  # the client went, or a fault cut the connection
                finally:
                    _open.discard(self.connection)

            def _pass_on(self) -> None:
                fault = store.met(self.command, self.path)
                length = int(self.headers.get("Content-Length") or 0)
                if fault and fault.kind == "cut_request":
                    self.rfile.read(min(length, fault.bytes or 0))
                    return self._cut()
                body = self.rfile.read(length) if "Content-Length" in self.headers else self._chunks()
                if fault and fault.kind == "busy":
                    return self._answer(503, [("Content-Type", "application/xml")], BUSY)
                inner = http.client.HTTPConnection("127.0.0.1", store.port)
                inner.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() not in ("connection", "expect", "transfer-encoding", "content-length"):
                        inner.putheader(name, value)
                inner.putheader("Content-Length", str(len(body)))
                inner.endheaders(body)
                response = inner.getresponse()
                answer = response.read()
                headers = [(name, value) for name, value in response.getheaders() if name.lower() not in _OWN]
                declared = response.getheader("Content-Length") if self.command == "HEAD" else None
                inner.close()
                if fault and fault.kind == "slow":
                    time.sleep(fault.seconds)
                if fault and fault.kind == "cut_response":
                    return self._cut() if fault.bytes is None else self._answer(response.status, headers, answer, fault.bytes)
                self._answer(response.status, headers, answer, declared=declared)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on

            def _chunks(self) -> bytes:
                """A body in chunks, taken apart."""
                body = b""
                if "chunked" in self.headers.get("Transfer-Encoding", ""):
                    while size := int(self.rfile.readline().split(b";")[0], 16):
                        body += self.rfile.read(size)
                        self.rfile.readline()
                    while self.rfile.readline().strip():
                        pass
                return body

            def _answer(
                self,
                status: int,
                headers: list[tuple[str, str]],
                body: bytes,
                cut_after: int | None = None,
                declared: str | None = None,
            ) -> None:
                self.send_response_only(status)
                for name, value in headers:
                    self.send_header(name, value)
                if status != 204:
                    self.send_header("Content-Length", declared or str(len(body)))
                self.end_headers()
                self.wfile.write(body[:cut_after])
                self.wfile.flush()
                if cut_after is not None:
                    self._cut()

            def _cut(self) -> None:
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # of a connection that a fault or a client ended

            def server_close(self) -> None:
                super().server_close()
                for connection in list(_open):  # those that clients keep for their next request
                    with suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)

        _open: set[socket.socket] = set()
        server = Server(("127.0.0.1", port), Handler)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server


_OWN = ("connection", "content-length", "transfer-encoding")
"""Headers of one connection, which are not passed on."""


@contextmanager
def faulty_s3() -> Iterator[FaultyStore]:
    """An S3 server of this process, empty, with faults before it. Clients need `CREDENTIALS` in their environment."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    store = FaultyStore(server.get_host_and_port()[1])
    try:
        yield store
    finally:
        store.close()
        server.stop()
