"""The other processes of a measurement: servers that live as long as a block of code, and measured work that ends.

Everything measured runs in a process of its own, so that its CPU time is its own and nothing is warm from what ran before.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

STOP_LIMIT_S = 60.0
WORK_LIMIT_S = 600.0


class BenchFailed(Exception):
    """A process of the benchmark did not do its part; the text is what it said last."""


class Server(msgspec.Struct, frozen=True):
    """A server that runs."""

    url: str
    pid: int


@contextmanager
def serving_process(module: str, *arguments: str) -> Iterator[Server]:
    """Run a server module until the block ends. It ends by itself when its standard input closes, so nothing is left behind
    by a benchmark that is killed."""
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=complaints,
        )  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        try:
            line = process.stdout.readline().decode().strip()
            if not line.startswith("http://"):
                raise BenchFailed(f"{module} did not start: {_tail(complaints)}")
            yield Server(line, process.pid)
        finally:
            process.stdin.close()
            process.stdout.close()
            try:
                process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def serving(module: str, *arguments: str) -> Iterator[str]:
    """The same; yields no more than its URL."""
    with serving_process(module, *arguments) as server:
        yield server.url


def measured(module: str, task: msgspec.Struct) -> Any:  # noqa: ANN401 - the JSON that the module prints
    """Run a module's work on a task, given as JSON, and return the JSON that it prints. Raises `BenchFailed`."""
    with tempfile.TemporaryFile() as complaints:
        command = [sys.executable, "-m", module, msgspec.json.encode(task).decode()]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=complaints, timeout=WORK_LIMIT_S, check=False)
        if done.returncode != 0:
            raise BenchFailed(f"{module} failed: {_tail(complaints)}")
        return msgspec.json.decode(done.stdout)


def _tail(complaints: Any) -> str:  # noqa: ANN401 - a temporary file
    complaints.seek(0)
    return str(complaints.read().decode(errors="replace")[-3000:]) or "it said nothing"
