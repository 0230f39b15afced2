"""Several sources feed one target, each checked and taken back on its own (`sources`)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner import load_any, load_plan, stores
from runner.api import Plan, SeveralPlan
from runner.cli import _how_to_go_on, main, main_run
from runner.copy.ids import uuid_for
from runner.errors import (
    CapabilityError,
    HazardError,
    JournalError,
    PlanError,
    StoreError,
)
from runner.model import Batch
from runner.plan import schema
from runner.report.markdown import to_markdown
from runner.results import DryRunResult, NamedResult, RollbackResult, RunResult, Verdict
from runner.stores.base import Access
from runner.stores.pgvector import PgvectorStore
from tests.conformance.test_toy import PLACES
from tests.e2e.places import Places, records
from tests.e2e.test_namespaces import at
from tests.e2e.test_namespaces import fill as fill_namespaces
from tests.toy import NamespacedToy

COUNT = 30
CHECKS = {"queries": {"sample": 10, "k": 3, "min_recall_ratio": 0.9}}
NAMES = ("eu", "us", "ap")


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A target with namespaces that needs no engine."""
    schema.validator.cache_clear()
    with monkeypatch.context() as patched:
        patched.setitem(stores._BUILT_IN, "toy", "tests.toy:NamespacedToy")
        yield
    PLACES.clear()
    schema.validator.cache_clear()


def sent(name: str, *, alike: bool = False) -> Batch:
    """The records of one source; ids that no other has, unless they are to be *alike*."""
    number = NAMES.index(name)
    batch = records(COUNT + number, seed=number)
    return batch if alike else batch.with_(ids=[f"{name}-{each}" for each in batch.ids])


def plan_of(
    places: Places,
    target: dict[str, Any],
    names: tuple[str, ...] = NAMES,
    *,
    alike: bool = False,
    named: str = "plan",
    namespaces: bool = False,
    **more: Any,
) -> Path:
    """A plan of one JSON lines file a source, which are written if they are not there."""
    entries = []
    for name in names:
        source = {"store": "files", "path": f"{name}.jsonl"}
        if not (places.folder / f"{name}.jsonl").exists():
            places.fill(source, sent(name, alike=alike))
        entry: dict[str, Any] = {"name": name, "source": source, "add": {"region": name}}
        entries.append({**entry, "namespace": name} if namespaces else entry)
    path = places.folder / f"{named}.yaml"
    document = {
        "sources": entries, "target": target, "batch_size": 10, "workers": 1,
        "validation": CHECKS, **more,
    }  # fmt: skip
    path.write_text(json.dumps(document))
    return path


def loaded(path: Path) -> SeveralPlan:
    plan = load_any(path)
    assert isinstance(plan, SeveralPlan)
    return plan


def verdicts(parts: tuple[NamedResult, ...]) -> dict[str, Verdict]:
    return {
        each.source: each.result.verdict for each in parts if isinstance(each.result, RunResult)
    }


def regions(places: Places, target: dict[str, Any]) -> dict[str, int]:
    """How many records of each region the target holds."""
    found: dict[str, int] = {}
    for _, _, metadata in places.read(target).values():
        found[metadata["region"]] = found.get(metadata["region"], 0) + 1
    return found


PASSED = dict.fromkeys(NAMES, Verdict.PASSED)
WHOLE = {name: COUNT + number for number, name in enumerate(NAMES)}


@pytest.mark.parametrize(
    "store", ["pgvector", "chroma", "qdrant-edge", "qdrant-double", "faiss", "files"]
)
def test_several_sources_feed_one_target(served: Places, store: str) -> None:
    """Each with its field; checked again, taken back one by one, and the target with the last."""
    there = served.options(store, f"fed_{store}".replace("-", "_"))
    path = plan_of(served, there)
    result = loaded(path).run()
    assert (result.verdict, result.exit_code) == (Verdict.PASSED, 0)
    assert verdicts(result.parts) == PASSED
    assert regions(served, there) == WHOLE
    held = served.read(there)
    us = sent("us")
    for row, each in enumerate(us.ids):
        vector, document, metadata = held[uuid_for(each) if "qdrant" in store else each]
        assert np.allclose(vector, us.vector[row], atol=1e-6)
        assert document == us.documents[row]
        assert metadata["title"] == us.metadata[row]["title"]
    again = loaded(path).run()
    assert all(each.result.repeated for each in again.parts if isinstance(each.result, RunResult))
    assert verdicts(loaded(path).verify().parts) == PASSED
    first = load_plan(path, only="eu").rollback(confirmed=True)
    assert (first.action, first.removed) == ("delete", COUNT)
    assert regions(served, there) == {name: WHOLE[name] for name in ("us", "ap")}
    assert verdicts(loaded(path).verify().parts) == dict.fromkeys(("us", "ap"), Verdict.PASSED)
    assert load_plan(path, only="eu").run().verdict is Verdict.PASSED
    assert regions(served, there) == WHOLE
    load_plan(path, only="us").rollback(confirmed=True)
    preview = loaded(path).rollback()
    assert [each.source for each in preview.parts] == ["ap", "eu"]
    undone = loaded(path).rollback(confirmed=True)
    actions = [
        each.result.action for each in undone.parts if isinstance(each.result, RollbackResult)
    ]
    assert actions == ["delete", "drop"]
    with served.opened(there) as target:
        assert target.describe() is None
    assert loaded(path).run().verdict is Verdict.PASSED


