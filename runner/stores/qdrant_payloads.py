"""How a document and metadata lie in a Qdrant payload.

Metadata are the payload's own fields, or all below one of them (``metadata_key``), as LangChain
has them.  The document is one field (``document_field``), or the text inside a LlamaIndex node.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

NODE = "_node_content"
"""The field where LlamaIndex keeps a node as JSON; in Qdrant its text lies in there."""

_BOTH = "`layout: llama_index` on the source too makes it one"


# Every other key is quoted in a path, which says no quotes or backslashes within a key.
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_QUOTED = re.compile(r'"([^"\\]*)"')


def path_of(field: str) -> str | None:
    """The JSON path of a field; None if none can say it."""
    if _BARE.fullmatch(field):
        return field
    quoted = f'"{field}"'
    return quoted if _QUOTED.fullmatch(quoted) else None


def field_of(path: str) -> str:
    """The field of a JSON path; the path itself where that leads into an object."""
    quoted = _QUOTED.fullmatch(path)
    return quoted[1] if quoted else path


@dataclass(frozen=True)
class PayloadLayout:
    """Where things lie.

    Attributes:
        document_field: The field that holds the document.
        metadata_key: The field that all metadata lie below; None where they are the payload.
        nodes: Whether the document of a record with a LlamaIndex node is that node's text.
    """

    document_field: str = "document"
    metadata_key: str | None = None
    nodes: bool = False

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> PayloadLayout:
        """As a plan's keys of one side say."""
        return cls(
            str(options.get("document_field") or "document"),
            options.get("metadata_key"),
            options.get("layout") == "llama_index",
        )

    @property
    def reserved_keys(self) -> frozenset[str]:
        """Metadata keys that the document takes."""
        return frozenset() if self.metadata_key is not None else frozenset({self.document_field})

    @property
    def document_paths(self) -> tuple[str, ...] | None:
        """JSON paths of what is needed to tell documents; None if no path can say it."""
        path = path_of(self.document_field)
        if path is None:
            return None
        return (path, NODE) if self.nodes else (path,)

    def placed(self, path: str) -> str | None:
        """The JSON path of *path* within the metadata; None if none can say it."""
        if self.metadata_key is None:
            return path
        above = path_of(self.metadata_key)
        return None if above is None else f"{above}.{path}"

    def within(self, path: str) -> str | None:
        """The path within the metadata of a JSON path; None of the document's field."""
        if field_of(path) == self.document_field:
            return None
        above = None if self.metadata_key is None else path_of(self.metadata_key)
        return path if above is None else path.removeprefix(f"{above}.")

    def packed(
        self, objects: Sequence[dict[str, Any]], documents: Sequence[str | None]
    ) -> tuple[Sequence[dict[str, Any]], dict[int, str]]:
        """Payloads; row → reason where the document's field is taken."""
        key, field = self.metadata_key, self.document_field
        if key is None and not self.nodes and not any(each is not None for each in documents):
            return objects, {}
        failed, payloads = {}, []
        for row, (each, document) in enumerate(zip(objects, documents, strict=True)):
            payload = each
            if key is not None:
                payload = {key: each} if each else {}
            node = self._node(payload)
            if document is None:
                if node is not None and node["text"]:
                    failed[row] = f"its {NODE} holds a text, and it has no document; " + _BOTH
            elif node is not None and self._takes(document, node, payload):
                payload = {**payload, NODE: json.dumps({**node, "text": document})}
            else:
                if field in payload:
                    failed[row] = f"its metadata has a field {field!r}, where its document goes"
                payload = {**payload, field: document}
            payloads.append(payload)
        return payloads, failed

    def _takes(self, document: str, node: Mapping[str, Any], payload: Mapping[str, Any]) -> bool:
        """Whether *document* comes back out of *node*, and the node as it was."""
        return bool(document) and node["text"] == "" and payload[NODE] == json.dumps(node)

    def unpacked(
        self, payloads: Sequence[dict[str, Any]]
    ) -> tuple[list[str | None], list[dict[str, Any]]]:
        """Documents and metadata; takes *payloads* apart in place.

        Whatever is not text where a document goes is ordinary metadata, and so is a payload
        that does not lie as expected.
        """
        documents: list[str | None] = [None] * len(payloads)
        metadata = list(payloads)
        for row, payload in enumerate(payloads):
            document = payload.get(self.document_field)
            if type(document) is str:
                del payload[self.document_field]
                documents[row] = document
            else:
                node = self._node(payload)
                if node is not None and node["text"]:
                    payload[NODE] = json.dumps({**node, "text": ""})
                    documents[row] = node["text"]
            if self.metadata_key is not None:
                metadata[row] = self._raised(payload)
        return documents, metadata

    def _raised(self, payload: dict[str, Any]) -> dict[str, Any]:
        """Metadata below their key, and what else the payload has, if no name is taken twice."""
        below = payload.get(self.metadata_key or "")
        if not isinstance(below, dict) or not below:
            return payload
        beside = {name: each for name, each in payload.items() if name != self.metadata_key}
        return payload if beside.keys() & below.keys() else {**below, **beside}

    def _node(self, payload: Mapping[str, Any]) -> dict[str, Any] | None:
        """The LlamaIndex node in there."""
        content = payload.get(NODE) if self.nodes else None
        if type(content) is not str:
            return None
        try:
            node = json.loads(content)
        except ValueError:
            return None  # another application's field of that name
        return node if isinstance(node, dict) and type(node.get("text")) is str else None
