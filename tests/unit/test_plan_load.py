"""Plan file → document: defaults, paths, types after references, secrets."""

from __future__ import annotations

import glob
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.errors import PlanError
from runner.model import BatchSize
from runner.plan import schema
from runner.plan.load import load_document
from runner.plan.model import (
    FieldPolicy,
    Hazard,
    IdPolicy,
    IfExists,
    OnError,
    PlanDocument,
    QueryCheck,
    TransformStep,
    Unsupported,
    Validation,
)
from runner.plan.redact import Redactor
from runner.plan.yaml_text import core_value

SHORTEST = """\
source: {store: files, path: in.jsonl}
target: {store: files, path: out.parquet}
"""


def _load(folder: Path, text: str = SHORTEST, **options: Any) -> PlanDocument:
    (folder / "plan.yaml").write_text(text, encoding="utf-8")
    options.setdefault("environ", {})
    return load_document(folder / "plan.yaml", **options)


def _refused(folder: Path, text: str, **options: Any) -> str:
    with pytest.raises(PlanError) as caught:
        _load(folder, text, **options)
    return str(caught.value)


def test_the_shortest_plan_is_a_source_and_a_target(tmp_path: Path) -> None:
    plan = _load(tmp_path)
    assert plan.name == "plan"
    assert plan.description == ""
    assert plan.source.store == plan.target.store == "files"
    assert (plan.source.side, plan.target.side) == ("source", "target")
    assert plan.if_exists is IfExists.REFUSE
    assert plan.strategy == "big_bang"
    assert plan.batch_size == BatchSize(1000, None)
    assert plan.workers == 2
    assert plan.transforms == ()
    assert plan.validation == Validation()
    assert plan.ids == IdPolicy("auto", None)
    assert plan.fields == {}
    assert plan.unsupported is None
    assert plan.allow == frozenset()
    assert plan.limit is None
    assert plan.state_dir is None
    assert plan.text == SHORTEST


def test_every_key_arrives(tmp_path: Path) -> None:
    plan = _load(
        tmp_path,
        """
version: 1
name: docs
description: Consolidate
source: {store: pgvector, dsn: "host=db", table: a, where: "x > 1", limit: 50}
target: {store: chroma, path: c, collection: d, if_exists: append, metric: l2}
strategy: {type: big_bang}
batch_size: {records: 10, bytes: 1.5 MiB}
workers: 4
transforms:
  - rename: {a: b}
  - cast: {year: int}
    on_error: dead_letter
ids: {from: doc_id}
fields: {tags: {type: text, unsupported: stringify}, note: {}}
unsupported: drop
allow: [replace-target, lossy-fields]
limit: 70
state_dir: state
""",
    )
    assert (plan.name, plan.description) == ("docs", "Consolidate")
    assert plan.source.options == {
        "dsn": "host=db", "table": "a", "vectors": "all", "where": "x > 1",
    }  # fmt: skip
    assert plan.target.options["metric"] == "l2"
    assert plan.if_exists is IfExists.APPEND
    assert plan.batch_size == BatchSize(10, 3 * 2**19)
    assert plan.workers == 4
    assert plan.transforms == (
        TransformStep("rename", {"a": "b"}, OnError.FAIL, "transforms[0]"),
        TransformStep("cast", {"year": "int"}, OnError.DEAD_LETTER, "transforms[1]"),
    )
    assert plan.ids == IdPolicy("field", "doc_id")
    assert plan.fields == {
        "tags": FieldPolicy("text", Unsupported.STRINGIFY),
        "note": FieldPolicy(None, None),
    }
    assert plan.unsupported is Unsupported.DROP
    assert plan.allow == {Hazard.REPLACE_TARGET, Hazard.LOSSY_FIELDS}
    assert plan.limit == 50
    assert plan.state_dir == tmp_path / "state"


