"""YAML text → a tree of nodes that know their place in the file.

The YAML 1.2 core schema decides what a plain word means, and only when somebody
asks (`core_value`): ``no``, ``off``, ``1:30``, ``010`` and ``2024-01-01`` are words.
A reference needs no quotes in flow style (``{dsn: ${PG_DSN}}``), which bare YAML asks for.
The text may come from anybody: its size, depth and number of nodes are bounded,
and bounded before anything is built from it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import yaml

MAX_BYTES = 1 << 20
MAX_DEPTH = 64
MAX_NODES = 100_000
_SHOWN = 60

_NULL = {"", "~", "null", "Null", "NULL"}
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
# No leading zeros: 010 is a word, as is 0123 in a postcode.  At most 400 digits: nothing in a
# plan is larger, and converting very long ones takes quadratic time.
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,399})")
_OCTAL = re.compile(r"0o[0-7]{1,400}")
_HEX = re.compile(r"0x[0-9a-fA-F]{1,400}")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
# YAML's own list of characters that a stream may hold, turned round.
_UNPRINTABLE = re.compile(
    "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
)
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
# A reference that flow style would take for one word but for its braces.  What else ends a
# word there, and quotes, is left out: those braces may be the structure's own.
_REFERENCE = re.compile(r"""\$\{((?:[^{}\[\],"'#:\s]|:(?!\s)|[ \t])*)\}""")
_PRIVATE_USE = range(0xE000, 0xF900)
_ESCAPE = re.compile(r"\\(?:u|U0000)([0-9a-fA-F]{4})")

CoreValue = None | bool | int | float | str


class YamlTextError(Exception):
    """The text is not a plan's YAML.

    Attributes:
        line, column: 1-based.
        what: What is wrong.
        hint: What to write instead; may be empty.
    """

    def __init__(self, line: int, column: int, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.line = line
        self.column = column
        self.what = what
        self.hint = hint


@dataclass(frozen=True)
class Scalar:
    """One word or text.

    Attributes:
        text: As written, quotes and line folding undone.
        plain: Written without quotes, so that `core_value` decides what it is.
        line, column: 1-based, where it starts.
    """

    text: str
    plain: bool
    line: int
    column: int

    @property
    def is_null(self) -> bool:
        """Whether it is a plain null."""
        return self.plain and self.text in _NULL

    def value(self) -> CoreValue:
        """What it means: a plain word by the core schema, everything else is text.

        Raises:
            YamlTextError: It is NaN, infinite, or beyond a double.
        """
        if not self.plain:
            return self.text
        try:
            return core_value(self.text)
        except ValueError as error:
            raise YamlTextError(
                self.line,
                self.column,
                f"{self.text[:_SHOWN]!r} is not a finite number",
                "write it in quotes if it is text",
            ) from error


@dataclass
class Items:
    """A list."""

    line: int
    column: int
    items: list[Node] = field(default_factory=list)


@dataclass
class Mapping:
    """A mapping; keys are text, whatever they look like.

    Attributes:
        entries: Key → value, in the order of the file.
        key_places: Key → its ``(line, column)``.
    """

    line: int
    column: int
    entries: dict[str, Node] = field(default_factory=dict)
    key_places: dict[str, tuple[int, int]] = field(default_factory=dict)


Node = Scalar | Items | Mapping


def core_value(text: str) -> CoreValue:
    """What an unquoted *text* means in the YAML 1.2 core schema.

    Raises:
        ValueError: It is NaN, infinite, or beyond a double.
    """
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.fullmatch(text):
        return int(text)
    if _OCTAL.fullmatch(text):
        return int(text[2:], 8)
    if _HEX.fullmatch(text):
        return int(text[2:], 16)
    if _FLOAT.fullmatch(text):
        number = float(text)
        if not math.isfinite(number):
            raise ValueError("beyond a double")
        return number
    if _NOT_FINITE.fullmatch(text):
        raise ValueError("not finite")
    return text


def decode(raw: bytes) -> str:
    """The text of a plan file; a UTF-8 byte order mark at its start is left out.

    Raises:
        YamlTextError: It is too long, not UTF-8, or holds control characters.
    """
    if len(raw) > MAX_BYTES:
        raise YamlTextError(
            1, 1, f"is larger than {MAX_BYTES:,} bytes; no plan is", "is it a plan?"
        )
    if raw.startswith(_UTF16):
        raise YamlTextError(1, 1, "is UTF-16; a plan is UTF-8", "save the file as UTF-8")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, column = _place(raw[: error.start].decode("utf-8-sig"), None)
        raise YamlTextError(
            line, column, f"byte 0x{raw[error.start]:02x} is not UTF-8", "save the file as UTF-8"
        ) from error
    bad = _UNPRINTABLE.search(text)
    if bad:
        line, column = _place(text, bad.start())
        raise YamlTextError(
            line, column, f"character U+{ord(bad.group()):04X} may not stand in YAML"
        )
    return text


def parse(text: str) -> Node:
    """The tree of one YAML document.

    An alias is the node it names, shared.

    Raises:
        YamlTextError: It is not YAML, or not YAML that a plan may use.
    """
    mask = _Mask.over(text)
    try:
        return _Composer(mask).compose(yaml.parse(mask.text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as error:
        raise _of_yaml_error(error, mask) from error
    except yaml.reader.ReaderError as error:
        # Only a lone surrogate or the like gets here: `decode` has seen to the rest.
        line, column = _place(text, error.position)
        raise YamlTextError(line, column, str(error.reason)) from error


@dataclass(frozen=True)
class _Mask:
    """A text whose references have other braces, which YAML takes for letters.

    Attributes:
        text: As long as it was, so that places stay right.
        braces: What stands for ``{`` and ``}``; empty if nothing does.
    """

    text: str
    braces: str = ""

    @classmethod
    def over(cls, text: str) -> _Mask:
        """*text* masked; as it is if it leaves no character free, not even by escapes."""
        if not _REFERENCE.search(text):
            return cls(text)
        taken = {*text, *(chr(int(code, 16)) for code in _ESCAPE.findall(text))}
        free = (chr(code) for code in _PRIVATE_USE if chr(code) not in taken)
        braces = "".join(islice(free, 2))
        if len(braces) < 2:
            return cls(text)
        return cls(_REFERENCE.sub(rf"${braces[0]}\1{braces[1]}", text), braces)

    def off(self, part: str) -> str:
        """A part of the masked text as it was written."""
        for mark, brace in zip(self.braces, "{}", strict=False):
            part = part.replace(mark, brace)
        return part

    def off_message(self, message: str) -> str:
        """A message of PyYAML about the masked text; it writes such letters as escapes."""
        for mark, brace in zip(self.braces, "{}", strict=False):
            message = message.replace(repr(mark)[1:-1], brace)
        return message


def _place(text: str, end: int | None) -> tuple[int, int]:
    before = text[:end]
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


def _of_yaml_error(error: yaml.MarkedYAMLError, mask: _Mask) -> YamlTextError:
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    what = error.problem or "is not YAML"
    if error.context:
        what += f" ({error.context})"
    return YamlTextError(line, column, mask.off_message(what), _hint_for(mark, what))


def _hint_for(mark: yaml.Mark | None, what: str) -> str:
    rest = mark.buffer[mark.pointer :] if mark and mark.buffer else ""
    before = mark.buffer[: mark.pointer] if mark and mark.buffer else ""
    if rest.startswith("\t"):
        return "indent with spaces; YAML does not allow tabs there"
    if rest.startswith("{") and before.endswith("$"):
        return "close the reference with `}`; with a comma, bracket, quote, # or : in it, quote it"
    if rest[:1] in ("%", "@", "`", "*", "&", "!") or "mapping values are not allowed" in what:
        return "write the value in quotes if it is text"
    return ""


class _Composer:
    """Events → nodes, without recursion.

    Every node knows how deep and how large it is with its aliases followed, so that
    a bomb is refused at the alias that would make it one.
    """

    def __init__(self, mask: _Mask) -> None:
        self._mask = mask
        self._open: list[_Frame] = []
        self._anchors: dict[str, tuple[Node, int, int] | None] = {}
        self._root: Node | None = None

    def compose(self, events: Iterator[yaml.Event]) -> Node:
        documents = 0
        for event in events:
            match event:
                case yaml.DocumentStartEvent():
                    documents += 1
                    if documents > 1:
                        raise _at(event, "holds a second document; a plan is one", "remove `---`")
                case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                    self._start(event)
                case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                    frame = self._open.pop()
                    self._add(frame.node, frame.height + 1, frame.size, frame.anchor, event)
                case yaml.ScalarEvent():
                    self._scalar(event)
                case yaml.AliasEvent():
                    self._alias(event)
        if self._root is None:
            raise YamlTextError(1, 1, "is empty", "the shortest plan has `source` and `target`")
        return self._root

    def _start(self, event: yaml.MappingStartEvent | yaml.SequenceStartEvent) -> None:
        if event.tag is not None:
            raise _tag(event)
        if len(self._open) >= MAX_DEPTH:
            raise _at(event, f"is nested deeper than {MAX_DEPTH} levels; no plan is")
        if event.anchor:
            self._anchors[event.anchor] = None
        kind = Mapping if isinstance(event, yaml.MappingStartEvent) else Items
        node = kind(*_start_of(event))
        self._open.append(_Frame(node, event.anchor))

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        if event.tag not in (None, "!"):
            raise _tag(event)
        plain = event.style is None and event.tag is None
        node = Scalar(self._mask.off(_text_of(event)), plain, *_start_of(event))
        self._add(node, 1, 1, event.anchor, event)

    def _alias(self, event: yaml.AliasEvent) -> None:
        name = str(event.anchor)[:_SHOWN]
        if event.anchor not in self._anchors:
            raise _at(
                event,
                f"alias *{name} has no anchor before it",
                "write it in quotes if it is text",
            )
        known = self._anchors[event.anchor]
        if known is None:
            raise _at(event, f"alias *{name} stands inside what it names")
        node, height, size = known
        if len(self._open) + height > MAX_DEPTH + 1:
            raise _at(event, f"is nested deeper than {MAX_DEPTH} levels; no plan is")
        self._add(node, height, size, None, event)

    def _add(
        self, node: Node, height: int, size: int, anchor: str | None, event: yaml.Event
    ) -> None:
        if anchor:
            self._anchors[anchor] = (node, height, size)
        if not self._open:
            self._root = node
            return
        frame = self._open[-1]
        frame.height = max(frame.height, height)
        frame.size += size
        if frame.size + sum(each.size for each in self._open[:-1]) > MAX_NODES:
            raise _at(event, f"has more than {MAX_NODES:,} values, aliases followed; no plan has")
        if isinstance(frame.node, Items):
            frame.node.items.append(node)
        elif frame.key is None:
            frame.key = _key(node, event, frame.node)
        else:
            frame.node.entries[frame.key.text] = node
            frame.key = None


@dataclass
class _Frame:
    node: Mapping | Items
    anchor: str | None
    key: Scalar | None = None
    height: int = 0
    size: int = 1


def _key(node: Node, event: yaml.Event, mapping: Mapping) -> Scalar:
    if not isinstance(node, Scalar) or isinstance(event, yaml.AliasEvent):
        raise _at(event, "a key is a word, not a list, a mapping or an alias")
    if node.text == "<<" and node.plain:
        raise _at(
            event,
            "merge keys (<<) are not supported",
            "write the keys out; an alias may stand for a whole value",
        )
    if node.text in mapping.key_places:
        line, column = mapping.key_places[node.text]
        raise _at(
            event,
            f"key {node.text[:_SHOWN]!r} is given twice; first in line {line}, column {column}",
            "remove one of them",
        )
    mapping.key_places[node.text] = (node.line, node.column)
    return node


def _text_of(event: yaml.ScalarEvent) -> str:
    text: str = event.value
    try:
        # JSON writes what lies beyond U+FFFF as two escapes, and PyYAML leaves them two.
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le")
    except UnicodeDecodeError as error:
        raise _at(event, "half of a surrogate pair is no character") from error
    if "\0" in text:
        raise _at(event, "character U+0000 may not stand in a plan")
    return text


def _tag(event: yaml.ScalarEvent | yaml.CollectionStartEvent) -> YamlTextError:
    return _at(
        event,
        f"tag {str(event.tag)[:_SHOWN]!r} is not supported; a plan holds text, numbers, lists and "
        "mappings",
        "remove the tag, and write the value in quotes if it is text",
    )


def _at(event: yaml.Event, what: str, hint: str = "") -> YamlTextError:
    return YamlTextError(*_start_of(event), what, hint)


def _start_of(event: yaml.Event) -> tuple[int, int]:
    assert event.start_mark is not None, "the parser marks every event"
    return event.start_mark.line + 1, event.start_mark.column + 1
