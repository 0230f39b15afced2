"""URLs and connection strings of plans: what references put into them, and what is no address.

A password is put in so that it stays one: percent-encoded inside a URL, escaped inside
libpq's ``key=value`` form.  One that comes with a whole address is its writer's to encode;
where that was forgotten, a client would take a piece of it for a host or a port, and say so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import quote, unquote_to_bytes

__all__ = ["joined", "wrong_with_dsn", "wrong_with_host", "wrong_with_url"]

REFERRED = "\0"
"""Stands for a reference in an outline; no plan may hold it."""

_SCHEME = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]*://")
_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_ESCAPED_BY_LIBPQ = re.compile(r"[\s'\"&\\]")  # where the redaction would stop, too
_BEGUN_VALUE = re.compile(r"(?:^|\s)\w+\s*=\s*(?P<value>'(?:[^'\\]|\\.)*|(?:[^\s'\\]|\\.)*)$")
_SETTING = re.compile(
    r"\s*(?P<key>\w+)\s*=\s*(?:'(?P<quoted>(?:[^'\\]|\\.)*)'|(?P<bare>(?!')(?:[^\s\\]|\\.)*))"
    r"(?=\s|$)",
    re.DOTALL,
)


def joined(parts: Sequence[tuple[str, bool]], *, is_dsn: bool) -> str:
    """An address of literal pieces and texts of references, each encoded as its place asks for.

    Args:
        parts: Texts in order, and whether each comes from a reference.
        is_dsn: Whether ``key=value`` pairs are a connection string of PostgreSQL.
    """
    outline = "".join(REFERRED if refers else text for text, refers in parts)
    scheme = _SCHEME.match(outline)
    done, at = "", 0
    for text, refers in parts:
        if not refers:
            done += text
            at += len(text)
            continue
        if scheme:
            done += _in_url(text, outline, scheme.end(), at)
        else:
            done += _in_settings(text, outline, at) if is_dsn else text
        at += 1
    return done


def _in_url(text: str, outline: str, start: int, at: int) -> str:
    found = re.compile(r"[/?#]").search(outline, start)
    end = found.start() if found else len(outline)
    sign = outline.rfind("@", start, end)
    if start <= at < sign:
        if outline[start:sign] == REFERRED:  # user and password in one
            user, colon, password = text.partition(":")
            return quote(user, safe="") + colon + quote(password, safe="")
        return quote(text, safe="")
    query = outline.find("?", start)
    if 0 <= query < at and "=" in outline[max(outline.rfind("&", 0, at), query) : at]:
        return quote(text, safe="")
    return text


def _in_settings(text: str, outline: str, at: int) -> str:
    found = _BEGUN_VALUE.search(outline[:at])
    if not found:
        return text  # settings of its own
    if not text and not found["value"] and (at + 1 == len(outline) or outline[at + 1].isspace()):
        return "''"  # else the next setting would be taken for this one's value
    if found["value"].startswith("'"):
        return re.sub(r"['\\]", r"\\\g<0>", text)
    return _ESCAPED_BY_LIBPQ.sub(r"\\\g<0>", text)


def wrong_with_url(url: str, schemes: Sequence[str]) -> str:
    """What keeps *url* from being one, without a piece of it; empty if nothing does."""
    scheme = _SCHEME.match(url)
    if not scheme or scheme.group()[:-3].lower() not in schemes:
        return f"expected {' or '.join(f'{each}://host' for each in schemes)}"
    authority = re.split(r"[/?#]", url[scheme.end() :], maxsplit=1)[0]
    if "@" not in authority and "@" in url:
        return "an `@` stands behind the host"
    hosts = authority.rpartition("@")[2]
    return _wrong_with_escapes(url) or wrong_with_host(hosts)


def wrong_with_dsn(dsn: str) -> str:
    """What keeps *dsn* from being one of PostgreSQL's, without a piece of it; empty if nothing."""
    if re.match(r"postgres(?:ql)?://", dsn):
        return _wrong_with_uri(dsn)
    at = 0
    settings = {}
    while dsn[at:].strip():
        found = _SETTING.match(dsn, at)
        if not found:
            return "it has something that is not `key=value`; a value with blanks is quoted"
        quoted, bare = found["quoted"], found["bare"]
        settings[found["key"]] = re.sub(r"\\(.)", r"\1", bare if quoted is None else quoted)
        at = found.end()
    return _wrong_with_hosts(
        settings.get("host", "").split(","), settings.get("port", "").split(",")
    )


def _wrong_with_uri(dsn: str) -> str:
    # as libpq reads it: the user ends at the first `@` before the first `/`
    authority, _, rest = dsn.partition("://")[2].partition("/")
    _, sign, hosts = authority.rpartition("@")
    if authority.count("@") > 1:
        return "it has more than one `@` before its path"
    hosts, settings, _ = hosts.partition("?")
    if not sign and not settings and "@" in rest.partition("?")[0]:
        return "an `@` stands behind the host"
    wrong = _wrong_with_escapes(dsn)
    for each in hosts.split(","):
        wrong = wrong or (wrong_with_host(each) if each else "")
    return wrong


def _wrong_with_escapes(url: str) -> str:
    if _PERCENT.search(url):
        return "a `%` in it is not followed by two hexadecimal digits"
    try:
        plain = unquote_to_bytes(url).decode()
    except UnicodeDecodeError:
        return "what is percent-encoded in it is not UTF-8"
    return "it holds U+0000" if "\0" in plain else ""


def wrong_with_host(host: str) -> str:
    """What keeps *host* from being ``host`` or ``host:port``; empty if nothing does."""
    if found := re.fullmatch(r"(\[[^\]]*\]|[^:]*)(?::(.*))?", host):
        return _wrong_with_hosts([found[1]], [found[2] or ""])
    return "its port is not a number"


def _wrong_with_hosts(hosts: Sequence[str], ports: Sequence[str]) -> str:
    for port in ports:
        if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            return "its port is not a number from 1 to 65535"
    for host in hosts:
        # a folder with a socket may be called anything
        if not host.startswith(("/", "%2F", "%2f", "@")) and not _is_name(host):
            return "its host is not the name or number of one"
    return ""


def _is_name(host: str) -> bool:
    if re.search(r"[\s@?#\x00-\x1f\x7f]", host):
        return False
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True
