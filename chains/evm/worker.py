"""A process that reads blocks for its parent: `python -P -m chains.evm.worker`, started by `chains.evm.workers` alone.

It takes requests from its standard input and answers on its standard output, one at a time, until the input ends. That is
also how it dies with its parent, whatever killed that: the pipe closes. Signals that mean "stop" are the parent's to
handle; a terminal and a service manager send them to the whole group, and a worker that obeyed would break off blocks
that its parent still wants to commit.

A message is its length in eight bytes and a pickle. Both sides are this program at the same version, joined by a pipe that
nobody else holds.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import sys
from dataclasses import replace
from functools import lru_cache
from typing import BinaryIO

from chains.evm.reading import Place, RawBlock, ReadingRules, read_block
from chains.model import Block
from chains.packing import pack

LENGTH_BYTES = 8

GARBAGE_THRESHOLD = 100_000
"""Objects made before the collector looks for cycles. Reading makes none, and a look at a full block's decoded parts costs
more than what it could find."""

NICENESS = 5
"""A worker steps back for whoever is waited for: the follow process, which commits and reads the heads of other chains, and
Postgres. Where they share their cores this made a catch-up a fifth faster."""

Request = tuple[bytes, Place, RawBlock]
"""The pickled `ReadingRules` (the same bytes for every block of a chain), which block was asked for, and the answer."""


def framed(message: bytes) -> bytes:
    """The length that goes before a message."""
    return len(message).to_bytes(LENGTH_BYTES, "big")


def answer_to(request: bytes) -> bytes:
    """The block, its transfers packed, or the exception that reading it raised."""
    rules, place, raw = pickle.loads(request)  # noqa: S301 - from our parent
    try:
        block = read_block(_rules_of(rules), place, raw)
        return pickle.dumps(replace(block, transfers=pack(block.transfers)), pickle.HIGHEST_PROTOCOL)
    except Exception as error:  # noqa: BLE001 - it is raised again in the parent
        return _pickled(error)


@lru_cache(maxsize=64)
def _rules_of(pickled: bytes) -> ReadingRules:
    rules: ReadingRules = pickle.loads(pickled)  # noqa: S301 - from our parent
    return rules


def _pickled(error: Exception) -> bytes:
    """The exception, or where it does not survive the way, one that says the same."""
    try:
        pickled = pickle.dumps(error, pickle.HIGHEST_PROTOCOL)
        pickle.loads(pickled)  # noqa: S301 - our own
    except Exception:  # noqa: BLE001 - an exception may do anything when it is copied
        return pickle.dumps(RuntimeError(f"{type(error).__name__}: {error}"), pickle.HIGHEST_PROTOCOL)
    return pickled


def unpickled(answer: bytes) -> Block:
    """What `answer_to` says: the block. Raises what reading raised."""
    found = pickle.loads(answer)  # noqa: S301 - from our child
    if isinstance(found, Exception):
        raise found
    block: Block = found
    return block


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer until the requests end."""
    while len(length := requests.read(LENGTH_BYTES)) == LENGTH_BYTES:
        size = int.from_bytes(length, "big")
        request = requests.read(size)
        if len(request) < size:
            return
        answer = answer_to(request)
        answers.write(framed(answer) + answer)
        answers.flush()


def main() -> None:
    """Be a worker."""
    os.nice(NICENESS)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # What was imported lives as long as the process: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_THRESHOLD, 20, 20)
    try:
        serve(sys.stdin.buffer, sys.stdout.buffer)
    except BrokenPipeError:
        return  # the parent is gone, and with it whoever wanted the answer


if __name__ == "__main__":
    main()
