"""The README is true: its reference is the schema's, and every command is in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from runner.plan.reference import markdown

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_plan_reference_is_generated_from_the_schema() -> None:
    found = README.split("<!-- reference:begin -->")[1].split("<!-- reference:end -->")[0]
    assert found.strip() == markdown().strip()


@pytest.mark.parametrize(
    "command",
    re.findall(r'command\(\s*"(\w+)"', (ROOT / "runner" / "cli.py").read_text()),
)
def test_every_command_is_documented(command: str) -> None:
    assert re.search(rf"`(runner )?{command} ", README), command


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)#:]+)\)", README))
def test_every_link_leads_somewhere(path: str) -> None:
    assert (ROOT / path).exists()
