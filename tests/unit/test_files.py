"""What is the files store's own: files of others, damage, crashes, the format itself."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from runner.errors import (
    CapabilityError,
    CollectionMismatchError,
    CollectionNotFoundError,
    PlanError,
    StoreError,
)
from runner.model import (
    DEFAULT_VECTOR,
    BatchSize,
    CollectionSpec,
    IdRule,
    Metadata,
    Metric,
    Partition,
    Severity,
    VectorSpec,
)
from runner.stores.base import Access, Location
from runner.stores.files import FilesStore
from runner.testing import assert_same_records, make_batch, make_ids, read_all
from tests.unit.killed import killed_everywhere

SPEC = CollectionSpec("c", {DEFAULT_VECTOR: VectorSpec(8, Metric.L2)}, id_kind="string")


def opened(path: Path, access: Access = Access.WRITE, **options: Any) -> FilesStore:
    return FilesStore(Location("files", {"path": str(path), **options}), access, path.parent)


def exported(path: Path, n: int = 30) -> Path:
    with opened(path) as target:
        target.create(SPEC)
        target.write(make_batch(n))
        target.finish(SPEC)
    return path


def same(expected, actual) -> None:
    assert_same_records(expected, actual, FilesStore.capabilities, Metric.L2)


def test_a_finished_file_is_one_file_that_anybody_can_read(tmp_path: Path) -> None:
    path = exported(tmp_path / "x.parquet", 3)
    assert [each.name for each in tmp_path.iterdir()] == ["x.parquet"]
    table = pq.read_table(path)
    assert table.column("id").to_pylist() == ["r-00000", "r-00001", "r-00002"]
    assert table.schema.field("vector").type.list_size == 8
    assert json.loads(table.column("metadata")[1].as_py())["year"] == 1991
    about = json.loads(table.schema.metadata[b"runner"])
    assert (about["dim"], about["metric"]) == (8, "l2")


def test_integer_ids_are_a_column_of_integers(tmp_path: Path) -> None:
    with opened(tmp_path / "x.parquet") as target:
        target.create(SPEC)
        target.write(make_batch(3, ids=[3, 1, 2]))
        target.finish(SPEC)
        assert target.fetch([1]).ids == [1]
    assert pq.read_table(tmp_path / "x.parquet").column("id").to_pylist() == [3, 1, 2]


def test_a_line_is_an_object_that_people_can_read(tmp_path: Path) -> None:
    lines = exported(tmp_path / "x.jsonl", 2).read_text().splitlines()
    first = json.loads(lines[0])
    assert list(first) == ["id", "vector", "document", "metadata"]
    assert first["metadata"]["year"] == 1990


def test_columns_of_others_become_metadata(tmp_path: Path) -> None:
    table = pa.table({
        "doc_id": pa.array([7, 8]),
        "embedding": pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float64())),
        "body": ["a", None],
        "lang": ["en", None],
        "day": [datetime.date(2024, 1, 2), None],
        "tags": [["x"], ["y", "z"]],
        "meta": [{"a": 1, "b": None}, {"a": 2, "b": "c"}],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "x.parquet")
    columns = {"id": "doc_id", "document": "body", "metadata": "meta"}
    with opened(tmp_path / "x.parquet", Access.READ, columns=columns, metric="dot") as source:
        found = read_all(source)
        described = source.describe()
    assert found.ids == [7, 8]
    assert found.documents == ["a", None]
    assert found.vector.tolist() == [[1, 2], [3, 4]]
    assert found.metadata.objects() == [
        {"lang": "en", "day": "2024-01-02", "tags": ["x"], "a": 1},
        {"tags": ["y", "z"], "a": 2, "b": "c"},
    ]
    assert described is not None
    assert (described.vector.dim, described.vector.metric) == (2, Metric.DOT)
    assert described.id_kind == "integer"


def test_a_key_that_is_a_column_too_is_an_error(tmp_path: Path) -> None:
    table = pa.table({"id": ["a"], "lang": ["en"], "metadata": ['{"lang": "de"}']})
    pq.write_table(table, tmp_path / "x.parquet")
    with (
        opened(tmp_path / "x.parquet", Access.READ) as source,
        pytest.raises(StoreError, match="'lang' is both a column and a key"),
    ):
        read_all(source)


def test_why_a_record_was_set_aside_is_no_metadata_but_a_field_of_that_name_is(
    tmp_path: Path,
) -> None:
    why = {"namespace": "", "step": "target", "reason": "r", "spelled": []}
    theirs = {"reason": "lost in the post"}
    lines = [
        {"id": "a", "metadata": {"n": 1}, "dead_letter": why},
        {"id": "b", "metadata": {"n": 1}, "dead_letter": theirs},
    ]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    with opened(path, Access.READ) as source:
        assert read_all(source).metadata.objects() == [{"n": 1}, {"dead_letter": theirs, "n": 1}]


def test_a_file_without_an_id_column_names_what_it_has(tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": ["a"], "n": [1]}), tmp_path / "x.parquet")
    with (
        opened(tmp_path / "x.parquet", Access.READ) as source,
        pytest.raises(StoreError, match="no column 'id' for the id; found key, n") as caught,
    ):
        read_all(source)
    assert "columns: {id" in caught.value.hint


@pytest.mark.parametrize("name", ["x.parquet", "x.jsonl"])
@pytest.mark.parametrize(
    ("columns", "told", "hint"),
    [
        ({"metadata": "metadatas"}, "metadata: metadatas", "did you mean `metadata`"),
        ({"id": "key", "document": "document"}, "id: key", "source.columns"),
        ({"vector": "embeding"}, "vector: embeding", "did you mean `embedding`"),
    ],
)
def test_a_column_that_no_record_has_is_named_beside_those_there_are(
    tmp_path: Path, name: str, columns: dict[str, str], told: str, hint: str
) -> None:
    rows = [
        {"id": f"a{n}", "document": "x", "metadata": "{}", "embedding": [1.0, n]} for n in range(9)
    ]
    if name == "x.parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    else:
        lines = [json.dumps({**each, "metadata": {}}) + "\n" for each in rows]
        (tmp_path / name).write_text("".join(lines))
    with opened(tmp_path / name, Access.READ, columns=columns) as source:
        with pytest.raises(
            CapabilityError, match=f"{told}}}.* id, document, metadata, emb"
        ) as found:
            source.describe()
        assert hint in found.value.hint


def test_a_key_that_only_the_last_record_has_is_there(tmp_path: Path) -> None:
    lines = [{"id": n} for n in range(500)] + [{"id": 500, "body": "late"}]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    with opened(path, Access.READ, columns={"document": "body"}) as source:
        assert source.describe() is not None
        assert read_all(source).documents[-1] == "late"


def test_columns_of_files_that_the_runner_wrote_are_not_renamed_in_silence(tmp_path: Path) -> None:
    path = exported(tmp_path / "x.parquet")
    for columns in ({"id": "key"}, {"id": "document"}):
        with (
            opened(path, Access.READ, columns=columns) as source,
            pytest.raises(CapabilityError, match=r"the runner wrote .* id, document, metadata"),
        ):
            source.describe()
    with opened(path, Access.READ, columns={"id": "id"}) as source:
        assert source.describe() is not None


@pytest.mark.parametrize(("name", "takes"), [("x.parquet", 0), ("x", 0), ("x.jsonl", 1)])
def test_names_of_columns_that_would_not_be_written_are_a_problem(
    tmp_path: Path, name: str, takes: int
) -> None:
    with opened(tmp_path / name, columns={"id": "key"}) as target:
        found = [each for each in target.propose(SPEC, 1, 1).findings if "columns" in each.key]
    assert [each.severity for each in found] == [Severity.PROBLEM] * (1 - takes)


@pytest.mark.parametrize("component", ['"1"', "true", "null", "[1]", "{}"])
def test_a_vector_of_json_lines_holds_numbers_only(tmp_path: Path, component: str) -> None:
    path = tmp_path / "x.jsonl"
    good = '{"id": "a", "vector": [1, 2.5, 16777217]}\n'
    path.write_text(f'{good}{{"id": "b", "vector": [{component}, 1, 2]}}\n')
    with opened(path, Access.READ) as source, pytest.raises(StoreError) as caught:
        read_all(source)
    assert f"{path}:2: 'vector' holds what is no number" in caught.value.what
    path.write_text(good)
    with opened(path, Access.READ) as source:
        assert read_all(source).vector.tolist() == [[1.0, 2.5, 16777216.0]]


@pytest.mark.parametrize(
    ("record", "key"),
    [
        ('{"id": "b", "n": 1, "id": "c"}', "id"),
        ('{"id": "b", "metadata": {"k": 1, "k": 2}}', "k"),
        ('{"id": "b", "metadata": {"k" : 1,\t"in": [1.5, {"k" :2, "k":\t3}]}}', "k"),
        (r'{"id": "b", "metadata": {"a\\": 1, "a\u005c": 2}}', "a\\"),
        (r'{"id": "b", "metadata": {"\"": 1, "x": ":\":", "\"": 2}}', '"'),
    ],
)
def test_a_key_that_stands_twice_in_json_lines_is_refused_by_line(
    tmp_path: Path, record: str, key: str
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"id": "a"}\n\n' + record + "\n")
    with opened(path, Access.READ) as source, pytest.raises(StoreError) as caught:
        next(source.scan_ids())
    assert caught.value.what == f"{path}:3: has the key {key!r} twice"


def test_what_only_looks_like_a_key_that_stands_twice_is_read(tmp_path: Path) -> None:
    metadata = {
        "a": {"a": {"a": [{"a": 1}, {"a": 2}]}}, '"': 1, "\\": 2, '\\"': 3, '":': '":":', ":": ":",
        " ": '" :', "list": [1.5, "x"], "mixed": ["x", {"x": 1}, 1.5],
    }  # fmt: skip
    path = tmp_path / "x.jsonl"
    lines = [json.dumps({"id": n, "metadata": metadata}, indent=None) for n in range(3)]
    path.write_text("\n".join([*lines, lines[0].replace(":", " :").replace("0", "9")]))
    with opened(path, Access.READ) as source:
        assert read_all(source).metadata.objects()[:3] == [metadata] * 3


def test_a_folder_of_mixed_files_is_one_collection(tmp_path: Path) -> None:
    batch = make_batch(30)
    for name, rows in (
        ("b.parquet", range(10)), ("a.jsonl", range(10, 20)), ("sub/c.jsonl.gz", range(20, 30)),
    ):  # fmt: skip
        path = tmp_path / "parts" / Path(name).name
        with opened(path) as target:
            target.create(SPEC)
            target.write(batch.take(rows))
            target.finish(SPEC)
        final = tmp_path / "all" / name
        final.parent.mkdir(parents=True, exist_ok=True)
        path.rename(final)
    (tmp_path / "all" / "README.txt").write_text("not a record")
    with opened(tmp_path / "all", Access.READ) as source:
        assert source.count() == 30
        same(batch, read_all(source, 4, parts=3))
        same(batch.take([25, 3]), source.fetch([batch.ids[25], batch.ids[3]]))
    with opened(tmp_path / "all" / "*.parquet", Access.READ) as source:
        same(batch.take(range(10)), read_all(source))


def test_row_groups_are_where_partitions_are_cut(tmp_path: Path) -> None:
    batch = make_batch(100)
    exported(tmp_path / "x.parquet", 100)
    table = pq.read_table(tmp_path / "x.parquet")
    pq.write_table(table, tmp_path / "y.parquet", row_group_size=10)
    with opened(tmp_path / "y.parquet", Access.READ) as source:
        cut = source.partitions(4)
        sizes = [
            sum(len(page.batch) for page in source.scan(each, None, BatchSize(7))) for each in cut
        ]
        assert sizes == [30, 20, 30, 20]
        same(batch, read_all(source, 7, parts=4))


def test_a_large_file_of_lines_is_cut_at_line_ends(tmp_path: Path) -> None:
    with (tmp_path / "x.jsonl").open("w") as stream:
        for row in range(600):
            stream.write(json.dumps({"id": row, "text": "ä" * 3000}, ensure_ascii=False) + "\n")
            stream.write("\n" if row % 7 == 0 else "")
    with opened(tmp_path / "x.jsonl", Access.READ) as source:
        cut = source.partitions(3)
        assert len(cut) == 3
        assert source.count() == 600
        assert sorted(read_all(source, 50, parts=3).ids) == list(range(600))


@pytest.mark.parametrize("name", ["x.parquet", "x.jsonl"])
def test_a_file_that_changed_under_a_cursor_is_an_error(tmp_path: Path, name: str) -> None:
    path = exported(tmp_path / name)
    with opened(path, Access.READ) as source:
        partition = source.partitions(1)[0]
        page = next(iter(source.scan(partition, None, BatchSize(5))))
    other = exported(tmp_path / f"other-{name}", 31)
    other.replace(path)
    with opened(path, Access.READ) as source:
        with pytest.raises(StoreError, match="changed since the copy began"):
            list(source.scan(partition, page.cursor, BatchSize(5)))
        with pytest.raises(StoreError, match="changed since the copy began"):
            list(source.scan(partition, None, BatchSize(5)))


def test_a_file_that_changes_while_it_is_scanned_is_an_error(tmp_path: Path) -> None:
    path = exported(tmp_path / "x.jsonl")
    with opened(path, Access.READ) as source:
        pages = source.scan(source.partitions(1)[0], None, BatchSize(5))
        next(iter(pages))
        with path.open("a") as stream:
            stream.write('{"id": "late"}\n')
        with pytest.raises(StoreError, match="changed since the copy began"):
            list(pages)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ('{"id": "b", "vector": [1, 2]', r"x.jsonl:3: is not JSON"),
        ('{"id": "b", "vector": [1]}', r"x.jsonl:3: 'vector' is not a list of 2 numbers"),
        ('{"id": "b", "vector": [1, "2x"]}', r"x.jsonl:3: 'vector' holds what is no number"),
        ('{"vector": [1, 2]}', r"x.jsonl:3: expected an object with an 'id'"),
        ('{"id": true}', r"x.jsonl:3: expected an object with an 'id'"),
        ("[1, 2]", r"x.jsonl:3: expected an object with an 'id'"),
        ('{"id": "b"}, {"id": "c"}', r"x.jsonl:3: is not JSON"),
        ('{"id": "b", "document": 3}', r"x.jsonl:3: 'document' is not text"),
        ('{"id": "b", "metadata": []}', r"x.jsonl:3: 'metadata' is not an object"),
        ('{"id": "b", "a": 1, "metadata": {"a": 2}}', r"x.jsonl:3: 'a' is both"),
    ],
)
def test_a_broken_line_is_named_by_its_number(tmp_path: Path, line: str, what: str) -> None:
    good = '{"id": "a", "vector": [1, 2]}'
    (tmp_path / "x.jsonl").write_text(f"{good}\n\n{line}\n{good}\n")
    with (
        opened(tmp_path / "x.jsonl", Access.READ) as source,
        pytest.raises(StoreError, match=what),
    ):
        read_all(source)


def test_a_damaged_parquet_file_is_a_clear_error(tmp_path: Path) -> None:
    path = exported(tmp_path / "x.parquet")
    path.write_bytes(path.read_bytes()[:-20])
    with (
        opened(path, Access.READ) as source,
        pytest.raises(StoreError, match=r"x\.parquet: cannot be read as Parquet"),
    ):
        read_all(source)


@pytest.mark.parametrize("text", ['{"a":NaN}', '{"a":}', '{"a":"\\ud800"}', "{"])
def test_metadata_that_is_no_json_is_refused_on_reading(tmp_path: Path, text: str) -> None:
    """Nobody downstream parses a text that can be passed on as it is."""
    path = tmp_path / "x.parquet"
    columns = {
        "id": ["a", "b"],
        "metadata": ['{"a":1}', text],
        "vector": pa.array([[1.0], [2.0]], pa.list_(pa.float32(), 1)),
    }
    pq.write_table(pa.table(columns), path)
    with opened(path) as source, pytest.raises(StoreError, match="no JSON object"):
        list(source.scan(Partition(0), None, BatchSize(10)))


def test_metadata_texts_spread_over_lines_still_make_one_line_each(tmp_path: Path) -> None:
    batch = make_batch(2).with_(metadata=Metadata(texts=[b'{\n "a": 1\n}', b"{}"]))
    with opened(tmp_path / "x.jsonl") as target:
        target.create(SPEC)
        target.write(batch)
        target.finish(SPEC)
        assert read_all(target).metadata.objects() == [{"a": 1}, {}]


def copy_in_batches(path: Path) -> None:
    with opened(path) as target:
        if target.describe() is None:
            target.create(SPEC)
        for start in (0, 10, 20):
            target.write(make_batch(10, seed=start, ids=make_ids(10, IdRule(), start)))
        target.delete(["r-00003"])
        target.finish(SPEC)


@pytest.mark.parametrize("name", ["x.parquet", "x"])
def test_a_copy_killed_anywhere_goes_on_to_the_same_records(tmp_path: Path, name: str) -> None:
    effects = killed_everywhere(copy_in_batches, tmp_path, name)

    assert effects > 10
    with opened(tmp_path / "0" / name, Access.READ) as store:
        expected = read_all(store)
    assert len(expected) == 29
    for point in range(1, effects + 1):
        path = tmp_path / str(point) / name
        with opened(path, Access.READ) as store:
            same(expected, read_all(store))
        assert not list(path.parent.rglob("*.tmp"))


def test_a_full_disk_is_a_clear_error_and_leaves_what_was_there(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    path = tmp_path / "x.parquet"
    with opened(path) as target:
        target.create(SPEC)
        target.write(make_batch(10))
    code = """
        import resource, sys
        from pathlib import Path
        from runner.errors import StoreError
        from runner.testing import make_batch
        from tests.unit.test_files import opened
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
        with opened(Path(sys.argv[1])) as target:
            try:
                target.write(make_batch(1000, seed=1))
            except StoreError as error:
                print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(path)],
        env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, cwd=root,
        check=True,
    )  # fmt: skip
    assert "cannot be written: " in done.stdout
    assert "hint: make room on that disk" in done.stdout
    with opened(path) as target:
        same(make_batch(10), read_all(target))


