"""A small HTTP proxy: opens tunnels for CONNECT, and passes plain requests on."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit


class HttpProxy:
    """Listens on a free port of *host*.

    Attributes:
        address: ``host:port``.
        asked: The first line of every connection, and its headers by lower-case name.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        self._listener = socket.create_server((host, 0))
        self.address = f"{host}:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        _shut(self._listener)
        self._threads[0].join()  # from here on no connection is added
        for each in self._open:
            _shut(each)
        for thread in self._threads:
            thread.join(10)
        for each in (self._listener, *self._open):
            each.close()

    def _start(self, work: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):  # shut: the proxy has ended
            while True:
                client, _ = self._listener.accept()
                self._open.append(client)
                self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                part = client.recv(1 << 16)
                if not part:
                    return
                head += part
            first, *lines = head.partition(b"\r\n\r\n")[0].decode().split("\r\n")
            pairs = (line.partition(":") for line in lines)
            self.asked.append((first, {name.lower(): text.strip() for name, _, text in pairs}))
            method, url, _ = first.split(" ")
            parts = urlsplit(f"//{url}" if method == "CONNECT" else url)
            server = socket.create_connection((parts.hostname or "", parts.port or 80))
            self._open.append(server)
            if method == "CONNECT":
                client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            else:  # servers take a whole URL where a path would do
                server.sendall(head)
            self._start(_pass_on, server, client)
            _pass_on(client, server)


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):  # either side is gone, and with it the connection
        while part := source.recv(1 << 16):
            sink.sendall(part)
    _shut(sink)


def _shut(each: socket.socket) -> None:
    with suppress(OSError):  # not connected any more
        each.shutdown(socket.SHUT_RDWR)
