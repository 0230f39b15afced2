"""What the command line imports before it has anything to do."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {
    "chromadb", "faiss", "grpc", "jinja2", "jsonschema", "numpy", "orjson", "pinecone", "psycopg2",
    "pyarrow", "pygal", "qdrant_client", "qdrant_edge", "rich", "weaviate", "yaml",
}  # fmt: skip
CLIENTS = HEAVY - {"jinja2", "jsonschema", "numpy", "orjson", "rich", "yaml"}


def modules_imported_by(function: str, arguments: list[str]) -> set[str]:
    """Top-level names in ``sys.modules`` once `runner.cli` has run with *arguments*."""
    code = f"""
import json, sys
from runner import cli
try:
    code = cli.{function}({arguments!r})
except SystemExit as ended:
    code = ended.code
print(json.dumps([code, sorted({{name.partition(".")[0] for name in sys.modules}})]))
"""
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    exit_code, names = json.loads(ended.stdout.splitlines()[-1])
    assert exit_code == 0, ended.stderr
    return set(names)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        ("main", ["--help"]),
        ("main", ["--version"]),
        ("main", ["run", "--help"]),
        ("main_run", ["--help"]),
    ],
)
def test_help_imports_nothing_heavy(function: str, arguments: list[str]) -> None:
    """`runner --help` answers at once, whatever is installed."""
    assert not modules_imported_by(function, arguments) & HEAVY


def test_lint_imports_no_client(tmp_path: object) -> None:
    """A plan can be checked on a machine that has none of the stores' clients."""
    plan = f"{tmp_path}/plan.yaml"
    with open(plan, "w", encoding="utf-8") as file:
        file.write(
            "source: {store: chroma, path: here, collection: c}\n"
            "target: {store: pgvector, dsn: '${PG_DSN}', table: t}\n"
        )
    assert not modules_imported_by("main", ["lint", plan]) & CLIENTS
