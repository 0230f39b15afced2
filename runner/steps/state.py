"""Where runs are kept: one folder a plan, one folder a run, one lock.

``.runner/<plan name>/runs/<run id>/`` beside the plan holds the journal, the audit,
dead letters and reports.  The folder ignores itself in git.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from runner.copy.journal import Journal
from runner.errors import JournalError, PlanError
from runner.plan.model import PlanDocument

_MOMENT_S = 0.002
_MOMENTS = 50
_STAMP = "%Y-%m-%dT%H-%M-%S"
_NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "fuse.s3fs", "afs", "ceph"}
)


@dataclass(frozen=True)
class RunFolder:
    """One run's folder.

    Attributes:
        path: ``…/runs/2026-11-23T10-15-00-4f2a91c0``.
    """

    path: Path

    @property
    def run_id(self) -> str:
        """The run's name."""
        return self.path.name

    @property
    def journal(self) -> Path:
        """The journal's file."""
        return self.path / "journal.sqlite"

    @property
    def audit(self) -> Path:
        """The exported audit."""
        return self.path / "audit.jsonl"

    @property
    def scratch(self) -> Path:
        """For snapshots; removed when the run ends."""
        return self.path / "scratch"

    def clear_scratch(self) -> None:
        """Remove snapshots, also those of a run that was killed."""
        shutil.rmtree(self.scratch, ignore_errors=True)


class State:
    """The state folder of one plan.

    Args:
        document: The plan; its ``state_dir`` moves the folder.
    """

    def __init__(self, document: PlanDocument) -> None:
        base = document.state_dir or document.path.parent / ".runner"
        self.base = base
        plan_folder = base / document.name
        # the sources of one plan write to one target: one at a time
        self.folder = plan_folder / "sources" / document.part if document.part else plan_folder
        self._lock = plan_folder / "lock"
        self.runs = self.folder / "runs"
        self._plan = document.path
        self._owner = plan_folder / "plan"

    def run_folders(self) -> list[RunFolder]:
        """Every run that has begun, oldest first."""
        if not self.runs.is_dir():
            return []
        found = [RunFolder(each) for each in sorted(self.runs.iterdir())]
        return [each for each in found if each.journal.exists() and Journal.has_begun(each.journal)]

    def newest(self) -> RunFolder | None:
        """The newest run; None if there is none.

        Raises:
            PlanError: The runs here are those of another plan with the same name.
        """
        self._refuse_other_plan()
        found = self.run_folders()
        return found[-1] if found else None

    def new_run(self) -> RunFolder:
        """A folder for a new run, made; its name follows those of all runs before it."""
        stamp = datetime.now(UTC)
        newest = self.newest()
        if newest is not None:
            # names are the order of runs: two in one second, or a clock that was set back
            stamp = max(stamp, _began(newest) + timedelta(seconds=1))
        stamp_text = stamp.strftime(_STAMP)
        folder = RunFolder(self.runs / f"{stamp_text}-{secrets.token_hex(4)}")
        try:
            folder.path.mkdir(parents=True, mode=0o700)
        except OSError as error:
            raise _cannot_write(folder.path, error) from error
        return folder

    def _refuse_other_plan(self) -> None:
        """A plan that was renamed takes its runs along; two that are there share none."""
        try:
            owner = (self.base / self._owner.read_text().strip()).resolve()
        except FileNotFoundError:
            return
        except OSError as error:
            raise _cannot_write(self._owner, error) from error
        if owner.exists() and not owner.samefile(self._plan):
            raise PlanError(
                f"{self._plan.name} has the same name as {owner.name}, {self.folder.name!r}, and "
                f"{self.folder} holds the runs of {owner.name}",
                "give one of them another `name:`, or a state folder of its own: `--state-dir`",
            )

    def _own(self) -> None:
        """Note whose runs these are."""
        relative = os.path.relpath(self._plan.resolve(), self.base.resolve())
        if not self._owner.exists() or self._owner.read_text().strip() != relative:
            temporary = self._owner.with_suffix(".tmp")
            temporary.write_text(relative + "\n")
            temporary.replace(self._owner)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the plan's lock: one runner at a time.

        Raises:
            JournalError: Another runner holds it, or the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            ignore = self.base / ".gitignore"
            if not ignore.exists() or not ignore.stat().st_size:  # cut short by a full disk
                ignore.write_text("*\n")
            _refuse_network(self.folder)
            descriptor = os.open(self._lock, os.O_CREAT | os.O_RDWR, 0o600)
        except OSError as error:
            raise _cannot_write(self.folder, error) from error
        try:
            if not _take(descriptor):
                raise JournalError(
                    f"another runner works on this plan (process {_holder_of(descriptor)})",
                    "wait for it, or stop it: `runner status` shows how far it is",
                )
            self._refuse_other_plan()
            with suppress(OSError):  # a full disk: the lock holds without a name on it
                self._own()
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, str(os.getpid()).encode(), 0)
            try:
                yield
            finally:
                with suppress(OSError):
                    os.ftruncate(descriptor, 0)
        finally:
            os.close(descriptor)

    def is_locked(self) -> bool:
        """Whether a runner holds the lock now; changes nothing."""
        if not self._lock.exists():
            return False
        descriptor = os.open(self._lock, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False


def _take(descriptor: int) -> bool:
    """Take the lock, unless a runner has it."""
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        # A shared lock is refused by a runner only: else somebody looks who has it (`status`),
        # which takes no longer than this.
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        time.sleep(_MOMENT_S)


def _holder_of(descriptor: int) -> str:
    """The process that holds the lock; it writes its name right after it took it."""
    for _ in range(_MOMENTS):
        name = os.pread(descriptor, 100, 0).decode(errors="replace").strip()
        if name.isdecimal() and _lives(int(name)):
            return name
        time.sleep(_MOMENT_S)
    return "unknown"


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:  # somebody else's
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _began(folder: RunFolder) -> datetime:
    return datetime.strptime(folder.run_id[:19], _STAMP).replace(tzinfo=UTC)


def _cannot_write(path: Path, error: OSError) -> JournalError:
    return JournalError(
        f"{path}: the state folder cannot be written: {error.strerror}",
        "choose another one with --state-dir",
    )


def _refuse_network(folder: Path) -> None:
    """SQLite's locks and syncs cannot be trusted on network file systems."""
    kind = file_system_of(folder)
    if kind in _NETWORK:
        raise JournalError(
            f"{folder} lies on a network file system ({kind}), where a journal is not safe",
            "choose a local folder with --state-dir",
        )


def file_system_of(folder: Path, mounts: Path = Path("/proc/mounts")) -> str:
    """The type of the file system that *folder* lies on; empty where the system does not say."""
    if not mounts.exists():
        return ""
    best, kind = "", ""
    place = str(folder.resolve())
    for line in mounts.read_text(errors="replace").splitlines():
        fields = line.split(" ")
        point = fields[1].replace("\\040", " ")
        inside = place == point or place.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, fields[2]
    return kind
