"""Record templates: Jinja2 expressions and filters over one record, and nothing else.

Plans are reviewed, but the people who review them should not have to think about
sandbox escapes or memory, so everything is an allow-list: the kinds of expression,
the filters, the tests, the methods of texts.  There are no statements (``{% %}``),
no Python attributes at all (``metadata.items`` is the field ``items``), and every
operation that can grow a text or a number is bounded before it is carried out.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn
from urllib.parse import quote

from jinja2 import StrictUndefined, TemplateSyntaxError, Undefined, UndefinedError, nodes
from jinja2.exceptions import SecurityError
from jinja2.filters import FILTERS
from jinja2.runtime import Context
from jinja2.sandbox import SandboxedEnvironment
from jinja2.tests import TESTS

from runner import jsonvalues
from runner.errors import PlanError, TransformError

VARIABLES = ("id", "document", "metadata", "namespace")
"""What a template sees."""

MAX_OUTPUT_BYTES = 64 * 1024
"""The longest text that a template may make, in UTF-8."""

_MAX_TEMPLATE_CHARACTERS = 16 * 1024
_MAX_NODES = 500
_MAX_DEPTH = 40
# Documents may be large, and a template may take a part of one.
_MAX_VALUE_LENGTH = 16 * 1024 * 1024
_MAX_BITS = 4096
_SHOWN_FIELDS = 12


def compile_template(text: str) -> Callable[[Mapping[str, Any]], str]:
    """A function that renders *text* for the variables ``id, document, metadata, namespace``.

    The result is always text, also of ``{{ metadata.year + 1 }}`` (a ``cast`` after it
    makes a number): true and false, lists and objects appear as JSON has them.  Null is
    refused unless ``default('…', true)`` says what to write for it.  The function raises
    `TransformError` without the record's values.

    Raises:
        PlanError: *text* is not a template, or uses what templates may not.
    """
    if len(text) > _MAX_TEMPLATE_CHARACTERS:
        raise PlanError(
            f"the template has {len(text):,} characters; {_MAX_TEMPLATE_CHARACTERS:,} are the limit"
        )
    try:
        _refuse_statements(text)
        tree = _ENVIRONMENT.parse(text)
        _check(tree)
        compiled = _ENVIRONMENT.from_string(_bounded_joins(tree))
    except TemplateSyntaxError as error:
        raise PlanError(
            f"not a template: {_first_lower(error.message or 'wrong syntax')}"
        ) from error
    except (RecursionError, SyntaxError, MemoryError) as error:
        raise PlanError("the template is nested too deeply") from error
    return partial(_render, compiled.root_render_func)


def _first_lower(text: str) -> str:
    return text[:1].lower() + text[1:].rstrip(".")


def _render(chunks: Callable[[Context], Iterator[str]], variables: Mapping[str, Any]) -> str:
    # Template.render makes a context with globals, exports and blocks, which costs more
    # than the rendering of a usual template.
    context = Context(_ENVIRONMENT, variables, None, {})  # type: ignore[arg-type]
    try:
        text = _capped(chunks(context))
    except (UndefinedError, SecurityError) as error:
        raise TransformError(error.message or "the template cannot be rendered") from error
    except TransformError:
        raise
    except Exception as error:
        # The texts of these tend to quote the value.
        raise TransformError(f"{type(error).__name__} in the template") from error
    return text


def _capped(chunks: Iterable[str]) -> str:
    parts: list[str] = []
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > MAX_OUTPUT_BYTES:
            _refuse_output()
        parts.append(chunk)
    text = "".join(parts)
    if not text.isascii():
        try:
            size = len(text.encode())
        except UnicodeEncodeError as error:
            raise TransformError("the template makes half a surrogate pair") from error
        if size > MAX_OUTPUT_BYTES:
            _refuse_output()
    return text


def _refuse_output() -> NoReturn:
    raise TransformError(f"the template makes more than {MAX_OUTPUT_BYTES // 1024} KiB of text")


# what a template may be made of


_EXPRESSIONS = (
    nodes.Add, nodes.And, nodes.Call, nodes.Compare, nodes.Concat, nodes.CondExpr, nodes.Const,
    nodes.Dict, nodes.Div, nodes.Filter, nodes.FloorDiv, nodes.Getattr, nodes.Getitem,
    nodes.Keyword, nodes.List, nodes.Mod, nodes.Mul, nodes.Name, nodes.Neg, nodes.Not,
    nodes.Operand, nodes.Or, nodes.Output, nodes.Pair, nodes.Pos, nodes.Pow, nodes.Slice,
    nodes.Sub, nodes.Template, nodes.TemplateData, nodes.Test, nodes.Tuple,
)  # fmt: skip


def _refuse_statements(text: str) -> None:
    for line, token, _ in _ENVIRONMENT.lex(text):
        if token in ("block_begin", "raw_begin"):
            raise PlanError(
                f"line {line} of the template has a statement; only expressions "
                "(`{{ … }}`) and filters can be used",
                "write a condition as `{{ a if b else c }}`; use `python:` for more",
            )


def _check(tree: nodes.Template) -> None:
    seen = 0
    waiting: list[tuple[nodes.Node, int]] = [(tree, 0)]
    while waiting:
        node, depth = waiting.pop()
        seen += 1
        if depth > _MAX_DEPTH:
            raise PlanError("the template is nested too deeply")
        if seen > _MAX_NODES:
            raise PlanError("the template is too long", "use `python:` for work like this")
        _check_node(node)
        waiting.extend((child, depth + 1) for child in node.iter_child_nodes())


def _check_node(node: nodes.Node) -> None:
    if not isinstance(node, _EXPRESSIONS):
        raise PlanError(f"templates have no {type(node).__name__.lower()}")
    match node:
        case nodes.Name():
            _check_word("variable", node.name, VARIABLES)
        case nodes.Filter():
            _check_word("filter", node.name, _ENVIRONMENT.filters)
        case nodes.Test():
            _check_word("test", node.name, _ENVIRONMENT.tests)
        case nodes.Call():
            if not isinstance(node.node, nodes.Getattr):
                raise PlanError("only methods of texts can be called, as in `document.upper()`")
            _check_word("method", node.node.attr, _METHODS)
    if isinstance(node, nodes.Call | nodes.Filter | nodes.Test) and (
        node.dyn_args is not None or node.dyn_kwargs is not None
    ):
        raise PlanError("`*` and `**` before arguments cannot be used in templates")


def _check_word(kind: str, word: str, known: Iterable[str]) -> None:
    offered = sorted(name for name in known if name != _JOINED)
    if word in offered:
        return
    close = difflib.get_close_matches(word, offered, 1)
    if close:
        hint = f"did you mean `{close[0]}`?"
    elif kind == "variable":
        hint = f"fields are written `metadata.{word}`"
    else:
        hint = f"there are {', '.join(offered)}"
    raise PlanError(f"`{word}` is not a {kind} that templates have", hint)


def _bounded_joins(tree: nodes.Template) -> nodes.Template:
    """*tree* with every ``a ~ b`` as a filter of ours: Jinja2 lets nobody watch over its own."""
    for holder in [tree, *tree.find_all(nodes.Node)]:
        for name, value in list(holder.iter_fields()):
            if isinstance(value, nodes.Concat):
                setattr(holder, name, _joined_filter(value))
            elif isinstance(value, list):
                setattr(
                    holder,
                    name,
                    [_joined_filter(e) if isinstance(e, nodes.Concat) else e for e in value],
                )
    return tree


def _joined_filter(node: nodes.Concat) -> nodes.Filter:
    parts = nodes.List(node.nodes)
    filtered = nodes.Filter(parts, _JOINED, [], [], None, None, lineno=node.lineno)
    filtered.set_environment(_ENVIRONMENT)
    return _bounded_joins(filtered)  # type: ignore[arg-type, return-value]


# what values do


class _Missing(StrictUndefined):
    """Says what is not there, and what is."""

    __slots__ = ()

    @property
    def _undefined_message(self) -> str:
        name, obj = self._undefined_name, self._undefined_obj
        if self._undefined_hint:
            return self._undefined_hint
        if not isinstance(obj, dict):
            known = _kind(obj)
            return f"{known} has no `{name}`" if known else f"`{name}` is undefined"
        fields = sorted(map(str, obj))
        shown = ", ".join(fields[:_SHOWN_FIELDS]) or "nothing"
        more = f" and {len(fields) - _SHOWN_FIELDS} more" if len(fields) > _SHOWN_FIELDS else ""
        return f"`{name}` is undefined; there is {shown}{more}"


def _kind(value: Any) -> str:
    words = {str: "text", list: "a list", int: "a number", float: "a number", bool: "true or false"}
    return "null" if value is None else words.get(type(value), "")


def _require(value: Any) -> None:
    """Say what is missing, if it is."""
    if isinstance(value, Undefined):
        str(value)


class _Method:
    """A method of one text, of those that are offered."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self.call = call


