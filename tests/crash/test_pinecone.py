"""A run that is killed between Pinecone's namespaces goes on in each of them."""

from __future__ import annotations

import os
import uuid
from typing import Any

import pytest

from runner import load_plan
from runner.model import CollectionSpec, VectorSpec
from runner.results import Verdict
from runner.stores.base import Access
from tests.crash.killer import Killer
from tests.e2e.places import DIM, Places, records

COUNT = 40
MORE = {"batch_size": 10, "validation": {"level": "quick", "ids": "full"}}


def fill(served: Places, options: dict[str, Any]) -> None:
    """The same ids in three namespaces."""
    with served.opened(options, Access.WRITE) as target:
        spec = CollectionSpec("any", {"": VectorSpec(DIM)}, id_kind="string", namespaces="both")
        target.create(target.propose(spec, 100, 10_000).spec)
        for seed, namespace in enumerate(("", "acme", "globex")):
            target.write(records(COUNT, seed=seed).with_(namespace=namespace))
        target.finish(spec)


@pytest.mark.parametrize("target", ["pinecone", "qdrant-edge"])
def test_a_killed_run_goes_on_in_every_namespace(
    served: Places, killer: Killer, target: str
) -> None:
    """At points spread over the run; into namespaces, and into a field where there are none."""
    word = f"{os.getpid()}-{uuid.uuid4().hex[:6]}"
    source = served.options("pinecone", f"from-{word}")
    fill(served, source)
    field = {} if target == "pinecone" else {"namespace_to": {"field": "tenant"}}
    calm = served.options(target, f"calm-{word}")
    effects = killer.run(0, served.plan(source, calm, "calm", **MORE, **field), served.environment)
    assert load_plan(served.folder / "calm.yaml").report().records == 3 * COUNT
    for part in (2, 4, 6):
        to = served.options(target, f"to{part}-{word}")
        plan = served.plan(source, to, f"plan{part}", **MORE, **field)
        assert killer.run(effects.effects * part // 8, plan, served.environment).died
        killer.run(0, plan, served.environment)
        result = load_plan(plan).report()
        assert (result.verdict, result.records) == (Verdict.PASSED, 3 * COUNT)
        assert served.digest(to) == served.digest(calm)


def test_a_killed_run_is_taken_back_in_every_namespace(served: Places, killer: Killer) -> None:
    word = f"{os.getpid()}-{uuid.uuid4().hex[:6]}"
    source = served.options("pinecone", f"from-{word}")
    fill(served, source)
    to = served.options("pinecone", f"to-{word}")
    mine = records(5).with_(ids=[f"mine-{row}" for row in range(5)], namespace="acme")
    served.fill(to, mine)
    calm = served.plan(source, served.options("pinecone", f"calm-{word}"), "calm", **MORE)
    effects = killer.run(0, calm, served.environment).effects
    plan = served.plan(source, {**to, "if_exists": "append"}, "plan", **MORE)
    assert killer.run(effects * 5 // 8, plan, served.environment).died
    with served.opened(to) as store:
        assert store.count() > len(mine)
    load_plan(plan).rollback(confirmed=True)
    with served.opened(to) as store:
        left = {(namespace, each) for namespace, ids in store.scan_ids() for each in ids}
    assert left == {("acme", each) for each in mine.ids}
