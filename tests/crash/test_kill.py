"""A run that is killed anywhere and resumed ends as an undisturbed one does."""

from __future__ import annotations

import itertools
import json
import os
import random
from pathlib import Path

import pytest

from runner import load_any, load_plan
from runner.copy.journal import Journal, audit_is_whole
from runner.errors import JournalError
from runner.model import CollectionSpec, VectorSpec
from runner.results import SeveralResult, StatusResult, Verdict
from runner.stores.base import Access
from tests.crash.killer import Killer
from tests.e2e.places import DIM, NEEDS_UUIDS, PAIRS, Places, records

COUNT = 120
_names = itertools.count()


def make_plan(places: Places, source: str, target: str, name: str) -> tuple[Path, dict]:
    name = f"{name}_{next(_names)}_{os.getpid()}"
    kind = "uuid" if source.startswith(NEEDS_UUIDS) else "text"
    from_, to = places.options(source, f"from_{name}"), places.options(target, f"to_{name}")
    places.fill(from_, records(COUNT, kind=kind), id_kind="uuid" if kind == "uuid" else "string")
    path = places.plan(
        from_, to, name=name, batch_size=20, workers=2,
        validation={"level": "quick", "ids": "full", "checksum": "every_batch"},
    )  # fmt: skip
    return path, to


def undisturbed(killer: Killer, places: Places, source: str, target: str) -> tuple[str, int]:
    """The digest of the target after a run that nobody disturbs, and its side effects."""
    path, to = make_plan(places, source, target, "calm")
    run = killer.run(0, path, places.environment)
    return places.digest(to).hex(), run.effects


