"""The plan schema: its cases on file, its descriptions, the reference made from it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from runner import bundled
from runner.errors import PlanError
from runner.plan import schema
from runner.plan.load import load_document
from runner.plan.model import Hazard, IfExists, OnError, Unsupported
from runner.plan.reference import markdown

CASES = Path(__file__).parent.parent / "schema_cases"
ENVIRONMENT = {
    "PG_DSN": "postgresql://app:s3cret@db/app",
    "PG_PASSWORD": "s3cret",
    "QDRANT_KEY": "12345",
    "WEAVIATE_KEY": "w3aviate-k3y",
    "PINECONE_API_KEY": "p1necone-k3y",
    "GRPC_PORT": "50052",
    "TOKEN": "t0ken-t0ken",
}


def _cases(kind: str) -> list[str]:
    found = sorted(path.name for path in (CASES / kind).glob("*.yaml"))
    assert found
    return found


@pytest.mark.parametrize("name", _cases("valid"))
def test_a_valid_plan_loads(name: str) -> None:
    load_document(CASES / "valid" / name, environ=ENVIRONMENT)


@pytest.mark.parametrize("name", _cases("invalid"))
def test_an_invalid_plan_is_refused_in_these_words(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(CASES / "invalid")
    with pytest.raises(PlanError) as caught:
        load_document(name, environ=ENVIRONMENT)
    assert f"{caught.value}\n" == Path(name).with_suffix(".expected").read_text("utf-8")


@pytest.mark.parametrize("name", _cases("invalid"))
def test_no_message_shows_a_secret(name: str) -> None:
    with pytest.raises(PlanError) as caught:
        load_document(CASES / "invalid" / name, environ=ENVIRONMENT)
    for secret in ("hunter2", *ENVIRONMENT.values()):
        assert secret not in str(caught.value)
        assert secret not in repr(caught.value.problems)


def test_every_expectation_belongs_to_a_case() -> None:
    stems = {path.stem for path in (CASES / "invalid").glob("*.yaml")}
    assert stems == {path.stem for path in (CASES / "invalid").glob("*.expected")}


def _loaded() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bundled.schemas() / schema.FILE_NAME).read_text("utf-8"))
    return found


def _objects(node: Any, place: str = "#") -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(node, dict):
        yield place, node
        for key, each in node.items():
            if key not in ("examples", "default"):
                yield from _objects(each, f"{place}/{key}")
    elif isinstance(node, list):
        for at, each in enumerate(node):
            yield from _objects(each, f"{place}/{at}")


def _is_rule(place: str) -> bool:
    """Whether it only tells cases apart, so that no editor shows it."""
    return bool(re.search(r"/(if|then|else|anyOf|not)(/|$)", place))


def _merged(part: Mapping[str, Any]) -> dict[str, Any]:
    if "$ref" not in part:
        return dict(part)
    return {**_merged(schema.definition(part["$ref"])), **part}


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(_loaded())


def test_every_key_has_a_description() -> None:
    lacking = [
        f"{place}/properties/{key}"
        for place, part in _objects(_loaded())
        if "properties" in part and not _is_rule(place)
        for key, below in part["properties"].items()
        if isinstance(below, dict) and not _merged(below).get("description")
    ]
    assert lacking == []


def test_every_mapping_is_closed_but_those_with_free_keys() -> None:
    free = {
        place.removeprefix("#/$defs/")
        for place, part in _objects(_loaded())
        if "properties" in part
        and not _is_rule(place)
        and place != "#/properties"
        and not place.endswith("/properties")
        and part.get("additionalProperties") is not False
    }
    assert free == {"source", "target", "other_source", "other_target", "transform"}


def test_nothing_is_decided_by_one_of() -> None:
    assert [place for place, part in _objects(_loaded()) if "oneOf" in part] == []


def test_every_reference_leads_somewhere() -> None:
    loaded = _loaded()
    used = {part["$ref"] for _, part in _objects(loaded) if isinstance(part.get("$ref"), str)}
    assert used == {f"#/$defs/{name}" for name in loaded["$defs"]}


def test_every_default_and_example_is_allowed_by_its_own_schema() -> None:
    loaded = _loaded()
    for place, part in _objects(loaded):
        if place.endswith("/properties"):
            continue
        examples = [*part.get("examples", ()), *([part["default"]] if "default" in part else ())]
        for example in examples:
            alone = {**part, "$defs": loaded["$defs"]}
            jsonschema.Draft202012Validator(alone).validate(example)


def test_the_words_of_the_schema_are_those_of_the_model() -> None:
    loaded = _loaded()
    assert loaded["properties"]["allow"]["items"]["enum"] == [each.value for each in Hazard]
    assert loaded["$defs"]["if_exists"]["enum"] == [each.value for each in IfExists]
    assert loaded["$defs"]["on_error"]["enum"] == [each.value for each in OnError]
    assert loaded["$defs"]["unsupported"]["enum"] == [each.value for each in Unsupported]


def test_the_reference_names_every_key() -> None:
    text = markdown()
    keys = {
        key
        for place, part in _objects(_loaded())
        if "properties" in part and not _is_rule(place) and not place.endswith("/properties")
        for key in part["properties"]
    }
    missing = [key for key in keys if not re.search(rf"[`.]{key}[`:]", text)]
    assert missing == []
    assert all(line.count(" | ") >= 3 for line in text.splitlines() if line.startswith("| "))


@pytest.mark.parametrize(
    "store", schema.plan_schema()["$defs"]["source"]["properties"]["store"]["enum"]
)
def test_the_reference_has_the_keys_of_both_sides_of_a_store(store: str) -> None:
    section = markdown().split(f"### `store: {store}`")[1].split("###")[0]
    for side in ("source", "target"):
        part = schema.definition(f"#/$defs/{store}_{side}")
        for key, below in part["properties"].items():
            inner = [] if key == "connection" else _merged(below).get("properties", {})
            for path in (key, *(f"{key}.{each}" for each in inner)):
                assert path == "store" or f"| `{path}` |" in section, path
