"""Decoding JSON that nests deeper than Python lets a decoder recurse. Pure.

A call inside a call is an object inside a list, and the EVM lets calls nest 1024 deep, so a traced block may nest more
than 2,000 brackets; anybody can send such a transaction. The decoder counts its nesting against Python's recursion
limit, 1,000 by default. A node that answers deeper than any chain can nest gets a `RecursionError` still.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
Json = TypeVar("Json")

RECURSION_MAX = 2600
"""Two levels for each of 1,025 calls, and room for the callers. So deep a decoder takes less than a megabyte of C stack: a
thread has eight."""


def decode_deep(decode: Callable[[Json], T], answer: Json) -> T:
    """What `decode` makes of `answer`. Where that nests too deep for Python's limit, the limit is raised for the rest of
    the process, once, and it is tried again. Raises what `decode` raises, `RecursionError` among it."""
    try:
        return decode(answer)
    except RecursionError:
        if sys.getrecursionlimit() >= RECURSION_MAX:
            raise
        sys.setrecursionlimit(RECURSION_MAX)
    return decode(answer)
