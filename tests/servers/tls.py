"""TLS for tests: a private authority, and a proxy that puts TLS in front of a plain server."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


@dataclass(frozen=True)
class Pair:
    """A certificate and its key: PEM files."""

    cert: Path
    key: Path


class Authority:
    """A private certificate authority that lives in *folder*.

    Attributes:
        ca_file: Its certificate, PEM: what a client has to trust.
    """

    def __init__(self, folder: Path, name: str = "private test authority") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = _certificate(self._name, self._name, self._key.public_key())
        self._certificate = (
            builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(key_cert_sign=True), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False
            )
            .sign(self._key, hashes.SHA256())
        )
        self.ca_file = folder / "ca.pem"
        self.ca_file.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def server(self, *hosts: str) -> Pair:
        """A server's certificate for *hosts*: names or addresses; loopback by default."""
        names: list[x509.GeneralName] = [_general_name(each) for each in hosts or _LOOPBACK]
        return self._issue("server", ExtendedKeyUsageOID.SERVER_AUTH, names)

    def client(self, name: str = "client") -> Pair:
        """A client's certificate in the name of *name*."""
        return self._issue(name, ExtendedKeyUsageOID.CLIENT_AUTH, [x509.DNSName(name)])

    def _issue(
        self, name: str, purpose: x509.ObjectIdentifier, names: Sequence[x509.GeneralName]
    ) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            _certificate(subject, self._name, key.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        pair = Pair(self._folder / f"{name}.pem", self._folder / f"{name}.key")
        pair.cert.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        pair.key.touch(0o600)  # libpq takes no key that others could read
        pair.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return pair


class TlsProxy:
    """Ends TLS on a free port and passes the bytes on to a plain server.

    Args:
        upstream: ``(host, port)`` of the plain server.
        pair: The certificate to show.
        alpn: Protocols to offer, as ``h2`` or ``http/1.1``; none by default.
        client_ca: When given, clients must show a certificate that it signed.
        host: Where to listen.

    Attributes:
        port: Where it listens.
        handshakes: How many TLS handshakes succeeded so far.
        failures: Handshakes that did not succeed, each with its reason.
    """

    def __init__(
        self,
        upstream: tuple[str, int],
        pair: Pair,
        *,
        alpn: Sequence[str] = (),
        client_ca: Path | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self._upstream = upstream
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(pair.cert, pair.key)
        if alpn:
            self._context.set_alpn_protocols(list(alpn))
        if client_ca is not None:
            self._context.load_verify_locations(client_ca)
            self._context.verify_mode = ssl.CERT_REQUIRED
        self.host = host
        self._listener = socket.create_server((host, 0))
        self.port: int = self._listener.getsockname()[1]
        self.handshakes = 0
        self.failures: list[str] = []
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._stopped = False
        self._start(self._accept)

    @property
    def address(self) -> str:
        """``host:port``."""
        return f"{self.host}:{self.port}"

    def stop(self) -> None:
        """Close everything; returns when no thread is left."""
        with self._lock:
            self._stopped = True
            open_now = [self._listener, *self._open]
        for each in open_now:
            # shutdown wakes a thread that waits in accept or recv; close alone does not
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        for thread in self._threads:
            thread.join(10)

    def __enter__(self) -> TlsProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _start(self, work: object, *args: object) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._serve, plain)

    def _serve(self, plain: socket.socket) -> None:
        with self._kept(plain):
            try:
                # a thread each for both directions needs the two to be independent: BIO
                secure = _Secure(plain, self._context)
            except OSError as error:
                self.failures.append(str(error))
                return
            self.handshakes += 1
            try:
                upstream = socket.create_connection(self._upstream)
            except OSError:
                return
            with self._kept(upstream):
                back = threading.Thread(target=self._return, args=(upstream, secure), daemon=True)
                back.start()
                with contextlib.suppress(OSError):
                    while chunk := secure.read():
                        upstream.sendall(chunk)
                with contextlib.suppress(OSError):
                    upstream.shutdown(socket.SHUT_RDWR)
                back.join()

    def _return(self, upstream: socket.socket, secure: _Secure) -> None:
        with contextlib.suppress(OSError):
            while chunk := upstream.recv(65536):
                secure.write(chunk)
        with contextlib.suppress(OSError):
            secure.end()

    @contextlib.contextmanager
    def _kept(self, connection: socket.socket) -> Iterator[None]:
        with self._lock:
            self._open.add(connection)
            stopped = self._stopped
        try:
            if not stopped:
                yield
        finally:
            with self._lock:
                self._open.discard(connection)
            connection.close()


class _Secure:
    """The server's end of one TLS connection; one thread may read while another writes."""

    def __init__(self, plain: socket.socket, context: ssl.SSLContext) -> None:
        self._plain = plain
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)
        self._lock = threading.Lock()
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush()
                if not self._fill():
                    raise OSError("the client left during the handshake") from None
            except ssl.SSLError:
                self._flush()  # the alert that says why
                raise
            else:
                self._flush()
                return

    def read(self) -> bytes:
        """Some plain bytes; none at the end."""
        while True:
            with self._lock:
                try:
                    return self._tls.read(65536)
                except ssl.SSLWantReadError:
                    self._flush()
                except ssl.SSLZeroReturnError:
                    return b""
            if not self._fill():
                return b""

    def write(self, chunk: bytes) -> None:
        with self._lock:
            self._tls.write(chunk)
            self._flush()

    def end(self) -> None:
        """Say goodbye, and let a reader that waits go."""
        with self._lock:
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()
            self._flush()
        self._plain.shutdown(socket.SHUT_RDWR)

    def _fill(self) -> bool:
        chunk = self._plain.recv(65536)
        with self._lock:
            self._in.write(chunk)
        return bool(chunk)

    def _flush(self) -> None:
        if self._out.pending:
            self._plain.sendall(self._out.read())


_LOOPBACK = ("localhost", "127.0.0.1", "::1")


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _certificate(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=2))
    )


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=key_cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