def test_a_proposal_judges_disk_permissions_and_kind(tmp_path: Path) -> None:
    with opened(tmp_path / "new" / "x.parquet") as target:
        found = target.propose(SPEC, 10, 10**18).findings
        assert ["GB free" in each.what for each in found] == [True]
        assert target.propose(SPEC, 10, 1000).findings == ()
    with opened(tmp_path / "x.csv") as target:
        assert "files of this kind" in target.propose(SPEC, 1, 1).findings[0].what
    with opened(tmp_path / "*.parquet") as target:
        assert "only be read" in target.propose(SPEC, 1, 1).findings[0].what
    (tmp_path / "file").write_text("")
    with opened(tmp_path / "file" / "x.parquet") as target:
        assert "not a folder" in target.propose(SPEC, 1, 1).findings[0].what
    several = CollectionSpec("c", {"a": VectorSpec(3), "b": VectorSpec(4)})
    with opened(tmp_path / "x.parquet") as target:
        proposal = target.propose(several, 1, 1)
        assert (proposal.spec.vectors, proposal.findings) == (several.vectors, ())
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_nan_and_infinity_are_refused(tmp_path: Path) -> None:
    with opened(tmp_path / "x.parquet") as target:
        target.create(SPEC)
        for bad in (np.nan, np.inf):
            batch = make_batch(3)
            batch.vector[1, 2] = bad
            with pytest.raises(StoreError, match="'r-00001' holds NaN or infinity"):
                target.write(batch)
        assert target.count() == 0


