"""Pinecone's SDK as the store uses it: no retries of its own, errors by type, a rate, a meter.

The control plane (indexes and their settings) and the data plane (records) have hosts of
their own.  What the SDK raises becomes `runner.errors` here and nowhere else.
"""

from __future__ import annotations

import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import pinecone
from pinecone import errors as sdk

from runner.errors import (
    AuthError,
    CollectionMismatchError,
    CollectionNotFoundError,
    PausedError,
    PlanError,
    StoreError,
    TransientStoreError,
)
from runner.model import Finding, Severity
from runner.stores.base import Location
from runner.stores.pinecone_packing import (
    IDS_A_PAGE,
    LEAST_WRITE_UNITS,
    RECORDS_A_READ_UNIT,
    UPSERT_BYTES_A_UNIT,
    Sealed,
)
from runner.words import shown

__all__ = [
    "CONTROL_HOST", "DEFAULT_NAMESPACE", "Budget", "Client", "Meter", "RefusedError", "bare_host",
    "connection_findings", "name_problem",
]  # fmt: skip

CONTROL_HOST = "https://api.pinecone.io"
DEFAULT_NAMESPACE = "__default__"
"""What the service calls the namespace that has no name."""

_LOOPBACK = re.compile(r"(localhost|127\.[0-9.]+|\[::1\])(:[0-9]+)?(/.*)?")
_NAMESPACE = re.compile(r"[\x01-\x7f]{0,512}")

T = TypeVar("T")


class RefusedError(StoreError):
    """The service, or the SDK on its behalf, does not take what was sent."""


class Budget:
    """At most so many requests a second, over any number of threads.

    Args:
        per_s: How many; the service allows 100 for each kind of request and namespace.
    """

    def __init__(self, per_s: float) -> None:
        self._interval_s = 1 / per_s
        self._lock = threading.Lock()
        self._next_at = 0.0

    def wait(self) -> None:
        """Return when the next request may go."""
        with self._lock:
            now = time.monotonic()
            at = max(now, self._next_at)
            self._next_at = at + self._interval_s
        if at > now:
            time.sleep(at - now)


@dataclass
class Spending:
    """What one request costs, in read and write units."""

    read: float
    written: float


class Meter:
    """Counts read and write units of this object, and stops at the plan's limit.

    Args:
        most: The plan's ``max_units``; None for no limit.
        side: Of the plan, for the message.
    """

    def __init__(self, most: int | None, side: str) -> None:
        self._most, self._side = most, side
        self._lock = threading.Lock()
        self._under_way = 0.0
        self.read = 0.0
        self.written = 0.0

    @contextmanager
    def request(self, *, read: float = 0.0, written: float = 0.0) -> Iterator[Spending]:
        """A request that is expected to cost so much; it counts from now on, not once it is over.

        Yields:
            What it costs, to be set right by what the answer says.

        Raises:
            PausedError: It would go beyond the limit; what was written so far is kept.
        """
        spending = Spending(read, written)
        with self._lock:
            self._refuse_beyond(spending)
            self._under_way += read + written
        try:
            yield spending
        except BaseException:
            with self._lock:
                self._under_way -= read + written
            raise
        with self._lock:
            self._under_way -= read + written
            self.read += spending.read
            self.written += spending.written

    def _refuse_beyond(self, next_one: Spending) -> None:
        spent = self.read + self.written + self._under_way
        if self._most is not None and spent + next_one.read + next_one.written > self._most:
            raise PausedError(
                f"pinecone: {spent:,.0f} read and write units are spent, the next request takes "
                f"it beyond `{self._side}.max_units` ({self._most:,})",
                f"raise `{self._side}.max_units`, then go on with `runner resume`; what was "
                "spent before is not counted again",
            )


@dataclass(frozen=True)
class Reply:
    """What a search said: the hits, and how far the index has caught up (None: unknown)."""

    matches: list[tuple[str, float]]
    reconciled: int | None


