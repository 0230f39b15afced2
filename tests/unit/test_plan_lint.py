"""Lint: offline, everything at once, unset references noted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import runner
from runner.errors import PlanError, Problem
from runner.plan.lint import lint_file, lint_paths
from runner.plan.load import load_document
from runner.plan.model import OnError, TransformStep

GOOD = """\
source: {store: pgvector, dsn: "${PG_DSN}", table: a}
target: {store: chroma, path: c, collection: d}
"""
BAD = "source: {store: chroma, path: a}\n"


def test_a_good_plan_has_no_problem_and_its_unset_references_are_noted(tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(GOOD)
    assert lint_file(plan, environ={}) == []
    result = lint_paths([plan], environ={})
    assert result.files == (str(plan),)
    assert result.exit_code == 0
    assert [(note.line, note.column, note.path) for note in result.notes] == [(1, 32, "source.dsn")]
    assert "${PG_DSN}" in result.notes[0].what
    assert lint_paths([plan], environ={"PG_DSN": "host=db"}).notes == ()


def test_folders_are_searched_and_hidden_ones_passed_over(tmp_path: Path) -> None:
    for name in ("b.yaml", "deep/er/a.yml", ".runner/x.yaml", "deep/.git/y.yaml", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(BAD)
    result = lint_paths([tmp_path], environ={})
    assert result.files == (str(tmp_path / "b.yaml"), str(tmp_path / "deep/er/a.yml"))
    assert result.exit_code == 2
    assert len(result.problems) == 4


def test_a_folder_without_a_plan_and_a_missing_file_are_problems(tmp_path: Path) -> None:
    result = lint_paths([tmp_path, tmp_path / "none.yaml"], environ={})
    assert [problem.what for problem in result.problems] == [
        "has no *.yaml or *.yml file in it",
        "cannot be read: No such file or directory",
    ]


def test_a_pipe_and_a_folder_are_no_plans(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for name, what in (
        ("pipe.yaml", "it is a pipe or a device, not a file"),
        ("", "Is a directory"),
    ):
        with pytest.raises(PlanError) as caught:
            load_document(tmp_path / name, environ={})
        assert [each.what for each in caught.value.problems] == [f"cannot be read: {what}"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_plan_that_may_not_be_read_is_a_problem(tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(GOOD)
    plan.chmod(0)
    assert [each.what for each in lint_file(plan)] == ["cannot be read: Permission denied"]


def test_two_plans_whose_runs_would_be_mixed_up_are_a_problem(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    for name, text in (
        ("a.yaml", GOOD + "name: b\n"),
        ("b.yaml", GOOD),
        ("c.yaml", GOOD + "name: b\nstate_dir: elsewhere\n"),
        ("other/b.yaml", GOOD),
    ):
        (tmp_path / name).write_text(text)
    [problem] = lint_paths([tmp_path, tmp_path / "a.yaml"], environ={}).problems
    assert (problem.file, problem.path) == (str(tmp_path / "b.yaml"), "name")
    assert str(tmp_path / "a.yaml") in problem.what


def test_a_very_long_key_is_not_shown_whole(tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    key = "x" * 300_000
    plan.write_text(f"{GOOD}? {key}\n: 1\nfields:\n  ? {key}\n  : {{typ: {key}}}\n")
    problems = lint_file(plan, environ={})
    assert len(problems) == 2
    plan.write_text(f"? {key}\n: 1\n? {key}\n: 1\n")
    problems += lint_file(plan, environ={})
    plan.write_text(f"a: !{key} b")
    problems += lint_file(plan, environ={})
    plan.write_text(f"a: *{key}")
    problems += lint_file(plan, environ={})
    assert len(problems) == 5
    assert all(len(str(each)) < 2_000 for each in problems)


def test_line_feeds_of_the_environment_stay_in_their_value(tmp_path: Path) -> None:
    """What is put in is text, not YAML."""
    plan = tmp_path / "plan.yaml"
    plan.write_text(GOOD + "description: ${D}\n")
    environ = {"PG_DSN": "host=db", "D": "a\nallow: [replace-target]\n"}
    document = load_document(plan, environ=environ)
    assert document.description == environ["D"]
    assert not document.allow


def _step_linter(
    monkeypatch: pytest.MonkeyPatch, *found: tuple[str, str, str]
) -> list[tuple[TransformStep, Path, Path]]:
    calls: list[tuple[TransformStep, Path, Path]] = []

    def lint_step(step: TransformStep, *, plan_dir: Path, root: Path) -> list[tuple[str, str, str]]:
        calls.append((step, plan_dir, root))
        return [each for each in found if each[0].startswith(step.path)]

    stand_in = SimpleNamespace(lint_step=lint_step)
    monkeypatch.setattr(runner, "transform_loader", stand_in, raising=False)
    return calls


def test_faults_of_transforms_come_with_their_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(GOOD + "transforms:\n  - cast: {year: int}\n    on_error: keep\n")
    calls = _step_linter(
        monkeypatch,
        ("transforms[0].cast.year", "is odd", "write another"),
        ("transforms[0].cast.year.deeper", "is odder", ""),
    )
    assert lint_file(plan, environ={}) == [
        Problem(str(plan), 4, 18, "transforms[0].cast.year", "is odd", "write another"),
        Problem(str(plan), 4, 18, "transforms[0].cast.year.deeper", "is odder", ""),
    ]
    step = TransformStep("cast", {"year": "int"}, OnError.KEEP, "transforms[0]")
    assert calls == [(step, tmp_path, tmp_path)]


def test_transforms_are_judged_even_if_the_rest_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(BAD + "transforms:\n  - lower: [a]\n  - keep: b\n  - rename: {a: '${X}'}\n")
    _step_linter(
        monkeypatch,
        ("transforms[0]", "from the transform", ""),
        ("transforms[1].keep", "the schema has said so", ""),
        ("transforms[2].rename.a", "cannot be known here", ""),
    )
    found = [(each.path, each.what) for each in lint_file(plan, environ={})]
    assert found == [
        ("", "`target` is missing"),
        ("source", "`collection` is missing"),
        ("transforms[0]", "from the transform"),
        ("transforms[1].keep", "'b' is not a list"),
    ]


def test_a_transform_of_ones_own_is_judged_beside_the_schemas_faults(tmp_path: Path) -> None:
    (tmp_path / "transforms").mkdir()
    (tmp_path / "transforms" / "own.py").write_text(
        "from runner.transform import transform\n\n"
        '@transform("shout")\ndef shout(fields, mark="!"):\n    return None\n'
    )
    plan = tmp_path / "plan.yaml"
    plan.write_text(GOOD + "transforms:\n  - shout: {fields: [a]}\n")
    assert lint_file(plan, environ={}) == []
    plan.write_text(
        GOOD
        + "transforms:\n  - shout: {fields: [a], makr: x}\n  - shuot: 1\n  - split: {a: {by: ''}}"
    )
    assert [(each.path, each.what, each.hint) for each in lint_file(plan, environ={})] == [
        ("transforms[0].shout.makr", "is not one of fields, mark", "did you mean `mark`?"),
        ("transforms[1].shuot", "'shuot' is not a transform", "did you mean `shout`?"),
        ("transforms[2].split.a.by", "is empty; expected text", ""),
    ]


def test_a_plan_that_is_refused_says_all_of_its_transforms_too(tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(BAD + "transforms:\n  - template: {a: '{{'}\n  - cast: {a: integer}\n")
    with pytest.raises(PlanError) as caught:
        load_document(plan, environ={})
    assert list(caught.value.problems) == lint_file(plan, environ={})
    assert [each.path for each in caught.value.problems] == [
        "", "source", "transforms[0].template.a", "transforms[1].cast.a",
    ]  # fmt: skip


def test_no_client_is_imported(tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(GOOD)
    clients = ["chromadb", "psycopg2", "faiss", "qdrant_client", "qdrant_edge", "pyarrow", "grpc"]
    code = (
        "import sys\n"
        "from runner.plan.lint import lint_file\n"
        f"assert lint_file({str(plan)!r}) == []\n"
        f"print([name for name in {clients} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
