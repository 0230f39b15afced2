"""The schema and the library on transforms: neither says what the other does not."""

from __future__ import annotations

import importlib.util
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner import bundled
from runner.plan import schema
from runner.plan.model import OnError, TransformStep
from runner.plan.yaml_text import Items, Node, parse
from runner.plan.yaml_text import Mapping as YamlMapping
from runner.transform_loader import bundled_names, lint_step

HERE = Path(__file__).parent
PLACE = {"store": "files", "path": "a.jsonl"}
# What the library refuses beyond what a schema can say.
BEYOND = re.compile(
    r"not a template|not a regular expression|a part of a text cannot become null"
    r"|the format has no year|not a format that dates|fields would become"
)


def described() -> dict[str, Mapping[str, Any]]:
    """Transform → its schema, references followed."""
    step = schema.definition("#/$defs/transform")["properties"]
    return {name: merged(part) for name, part in step.items() if name != "on_error"}


def merged(part: Mapping[str, Any]) -> Mapping[str, Any]:
    if "$ref" not in part:
        return part
    return {**merged(schema.definition(part["$ref"])), **part}


def factories() -> dict[str, Callable[..., Any]]:
    """Transform → the function that is marked with its name."""
    found = {}
    for file in bundled.transforms().glob("*.py"):
        spec = importlib.util.spec_from_file_location(f"_of_the_library_{file.stem}", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for each in vars(module).values():
            if hasattr(each, "transform_name"):
                found[each.transform_name] = each
    return found


LIBRARY = factories()


def by_schema(name: str, args: Any) -> list[str]:
    plan = {"source": PLACE, "target": PLACE, "transforms": [{name: args}]}
    return [
        f"{each.keys}: {each.what}" for each in schema.faults(plan, lambda _, value: str(value))
    ]


def by_library(name: str, args: Any) -> list[str]:
    step = TransformStep(name, args, OnError.FAIL, "transforms[0]")
    return [f"{path}: {what}" for path, what, _ in lint_step(step, plan_dir=HERE, root=HERE)]


def test_the_schema_describes_every_transform_and_no_other() -> None:
    assert set(described()) - {"python"} == set(LIBRARY) == set(bundled_names())


@pytest.mark.parametrize("name", [*LIBRARY])
def test_the_schema_has_the_parameters_of_the_factory(name: str) -> None:
    """One parameter takes the arguments whole; several are keys."""
    parameters = inspect.signature(LIBRARY[name]).parameters
    part = described()[name]
    if len(parameters) == 1:
        assert "properties" not in part
        return
    keys = {each.removesuffix("_"): parameter for each, parameter in parameters.items()}
    empty = inspect.Parameter.empty
    assert set(part["properties"]) == set(keys)
    assert set(part.get("required", [])) == {
        key for key, each in keys.items() if each.default is empty
    }
    for key, each in keys.items():
        assert merged(part["properties"][key]).get("default", empty) == each.default, key


def literals(hint: Any) -> Iterator[Any]:
    if get_origin(hint) is Literal:
        yield from get_args(hint)
    else:
        for each in get_args(hint):
            yield from literals(each)


def enumerated(part: Any) -> Iterator[Any]:
    if isinstance(part, dict):
        yield from part.get("enum", ())
        for each in merged(part).values():
            yield from enumerated(each)


@pytest.mark.parametrize("name", [*LIBRARY])
def test_the_schema_has_the_words_of_the_factory(name: str) -> None:
    hints = get_type_hints(LIBRARY[name])
    del hints["return"]
    assert set(enumerated(described()[name])) == {
        word for hint in hints.values() for word in literals(hint)
    }


def plain(node: Node) -> Any:
    if isinstance(node, YamlMapping):
        return {key: plain(each) for key, each in node.entries.items()}
    return [plain(each) for each in node.items] if isinstance(node, Items) else node.value()


def examples() -> list[tuple[str, Any]]:
    """Those of the schema, and those that a factory's docstring writes as YAML."""
    found = [(name, each) for name, part in described().items() for each in part["examples"]]
    for name, factory in LIBRARY.items():
        written = re.findall(r"``(\{\w+: .*?\})``", inspect.getdoc(factory) or "")
        found += [(name, plain(parse(each))) for each in written]
    return [each for each in found if each[0] != "python"]


EXAMPLES = examples()


@pytest.mark.parametrize(("name", "args"), EXAMPLES)
def test_an_example_is_right_by_both(name: str, args: Any) -> None:
    assert by_schema(name, args) == []
    assert by_library(name, args) == []


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("rename", {"a": ""}), ("rename", {"a": 1}), ("rename", {}), ("rename", ["a"]),
        ("keep", "a"), ("keep", []), ("drop", [1]), ("drop", {"a": "b"}),
        ("cast", {"a": "integer"}), ("cast", "int"), ("default", {}), ("default", ["a"]),
        ("template", {"a": 1}), ("template", "{{ id }}"),
        ("split", {"a": ""}), ("split", {"a": {"into": ["x"]}}), ("split", {"a": {"by": ""}}),
        ("split", {"a": {"by": ",", "into": []}}), ("split", {"a": {"by": ",", "from": ["x"]}}),
        ("split", {"a": {"by": ",", "into": ["x", "x"]}}), ("split", {"a": [","]}),
        ("join", {"a": {}}), ("join", {"a": {"from": "b"}}), ("join", {"a": {"by": None}}),
        ("flatten", False), ("flatten", None), ("flatten", []), ("flatten", "a"),
        ("flatten", {"sep": ""}), ("unflatten", {"fields": False}), ("unflatten", {"by": "."}),
        ("hash", "a"), ("hash", {"salt": "x"}), ("hash", {"fields": ["a"], "algorithm": "md5"}),
        ("redact", {"with": "x"}), ("redact", {"fields": ["a"], "with": 3}), ("redact", True),
        ("parse_date", {"d": "iso"}), ("parse_date", {"d": "auto\n"}), ("parse_date", ["d"]),
        ("lower", "a"), ("lower", [None]), ("trim", {}),
        ("python", "clean.py"), ("python", "clean:f"), ("python", "clean.py:"), ("python", 1),
    ],
)  # fmt: skip
def test_a_mistake_is_one_by_both(name: str, args: Any) -> None:
    assert by_schema(name, args)
    assert by_library(name, args)


