"""Runs that wait in the middle of their copy, until a test lets them go on or stops them."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from typing import Any

from tests.e2e.places import Places

# After the first batches the copy waits until there is a file `gate`; unless it is deaf, also
# until the run is asked to stop.
_HELD_BACK = """
import pathlib, sys, time
from runner.copy import pipeline
write = pipeline.Copier._write_once
deaf = sys.argv.pop(1) == "deaf"
def held_back(self, batch, fresh):
    while self.progress.records and not pathlib.Path("gate").exists():
        if deaf:
            time.sleep(0.02)
        elif self.stop.wait(0.02):
            break
    write(self, batch, fresh)
pipeline.Copier._write_once = held_back
from runner import cli
if deaf:
    cli.GRACE_S = 3600  # nothing but a second signal ends it
sys.exit(cli.main(["run", *sys.argv[1:]]))
"""


def held_back(
    places: Places, *given: str, deaf: bool = False, **more: Any
) -> subprocess.Popen[str]:
    """A run that goes on to its end only once there is a file `gate`.

    Args:
        places: Where it runs.
        given: Its arguments; ``plan.yaml`` where left out.
        deaf: Whether it heeds no stop.
        more: For `subprocess.Popen`.
    """
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, **more}
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            _HELD_BACK,
            "deaf" if deaf else "listening",
            *(given or ["plan.yaml"]),
        ],
        cwd=places.folder,
        env=places.process_environment(),
        **options,
    )


def wait_for_a_batch(places: Places, process: subprocess.Popen[str]) -> None:
    """Return when a batch is journalled."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        for path in places.folder.glob("**/runs/*/journal.sqlite"):
            try:
                with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
                    if db.execute("SELECT count(*) FROM batches").fetchone()[0]:
                        return
            except sqlite3.OperationalError:
                pass  # the tables are just being made
        time.sleep(0.01)  # between two looks at a condition
    output = process.communicate()[0] if process.stdout else ""
    raise AssertionError(f"no batch was journalled: {output}")


def interrupted(places: Places, number: signal.Signals) -> int:
    """Send a signal to everything in a run's terminal once a batch is journalled; its exit code."""
    process = held_back(places, start_new_session=True)
    wait_for_a_batch(places, process)
    os.killpg(process.pid, number)
    output, _ = process.communicate(timeout=60)
    assert "Stopped after" in output, output
    assert "goes on from here" in output
    assert "runner rollback plan.yaml" in output
    return process.returncode
