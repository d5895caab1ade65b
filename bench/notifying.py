"""Real `chainbell notify` processes on a measurement's database, as an operator starts them."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from bench.installation import MASTER_KEY
from bench.process import BenchFailed
from bench.watching import plain_url

START_LIMIT_S = 120.0
LOOK_INTERVAL_S = 0.02
SETTINGS = """\
[database]
url = "{url}"

[notifier]
allow_http = true
allow_private = ["127.0.0.0/8"]
"""


@contextmanager
def notifying(directory: Path, database_url: str, count: int = 1) -> Iterator[list[int]]:
    """Run `count` processes until the block ends; yields their process ids once all of them listen. Raises `BenchFailed`."""
    (directory / "chainbell.toml").write_text(SETTINGS.format(url=plain_url(database_url)))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CHAINBELL_")}
    environment["CHAINBELL_MASTER_KEY"] = base64.b64encode(MASTER_KEY).decode()
    command = [sys.executable, "-P", "-m", "chainbell", "--config", str(directory / "chainbell.toml"), "notify"]
    log_path = directory / "notify.log"
    with log_path.open("wb") as log:
        processes = [
            subprocess.Popen(command, cwd=directory, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            for _ in range(count)
        ]
        try:
            _wait_until_listening(database_url, processes, log_path)
            yield [process.pid for process in processes]
            _require_alive(processes, log_path)
        finally:
            for process in processes:
                process.kill()  # a polite stop waits for merchants that hang, and nothing here is needed any more
                process.wait()


def _wait_until_listening(database_url: str, processes: list[subprocess.Popen[bytes]], log_path: Path) -> None:
    """A process that listens for hints claims what is due from then on."""
    deadline = time.monotonic() + START_LIMIT_S
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"
    with psycopg.connect(plain_url(database_url), autocommit=True) as connection:
        while connection.execute(query).fetchone() != (len(processes),):
            _require_alive(processes, log_path)
            if time.monotonic() > deadline:
                raise BenchFailed(f"chainbell notify does not listen: {_tail(log_path)}")
            time.sleep(LOOK_INTERVAL_S)


def _require_alive(processes: list[subprocess.Popen[bytes]], log_path: Path) -> None:
    if any(process.poll() is not None for process in processes):
        raise BenchFailed(f"chainbell notify ended by itself: {_tail(log_path)}")


def _tail(log_path: Path) -> str:
    return log_path.read_text(errors="replace")[-3000:]