def test_what_is_not_there_cannot_be_read(tmp_path: Path) -> None:
    with (
        opened(tmp_path / "x.parquet", Access.READ) as source,
        pytest.raises(CollectionNotFoundError),
    ):
        source.count()
    with pytest.raises(PlanError, match="needs a path"):
        FilesStore(Location("files", {}), Access.READ, tmp_path)
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "x.parquet")
    source = opened(tmp_path / "x.parquet", columns={"vec": "v"})
    with pytest.raises(PlanError, match="expected some of id, vector"):
        source.count()


def test_appending_to_files_of_others_keeps_their_records(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    table = pa.table({"doc": ["a", "b"], "v": [[1.0, 2.0], [3.0, 4.0]], "lang": ["en", "de"]})
    pq.write_table(table, folder / "data.parquet")
    (folder / "notes.txt").write_text("mine")
    new = make_batch(2, dim=2, ids=["b", "c"])
    with opened(folder, columns={"id": "doc", "vector": "v"}) as target:
        with pytest.raises(CollectionMismatchError):
            target.create(SPEC)
        target.write(new)
        target.finish(SPEC)
        assert target.count() == 3
        assert target.fetch(["a"]).metadata.objects() == [{"lang": "en"}]
        same(new, target.fetch(["b", "c"]))
        target.drop()
    assert [each.name for each in folder.iterdir()] == ["notes.txt"]


def test_a_swap_that_was_cut_off_is_completed(tmp_path: Path) -> None:
    exported(tmp_path / "x.jsonl", 5)
    exported(tmp_path / "x_new.jsonl", 7)
    # what a crash between the renames leaves behind
    (tmp_path / "x.jsonl.runner.json").rename(tmp_path / "x_old.jsonl.runner.json")
    (tmp_path / "x.jsonl").rename(tmp_path / "x_old.jsonl")
    (tmp_path / "x_new.jsonl.runner.json").rename(tmp_path / "x.jsonl.runner.json")
    with opened(tmp_path / "x.jsonl") as target:
        assert target.describe() is None
        target.swap("x_new.jsonl", "x_old.jsonl")
        assert target.count() == 7
        assert target.sibling("x_old.jsonl").count() == 5
        target.sibling("x_new.jsonl").create(SPEC)
        with pytest.raises(StoreError, match="not finished"):
            target.swap("x_new.jsonl", "x_old.jsonl")


def test_a_foreign_text_is_no_cursor(tmp_path: Path) -> None:
    with (
        opened(exported(tmp_path / "x.parquet"), Access.READ) as source,
        pytest.raises(StoreError, match="is not a cursor"),
    ):
        list(source.scan(Partition(0), "garbage", BatchSize(5)))


def test_a_lone_surrogate_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path / "x.parquet") as target:
        target.create(SPEC)
        batch = make_batch(1).with_(documents=["\ud800"])
        with pytest.raises(StoreError, match="not valid Unicode"):
            target.write(batch)


