"""Addresses: passwords put into them stay whole; what is none is refused, no word of it shown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg2.extensions import parse_dsn

from runner.errors import PlanError
from runner.plan.addresses import joined, wrong_with_dsn, wrong_with_host, wrong_with_url
from runner.plan.load import load_document
from runner.plan.redact import Redactor

AWKWARD = "a@b/c:d#e?f%20g h'i\\j&k=lü"
TARGET = "\ntarget: {store: files, path: out.jsonl}\n"

# libpq takes no empty user, nor U+0000 anywhere
TEXTS = st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=12)


def _put(before: str, secret: str, after: str) -> str:
    return joined([(before, False), (secret, True), (after, False)], is_dsn=True)


@given(TEXTS)
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("postgresql://app:", "@db:5432/x"),
        ("postgresql://app@db/x?password=", "&sslmode=require"),
        ("host=db password=", " dbname=x"),
        ("dbname=x password = '", "' host=db"),
    ],
)
def test_libpq_reads_the_very_password_that_was_put_in(
    before: str, after: str, secret: str
) -> None:
    dsn = _put(before, secret, after)
    parts = parse_dsn(dsn)
    assert parts["password"] == secret
    assert (parts["host"], parts["dbname"]) == ("db", "x")
    assert wrong_with_dsn(dsn) == ""


def test_an_empty_password_takes_nothing_from_the_next_setting() -> None:
    assert parse_dsn(_put("host=db password=", "", " dbname=x"))["dbname"] == "x"


@given(TEXTS)
def test_a_url_keeps_the_very_password_that_was_put_in(secret: str) -> None:
    url = _put("https://u:", secret, "@host:8000/base")
    parts = urlsplit(url)
    assert unquote(parts.password or "") == secret
    assert (parts.hostname, parts.port, parts.path) == ("host", 8000, "/base")


def test_user_and_password_of_one_reference_stay_two() -> None:
    assert _put("https://", "me:a@b:c", "@host") == "https://me:a%40b%3Ac@host"


@pytest.mark.parametrize(
    ("before", "text", "after"),
    [
        ("postgresql://u@", "db.internal:5432", "/x"),
        ("", "postgresql://u:p%40@db/x", "?sslmode=require"),
        ("", "host=db port=5432", " dbname=x"),
        ("postgresql://u@db/", "a", ""),
    ],
)
def test_what_is_no_value_is_put_in_as_it_is(before: str, text: str, after: str) -> None:
    assert _put(before, text, after) == before + text + after


BAD_DSNS = [
    "postgresql://u:abc@defsecret@127.0.0.1:5999/x",
    "postgresql://u:abc/defsecret@127.0.0.1:5999/x",
    "postgresql://u:12/defsecret@127.0.0.1:5999/x",
    "postgresql://u:abc%defsecret@127.0.0.1:5999/x",
    "postgresql://u:abc%zzdefsecret@127.0.0.1:5999/x",
    "postgresql://u:p@h:defsecret/x",
    "postgresql://u:p@h/x%00defsecret",
    "host=h password=abc defsecret",
    "host=h port=defsecret",
    "host=h password='defsecret",
    "defsecret",
]


@pytest.mark.parametrize("dsn", BAD_DSNS)
def test_a_dsn_that_is_none_is_refused_at_its_place_without_a_piece_of_it(
    tmp_path: Path, dsn: str
) -> None:
    problem = _refused(tmp_path, 'source: {store: pgvector, dsn: "${X}", table: a}', {"X": dsn})
    assert problem.startswith(f"{tmp_path / 'plan.yaml'}:1:32: source.dsn: is not a PostgreSQL")
    assert "defsecret" not in problem


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://u:p?q@h/x",
        "postgresql:///x?host=/tmp&user=me@corp",
        "postgresql://u@h1:1,h2:2/x",
        "postgresql://u@[::1]:5432/x",
        "postgresql://%2Ftmp%2Fa/x",
        "postgresql://",
        "host=/tmp/@x dbname='a b' password=it\\'s\\ x",
        "host=h1,h2 port=1,",
        "",
    ],
)
def test_a_dsn_that_libpq_reads_is_fine(dsn: str) -> None:
    parse_dsn(dsn)
    assert wrong_with_dsn(dsn) == ""


@pytest.mark.parametrize(
    "url",
    [
        "http://u:12/defsecret@h:8000", "http://u:abc/defsecret@h", "ftp://defsecret",
        "defsecret:8000", "http://h:defsecret", "http://def secret", "http://u:a%zz@h",
    ],
)  # fmt: skip
def test_a_url_that_is_none_is_refused_at_its_place_without_a_piece_of_it(
    tmp_path: Path, url: str
) -> None:
    problem = _refused(tmp_path, 'source: {store: chroma, url: "${X}", collection: a}', {"X": url})
    assert ":1:30: source.url: is not the URL of a server" in problem
    assert "defsecret" not in problem


def test_hosts_are_names_and_numbers_with_ports() -> None:
    assert [wrong_with_host(each) for each in ("h", "h:1", "[::1]:80", "10.0.0.1:6334")] == [""] * 4
    assert all(wrong_with_host(each) for each in ("a b", "h:x", "h:0", "h:1:2", "a..b"))
    assert wrong_with_url("https://u:p@ss@host", ("https",)) == ""


@pytest.mark.parametrize(
    ("store", "key"),
    [
        ("qdrant", 'api_key: "${X}"'),
        ("chroma", 'token: "${X}"'),
        ("chroma", 'api_key: "${X}"'),
        ("chroma", 'connection: {headers: {X-Any: "${X}"}}'),
        ("qdrant", 'connection: {headers: {Authorization: "Bearer ${X}"}}'),
    ],
)
@pytest.mark.parametrize("secret", ["S3cr3t!pass wörd", "S3cr3t\nHost: x", "S3cr3t\t", "S3cr3t "])
def test_what_no_header_can_carry_is_refused_when_the_plan_is_loaded(
    tmp_path: Path, store: str, key: str, secret: str
) -> None:
    text = f'source: {{store: {store}, url: "https://h", collection: a, {key}}}'
    problem = _refused(tmp_path, text, {"X": secret})
    assert "cannot stand in a header" in problem
    assert f"{tmp_path / 'plan.yaml'}:1:" in problem
    assert key.partition(":")[0] in problem
    assert "S3cr3t" not in problem


@pytest.mark.parametrize(
    "dsn", ["postgresql://u:${P}@db/x", "host=db password=${P}", "host=db password='${P}'"]
)
def test_a_password_of_all_signs_is_redacted_in_every_form(tmp_path: Path, dsn: str) -> None:
    (tmp_path / "plan.yaml").write_text(
        f'source: {{store: pgvector, dsn: "{dsn}", table: a}}' + TARGET
    )
    plan = load_document(tmp_path / "plan.yaml", environ={"P": AWKWARD})
    shown = Redactor(plan.secrets).text(f"{plan.source.options['dsn']} and {AWKWARD}")
    assert not any(each in shown for each in ("a@b", "a%40b", "%23e", "#e", "i\\", "lü"))


def _refused(tmp_path: Path, source: str, environ: Mapping[str, str]) -> str:
    (tmp_path / "plan.yaml").write_text(source + TARGET)
    with pytest.raises(PlanError) as caught:
        load_document(tmp_path / "plan.yaml", environ=environ)
    return str(caught.value)
