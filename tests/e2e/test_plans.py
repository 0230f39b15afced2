"""Every plan that ships runs, as it stands, passes, and does what it is there to show."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import sys
import types
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import psycopg2
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic
import pytest

from runner import load_any, load_plan
from runner.api import Plan
from runner.copy.ids import uuid_for
from runner.model import BatchSize, IndexSpec
from runner.plan.lint import lint_paths
from runner.results import RunResult, Verdict
from runner.stores.base import Access
from tests.e2e.places import Places

PLANS = Path(__file__).parents[2] / "plans"
SAMPLE = {"store": "files", "path": "plans/sample/documents.parquet"}
CHROMA = {"store": "chroma", "path": ".demo/chroma", "collection": "docstrings"}


def run(served: Places, name: str, *, only: str = "", **variables: str) -> tuple[Plan, RunResult]:
    plan = load_plan(served.folder / "plans" / f"{name}.yaml", variables, only=only)
    return plan, plan.run()


def put(served: Places, target: dict[str, Any], sent: dict[str, Any] = SAMPLE) -> None:
    """The sample in another store."""
    with served.opened(sent) as source, served.opened(target, Access.WRITE) as into:
        wanted = source.describe()
        assert wanted is not None
        spec = into.propose(wanted, 0, 0).spec
        into.create(spec)
        for partition in source.partitions(1):
            for page in source.scan(partition, None, BatchSize(500)):
                into.write(page.batch, fresh=True)
        into.finish(spec)


def sql(served: Places, *statements: str) -> list[tuple[Any, ...]]:
    """The rows of the last of these."""
    with closing(psycopg2.connect(served.environment["TEST_DSN"])) as session:
        session.autocommit = True
        with session.cursor() as cursor:
            for each in statements:
                cursor.execute(each)
            return cursor.fetchall() if cursor.description else []


def table(served: Places, name: str = "docstrings") -> dict[str, Any]:
    return served.options("pgvector", name)


def qdrant(served: Places, name: str) -> dict[str, Any]:
    return served.options("qdrant-double", name)


PROD = {"namespace": "prod", "deletion_protection": "enabled"}


def pinecone(served: Places) -> dict[str, Any]:
    return {**served.options("pinecone", "docstrings"), **PROD}


# what each plan finds, and what is true once it ran


def in_chroma(served: Places) -> None:
    """Where `make demo` puts it."""
    put(served, CHROMA)


def show_quickstart(served: Places, _plan: Plan, result: RunResult) -> None:
    assert result.records == 1500
    metadata = served.read(table(served))["textwrap.wrap"][2]
    assert metadata["object_type"] == "function"
    assert metadata["url"].endswith("/textwrap.html#textwrap.wrap")


def show_chroma_to_qdrant(served: Places, _plan: Plan, result: RunResult) -> None:
    assert result.records == 1500
    _, _, payload = served.read(qdrant(served, "docstrings"))[uuid_for("textwrap.wrap")]
    assert payload["original_id"] == "textwrap.wrap"


def in_qdrant(served: Places) -> None:
    in_chroma(served)
    run(served, "chroma_to_qdrant")


def show_qdrant_to_chroma(served: Places, _plan: Plan, _result: RunResult) -> None:
    """What was sent away, with its ids; Chroma rounds a vector whenever it is written."""
    sent, back = served.read(CHROMA), served.read({**CHROMA, "path": ".demo/chroma-restored"})
    assert {each: found[1:] for each, found in sent.items()} == {
        each: found[1:] for each, found in back.items()
    }
    assert all(np.allclose(sent[each][0], back[each][0], atol=1e-6) for each in sent)


def in_a_table_of_an_application(served: Places) -> None:
    sql(
        served,
        "CREATE EXTENSION IF NOT EXISTS vector",
        "CREATE TABLE articles (article_id bigint PRIMARY KEY, tenant text, title text, body text,"
        " tags text[], published_on date, deleted_at timestamptz, embedding vector(8))",
        "INSERT INTO articles SELECT n, CASE WHEN n % 3 = 0 THEN 'globex' ELSE 'acme' END,"
        " 'Article ' || n, 'The text of ' || n, CASE WHEN n % 2 = 0 THEN ARRAY['news'] END,"
        " date '2026-01-01' + n, CASE WHEN n % 5 = 0 THEN now() END,"
        " ARRAY[sin(n), cos(n), sin(2*n), cos(3*n), sin(5*n), cos(7*n), sin(11*n), 1]::vector"
        " FROM generate_series(1, 300) n",
    )


def show_pgvector_to_qdrant(served: Places, plan: Plan, result: RunResult) -> None:
    """Only this customer's living articles; another's by a variable, as a run of its own."""
    wanted = {n for n in range(1, 301) if n % 3 and n % 5}
    acme = {**qdrant(served, "articles_acme"), "document_field": "body"}
    found = served.read(acme)
    assert found.keys() == wanted
    _, text, metadata = found[1]
    assert text == "The text of 1"
    assert metadata == {
        "title": "Article 1", "tags": [], "published_on": "2026-01-02",
        "url": "https://example.org/articles/1",
    }  # fmt: skip
    other, other_result = run(served, "pgvector_to_qdrant", tenant="globex")
    assert (other.name, other_result.records) == ("articles-globex", 80)
    assert plan.report().run_id == result.run_id


def show_pgvector_to_pinecone(served: Places, plan: Plan, result: RunResult) -> None:
    """In a namespace, protected; taken back by the plan that protected it."""
    with served.opened(pinecone(served)) as index:
        found = index.describe()
        assert found is not None
        assert found.extra == {
            "tags": {"team": "search"}, "deletion_protection": "enabled",
            "cloud": "aws", "region": "us-east-1",
        }  # fmt: skip
    _, text, metadata = served.read(pinecone(served))["textwrap.wrap"]
    assert text.startswith("Wrap a single paragraph")
    assert metadata["lines"] == float(metadata["lines"])
    assert "lines" in json.loads(metadata["runner_integers"])
    assert "file" not in metadata
    assert any("write units" in each.what for each in plan.dry_run().notes)
    undone = plan.rollback(confirmed=True)
    assert (undone.action, undone.removed) == ("drop", result.records)


def in_pinecone(served: Places) -> None:
    in_the_table_of_quickstart(served)
    run(served, "pgvector_to_pinecone")


def show_pinecone_to_qdrant(served: Places, _plan: Plan, result: RunResult) -> None:
    assert result.records == 1500
    found = served.read(qdrant(served, "docstrings_from_pinecone"))
    _, _, payload = found[uuid_for("textwrap.wrap")]
    assert payload["original_id"] == "textwrap.wrap"
    assert type(payload["lines"]) is int
    assert "runner_integers" not in payload


def in_an_index_made_by_hand(served: Places) -> None:
    sample = pq.read_table(served.folder / SAMPLE["path"])
    vectors = np.asarray(sample["vector"].combine_chunks().flatten()).reshape(len(sample), -1)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    faiss.write_index(index, str(served.folder / ".demo" / "docstrings.faiss"))
    rows = [json.loads(each) for each in sample["metadata"].to_pylist()]
    beside = {
        "id": sample["id"],
        "document": sample["document"],
        "keywords": [f" {row['module']};{row['kind'].upper()}" for row in rows],
        "file": [row.get("file") for row in rows],
        "line": [row.get("line") if row.get("file") else None for row in rows],
        "lines": [str(row["lines"]) if at else "n/a" for at, row in enumerate(rows)],
        "author": ["Guido"] * len(rows),
        "_exported": ["2026-11-24"] * len(rows),
    }
    pq.write_table(pa.table(beside), served.folder / ".demo" / "docstrings.parquet")


def show_faiss_to_pgvector(served: Places, _plan: Plan, _result: RunResult) -> None:
    ((first,), (abstract,)) = sql(
        served,
        "SELECT meta FROM docstrings_from_faiss WHERE doc_id IN ('abc.ABCMeta',"
        " 'abc.abstractmethod') ORDER BY doc_id",
    )
    assert first.keys() == {"keywords", "location", "lines", "author"}
    assert first["keywords"] == ["abc", "class"]
    assert first["location"] == "abc.py:92"
    assert (first["lines"], abstract["lines"]) == (None, 15)
    assert re.fullmatch("[0-9a-f]{64}", first["author"])


def in_the_table_of_quickstart(served: Places) -> None:
    put(served, table(served))


def show_export_to_parquet(served: Places, _plan: Plan, _result: RunResult) -> None:
    """The file says what the table does, to pandas and the like as well; each day is a run."""
    backup = {"store": "files", "path": ".demo/backup/latest/docstrings.parquet"}
    assert served.digest(backup) == served.digest(table(served))
    assert len(pq.read_table(served.folder / backup["path"], columns=["id"])) == 1500
    run(served, "export_to_parquet", day="2026-11-24")
    assert (served.folder / ".demo/backup/2026-11-24/docstrings.parquet").exists()


def show_import_jsonl(served: Places, plan: Plan, result: RunResult) -> None:
    found = served.read({"store": "chroma", "path": ".demo/tickets", "collection": "tickets"})
    assert len(found) == result.records == 22
    _, text, metadata = found["T-1001"]
    assert text == "Since this morning I only see a white page."
    assert metadata == {
        "subject": "Cannot log in after the update", "customer": "Ana Silva <[e-mail]>",
        "priority": 1, "resolved": True, "opened": "2026-03-02", "tags": ["app", "bug"],
        "device.os": "linux", "device.version": 14, "label": "P1 Cannot log in after the update",
    }  # fmt: skip
    notes = {each.name: each.note for each in result.fields}
    assert (notes["device"], notes["debug"]) == ("flattened", "dropped by the plan")
    assert found["T-1003"][2]["opened"] == "2026-03-03T08:00:12+01:00"
    assert found["T-1004"][2]["seen_by"] == '["bot",7,null]'
    assert not any("example.com" in str(each) for each in found.values())
    letters = (Path(plan.state.runs) / result.run_id / "dead_letters.jsonl").read_text()
    assert {json.loads(line)["id"] for line in letters.splitlines()} == {"T-1012", "T-1015"}


def in_a_table_with_old_contents(served: Places) -> None:
    put(served, table(served))
    sql(served, "UPDATE docstrings SET document = 'old'")


def show_replace_in_place(served: Places, plan: Plan, _result: RunResult) -> None:
    tables = "SELECT tablename FROM pg_tables WHERE tablename LIKE 'docstrings%'"
    assert sql(served, "SELECT count(*) FROM docstrings WHERE document = 'old'") == [(0,)]
    assert len(sql(served, tables)) == 2
    assert plan.finalise(confirmed=True).done
    assert sql(served, tables) == [("docstrings",)]


def show_one_collection_each(served: Places, plan: Plan, result: RunResult) -> None:
    assert result.records == 24
    there = {"store": "chroma", "path": ".demo/tickets_apart"}
    for priority in "1234":
        assert len(served.read({**there, "collection": f"tickets_p{priority}"})) == 6
    undone = plan.rollback(confirmed=True)
    assert (undone.action, undone.removed) == ("drop", 24)


def in_several_collections(served: Places) -> None:
    run(served, "one_collection_each")


def show_several_sources(served: Places, plan: Plan, result: RunResult) -> None:
    """Run as a whole as well: what was copied by itself stays, and the others follow."""
    assert result.records == 6
    several = load_any(plan.document.path)
    assert several.run().exit_code == 0
    there = {"store": "files", "path": ".demo/tickets.parquet"}
    found = served.read(there)
    assert len(found) == 18
    assert {each[2]["queue"] for each in found.values()} == {"urgent", "later"}
    with served.opened(there) as store:
        assert store.namespaces() == ["1", "2", "3"]


def in_weaviate(served: Places) -> None:
    """As an application may have it: named by UUIDs, each with its own name in a property."""
    with served.opened(served.options("weaviate", "Docstrings"), Access.WRITE) as collection:
        collection.drop()
    filled = served.plan(SAMPLE, served.options("weaviate", "Docstrings"), "filled")
    assert load_plan(filled).run().records == 1500


def show_weaviate_to_faiss(served: Places, _plan: Plan, result: RunResult) -> None:
    """Every docstring has its own id again."""
    assert result.records == 1500
    found = served.read({"store": "faiss", "path": ".demo/Docstrings.faiss"})
    sent = served.read(SAMPLE)
    assert found.keys() == sent.keys()
    assert found["textwrap.wrap"][1:] == sent["textwrap.wrap"][1:]
    np.testing.assert_array_equal(found["textwrap.wrap"][0], sent["textwrap.wrap"][0])


def in_a_chroma_server(served: Places) -> None:
    put(served, served.options("chroma-server", "docstrings"))


def show_chroma_to_pgvector(served: Places, plan: Plan, result: RunResult) -> None:
    assert (plan.name, result.records) == ("chroma_to_pgvector-docstrings", 1500)
    ((text, attributes, line),) = sql(
        served,
        "SELECT content, attributes, jsonb_typeof(attributes->'line') FROM docstrings_vectors"
        " WHERE doc_id = 'abc.ABCMeta'",
    )
    assert text.startswith("Metaclass for defining Abstract Base Classes")
    assert (attributes["module"], line) == ("abc", "number")
    indexes = sql(served, "SELECT indexdef FROM pg_indexes WHERE tablename = 'docstrings_vectors'")
    assert any("hnsw" in each and "m='16'" in each for (each,) in indexes)


class Document(pydantic.BaseModel):
    """As LangChain's pickles."""

    id: str | None = None
    metadata: dict[str, Any] = {}
    page_content: str = ""


