"""Signals: a run stops cleanly, says how to go on, and goes on."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.e2e.conftest import Cli
from tests.e2e.held_back import held_back, interrupted, wait_for_a_batch
from tests.e2e.places import Places, records

COUNT = 300


@pytest.fixture
def plan(places: Places) -> Path:
    places.fill(places.options("files", "source"), records(COUNT))
    return places.plan(
        places.options("files", "source"), places.options("files", "target"), batch_size=20,
        workers=1,  # with two, the batch that is written first may stand behind a gap
        validation={"level": "quick"},
    )  # fmt: skip


def assert_goes_on(places: Places, cli: Cli) -> None:
    found = json.loads(cli("status", "plan.yaml", "--format", "json").stdout)
    assert found["phase"] == "copy"
    assert 0 < found["records"] < COUNT
    again = cli("run", "plan.yaml")
    assert again.returncode == 0, again.stderr
    assert "going on with run" in again.stdout
    assert len(places.read(places.options("files", "target"))) == COUNT


@pytest.mark.usefixtures("plan")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_stops_after_the_batches_in_flight_and_run_goes_on(
    places: Places, cli: Cli, name: str
) -> None:
    number = signal.Signals[name]
    assert interrupted(places, number) == 128 + number
    assert_goes_on(places, cli)


@pytest.mark.usefixtures("plan")
def test_a_second_signal_ends_at_once(places: Places, cli: Cli) -> None:
    process = held_back(places, deaf=True, start_new_session=True)
    wait_for_a_batch(places, process)
    assert process.stdout is not None
    os.killpg(process.pid, signal.SIGINT)
    while "once more to stop at once" not in (line := process.stdout.readline()):
        assert line, "it ended without a word"
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert_goes_on(places, cli)


@pytest.mark.usefixtures("plan")
def test_a_terminal_that_is_closed_stops_the_run_cleanly(places: Places, cli: Cli) -> None:
    ours, its = pty.openpty()

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = held_back(places, stdin=its, stdout=its, stderr=its, preexec_fn=take_terminal)
    os.close(its)
    wait_for_a_batch(places, process)
    os.close(ours)
    assert process.wait(60) == 128 + signal.SIGHUP
    assert_goes_on(places, cli)


@pytest.mark.usefixtures("plan")
def test_under_nohup_a_hangup_is_not_noticed(places: Places) -> None:
    process = held_back(
        places,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    wait_for_a_batch(places, process)
    os.killpg(process.pid, signal.SIGHUP)
    (places.folder / "gate").touch()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert len(places.read(places.options("files", "target"))) == COUNT


@pytest.mark.usefixtures("plan")
def test_ctrl_c_elsewhere_is_no_bug(places: Places, cli: Cli) -> None:
    """What only looks, or can be repeated, ends at once."""
    assert cli("run", "plan.yaml").returncode == 0
    code = (
        "import signal, sys; from runner import api, cli\n"
        # a shell that starts things in the background lets them ignore it
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "api.Plan.verify = lambda *_, **__: signal.raise_signal(signal.SIGINT)\n"
        "sys.exit(cli.main(['verify', 'plan.yaml']))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=places.folder, capture_output=True, text=True, check=False
    )
    assert found.returncode == 130
    assert "Traceback" not in found.stderr
    assert "same command" in found.stderr
