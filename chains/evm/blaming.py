"""A proof that fails is the failing of the node that gave the answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from chains.evm.errors import ProofFailure
from chains.evm.reading import BlocksMixed
from chains.evm.traces import TracesDiffer, TracesRefused
from chains.node.errors import NodeUnproven, NodeUnsettled
from chains.node.health import Upstream
from chains.node.naming import one_line

T = TypeVar("T")


def proven(upstream: Upstream, read: Callable[[], T]) -> T:
    """What `read` returns; a failed proof becomes the failing of the node that gave the answer."""
    with blaming(upstream):
        return read()


@contextmanager
def blaming(upstream: Upstream) -> Iterator[None]:
    """A proof that fails in here becomes the failing of the node that gave the answer."""
    try:
        yield
    except (TracesDiffer, TracesRefused):
        raise  # of other nodes than the one that gave the block
    except BlocksMixed as failure:
        raise NodeUnsettled(upstream.name, failure.check, one_line(failure.detail)) from failure
    except ProofFailure as failure:
        raise NodeUnproven(upstream.name, failure.check, one_line(failure.detail)) from failure
