"""A store that goes away pauses the run, and the run goes on when it is back."""

from __future__ import annotations

import pytest

from runner import cli, load_plan
from runner.copy import retry
from runner.errors import PausedError, TransientStoreError
from runner.results import Verdict
from runner.stores.files import FilesStore
from tests.e2e.places import Places, records


def test_a_store_that_goes_away_pauses_the_run_and_resume_goes_on(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    places.fill(places.options("files", "source"), records(200))
    path = places.plan(
        places.options("files", "source"), places.options("files", "target"), batch_size=20
    )
    write = FilesStore.write
    calls = []

    def failing(self, batch, *, fresh=False):
        calls.append(len(batch))
        if len(calls) > 4:
            raise TransientStoreError("the store is away")
        write(self, batch, fresh=fresh)

    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.001)
    with monkeypatch.context() as away:
        away.setattr(FilesStore, "write", failing)
        with pytest.raises(PausedError, match="away") as caught:
            load_plan(path).run()
    assert caught.value.exit_code == 75
    status = load_plan(path).status()
    assert status.phase == "copy"
    assert 0 < status.records < 200
    for judge in (load_plan(path).verify, load_plan(path).report):
        with pytest.raises(PausedError, match=r"is not finished \(copy, .* written\)") as caught:
            judge()
        assert "runner resume" in caught.value.hint

    tried = load_plan(path).dry_run()
    assert (tried.exit_code, tried.problems) == (0, ())
    assert f"goes on with the unfinished run {status.run_id}" in tried.instead
    result = load_plan(path).resume()
    assert result.verdict is Verdict.PASSED
    assert result.retries > 0
    tried = load_plan(path).dry_run()
    assert tried.exit_code == 0
    assert f"shows again what the run {result.run_id} came to" in tried.instead
    assert result.resumed == 1
    assert len(places.read(places.options("files", "target"))) == 200


def test_a_failure_that_passes_is_not_even_noticed_but_counted(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    places.fill(places.options("files", "source"), records(100))
    path = places.plan(
        places.options("files", "source"), places.options("files", "target"), batch_size=20
    )
    write = FilesStore.write
    calls = []

    def flaky(self, batch, *, fresh=False):
        calls.append(len(batch))
        if len(calls) in (2, 3):
            raise TransientStoreError("busy")
        write(self, batch, fresh=fresh)

    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(FilesStore, "write", flaky)
    result = load_plan(path).run()
    assert result.verdict is Verdict.PASSED
    assert result.retries == 2


def test_a_run_that_never_began_is_not_said_to_have_left_anything(
    places: Places, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    places.fill(places.options("files", "source"), records(10))

    def away(self):
        raise TransientStoreError("the store is away")

    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(FilesStore, "count", away)
    path = places.plan(places.options("files", "source"), places.options("files", "target"))
    assert cli.main(["run", str(path)]) == 75
    said = capsys.readouterr().err
    assert "Paused; nothing was written." in said
    assert "rollback" not in said
