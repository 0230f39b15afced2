"""No connection goes to a host that the plan does not name; nor is one looked up."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from psycopg2.extensions import make_dsn

from tests import watch
from tests.e2e.places import Places, records
from tests.servers import chroma, outside, postgres
from tests.watch import Call, Watch

STRANGER = "127.0.0.66"
"""Named by the environment, by no plan: nobody listens there."""

# What clients take from the environment: proxies, and Chroma's tracing and server.
TEMPTATIONS = {
    **dict.fromkeys(
        ["http_proxy", "https_proxy", "all_proxy", "grpc_proxy", "HTTP_PROXY", "HTTPS_PROXY",
         "ALL_PROXY"],
        f"http://{STRANGER}:9",
    ),
    "CHROMA_OTEL_COLLECTION_ENDPOINT": f"http://{STRANGER}:9",
    "CHROMA_OTEL_GRANULARITY": "all",
    "CHROMA_API_IMPL": "chromadb.api.fastapi.FastAPI",
    "CHROMA_SERVER_HOST": STRANGER,
    "CHROMA_SERVER_HTTP_PORT": "9",
    "ANONYMIZED_TELEMETRY": "True",
    "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{STRANGER}:9",
}  # fmt: skip


MOVES = [
    "chroma-files", "chroma-pgvector", "files-qdrant", "files-qdrant-rest", "faiss-edge",
    "files-weaviate",
]  # fmt: skip
LAYERS = [
    pytest.param("shim", marks=pytest.mark.skipif(bool(watch.missing()), reason=watch.missing())),
    "hook",
]


@dataclass(frozen=True)
class Servers:
    """Where they listen, ``host:port``, and a DSN."""

    chroma: str
    postgres: str
    dsn: str
    qdrant: str
    grpc: str
    weaviate: str
    weaviate_grpc: str


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """A Chroma server, a PostgreSQL by TCP, doubles of Qdrant and Weaviate."""
    with ExitStack() as stack:
        dsn = stack.enter_context(postgres.shared().database())
        front = stack.enter_context(
            postgres.TlsFront(
                postgres.shared().socket_path, tmp_path_factory.mktemp("front"), tls=False
            )
        )
        double = stack.enter_context(outside.qdrant())
        weaviate = stack.enter_context(outside.weaviate())
        yield Servers(
            chroma=urlsplit(chroma.shared_url()).netloc,
            postgres=f"127.0.0.1:{front.port}",
            dsn=make_dsn(dsn, host="127.0.0.1", port=front.port),
            qdrant=urlsplit(double.url).netloc,
            grpc=double.grpc_host,
            weaviate=urlsplit(weaviate["url"]).netloc,
            weaviate_grpc=f"127.0.0.1:{weaviate['grpc_port']}",
        )


# Help ends by SystemExit.
_COMMANDS = """
import json, sys
from runner import cli
for each in json.loads(sys.argv[1]):
    try:
        code = cli.main(each)
    except SystemExit as end:
        code = end.code
    if code:
        sys.exit(code)
"""


class Watched:
    """Runs command lines under watch, each plan's once for all tests."""

    def __init__(self, folder: Path, shim: Path | None, servers: Servers) -> None:
        self._folder = folder
        self._shim = shim
        self._servers = servers
        self._done: dict[str, tuple[Watch, set[str]]] = {}

    def whole(self, move: str) -> tuple[Watch, set[str]]:
        """Lint, inspect, a dry run and a run of this move; and whom its plan names."""
        if move not in self._done:
            places = Places(self._folder / move)
            places.folder.mkdir()
            seen = Watch(self._folder / f"{move}-watch", self._shim)
            source, target, named = self._sides(move, places)
            places.fill(source, records(120))
            plan = places.plan(source, target, batch_size=40)
            given = (["lint"], ["inspect"], ["run", "--dry-run"], ["run"])
            self.cli(seen, places, *([*each, str(plan)] for each in given))
            self._done[move] = seen, named
        return self._done[move]

    def aside(self, folder: Path) -> tuple[Watch, Places]:
        """A watch that has seen nothing yet, and a folder to work in."""
        places = Places(folder / "work")
        places.folder.mkdir()
        return Watch(folder / "watch", self._shim), places

    def cli(self, seen: Watch, places: Places, *commands: list[str]) -> None:
        """Command lines, one after the other in a new interpreter; they succeed."""
        environment = {**places.process_environment(), **TEMPTATIONS}
        environment["PYTHONPATH"] = os.pathsep.join(sys.path)
        done = subprocess.run(
            [sys.executable, "-c", _COMMANDS, json.dumps(commands)],
            cwd=places.folder,
            env=seen.environment(environment),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def _sides(self, move: str, places: Places) -> tuple[dict[str, Any], dict[str, Any], set[str]]:
        servers = self._servers
        places.environment = {
            "TEST_DSN": servers.dsn,
            "TEST_QDRANT": f"http://{servers.qdrant}",
            "TEST_QDRANT_GRPC": servers.grpc,
            "TEST_CHROMA": f"http://{servers.chroma}",
            "TEST_WEAVIATE": f"http://{servers.weaviate}",
            "TEST_WEAVIATE_GRPC_PORT": servers.weaviate_grpc.rpartition(":")[2],
        }
        qdrant = places.options("qdrant-double", move)
        match move:
            case "chroma-files":
                return places.options("chroma", "from"), places.options("files", "to"), set()
            case "chroma-pgvector":
                source = {"store": "chroma", "url": "${TEST_CHROMA}", "collection": "watched"}
                target = places.options("pgvector", "watched")
                return source, target, {servers.chroma, servers.postgres}
            case "files-qdrant":
                return places.options("files", "from"), qdrant, {servers.grpc}
            case "files-qdrant-rest":
                rest = {"store": "qdrant", "url": qdrant["url"], "collection": move}
                target = {**rest, "transport": "rest"}
                return places.options("files", "from"), target, {servers.qdrant}
            case "faiss-edge":
                return places.options("faiss", "from"), places.options("qdrant-edge", "to"), set()
            case "files-weaviate":
                target = places.options("weaviate", "Watched")
                named = {servers.weaviate, servers.weaviate_grpc}
                return places.options("files", "from"), target, named
        raise ValueError(move)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, servers: Servers) -> Watched:
    shim = watch.built_shim(tmp_path_factory.mktemp("shim"))
    return Watched(tmp_path_factory.mktemp("watched"), shim, servers)


