"""What lies beside an index of others: pickles, read without harm, arrays, JSON lines."""

from __future__ import annotations

import collections
import datetime
import decimal
import io
import json
import pathlib
import pickle
import pickletools
import struct
import sys
import types
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pydantic
import pytest

from runner.errors import StoreError
from runner.model import Batch, Fidelity, Severity
from runner.stores.base import Access, Location
from runner.stores.faiss import FaissStore
from runner.testing import make_batch, read_all

DIM = 8
VECTORS = make_batch(400, DIM, seed=3).vector


def opened(path: Path, **options: Any) -> FaissStore:
    given = {name: str(each) if isinstance(each, Path) else each for name, each in options.items()}
    location = Location("faiss", {"path": str(path), **given})
    return FaissStore(location, Access.READ, path.parent / "scratch")


def index_of(path: Path, n: int, index: Any = None, ids: Any = None) -> Path:
    made = faiss.IndexFlatL2(DIM) if index is None else index
    made.train(VECTORS)
    if ids is None:
        made.add(VECTORS[:n])
    else:
        made.add_with_ids(VECTORS[:n], np.asarray(ids, dtype=np.int64))
    faiss.write_index(made, str(path))
    return path


def read(folder: Path, content: Any, n: int, ids: Any = None, **columns: str) -> Batch:
    """The records of an index with *content* in a pickle beside it."""
    made = faiss.index_factory(DIM, "IDMap,Flat", faiss.METRIC_L2) if ids is not None else None
    path = index_of(folder / "index.faiss", n, made, ids)
    (folder / "index.pkl").write_bytes(
        content if isinstance(content, bytes) else pickle.dumps(content)
    )
    options = {"columns": columns} if columns else {}
    with opened(path, pickle=folder / "index.pkl", **options) as source:
        return read_all(source)


# documents of libraries that are not installed: as they pickle where they are


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, type], type]:
    """Puts a class into a module of a library while something is pickled."""

    def put(module: str, cls: type) -> type:
        parts = module.split(".")
        for end in range(1, len(parts) + 1):
            name = ".".join(parts[:end])
            found = sys.modules.get(name) or types.ModuleType(name)
            monkeypatch.setitem(sys.modules, name, found)
        monkeypatch.setattr(found, cls.__name__, cls, raising=False)
        cls.__module__, cls.__qualname__ = module, cls.__name__
        return cls

    return put


class Document(pydantic.BaseModel):
    id: str | None = None
    metadata: dict[str, Any] = {}
    page_content: str = ""
    type: str = "Document"


class InMemoryDocstore:
    def __init__(self, documents: dict[str, Any]) -> None:
        self._dict = documents


class Plain:
    """What pydantic is not needed for."""

    def __init__(self, **state: Any) -> None:
        self.__dict__.update(state)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    "module",
    ["langchain_core.documents.base", "langchain.schema", "langchain.schema.document",
     "langchain.docstore.document"],
)  # fmt: skip
def test_what_langchain_saves_gives_ids_documents_and_metadata(
    tmp_path: Path, library: Callable[[str, type], type], module: str, protocol: int
) -> None:
    made = library(module, type("Document", (Document,), {}))
    store = library("langchain_community.docstore.in_memory", InMemoryDocstore)
    documents = {
        "b-id": made(page_content="zwei", metadata={"page": 2, "tags": ["x"]}),
        "a-id": made(page_content="eins", metadata={"page": 1, "source": "a.pdf"}),
        "c-id": made(page_content="drei"),
    }
    saved = (store(documents), {0: "a-id", 1: "b-id", 2: "c-id"})
    found = read(tmp_path, pickle.dumps(saved, protocol), 3)
    assert found.ids == ["a-id", "b-id", "c-id"]
    assert found.documents == ["eins", "zwei", "drei"]
    assert found.metadata.objects() == [
        {"page": 1, "source": "a.pdf"}, {"page": 2, "tags": ["x"]}, {},
    ]  # fmt: skip
    assert np.array_equal(found.vector, VECTORS[:3])


