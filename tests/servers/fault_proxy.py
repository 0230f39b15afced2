"""A TCP proxy in front of any server that can be told to misbehave.

Faults are set by what passes: bytes counted, or a request recognised by what is in it.
Nothing is left to time, so that a test meets the same fault in every run.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

_RESET = struct.pack("ii", 1, 0)  # linger for 0 s: closing sends RST, as a dying host does
_HEADERS = 1  # HTTP/2's kind of frame that begins an answer


class FaultProxy:
    """Passes bytes on to *upstream* until it is told otherwise.

    Args:
        upstream: ``(host, port)``, or the path of a Unix socket.
        host: A loopback address to listen on.
        reset: Whether a cut is a reset, as of a host that died; else an orderly end.
        http2: Whether clients speak HTTP/2: there answers are told from the bytes that
            only keep the connection going.

    Attributes:
        host, port: Where it listens; the port stays the same while it is `down`.
        accepted: How many connections came.
        cuts: How many connections it cut because of `cut_after` or `cut_at`.
        lost: How many answers it kept to itself.
    """

    def __init__(
        self,
        upstream: tuple[str, int] | Path,
        host: str = "127.0.0.1",
        *,
        reset: bool = True,
        http2: bool = False,
    ) -> None:
        self._upstream = upstream
        self.host = host
        self._reset = reset
        self._http2 = http2
        self._lock = threading.Condition()
        self._links: set[_Link] = set()
        self._threads: list[threading.Thread] = []
        self._stalled = False
        self._ended = False
        self._fault: _Fault | None = None
        self.accepted = self.cuts = self.lost = 0
        self.port = 0
        self._listener: socket.socket | None = None
        self.up()

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"{self.host}:{self.port}"

    # what a test orders

    def down(self) -> None:
        """Refuse new connections and cut those there are."""
        with self._lock:
            listener, self._listener = self._listener, None
        if listener is not None:
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes who waits in accept
            listener.close()
        self.cut()

    def up(self) -> None:
        """Take connections (again), on the same port."""
        if self._listener is not None:
            return
        listener = socket.create_server((self.host, self.port))
        self.port = listener.getsockname()[1]
        with self._lock:
            self._listener = listener
        self._start(self._accept, listener)

    def cut(self) -> None:
        """Cut all connections there are."""
        with self._lock:
            links = list(self._links)
        for each in links:
            each.cut()

    def cut_after(self, n_bytes: int, *, answers: bool, times: int = 1) -> None:
        """Cut the connection that carries the *n_bytes*-th byte from now on, *times* times.

        Args:
            n_bytes: Counted over all connections; anew after each cut.
            answers: Whether bytes of the server are counted; else of the clients.
            times: How often.
        """
        self._fault = _CutAfter(n_bytes, answers, times)

    def cut_at(self, *request: bytes, times: int = 1) -> None:
        """Cut where a client's request is recognised; the server never gets its last part.

        Args:
            request: What is in it: these, in this order, on one connection.
            times: How often.
        """
        self._fault = _CutAt(request, times)

    def lose_answer(self, *request: bytes, times: int = 1) -> None:
        """Pass on such a request, await the answer, keep it, and cut the connection."""
        self._fault = _LoseAnswer(request, times)

    def heal(self) -> None:
        """No fault any more; what is cut stays cut."""
        self._fault = None

    def stall(self) -> None:
        """Keep connections, take new ones, and pass on nothing."""
        with self._lock:
            self._stalled = True

    def go_on(self) -> None:
        """Pass on what was stalled."""
        with self._lock:
            self._stalled = False
            self._lock.notify_all()

    def stop(self) -> None:
        """Close everything; returns when no thread is left."""
        self._ended = True
        self.go_on()
        self.down()
        for thread in self._threads:
            thread.join(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # how

    def _start(self, work: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                self.accepted += 1
                wanted = self._listener is listener and not self._ended
            try:
                server = self._connected()
            except OSError:
                _end(client, reset=True)
                client.close()
                continue
            for each in (client, server):
                if each.family != socket.AF_UNIX:  # small parts wait for nobody
                    each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = _Link(client, server, _Frames() if self._http2 else None, self._reset)
            with self._lock:
                self._links.add(link)
            if not wanted:
                link.cut()
            self._start(self._pass_on, link, False)
            self._start(self._pass_on, link, True)

    def _connected(self) -> socket.socket:
        if isinstance(self._upstream, Path):
            server = socket.socket(socket.AF_UNIX)
            server.connect(str(self._upstream))
            return server
        return socket.create_connection(self._upstream, timeout=None)

    def _pass_on(self, link: _Link, answers: bool) -> None:
        source, sink = (link.server, link.client) if answers else (link.client, link.server)
        try:
            while part := source.recv(1 << 14):
                with self._lock:
                    self._lock.wait_for(lambda: not self._stalled)
                    part = self._misbehave(link, part, answers)
                sink.sendall(part)
            with suppress(OSError):
                sink.shutdown(socket.SHUT_WR)
        except OSError:  # cut, by us or by either side
            link.cut()
        with self._lock:
            link.open_ways -= 1
            if link.open_ways:
                return
            self._links.discard(link)
        link.close()

    def _misbehave(self, link: _Link, part: bytes, answers: bool) -> bytes:
        """What of *part* is passed on.

        Raises:
            ConnectionResetError: The connection was cut.
        """
        fault = self._fault
        begins_answer = answers and link.begins_answer(part)
        if fault is None or not fault.times:
            return part
        match fault.meets(link, part, answers, begins_answer):
            case "cut":
                self.cuts += 1
            case "lose":
                self.lost += 1
            case _:
                return part
        fault.times -= 1
        link.cut()
        raise ConnectionResetError


class _Link:
    """One connection: both its ends.

    Attributes:
        open_ways: In how many directions bytes still flow.
        seen: The end of what the client sent: a request may come in several parts.
        recognised: How many of the things that make up a request were there.
        awaited: Whether the answer to a recognised request is to be lost.
        answering: Whether an answer has begun since a fault was set.
    """

    def __init__(
        self, client: socket.socket, server: socket.socket, frames: _Frames | None, reset: bool
    ) -> None:
        self.client = client
        self.server = server
        self.open_ways = 2
        self.seen = b""
        self.recognised = 0
        self.awaited = self.answering = False
        self._frames = frames
        self._reset = reset
        self._turn = threading.Lock()

    def begins_answer(self, part: bytes) -> bool:
        return self._frames is None or _HEADERS in self._frames.begun_in(part)

    def cut(self) -> None:
        """End both connections at once; any thread may, at any time."""
        with self._turn:
            _end(self.client, reset=self._reset)
            _end(self.server, reset=False)

    def close(self) -> None:
        """Give the descriptors back; no thread uses them any more."""
        with self._turn:
            self.client.close()
            self.server.close()


def _end(each: socket.socket, *, reset: bool) -> None:
    if each.fileno() < 0:  # closed
        return
    with suppress(OSError):  # ended before
        if reset:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        # shutdown wakes the thread that waits in recv; the end alone does not
        each.shutdown(socket.SHUT_RD if reset else socket.SHUT_RDWR)
    # The descriptor stays taken: a thread that is about to read from it would otherwise read
    # what a new connection of the same number brings, and that request would be lost.
    with open(os.devnull, "rb") as nowhere:
        os.dup2(nowhere.fileno(), each.fileno(), inheritable=False)


class _Frames:
    """Follows the frames of an HTTP/2 connection's answers."""

    def __init__(self) -> None:
        self._head = b""
        self._left = 0

    def begun_in(self, part: bytes) -> list[int]:
        """The kinds of the frames whose head ends in *part*."""
        kinds = []
        while part:
            if self._left:
                skipped = min(self._left, len(part))
                self._left -= skipped
                part = part[skipped:]
                continue
            missing = 9 - len(self._head)
            self._head, part = self._head + part[:missing], part[missing:]
            if len(self._head) == 9:
                self._left = int.from_bytes(self._head[:3], "big")
                kinds.append(self._head[3])
                self._head = b""
        return kinds


