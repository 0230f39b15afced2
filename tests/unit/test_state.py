"""The state folder: found again, ignored by git, locked, and never on a network disk."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from runner.copy.journal import Journal
from runner.errors import JournalError
from runner.steps.state import State, file_system_of


def state(tmp_path, **changes):
    document = {"path": tmp_path / "plan.yaml", "name": "docs", "state_dir": None, "part": ""}
    return State(SimpleNamespace(**{**document, **changes}))


def test_runs_lie_beside_the_plan_and_git_ignores_them(tmp_path):
    found = state(tmp_path)
    with found.lock():
        folder = found.new_run()
    assert folder.path.parent == tmp_path / ".runner" / "docs" / "runs"
    assert (tmp_path / ".runner" / ".gitignore").read_text() == "*\n"


def test_a_run_counts_once_its_journal_says_what_it_is(tmp_path):
    found = state(tmp_path)
    folder = found.new_run()
    assert found.newest() is None
    folder.journal.touch()
    assert found.newest() is None
    folder.journal.unlink()
    journal = Journal.create(folder.journal)
    assert found.newest() is None
    journal.keep(run_id=folder.run_id)
    journal.close()
    assert found.newest() == folder


def test_a_second_runner_is_refused_and_the_first_is_named(tmp_path):
    found = state(tmp_path)
    code = (
        "import fcntl, os, sys\n"
        f"fd = os.open({str(tmp_path / '.runner/docs/lock')!r}, os.O_RDWR | os.O_CREAT)\n"
        "fcntl.flock(fd, fcntl.LOCK_EX)\n"
        "os.pwrite(fd, str(os.getpid()).encode(), 0)\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    (tmp_path / ".runner/docs").mkdir(parents=True)
    holder = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout.readline() == "held\n"
        assert found.is_locked()
        with pytest.raises(JournalError, match=str(holder.pid)), found.lock():
            pass
    finally:
        holder.communicate("")
    assert not found.is_locked()
    with found.lock():
        assert found.is_locked()


def test_a_folder_that_cannot_be_written_is_refused_with_what_to_do(tmp_path):
    (tmp_path / "file").touch()
    found = state(tmp_path, state_dir=tmp_path / "file" / "below")
    with pytest.raises(JournalError, match="cannot be written") as caught, found.lock():
        pass
    assert "--state-dir" in caught.value.hint


def test_the_file_system_is_that_of_the_nearest_mount(tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "disk / ext4 rw 0 0\n"
        f"server:/x {tmp_path} nfs4 rw 0 0\n"
        f"tmpfs {tmp_path}/with\\040space tmpfs rw 0 0\n"
    )
    assert file_system_of(tmp_path / "a" / "b", mounts) == "nfs4"
    assert file_system_of(tmp_path / "with space", mounts) == "tmpfs"
    assert file_system_of(tmp_path.parent, mounts) == "ext4"


def test_who_looks_whether_a_plan_is_locked_keeps_no_run_from_starting(tmp_path):
    found = state(tmp_path)
    with found.lock():
        pass
    with (
        (found.folder / "lock").open() as looking,
        ThreadPoolExecutor(1) as pool,
        ExitStack() as stack,
    ):
        fcntl.flock(looking, fcntl.LOCK_SH)  # as `status` does, if for longer
        starting = pool.submit(stack.enter_context, found.lock())
        with pytest.raises(TimeoutError):
            starting.result(0.2)
        fcntl.flock(looking, fcntl.LOCK_UN)
        starting.result(60)


def test_the_process_that_is_named_as_the_lock_s_holder_lives(tmp_path):
    found = state(tmp_path)
    named = pytest.raises(JournalError, match=rf"process {os.getpid()}\)")
    with found.lock(), named, found.lock():
        pass
    ended = subprocess.Popen(["true"])
    ended.wait()
    with (found.folder / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        held.write(str(ended.pid))  # of one that was killed before
        held.flush()
        with pytest.raises(JournalError, match=r"process unknown\)"), found.lock():
            pass