def test_an_index_and_a_docstore_that_do_not_fit_are_refused(
    tmp_path: Path, library: Callable[[str, type], type]
) -> None:
    made = library("langchain_core.documents.base", type("Document", (Document,), {}))
    store = library("langchain_community.docstore.in_memory", InMemoryDocstore)
    one = {"a": made(page_content="eins"), "b": made(page_content="zwei")}
    with pytest.raises(StoreError, match=r"has no document for 1, which the index holds"):
        read(tmp_path, (store(one), {0: "a"}), 2)
    with pytest.raises(StoreError, match=r"names 1 documents more than the index holds"):
        read(tmp_path, (store(one), {0: "a", 1: "b"}), 1)


def test_nodes_of_llama_index_are_read_and_what_is_left_out_is_said(
    tmp_path: Path, library: Callable[[str, type], type]
) -> None:
    module = "llama_index.core.schema"
    node = library(module, type("TextNode", (Plain,), {}))
    resource = library(module, type("MediaResource", (Plain,), {}))
    scored = library(module, type("NodeWithScore", (Plain,), {}))
    nodes = [
        node(
            id_="n1",
            text="eins",
            metadata={"page": 1},
            relationships={"1": "x"},
            embedding=None,
            text_template="{content}",
            mimetype="text/plain",
        ),
        scored(node=node(id_="n2", text_resource=resource(text="zwei"), metadata={}), score=0.5),
    ]
    assert read(tmp_path, nodes, 2).documents == ["eins", "zwei"]
    with opened(tmp_path / "index.faiss", pickle=tmp_path / "index.pkl") as source:
        assert read_all(source).ids == ["n1", "n2"]
        (note,) = source.findings()
    assert note.what == "index.pkl: the attribute 'relationships', which is not read (1 time)"
    assert note.severity is Severity.NOTE


def test_a_document_with_a_thousand_attributes_makes_few_notes(
    tmp_path: Path, library: Callable[[str, type], type]
) -> None:
    node = library("llama_index.core.schema", type("TextNode", (Plain,), {}))
    many = {f"attribute {n}": n + 1 for n in range(1000)}
    read(tmp_path, [node(id_="n1", text="eins", metadata={}, **many)], 1)
    with opened(tmp_path / "index.faiss", pickle=tmp_path / "index.pkl") as source:
        assert source.count() == 1
        found = [each.what for each in source.findings()]
    assert len(found) == 31
    assert "index.pkl: further attributes, which are not read (970 times)" in found


def test_the_wild_meta_pickle_is_a_list_of_dicts(tmp_path: Path) -> None:
    """As the guide to Weaviate → FAISS leaves it."""
    rows = [{"id": f"u{n}", "properties": {"title": f"T{n}", "year": n}} for n in range(3)]
    found = read(tmp_path, rows, 3)
    assert found.ids == ["u0", "u1", "u2"]
    assert found.metadata.objects()[1] == {"properties": {"title": "T1", "year": 1}}
    named = read(tmp_path, rows, 3, metadata="properties")
    assert named.metadata.objects()[1] == {"title": "T1", "year": 1}
    with pytest.raises(StoreError, match=r"no row has 'props'; found id, properties"):
        read(tmp_path, rows, 3, metadata="props")


def test_rows_come_in_other_shapes_too(tmp_path: Path) -> None:
    texts = read(tmp_path, ["eins", "zwei", None], 3)
    assert (texts.ids, texts.documents) == ([0, 1, 2], ["eins", "zwei", None])
    by_position = read(tmp_path, {1: {"n": "b"}, 0: {"n": "a"}}, 2)
    assert by_position.metadata.objects() == [{"n": "a"}, {"n": "b"}]
    by_id = read(tmp_path, {70: {"n": "c"}, 50: {"n": "a"}}, 2, ids=[50, 70])
    assert (by_id.ids, [each["n"] for each in by_id.metadata]) == ([50, 70], ["a", "c"])
    named = read(tmp_path, {"x": {"n": 1}, "y": "text"}, 2)
    assert (named.ids, named.documents) == (["x", "y"], [None, "text"])
    columns = {"ids": ["p", "q"], "texts": ["eins", "zwei"], "page": [1, 2]}
    spread = read(tmp_path, columns, 2, id="ids", document="texts")
    assert (spread.ids, spread.documents) == (["p", "q"], ["eins", "zwei"])
    assert spread.metadata.objects() == [{"page": 1}, {"page": 2}]