def test_what_the_caller_says_wins_over_the_plan(tmp_path: Path) -> None:
    text = SHORTEST + "limit: 7\nstate_dir: state\n"
    plan = _load(tmp_path, text, limit=9, state_dir=tmp_path / "elsewhere")
    assert plan.limit == 9
    assert plan.state_dir == tmp_path / "elsewhere"


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("123", 123),
        ("5B", 5),
        ("8 MiB", 8 << 20),
        ("8MB", 8_000_000),
        ("2kB", 2000),
        ("1GiB", 1 << 30),
    ],
)
def test_bytes_may_have_a_unit(tmp_path: Path, text: str, size: int) -> None:
    plan = _load(tmp_path, SHORTEST + f"batch_size: {{bytes: {text}}}\n")
    assert plan.batch_size == BatchSize(1000, size)


def test_a_level_sets_every_check_and_single_keys_override_it(tmp_path: Path) -> None:
    def validation(text: str) -> Validation:
        return _load(tmp_path, SHORTEST + f"validation: {text}\n").validation

    quick = Validation(level="quick", ids=False, checksum="none", metadata_sample=100, queries=None)
    assert validation("quick") == validation("{level: quick}") == quick
    assert validation("standard") == Validation()
    assert validation("full") == Validation(
        level="full", metadata_sample=10_000, queries=QueryCheck(sample=500)
    )
    assert validation("{level: full, metadata: none, queries: {k: 5}}") == Validation(
        level="full", metadata_sample=0, queries=QueryCheck(sample=500, k=5)
    )
    assert validation("{level: quick, queries: {min_recall_ratio: 1}}").queries == QueryCheck(
        min_recall_ratio=1
    )
    assert validation("{count: none, ids: none, checksum: sample, max_dead_letters: 3}") == (
        Validation(count=False, ids=False, checksum="sample", max_dead_letters=3)
    )
    file = validation("{queries: {file: q.parquet}}").queries
    assert file == QueryCheck(sample=None, file=tmp_path / "q.parquet")


def test_paths_are_relative_to_the_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    plan = _load(
        tmp_path,
        """
source: {store: faiss, path: ../a.index, sidecar: ~/a.parquet}
target:
  store: qdrant
  url: https://q
  collection: c/d
  connection: {ca_file: ca.pem, cert_file: /etc/c.pem, key_file: ./k.pem}
""",
    )
    assert plan.source.options["path"] == str(tmp_path.parent / "a.index")
    assert plan.source.options["sidecar"] == "/home/somebody/a.parquet"
    assert plan.target.options["collection"] == "c/d"
    assert plan.target.connection.ca_file == tmp_path / "ca.pem"
    assert plan.target.connection.cert_file == Path("/etc/c.pem")
    assert plan.target.connection.key_file == tmp_path / "k.pem"


def test_a_glob_matches_in_a_folder_with_brackets_in_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "data [old]"
    folder.mkdir()
    (folder / "a.jsonl").touch()
    plan = _load(folder, SHORTEST.replace("in.jsonl", '"*.jsonl"'))
    assert glob.glob(plan.source.options["path"]) == [str(folder / "a.jsonl")]


def test_a_path_that_is_no_glob_keeps_its_brackets(tmp_path: Path) -> None:
    folder = tmp_path / "data [old]"
    folder.mkdir()
    plan = _load(folder, "source: {store: faiss, path: 'a[1].index'}\n" + SHORTEST.splitlines()[1])
    assert plan.source.options["path"] == str(folder / "a[1].index")


def test_defaults_of_a_location_are_filled_in(tmp_path: Path) -> None:
    plan = _load(
        tmp_path,
        """
source: {store: chroma, path: c, collection: a}
target: {store: qdrant, url: "http://localhost:6333", collection: a}
""",
    )
    assert plan.source.options["snapshot"] == "auto"
    assert plan.source.options["tenant"] == "default_tenant"
    assert plan.target.options["transport"] == "grpc"
    assert plan.target.options["document_field"] == "document"
    assert "snapshot" not in plan.target.options
    assert not {"store", "connection", "if_exists", "limit"} & set(plan.target.options)


def test_the_root_is_the_nearest_folder_under_git(tmp_path: Path) -> None:
    inner = tmp_path / "repository" / "plans"
    inner.mkdir(parents=True)
    assert _load(inner).root == inner
    (tmp_path / "repository" / ".git").touch()  # a file in a worktree
    assert _load(inner).root == tmp_path / "repository"


