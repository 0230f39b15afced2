"""What preflight should know of a Chroma: its connection, its folder, the limits of its Cloud."""

from __future__ import annotations

import ipaddress
import os
import shutil
import socket
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from runner.errors import StoreError
from runner.model import CollectionSpec, Finding, Severity
from runner.stores.base import Location
from runner.stores.chroma_engine import DATABASE, TENANT, EmbeddedEngine
from runner.stores.chroma_http import bare_url

DATABASE_FILE = "chroma.sqlite3"
# https://docs.trychroma.com/cloud/quotas-limits
_CLOUD_DIM = 4096
_CLOUD_COLLECTION = 5_000_000
_CLOUD_NAME_BYTES = 128
_CLOUD_OWN_BYTES = 256


def connection_findings(location: Location) -> list[Finding]:
    """Connections that are not encrypted, or to nobody knows whom."""
    url = str(location.options["url"])
    parts = urlsplit(url)
    if _is_loopback(parts.hostname or ""):
        return []
    if parts.scheme != "https":
        what = f"the connection to {bare_url(url)} is not encrypted"
        hint = "use https, or allow the hazard insecure-connection"
    elif location.connection.insecure:
        what = f"the certificate of {bare_url(url)} is not verified"
        hint = "name its authority in connection.ca_file, or allow insecure-connection"
    else:
        return []
    return [Finding(what, hint, Severity.WARNING, "insecure-connection")]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(each[4][0])).is_loopback for each in found)


def cloud_findings(wanted: CollectionSpec, name: str, records: int) -> Iterator[Finding]:
    """What goes beyond the limits of Chroma Cloud that can be seen before it is sent."""
    hint = "Chroma Cloud raises most limits upon request"
    dim = max((each.dim for each in wanted.dense.values()), default=0)
    if dim > _CLOUD_DIM:
        what = f"vectors have {dim:,} components; Chroma Cloud takes {_CLOUD_DIM:,}"
        yield Finding(what, hint, Severity.WARNING, "target.url")
    if records > _CLOUD_COLLECTION:
        what = f"{records:,} records; a collection of Chroma Cloud holds {_CLOUD_COLLECTION:,}"
        yield Finding(what, hint, Severity.WARNING, "target.url")
    if len(name.encode()) > _CLOUD_NAME_BYTES:
        what = f"the name {name} has more than {_CLOUD_NAME_BYTES} bytes"
        yield Finding(what, "choose a shorter one", key="target.collection")
    own = wanted.extra.get("metadata") or {}
    long = [key for key, value in own.items() if len(str(value).encode()) > _CLOUD_OWN_BYTES]
    if long:
        what = (
            f"the collection's own metadata {', '.join(long)} has more than {_CLOUD_OWN_BYTES} "
            "bytes, the limit of Chroma Cloud"
        )
        yield Finding(what, hint, Severity.WARNING, "target.url")
    yield Finding(
        "Chroma Cloud refuses documents of more than 16,384 bytes, URIs of more than 256, metadata "
        "values of more than 4,096, and more than 32 keys in a record",
        hint,
        Severity.NOTE,
        "target.url",
    )


def room_findings(folder: Path, needed_bytes: int) -> Iterator[Finding]:
    """What stands against writing *needed_bytes* bytes to *folder*."""
    parent = folder
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        yield Finding(f"{parent} is a file; expected a folder", key="target.path")
        return
    if not os.access(parent, os.W_OK | os.X_OK):
        yield Finding(f"{parent} cannot be written to", "check its permissions", key="target.path")
    free = shutil.disk_usage(parent).free
    if needed_bytes > free:
        yield Finding(
            f"the collection will take about {needed_bytes / 1e6:,.0f} MB, and "
            f"{free / 1e6:,.0f} MB are free at {parent}",
            "free some space",
            key="target.path",
        )


def migration_findings(folder: Path, scratch: Path) -> Iterator[Finding]:
    """Whether writing to *folder* would migrate it."""
    database = folder / DATABASE_FILE
    if not database.is_file():
        return
    # what an empty folder gets from the client that is installed here
    with tempfile.TemporaryDirectory(dir=scratch) as empty:
        EmbeddedEngine(Path(empty), TENANT, DATABASE).close()
        current = _migrations(Path(empty) / DATABASE_FILE)
    if current - _migrations(database):
        yield Finding(
            f"{folder} is of an older Chroma, and writing to it migrates it in place",
            "older clients cannot open it afterwards; copy the folder first if they must",
            Severity.WARNING,
            "target.path",
        )


def _migrations(database: Path) -> set[tuple[str, int]]:
    """Which migrations a folder's database has seen."""
    return {(str(part), int(version)) for part, version in _select(database, _SEEN)}


def has_stray_lists(database: Path) -> bool:
    """Whether lists in metadata outlived their collection."""
    return bool(_select(database, _STRAY))


_SEEN = "SELECT dir, version FROM migrations"
_STRAY = """
    SELECT 1 FROM embedding_metadata_array AS list
    WHERE NOT EXISTS (SELECT 1 FROM embeddings AS record WHERE record.id = list.id) LIMIT 1
"""


def _select(database: Path, statement: str) -> list[tuple[Any, ...]]:
    try:
        with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as found:
            return found.execute(statement).fetchall()
    except sqlite3.Error as error:
        raise StoreError(f"{database} could not be read: {error}", "is it Chroma's?") from error