def test_values_become_json_and_what_changes_is_counted(tmp_path: Path) -> None:
    key = uuid.UUID("12345678-1234-5678-1234-567812345678")
    row: dict[str, Any] = {
        "id": key, "when": datetime.datetime(2026, 3, 2, 4, 5, tzinfo=datetime.UTC),
        "day": datetime.date(2026, 3, 2), "price": decimal.Decimal("1.50"),
        "path": pathlib.PurePosixPath("/a/b"), "set": {"b", "a"}, "pair": (1, 2),
        "order": collections.OrderedDict(a=1), "more": collections.defaultdict(list, b=[2]),
        "i": np.int64(7), "f": np.float32(0.5), "b": np.bool_(True), "u": np.str_("ü€"),
        "array": np.arange(6, dtype=np.int16).reshape(2, 3), "big": np.array([1.5], dtype=">f8"),
        "nan": float("nan"), "numbers": {1: "a"}, "huge": 2**200,
    }  # fmt: skip
    for protocol in (2, 4, 5):
        found = read(tmp_path, pickle.dumps([row], protocol), 1)
        assert found.ids == [str(key)]
        assert found.metadata.objects() == [{
            "when": "2026-03-02T04:05:00+00:00", "day": "2026-03-02", "price": "1.50",
            "path": "/a/b", "set": ["a", "b"], "pair": [1, 2], "order": {"a": 1},
            "more": {"b": [2]}, "i": 7, "f": 0.5, "b": True, "u": "ü€",
            "array": [[0, 1, 2], [3, 4, 5]], "big": [1.5], "nan": None, "numbers": {"1": "a"},
            "huge": 2**200,
        }]  # fmt: skip
    with opened(tmp_path / "index.faiss", pickle=tmp_path / "index.pkl") as source:
        assert {each.what for each in source.findings()} == {
            "index.pkl: NaN or infinity, which became null (1 time)",
            "index.pkl: keys that are numbers, which became text (1 time)",
        }


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ([{"id": "a"}], "has 1 rows, the index holds 2 vectors"),
        ([{"id": "a"}, {}], r"gives some rows an id \('id'\) and others none"),
        ([{"a": b"x"}, {}], "holds bytes, which JSON cannot say"),
        ([1, 2], "holds a int at position 0; expected a dict, a text, or a document"),
        (7, "holds a int; expected a list or a dict with a row for each vector"),
        ({5: {}, 6: {}}, "has no row for 0, which the index holds"),
        ([{(1, 2): 3}, {}], "holds a key that is a tuple, not text"),
        ([{1: 2, "1": 3}, {}], "holds the keys '1' and '1' in one object"),
        ([{"document": 3}, {}], r"index.pkl: row 1: 'document' is not text"),
        ([{"a": "\ud800"}, {}], "holds a text with half of a surrogate pair"),
        ([{"a": 2**300}, {}], "holds an integer of more than 256 bits"),
        ([{"a": np.array([None])}, {}], "numpy's type 'O8', which are not read"),
        ([{"a": np.asfortranarray(np.ones((2, 3)))}, {}], "Fortran's order, which is not read"),
        ([{"a": complex(1, 2)}, {}], r"names builtins.complex, which is none of the classes"),
    ],
)  # fmt: skip
def test_what_cannot_be_carried_is_refused_by_name(tmp_path: Path, content: Any, why: str) -> None:
    with pytest.raises(StoreError, match=why):
        read(tmp_path, content, 2)


def test_rows_of_an_index_with_ids_in_its_lists_are_found_by_id_only(tmp_path: Path) -> None:
    ids = np.arange(400)[::-1] * 3 + 7
    path = index_of(tmp_path / "x.faiss", 400, faiss.index_factory(DIM, "IVF4,Flat"), ids)
    file = tmp_path / "x.meta"
    file.write_bytes(pickle.dumps([{"n": n} for n in range(400)]))
    with opened(path, pickle=file) as source, pytest.raises(StoreError, match="does not tell that"):
        source.count()
    file.write_bytes(pickle.dumps({int(one): {"n": int(one)} for one in ids}))
    with opened(path, pickle=file) as source:
        found = read_all(source)
    assert [each["n"] for each in found.metadata] == found.ids
    np.save(tmp_path / "v.npy", VECTORS)
    for beside in ({"vectors": tmp_path / "v.npy"}, {"sidecar": tmp_path / "v.parquet"}):
        (tmp_path / "v.parquet").touch()
        with opened(path, **beside) as source, pytest.raises(StoreError, match="by position"):
            source.count()


