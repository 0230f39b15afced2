"""A result's report as files: JSON, Markdown and HTML."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from runner import jsonvalues
from runner.errors import JournalError
from runner.report.html import to_html
from runner.report.markdown import to_markdown
from runner.results import RunResult, to_json


def write_report(result: RunResult, folder: Path, name: str) -> None:
    """A redacted result as JSON, Markdown and HTML, each put in place whole."""
    forms: dict[str, Callable[[], bytes]] = {
        "json": lambda: jsonvalues.dumps(to_json(result)),
        "md": lambda: to_markdown(result).encode("utf-8", "replace"),
        "html": lambda: to_html(result).encode("utf-8", "replace"),
    }
    for suffix, make in forms.items():
        temporary = folder / f"{name}.{suffix}.tmp"
        try:
            temporary.write_bytes(make())
            temporary.replace(folder / f"{name}.{suffix}")
        except OSError as error:
            raise JournalError(
                f"{folder}: the report cannot be written: {error.strerror}",
                "what it is about is in the journal: make room, and repeat the command",
            ) from error
