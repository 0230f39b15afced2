"""Where LangChain and LlamaIndex look for texts and metadata (plan key ``layout``).

A layout is no more than options of a store under another name: those that the plan itself
gives win.  They are the defaults of langchain-qdrant 1.1.0, langchain-postgres 0.0.19 (its
`PGVectorStore`), langchain-pinecone 0.2.13, langchain-weaviate 0.0.8 and llama-index-core
0.14.25.
Chroma has a place of its own for both, where either library looks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "langchain": {
        "qdrant": {"document_field": "page_content", "metadata_key": "metadata"},
        "pgvector": {
            "columns": {
                "id": "langchain_id",
                "vector": "embedding",
                "document": "content",
                "metadata": "langchain_metadata",
            }
        },
        "pinecone": {"document_field": "text"},
        "weaviate": {"document_field": "text"},
    },
    "llama_index": {
        "qdrant": {"document_field": "text"},
        "pgvector": {
            "columns": {
                "id": "node_id",
                "serial": "id",
                "vector": "embedding",
                "document": "text",
                "metadata": "metadata_",
            }
        },
        "pinecone": {"document_field": "text"},
        "weaviate": {"document_field": "text"},
    },
}


def options_of(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the layout of a side stands for, with what the plan itself says of them.

    Args:
        keys: The plan's keys of that side.
    """
    presets = _PRESETS.get(str(keys.get("layout")), {}).get(keys["store"], {})
    return {
        key: {**each, **keys.get(key, {})} if isinstance(each, Mapping) else keys.get(key, each)
        for key, each in presets.items()
    }
