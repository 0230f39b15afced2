"""Where transforms come from: looked up, judged without running, imported without traces."""

from __future__ import annotations

import json
import py_compile
import sys
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import Any

import numpy as np
import pytest

from runner import bundled
from runner.errors import PlanError
from runner.model import Batch, Metadata
from runner.plan.model import OnError, TransformStep
from runner.transform_loader import Chain, lint_step, load_chain

PURE = "def f(record):\n    record.document = {!r}\n    return record\n"


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with a plan's folder inside, and something outside of it."""
    root = tmp_path / "repository"
    (root / "plans" / "transforms").mkdir(parents=True)
    (root / "transforms").mkdir()
    (tmp_path / "outside").mkdir()
    return root


def load(root: Path, name: str, args: Any) -> Chain:
    step = TransformStep(name, args, OnError.FAIL, "transforms[0]")
    return load_chain([step], plan_dir=root / "plans", root=root)


def lint(root: Path, name: str, args: Any) -> list[tuple[str, str, str]]:
    step = TransformStep(name, args, OnError.FAIL, "transforms[0]")
    return lint_step(step, plan_dir=root / "plans", root=root)


def document_after(chain: Chain) -> str | None:
    vectors = {"": np.zeros((1, 1), dtype=np.float32)}
    before = Batch(["a"], vectors, ["before"], Metadata(objects=[{}]))
    return chain.apply(before).batch.documents[0]


def refused(root: Path, name: str, args: Any) -> str:
    """What lint and load both say."""
    [(path, what, hint)] = lint(root, name, args)
    assert path == f"transforms[0].{name}"
    with pytest.raises(PlanError) as caught:
        load(root, name, args)
    assert caught.value.problems[0].what == what
    return f"{what} {hint}"


def test_the_plans_folder_wins_over_the_root(repository: Path) -> None:
    (repository / "code.py").write_text(PURE.format("root"))
    assert document_after(load(repository, "python", "code.py:f")) == "root"
    (repository / "plans" / "code.py").write_text(PURE.format("plan"))
    assert document_after(load(repository, "python", "code.py:f")) == "plan"


def test_a_file_may_lie_above_the_plan_but_beneath_the_root(repository: Path) -> None:
    (repository / "code.py").write_text(PURE.format("above"))
    assert document_after(load(repository, "python", "../code.py:f")) == "above"


def test_code_outside_of_the_root_is_refused(repository: Path) -> None:
    outside = repository.parent / "outside" / "code.py"
    outside.write_text(PURE.format("outside"))
    assert "lies outside" in refused(repository, "python", "../../outside/code.py:f")
    assert "lies outside" in refused(repository, "python", f"{outside}:f")


def test_a_symlink_that_leads_outside_is_refused(repository: Path) -> None:
    outside = repository.parent / "outside"
    (outside / "code.py").write_text(PURE.format("outside"))
    (repository / "code.py").symlink_to(outside / "code.py")
    assert "lies outside" in refused(repository, "python", "code.py:f")
    (repository / "linked").symlink_to(outside)
    assert "lies outside" in refused(repository, "python", "linked/code.py:f")


def test_an_import_that_leads_outside_is_refused(repository: Path) -> None:
    outside = repository.parent / "outside" / "words.py"
    outside.write_text("WORD = 'outside'\n")
    (repository / "words.py").symlink_to(outside)
    text = "def f(record):\n    from .words import WORD\n    return record\n"
    (repository / "code.py").write_text(text)
    assert "lies outside" in refused(repository, "python", "code.py:f")


def test_a_named_transform_behind_a_symlink_is_refused(repository: Path) -> None:
    outside = repository.parent / "outside" / "mine.py"
    outside.write_text(MINE)
    (repository / "transforms" / "mine.py").symlink_to(outside)
    assert "lies outside" in refused(repository, "shout", {"mark": "!"})


