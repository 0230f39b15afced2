"""Servers that cut, swallow and go away: the run goes through, or pauses and can go on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from psycopg2.extensions import make_dsn

from runner import load_plan
from runner.copy import retry
from runner.errors import PausedError
from runner.report.progress import ProgressEvent
from runner.results import Verdict
from runner.steps import execute
from tests.e2e.conftest import Cli
from tests.e2e.places import NEEDS_UUIDS, Places, records
from tests.servers import chroma, outside, postgres
from tests.servers.fault_proxy import FaultProxy

COUNT = 120
KINDS = ["chroma", "pgvector", "qdrant-grpc", "qdrant-rest", "weaviate-grpc", "weaviate-rest"]
SIDES = ["source", "target"]
ALWAYS = 10**9
CHECKS = {"queries": {"sample": 5, "k": 3, "min_recall_ratio": 0.5}}
_names = itertools.count()

# What is in a request that writes records, and in the one that makes a collection.
WRITE = {
    "chroma": (b"/add HTTP",),
    "pgvector": (b"FROM STDIN", b"COMMIT"),
    "qdrant-grpc": (b"The text of number",),
    "qdrant-rest": (b"PUT /collections/", b"/points"),
    "weaviate-grpc": (b"The text of number",),
}
CREATE = {
    "chroma": (b"/default_database/collections HTTP",),
    "pgvector": (b"CREATE TABLE", b"COMMIT"),
    # size: 16, distance: Cosine
    "qdrant-grpc": (b"\x08\x10\x10\x01",),
    "qdrant-rest": (b"PUT /collections/",),
    "weaviate-rest": (b"POST /v1/schema HTTP",),
}
# What Weaviate, which needs both of its protocols, does by the other one.
UNTOUCHED = {("weaviate-grpc", "create"), ("weaviate-grpc", "index")}


@dataclass
class Backend:
    """A server, reached directly and through a proxy that can fail.

    Attributes:
        environment: What plans refer to; names that begin with FAULTY lead to the proxy.
    """

    kind: str
    proxy: FaultProxy
    environment: dict[str, str]

    def options(self, name: str, *, faulty: bool) -> dict[str, Any]:
        """The keys of a plan's side."""
        way = "FAULTY" if faulty else "STEADY"
        match self.kind:
            case "chroma":
                return {"store": "chroma", "url": f"${{{way}_URL}}", "collection": name}
            case "pgvector":
                return {"store": "pgvector", "dsn": f"${{{way}_DSN}}", "table": name}
            case "qdrant-rest":
                return {"store": "qdrant", "url": f"${{{way}_URL}}", "collection": name,
                        "transport": "rest"}  # fmt: skip
            case "weaviate-grpc" | "weaviate-rest":
                return {"store": "weaviate", "url": f"${{{way}_URL}}",
                        "collection": name.capitalize(),
                        "connection": {"grpc_host": f"${{{way}_GRPC}}"}}  # fmt: skip
            case _:
                return {"store": "qdrant", "url": f"${{{way}_URL}}", "collection": name,
                        "connection": {"grpc_host": f"${{{way}_GRPC}}"}}  # fmt: skip