class InMemoryDocstore:
    """As LangChain's pickles."""

    def __init__(self, documents: dict[str, Document]) -> None:
        self._dict = documents


LANGCHAIN = {
    "langchain_core.documents.base": Document,
    "langchain_community.docstore.in_memory": InMemoryDocstore,
}


def in_an_index_that_langchain_saved(served: Places) -> None:
    sample = pq.read_table(served.folder / SAMPLE["path"])
    vectors = np.asarray(sample["vector"].combine_chunks().flatten()).reshape(len(sample), -1)
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    folder = served.folder / ".demo" / "langchain"
    folder.mkdir()
    faiss.write_index(index, str(folder / "index.faiss"))
    ids = sample["id"].to_pylist()
    texts, metadata = sample["document"].to_pylist(), sample["metadata"].to_pylist()
    with pytest.MonkeyPatch.context() as patch:
        for module, cls in LANGCHAIN.items():
            parts = module.split(".")
            for end in range(1, len(parts) + 1):
                name = ".".join(parts[:end])
                patch.setitem(sys.modules, name, types.ModuleType(name))
            patch.setattr(sys.modules[module], cls.__name__, cls, raising=False)
            patch.setattr(cls, "__module__", module)
        documents = {
            each: Document(page_content=text, metadata=json.loads(said))
            for each, text, said in zip(ids, texts, metadata, strict=True)
        }
        saved = (InMemoryDocstore(documents), dict(enumerate(ids)))
        (folder / "index.pkl").write_bytes(pickle.dumps(saved))


