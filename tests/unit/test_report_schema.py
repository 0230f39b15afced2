"""The JSON form of a result, against its schema."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jsonschema
import pytest

from runner import bundled, jsonvalues
from runner.results import RunResult, to_json
from tests.unit.report_examples import FAILED, HOSTILE, PASSED

SCHEMA: dict[str, Any] = json.loads(
    (bundled.schemas() / "report.v1.schema.json").read_text("utf-8")
)


@pytest.mark.parametrize("result", [PASSED, FAILED, HOSTILE], ids=["passed", "failed", "hostile"])
def test_a_result_is_valid_json_of_its_schema(result: RunResult) -> None:
    document = jsonvalues.loads(jsonvalues.dumps(to_json(result)))
    jsonschema.Draft202012Validator(SCHEMA).validate(document)


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def test_the_schema_knows_every_field_of_the_result_and_no_other() -> None:
    fields = {each.name for each in dataclasses.fields(RunResult)} | {"exit_code"}
    assert set(SCHEMA["properties"]) == set(SCHEMA["required"]) == fields


def test_every_key_is_described() -> None:
    def undescribed(part: Any, path: str) -> list[str]:
        found = []
        for name, each in part.get("properties", {}).items():
            if "$ref" not in each and not each.get("description"):
                found.append(f"{path}.{name}")
            found += undescribed(each, f"{path}.{name}")
        for name, each in part.get("$defs", {}).items():
            found += undescribed(each, name)
        return found

    assert undescribed(SCHEMA, "") == []


def test_a_wrong_document_is_refused() -> None:
    document = to_json(PASSED)
    document["verdict"] = "maybe"
    with pytest.raises(jsonschema.ValidationError, match="maybe"):
        jsonschema.Draft202012Validator(SCHEMA).validate(document)
