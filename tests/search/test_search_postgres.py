"""Searches whose memory is a real PostgreSQL: two drivers, a server that goes away, storage that is lost."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from optuna.trial import TrialState

from tests.searches import assert_whole, ends, execute, kept, launch, meanwhile, only, rows, suggestions, told
from tests.synthetic import Lab, accuracy, lab

psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed")

pytestmark = pytest.mark.slow
PASSWORD = "correct-horse-7"
MANY = 80


def programs() -> Path | None:
    """The folder of PostgreSQL's programs."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    return max((path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")), default=None)


@dataclass(frozen=True)
class Server:
    """A private PostgreSQL on a loopback port, which asks everybody for a password."""

    folder: Path
    port: int

    def url(self, database: str, password: str = PASSWORD) -> str:
        return f"postgresql+psycopg://lnl:{password}@127.0.0.1:{self.port}/{database}"

    def run(self, program: str, *arguments: str) -> None:
        there = programs()
        assert there
        user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []  # PostgreSQL refuses root
        subprocess.run(
            [*user, str(there / program), "-D", str(self.folder / "data"), *arguments],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self.folder,
            timeout=120,
        )

    def start(self) -> None:
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder}"
        self.run("pg_ctl", "-w", "-l", str(self.folder / "log"), "-o", options, "start")

    def stop(self) -> None:
        self.run("pg_ctl", "-m", "immediate", "stop")

    def tell(self, statement: str) -> None:
        with psycopg.connect(self.url("postgres").replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(statement)

    def database(self, name: str) -> str:
        self.tell(f"create database {name}")
        return self.url(name)


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    if programs() is None:
        pytest.skip("PostgreSQL is not installed")
    if os.getuid() == 0 and (not shutil.which("runuser") or subprocess.run(["id", "postgres"]).returncode):
        pytest.skip("PostgreSQL refuses root, and there is no user postgres")
    folder = Path(tempfile.mkdtemp(prefix="lnl-postgresql-"))  # pytest's own folders are closed to other users
    (folder / "password").write_text(PASSWORD, encoding="utf-8")
    if os.getuid() == 0:
        for path in (folder, folder / "password"):
            shutil.chown(path, "postgres")
    made = Server(folder, closed_port())
    try:
        made.run("initdb", "-U", "lnl", "--pwfile", str(folder / "password"), "--auth=scram-sha-256", "-E", "UTF8")
        made.start()
        yield made
        made.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return lab(tmp_path_factory.mktemp("lab"), {"plain": {}}, "suggestions=6")


def assert_no_password(storage: Path, *outputs: str) -> None:
    assert all(PASSWORD not in output for output in outputs)
    written = [path for path in storage.rglob("*") if path.is_file()]
    assert all(PASSWORD.encode() not in path.read_bytes() for path in written)
    for name in ("studies", "trials", "suggestions", "events") if storage.exists() else ():
        assert PASSWORD not in rows(storage, name).to_json(date_format="iso"), "files are compressed"


def test_two_drivers_share_a_database_that_can_be_lost(tmp_path: Path, server: Server, there: Lab) -> None:
    storage, url = tmp_path / "results", server.database("two")
    flags = ("--trials", str(MANY))
    drivers = [launch(there.study, storage, there.environment, *flags, "--optuna", url, ray=False)]
    drivers += [launch(there.study, storage, {**there.environment, "LNL_OPTUNA": url}, *flags, ray=False)]
    outputs = [ends(driver) for driver in drivers]
    before = only(told(storage, url))
    assert {one.state for one in before} == {TrialState.COMPLETE}
    assert_whole(storage, MANY, before)
    assert_no_password(storage, *outputs)
    known = [accuracy(json.loads(params)) for params in suggestions(storage)["params"]]
    assert [one.value for one in before] == known

    trained = len(rows(storage, "trials"))
    server.tell("drop database two with (force)")
    server.tell("create database two")
    done = execute(there.study, storage, there.environment, *flags, "--optuna", url, ray=False)
    assert done.returncode == 0, done.stdout + done.stderr
    after = only(told(storage, url))
    assert [(one.number, one.state, one.params, one.values) for one in after] == [
        (one.number, one.state, one.params, one.values) for one in before
    ]
    assert len(rows(storage, "trials")) == trained, "nothing is trained again"


def test_a_server_that_goes_away_ends_the_run_in_one_sentence(tmp_path: Path, server: Server, there: Lab) -> None:
    storage, url = tmp_path / "results", server.database("lost")
    flags = ("--trials", "12", "--set", "method.pause=0.5", "--optuna", url)
    driver = launch(there.study, storage, there.environment, *flags, ray=False)
    meanwhile(lambda: len(list(storage.glob("suggestions/*/*.parquet"))) >= 4, "four suggestions", driver)
    before = only(told(storage, url))
    server.stop()
    try:
        output = ends(driver, code=1)
    finally:
        server.start()
    assert "Optuna's storage postgresql+psycopg://lnl:***@127.0.0.1" in output and "Traceback" not in output, output
    assert output.count("cannot be used") == 1, output
    assert_no_password(storage, output)
    stored = len(suggestions(storage))
    assert 4 <= stored < 12
    done = execute(there.study, storage, there.environment, *flags, ray=False)
    assert done.returncode == 0, done.stdout + done.stderr
    after = only(told(storage, url))
    assert kept(before, after)
    assert_whole(storage, 12, after)


@pytest.mark.parametrize("mistake", ["closed port", "wrong password", "unknown database", "unknown host"])
def test_a_database_that_cannot_be_had_gets_one_sentence(
    tmp_path: Path, server: Server, there: Lab, mistake: str
) -> None:
    url = {
        "closed port": Server(server.folder, closed_port()).url("postgres"),
        "wrong password": server.url("postgres", password=PASSWORD + "-not"),
        "unknown database": server.url("nowhere"),
        "unknown host": server.url("postgres").replace("127.0.0.1", "nowhere.invalid"),
    }[mistake]
    began = time.monotonic()
    done = execute(there.study, tmp_path / "results", there.environment, "--optuna", url)
    assert done.returncode == 1, done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and "cannot be used" in done.stderr, done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert_no_password(tmp_path / "results", done.stdout, done.stderr)
    assert not list((tmp_path / "results").glob("trials/*/*"))
    assert time.monotonic() - began < 60, "and at once: starting Python is most of it"
