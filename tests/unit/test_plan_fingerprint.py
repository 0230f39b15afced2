"""The fingerprint changes when the result would, and only then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runner.plan.fingerprint import fingerprint
from runner.plan.load import load_document

BASE = """\
source: {store: pgvector, dsn: "${DSN}", table: a, where: "x = 1"}
target: {store: qdrant, url: "http://localhost:6333", collection: b, metric: l2, index: {m: 16}}
transforms:
  - rename: {a: b}
"""


def _fingerprint(
    folder: Path, text: str = BASE, dsn: str = "host=db", code: str = "", extra: Any = None
) -> str:
    (folder / "plan.yaml").write_text(text)
    document = load_document(folder / "plan.yaml", environ={"DSN": dsn})
    return fingerprint(document, transforms_code=code, extra=extra or {"identity": "x"})


def test_the_same_plan_has_the_same_fingerprint(tmp_path: Path) -> None:
    assert _fingerprint(tmp_path) == _fingerprint(tmp_path)
    assert len(_fingerprint(tmp_path)) == 64


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", "batch_size: 7\n"),
        ("", "keep_norm: false\n"),
        ("", "workers: 5\n"),
        ("", "validation: quick\n"),
        ("", "description: other words\n"),
        ("", "allow: [replace-target]\n"),
        ("", "state_dir: elsewhere\n"),
        ("", "unsupported: json\nvars: {a: b}\n"[17:]),
        ("localhost:6333", "other:6333"),
        ("collection: b", "collection: b, connection: {timeout_s: 5}"),
        ("rename: {a: b}", "rename:   {a: b}   # with a comment"),
    ],
)
def test_what_does_not_change_the_result_does_not_change_it(
    tmp_path: Path, old: str, new: str
) -> None:
    changed = BASE.replace(old, new) if old else BASE + new
    assert changed != BASE
    assert _fingerprint(tmp_path, changed) == _fingerprint(tmp_path)


def test_another_address_or_credential_does_not_change_it(tmp_path: Path) -> None:
    assert _fingerprint(tmp_path, dsn="postgresql://u:pw@moved/x") == _fingerprint(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", "limit: 7\n"),
        ("", "ids: uuid5\n"),
        ("", "ids: {from: x}\n"),
        ("", "fields: {a: {type: int}}\n"),
        ("", "unsupported: json\n"),
        ("", "keep_norm: true\n"),
        ("x = 1", "x = 2"),
        ("metric: l2", "metric: dot"),
        ("m: 16", "m: 17"),
        ("{a: b}", "{a: c}"),
        ("rename: {a: b}", "rename: {a: b}\n    on_error: keep"),
        ("rename: {a: b}", "keep: [a]"),
        ("store: qdrant, url", "store: chroma, url"),
    ],
)
def test_what_changes_the_result_changes_it(tmp_path: Path, old: str, new: str) -> None:
    changed = BASE.replace(old, new) if old else BASE + new
    assert _fingerprint(tmp_path, changed) != _fingerprint(tmp_path)


def test_other_tenants_change_it(tmp_path: Path) -> None:
    base = BASE.replace(
        'pgvector, dsn: "${DSN}", table: a, where: "x = 1"',
        "weaviate, url: 'http://localhost:8080', collection: A, tenants: [a]",
    )
    assert "weaviate" in base
    for old, new in (("[a]", "[a, b]"), ("[a]", "all"), ("[a]", "[a], inactive_tenants: leave")):
        changed = base.replace(f"tenants: {old}", f"tenants: {new}")
        assert _fingerprint(tmp_path, changed) != _fingerprint(tmp_path, base)


def test_files_that_move_along_with_the_plan_do_not_change_it(tmp_path: Path) -> None:
    def at(name: str, path: str) -> str:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return _fingerprint(folder, extra={"source": {"path": path.format(folder)}})

    assert at("a", "{}/in/x.parquet") == at("b", "{}/in/x.parquet")
    assert at("a", "{}/in/x.parquet") != at("b", "{}/in/y.parquet")
    assert at("a", "/data/x.parquet") == at("b", "/data/x.parquet")
    assert at("a", "/data/x.parquet") != at("a", "/other/x.parquet")
    assert at("a", "{}/../a.parquet") != at("b", "{}/../b.parquet")


def test_the_transforms_code_and_the_identities_change_it(tmp_path: Path) -> None:
    assert _fingerprint(tmp_path, code="def f(): …") != _fingerprint(tmp_path)
    assert _fingerprint(tmp_path, extra={"identity": "y"}) != _fingerprint(tmp_path)
