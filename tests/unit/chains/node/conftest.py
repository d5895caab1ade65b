"""A node to ask and a session to ask it through."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import aiohttp
import pytest
from prometheus_client import REGISTRY

from chains.model import Slug
from chains.node.client import NodeClient, open_session
from tests.fakes.node import RecordedNode

BLOCK = {"hash": "0x" + "aa" * 32, "number": "0x7", "transactions": [{"hash": "0x" + "01" * 32}]}
RECEIPTS = [{"transactionHash": "0x" + "01" * 32, "logs": [{"data": "0x"}]}]


@pytest.fixture
async def node() -> AsyncIterator[RecordedNode]:
    async with RecordedNode({7: (BLOCK, RECEIPTS)}) as recorded:
        yield recorded


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with open_session() as opened:
        yield opened


@pytest.fixture
def client(node: RecordedNode, session: aiohttp.ClientSession) -> NodeClient:
    return NodeClient(Slug("testnet"), "node-a", node.url + "/v2/TOPSECRETKEY", session, timeout_s=2.0)


@pytest.fixture
def count_of() -> Callable[..., float]:
    """How far a counter moved since the test began."""

    def read(name: str, **labels: str) -> float:
        return REGISTRY.get_sample_value(name, labels) or 0.0

    return read