@pytest.fixture(scope="module")
def backends() -> Iterator[dict[str, Backend]]:
    with ExitStack() as stack:
        made = {}
        url = chroma.shared_url()
        proxy = stack.enter_context(FaultProxy(_address(url), "127.0.0.81"))
        made["chroma"] = Backend(
            "chroma", proxy, {"STEADY_URL": url, "FAULTY_URL": f"http://{proxy.address}"}
        )
        dsn = stack.enter_context(postgres.shared().database())
        proxy = stack.enter_context(FaultProxy(postgres.shared().socket_path, "127.0.0.82"))
        through = make_dsn(
            dsn, host=proxy.host, port=proxy.port, sslmode="disable", gssencmode="disable"
        )
        made["pgvector"] = Backend("pgvector", proxy, {"STEADY_DSN": dsn, "FAULTY_DSN": through})
        double = stack.enter_context(outside.qdrant())
        proxy = stack.enter_context(
            FaultProxy(_address(f"//{double.grpc_host}"), "127.0.0.83", http2=True)
        )
        made["qdrant-grpc"] = Backend(
            "qdrant-grpc",
            proxy,
            {
                "STEADY_URL": double.url,
                "FAULTY_URL": double.url,
                "STEADY_GRPC": double.grpc_host,
                "FAULTY_GRPC": proxy.address,
            },
        )
        proxy = stack.enter_context(FaultProxy(_address(double.url), "127.0.0.84"))
        made["qdrant-rest"] = Backend(
            "qdrant-rest",
            proxy,
            {"STEADY_URL": double.url, "FAULTY_URL": f"http://{proxy.address}"},
        )
        there = stack.enter_context(outside.weaviate())
        grpc = f"127.0.0.1:{there['grpc_port']}"
        steady = {"STEADY_URL": there["url"], "STEADY_GRPC": grpc}
        proxy = stack.enter_context(FaultProxy(_address(f"//{grpc}"), "127.0.0.85", http2=True))
        made["weaviate-grpc"] = Backend(
            "weaviate-grpc",
            proxy,
            {**steady, "FAULTY_URL": there["url"], "FAULTY_GRPC": proxy.address},
        )
        proxy = stack.enter_context(FaultProxy(_address(there["url"]), "127.0.0.86"))
        made["weaviate-rest"] = Backend(
            "weaviate-rest",
            proxy,
            {**steady, "FAULTY_URL": f"http://{proxy.address}", "FAULTY_GRPC": grpc},
        )
        yield made


def _address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return parts.hostname, parts.port


@dataclass
class Move:
    """One migration from or to a server that can fail, and the same one undisturbed."""

    backend: Backend
    side: str
    places: Places
    file: Path
    target: dict[str, Any]
    undisturbed: str

    @property
    def proxy(self) -> FaultProxy:
        return self.backend.proxy

    def digest(self) -> str:
        """Of what the target holds now, seen past the proxy."""
        return self.places.digest(self.target).hex()

    def count(self) -> int:
        with self.places.opened(self.target) as store:
            return store.count()


MakeMove = Callable[[str, str], Move]


@pytest.fixture
def move(
    backends: dict[str, Backend], places: Places, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MakeMove]:
    """Makes the move of a kind and side.  Waits are short, and every batch is told."""
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(execute, "_EVENT_EVERY_S", 0.0)
    used: list[Backend] = []

    def make(kind: str, side: str) -> Move:
        backend = backends[kind]
        used.append(backend)
        places.environment = backend.environment
        for name, value in backend.environment.items():
            monkeypatch.setenv(name, value)
        name = f"moved_{next(_names)}"
        sent = records(COUNT, kind="uuid" if kind.startswith(NEEDS_UUIDS) else "text")
        files = {"store": "files", "path": f"{name}.parquet"}
        here = backend.options(name, faulty=False)
        ends = (here, files) if side == "source" else (files, here)
        id_kind = "uuid" if kind.startswith(NEEDS_UUIDS) else "string"
        places.fill(ends[0], sent, id_kind=id_kind)
        faulty = backend.options(name, faulty=True)
        plan = places.plan(
            *((faulty, files) if side == "source" else (files, faulty)),
            name=name, batch_size=10, workers=1, validation=CHECKS,
        )  # fmt: skip
        return Move(backend, side, places, plan, ends[1], _undisturbed(places, backend, side, sent))

    yield make
    for backend in used:
        backend.proxy.heal()
        backend.proxy.go_on()
        backend.proxy.up()


_calm: dict[tuple[str, str], str] = {}


def _undisturbed(places: Places, backend: Backend, side: str, sent: Any) -> str:
    """The digest of the target after the same move without a proxy; made once."""
    key = backend.kind, side
    if key not in _calm:
        name = f"calm_{next(_names)}"
        files = {"store": "files", "path": f"{name}.parquet"}
        here = backend.options(name, faulty=False)
        ends = (here, files) if side == "source" else (files, here)
        id_kind = "uuid" if backend.kind.startswith(NEEDS_UUIDS) else "string"
        places.fill(ends[0], sent, id_kind=id_kind)
        result = load_plan(places.plan(*ends, name=name, validation=CHECKS)).run()
        assert result.verdict is Verdict.PASSED
        _calm[key] = places.digest(ends[1]).hex()
    return _calm[key]