def test_no_bytecode_is_left_behind(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    (repository / "words.py").write_text("WORD = 'new'\n")
    text = "from .words import WORD\n" + PURE.replace("{!r}", "WORD")
    (repository / "code.py").write_text(text)
    assert document_after(load(repository, "python", "code.py:f")) == "new"
    assert [path for path in repository.rglob("*") if "pycache" in path.name] == []
    assert not list(bundled.transforms().rglob("*.pyc"))


def test_planted_bytecode_is_not_believed(repository: Path) -> None:
    """What reviewers read is what runs."""
    file = repository / "code.py"
    file.write_text(PURE.format("planted"))
    py_compile.compile(str(file), invalidation_mode=PycInvalidationMode.UNCHECKED_HASH)
    file.write_text(PURE.format("reviewed"))
    assert document_after(load(repository, "python", "code.py:f")) == "reviewed"


def test_files_of_a_folder_import_each_other_and_collide_with_nothing(repository: Path) -> None:
    (repository / "json.py").write_text("WORD = 'mine'\n")
    (repository / "deep").mkdir()
    (repository / "deep" / "more.py").write_text("from ..json import WORD\n")
    text = "from .deep.more import WORD\n" + PURE.replace("{!r}", "WORD")
    (repository / "code.py").write_text(text)
    assert document_after(load(repository, "python", "code.py:f")) == "mine"
    assert not hasattr(json, "WORD")
    assert "code" not in sys.modules or not hasattr(sys.modules["code"], "f")


def test_the_digest_changes_with_the_code_and_what_it_imports(repository: Path) -> None:
    (repository / "words.py").write_text("WORD = 1\n")
    (repository / "unrelated.py").write_text("")
    text = "def f(record):\n    from . import words\n    return record\n"
    (repository / "code.py").write_text(text)
    first = load(repository, "python", "code.py:f").code
    (repository / "unrelated.py").write_text("changed")
    assert load(repository, "python", "code.py:f").code == first
    (repository / "words.py").write_text("WORD = 2\n")
    second = load(repository, "python", "code.py:f").code
    (repository / "code.py").write_text(text + "\n")
    third = load(repository, "python", "code.py:f").code
    assert len({first, second, third}) == 3


def test_code_that_was_edited_is_imported_anew(repository: Path) -> None:
    for word in ("one", "two"):
        (repository / "code.py").write_text(PURE.format(word))
        assert document_after(load(repository, "python", "code.py:f")) == word


def test_lint_does_not_run_a_plans_code(repository: Path) -> None:
    trace = repository / "ran"
    text = f"open({str(trace)!r}, 'w').close()\n"
    (repository / "code.py").write_text(text + PURE.format("x"))
    (repository / "transforms" / "mine.py").write_text(text + MINE)
    assert lint(repository, "python", "code.py:f") == []
    assert lint(repository, "shout", {"mark": "!"}) == []
    assert not trace.exists()
    load(repository, "python", "code.py:f")
    assert trace.exists()


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
        (PURE.format("x"), "code.py:g", "has no function 'g'"),
        ("def strip_html(record): ...\n", "code.py:strip_htm", "did you mean `strip_html`?"),
        ("def f(): ...\n", "code.py:f", "takes no argument"),
        ("def f(a, b): ...\n", "code.py:f", "takes 2 arguments"),
        ("def f(a, *, b): ...\n", "code.py:f", "takes 2 arguments"),
        ("class f: ...\n", "code.py:f", "is a class"),
        ("async def f(record): ...\n", "code.py:f", "is an async function"),
        ("def f(record:\n", "code.py:f", "code.py is not Python: line 1"),
        ("\0", "code.py:f", "is not Python"),
        ("(" * 5000, "code.py:f", "is not Python"),
        (PURE, "code.py", "expected a file and one of its functions"),
        (PURE, "code:f", "expected a file and one of its functions"),
        (PURE, "absent.py:f", "there is no file absent.py"),
        (PURE, "x" * 5000 + ".py:f", "cannot be read"),
        (PURE, 7, "expected a file and one of its functions"),
    ],
)
def test_what_is_wrong_with_a_python_step_is_told(
    repository: Path, text: str, reference: Any, expected: str
) -> None:
    (repository / "code.py").write_text(text)
    assert expected in refused(repository, "python", reference)


