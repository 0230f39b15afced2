"""Reads a pickle that nobody vouches for, and writes its records as JSON lines.

A pickle is a program: loading it calls whatever it names.  So this file is run as a program of
its own, without site-packages and without the plan's secrets, under limits of memory and time
(see `runner.stores.pickles`).  The pickle may name what is listed here and nothing else; a
document class of another library becomes an inert `Stub`, which holds what it is given and runs
nothing.

One JSON object comes on standard input, and one goes to standard output: ``problem`` and
``hint``, or ``notes`` (what was altered → how many times).
"""

from __future__ import annotations

import datetime
import decimal
import json
import math
import pickle
import resource
import struct
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import PurePosixPath
from typing import Any, NoReturn

MEMORY_BYTES = 512 * 2**20
MEMORY_PER_BYTE = 40  # small objects take about twenty times what their pickle takes
_CPU_S = 60
_CPU_BYTES_PER_S = 2**20
_OUTPUT_BYTES = 64 * 2**20
_OUTPUT_PER_BYTE = 1000  # metadata that many records share is pickled once, and written for each
_VALUE_BYTES = 16  # what a value counts for, besides its text
_DEEPEST = 100
_LARGEST_INT = 2**256
_SHOWN = 100
_NOTES = 30


class RefusedError(Exception):
    """What is wrong with the pickle, and what to do about it."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.hint = hint


# What a pickle may name


class Sealed(type):
    """A class that no pickle can change."""

    def __setattr__(cls, name: str, value: object) -> NoReturn:
        raise RefusedError(f"changes the class {cls.__name__}")


class Stub(metaclass=Sealed):
    """Stands for an object of another library: keeps its arguments and state, runs nothing."""

    __slots__ = ("args", "state")
    args: tuple[Any, ...]
    state: dict[Any, Any]

    def __new__(cls, *args: Any) -> Stub:
        """Whatever the arguments."""
        made = super().__new__(cls)
        made.args = args
        made.state = {}
        return made

    def __setstate__(self, state: Any) -> None:
        """Keep *state*: a dict, pydantic's dict around one, or one with slots beside it."""
        parts = state if isinstance(state, tuple) else (state,)
        found: dict[Any, Any] = {}
        for part in parts:
            if isinstance(part, dict):
                inner = part.get("__dict__")
                found |= inner if isinstance(inner, dict) else part
        self.state = found


class Docstore(Stub):
    """LangChain's ``InMemoryDocstore``."""

    __slots__ = ()


class Document(Stub):
    """LangChain's ``Document``."""

    __slots__ = ()


class Node(Stub):
    """A node of LlamaIndex, or what one holds."""

    __slots__ = ()


class Uuid(Stub):
    """``uuid.UUID``."""

    __slots__ = ()


class Path(Stub):
    """A path of ``pathlib``."""

    __slots__ = ()


class Dtype(Stub):
    """``numpy.dtype``."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Keep the tuple that says the order of bytes."""
        self.state = {"order": state[1]} if isinstance(state, tuple) and len(state) > 1 else {}


class Array(Stub):
    """``numpy.ndarray``."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Keep version, shape, type, order and bytes."""
        names = ("version", "shape", "dtype", "fortran", "content")
        if not isinstance(state, tuple) or len(state) != len(names):
            raise RefusedError("holds an array of numpy that is not complete")
        self.state = dict(zip(names, state, strict=True))


class Call:
    """A function that a pickle may call; it cannot be changed."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, function: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", function)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise RefusedError("changes a function")

    def __setstate__(self, state: object) -> NoReturn:
        raise RefusedError("changes a function")

    def __call__(self, *args: Any) -> Any:
        """The function's own result."""
        return self._function(*args)


def _reconstructed(cls: Any, *_: Any) -> Stub:
    """What ``copyreg._reconstructor`` makes, of stubs only."""
    if not (isinstance(cls, Sealed) and issubclass(cls, Stub)):
        raise RefusedError("makes an object of a class that is not read")
    return cls()


def _latin_1(text: Any, codec: Any) -> bytes:
    """How the protocols before 3 say bytes."""
    if not isinstance(text, str) or codec != "latin1":
        raise RefusedError("encodes a text in a way that is not read")
    return text.encode("latin-1")