def once(phase: str, act: Callable[[], None], *, copied: int = 0) -> Callable[[Any], None]:
    """A listener that does *act* when *phase* is told for the first time."""
    done = []

    def listen(event: ProgressEvent) -> None:
        if not done and event.phase == phase and (event.records or 0) >= copied:
            done.append(event)
            act()

    return listen


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", WRITE)
def test_connections_that_are_cut_while_copying_are_made_anew(
    move: MakeMove, kind: str, side: str
) -> None:
    moving = move(kind, side)
    before = moving.proxy.cuts

    def break_it() -> None:
        if side == "target":
            moving.proxy.cut_at(*WRITE[kind], times=3)
        else:
            moving.proxy.cut_after(2500, answers=True, times=3)

    result = load_plan(moving.file).run(once("copy", break_it))

    assert moving.proxy.cuts - before == 3
    assert result.verdict is Verdict.PASSED
    assert result.retries >= 3
    assert moving.digest() == moving.undisturbed


@pytest.mark.parametrize("kind", WRITE)
def test_a_write_whose_answer_is_lost_is_not_doubled(move: MakeMove, kind: str) -> None:
    moving = move(kind, "target")
    before = moving.proxy.lost

    result = load_plan(moving.file).run(
        once("copy", lambda: moving.proxy.lose_answer(*WRITE[kind], times=2))
    )

    assert moving.proxy.lost - before == 2
    assert result.verdict is Verdict.PASSED
    assert result.retries >= 2
    assert moving.count() == COUNT
    assert moving.digest() == moving.undisturbed


@pytest.mark.parametrize("kind", CREATE)
def test_a_collection_whose_making_was_not_answered_is_known_as_ours(
    move: MakeMove, kind: str
) -> None:
    moving = move(kind, "target")
    before = moving.proxy.lost

    result = load_plan(moving.file).run(
        once("create", lambda: moving.proxy.lose_answer(*CREATE[kind]))
    )

    assert moving.proxy.lost - before == 1
    assert result.verdict is Verdict.PASSED
    assert result.retries == 1
    assert moving.digest() == moving.undisturbed


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", WRITE)
def test_a_server_that_stays_away_pauses_the_run_and_resume_ends_it(
    move: MakeMove, kind: str, side: str
) -> None:
    moving = move(kind, side)
    plan = load_plan(moving.file)

    with pytest.raises(PausedError, match="failed 4 times") as caught:
        plan.run(once("copy", moving.proxy.down, copied=1))

    assert caught.value.exit_code == 75
    status = plan.status()
    assert status.phase == "copy"
    assert status.unfinished
    assert 0 < status.records < COUNT

    moving.proxy.up()
    result = plan.resume()

    assert result.verdict is Verdict.PASSED
    assert result.resumed == 1
    assert moving.digest() == moving.undisturbed


@pytest.mark.parametrize(
    ("kind", "side", "phase"),
    [
        (kind, side, phase)
        for kind in KINDS
        for side, phase in (
            ("target", "create"), ("target", "index"), ("target", "check"), ("source", "check"),
        )
        if (kind, phase) not in {*UNTOUCHED, ("chroma", "index")}  # it has nothing to do there
    ],
)  # fmt: skip
def test_a_server_that_goes_away_beside_the_copy_pauses_the_run_too(
    move: MakeMove, kind: str, side: str, phase: str
) -> None:
    moving = move(kind, side)
    plan = load_plan(moving.file)

    with pytest.raises(PausedError, match="failed 4 times") as caught:
        plan.run(once(phase, moving.proxy.down))

    assert caught.value.exit_code == 75
    assert plan.status().phase == phase

    moving.proxy.up()
    result = plan.run()

    assert result.verdict is Verdict.PASSED
    assert moving.digest() == moving.undisturbed