def test_a_name_is_made_of_an_awkward_file_name(tmp_path: Path) -> None:
    path = tmp_path / ".my plan (v2).yaml"
    path.write_text(SHORTEST)
    assert load_document(path, environ={}).name == "my-plan-v2-"


def test_positions_lead_to_values(tmp_path: Path) -> None:
    plan = _load(tmp_path, SHORTEST + "transforms:\n  - cast: {year: int}\n")
    assert plan.positions["transforms[0].cast.year"] == (4, 18)
    assert plan.place("transforms[0].cast.year").endswith("plan.yaml:4:18: transforms[0].cast.year")
    assert plan.place("target.columns.id").endswith("plan.yaml:2:9: target.columns.id")


# ---- references


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("limit: ${N}", ("limit", 12)),
        ('limit: "${N}"', ("limit", 12)),
        ("name: ${N}", ("name", "12")),
    ],
)
def test_the_schema_decides_whether_a_reference_is_a_number(
    tmp_path: Path, text: str, expected: tuple[str, object]
) -> None:
    plan = _load(tmp_path, f"{SHORTEST}{text}\n", environ={"N": "12"})
    assert getattr(plan, expected[0]) == expected[1]
    assert type(getattr(plan, expected[0])) is type(expected[1])


def test_keys_and_names_of_digits_stay_text(tmp_path: Path) -> None:
    plan = _load(
        tmp_path,
        """
source: {store: qdrant, url: "http://localhost", collection: "${DIGITS}", api_key: "${DIGITS}"}
target: {store: pgvector, dsn: "host=h", table: "${NULL}", schema: "${TRUE}",
  columns: {document: "${NULL}"}}
batch_size: {bytes: "${SIZE}"}
transforms:
  - default: {year: "${DIGITS}", ok: "${TRUE}", text: "x${DIGITS}"}
  - rename: {a: "${DIGITS}"}
""",
        environ={"DIGITS": "12345", "TRUE": "true", "NULL": "null", "SIZE": "2MB"},
    )
    assert plan.source.options["api_key"] == "12345"
    assert plan.source.options["collection"] == "12345"
    assert plan.target.options["schema"] == "true"
    assert plan.target.options["table"] == "null"
    assert plan.target.options["columns"] == {"document": None}
    assert plan.batch_size.bytes == 2_000_000
    assert plan.transforms[0].args == {"year": 12345, "ok": True, "text": "x12345"}
    assert plan.transforms[1].args == {"a": "12345"}


_WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_WORDS | st.sampled_from(["true", "12", "1e3", "null", "no", "${X}", "a: b", "#", "- x"]))
def test_any_environment_text_arrives_as_text_where_text_is_wanted(
    tmp_path: Path, word: str
) -> None:
    text = SHORTEST + "description: ${X}\ntransforms:\n  - default: {a: '${X}', b: ' ${X}'}\n"
    try:
        value = core_value(word)
    except ValueError:
        return
    plan = _load(tmp_path, text, environ={"X": word})
    assert plan.description == word
    assert plan.transforms[0].args == {"a": value, "b": f" {word}"}


def test_files_and_variables_are_looked_up(tmp_path: Path) -> None:
    (tmp_path / "dsn").write_text("host=db\n")
    plan = _load(
        tmp_path,
        """
source: {store: pgvector, dsn: "${file:dsn}", table: "${var:table}"}
target: {store: files, path: "${var:folder}/${var:table}.$${x}.parquet"}
vars: {table: documents, folder: "${HOME_FOLDER}"}
""",
        variables={"table": "chosen"},
        environ={"HOME_FOLDER": "/exports"},
    )
    assert plan.source.options["dsn"] == "host=db"
    assert plan.source.options["table"] == "chosen"
    assert plan.target.options["path"] == "/exports/chosen.${x}.parquet"


def test_the_store_itself_may_be_a_reference(tmp_path: Path) -> None:
    text = 'source: {store: "${S}", path: a, collection: "${N}"}\ntarget: {store: files, path: b}\n'
    plan = _load(tmp_path, text, environ={"S": "chroma", "N": "7"})
    assert plan.source.store == "chroma"
    assert plan.source.options["collection"] == "7"


