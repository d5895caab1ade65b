"""CPU time and wall time of a piece of work in this process."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec


class Usage(msgspec.Struct):
    """What some work took, and how many units of it there were."""

    count: int = 0
    elapsed_s: float = 0.0
    cpu_s: float = 0.0
    """User and system time of this process alone."""


@contextmanager
def measure_usage(count: int) -> Iterator[Usage]:
    """Filled in when the block ends. `count` is how many units of work it does."""
    usage = Usage(count)
    began, cpu_began = time.perf_counter(), _cpu_s()
    yield usage
    usage.elapsed_s = time.perf_counter() - began
    usage.cpu_s = _cpu_s() - cpu_began


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