def test_other_ids_under_one_hash_are_not_taken_for_each_other(tmp_path: Path) -> None:
    ids = [-1, -2, 0, 2**61 - 1, "a", 2**62 - 2]
    assert len({hash(each) for each in ids}) < len(ids)
    batch = make_batch(len(ids), ids=ids)
    with opened(tmp_path / "x.parquet") as target:
        target.create(SPEC)
        for row in range(len(ids)):
            target.write(batch.take([row]))
        assert target.count() == len(ids)
        target.delete([-1])
        same(batch.take([1, 3]), target.fetch([-1, -2, 2**61 - 1]))


def test_a_file_of_another_kind_says_which_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("id,vector\n")
    source = opened(tmp_path / "x.csv", Access.READ)
    with pytest.raises(StoreError, match="cannot be read") as caught:
        source.describe()
    assert ".parquet, .pq, .jsonl" in caught.value.hint


def test_lines_that_the_runner_wrote_are_read_by_the_names_it_was_given(tmp_path: Path) -> None:
    names = {"id": "key"}
    with opened(tmp_path / "x.jsonl", columns=names) as target:
        target.create(SPEC)
        target.write(make_batch(3))
        target.finish(SPEC)
    with opened(tmp_path / "x.jsonl", Access.READ, columns=names) as source:
        assert source.describe() is not None
    with (
        opened(tmp_path / "x.jsonl", Access.READ, columns={"id": "kee"}) as source,
        pytest.raises(CapabilityError, match="no column for"),
    ):
        source.describe()