def strangers(calls: set[Call], named: set[str]) -> set[Call]:
    """Those calls that go neither to *named* nor to a socket in the file system."""
    hosts = {each.rpartition(":")[0] for each in named}
    return {
        each
        for each in calls
        if each.family != "unix"
        and each.address not in named
        and not (each.family == "name" and each.address in hosts)
    }


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("move", MOVES)
def test_a_plan_reaches_whom_it_names_and_nobody_else(
    watched: Watched, move: str, layer: str
) -> None:
    """Lint, inspect, dry run and run: each server is reached, no other host, and no look-up."""
    seen, named = watched.whole(move)

    calls = seen.calls(layer)

    assert strangers(calls, named) == set()
    if layer == "shim":  # libpq and gRPC connect where Python sees nothing
        assert named <= {each.address for each in calls if each.call == "connect"}


@pytest.mark.parametrize("layer", LAYERS)
def test_lint_and_help_reach_nobody(
    watched: Watched, tmp_path: Path, layer: str, servers: Servers
) -> None:
    seen, places = watched.aside(tmp_path)
    plan = places.plan(
        {"store": "chroma", "url": f"http://{servers.chroma}", "collection": "any"},
        {"store": "qdrant", "url": f"http://{servers.qdrant}", "collection": "any"},
    )

    watched.cli(seen, places, ["--help"], ["run", "--help"], ["lint", str(plan)])

    assert seen.calls(layer) == set()


# what the watch sees

_FROM_PYTHON = "import socket; socket.create_connection(({host!r}, {port}), timeout=5)"
_FROM_LIBPQ = """
import psycopg2
try:
    psycopg2.connect(host={host!r}, port={port}, connect_timeout=5, dbname="x")
except psycopg2.OperationalError:
    pass
"""
_FROM_GRPC = """
import grpc
channel = grpc.insecure_channel("{host}:{port}")
try:
    grpc.channel_ready_future(channel).result(timeout=2)
except grpc.FutureTimeoutError:
    pass
"""


@pytest.mark.parametrize(
    ("layer", "script"),
    [
        pytest.param("hook", _FROM_PYTHON, id="hook-python"),
        *(
            pytest.param("shim", script, id=f"shim-{name}", marks=LAYERS[0].marks)
            for name, script in (
                ("python", _FROM_PYTHON), ("libpq", _FROM_LIBPQ), ("grpc", _FROM_GRPC),
            )
        ),
    ],
)  # fmt: skip
def test_the_watch_catches_a_connection_elsewhere(
    watched: Watched, tmp_path: Path, layer: str, script: str
) -> None:
    seen, _ = watched.aside(tmp_path)
    with Listener("127.0.0.77") as elsewhere:
        subprocess.run(
            [sys.executable, "-c", script.format(host=elsewhere.host, port=elsewhere.port)],
            env=seen.environment(dict(os.environ)),
            timeout=60,
            check=True,
        )

        assert Call("connect", "inet", elsewhere.address) in strangers(
            seen.calls(layer), {"127.0.0.1:5432"}
        )


@pytest.mark.parametrize("layer", LAYERS)
def test_the_watch_catches_a_name_that_is_looked_up(
    watched: Watched, tmp_path: Path, layer: str
) -> None:
    seen, _ = watched.aside(tmp_path)
    script = (
        "import socket, contextlib\n"
        "with contextlib.suppress(OSError):\n"
        "    socket.getaddrinfo('telemetry.invalid', 443)"
    )
    subprocess.run(
        [sys.executable, "-c", script], env=seen.environment(dict(os.environ)), check=True
    )

    assert Call("getaddrinfo", "name", "telemetry.invalid") in strangers(seen.calls(layer), set())


class Listener:
    """Takes connections on a free port of *host* and ends each at once."""

    def __init__(self, host: str) -> None:
        self.host = host
        self._listener = socket.create_server((host, 0))
        self.port: int = self._listener.getsockname()[1]
        self.address = f"{host}:{self.port}"
        self._thread = threading.Thread(target=self._take, daemon=True)

    def _take(self) -> None:
        with suppress(OSError):  # shut: it is over
            while True:
                self._listener.accept()[0].close()

    def __enter__(self) -> Listener:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()
