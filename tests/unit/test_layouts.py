"""Where LangChain and LlamaIndex look for texts and metadata."""

from __future__ import annotations

import json

import pytest

from runner.plan.load import load_document
from runner.stores.qdrant_payloads import NODE, PayloadLayout

LANGCHAIN = PayloadLayout("page_content", "metadata")
LLAMA_INDEX = PayloadLayout("text", None, nodes=True)


def options(tmp_path, target):
    path = tmp_path / "plan.yaml"
    path.write_text(f"source: {{store: chroma, path: a, collection: docs}}\ntarget: {target}\n")
    return load_document(path).target.options


def test_a_layout_stands_for_the_options_of_its_store(tmp_path):
    found = options(tmp_path, "{store: qdrant, path: b, collection: d, layout: langchain}")
    assert (found["document_field"], found["metadata_key"]) == ("page_content", "metadata")
    table = "{store: pgvector, dsn: 'host=x', table: t, layout: %s}"
    assert options(tmp_path, table % "langchain")["columns"] == {
        "id": "langchain_id",
        "vector": "embedding",
        "document": "content",
        "metadata": "langchain_metadata",
    }
    assert options(tmp_path, table % "llama_index")["columns"]["id"] == "node_id"


def test_keys_that_are_given_besides_win(tmp_path):
    found = options(
        tmp_path,
        "{store: pgvector, dsn: 'host=x', table: t, layout: langchain, columns: {id: key}}",
    )
    assert (found["columns"]["id"], found["columns"]["document"]) == ("key", "content")
    found = options(
        tmp_path,
        "{store: qdrant, path: b, collection: d, layout: langchain, document_field: body}",
    )
    assert (found["document_field"], found["metadata_key"]) == ("body", "metadata")


@pytest.mark.parametrize(
    ("metadata", "document", "payload"),
    [
        ({"a": 1}, "text", {"metadata": {"a": 1}, "page_content": "text"}),
        ({}, "text", {"page_content": "text"}),
        ({}, None, {}),
        ({"metadata": {"b": 2}}, None, {"metadata": {"metadata": {"b": 2}}}),
        ({"page_content": "mine"}, "text",
         {"metadata": {"page_content": "mine"}, "page_content": "text"}),
    ],
)  # fmt: skip
def test_metadata_below_a_key_come_back(metadata, document, payload):
    (packed,), failed = LANGCHAIN.packed([metadata], [document])
    assert (packed, failed) == (payload, {})
    assert LANGCHAIN.unpacked([dict(packed)]) == ([document], [metadata])


def test_what_lies_beside_the_key_is_metadata_too_unless_a_name_is_taken_twice():
    payloads = [{"metadata": {"a": 1}, "b": 2}, {"metadata": {"a": 1}, "a": 2}, {"metadata": 3}]
    documents, found = LANGCHAIN.unpacked(payloads)
    assert documents == [None] * 3
    assert found == [{"a": 1, "b": 2}, {"metadata": {"a": 1}, "a": 2}, {"metadata": 3}]


def node(text, **more):
    return json.dumps({"id_": "n1", "text": text, "metadata": {"ü": 1}, **more})


def test_the_text_of_a_node_is_the_document():
    payload = {NODE: node("hello"), "_node_type": "TextNode"}
    documents, metadata = LLAMA_INDEX.unpacked([dict(payload)])
    assert documents == ["hello"]
    assert metadata == [{NODE: node(""), "_node_type": "TextNode"}]
    assert LLAMA_INDEX.packed(metadata, documents) == ([payload], {})


@pytest.mark.parametrize(
    ("content", "document"),
    [
        (node("").replace(" ", ""), "hello"),  # not as Python writes it
        (node(""), ""),
        ("[1]", "hello"),
        ("no json", "hello"),
        ('{"text": null}', "hello"),
        (7, "hello"),
    ],
)
def test_a_node_that_cannot_take_the_document_leaves_it_in_its_field(content, document):
    (packed,), failed = LLAMA_INDEX.packed([{NODE: content}], [document])
    assert (packed, failed) == ({NODE: content, "text": document}, {})
    assert LLAMA_INDEX.unpacked([dict(packed)]) == ([document], [{NODE: content}])


def test_a_node_with_a_text_and_no_document_is_refused():
    _, failed = LLAMA_INDEX.packed([{NODE: node("hello")}], [None])
    assert "layout: llama_index" in failed[0]


def test_a_field_where_the_document_goes_is_refused():
    assert "'text'" in LLAMA_INDEX.packed([{"text": 1}], ["hello"])[1][0]
    assert PayloadLayout().packed([{"document": 1}], ["hello"])[1].keys() == {0}
