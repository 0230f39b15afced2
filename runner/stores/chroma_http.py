"""A Chroma server over its REST interface, version 2, with one connection pool of our own.

Chroma's own client keeps neither status codes nor `Retry-After`, offers no timeout,
client certificate or proxy, and asks more of the server than we need.
"""

# ruff: noqa: D102 - the protocol `Engine` says what each method does

from __future__ import annotations

import ssl
from base64 import b64encode
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from functools import cached_property
from time import time
from typing import Any
from urllib.parse import quote, unquote, urlsplit, urlunsplit

import certifi
import httpx
import orjson

from runner.errors import (
    AuthError,
    CollectionMismatchError,
    CollectionNotFoundError,
    PlanError,
    StoreError,
    TransientStoreError,
)
from runner.model import FloatArray, Select
from runner.stores.base import Connection, Location
from runner.stores.chroma_engine import Held, Making, Rows, as_vectors, included

__all__ = ["HttpEngine", "bare_url", "is_cloud"]

_API = "/api/v2"
_CLOUD = "trychroma.com"
# https://docs.trychroma.com/cloud/quotas-limits: records in a write, results of a read
_CLOUD_RECORDS = 300
_QUOTA_ERROR = "QuotaError"
_READERS, _WRITERS = 8, 2
# connections that ended, which is nothing that TLS found wrong
_BROKEN_TLS = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
_OTHER_NAME = {62, 64}  # X509_V_ERR_HOSTNAME_MISMATCH and _IP_ADDRESS_MISMATCH


class _TooLargeError(StoreError):
    """The server takes no request of this size."""