def assert_as_undisturbed(plan: Path, to: dict, places: Places, expected: str) -> None:
    result = load_plan(plan).report()
    assert result.verdict is Verdict.PASSED
    assert result.records == COUNT
    assert places.digest(to).hex() == expected
    newest = load_plan(plan).state.newest()
    assert newest is not None
    journal = Journal.open_existing(newest.journal, read_only=True)
    try:
        assert audit_is_whole(journal.audit_lines())
        assert journal.totals().read == COUNT
    finally:
        journal.close()
    assert not newest.scratch.exists()


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_a_killed_run_goes_on_and_ends_the_same(
    served: Places, killer: Killer, source: str, target: str
) -> None:
    """Every pair: killed once in the middle, then once more while going on."""
    expected, effects = undisturbed(killer, served, source, target)
    chance = random.Random(f"{source}{target}")
    path, to = make_plan(served, source, target, "stormy")
    assert killer.run(chance.randint(effects // 4, effects * 3 // 4), path, served.environment).died
    killer.run(chance.randint(2, effects // 3), path, served.environment)
    killer.run(0, path, served.environment)
    assert_as_undisturbed(path, to, served, expected)


@pytest.mark.parametrize("way", ["into a field", "and back"])
def test_a_killed_run_goes_on_in_every_namespace(places: Places, killer: Killer, way: str) -> None:
    """On the way back every page holds records of all: their UUIDs lie side by side in Qdrant."""
    kept, field = places.options("files", "kept"), places.options("qdrant-edge", "field")
    with places.opened(kept, Access.WRITE) as target:
        spec = CollectionSpec("kept", {"": VectorSpec(DIM)}, id_kind="string", namespaces="both")
        target.create(spec)
        for seed, namespace in enumerate(("", "acme", "globex")):
            target.write(records(COUNT // 3, seed=seed).with_(namespace=namespace))
        target.finish(spec)
    more = {"batch_size": 10, "validation": {"level": "quick", "ids": "full"}}
    there = places.plan(kept, field, "there", namespace_to={"field": "tenant"}, **more)
    if way == "and back":
        killer.run(0, there, places.environment)
    for name in ("calm", *"abcdef"):
        to = places.options("files" if way == "and back" else "qdrant-edge", f"to_{name}")
        plan = (
            places.plan(field, to, name, **more)
            if way == "and back"
            else places.plan(kept, to, name, namespace_to={"field": "tenant"}, **more)
        )
        if name == "calm":
            effects = killer.run(0, plan, places.environment).effects
            expected = places.digest(to).hex()
            continue
        point = effects * (ord(name) - ord("a") + 1) // 8
        assert killer.run(point, plan, places.environment).died
        killer.run(0, plan, places.environment)
        assert_as_undisturbed(plan, to, places, expected)


@pytest.mark.parametrize("store", ["qdrant-edge", "pgvector"])
def test_a_killed_run_goes_on_in_every_collection(
    served: Places, killer: Killer, store: str
) -> None:
    """From between two creations on; killed while it is taken back, it goes as well."""
    names = ("", "acme", "globex")
    kept = served.options("files", "kept")
    with served.opened(kept, Access.WRITE) as target:
        spec = CollectionSpec("kept", {"": VectorSpec(DIM)}, id_kind="string", namespaces="both")
        target.create(spec)
        for seed, namespace in enumerate(names):
            target.write(records(COUNT // 3, seed=seed).with_(namespace=namespace))
        target.finish(spec)
    more = {"batch_size": 10, "validation": {"level": "quick", "ids": "full"}}
    key = "path" if store == "qdrant-edge" else "table"

    def parts(to: dict) -> list[dict]:
        return [{**to, key: to[key].replace("_{namespace}", f"_{n}" if n else "")} for n in names]

    for name in ("calm", *"abcdef"):
        to = served.options(store, f"{store[:2]}_{name}_{{namespace}}_end")
        plan = served.plan(kept, to, name, namespace_to="collection", **more)
        if name == "calm":
            effects = killer.run(0, plan, served.environment).effects
            expected = [served.digest(each).hex() for each in parts(to)]
            continue
        point = effects * (ord(name) - ord("a") + 1) // 8
        assert killer.run(point, plan, served.environment).died
        killer.run(0, plan, served.environment)
        assert load_plan(plan).report().verdict is Verdict.PASSED
        assert [served.digest(each).hex() for each in parts(to)] == expected
    assert killer.run(8, plan, served.environment, "rollback").died
    killer.run(0, plan, served.environment, "rollback")
    for each in parts(to):
        with served.opened(each) as one:
            assert one.describe() is None


@pytest.mark.parametrize("store", ["files", "pgvector"])
def test_a_killed_run_of_several_sources_goes_on(
    served: Places, killer: Killer, store: str
) -> None:
    """Within a source and between two; killed while they are taken back, they go as well."""
    names = ("eu", "us", "ap")
    sources = []
    for seed, name in enumerate(names):
        batch = records(COUNT // 3, seed=seed)
        source = served.options("jsonl", name)
        served.fill(source, batch.with_(ids=[f"{name}-{each}" for each in batch.ids]))
        sources.append({"name": name, "source": source, "add": {"region": name}})

    def plan_to(to: dict, name: str) -> Path:
        path = served.folder / f"{name}.yaml"
        checks = {"level": "quick", "ids": "full"}
        document = {"sources": sources, "target": to, "batch_size": 10, "validation": checks}
        path.write_text(json.dumps(document))
        return path

    effects, expected = 0, ""
    for name in ("calm", *"abcdefgh"):
        to = served.options(store, f"several_{store}_{name}")
        plan = plan_to(to, name)
        if name == "calm":
            effects = killer.run(0, plan, served.environment).effects
            expected = served.digest(to).hex()
            continue
        point = effects * (ord(name) - ord("a") + 1) // 9
        assert killer.run(point, plan, served.environment).died
        killer.run(0, plan, served.environment)
        assert load_any(plan).verify().verdict is Verdict.PASSED
        assert served.digest(to).hex() == expected
    for point in (5, 9, 14):
        killer.run(point, plan, served.environment, "rollback")
    status = load_any(plan).status()
    assert isinstance(status, SeveralResult)
    phases = [each.result.phase for each in status.parts if isinstance(each.result, StatusResult)]
    if set(phases) != {"rolled back"}:
        killer.run(0, plan, served.environment, "rollback")
    with served.opened(to) as target:
        assert target.describe() is None


@pytest.mark.long
@pytest.mark.timeout(1800)  # some hundred runs, each in a process of its own
@pytest.mark.parametrize(("source", "target"), [("files", "files"), ("files", "pgvector")])
def test_there_is_no_point_at_which_a_kill_does_harm(
    served: Places, killer: Killer, source: str, target: str
) -> None:
    """Cheap pairs: killed at every single side effect, one run each."""
    expected, effects = undisturbed(killer, served, source, target)
    step = max(1, int(os.environ.get("CRASH_STEP", "1")))
    for point in range(1, effects + 1, step):
        folder = served.folder / f"at_{point}"
        folder.mkdir()
        inner = Places(folder, served.environment)
        path, to = make_plan(inner, source, target, f"p{point}")
        if killer.run(point, path, inner.environment).died:
            killer.run(0, path, inner.environment)
        assert_as_undisturbed(path, to, inner, expected)


def test_resume_refuses_where_nothing_is_unfinished(served: Places) -> None:
    path, _ = make_plan(served, "files", "files", "done")
    with pytest.raises(JournalError, match="no run"):
        load_plan(path).resume()
    load_plan(path).run()
    with pytest.raises(JournalError, match="finished"):
        load_plan(path).resume()