class _Environment(SandboxedEnvironment):
    """Values are JSON, and are reached by their own keys only."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})
    intercepted_unops = frozenset({"-", "+"})

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is dict:
            if attribute in obj:
                return obj[attribute]
        elif type(obj) is str and attribute in _METHODS:
            return _Method(partial(_METHODS[attribute], obj))
        _require(obj)
        return self.undefined(obj=obj, name=attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if type(obj) is dict:
            if type(argument) is str and argument in obj:
                return obj[argument]
        elif type(obj) in (str, list, tuple) and isinstance(argument, int | slice):
            try:
                return obj[argument]
            except IndexError:
                pass
        _require(obj)
        shown = argument if isinstance(argument, str | int) else "…"
        return self.undefined(obj=obj, name=str(shown))

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        del context
        _require(obj)
        if type(obj) is not _Method:
            raise SecurityError("only methods of texts can be called")
        return obj.call(*args, **kwargs)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        del context
        _require(left)
        _require(right)
        if operator == "+" and type(left) is type(right) and type(left) in (str, list):
            _bound(len(left) + len(right))
            return left + right
        return _arithmetic(operator, left, right)

    def call_unop(self, context: Any, operator: str, arg: Any) -> Any:
        del context
        _require(arg)
        _number(operator, arg)
        return -arg if operator == "-" else +arg


def _arithmetic(operator: str, left: Any, right: Any) -> Any:
    _number(operator, left)
    _number(operator, right)
    both_whole = isinstance(left, int) and isinstance(right, int)
    if both_whole and _bits_after(operator, left, right) > _MAX_BITS:
        raise SecurityError(f"`{operator}` makes a number that is too large for a template")
    if operator in ("/", "//", "%") and right == 0:
        raise SecurityError(f"`{operator}` by zero")
    match operator:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
        case "/":
            return left / right
        case "//":
            return left // right
        case "%":
            return left % right
    power = left**right
    if isinstance(power, complex):
        raise SecurityError("`**` has no real result")
    return power


def _number(operator: str, value: Any) -> None:
    if type(value) not in (int, float):
        known = _kind(value) or "an object"
        raise SecurityError(f"`{operator}` needs numbers, found {known}")


def _bits_after(operator: str, left: int, right: int) -> int:
    if operator == "**":
        return left.bit_length() * max(right, 1 if right > -_MAX_BITS else _MAX_BITS)
    if operator == "*":
        return left.bit_length() + right.bit_length()
    return max(left.bit_length(), right.bit_length())


def _bound(length: int) -> None:
    if length > _MAX_VALUE_LENGTH:
        raise SecurityError("a value in the template becomes too long")


def _as_text(value: Any) -> str:
    """What `value` looks like in the output."""
    kind = type(value)
    if kind is str:
        return value  # type: ignore[no-any-return]
    _require(value)
    if value is None:
        raise SecurityError("a value is null; say what to write with `default('…', true)`")
    if kind is int:
        if value.bit_length() > _MAX_BITS:
            raise SecurityError("a number is too large for a template")
        return str(value)
    if kind in (bool, float, list, dict, tuple):
        return _to_json(value)
    raise SecurityError("a method needs brackets, as in `document.upper()`")


def _to_json(value: Any) -> str:
    _require(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise SecurityError("a number is not finite")
    return jsonvalues.dumps(value).decode()


# filters and methods


def _text_of(value: Any) -> str:
    text = _as_text(value)
    _bound(len(text))
    return text


def _replace(text: Any, old: str, new: str, count: int = -1) -> str:
    found = _text_of(text)
    old, new = _text_of(old), _text_of(new)
    hits = found.count(old) if count < 0 else min(found.count(old), count)
    _bound(len(found) + hits * max(0, len(new) - len(old)))
    return found.replace(old, new, count)


def _join(values: Any, separator: str = "") -> str:
    _require(values)
    if not isinstance(values, list | tuple):
        raise SecurityError("`join` needs a list")
    texts: list[str] = []
    length = 0
    for value in values:
        texts.append(_text_of(value))
        length += len(texts[-1]) + len(separator)
        _bound(length)
    return separator.join(texts)


def _urlencode(value: Any) -> str:
    return quote(_text_of(value), safe="")


def _int(value: Any, default: Any = None) -> Any:
    return _to_number(int, value, default)


def _float(value: Any, default: Any = None) -> Any:
    return _to_number(float, value, default)


def _to_number(kind: type[int] | type[float], value: Any, default: Any) -> Any:
    """Jinja2's own filters make 0 of what is no number; ours say so."""
    if default is None:
        _require(value)
    try:
        number = kind(value)
        if math.isfinite(number):
            return number
    except (TypeError, ValueError, OverflowError, UndefinedError):
        pass
    if default is None:
        raise SecurityError(f"{_kind(value) or 'a value'} is not {kind.__name__}")
    return default