class HttpEngine:
    """One tenant's database on a server.

    Args:
        location: ``url``, ``token``, ``api_key`` and the connection.
        tenant, database: Where the collections are.
    """

    def __init__(self, location: Location, tenant: str, database: str) -> None:
        self._url = bare_url(str(location.options["url"]))
        self._place = f"/tenants/{quote(tenant, safe='')}/databases/{quote(database, safe='')}"
        self._database = f"database {database!r} of tenant {tenant!r}"
        self._client = _client(location)
        self._is_cloud = is_cloud(str(location.options["url"]))

    @cached_property
    def _limits(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._ask("GET", "/pre-flight-checks")
        return found

    @property
    def write_records(self) -> int:
        """Most records in one request: the server's own limit, and a second of its work."""
        most = _CLOUD_RECORDS if self._is_cloud else 1000
        return min(most, int(self._limits.get("max_batch_size", most)))

    @property
    def read_records(self) -> int:
        return _CLOUD_RECORDS if self._is_cloud else 5_000

    @property
    def list_records(self) -> int:
        return _CLOUD_RECORDS if self._is_cloud else 10_000

    def holds_sparse(self) -> bool | None:
        """One node holds none; what a collection is built of shows which kind of server it is."""
        if self._is_cloud:
            return True
        for each in self._ask("GET", f"{self._place}/collections?limit=1"):
            return bool((each.get("configuration_json") or {}).get("spann"))
        return None

    def collection(self, name: str) -> Held | None:
        try:
            found = self._ask("GET", f"{self._place}/collections/{quote(name, safe='')}")
        except CollectionNotFoundError:
            # 404 also means that the database, or the whole interface, is not there
            self._ask_for_database()
            return None
        return Held(
            found["id"],
            found["name"],
            found.get("dimension"),
            found.get("metadata") or {},
            found.get("configuration_json") or {},
            found.get("schema") or {},
        )

    def _ask_for_database(self) -> None:
        try:
            self._ask("GET", self._place)
        except CollectionNotFoundError as error:
            raise StoreError(
                f"{self._url} has no {self._database}",
                "check `tenant` and `database`; servers before Chroma 0.5.16 lack this interface",
            ) from error

    def collections(self) -> int:
        return int(self._ask("GET", f"{self._place}/collections_count"))

    def create(self, name: str, making: Making) -> None:
        body: dict[str, Any] = {
            "name": name,
            "metadata": dict(making.metadata) or None,
            "get_or_create": False,
        }
        said = {"configuration": making.configuration, "schema": making.schema}
        # servers before 1.3 know of no schema
        body |= {key: value for key, value in said.items() if value is not None}
        self._ask("POST", f"{self._place}/collections", body)

    def modify(
        self, held: Held, *, name: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> None:
        body = {"new_name": name, "new_metadata": None if metadata is None else dict(metadata)}
        self._ask("PUT", self._of(held), {key: value for key, value in body.items() if value})

    def remove(self, held: Held) -> None:
        self._ask("DELETE", f"{self._place}/collections/{quote(held.name, safe='')}")

    def count(self, held: Held) -> int:
        return int(self._ask("GET", f"{self._of(held)}/count"))

    def ids(self, held: Held, limit: int, offset: int = 0) -> list[str]:
        body = {"limit": limit, "offset": offset, "include": []}
        found: list[str] = self._ask("POST", f"{self._of(held)}/get", body)["ids"]
        return found

    def get(self, held: Held, ids: Sequence[str], select: Select) -> Rows:
        body = {"ids": list(ids), "include": included(select)}
        found = self._ask("POST", f"{self._of(held)}/get", body)
        rows = Rows(found["ids"])
        if Select.VECTORS in select:
            rows.vectors = as_vectors(found["embeddings"], rows.ids)
        rows.documents = found.get("documents") or []
        rows.metadata = found.get("metadatas") or []
        rows.uris = found.get("uris") or []
        return rows

    def add(self, held: Held, rows: Rows) -> None:
        assert rows.vectors is not None
        body = {
            "ids": rows.ids,
            "embeddings": self._encoded(rows.vectors),
            "metadatas": rows.metadata,
            "documents": rows.documents,
            "uris": list(rows.uris) or None,
        }
        try:
            self._ask("POST", f"{self._of(held)}/add", body)
        except _TooLargeError:
            if len(rows.ids) == 1:
                raise
            half = len(rows.ids) // 2
            self.add(held, rows.part(0, half))
            self.add(held, rows.part(half, len(rows.ids)))

    def _encoded(self, vectors: FloatArray) -> Any:
        if not self._limits.get("supports_base64_encoding"):
            return vectors
        little = vectors.astype("<f4", copy=False)
        return [b64encode(row.tobytes()).decode() for row in little]

    def delete(self, held: Held, ids: Sequence[str]) -> None:
        self._ask("POST", f"{self._of(held)}/delete", {"ids": list(ids)})

    def query(
        self, held: Held, queries: FloatArray, k: int
    ) -> tuple[list[list[str]], list[list[float]]]:
        body = {"query_embeddings": queries, "n_results": k, "include": ["distances"]}
        found = self._ask("POST", f"{self._of(held)}/query", body)
        return found["ids"], found["distances"]

    def close(self) -> None:
        self._client.close()

    def _of(self, held: Held) -> str:
        return f"{self._place}/collections/{held.id}"

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        content = None
        if body is not None:
            content = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        try:
            answer = self._client.request(method, path, content=content)
        except httpx.HTTPError as error:
            raise _unreached(self._url, error) from error
        if answer.status_code >= 400:
            raise _refused(self._url, answer)
        try:
            return orjson.loads(answer.content or b"null")
        except orjson.JSONDecodeError as error:
            raise StoreError(
                f"{self._url} answered {method} {path} with something that is not JSON",
                "is this a Chroma server?",
            ) from error


def is_cloud(url: str) -> bool:
    """Whether *url* is that of Chroma Cloud."""
    host = (urlsplit(url).hostname or "").casefold().rstrip(".")
    return host == _CLOUD or host.endswith(f".{_CLOUD}")


def bare_url(url: str) -> str:
    """*url* without user, password, query and a trailing slash: fit to be shown."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path.rstrip("/").removesuffix(_API), "", ""))


def _client(location: Location) -> httpx.Client:
    url, connection = str(location.options["url"]), location.connection
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise PlanError(f"{location.side}.url is not a URL", "write `url: http://host:8000`")
    auth = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
    most = _READERS + _WRITERS
    return httpx.Client(
        base_url=bare_url(url) + _API,
        auth=auth,
        headers={**_headers(location), **connection.headers},
        timeout=httpx.Timeout(connection.timeout_s),
        limits=httpx.Limits(max_connections=most, max_keepalive_connections=most),
        verify=_tls(connection) if parts.scheme == "https" else True,
        proxy=connection.proxy,
        trust_env=False,  # no host that the plan does not name: also no proxy from outside
    )


def _headers(location: Location) -> dict[str, str]:
    headers = {"Content-Type": "application/json"}
    if location.options.get("token"):
        headers["Authorization"] = f"Bearer {location.options['token']}"
    if location.options.get("api_key"):
        headers["X-Chroma-Token"] = str(location.options["api_key"])
    return headers


def _tls(connection: Connection) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=connection.ca_file)
        if connection.ca_file is None:
            context.load_verify_locations(certifi.where())
    except (OSError, ssl.SSLError) as error:
        raise StoreError(
            f"connection.ca_file: {connection.ca_file} holds no certificates: {error}",
            "name a PEM file",
        ) from error
    if connection.cert_file is not None:
        try:
            context.load_cert_chain(connection.cert_file, connection.key_file)
        except (OSError, ssl.SSLError) as error:
            raise StoreError(
                f"connection.cert_file: {connection.cert_file} could not be loaded: {error}",
                "name PEM files of a certificate and its key",
            ) from error
    if connection.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _unreached(url: str, error: httpx.HTTPError) -> StoreError:
    """What a request that got no answer means."""
    secure = _tls_error(error)
    if isinstance(secure, ssl.SSLCertVerificationError):
        named = secure.verify_code in _OTHER_NAME
        return StoreError(
            f"{url}: its certificate is not trusted: {secure.verify_message}",
            "write the host name that the certificate has"
            if named
            else "name the authority that signed it in connection.ca_file",
        )
    if secure is not None and not isinstance(secure, _BROKEN_TLS):
        return StoreError(
            f"{url}: TLS failed: {secure.reason or secure}",
            "does the server speak TLS, and does it ask for a certificate (connection.cert_file)?",
        )
    if isinstance(error, httpx.UnsupportedProtocol):
        return StoreError(f"{url}: {error}", "write `url: http://host:8000`")
    if isinstance(error, httpx.TimeoutException):
        return TransientStoreError(
            f"{url} did not answer in time ({type(error).__name__})", "raise connection.timeout_s"
        )
    if isinstance(error, httpx.ProxyError):
        return TransientStoreError(f"{url}: the proxy failed: {error}", "check connection.proxy")
    return TransientStoreError(
        f"{url} could not be reached: {error or type(error).__name__}", "is the server running?"
    )


def _tls_error(error: BaseException | None) -> ssl.SSLError | None:
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return error
        error = error.__cause__ or error.__context__
    return None


def _refused(url: str, answer: httpx.Response) -> StoreError:
    """What a status of 400 or more means."""
    what = f"{url}: {answer.status_code} {_reason(answer)}"
    status = answer.status_code
    if status in {401, 403, 407}:
        return AuthError(what, "check `token`, `api_key`, or connection.headers")
    if status == 404:
        return CollectionNotFoundError(what, "check `collection`, `tenant` and `database`")
    if status == 409:
        return CollectionMismatchError(what)
    if status == 413:
        return _TooLargeError(what, "one record is larger than the server takes")
    if _answered(answer).get("error") == _QUOTA_ERROR:
        return StoreError(what, "Chroma Cloud raises most quotas upon request")
    if status in {408, 425, 429} or (status >= 500 and status != 501):
        hint = "if it names a quota: Chroma Cloud raises most upon request" if status == 429 else ""
        return TransientStoreError(what, hint, _retry_after_s(answer))
    return StoreError(what)


def _reason(answer: httpx.Response) -> str:
    text = answer.text[:300]
    return str(_answered(answer).get("message") or text or answer.reason_phrase)[:300]


def _answered(answer: httpx.Response) -> dict[str, Any]:
    """The body of a refusal, if it is an object."""
    try:
        found = orjson.loads(answer.content)
    except orjson.JSONDecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def _retry_after_s(answer: httpx.Response) -> float | None:
    asked = answer.headers.get("retry-after", "").strip()
    if not asked:
        return None
    try:
        return max(0.0, float(asked))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(asked).timestamp() - time())
    except ValueError:
        return None