def test_ids_that_two_sources_have_are_found_before_anything_is_written(places: Places) -> None:
    there = places.options("files", "there")
    path = plan_of(places, there, ("eu", "us"), alike=True)
    found = loaded(path).dry_run()
    assert found.exit_code == 3
    (problem,) = found.problems
    assert f"the sources eu and us have {COUNT} ids in common" in problem.what
    assert '"doc-00000"' in problem.what
    assert "namespace" in problem.hint
    with pytest.raises(CapabilityError, match="the sources eu and us have 30 ids"):
        loaded(path).run()
    with places.opened(there) as target:
        assert target.describe() is None
    assert load_plan(path, only="eu").run().verdict is Verdict.PASSED
    with pytest.raises(CapabilityError, match="the sources eu and us have 30 ids in common"):
        load_plan(path, only="us").run()


def test_equal_ids_are_kept_apart_by_namespaces(places: Places) -> None:
    """Several collections become namespaces of one: the way back of `namespace_to: collection`."""
    path = plan_of(places, at("there"), alike=True, namespaces=True)
    assert loaded(path).run().verdict is Verdict.PASSED
    with places.opened(at("there")) as target:
        assert isinstance(target, NamespacedToy)
        assert target.namespaces() == sorted(NAMES)
        assert target.fetch(["doc-00003"], namespace="us").metadata[0]["region"] == "us"
        assert len(target.fetch(["doc-00031"], namespace="eu")) == 0
    assert verdicts(loaded(path).verify().parts) == PASSED


def test_equal_ids_become_uuids_where_there_are_no_namespaces(served: Places) -> None:
    there = served.options("pgvector", "uuids")
    path = plan_of(
        served, there, alike=True, namespaces=True, namespace_to={"field": "home"}, ids="uuid5"
    )
    assert loaded(path).run().verdict is Verdict.PASSED
    held = served.read(there)
    assert len(held) == sum(WHOLE.values())
    assert held[uuid_for("doc-00003", "us")][2]["home"] == "us"
    back = load_plan(served.plan(there, at("back"), "back"))
    assert back.run().verdict is Verdict.PASSED
    with served.opened(at("back")) as target:
        assert target.namespaces() == sorted(NAMES)
        assert target.fetch(["doc-00003"], namespace="us").ids == ["doc-00003"]


def test_each_source_gets_collections_of_its_own(served: Places) -> None:
    there = served.options("pgvector", "apart")
    path = plan_of(served, there, alike=True, namespaces=True, namespace_to="collection")
    assert loaded(path).run().verdict is Verdict.PASSED
    assert len(served.read({**there, "table": "apart_us"})) == COUNT + 1
    assert verdicts(loaded(path).verify().parts) == PASSED
    assert load_plan(path, only="us").rollback(confirmed=True).action == "drop"
    with served.opened({**there, "table": "apart_us"}) as gone:
        assert gone.describe() is None
    loaded(path).rollback(confirmed=True)
    with served.opened({**there, "table": "apart_eu"}) as gone:
        assert gone.describe() is None


def test_a_source_that_has_namespaces_is_not_given_one(places: Places) -> None:
    fill_namespaces(places, at("tenants"), [records(5).with_(namespace="acme")])
    path = plan_of(places, places.options("files", "there"), ("eu",), namespaces=True)
    document = json.loads(path.read_text())
    document["sources"][0]["source"] = at("tenants")
    path.write_text(json.dumps(document))
    with pytest.raises(PlanError, match="lie in namespaces already, as 'acme'"):
        loaded(path).run()


def test_a_field_that_a_record_has_already_is_not_overwritten(places: Places) -> None:
    batch = sent("eu")
    objects = [dict(each) for each in batch.metadata]
    objects[3]["region"], objects[4]["region"] = "mars", "eu"
    fields = batch.metadata.of(objects)
    places.fill({"store": "files", "path": "eu.jsonl"}, batch.with_(metadata=fields))
    path = plan_of(places, places.options("files", "there"))
    with pytest.raises(CapabilityError, match=r"source eu: .*metadata\.region exists already"):
        loaded(path).run()