def _scalar(dtype: Any, content: Any = None) -> Any:
    values = _numbers(dtype, content, 1)
    return values[0]


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any, *_: Any) -> Array:
    made = Array()
    made.state = {"shape": shape, "dtype": dtype, "fortran": order == "F", "content": content}
    return made


def _numbers(dtype: Any, content: Any, count: int) -> list[Any]:
    """*count* values of numpy, from their bytes."""
    named = dtype.args[0] if isinstance(dtype, Dtype) and dtype.args else ""
    name = named if type(named) is str else type(named).__name__
    if not isinstance(content, bytes | bytearray) or count < 0:
        raise RefusedError(f"holds values of numpy's type {_shown(name)!r}, which are not read")
    order = ">" if dtype.state.get("order") == ">" else "<"
    if name[:1] == "U" and name[1:].isdigit():
        width = int(name[1:]) * 4
        if not width or width * count != len(content):
            raise RefusedError("holds an array of numpy whose size is not what it says")
        codec = "utf-32-be" if order == ">" else "utf-32-le"
        parts = [content[at * width : (at + 1) * width] for at in range(count)]
        return [part.decode(codec, "surrogatepass").rstrip("\0") for part in parts]
    code = _NUMBERS.get(name)
    if code is None:
        raise RefusedError(f"holds values of numpy's type {_shown(name)!r}, which are not read")
    if struct.calcsize(f"<{code}") * count != len(content):
        raise RefusedError("holds an array of numpy whose size is not what it says")
    return list(struct.unpack(f"{order}{count}{code}", content))


_NUMBERS = {
    "b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I",
    "u8": "Q", "f2": "e", "f4": "f", "f8": "d",
}  # fmt: skip

_DOCUMENTS = (
    "langchain_core.documents.base",
    "langchain.schema",
    "langchain.schema.document",
    "langchain.docstore.document",
)
_DOCSTORES = ("langchain.docstore.in_memory", "langchain_community.docstore.in_memory")
_NODES = ("llama_index.core.schema", "llama_index.schema")
_NODE_CLASSES = (
    "TextNode", "Document", "ImageNode", "IndexNode", "Node", "NodeWithScore", "RelatedNodeInfo",
    "MediaResource", "NodeRelationship", "ObjectType",
)  # fmt: skip
# how LlamaIndex lays a node out for a model, and what it works out anew
_NODE_FORM = {
    "text_resource", "text_template", "metadata_template", "metadata_separator",
    "metadata_seperator", "mimetype", "class_name", "hash",
}  # fmt: skip
_PATHS = ("pathlib", "pathlib._local")
_PATH_CLASSES = (
    "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath", "Path", "PurePath",
)  # fmt: skip
_BUILTINS = ("builtins", "__builtin__")
_NUMPY = ("numpy._core", "numpy.core")

ALLOWED: Mapping[tuple[str, str], Any] = {
    **{(module, "Document"): Document for module in _DOCUMENTS},
    **{(module, "InMemoryDocstore"): Docstore for module in _DOCSTORES},
    **{(module, name): Node for module in _NODES for name in _NODE_CLASSES},
    **{(module, name): Path for module in _PATHS for name in _PATH_CLASSES},
    **{(module, "set"): set for module in _BUILTINS},
    **{(module, "frozenset"): frozenset for module in _BUILTINS},
    # the last two only tell what a defaultdict makes, and what a stub is derived from
    **{(module, name): None for module in _BUILTINS for name in ("list", "dict", "int", "str")},
    **{(module, "object"): None for module in _BUILTINS},
    ("copyreg", "_reconstructor"): Call(_reconstructed),
    ("copy_reg", "_reconstructor"): Call(_reconstructed),
    ("_codecs", "encode"): Call(_latin_1),
    ("collections", "OrderedDict"): dict,
    ("collections", "defaultdict"): Call(lambda *_: {}),
    ("datetime", "datetime"): datetime.datetime,
    ("datetime", "date"): datetime.date,
    ("datetime", "time"): datetime.time,
    ("datetime", "timedelta"): datetime.timedelta,
    ("datetime", "timezone"): datetime.timezone,
    ("decimal", "Decimal"): decimal.Decimal,
    ("uuid", "UUID"): Uuid,
    ("numpy", "dtype"): Dtype,
    ("numpy", "ndarray"): Array,
    **{(f"{module}.multiarray", "scalar"): Call(_scalar) for module in _NUMPY},
    **{(f"{module}.multiarray", "_reconstruct"): Call(lambda *_: Array()) for module in _NUMPY},
    **{(f"{module}.numeric", "_frombuffer"): Call(_from_buffer) for module in _NUMPY},
}


