"""A program that uses the library is checked by mypy as strictly as the library is."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import runner

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PROGRAM = '''
"""A task of a scheduler."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from runner import (
    Batch, Compiled, Metadata, Plan, ProgressEvent, Stop, load_plan, to_html, to_markdown,
    write_records,
)
from runner.errors import PausedError, RunnerError, StoppedError
from runner.results import (
    DryRunResult, InspectResult, RollbackResult, RunResult, StatusResult, Verdict, to_json,
)


def rows() -> Iterator[dict[str, Any]]:
    yield {"id": "a", "vector": [0.1, 0.2], "document": "text"}


def tell(event: ProgressEvent) -> None:
    print(event.phase, event.records, event.total)


def move(file: str) -> RunResult:
    batch = Batch(["a"], {"": np.ones((1, 2), np.float32)}, ["text"], Metadata.of([{}]))
    written: int = write_records("mine.parquet", rows(), columns={"id": "id"}, metric="cosine")
    written += write_records("more.parquet", [batch])
    plan: Plan = load_plan(file, {"env": "staging"}, state_dir="state", limit=written)
    compiled: Compiled = plan.compile(allow=["replace-target"])
    print(len(compiled.steps))
    tried: DryRunResult = plan.dry_run()
    inspected: InspectResult = plan.inspect()
    status: StatusResult = plan.status()
    print(to_markdown(tried), to_markdown(inspected), to_json(status))
    stop = Stop()
    try:
        result = plan.run(tell, stop=stop)
    except PausedError:
        result = plan.resume(progress=lambda event: print(event.message))
    except (StoppedError, RunnerError) as error:
        raise SystemExit(error.exit_code) from error
    if plan.verify().verdict is Verdict.FAILED:
        undone: RollbackResult = plan.rollback(confirmed=True)
        print(undone.removed)
    print(to_html(result))
    return result
'''
WRONG = """
from runner import load_plan

load_plan(7).run().verdict.shout()
"""


def mypy(folder: Path, program: str) -> subprocess.CompletedProcess[str]:
    """What mypy says of *program*, for which this package is an installed one."""
    (folder / "program.py").write_text(program)
    return subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent",
         "--cache-dir", str(ROOT / ".mypy_cache" / "programs"), "program.py"],
        cwd=folder, env={**os.environ, "MYPYPATH": "", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_a_program_passes_the_strictest_check(tmp_path: Path) -> None:
    ended = mypy(tmp_path, PROGRAM)
    assert ended.returncode == 0, ended.stdout


def test_a_mistake_in_a_program_is_found(tmp_path: Path) -> None:
    """Or the types would be Any, and the test before would show nothing."""
    found = mypy(tmp_path, WRONG).stdout
    assert 'Argument 1 to "load_plan" has incompatible type "int"' in found
    assert '"Verdict" has no attribute "shout"' in found


@pytest.mark.parametrize("program", re.findall(r"```python\n(.*?)```", README, re.DOTALL))
def test_the_programs_of_the_readme_pass_as_well(tmp_path: Path, program: str) -> None:
    ended = mypy(tmp_path, program)
    assert ended.returncode == 0, ended.stdout


@pytest.mark.parametrize("name", runner.__all__)
def test_what_the_package_offers_is_there(name: str) -> None:
    assert getattr(runner, name) is not None