def test_sources_of_different_shapes_stop_all(places: Places) -> None:
    batch = sent("us")
    odd = batch.with_(vectors={"": batch.vector[:, :8].copy()})
    places.fill({"store": "files", "path": "us.jsonl"}, odd)
    path = plan_of(places, places.options("files", "there"))
    with pytest.raises(CapabilityError, match=r"16 dims cosine.* and us .*8 dims cosine.* differ"):
        loaded(path).run()
    with places.opened(places.options("files", "there")) as target:
        assert target.describe() is None


def test_a_target_that_is_there_is_met_as_the_plan_says(served: Places) -> None:
    there = served.options("pgvector", "met_by_several")
    mine = records(5, seed=9).with_(ids=[f"mine-{row}" for row in range(5)])
    served.fill(there, mine)
    with pytest.raises(CapabilityError, match="met_by_several exists already, with 5 records"):
        loaded(plan_of(served, there)).run()
    path = plan_of(served, {**there, "if_exists": "append"})
    assert loaded(path).run().verdict is Verdict.PASSED
    assert verdicts(loaded(path).verify().parts) == PASSED
    loaded(path).rollback(confirmed=True)
    assert served.read(there).keys() == set(mine.ids)


@pytest.mark.parametrize(
    ("written", "copied"),
    [(1, "10 records"), (3, "30 records"), (4, "40 records"), (7, "61 of 93 records")],
)
def test_a_run_that_breaks_off_goes_on(
    served: Places, monkeypatch: pytest.MonkeyPatch, written: int, copied: str
) -> None:
    """Within a source, and between two."""
    there = served.options("pgvector", f"stopped_{written}")
    path = plan_of(served, there)
    write = PgvectorStore.write
    left = iter([True] * written)

    def some(self: PgvectorStore, batch: Batch, *, fresh: bool = False) -> None:
        if not next(left, False):
            raise StoreError("the disk is full")
        write(self, batch, fresh=fresh)

    with monkeypatch.context() as patched:
        patched.setattr(PgvectorStore, "write", some)
        with pytest.raises(StoreError, match=r"source (eu|us|ap): the disk is full"):
            loaded(path).run()
    told = _how_to_go_on(loaded(path), paused=False)
    assert told.startswith(f"Stopped after {copied}")
    assert "resume" in told
    assert "--only" not in told
    assert loaded(path).resume().verdict is Verdict.PASSED
    assert regions(served, there) == WHOLE
    with pytest.raises(JournalError, match="finished"):
        loaded(path).resume()