class Unpickler(pickle.Unpickler):
    """Loads what is `ALLOWED` and refuses the rest before anything is called."""

    def find_class(self, module: str, name: str) -> Any:
        """What stands for ``module.name`` here.

        Raises:
            RefusedError: It is not listed.
        """
        found = ALLOWED.get((module, name), self)
        if found is self:
            raise RefusedError(
                f"names {_shown(f'{module}.{name}')}, which is none of the classes that are read; "
                "nothing was run",
                "write its records as Parquet or JSON lines, and name that file as `sidecar`",
            )
        return found

    def persistent_load(self, pid: Any) -> NoReturn:
        """Refuse what lies outside of the pickle."""
        del pid
        raise RefusedError("refers to objects that lie outside of it (persistent ids)")


def _shown(text: str) -> str:
    return ascii(text[:_SHOWN])[1:-1]


# Values as JSON has them


class Plain:
    """Makes JSON values, as many bytes of them as *budget_bytes*; counts what it alters."""

    def __init__(self, budget_bytes: int) -> None:
        self._left = budget_bytes
        self.notes: Counter[str] = Counter()

    def note(self, what: str) -> None:
        """Count *what*; a few dozen kinds are told apart."""
        known = what in self.notes or len(self.notes) < _NOTES
        self.notes[what if known else "further attributes, which are not read"] += 1

    def value(self, value: Any, depth: int = 0) -> Any:
        """*value* as a JSON value.

        Raises:
            RefusedError: JSON has nothing like it, or it is too deep or too large.
        """
        if depth > _DEEPEST:
            raise RefusedError(f"holds values nested deeper than {_DEEPEST}")
        self._left -= _VALUE_BYTES + (len(value) if type(value) is str else 0)
        if self._left < 0:
            raise RefusedError(
                "unfolds to far more than its own size: it names the same values again and again"
            )
        match value:
            case None | bool() | str():
                return value
            case int():
                if abs(value) > _LARGEST_INT:
                    raise RefusedError("holds an integer of more than 256 bits")
                return value
            case float():
                if math.isfinite(value):
                    return value
                self.note("NaN or infinity, which became null")
                return None
            case dict():
                return self._object(value, depth)
            case list() | tuple():
                return [self.value(each, depth + 1) for each in value]
            case set() | frozenset():
                items = [self.value(each, depth + 1) for each in value]
                return sorted(items, key=lambda each: (type(each).__name__, json.dumps(each)))
            case datetime.datetime() | datetime.date() | datetime.time():
                return value.isoformat()
            case decimal.Decimal() | datetime.timedelta():
                return str(value)
        return self._stub(value, depth)

    def _object(self, found: dict[Any, Any], depth: int) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for key, each in found.items():
            name = key
            if type(key) is not str:
                if not isinstance(key, int):
                    raise RefusedError(f"holds a key that is a {type(key).__name__}, not text")
                self.note("keys that are numbers, which became text")
                name = str(key)
            self._left -= len(name)
            if name in made:
                raise RefusedError(f"holds the keys {key!r} and {str(key)!r} in one object")
            made[name] = self.value(each, depth + 1)
        return made

    def _stub(self, value: Any, depth: int) -> Any:
        match value:
            case Uuid():
                return uuid_text(value)
            case Path():
                if not all(type(each) is str for each in value.args):
                    raise RefusedError("holds a path that is none")
                return str(PurePosixPath(*value.args))
            case Array():
                return self._array(value.state, depth)
            case bytes() | bytearray():
                raise RefusedError("holds bytes, which JSON cannot say")
        raise RefusedError(f"holds a {type(value).__name__} where a value was expected")

    def _array(self, state: Mapping[str, Any], depth: int) -> Any:
        shape = state.get("shape")
        if not isinstance(shape, tuple) or not all(type(each) is int for each in shape):
            raise RefusedError("holds an array of numpy that is not complete")
        if state["fortran"] and len(shape) > 1:
            raise RefusedError("holds an array of numpy in Fortran's order, which is not read")
        count = math.prod(shape)
        values: list[Any] = _numbers(state["dtype"], state["content"], count)
        for size in reversed(shape[1:]):
            if not size:
                return []
            values = [values[at : at + size] for at in range(0, len(values), size)]
        return self.value(values if shape else values[0], depth)


