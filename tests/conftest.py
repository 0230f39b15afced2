"""What all tests share, and which stores of a test run were doubles."""

from __future__ import annotations

import os

import pytest

from tests.servers import weaviate

pytest.register_assert_rewrite("runner.testing")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which stores were real in this run."""
    real = ["chroma (embedded and server)", "pgvector (PostgreSQL)", "faiss", "files",
            "qdrant (embedded engine)"]  # fmt: skip
    double = []
    (real if os.environ.get("QDRANT_TEST_URL") else double).append("qdrant (server)")
    (real if weaviate.is_there() else double).append("weaviate")
    (real if os.environ.get("PINECONE_TEST_HOST") else double).append("pinecone")
    given = os.environ.get("CHROMA_CLOUD_TEST_API_KEY")
    (real if given else double).append("chroma (Cloud)")
    terminalreporter.write_sep("-", "stores")
    terminalreporter.write_line(f"real: {', '.join(real)}")
    if double:
        terminalreporter.write_line(
            f"doubles: {', '.join(double)}: ours; QDRANT_TEST_URL and PINECONE_TEST_HOST name a "
            "real Qdrant and Pinecone, and `make weaviate-server` builds a real Weaviate, which "
            "WEAVIATE_TEST_URL may name too; for Chroma Cloud see tests/conformance/test_chroma.py"
        )