def test_an_unfinished_source_is_taken_back_beside_the_others(
    served: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = served.options("chroma", "beside")
    path = plan_of(served, there)
    write = "runner.stores.chroma.ChromaStore.write"
    assert load_plan(path, only="us").run().verdict is Verdict.PASSED

    def fails(*_: object, **__: object) -> None:
        raise StoreError("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(write, fails)
        with pytest.raises(StoreError):
            load_plan(path, only="eu").run()
    assert load_plan(path, only="eu").rollback(confirmed=True).action == "delete"
    assert verdicts(loaded(path).verify().parts) == {"us": Verdict.PASSED}
    assert load_plan(path, only="us").rollback(confirmed=True).action == "drop"


def test_a_record_of_somebody_else_keeps_the_target(served: Places) -> None:
    there = served.options("pgvector", "kept")
    path = plan_of(served, there, ("eu", "us"))
    assert loaded(path).run().verdict is Verdict.PASSED
    with served.opened(there, Access.WRITE) as target:
        target.write(records(1).with_(ids=["theirs"]))
    result = loaded(path).verify()
    assert (result.verdict, result.exit_code) == (Verdict.FAILED, 7)
    loaded(path).rollback(confirmed=True)
    assert served.read(there).keys() == {"theirs"}


def test_a_target_that_was_made_anew_is_not_added_to(served: Places) -> None:
    there = served.options("pgvector", "anew")
    path = plan_of(served, there, ("eu", "us"))
    assert load_plan(path, only="eu").run().verdict is Verdict.PASSED
    with served.opened(there, Access.WRITE) as target:
        target.drop()
    served.fill(there, records(1).with_(ids=["theirs"]))
    with pytest.raises(JournalError, match="does not bear the mark of the runs of eu"):
        load_plan(path, only="us").run()


def test_the_command_line_shows_a_line_a_source(
    places: Places, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(places.folder)
    plan_of(places, places.options("files", "there"))
    assert main_run(["plan.yaml", "--dry-run"]) == 0
    dry = capsys.readouterr().out
    assert "plan ap" in dry
    assert "plan · dry run · 3 sources" in dry
    assert dry.count("add to what the first source makes") == 2
    assert main_run(["plan.yaml", "--quiet"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "PASSED  plan · 3 sources"
    assert [each.split()[0] for each in lines[1:4]] == list(NAMES)
    assert all("passed" in each for each in lines[1:4])
    assert main(["status", "plan.yaml", "--format", "json"]) == 0
    status = json.loads(capsys.readouterr().out)
    assert [each["result"]["phase"] for each in status["parts"]] == ["finished"] * 3
    assert main(["status", "plan.yaml", "--only", "us"]) == 0
    assert "plan us · finished" in capsys.readouterr().out
    assert main(["report", "plan.yaml"]) == 0
    assert "PASSED" in capsys.readouterr().out
    assert main(["report", "plan.yaml", "--format", "html"]) == 2
    capsys.readouterr()
    assert main(["verify", "plan.yaml", "--only", "moon"]) == 2
    assert "it has eu, us, ap" in capsys.readouterr().err
    assert main(["rollback", "plan.yaml"]) == 4
    assert "drop the collection" in capsys.readouterr().out
    assert main(["rollback", "plan.yaml", "--yes", "--only", "us"]) == 0
    assert main(["status", "plan.yaml", "--only", "us"]) == 0
    assert "rolled back" in capsys.readouterr().out
    assert main(["rollback", "plan.yaml", "--yes"]) == 0
    assert main(["inspect", "plan.yaml"]) == 0
    assert "3 sources" in capsys.readouterr().out
    with pytest.raises(PlanError, match="several sources"):
        load_plan("plan.yaml")
    assert main_run(["plan.yaml", "--restart"]) == 2


def test_documents_and_commands_name_the_source(places: Places) -> None:
    path = plan_of(places, places.options("files", "there"))
    plan = loaded(path)
    result = plan.run()
    assert "# plan: run, 3 sources" in to_markdown(result)
    for each in result.parts:
        assert isinstance(each.result, RunResult)
        assert f"--only {each.source}" in "".join(each.result.next)
        assert each.result.name == f"plan {each.source}"
    found = plan.dry_run().parts[0].result
    assert isinstance(found, DryRunResult)


def test_hazards_of_every_source_are_asked_for_before_the_first(places: Places) -> None:
    path = plan_of(places, {**places.options("files", "there"), "metric": "l2"}, ("eu", "us"))
    with pytest.raises(HazardError, match=r"source eu: .*changed-metric"):
        loaded(path).run()
    assert loaded(path).run(allow=["changed-metric"]).verdict is Verdict.PASSED


def test_a_source_may_be_started_over_beside_the_others(
    served: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What its first run wrote is overwritten only where that is allowed."""
    there = served.options("pgvector", "over")
    path = plan_of(served, there, ("eu", "us"))
    assert load_plan(path, only="eu").run().verdict is Verdict.PASSED
    break_off(load_plan(path, only="us"), monkeypatch)
    with pytest.raises(HazardError, match="overwrite-records: 10 records"):
        load_plan(path, only="us").run(restart=True)
    again = load_plan(path, only="us").run(restart=True, allow=["overwrite-records"])
    assert again.verdict is Verdict.PASSED
    assert verdicts(loaded(path).verify().parts) == {"eu": Verdict.PASSED, "us": Verdict.PASSED}
    assert regions(served, there) == {name: WHOLE[name] for name in ("eu", "us")}


def test_runs_whose_state_is_lost_are_left_behind(
    served: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = {**served.options("pgvector", "lost"), "if_exists": "append"}
    path = plan_of(served, there, ("eu", "us"), allow=["overwrite-records"])
    break_off(load_plan(path, only="eu"), monkeypatch)
    newest = load_plan(path, only="eu").state.newest()
    assert newest is not None
    shutil.rmtree(served.folder / ".runner")
    with pytest.raises(JournalError, match=newest.run_id):
        loaded(path).run()
    assert loaded(path).run(leave_behind=newest.run_id).verdict is Verdict.PASSED
    assert verdicts(loaded(path).verify().parts) == {"eu": Verdict.PASSED, "us": Verdict.PASSED}


def break_off(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run *plan* until one batch is written."""
    write = PgvectorStore.write
    left = iter([True])

    def some(self: PgvectorStore, batch: Batch, *, fresh: bool = False) -> None:
        if not next(left, False):
            raise StoreError("the disk is full")
        write(self, batch, fresh=fresh)

    with monkeypatch.context() as patched:
        patched.setattr(PgvectorStore, "write", some)
        with pytest.raises(StoreError, match="the disk is full"):
            plan.run()
