"""The suite over Weaviate: a real server where one can be had.

``WEAVIATE_TEST_URL`` (and ``WEAVIATE_TEST_GRPC_PORT``, where it is not 50051) names one
that runs already; collections called ``RunnerTest…`` are made and dropped there.
"""

from __future__ import annotations

import os
import uuid

import pytest

from runner.stores.weaviate import WeaviateStore
from runner.testing import Place, StoreConformance
from tests.servers import weaviate


def place_on(address: weaviate.WeaviateAddress, tmp_path, **options) -> Place:
    where = {"url": address.url, "grpc_port": address.grpc_port}
    if os.environ.get("WEAVIATE_TEST_KEY"):
        where["api_key"] = os.environ["WEAVIATE_TEST_KEY"]
    collection = f"RunnerTest{uuid.uuid4().hex}"
    return Place(WeaviateStore, {**where, "collection": collection, **options}, tmp_path)


@pytest.mark.skipif(not weaviate.is_there(), reason="there is no weaviate-server here")
class TestRealServer(StoreConformance):
    store = WeaviateStore
    examples = 10

    @pytest.fixture
    def place(self, tmp_path):
        place = place_on(weaviate.shared(), tmp_path)
        yield place
        with place.open() as target:
            target.drop()