def show_faiss_to_qdrant(served: Places, _plan: Plan, result: RunResult) -> None:
    """Text and metadata are where LangChain's QdrantVectorStore looks."""
    assert result.records == 1500
    there = {**qdrant(served, "docstrings_from_faiss"), "document_field": "page_content"}
    _, text, payload = served.read(there)[uuid_for("textwrap.wrap")]
    assert text.startswith("Wrap a single paragraph")
    assert payload["metadata"]["module"] == "textwrap"


def show_any_to_chroma(served: Places, plan: Plan, result: RunResult) -> None:
    assert (plan.name, result.records) == ("any_to_chroma-documents_from_files", 1500)
    there = served.options("chroma-server", "documents_from_files")
    assert served.read(there).keys() == served.read(SAMPLE).keys()
    with served.opened(there) as collection:
        described = collection.describe()
    assert described is not None
    assert described.index == IndexSpec("hnsw", {"m": 32, "ef_construction": 200, "ef_search": 100})


@dataclass(frozen=True)
class Shipped:
    """A plan: what has to be there, what it shows, and by which of its sources."""

    prepare: Callable[[Places], None]
    show: Callable[[Places, Plan, RunResult], None]
    only: str = ""


SHIPPED = {
    "quickstart": Shipped(in_chroma, show_quickstart),
    "chroma_to_qdrant": Shipped(in_chroma, show_chroma_to_qdrant),
    "qdrant_to_chroma": Shipped(in_qdrant, show_qdrant_to_chroma),
    "pgvector_to_qdrant": Shipped(in_a_table_of_an_application, show_pgvector_to_qdrant),
    "pgvector_to_pinecone": Shipped(in_the_table_of_quickstart, show_pgvector_to_pinecone),
    "pinecone_to_qdrant": Shipped(in_pinecone, show_pinecone_to_qdrant),
    "faiss_to_pgvector": Shipped(in_an_index_made_by_hand, show_faiss_to_pgvector),
    "export_to_parquet": Shipped(in_the_table_of_quickstart, show_export_to_parquet),
    "import_jsonl": Shipped(lambda _: None, show_import_jsonl),
    "replace_in_place": Shipped(in_a_table_with_old_contents, show_replace_in_place),
    "chroma_to_pgvector": Shipped(in_a_chroma_server, show_chroma_to_pgvector),
    "faiss_to_qdrant": Shipped(in_an_index_that_langchain_saved, show_faiss_to_qdrant),
    "any_to_chroma": Shipped(lambda _: None, show_any_to_chroma),
    "one_collection_each": Shipped(lambda _: None, show_one_collection_each),
    "several_sources": Shipped(in_several_collections, show_several_sources, only="urgent"),
    "weaviate_to_faiss": Shipped(in_weaviate, show_weaviate_to_faiss),
}


