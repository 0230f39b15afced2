"""The README is true: its reference is the schema's, and every command is in it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from runner.stores import store_names
from tests.readme import PARTS, parted

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", PARTS)
def test_what_is_generated_is_current(name: str) -> None:
    """`make readme` writes it anew."""
    assert parted(README, name)[1] == PARTS[name]()


@pytest.mark.parametrize(
    "command",
    re.findall(r'command\(\s*"(\w+)"', (ROOT / "runner" / "cli.py").read_text()),
)
def test_every_command_is_documented(command: str) -> None:
    assert re.search(rf"`(runner )?{command} ", README), command


def test_the_program_that_writes_records_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (program,) = (
        each
        for each in re.findall(r"```python\n(.*?)```", README, re.DOTALL)
        if "write_records" in each
    )
    monkeypatch.chdir(tmp_path)
    exec(program, {})
    assert pq.read_table("mine.parquet").num_rows == 9


def test_the_extras_are_those_that_can_be_installed() -> None:
    """All but those for tools, and those for stores that do not exist yet."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.search(r"The extras are (.+?)\.", README, re.DOTALL)
    assert named
    found = set(re.findall(r"`(\w+)`", named[1]))
    assert found == {"all"} | project["optional-dependencies"].keys() & set(store_names())


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)#:]+)\)", README))
def test_every_link_leads_somewhere(path: str) -> None:
    assert (ROOT / path).exists()