class _Fault:
    """What goes wrong, and how many times still."""

    times: int

    def meets(self, link: _Link, part: bytes, answers: bool, begins_answer: bool) -> str:
        """``cut`` or ``lose`` where it goes wrong with *part*; else empty."""
        raise NotImplementedError


class _CutAfter(_Fault):
    def __init__(self, n_bytes: int, answers: bool, times: int) -> None:
        self._after = self._left = n_bytes
        self._answers = answers
        self.times = times

    def meets(self, link: _Link, part: bytes, answers: bool, begins_answer: bool) -> str:
        link.answering = link.answering or begins_answer
        if answers is not self._answers or (answers and not link.answering):
            return ""
        self._left -= len(part)
        if self._left > 0:
            return ""
        self._left = self._after
        return "cut"


class _Recognised(_Fault):
    def __init__(self, request: tuple[bytes, ...], times: int) -> None:
        self._request = request
        self.times = times

    def _is_request(self, link: _Link, part: bytes) -> bool:
        seen = link.seen + part
        while link.recognised < len(self._request):
            wanted = self._request[link.recognised]
            at = seen.find(wanted)
            if at < 0:
                link.seen = seen[-len(wanted) + 1 :] if len(wanted) > 1 else b""
                return False
            link.recognised += 1
            seen = seen[at + len(wanted) :]
        link.recognised, link.seen = 0, b""
        return True


class _CutAt(_Recognised):
    def meets(self, link: _Link, part: bytes, answers: bool, begins_answer: bool) -> str:
        return "cut" if not answers and self._is_request(link, part) else ""


class _LoseAnswer(_Recognised):
    def meets(self, link: _Link, part: bytes, answers: bool, begins_answer: bool) -> str:
        if not answers:
            link.awaited = link.awaited or self._is_request(link, part)
            return ""
        return "lose" if link.awaited and begins_answer else ""