def uuid_text(value: Uuid) -> str:
    """The canonical text of a UUID."""
    number = value.state.get("int")
    if type(number) is not int or not 0 <= number < 2**128:
        raise RefusedError("holds a UUID that is none")
    digits = f"{number:032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


# Records


class Records:
    """The rows of a pickle, one for each vector of an index.

    Args:
        count: How many vectors there are.
        labels: FAISS's id of each; None where it is the position.
        names: The keys of ``id``, ``document`` and ``metadata`` in a row.
        in_order: Whether the order in which vectors were added is known.
        plain: Makes the values.
    """

    def __init__(
        self,
        count: int,
        labels: array[int] | None,
        names: Mapping[str, str],
        plain: Plain,
        *,
        in_order: bool,
    ) -> None:
        self._count = count
        self._labels: Any = range(count) if labels is None else labels
        self._names = names
        self._plain = plain
        self._in_order = in_order

    def lines(self, content: Any) -> Iterator[dict[str, Any]]:
        """A JSON object for each vector, in the order of positions.

        Raises:
            RefusedError: There is not exactly one row for each.
        """
        with_ids = without_ids = 0
        for position, (own_id, item) in enumerate(self._items(content)):
            made = self._row(item, position)
            name = self._names["id"]
            if own_id is not None:
                made[name] = self._plain.value(own_id)
            if made.get(name) is None:
                made[name] = self._labels[position]
                without_ids += 1
            else:
                with_ids += 1
            if with_ids and without_ids:
                raise RefusedError(f"gives some rows an id ({name!r}) and others none")
            yield made

    def _items(self, content: Any) -> Iterator[tuple[Any, Any]]:
        """The id, where the pickle's structure gives one, and the row of each position."""
        match content:
            case [Docstore() as docstore, dict() as ids]:
                yield from self._langchain(docstore, ids)
            case dict() if self._is_of_columns(content):
                names = list(content)
                self._refuse_other_count(len(content[names[0]]))
                for values in zip(*content.values(), strict=True):
                    yield None, dict(zip(names, values, strict=True))
            case dict() if all(type(key) is int for key in content):
                self._refuse_other_count(len(content), in_order=False)
                for label in self._labels:
                    if label not in content:
                        raise RefusedError(f"has no row for {label}, which the index holds")
                    yield None, content[label]
            case dict() if all(isinstance(key, str | Uuid) for key in content):
                self._refuse_other_count(len(content))
                yield from content.items()
            case list() | tuple():
                self._refuse_other_count(len(content))
                for each in content:
                    yield None, each
            case _:
                raise RefusedError(
                    f"holds a {type(content).__name__}; expected a list or a dict with a row for "
                    "each vector, or what LangChain saves"
                )

    def _langchain(self, docstore: Docstore, ids: dict[Any, Any]) -> Iterator[tuple[Any, Any]]:
        documents = docstore.state.get("_dict")
        if not isinstance(documents, dict):
            raise RefusedError("holds a docstore without documents")
        for label in self._labels:
            own_id = ids.get(label)
            if own_id is None or own_id not in documents:
                raise RefusedError(f"has no document for {label}, which the index holds")
            yield own_id, documents[own_id]
        left = len(ids) - self._count
        if left:
            raise RefusedError(f"names {left} documents more than the index holds vectors")

    def _is_of_columns(self, content: dict[Any, Any]) -> bool:
        lists = all(type(each) is list for each in content.values())
        same = lists and len({len(each) for each in content.values()}) == 1
        return same and bool(content.keys() & set(self._names.values()))

    def _refuse_other_count(self, found: int, *, in_order: bool = True) -> None:
        if found != self._count:
            raise RefusedError(f"has {found} rows, the index holds {self._count} vectors")
        if in_order and not self._in_order:
            raise RefusedError(
                "has rows in the order in which vectors were added, and this index does not tell "
                "that order: its lists hold ids of their own",
                "name a pickle with a dict from id to row",
            )

    def _row(self, item: Any, position: int) -> dict[str, Any]:
        names = self._names
        match item:
            case None:
                return {}
            case str():
                return {names["document"]: self._plain.value(item)}
            case dict():
                return self._plain.value(item)  # type: ignore[no-any-return]
            case Document():
                return self._document(item.state, "page_content", "id", {"type", "lc_kwargs"})
            case Node():
                return self._node(item)
        raise RefusedError(
            f"holds a {type(item).__name__} at position {position}; expected a dict, a text, or a "
            "document of LangChain or LlamaIndex"
        )

    def _node(self, item: Node) -> dict[str, Any]:
        state = item.state
        inner = state.get("node")
        if isinstance(inner, Node):  # NodeWithScore
            state = inner.state
        held = state.get("text_resource")
        if "text" not in state and isinstance(held, Node):
            state = {**state, "text": held.state.get("text")}
        return self._document(state, "text", "id_", _NODE_FORM)

    def _document(
        self, state: Mapping[str, Any], text: str, own_id: str, unspoken: Set[str]
    ) -> dict[str, Any]:
        """The three parts of a document; what else it holds is counted by name."""
        known = {text, own_id, "metadata", *unspoken}
        for name, value in state.items():
            if type(name) is not str:
                raise RefusedError("holds a document with an attribute that has no name")
            if name not in known and value not in (None, "", [], {}):
                self._plain.note(f"the attribute {_shown(name)!r}, which is not read")
        names = self._names
        made = {
            names["document"]: self._plain.value(state.get(text)),
            names["metadata"]: self._plain.value(state.get("metadata") or {}),
        }
        if state.get(own_id) is not None:
            made[names["id"]] = self._plain.value(state[own_id])
        return made


