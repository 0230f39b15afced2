"""What all tests share, and which stores of a test run were doubles."""

from __future__ import annotations

import os

import pytest

pytest.register_assert_rewrite("runner.testing")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which stores were real in this run."""
    real = ["chroma (embedded and server)", "pgvector (PostgreSQL)", "faiss", "files",
            "qdrant (embedded engine)"]  # fmt: skip
    double = []
    variables = {"qdrant (server)": "QDRANT_TEST_URL", "pinecone": "PINECONE_TEST_HOST"}
    for store, variable in variables.items():
        (real if os.environ.get(variable) else double).append(store)
    terminalreporter.write_sep("-", "stores")
    terminalreporter.write_line(f"real: {', '.join(real)}")
    if double:
        terminalreporter.write_line(
            f"doubles: {', '.join(double)}: ours; "
            f"set {', '.join(variables[each] for each in double)} for real ones"
        )