@pytest.fixture
def checkout(served: Places, monkeypatch: pytest.MonkeyPatch) -> Places:
    """`plans/` as it ships, and stores with nothing in them that a plan would meet."""
    shutil.copytree(PLANS, served.folder / "plans", ignore=shutil.ignore_patterns(".runner"))
    (served.folder / ".demo").mkdir()
    monkeypatch.setenv("PG_DSN", served.environment["TEST_DSN"])
    monkeypatch.setenv("QDRANT_URL", served.environment["TEST_QDRANT"])
    monkeypatch.setenv("QDRANT_GRPC", served.environment["TEST_QDRANT_GRPC"])
    monkeypatch.setenv("CHROMA_URL", served.environment["TEST_CHROMA"])
    monkeypatch.setenv("WEAVIATE_URL", served.environment["TEST_WEAVIATE"])
    monkeypatch.setenv("WEAVIATE_GRPC_PORT", served.environment["TEST_WEAVIATE_GRPC_PORT"])
    monkeypatch.setenv("PINECONE_CONTROL", served.environment["TEST_PINECONE"])
    monkeypatch.setenv("PINECONE_API_KEY", served.environment["TEST_PINECONE_KEY"])
    monkeypatch.setenv("HASH_KEY", "a key of this test")
    sql(
        served,
        "DROP TABLE IF EXISTS docstrings, docstrings_vectors, docstrings_from_faiss, articles",
    )
    with served.opened(pinecone(served), Access.WRITE) as index:
        index.drop()
    for name in ("docstrings", "documents_from_files"):
        with served.opened(served.options("chroma-server", name), Access.WRITE) as collection:
            collection.drop()
    for name in (
        "docstrings", "docstrings_from_pinecone", "docstrings_from_faiss", "articles_acme",
        "articles_globex",
    ):  # fmt: skip
        with served.opened(qdrant(served, name), Access.WRITE) as collection:
            if collection.describe() is not None:
                collection.drop()
    return served


