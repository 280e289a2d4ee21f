"""A gate before a server, which hangs or stops its address at any moment."""

from __future__ import annotations

import contextlib
import socket
import threading


class Gate:
    """Stands before a server at `port` of this machine: opens, hangs or stops its address at any moment, `url`.

    hung: takes connections and requests and never answers. stopped: nothing listens, and what was open is cut. Without a
    server it starts hung.
    """

    def __init__(self, port: int | None = None) -> None:
        self._target = port
        self._open: list[socket.socket] = []
        self._hung = threading.Event()
        self._listener = _listener(0)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        if port is None:
            self._hung.set()
        self._start()

    def _start(self) -> None:
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                self._open.append(client)
                if self._target is None:
                    continue
                with contextlib.suppress(OSError):  # the server itself may be away
                    server = socket.create_connection(("127.0.0.1", self._target))
                    self._open.append(server)
                    for source, sink in ((client, server), (server, client)):
                        threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(2**16):
                if not self._hung.is_set():  # what was asked of a hung server is lost
                    sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    def hang(self) -> None:
        self._hung.set()

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes `accept`
        for each in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._open.clear()

    def open(self) -> None:
        """Back to normal; connections that were made before it hung or stopped are cut."""
        self.stop()
        self._hung.clear()
        self._listener = _listener(self.port)
        self._start()


def _listener(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    listener.listen(64)
    return listener