def test_an_empty_variable_is_empty_not_unset(tmp_path: Path) -> None:
    text = SHORTEST.replace("in.jsonl", '"${EMPTY}"')
    assert "source.path: is empty" in _refused(tmp_path, text, environ={"EMPTY": ""})


def test_everything_unset_is_named_at_once(tmp_path: Path) -> None:
    text = SHORTEST + "name: ${A}\ndescription: ${B}${C}\nlimit: ${file:d}\n"
    message = _refused(tmp_path, text)
    for reference in ("${A}", "${B}", "${C}", "${file:d}"):
        assert reference in message


def test_unset_references_pass_where_asked(tmp_path: Path) -> None:
    plan = _load(
        tmp_path,
        """
source: {store: pgvector, dsn: "${PG_DSN}", table: a, metric: "${METRIC}", limit: "${N}"}
target: {store: "${STORE}", path: b}
batch_size: "${N}"
allow: ["${HAZARD}"]
validation: {queries: {k: "${N}"}}
""",
        allow_unset=True,
    )
    assert plan.source.options["dsn"] == "${PG_DSN}"
    assert "metric" not in plan.source.options
    assert plan.batch_size == BatchSize()
    assert plan.validation == Validation()
    assert plan.allow == frozenset()
    assert plan.unresolved == ("${PG_DSN}", "${METRIC}", "${N}", "${STORE}", "${HAZARD}")


def test_an_unset_reference_cannot_become_a_mapping(tmp_path: Path) -> None:
    text = SHORTEST.splitlines()[0] + "\ntarget: ${T}\n"
    assert "target: what `${T}` stands for is not a mapping" in _refused(
        tmp_path, text, allow_unset=True
    )


# ---- secrets

SECRETS = {
    "PG_DSN": "postgresql://app:hunter2%21@db/app",
    "KEY": "hunter2-key",
    "BEARER": "hunter2-bearer",
}
WITH_SECRETS = """
source:
  store: pgvector
  dsn: ${PG_DSN}
  table: a
target:
  store: qdrant
  url: https://q
  collection: c
  api_key: ${KEY}
  connection:
    headers: {Authorization: "Bearer ${BEARER}"}
    proxy: http://u:${KEY}@proxy
"""


def test_secrets_are_known_in_every_part(tmp_path: Path) -> None:
    plan = _load(tmp_path, WITH_SECRETS, environ=SECRETS)
    assert plan.secrets == {
        "postgresql://app:hunter2%21@db/app",
        "hunter2%21",
        "hunter2!",
        "hunter2-key",
        "Bearer hunter2-bearer",
        "hunter2-bearer",
        "http://u:hunter2-key@proxy",
    }
    assert plan.target.connection.headers == {"Authorization": "Bearer hunter2-bearer"}
    assert plan.target.connection.proxy == "http://u:hunter2-key@proxy"


def test_a_document_does_not_show_its_secrets(tmp_path: Path) -> None:
    plan = _load(tmp_path, WITH_SECRETS, environ=SECRETS)
    assert "hunter2" not in repr(plan) + str(plan) + f"{plan}" + plan.text
    assert "hunter2" not in Redactor(plan.secrets).text(
        f"{plan.source.options} {plan.target.options} {plan.target.connection.headers}"
    )


@pytest.mark.parametrize(
    "where",
    ["limit", "name", "workers", "ids", "version", "unsupported", "batch_size", "validation"],
)
def test_no_error_shows_what_a_reference_stands_for(tmp_path: Path, where: str) -> None:
    text = f"{WITH_SECRETS}{where}: ${{WRONG}}\n"
    message = _refused(tmp_path, text, environ={**SECRETS, "WRONG": "hunter2 -/-"})
    assert "hunter2" not in message
    assert f" {where}: " in message