def test_every_plan_that_ships_is_tried_and_listed() -> None:
    names = {each.stem for each in PLANS.glob("*.yaml")}
    assert names == SHIPPED.keys()
    assert set(re.findall(r"\]\((.+)\.yaml\)", (PLANS / "README.md").read_text())) == names


@pytest.mark.parametrize("name", SHIPPED)
def test_a_plan_that_ships_runs_and_passes(checkout: Places, name: str) -> None:
    SHIPPED[name].prepare(checkout)
    plan, result = run(checkout, name, only=SHIPPED[name].only)
    assert [each for each in result.checks if each.verdict is Verdict.FAILED] == []
    assert result.verdict is Verdict.PASSED
    SHIPPED[name].show(checkout, plan, result)


@pytest.mark.parametrize("name", SHIPPED)
def test_an_editor_knows_the_schema_of_a_plan_that_ships(name: str) -> None:
    first = (PLANS / f"{name}.yaml").read_text().splitlines()[0]
    match = re.fullmatch(r"# yaml-language-server: \$schema=(.+)", first)
    assert match
    assert (PLANS / match[1]).is_file()


def test_the_plans_that_ship_are_well_formed_where_nothing_is_set() -> None:
    found = lint_paths([PLANS], environ={})
    assert found.problems == ()
    assert len(found.files) == len(SHIPPED)