@pytest.mark.parametrize(
    ("kind", "phase"),
    [
        (kind, phase)
        for kind in KINDS
        for phase in ("create", "index", "check")
        if (kind, phase) not in UNTOUCHED
    ],
)
def test_a_connection_that_is_cut_beside_the_copy_is_made_anew(
    move: MakeMove, kind: str, phase: str
) -> None:
    moving = move(kind, "target")
    before = moving.proxy.cuts

    result = load_plan(moving.file).run(
        once(phase, lambda: moving.proxy.cut_after(1, answers=True, times=3))
    )

    assert moving.proxy.cuts - before == 3
    assert result.verdict is Verdict.PASSED
    assert result.retries >= 3
    assert moving.digest() == moving.undisturbed


@pytest.mark.parametrize(
    ("kind", "side"),
    [
        (kind, side)
        for kind in KINDS
        for side in SIDES
        if (kind, side) != ("weaviate-grpc", "target")  # REST says that there is none yet
    ],
)
def test_a_look_at_a_server_that_fails_is_repeated_and_then_given_up(
    move: MakeMove, kind: str, side: str
) -> None:
    """Dry run, inspect, and the beginning of a run: nothing is left behind by any of them."""
    moving = move(kind, side)
    plan = load_plan(moving.file)
    for look in (plan.dry_run, plan.inspect):
        before = moving.proxy.cuts
        moving.proxy.cut_after(100, answers=True, times=2)
        assert look().exit_code == 0
        assert moving.proxy.cuts - before == 2

        moving.proxy.cut_after(100, answers=True, times=ALWAYS)
        with pytest.raises(PausedError, match="failed 4 times"):
            look()

    moving.proxy.heal()
    moving.proxy.down()
    for act in (plan.dry_run, plan.inspect, plan.run):
        with pytest.raises(PausedError, match="failed 4 times") as caught:
            act()
        assert caught.value.exit_code == 75
        assert "resume" not in caught.value.hint
    assert not plan.status().unfinished

    moving.proxy.up()
    assert plan.run().verdict is Verdict.PASSED
    assert moving.digest() == moving.undisturbed


@pytest.mark.parametrize("kind", KINDS)
def test_verifying_and_taking_back_survive_cut_connections(move: MakeMove, kind: str) -> None:
    moving = move(kind, "target")
    plan = load_plan(moving.file)
    plan.run()

    before = moving.proxy.cuts
    n_bytes = 2000 if kind != "weaviate-rest" else 500  # it says little by that protocol
    moving.proxy.cut_after(n_bytes, answers=True, times=2)
    assert plan.verify().verdict is Verdict.PASSED
    moving.proxy.cut_after(n_bytes, answers=True, times=2)
    undone = plan.rollback(confirmed=True)

    assert moving.proxy.cuts - before == 4
    assert (undone.action, undone.removed) == ("drop", COUNT)
    with moving.places.opened(moving.target) as store:
        assert store.describe() is None


def test_the_screen_of_a_paused_run_says_how_to_go_on(move: MakeMove, cli: Cli) -> None:
    moving = move("pgvector", "target")
    file = moving.file.name
    moving.proxy.cut_at(*WRITE["pgvector"], times=ALWAYS)

    paused = cli("run", file)

    assert paused.returncode == 75
    assert "writing to the target failed 4 times" in paused.stderr
    assert f"Paused after 0 of {COUNT} records.\nNothing is lost" in paused.stderr
    assert f"runner resume {file}      goes on from here" in paused.stderr
    assert "Traceback" not in paused.stderr

    moving.proxy.heal()
    resumed = cli("resume", file)
    assert resumed.returncode == 0, resumed.stderr
    assert moving.digest() == moving.undisturbed


def test_the_screen_says_that_nothing_was_begun(move: MakeMove, cli: Cli) -> None:
    moving = move("chroma", "source")
    moving.proxy.down()
    try:
        away = cli("run", moving.file.name)
        assert away.returncode == 75
        assert "could not be reached" in away.stderr
        assert "is the server running?" in away.stderr
        assert "goes on from here" not in away.stderr
        assert "Traceback" not in away.stderr
        again = f"Paused; nothing was written.\n  run {moving.file.name}    tries again"
        assert again in away.stderr
        assert "resume" not in away.stderr
        assert "rollback" not in away.stderr
    finally:
        moving.proxy.up()
