"""What notebooks and schedulers call: any thread, several plans, nothing on the screen."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from runner import (
    Plan,
    ProgressEvent,
    Stop,
    load_plan,
    results,
    to_html,
    to_markdown,
    write_records,
)
from runner.errors import JournalError, StoppedError, StoreError
from runner.results import Verdict
from runner.steps import execute
from tests.e2e.places import Places, records


@pytest.fixture
def path(places: Places) -> Path:
    """A plan of some batches that needs no server."""
    places.fill(places.options("chroma", "source"), records(120))
    return places.plan(
        places.options("chroma", "source"), places.options("files", "target"),
        batch_size=5, workers=1,
    )  # fmt: skip


def in_a_thread(act: Callable[[], Any]) -> Any:
    """What *act* returns, or raises, on a thread that is not the main one."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(act).result(60)


@pytest.fixture(autouse=True)
def every_batch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a copy as short as these is over before it is worth an event."""
    monkeypatch.setattr(execute, "_EVENT_EVERY_S", 0.0)


def stop_midway(plan: Plan) -> None:
    """Run *plan* until a batch is done, and stop it from another thread then."""
    stop, begun = Stop(), threading.Event()

    def tell(event: ProgressEvent) -> None:
        if event.phase == "copy" and event.records and not begun.is_set():
            begun.set()
            asked.join(60)

    def ask() -> None:
        assert begun.wait(60)
        stop.request()

    asked = threading.Thread(target=ask)
    asked.start()
    with pytest.raises(StoppedError):
        plan.run(tell, stop=stop)
    assert 0 < plan.status().records < 120


def everything(path: Path) -> None:
    """Each method once, as a task would call it."""
    plan = load_plan(path)
    assert [each.spec.name for each in plan.compile().steps[:1]] == ["target.parquet"]  # type: ignore[union-attr]
    assert isinstance(plan.dry_run(), results.DryRunResult)
    assert isinstance(plan.inspect(), results.InspectResult)
    stop_midway(plan)
    resumed = plan.resume()
    assert (resumed.verdict, resumed.records, resumed.resumed) == (Verdict.PASSED, 120, 1)
    assert plan.verify().verdict is Verdict.PASSED
    assert plan.report().target_digest == resumed.target_digest
    assert plan.rollback().done is False
    assert plan.rollback(confirmed=True).removed == 120


def test_every_method_works_in_a_thread_that_is_not_the_main_one(path: Path) -> None:
    in_a_thread(lambda: everything(path))


def test_nothing_is_printed_and_no_signal_is_taken(
    path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Signals and screens are the program's own."""
    watched = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD]
    before = [signal.getsignal(each) for each in watched]
    during = []
    plan = load_plan(path)
    plan.dry_run()
    plan.run(lambda _: during.append([signal.getsignal(each) for each in watched]))
    plan.verify()
    plan.rollback(confirmed=True)
    assert during
    assert all(each == before for each in during)
    assert [signal.getsignal(each) for each in watched] == before
    assert capfd.readouterr() == ("", "")


def test_the_working_folder_may_change_once_a_plan_is_loaded(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(path.parent)
    plan = load_plan(path.name)
    monkeypatch.chdir(tmp_path)
    assert plan.run().verdict is Verdict.PASSED
    assert (path.parent / "target.parquet").exists()
    assert [each.name for each in tmp_path.iterdir() if each.suffix] == []


def test_two_plans_run_at_once_in_one_process(places: Places) -> None:
    """From one source, into one Chroma folder: neither sees anything of the other."""
    places.fill(places.options("files", "source"), records(120))
    paths = [
        places.plan(
            places.options("files", "source"),
            {"store": "chroma", "path": "shared", "collection": name},
            name=name, batch_size=20,
        )
        for name in ("one", "two")
    ]  # fmt: skip
    both = threading.Barrier(2, timeout=60)

    def run(path: Path) -> Any:
        met = threading.Event()

        def tell(event: ProgressEvent) -> None:
            if event.phase == "copy" and not met.is_set():
                met.set()
                both.wait()  # neither goes on before the other is copying, too

        return load_plan(path).run(tell)

    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(run, paths, timeout=120))
    assert [each.verdict for each in ended] == [Verdict.PASSED] * 2
    assert ended[0].target_digest == ended[1].target_digest
    for name in ("one", "two"):
        assert len(places.read({"store": "chroma", "path": "shared", "collection": name})) == 120


def test_one_plan_does_not_run_twice_at_once(path: Path) -> None:
    """Not even within a process: two tasks of a scheduler, say."""
    refused: list[JournalError] = []

    def tell(event: ProgressEvent) -> None:
        if event.phase == "copy" and not refused:
            with pytest.raises(JournalError, match="another runner works on this plan") as caught:
                in_a_thread(load_plan(path).run)
            refused.append(caught.value)

    assert load_plan(path).run(tell).verdict is Verdict.PASSED
    assert refused