def test_loading_logs_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        _load(tmp_path, WITH_SECRETS, environ=SECRETS)
    assert caplog.records == []


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://u:hunter2@db/x",
        "postgresql://u@db/x?password=hunter2",
        "host=db password=hunter2",
        "host=db password = 'hunter2 x'",
        "postgresql://${USER}:hunter2@${HOST}/x",
    ],
)
def test_a_written_out_password_is_refused(tmp_path: Path, dsn: str) -> None:
    text = f'source: {{store: pgvector, dsn: "{dsn}", table: a}}\n' + SHORTEST.splitlines()[1]
    message = _refused(tmp_path, text, environ={"USER": "u", "HOST": "h"})
    assert "source.dsn: a password is written out here" in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://u:${P}@db/x",
        "postgresql://u@db/x?password=${P}",
        "host=db password=${P}",
        "host=db password='${P}'",
        "postgresql://u@db/x",
        "postgresql://${P}@db/x",
    ],
)
def test_a_password_by_reference_is_fine(tmp_path: Path, dsn: str) -> None:
    text = f'source: {{store: pgvector, dsn: "{dsn}", table: a}}\n' + SHORTEST.splitlines()[1]
    plan = _load(tmp_path, text, environ={"P": "hunter2"})
    assert "hunter2" not in Redactor(plan.secrets).text(str(plan.source.options))


def test_a_variable_that_the_plan_has_no_word_of_is_refused(tmp_path: Path) -> None:
    text = SHORTEST + "\nvars: {declared: x}\nname: a-${var:used}\n"
    given = {"used": "u", "declared": "y"}
    assert _load(tmp_path, text, variables=given).name == "a-u"
    message = _refused(tmp_path, text, variables={**given, "uesd": "x"})
    assert "--var uesd: the plan has no ${var:uesd}" in message
    assert "did you mean `--var used=…`?" in message


def test_a_secret_from_the_command_line_is_one(tmp_path: Path) -> None:
    text = WITH_SECRETS.replace("${KEY}", "${var:key}")
    plan = _load(tmp_path, text, environ=SECRETS, variables={"key": "hunter2-var"})
    assert "hunter2-var" in plan.secrets


@pytest.mark.parametrize(
    "line", [r'"\e[31m": 1', r'name: "\e[31m"', r'ids: "\x9b31m"', r'name: "${\e[31m}"']
)
def test_control_characters_of_a_plan_do_not_reach_the_terminal(tmp_path: Path, line: str) -> None:
    message = _refused(tmp_path, SHORTEST + line + "\n")
    assert not {"\x1b", "\x9b"} & set(message)


# ---- files


@pytest.mark.parametrize("name", ["none.yaml", "."])
def test_a_plan_that_cannot_be_read_is_a_plan_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(PlanError, match="cannot be read"):
        load_document(tmp_path / name)


def test_a_plan_of_one_mebibyte_and_more_is_refused(tmp_path: Path) -> None:
    assert "larger" in _refused(tmp_path, SHORTEST + "#" * (1 << 20))


@pytest.fixture
def _third_party_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    packages = tmp_path / "packages"
    info = packages / "acme-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[vector_migration_runner.stores]\nacme = acme_store:AcmeStore\n"
    )
    monkeypatch.syspath_prepend(str(packages))
    schema.validator.cache_clear()
    yield
    monkeypatch.undo()
    schema.validator.cache_clear()


@pytest.mark.usefixtures("_third_party_store")
def test_a_store_of_an_installed_package_has_keys_of_its_own(tmp_path: Path) -> None:
    plan = _load(
        tmp_path,
        """
source: {store: acme, path: folder, shards: [1, 2], api_key: "${KEY}", metric: l2}
target: {store: acme, endpoint: x, if_exists: append, connection: {timeout_s: 3}}
""",
        environ={"KEY": "12345"},
    )
    assert plan.source.options == {
        "path": str(tmp_path / "folder"),
        "shards": [1, 2],
        "api_key": "12345",
        "metric": "l2",
    }
    assert plan.secrets == {"12345"}
    assert plan.target.options == {"endpoint": "x"}
    assert plan.target.connection.timeout_s == 3
    assert plan.if_exists is IfExists.APPEND
    text = "source: {store: acme, metric: x, api_key: hunter2}\n" + SHORTEST.splitlines()[1]
    message = _refused(tmp_path, text)
    assert "source.metric: 'x' is not one of cosine, dot, l2" in message
    assert "source.api_key: a secret is written out" in message


def test_a_store_that_nobody_installed_is_refused(tmp_path: Path) -> None:
    text = "source: {store: acme, path: x}\n" + SHORTEST.splitlines()[1]
    assert "source.store: 'acme' is not one of chroma" in _refused(tmp_path, text)
