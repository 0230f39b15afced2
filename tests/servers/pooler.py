"""A pooler in transaction mode before a PostgreSQL, as PgBouncer is one.

A server connection is a client's for one transaction, then goes to the end of the queue: what
a client set for its session is lost to it, and met by whoever gets the connection next.  Speaks
the simple query protocol and COPY, which is all that psycopg2 uses.
"""

from __future__ import annotations

import queue
import socket
import struct
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

_PROTOCOL = 196_608
_SSL_REQUEST, _GSS_REQUEST, _CANCEL_REQUEST = 80_877_103, 80_877_104, 80_877_102
_PROCESS_NUMBER = 4_000_000  # a pooler's own, unlike any of the server's


class TransactionPooler:
    """Listens on *host*; use it as a context.

    Args:
        socket_path: The server's Unix socket, where logins are trusted.
        host: A loopback address.
        size: How many server connections there are at most.

    Attributes:
        port: Where it listens.
        most_used: How many server connections were in use at once.
    """

    def __init__(self, socket_path: Path, host: str = "127.0.0.1", size: int = 20) -> None:
        self._socket_path = socket_path
        self._size = size
        self._lock = threading.Lock()
        self._idle: queue.Queue[_Wire] = queue.Queue()
        self._made = self._used = self.most_used = 0
        self._wires: list[_Wire] = []
        self._threads: list[threading.Thread] = []
        self.parameters: list[bytes] = []
        self._listener = socket.create_server((host, 0))
        self.host, self.port = self._listener.getsockname()

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        for wire in self._wires:
            wire.end()
        for thread in self._threads[1:]:
            thread.join()
        for wire in self._wires:
            wire.close()
        self._listener.close()

    def _start(self, work: object, *args: object) -> None:
        assert callable(work)
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):  # it was shut
            while True:
                client, _ = self._listener.accept()
                wire = _Wire(client)
                self._wires.append(wire)
                self._start(self._serve, wire)

    def _serve(self, client: _Wire) -> None:
        with suppress(OSError, EOFError):
            given = client.startup()
            server = self._take(given)  # a pooler, too, learns the parameters from a server
            self._put_back(server)
            client.send(b"R", struct.pack(">i", 0))
            for each in self.parameters:
                client.send(b"S", each)
            client.send(b"K", struct.pack(">ii", _PROCESS_NUMBER, 0))
            client.send(b"Z", b"I")
            while self._transaction(client, given):
                pass
        client.end()

    def _transaction(self, client: _Wire, given: Mapping[str, str]) -> bool:
        """Serve one transaction; whether the client goes on."""
        server: _Wire | None = None
        try:
            while True:
                kind, body = client.receive()
                if kind == b"X":
                    return False
                assert kind == b"Q", kind
                server = server or self._take(given)
                server.send(kind, body)
                if _answer(server, client) == b"I":
                    self._put_back(server)
                    server = None
                    return True
        finally:
            if server is not None:  # left in the middle: what it began must not live on
                server.end()
                with self._lock:
                    self._made -= 1
                    self._used -= 1

    def _take(self, given: Mapping[str, str]) -> _Wire:
        with self._lock:
            make = self._idle.empty() and self._made < self._size
            self._made += make
            self._used += 1
            self.most_used = max(self.most_used, self._used)
        if not make:
            return self._idle.get(timeout=60)
        wire = _Wire(socket.socket(socket.AF_UNIX))
        wire.socket.connect(str(self._socket_path))
        self._wires.append(wire)
        parameters = wire.log_in(given)
        self.parameters = self.parameters or parameters
        return wire

    def _put_back(self, server: _Wire) -> None:
        with self._lock:
            self._used -= 1
        self._idle.put(server)


def _answer(server: _Wire, client: _Wire) -> bytes:
    """Pass on what the server says to a query; how its transaction stands after that."""
    while True:
        kind, body = server.receive()
        client.send(kind, body)
        if kind == b"Z":
            return body
        if kind == b"G":  # it waits for rows
            part = b""
            while part not in (b"c", b"f"):
                part, rows = client.receive()
                server.send(part, rows)


class _Wire:
    """One connection, message by message."""

    def __init__(self, wire: socket.socket) -> None:
        self.socket = wire
        self._file = wire.makefile("rb")

    def startup(self) -> dict[str, str]:
        """What a client begins with; encryption is declined."""
        while True:
            length, code = struct.unpack(">ii", self._read(8))
            body = self._read(length - 8)
            if code in (_SSL_REQUEST, _GSS_REQUEST):
                self.socket.sendall(b"N")
            elif code == _CANCEL_REQUEST:
                raise EOFError
            else:
                words = body.decode().split("\0")
                return dict(zip(words[::2], words[1::2], strict=False))

    def log_in(self, given: Mapping[str, str]) -> list[bytes]:
        """Log in at a server that trusts us; the parameters that it tells."""
        kept = {each: given[each] for each in ("user", "database", "client_encoding")}
        body = "".join(f"{key}\0{value}\0" for key, value in kept.items()).encode() + b"\0"
        self.socket.sendall(struct.pack(">ii", len(body) + 8, _PROTOCOL) + body)
        parameters = []
        while True:
            kind, told = self.receive()
            if kind == b"S":
                parameters.append(told)
            if kind == b"E":
                raise OSError(told)
            if kind == b"Z":
                return parameters

    def receive(self) -> tuple[bytes, bytes]:
        """The next message: its kind and its body."""
        kind = self._read(1)
        (length,) = struct.unpack(">i", self._read(4))
        return kind, self._read(length - 4)

    def send(self, kind: bytes, body: bytes) -> None:
        """Send a message."""
        self.socket.sendall(kind + struct.pack(">i", len(body) + 4) + body)

    def _read(self, count: int) -> bytes:
        got = self._file.read(count)
        if len(got) < count:
            raise EOFError
        return got

    def end(self) -> None:
        """End it under the hands of whoever reads."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of it."""
        self._file.close()
        self.socket.close()