JUNK = st.sampled_from([
    None, True, False, 3, 1.5, "", "x", "a*", "%Y", "%d.%m.%Y %Q", "auto", "int", "{{ id }}", "{{",
    "(", "sha512", [], ["a"], ["a", ""], ["a", "a"], [1], {}, {"a": "b"}, {"a": ""}, {"by": ","},
    {"by": ""}, {"fields": ["a"]}, {"a": {"by": ",", "into": ["x"]}}, {"a": {"from": ["x"]}},
])  # fmt: skip
KEYS = st.sampled_from(
    ["a", "by", "into", "from", "fields", "sep", "algorithm", "salt", "with", "pattern"]
)


def altered(value: Any) -> st.SearchStrategy[Any]:
    """*value* as it is, or with something else in one place."""
    ways = [st.just(value), JUNK]
    if isinstance(value, dict):
        ways.append(st.builds(lambda key, item: {**value, key: item}, KEYS, JUNK))
        for key, item in value.items():
            others = {each: other for each, other in value.items() if each != key}
            ways.append(st.just(others))
            ways.append(st.builds(lambda new, key=key: {**value, key: new}, altered(item)))
    if isinstance(value, list):
        ways.append(JUNK.map(lambda item: [*value, item]))
    return st.one_of(ways)


@given(
    st.sampled_from(EXAMPLES).flatmap(
        lambda example: st.tuples(st.sampled_from(sorted(LIBRARY)), altered(example[1]))
    )
    | st.sampled_from(EXAMPLES).flatmap(
        lambda example: st.tuples(st.just(example[0]), altered(example[1]))
    )
)
def test_schema_and_library_agree(case: tuple[str, Any]) -> None:
    """What one refuses the other does, but for what only code can know."""
    name, args = case
    refused, beyond = by_schema(name, args), by_library(name, args)
    if refused:
        assert beyond
    else:
        assert all(BEYOND.search(each) for each in beyond)


def test_a_name_of_ones_own_takes_any_arguments() -> None:
    for args in (None, 1, "x", [1], {"a": {"b": None}}):
        assert by_schema("shout", args) == []
