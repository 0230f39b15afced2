"""The journal: whatever breaks off, what it says is true."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import threading

import numpy as np
import pytest

from runner.copy.dead_letters import DeadLetterRow, with_records
from runner.copy.fit import Loss
from runner.copy.journal import BatchRow, Journal, audit_is_whole
from runner.errors import JournalError
from runner.model import Batch, Metadata, Partition


@pytest.fixture
def journal(tmp_path):
    made = Journal.create(tmp_path / "journal.sqlite")
    yield made
    made.close()


def row(number, partition=0, ids=None, **changes):
    ids = [f"id-{partition}-{number}"] if ids is None else ids
    digests = np.full((len(ids), 16), number, dtype=np.uint8)
    facts = {"cursor": f"c{number}", "read": len(ids), "size_bytes": 10, "verified": True}
    return BatchRow(partition, number, ids=ids, digests=digests, **{**facts, **changes})


def reopened(journal):
    path = journal.path
    journal.close()
    return Journal.open_existing(path)


def test_a_batch_that_could_not_be_committed_counts_for_nothing(journal):
    """Else the cursor would move over it once the batch after it is there."""
    journal.cut([Partition(0)])
    full = "CREATE TRIGGER full BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'full'); END"
    with sqlite3.connect(journal.path) as other:
        other.execute(full)
    with pytest.raises(JournalError, match="full"):
        journal.commit(row(0))
    with sqlite3.connect(journal.path) as other:
        other.execute("DROP TRIGGER full")
    journal.commit(row(1))
    assert journal.partitions()[0].next_batch == 0
    journal.commit(row(0))
    assert journal.partitions()[0].next_batch == 2


def test_the_time_of_a_step_that_was_killed_is_counted_up_to_its_last_sign(journal):
    journal.begin_step(1, "copy")
    with sqlite3.connect(journal.path) as other:
        other.execute("UPDATE steps SET started_at = '2026-01-01T00:00:00+00:00'")
        other.execute("UPDATE audit SET at = '2026-01-01T00:00:07+00:00'")
    again = reopened(journal)
    assert again.uncounted_seconds() == 7
    again.begin_step(1, "copy")
    assert again.step_seconds() == {1: 7}
    again.add_step_time(1, 2.0)  # it stops
    assert again.uncounted_seconds() == 0
    assert again.step_seconds() == {1: 9}


def test_facts_are_kept_as_json_values(journal):
    journal.keep(one=1, two=[None, "x"], three={"a": 1.5})
    again = reopened(journal)
    assert [again.fact("one"), again.fact("two"), again.fact("three")] == [
        1,
        [None, "x"],
        {"a": 1.5},
    ]
    assert again.fact("nothing", "default") == "default"


def test_a_cursor_moves_over_batches_in_order_only(journal):
    journal.cut([Partition(0)])
    journal.commit(row(0))
    journal.commit(row(2))
    assert journal.partitions()[0].cursor == "c0"
    journal.commit(row(1))
    assert journal.partitions()[0].cursor == "c2"
    assert journal.partitions()[0].next_batch == 3


def test_after_a_crash_batches_behind_a_gap_are_forgotten(journal):
    journal.cut([Partition(0), Partition(1)])
    for each in (row(0), row(2, dead_letters=[DeadLetterRow("x", "", "s", "r")]), row(0, 1)):
        journal.commit(each)
    again = reopened(journal)
    assert again.forget_unconnected() == 1
    assert again.totals().records == 2
    assert again.totals().dead_letters == 0
    again.commit(row(1))
    again.commit(row(2))
    assert again.partitions()[0].cursor == "c2"


def test_how_far_ahead_of_a_gap_was_written_is_known(journal):
    """A writer may wait for its store while another one goes on and on."""
    journal.cut([Partition(0), Partition(1)])
    assert journal.records_ahead() == 0
    for number in (0, 2, 5):
        journal.commit(row(number))
    # batches 1 to 5, each as large as the largest
    assert journal.records_ahead() == 5 * row(0).read
    again = reopened(journal)
    again.forget_unconnected()
    assert again.records_ahead() == 0


def test_records_overwritten_by_leave_count_as_held_before(journal):
    journal.keep(hazards=[])
    journal.keep_present_before(iter([("", ["a"])]))
    journal.keep(held_before=1)
    journal.note_overwritten("", ["b", 2], "plan")
    journal.note_overwritten("x", ["c"], "plan")
    assert list(journal.present_before()) == [("", ["a"]), ("", ["b", 2]), ("x", ["c"])]
    assert journal.fact("held_before") == 4
    (hazard,) = journal.fact("hazards")
    assert (hazard["name"], hazard["allowed_by"]) == ("overwrite-records", "plan")


def test_the_same_batch_cannot_be_recorded_twice(journal):
    journal.cut([Partition(0)])
    journal.commit(row(0))
    with pytest.raises(JournalError):
        journal.commit(row(0))
    assert journal.totals().records == 1


def test_totals_ids_digests_and_losses_come_back(journal):
    journal.cut([Partition(0)])
    loss = Loss("a", "null → JSON text", "json", reversible=True)
    journal.commit(row(0, ids=["a", 7], losses={loss: 2}, transforms={"transforms[0]": (2, 1, 0)}))
    journal.commit(row(1, losses={loss: 1}, transforms={"transforms[0]": (1, 1, 0)}))
    again = reopened(journal)
    assert again.losses() == {loss: 3}
    assert again.transforms() == {"transforms[0]": (3, 2, 0)}
    written = list(again.written())
    assert [ids for _, ids, *_ in written] == [["a", 7], ["id-0-1"]]
    assert written[0][2].shape == (2, 16)
    assert again.totals().batches == 2


def test_several_threads_may_commit(journal):
    journal.cut([Partition(number) for number in range(4)])

    def work(partition):
        for number in range(20):
            journal.commit(row(number, partition))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert journal.totals().records == 80
    assert audit_is_whole(journal.audit_lines())


def test_the_audit_shows_any_tampering(journal):
    for number in range(5):
        journal.audit("event", number=number)
    lines = list(journal.audit_lines())
    assert audit_is_whole(iter(lines))
    changed = json.loads(json.dumps(lines))
    changed[2]["facts"]["number"] = 99
    assert not audit_is_whole(iter(changed))
    assert not audit_is_whole(iter(lines[:2] + lines[3:]))
    assert not audit_is_whole(iter(lines[::-1]))
    assert journal.audit_head == lines[-1]["hash"]


def test_the_export_is_json_lines(journal, tmp_path):
    journal.cut([Partition(0)])
    journal.commit(row(0, dead_letters=[DeadLetterRow(5, "", "transforms[0]", "why")]))
    journal.export(tmp_path)
    lines = [json.loads(each) for each in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert audit_is_whole(iter(lines))
    dead = [json.loads(each) for each in (tmp_path / "dead_letters.jsonl").read_text().splitlines()]
    why = {"namespace": "", "step": "transforms[0]", "reason": "why", "spelled": []}
    assert dead == [{"id": 5, "dead_letter": why}]


def exported_record(journal, tmp_path, record_id, vector, document, metadata):
    """The line that the export says of one record that was set aside."""
    page = Batch([record_id], {"": vector}, [document], Metadata(objects=[metadata]))
    journal.cut([Partition(0)])
    dead = with_records([DeadLetterRow(record_id, "", "target", "why")], page)
    journal.commit(row(0, ids=[], dead_letters=dead))
    reopened(journal).export(tmp_path)
    path = tmp_path / "dead_letters.jsonl"
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    (line,) = path.read_text().splitlines()
    return json.loads(line)


def test_a_dead_letter_holds_the_whole_record(journal, tmp_path):
    vector = np.random.default_rng(1).standard_normal((1, 8)).astype(np.float32)
    metadata = {"a": [1, {"b": None}], "huge": 2**80, "zero": -0.0}
    found = exported_record(journal, tmp_path, "x", vector, "line\nline", metadata)
    assert np.array(found.pop("vector"), dtype=np.float32).tobytes() == vector.tobytes()
    assert found.pop("dead_letter")["spelled"] == []
    assert found == {"id": "x", "document": "line\nline", "metadata": metadata}


def test_a_dead_letter_spells_out_what_json_cannot_say(journal, tmp_path):
    vector = np.array([[np.nan, np.inf, -np.inf, 0.1]], dtype=np.float32)
    deep: list[object] = []
    for _ in range(300):
        deep = [deep]
    metadata = {
        "score": float("nan"), "cut": "a\ud800", "list": [1.5, float("-inf")], "\udfff": 1,
        "raw": b"x", "deep": deep,
    }  # fmt: skip
    found = exported_record(journal, tmp_path, "\ud83d", vector, "\udc00!", metadata)
    assert found["id"] == "\\ud83d"
    assert found["vector"] == ["NaN", "Infinity", "-Infinity", 0.1]
    assert found["document"] == "\\udc00!"
    deepest = found["metadata"].pop("deep")
    while deepest:
        (deepest,) = deepest
    assert deepest is None
    assert found["metadata"] == {
        "score": "NaN", "cut": "a\\ud800", "list": [1.5, "-Infinity"], "\\udfff": 1,
        "raw": "b'x'",
    }  # fmt: skip
    places = found["dead_letter"]["spelled"]
    assert [each[:20] for each in places] == [
        "vector", "document", "metadata.score", "metadata.cut", "metadata.list[1]", "metadata",
        "metadata.raw", "metadata.deep[0][0][", "id",
    ]  # fmt: skip


def test_dead_letters_lie_packed_in_the_journal(journal):
    page = Batch(["x"], {"": np.zeros((1, 8), np.float32)}, ["word " * 1000], Metadata.of([None]))
    journal.cut([Partition(0)])
    dead = with_records([DeadLetterRow("x", "", "target", "why")], page)
    journal.commit(row(0, ids=[], dead_letters=dead))
    (size,) = journal._db.execute("SELECT length(record) FROM dead_letters").fetchone()
    assert 0 < size < 500


def test_the_file_is_private(journal):
    assert stat.S_IMODE(os.stat(journal.path).st_mode) == 0o600


def test_commits_are_synced_to_disk(journal):
    assert journal._db.execute("PRAGMA synchronous").fetchone() == (2,)
    assert journal._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_another_version_is_refused_with_what_to_do(journal):
    path = journal.path
    journal.close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(JournalError, match="version 99") as caught:
        Journal.open_existing(path)
    assert "--restart" in caught.value.hint


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"this is not a database, is it?" * 100)
    with pytest.raises(JournalError, match="cannot be read"):
        Journal.open_existing(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(JournalError, match="there is no journal"):
        Journal.open_existing(tmp_path / "none.sqlite")


def test_what_the_target_held_before_comes_back(journal):
    journal.keep_present_before(iter([("", ["a", 1]), ("x", ["b"])]))
    assert list(journal.present_before()) == [("", ["a", 1]), ("x", ["b"])]


def test_a_step_is_intent_then_done(journal):
    assert journal.step_state(1) == ""
    journal.begin_step(1, "create")
    assert journal.step_state(1) == "intent"
    assert journal.step_in_progress() == "create"
    journal.add_step_time(1, 2.0)
    journal.end_step(1, "create", 1.5)
    assert journal.step_state(1) == "done"
    assert journal.step_seconds() == {1: 3.5}