def test_an_error_of_the_listener_does_not_harm_the_run(path: Path) -> None:
    """It comes out of `run`, and the run can be resumed."""

    def tell(event: ProgressEvent) -> None:
        if event.phase == "copy":
            raise LookupError("the progress bar has gone")

    with pytest.raises(LookupError, match="the progress bar has gone"):
        load_plan(path).run(tell)
    assert load_plan(path).resume().verdict is Verdict.PASSED


def test_a_result_goes_to_people_and_to_machines(path: Path) -> None:
    plan = load_plan(path)
    assert "Steps" in to_markdown(plan.dry_run())
    result = plan.run()
    assert to_html(result).startswith("<!doctype html>")
    assert results.to_json(result)["verdict"] == "passed"


def one_pass() -> Iterator[dict[str, Any]]:
    """Records as an application has them, readable once."""
    sent = records(120)
    for row, each in enumerate(sent.ids):
        yield {
            "id": each, "vector": sent.vector[row], "document": sent.documents[row],
            "metadata": sent.metadata[row],
        }  # fmt: skip


def test_records_of_a_program_are_a_source_like_any_other(places: Places) -> None:
    """Dry run, a run that is stopped, its resume and the checks read them again and again."""
    assert write_records(places.folder / "mine.parquet", one_pass(), metric="cosine") == 120
    path = places.plan(
        {"store": "files", "path": "${var:records}"}, places.options("chroma", "target"),
        batch_size=5, workers=1,
    )  # fmt: skip
    variables = {"records": "mine.parquet"}
    plan = load_plan(path, variables)
    assert plan.dry_run().exit_code == 0
    stop_midway(plan)
    result = load_plan(path, variables).resume()
    assert (result.verdict, result.records) == (Verdict.PASSED, 120)
    assert plan.verify().verdict is Verdict.PASSED
    sent, came = records(120), places.read(places.options("chroma", "target"))
    assert came.keys() == set(sent.ids)
    assert came["doc-00009"][2] == sent.metadata[9]


def test_a_dataframe_is_a_source_as_well(places: Places) -> None:
    """pandas, polars and DuckDB hand their tables over as pyarrow does."""
    sent = records(60)
    table = pa.table(
        {
            "key": sent.ids,
            "embedding": pa.array(list(sent.vector), pa.list_(pa.float32())),
            "text": sent.documents,
            "year": [each["year"] for each in sent.metadata],
        }
    )
    names = {"id": "key", "vector": "embedding", "document": "text"}
    write_records(places.folder / "frame.parquet", table, columns=names, metric="l2")
    path = places.plan({"store": "files", "path": "frame.parquet"}, places.options("faiss", "to"))
    result = load_plan(path).run()
    assert (result.verdict, result.target.metric) == (Verdict.PASSED, "l2")
    vector, document, metadata = places.read(places.options("faiss", "to"))["doc-00003"]
    assert np.array_equal(vector, sent.vector[3])
    assert (document, metadata) == (sent.documents[3], {"year": 1993})


def test_a_source_that_was_written_again_is_not_gone_on_with(places: Places) -> None:
    """A task that repeats `write_records` before `resume` would mix two sets of records."""
    file = places.folder / "mine.parquet"
    write_records(file, one_pass())
    path = places.plan(
        {"store": "files", "path": "mine.parquet"}, places.options("faiss", "to"),
        batch_size=5, workers=1,
    )  # fmt: skip
    stop_midway(load_plan(path))
    write_records(file, list(one_pass())[:100])
    with pytest.raises(StoreError, match="changed"):
        load_plan(path).resume()


def test_a_secret_leaves_in_no_result_report_audit_event_or_error(
    served: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here it is the table's name as well, so that it would be told everywhere."""
    monkeypatch.setenv("PW", "hunter2")
    served.fill(served.options("files", "source"), records(30))
    dsn = "${TEST_DSN} password=${PW}"
    path = served.plan(
        served.options("files", "source"), {"store": "pgvector", "dsn": dsn, "table": "${PW}"}
    )
    plan = load_plan(path)
    told: list[Any] = [plan.dry_run(), plan.inspect()]
    told += [plan.run(told.append), plan.status(), plan.verify(), plan.report(), plan.rollback()]
    (folder,) = plan.state.run_folders()
    told += [
        each.read_text() for each in folder.path.iterdir() if each.suffix in (".json", ".jsonl")
    ]
    told += [(folder.path / f"report.{each}").read_text() for each in ("html", "md")]
    assert plan.rollback(confirmed=True).action == "drop"
    to = served.options("files", "target")
    gone = served.plan({"store": "pgvector", "dsn": dsn, "table": "${PW}"}, to, name="gone")
    with pytest.raises(StoreError) as caught:
        load_plan(gone).run()
    assert all("***" in str(each) for each in (told[0], caught.value))
    assert "hunter2" not in "".join(map(str, told)) + str(caught.value) + repr(caught.value)