LINE = '{"id": "%s", "vector:text": %s, "sparse:words": %s, "multi:tokens": %s, "year": 1990}\n'


def test_files_of_others_may_hold_vectors_of_every_kind(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    words = '{"indices": [7, 2], "values": [0.5, 1]}'
    path.write_text(
        LINE % ("a", "[1, 2]", words, "[[1, 2, 3]]") + LINE % ("b", "null", "null", "null")
    )
    with opened(path) as source:
        spec, found = source.describe(), read_all(source)
    assert spec is not None
    assert {name: (each.kind, each.dim) for name, each in spec.vectors.items()} == {
        "text": ("dense", 2),
        "words": ("sparse", 0),
        "tokens": ("multi", 3),
    }
    assert found.vectors["text"].tolist() == [[1, 2], [0, 0]]
    assert found.present["text"].tolist() == [True, False]
    sparse = found.sparse["words"]
    assert sparse[0] is not None
    assert (sparse[0].indices.tolist(), sparse[0].values.tolist()) == ([2, 7], [1, 0.5])
    assert [None if each is None else each.tolist() for each in found.multi["tokens"]] == [
        [[1, 2, 3]],
        None,
    ]
    assert sparse[1] is None
    assert found.metadata.objects() == [{"year": 1990}] * 2


@pytest.mark.parametrize(
    ("values", "what"),
    [
        (('"x"', "null", "null"), "'vector:text' is not a list of 1 numbers"),
        (("[true]", "null", "null"), "'vector:text' holds what is no number"),
        (("[1]", "[1]", "null"), "'sparse:words': expected `indices` and `values`"),
        (("[1]", '{"indices": [1, 1], "values": [1, 2]}', "null"), "not distinct whole numbers"),
        (("[1]", '{"indices": [1.5], "values": [1]}', "null"), "not distinct whole numbers"),
        (("[1]", '{"indices": [1], "values": ["x"]}', "null"), "holds what is no number"),
        (("[1]", "null", "[[1], [1, 2]]"), "'multi:tokens': expected lists of numbers"),
        (("[1]", "null", "[]"), "'multi:tokens': expected lists of numbers"),
        (("[1]", "null", '[["x"]]'), "holds what is no number"),
    ],
)
def test_what_is_no_vector_is_refused_with_its_line(
    tmp_path: Path, values: tuple[str, str, str], what: str
) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(LINE % ("a", "[1]", "null", "null") + LINE % ("b", *values))
    with opened(path) as source, pytest.raises(StoreError) as caught:
        read_all(source)
    assert f"{path}:2: " in str(caught.value)
    assert what in str(caught.value)


def test_the_plan_may_choose_among_the_vectors(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    table = pa.table(
        {
            "id": ["a"],
            "text_embedding": pa.array([[1.0, 2.0]], pa.list_(pa.float32())),
            "image_embedding": pa.array([[3.0]], pa.list_(pa.float32())),
        }
    )
    pq.write_table(table, path)
    columns = {"vectors": {"text": "text_embedding", "image": "image_embedding"}}
    for chosen, names in (("all", {"text", "image"}), ("text", {"text"}), (["image"], {"image"})):
        with opened(path, columns=columns, vectors=chosen) as source:
            spec = source.describe()
            assert spec is not None
            assert spec.vectors.keys() == names
            found = read_all(source)
            assert found.vectors.keys() == names
            assert found.metadata.objects() == [{}]
    with (
        opened(path, columns=columns, vectors=["sound"]) as source,
        pytest.raises(CapabilityError, match="no vector 'sound'; it has"),
    ):
        source.describe()