class Client:
    """One index, through the SDK.

    Args:
        location: ``index``, ``api_key``, ``host``, ``control_host``, ``requests_per_s`` and
            the connection.
    """

    def __init__(self, location: Location) -> None:
        options = location.options
        if not options.get("api_key"):
            raise PlanError(
                f"{location.side}: a pinecone location needs an `api_key`",
                "api_key: ${PINECONE_API_KEY}",
            )
        self._location = location
        self._index = str(options["index"])
        self._side = location.side
        self._host = options.get("host")
        self._lock = threading.Lock()
        self._connecting = threading.Lock()
        self._per_s = float(options.get("requests_per_s") or 100)
        self._budgets: dict[tuple[str, str], Budget] = {}
        self._data_plane: pinecone.Index | None = None
        self.meter = Meter(options.get("max_units"), location.side)
        self._a_query = 1.0
        self._control = self._told(
            lambda: pinecone.Pinecone(
                **self._settings(),
                host=str(options.get("control_host") or CONTROL_HOST),
                retry_config=pinecone.RetryConfig(max_retries=0),
            )
        )

    def _settings(self) -> dict[str, Any]:
        connection = self._location.connection
        return {
            "api_key": str(self._location.options["api_key"]),
            # never empty, or the SDK would take some out of the environment
            "additional_headers": {"Accept": "application/json", **connection.headers},
            "timeout": connection.timeout_s,
            "proxy_url": connection.proxy,
            "ssl_ca_certs": None if connection.ca_file is None else str(connection.ca_file),
            "ssl_verify": not connection.insecure,
        }

    # Indexes

    def describe(self) -> pinecone.IndexModel | None:
        """The index's description; None if there is none of this name."""
        try:
            return self._told(lambda: self._control.indexes.describe(self._index))
        except CollectionNotFoundError:
            return None

    def create(self, **settings: Any) -> None:
        """Make the index; it may not be ready on return."""
        # -1: whoever calls waits, and less than the SDK's five seconds a look
        self._told(lambda: self._control.indexes.create(name=self._index, timeout=-1, **settings))

    def configure(self, **settings: Any) -> None:
        """Change tags (merged; an empty value removes one) or deletion protection."""
        self._told(lambda: self._control.indexes.configure(self._index, **settings))

    def drop(self) -> None:
        """Remove the index; it may still be going on return."""
        self._told(lambda: self._control.indexes.delete(self._index, timeout=-1))
        self.forget()

    def forget(self) -> None:
        """Look the data plane's host up anew: an index made again has another one."""
        with self._connecting:
            if self._data_plane is not None:
                self._data_plane.close()
            self._data_plane = None

    # Records

    def stats(self) -> pinecone.DescribeIndexStatsResponse:
        """Counts of all namespaces; they lag behind writes."""
        return self._asked("stats", "", lambda data: data.describe_index_stats())

    def ids(self, namespace: str, token: str | None) -> tuple[list[str], str | None]:
        """A page of ids, sorted by their bytes, and the token of the next; None at the end."""
        with self.meter.request(read=1) as spending:
            page = self._asked(
                "list",
                "",
                lambda data: data.list_paginated(
                    namespace=namespace, limit=IDS_A_PAGE, pagination_token=token
                ),
            )
            spending.read = _read_units(page.usage, spending.read)
        following = page.pagination.next if page.pagination is not None else None
        return [str(each.id) for each in page.vectors], following

    def fetch(self, namespace: str, ids: Sequence[str]) -> Mapping[str, pinecone.Vector]:
        """Those of *ids* that are there; few enough for a URL."""
        with self.meter.request(read=-(-len(ids) // RECORDS_A_READ_UNIT)) as spending:
            found = self._asked(
                "fetch", "", lambda data: data.fetch(ids=list(ids), namespace=namespace)
            )
            spending.read = _read_units(found.usage, spending.read)
        return found.vectors

    def upsert(self, namespace: str, records: Sequence[Sealed]) -> int | None:
        """Write records; the log position that they landed at, None if the service hides it."""
        vectors = [each.vector for each in records]
        size = sum(each.size_bytes for each in records)
        # what an upsert cost is not in its answer
        with self.meter.request(written=max(LEAST_WRITE_UNITS, -(-size // UPSERT_BYTES_A_UNIT))):
            done = self._asked(
                "upsert", namespace, lambda data: data.upsert(vectors=vectors, namespace=namespace)
            )
        info = done.response_info
        return None if info is None else info.lsn_committed

    def delete(self, namespace: str, ids: Sequence[str]) -> None:
        """Remove records; a namespace that is not there holds none."""
        try:
            with self.meter.request(written=LEAST_WRITE_UNITS):
                self._asked(
                    "delete",
                    namespace,
                    lambda data: data.delete(ids=list(ids), namespace=namespace),
                )
        except CollectionNotFoundError:
            return

    def query(self, namespace: str, k: int, **vector: Any) -> Reply:
        """The *k* nearest records, best first."""
        with self.meter.request(read=self._a_query) as spending:
            found = self._asked(
                "query", namespace, lambda data: data.query(top_k=k, namespace=namespace, **vector)
            )
            # by the namespace's size: the next one will cost about the same
            spending.read = self._a_query = _read_units(found.usage, spending.read)
        info = found.response_info
        return Reply(
            [(each.id, each.score) for each in found.matches],
            None if info is None else info.lsn_reconciled,
        )

    def close(self) -> None:
        """End all connections."""
        self.forget()
        self._control.close()

    # Calls and their errors

    def _asked(self, kind: str, namespace: str, call: Callable[[pinecone.Index], T]) -> T:
        """*call*'s result, at the rate that its kind may have in *namespace*, or the index."""
        with self._lock:
            budget = self._budgets.setdefault((kind, namespace), Budget(self._per_s))
        budget.wait()
        data = self._data()
        return self._told(lambda: call(data))

    def _data(self) -> pinecone.Index:
        # by one thread: making one reads all certificates that the machine trusts
        with self._connecting:
            if self._data_plane is None:
                self._data_plane = self._connected(str(self._host or self._found_host()))
            return self._data_plane

    def _connected(self, host: str) -> pinecone.Index:
        made = self._told(lambda: pinecone.Index(host=host, **self._settings()))
        # Index takes no retry_config, and that of Pinecone does not reach it: its four tries a
        # request would multiply with the runner's, and hold a stop back for minutes.
        transport: Any = made._http._client._transport
        transport._config = pinecone.RetryConfig(max_retries=0)
        return made

    def _found_host(self) -> str:
        model = self.describe()
        if model is None:
            raise CollectionNotFoundError(f"pinecone: there is no index {self._index}")
        if not model.host:
            raise TransientStoreError(
                f"pinecone: the index {self._index} is {model.status.state} and has no host yet"
            )
        return model.host

    def _told(self, call: Callable[[], T]) -> T:
        """*call*'s result; what the SDK raises as an error of ours."""
        try:
            return call()
        except sdk.ApiError as error:
            raise self._refused(error) from error
        except (sdk.PineconeConnectionError, sdk.PineconeTimeoutError) as error:
            raise self._unreached(error) from error
        except (sdk.PineconeValueError, sdk.PineconeTypeError) as error:
            raise RefusedError(f"pinecone {self._index}: {error}") from error
        except (sdk.PineconeError, ssl.SSLError, FileNotFoundError) as error:
            raise StoreError(f"pinecone {self._index}: {error}") from error

    def _refused(self, error: sdk.ApiError) -> StoreError:
        """What a status of 400 or more means."""
        status = error.status_code
        what = f"pinecone {self._index}: {error} (HTTP {status})"
        if status in (401, 403, 407):
            return AuthError(what, f"check `{self._side}.api_key`, and what it is allowed to do")
        if status == 404:
            return CollectionNotFoundError(what)
        if status == 409:
            return CollectionMismatchError(what)
        if status in (408, 425, 429) or (status >= 500 and status != 501):
            return TransientStoreError(what, retry_after_s=_retry_after_s(error))
        return RefusedError(what) if status in (400, 413, 422) else StoreError(what)

    def _unreached(self, error: Exception) -> StoreError:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLCertVerificationError):
                return StoreError(
                    f"pinecone {self._index}: the certificate is not trusted: "
                    f"{cause.verify_message}",
                    f"name the authority that signed it in `{self._side}.connection.ca_file`",
                )
            cause = cause.__cause__ or cause.__context__
        return TransientStoreError(f"pinecone {self._index}: {error}")


def bare_host(host: str) -> str:
    """*host* without scheme, user and a trailing slash: fit to be shown."""
    parts = urlsplit(host if "//" in host else f"//{host}")
    netloc = parts.netloc.rpartition("@")[2]
    return urlunsplit(("", netloc, parts.path.rstrip("/"), "", "")).removeprefix("//")


def name_problem(namespace: str) -> str:
    """Why *namespace* cannot be a namespace's name; empty if it can."""
    if namespace == DEFAULT_NAMESPACE:
        return f"{namespace!r} is the service's own word for the namespace without a name"
    if not _NAMESPACE.fullmatch(namespace):
        return f"the namespace {shown(namespace)} is not 1 to 512 characters of ASCII"
    return ""


def connection_findings(location: Location) -> Iterator[Finding]:
    """What of *location* goes unencrypted or unverified."""
    if location.connection.insecure:
        yield Finding(
            f"the certificate of Pinecone's index {location.options['index']} is not verified",
            "name its authority in connection.ca_file, or allow insecure-connection",
            Severity.WARNING,
            "insecure-connection",
        )
    for key in ("host", "control_host"):
        host = str(location.options.get(key) or "")
        if host.startswith("http://") and not _LOOPBACK.fullmatch(bare_host(host)):
            yield Finding(
                f"the connection to {bare_host(host)} is not encrypted",
                "use https, or allow the hazard insecure-connection",
                Severity.WARNING,
                "insecure-connection",
            )


def _read_units(usage: Any, expected: float) -> float:
    """What an answer says that it cost; *expected* if it does not."""
    units = None if usage is None else usage.read_units
    return expected if units is None else float(units)


def _retry_after_s(error: sdk.ApiError) -> float | None:
    asked = (error.headers or {}).get("retry-after", "")
    try:
        return max(0.0, float(asked))
    except ValueError:
        return None