@pytest.mark.parametrize(
    "text",
    [
        "def f(record, more=None): ...\n",
        "def f(*records): ...\n",
        "f = lambda record: record\n",
        "from .other import f\n",
        "if True:\n    def f(record): return record\n",
    ],
)
def test_functions_may_come_in_several_ways(repository: Path, text: str) -> None:
    (repository / "code.py").write_text(text)
    (repository / "other.py").write_text(PURE.format("x"))
    assert lint(repository, "python", "code.py:f") == []
    load(repository, "python", "code.py:f")


@pytest.mark.parametrize("text", ["import absent_package", "1 / 0", "raise SystemExit(0)"])
def test_code_that_cannot_be_imported_is_the_plans_fault(repository: Path, text: str) -> None:
    (repository / "code.py").write_text(f"{text}\n{PURE.format('x')}")
    with pytest.raises(PlanError, match=r"code\.py cannot be imported: "):
        load(repository, "python", "code.py:f")


MINE = """
from runner.transform import Record, Transform, transform

@transform("shout")
def shout(mark: str, times: int = 1) -> Transform:
    def apply(record: Record) -> Record | None:
        record.document = f"{record.document}{mark * times}"
        return record
    return apply
"""


@pytest.mark.parametrize("folder", ["transforms", "plans/transforms"])
def test_a_plan_may_name_transforms_of_its_own(repository: Path, folder: str) -> None:
    (repository / folder / "mine.py").write_text(MINE)
    assert lint(repository, "shout", {"mark": "!", "times": 3}) == []
    assert document_after(load(repository, "shout", {"mark": "!", "times": 3})) == "before!!!"
    assert document_after(load(repository, "shout", "?")) == "before?"


def test_arguments_of_own_transforms_are_judged_too(repository: Path) -> None:
    (repository / "transforms" / "mine.py").write_text(MINE)
    [(path, what, hint)] = lint(repository, "shout", {"mark": "!", "tims": 3})
    assert (path, what) == ("transforms[0].shout.tims", "is not one of mark, times")
    assert hint == "did you mean `times`?"
    with pytest.raises(PlanError, match=r"shout\.times: expected a whole number, found text"):
        load(repository, "shout", {"mark": "!", "times": "3"})


def test_an_own_transform_cannot_take_a_bundled_name(repository: Path) -> None:
    (repository / "transforms" / "mine.py").write_text(MINE.replace('"shout"', '"rename"'))
    assert "the name of a bundled one" in refused(repository, "rename", {"a": "b"})


def test_a_copy_of_the_library_is_not_a_clash(repository: Path) -> None:
    for file in bundled.transforms().glob("*.py"):
        (repository / "transforms" / file.name).write_bytes(file.read_bytes())
    assert load(repository, "rename", {"a": "b"}).steps[0].trusted


def test_two_own_transforms_of_one_name_are_refused(repository: Path) -> None:
    for name in ("one.py", "two.py"):
        (repository / "transforms" / name).write_text(MINE)
    assert "two transforms are called 'shout'" in refused(repository, "shout", "!")


def test_problems_carry_their_place_in_the_plan(repository: Path) -> None:
    step = TransformStep("cast", {"year": "integer"}, OnError.FAIL, "transforms[0]")
    with pytest.raises(PlanError) as caught:
        load_chain(
            [step],
            plan_dir=repository,
            root=repository,
            file="plan.yaml",
            positions={"transforms[0]": (4, 3), "transforms[0].cast": (4, 11)},
        )
    assert str(caught.value).startswith("plan.yaml:4:11: transforms[0].cast.year: integer is not")


def test_the_library_imports_nothing_of_ours_but_runner_transform() -> None:
    """What authors copy from must work for them."""
    for file in bundled.transforms().glob("*.py"):
        imported = [line for line in file.read_text().splitlines() if "runner" in line]
        assert [line for line in imported if "import" in line] == ["from runner.transform import ("]


def test_an_import_by_name_that_leads_outside_is_refused_when_it_happens(
    repository: Path,
) -> None:
    """The syntax tree does not show it."""
    outside = repository.parent / "outside" / "words.py"
    outside.write_text("WORD = 'outside'\n")
    (repository / "words.py").symlink_to(outside)
    (repository / "code.py").write_text(
        "import importlib\nimportlib.import_module('.words', __package__)\n" + PURE.format("x")
    )
    with pytest.raises(PlanError, match="lies outside"):
        load(repository, "python", "code.py:f")
