"""The wheel: what is in it, and that it works where there is no checkout."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
METADATA = {
    "METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE",
}  # fmt: skip
PLAN = """\
source: {store: chroma, path: here, collection: documents}
target: {store: pgvector, dsn: "${PG_DSN}", table: documents}
transforms:
  - rename: {src: source}
"""


def files_of(folder: str, *suffixes: str) -> set[str]:
    """The checkout's files of these kinds, as paths below *folder*."""
    return {
        file.relative_to(ROOT / folder).as_posix()
        for suffix in suffixes
        for file in (ROOT / folder).rglob(f"*{suffix}")
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist, built without a network."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--wheel", "--sdist",
         "--outdir", folder, ROOT],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the wheel's files and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
         "--no-compile", "--target", folder, wheel],
        cwd=folder, check=True, capture_output=True,
    )  # fmt: skip
    return folder


def test_the_wheel_holds_exactly_the_package_and_its_bundle(wheel: Path) -> None:
    """A forgotten file, or one too many, is noticed before it is released."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    about = wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info"
    assert names == {
        *(f"runner/{name}" for name in files_of("runner", ".py", "py.typed", ".html")),
        *(f"runner/_bundled/schemas/{name}" for name in files_of("schemas", ".json")),
        *(f"runner/_bundled/transforms/{name}" for name in files_of("transforms", ".py")),
        *(f"{about}/{name}" for name in METADATA),
    }


def test_the_wheel_takes_no_other_name_at_the_top(wheel: Path) -> None:
    """A top-level `schemas` or `transforms` would overwrite other people's packages."""
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.partition("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"runner"}


def test_the_bundle_is_not_empty(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "runner/_bundled/schemas/plan.v1.schema.json" in names
    assert [name for name in names if name.startswith("runner/_bundled/transforms/")]


def test_the_sdist_holds_what_builds_and_tests_it(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "pyproject.toml", "LICENSE", "README.md", "runner/cli.py", "Makefile",
        "schemas/plan.v1.schema.json", "plans/quickstart.yaml", "tests/unit/test_packaging.py",
    } <= names  # fmt: skip
    assert not {name for name in names if name.startswith((".venv", ".demo", "plans/.runner"))}


def outside(installed: Path, code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run *code* in *folder* with the installed wheel in front of any checkout."""
    before = f"import sys; sys.path.insert(0, {str(installed)!r})\n"
    return subprocess.run(
        [sys.executable, "-c", before + code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_installed_wheel_does_not_look_into_the_checkout(
    installed: Path, tmp_path: Path
) -> None:
    ended = outside(
        installed,
        "import runner; from runner import bundled\n"
        "print(runner.__file__, bundled.schemas(), bundled.transforms(), sep='\\n')",
        tmp_path,
    )
    assert ended.stdout.splitlines() == [
        str(installed / "runner" / "__init__.py"),
        str(installed / "runner" / "_bundled" / "schemas"),
        str(installed / "runner" / "_bundled" / "transforms"),
    ], ended.stderr


def test_the_installed_wheel_lints_a_plan_with_its_own_schema_and_transforms(
    installed: Path, tmp_path: Path
) -> None:
    (tmp_path / "plan.yaml").write_text(PLAN)
    code = "from runner.cli import main; sys.exit(main(['lint', 'plan.yaml']))"
    ended = outside(installed, code, tmp_path)
    assert ended.returncode == 0, ended.stderr

    (tmp_path / "plan.yaml").write_text(PLAN.replace("rename", "renam"))
    ended = outside(installed, code, tmp_path)
    assert ended.returncode == 2
    assert "rename" in ended.stderr


def test_the_installed_console_scripts_are_runner_and_run(installed: Path) -> None:
    (entry_points,) = installed.glob("*.dist-info/entry_points.txt")
    lines = entry_points.read_text().splitlines()
    assert "runner = runner.cli:main" in lines
    assert "run = runner.cli:main_run" in lines
    assert {"runner", "run"} <= {each.name for each in (installed / "bin").iterdir()}


def test_a_missing_extra_says_which_one_to_install(installed: Path, tmp_path: Path) -> None:
    ended = outside(
        installed,
        "sys.modules['faiss'] = None\n"
        "from runner.errors import PlanError\n"
        "from runner.stores import store_class\n"
        "try:\n    store_class('faiss')\n"
        "except PlanError as error:\n    print(error.hint)",
        tmp_path,
    )
    assert ended.stdout.strip() == "pip install 'vector-migration-runner[faiss]'", ended.stderr