def _round(value: Any, digits: int = 0) -> Any:
    _number("round", value)
    return round(value, max(-400, min(400, digits))) if digits else round(value)


def _truncate(text: Any, length: int, end: str = "…") -> str:
    found = _text_of(text)
    if len(found) <= length:
        return found
    return found[: max(0, length - len(end))] + end


def _sum(values: Any) -> Any:
    total: Any = 0
    for value in values:
        total = _arithmetic("+", total, value)
    return total


def _text_filter(method: Callable[..., str]) -> Callable[..., str]:
    def apply(value: Any, *args: Any) -> str:
        return method(_text_of(value), *args)

    return apply


_JOINED = "_joined"

_FILTERS: Mapping[str, Callable[..., Any]] = {
    "upper": _text_filter(str.upper),
    "lower": _text_filter(str.lower),
    "title": _text_filter(str.title),
    "capitalize": _text_filter(str.capitalize),
    "trim": _text_filter(str.strip),
    "replace": _replace,
    "truncate": _truncate,
    "urlencode": _urlencode,
    "string": _text_of,
    "tojson": _to_json,
    "join": _join,
    "int": _int,
    "float": _float,
    "round": _round,
    "sum": _sum,
    _JOINED: _join,
    **{
        name: FILTERS[name]
        for name in (
            "abs", "count", "d", "default", "first", "last", "length", "max", "min", "reverse",
            "sort",
        )
    },
}  # fmt: skip

# Nothing here makes a text longer than its arguments, save `replace`, which is bounded.
_METHODS: Mapping[str, Callable[..., Any]] = {
    "replace": _replace,
    **{
        name: getattr(str, name)
        for name in (
            "capitalize", "casefold", "count", "endswith", "find", "isdigit", "lower", "lstrip",
            "partition", "removeprefix", "removesuffix", "rpartition", "rsplit", "rstrip",
            "split", "splitlines", "startswith", "strip", "title", "upper",
        )
    },
}  # fmt: skip

_TESTS: Sequence[str] = (
    "boolean", "defined", "divisibleby", "eq", "even", "false", "float", "ge", "gt", "in",
    "integer", "le", "lower", "lt", "mapping", "ne", "none", "number", "odd", "sequence",
    "string", "true", "undefined", "upper",
)  # fmt: skip


def _environment() -> _Environment:
    made = _Environment(
        undefined=_Missing,
        finalize=_as_text,
        keep_trailing_newline=True,
        autoescape=False,
        cache_size=0,
        optimized=False,
    )
    made.globals.clear()
    made.filters = dict(_FILTERS)
    made.tests = {name: TESTS[name] for name in _TESTS}
    return made


_ENVIRONMENT = _environment()
