"""Our double of a server, and a certificate authority."""

from __future__ import annotations

import pytest

from tests.servers.qdrant_double import QdrantDouble
from tests.servers.tls import Authority


@pytest.fixture
def double():
    with QdrantDouble("127.0.0.63") as running:
        yield running


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path / "ca")