def test_a_pickle_is_not_read_unless_the_plan_says_so(tmp_path: Path) -> None:
    path = index_of(tmp_path / "index.faiss", 2)
    (tmp_path / "index.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with opened(path) as source:
        assert read_all(source).ids == [0, 1]
        (found,) = source.findings()
    assert (found.severity, found.hint) == (
        Severity.WARNING,
        "`pickle: index.pkl` reads it without running what it names",
    )


# pickles that mean harm


def opcodes(*parts: bytes) -> bytes:
    """A pickle of protocol 4 from its instructions."""
    return b"\x80\x04" + b"".join(parts) + b"."


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def named(module: str, name: str) -> bytes:
    return text(module) + text(name) + b"\x93"


def bomb(module: str, name: str, argument: str) -> bytes:
    return opcodes(named(module, name), text(argument), b"\x85R")


DOCUMENT = ("langchain_core.documents.base", "Document")

HOSTILE = {
    "os.system": (bomb("os", "system", "touch {}"), "names os.system, which is none"),
    "posix.system": (b"cposix\nsystem\n(S'touch {}'\ntR.", "names posix.system"),
    "INST": (b"(S'touch {}'\nios\nsystem\n.", "names os.system"),
    "eval": (bomb("builtins", "eval", "open('{}', 'w').close()"), "names builtins.eval"),
    "python 2": (bomb("__builtin__", "eval", "open('{}', 'w').close()"), "names __builtin__.eval"),
    "partial": (bomb("functools", "partial", "x"), "names functools.partial"),
    "dotted": (bomb("langchain_core.documents.base", "Document.__class__", "x"), "names lang"),
    "getattr": (bomb("builtins", "getattr", "x"), "names builtins.getattr"),
    "import": (bomb("builtins", "__import__", "os"), "names builtins.__import__"),
    "copyreg": (bomb("copyreg", "add_extension", "x"), "names copyreg.add_extension"),
    "numpy's loader": (bomb("numpy", "load", "{}"), "names numpy.load"),
    "a newline in a name": (opcodes(named("os\nhint: fine", "x")), r"names os\\nhint: fine.x"),
    "made by copyreg": (
        opcodes(named("copyreg", "_reconstructor"), named("builtins", "set"), b"N\x86R"),
        "makes an object of a class that is not read",
    ),
    "extension code": (opcodes(b"\x82\x07"), "cannot be read as a pickle: unregistered extension"),
    "persistent id": (b"Pname\n.", r"outside of it \(persistent ids\)"),
    "binary persistent id": (opcodes(b"N", b"Q"), r"outside of it \(persistent ids\)"),
    "class changed": (
        opcodes(named(*DOCUMENT), b"N}", text("__setstate__"), b"Ns\x86b"),
        "cannot be read as a pickle",
    ),
    "function changed": (
        opcodes(named("collections", "defaultdict"), b"}", text("x"), b"Nsb"),
        "changes a function",
    ),
    "a builtin class changed": (
        opcodes(named("builtins", "set"), b"N}", text("__init__"), b"Ns\x86b"),
        "cannot be read as a pickle",
    ),
    "a stub called": (
        opcodes(named(*DOCUMENT), b")\x81", text("x"), b"\x85R"),
        "cannot be read as a pickle: 'Document' object is not callable",
    ),
    "out of band": (opcodes(b"\x97"), "cannot be read as a pickle"),
    "bytes of a terabyte": (opcodes(b"\x96", struct.pack("<Q", 2**40)), "takes far more memory"),
    "memo of gigabytes": (opcodes(b"Nr", struct.pack("<I", 2**31)), "takes far more memory"),
    "truncated": (pickle.dumps([{"a": 1}, {}])[:-5], "cannot be read as a pickle"),
    "empty": (b"", "cannot be read as a pickle: Ran out of input"),
    "no pickle": (b"id,text\n1,x\n", "cannot be read as a pickle"),
    "two pickles": (pickle.dumps(["a", "b"]) * 2, "holds more than one pickle"),
    "deep": (opcodes(b"]" * 200_000, b"a" * 199_999), "holds a list at position 0|rows"),
    "deep in a row": (
        opcodes(b"](}", text("a"), b"]" * 200_000, b"a" * 199_999, b"s}e"),
        "nested deeper than 100",
    ),
    "deep key": (
        opcodes(b"}", b"N", b"\x85" * 2_000_000, b"Ns"),
        "reading it ended with SIGSEGV|cannot be read as a pickle|takes far more memory",
    ),
    "a path of other things": (
        opcodes(b"](}", text("a"), named("pathlib", "PosixPath"), b"]\x85Rs}e"),
        "holds a path that is none",
    ),
    "array that lies": (
        opcodes(
            named("numpy._core.numeric", "_frombuffer"), b"(", b"C\x04abcd",
            named("numpy", "dtype"), text("f4"), b"\x85R", b"J", struct.pack("<i", 2**30),
            b"\x85", text("C"), b"tR", text("x"), b"h\x00",
        ),
        "cannot be read as a pickle",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path: Path, kind: str) -> None:
    content, why = HOSTILE[kind]
    ran = tmp_path / "ran"
    content = content.replace(b"{}", str(ran).encode())
    if b"touch" in content or b"open" in content:
        content = resized(content)
    with pytest.raises(StoreError, match=why) as caught:
        read(tmp_path, content, 2)
    assert str(caught.value).startswith(str(tmp_path / "index.pkl"))
    assert "\nhint: fine" not in str(caught.value)
    assert not ran.exists()


def resized(content: bytes) -> bytes:
    """The same with the length of its last text as it became by filling in the path."""
    at = content.rfind(b"X", 0, max(content.find(b"touch"), content.find(b"open('")))
    if at < 0 or not content.startswith(b"\x80"):
        return content
    end = content.rindex(b"\x85R")
    return content[: at + 1] + struct.pack("<I", end - at - 5) + content[at + 5 :]


@pytest.mark.parametrize("kind", ["os.system", "eval", "posix.system", "INST"])
def test_the_hostile_pickles_would_run_where_nobody_refuses(tmp_path: Path, kind: str) -> None:
    """Else they would prove nothing."""
    ran = tmp_path / "ran"
    pickle.loads(resized(HOSTILE[kind][0].replace(b"{}", str(ran).encode())))
    assert ran.exists()


def test_values_that_unfold_without_end_are_refused(tmp_path: Path) -> None:
    value: Any = "laughs"
    for _ in range(60):
        value = [value, value]
    with pytest.raises(StoreError, match="unfolds to far more than its own size"):
        read(tmp_path, [{"a": value}, {}], 2)
    around: list[Any] = []
    around.append(around)
    with pytest.raises(StoreError, match="nested deeper"):
        read(tmp_path, [{"a": around}, {}], 2)


def test_metadata_that_records_share_is_no_bomb(tmp_path: Path) -> None:
    shared = {"source": "handbook.pdf", "tags": ["x"] * 50}
    rows = [{"id": str(n), "metadata": shared} for n in range(400)]
    stream = io.BytesIO()
    pickle.dump(rows, stream)
    assert len(stream.getvalue()) < 10_000
    found = read(tmp_path, rows, 400)
    assert found.metadata.objects() == [shared] * 400


def test_no_third_party_class_is_imported(tmp_path: Path) -> None:
    """Not even numpy, of which the child reads arrays: it has no site-packages."""
    from runner.stores import unpickling

    source = Path(unpickling.__file__).read_text()
    imported = {
        line.split()[1].partition(".")[0]
        for line in source.splitlines()
        if line.startswith(("import ", "from "))
    }
    assert imported <= set(sys.stdlib_module_names)
    content = pickle.dumps([{"a": np.ones(3)}, {}])
    assert any(op.name == "STACK_GLOBAL" for op, _, _ in pickletools.genops(content))
    assert read(tmp_path, content, 2).metadata.objects()[0] == {"a": [1.0, 1.0, 1.0]}


# JSON lines and arrays


def test_json_lines_are_a_sidecar_too(tmp_path: Path) -> None:
    path = index_of(tmp_path / "x.faiss", 30)
    lines = [
        json.dumps({"id": n if n % 2 else f"t{n}", "text": "x" * n, "n": n}) for n in range(30)
    ]
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    with opened(path, sidecar=tmp_path / "x.jsonl", columns={"document": "text"}) as source:
        found = read_all(source, 7, parts=3)
        assert source.search(VECTORS[4:6], 1).ids == [["t4"], [5]]
    by_id = dict(zip(found.ids, range(30), strict=True))
    assert [found.documents[by_id[each]] for each in ("t2", 3)] == ["xx", "xxx"]
    assert np.array_equal(found.vector[by_id["t8"]], VECTORS[8])


@pytest.mark.parametrize("factory", ["LSH", "IVF4,PQ4x4fs", "RQ2x4", "PQ4x4", "PCA4,Flat"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2"])
def test_vectors_of_an_array_are_exact_whatever_the_index(
    tmp_path: Path, factory: str, dtype: str
) -> None:
    path = index_of(tmp_path / "x.faiss", 400, faiss.index_factory(DIM, factory))
    vectors = VECTORS.astype(dtype)
    np.save(tmp_path / "v.npy", vectors)
    with opened(path, vectors=tmp_path / "v.npy") as source:
        described = source.describe()
        assert described is not None
        assert described.vector.fidelity is Fidelity.EXACT
        found = read_all(source, 37, parts=3)
    assert found.ids == list(range(400))
    assert np.array_equal(found.vector, vectors.astype(np.float32))


def test_another_array_is_refused(tmp_path: Path) -> None:
    path = index_of(tmp_path / "x.faiss", 20)
    wrong = {
        "rows": (VECTORS[:19], r"has shape \(19, 8\); the index holds 20 vectors of 8"),
        "dim": (VECTORS[:20, :7], r"has shape \(20, 7\)"),
        "float64": (VECTORS[:20].astype("f8"), "holds float64; expected float32 or float16"),
        "integers": (VECTORS[:20].astype("i4"), "holds int32"),
    }
    for name, (array, why) in wrong.items():
        np.save(tmp_path / f"{name}.npy", array)
        with (
            opened(path, vectors=tmp_path / f"{name}.npy") as source,
            pytest.raises(StoreError, match=why),
        ):
            source.count()
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "several.npz", a=VECTORS)
    (tmp_path / "text.npy").write_text("no array")
    others = {"objects.npy": "no array of numbers", "several.npz": "holds several arrays",
              "text.npy": "no array of numbers", "absent.npy": "No such file"}  # fmt: skip
    for name, why in others.items():
        with opened(path, vectors=tmp_path / name) as source, pytest.raises(StoreError, match=why):
            source.count()


def test_a_large_array_is_mapped_not_loaded(tmp_path: Path) -> None:
    path = index_of(tmp_path / "x.faiss", 400)
    np.save(tmp_path / "v.npy", VECTORS)
    with opened(path, vectors=tmp_path / "v.npy") as source:
        assert source.count() == 400
        given = source._built._given  # type: ignore[union-attr]
        assert isinstance(given, np.memmap)
        assert given.mode == "r"
        batch = read_all(source, 50)
    assert not isinstance(batch.vector, np.memmap)


def test_an_array_that_changes_under_a_scan_is_an_error(tmp_path: Path) -> None:
    path = index_of(tmp_path / "x.faiss", 400)
    np.save(tmp_path / "v.npy", VECTORS)
    with opened(path, vectors=tmp_path / "v.npy") as source:
        partition = source.partitions(1)[0]
        np.save(tmp_path / "new.npy", VECTORS * 2)
        (tmp_path / "new.npy").replace(tmp_path / "v.npy")
        with pytest.raises(StoreError, match="changed since the copy began"):
            read_one(source, partition)


def read_one(source: FaissStore, partition: Any) -> None:
    from runner.model import BatchSize

    for _ in source.scan(partition, None, BatchSize(5)):
        pass