def _limit(size_bytes: int) -> None:
    memory = MEMORY_BYTES + MEMORY_PER_BYTE * size_bytes
    seconds = _CPU_S + size_bytes // _CPU_BYTES_PER_S
    for what, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds)):
        _, hard = resource.getrlimit(what)
        resource.setrlimit(what, (most if hard < 0 else min(most, hard), hard))


def _read(asked: Mapping[str, Any]) -> dict[str, int]:
    labels = None
    if asked["labels"]:
        labels = array("q")
        with open(asked["labels"], "rb") as stream:
            labels.frombytes(stream.read())
    size_bytes = asked["size_bytes"]
    plain = Plain(_OUTPUT_BYTES + _OUTPUT_PER_BYTE * size_bytes)
    with open(asked["pickle"], "rb") as stream:
        content = Unpickler(stream).load()
        if stream.read(1):
            raise RefusedError("holds more than one pickle, one after the other")
    records = Records(asked["count"], labels, asked["names"], plain, in_order=asked["in_order"])
    with open(asked["out"], "xb") as out:
        for each in records.lines(content):
            text = json.dumps(each, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
            try:
                out.write(text.encode() + b"\n")
            except UnicodeEncodeError as error:
                raise RefusedError("holds a text with half of a surrogate pair") from error
    return dict(plain.notes)


def main() -> None:
    """Do what standard input asks for, and say how it went."""
    asked = json.load(sys.stdin)
    _limit(asked["size_bytes"])
    try:
        answer: dict[str, Any] = {"notes": _read(asked)}
    except RefusedError as error:
        answer = {"problem": str(error), "hint": error.hint}
    except MemoryError:
        answer = {"problem": "takes far more memory to load than its size explains", "hint": ""}
    except OSError as error:
        answer = {"problem": f"cannot be read: {error.strerror}", "hint": ""}
    # a damaged or hostile pickle makes the loader raise whatever it likes
    except Exception as error:
        answer = {"problem": f"cannot be read as a pickle: {_shown(str(error))}", "hint": ""}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
