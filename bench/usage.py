"""CPU time, wall time and memory of a piece of work: of this process, and of those that work for it."""

from __future__ import annotations

import resource
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

_PROCESS_CLOCK = 2
"""With the inverted process id above it, the number of a process's clock (`CPUCLOCK_SCHED` in Linux): what
`clock_getcpuclockid(3)` makes of it, which Python has for threads alone."""


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


def cpu_s_of(processes: Iterable[int]) -> float:
    """User and system time that running processes have used so far, to the nanosecond: `/proc` counts in hundredths."""
    return sum(time.clock_gettime(~pid << 3 | _PROCESS_CLOCK) for pid in processes)


def most_bytes_of(pid: int | str = "self") -> int:
    """The most memory that a running process ever had. Not `ru_maxrss`, which begins with the parent's."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
