"""What a node can do, found by asking it: the answers behind `chainbell doctor`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec

from chains.evm.fetching import fetch_recent_ref, fetch_traces
from chains.evm.traces import TraceMethod
from chains.evm.wire import quantity_of
from chains.model import BlockRef
from chains.node.client import NodeClient
from chains.node.errors import MethodNotSupported, NodeError, NodeGarbled, NodeLacks, RpcError
from chains.node.health import Upstream
from chains.node.jsonrpc import NULL

LOG_RANGES = (10_000, 1_000, 10)
"""Blocks in one `eth_getLogs`, largest first: the limits of hosted providers lie between these."""

_NOWHERE = "0x" + "00" * 31 + "01"
"""A hash that no block has: a node that offers tracing says that it does not know it, at no cost to itself."""
_NOBODY = "0x000000000000000000000000000000000000dead"


@dataclass(frozen=True, slots=True)
class NodeProbe:
    """One node's abilities. Everything after `reason` is None (or empty) where the node did not answer."""

    name: str
    host: str
    reason: str | None = None
    """Why it could not be asked to the end."""
    latency_ms: float | None = None
    client: str | None = None
    """What the node says that it is, e.g. `Geth/v1.16.7`."""
    chain_id: str | None = None
    head: int | None = None
    lag_blocks: int | None = None
    """Behind the newest head that any of the nodes names."""
    has_batches: bool | None = None
    has_block_receipts: bool | None = None
    trace_methods: tuple[str, ...] = ()
    """By which it gave a trace of a recent block; where it has had no transaction lately, those that it offers."""
    has_state_proofs: bool | None = None
    """Proves an account at its head (`eth_getProof`)."""
    has_old_blocks: bool | None = None
    """Has block 1; `has_old_receipts` and `has_old_state` alike: whether history can be replayed from it."""
    has_old_receipts: bool | None = None
    has_old_state: bool | None = None
    log_range_max: int | None = None
    """The largest tried range that `eth_getLogs` takes, in blocks."""


async def probe_node(client: NodeClient) -> NodeProbe:
    """Ask one node everything; a node that stops answering keeps what it answered so far and gets a `reason`."""
    probe = NodeProbe(client.name, client.host)
    for ask in (_ask_identity, _ask_receipts, _ask_traces, _ask_state_proofs, _ask_history, _ask_logs):
        try:
            probe = await ask(client, probe)
        except NodeError as failure:
            return replace(probe, reason=failure.detail)
    return probe


def with_lag(probes: Sequence[NodeProbe]) -> tuple[NodeProbe, ...]:
    """The probes with each node's distance from the newest head among them."""
    newest = max((probe.head for probe in probes if probe.head is not None), default=0)
    return tuple(probe if probe.head is None else replace(probe, lag_blocks=newest - probe.head) for probe in probes)


async def _ask_identity(client: NodeClient, probe: NodeProbe) -> NodeProbe:
    started = time.perf_counter()
    head = _number(client, await client.call("eth_blockNumber"))
    latency_ms = (time.perf_counter() - started) * 1000
    chain_id, version = await client.batch([("eth_chainId", []), ("web3_clientVersion", [])])
    if isinstance(chain_id, RpcError):
        raise chain_id
    return replace(
        probe,
        latency_ms=latency_ms,
        head=head,
        chain_id=f"eip155:{_number(client, chain_id)}",
        client=None if isinstance(version, RpcError) else _text(client, version)[:80],
        has_batches=client.batch_max > 1,
    )


async def _ask_receipts(client: NodeClient, probe: NodeProbe) -> NodeProbe:
    return replace(probe, has_block_receipts=await _has(client, "eth_getBlockReceipts", [hex(probe.head or 0)]))


async def _ask_traces(client: NodeClient, probe: NodeProbe) -> NodeProbe:
    upstream = Upstream(client)
    recent = await fetch_recent_ref(upstream)
    if recent is not None:
        found = [method for method in TraceMethod if await _traces(upstream, method, recent)]
        return replace(probe, trace_methods=tuple(found))
    tries: dict[str, list[object]] = {
        TraceMethod.CALL_TRACER: [_NOWHERE, {"tracer": "callTracer"}],
        TraceMethod.TRACE_BLOCK: [hex((probe.head or 0) + 1_000_000)],
    }
    return replace(probe, trace_methods=tuple([m for m, params in tries.items() if await _offers(client, m, params)]))


async def _traces(upstream: Upstream, method: TraceMethod, ref: BlockRef) -> bool:
    try:
        await fetch_traces(upstream, method, ref)
    except (RpcError, NodeLacks):
        return False
    return True


async def _ask_state_proofs(client: NodeClient, probe: NodeProbe) -> NodeProbe:
    return replace(probe, has_state_proofs=await _has(client, "eth_getProof", [_NOBODY, [], hex(probe.head or 0)]))


async def _ask_history(client: NodeClient, probe: NodeProbe) -> NodeProbe:
    oldest = hex(min(1, probe.head or 0))
    return replace(
        probe,
        has_old_blocks=await _has(client, "eth_getBlockByNumber", [oldest, False]),
        has_old_receipts=await _has(client, "eth_getBlockReceipts", [oldest]),
        has_old_state=await _has(client, "eth_getBalance", [_NOBODY, oldest]),
    )


async def _ask_logs(client: NodeClient, probe: NodeProbe) -> NodeProbe:
    head = probe.head or 0
    for blocks in LOG_RANGES:
        span = {"address": _NOBODY, "fromBlock": hex(max(0, head - blocks + 1)), "toBlock": hex(head)}
        if await _has(client, "eth_getLogs", [span]):
            return replace(probe, log_range_max=min(blocks, head + 1))
    return replace(probe, log_range_max=0)


async def _has(client: NodeClient, method: str, params: Sequence[object]) -> bool:
    """True where the answer is neither an error nor null."""
    try:
        return await client.call(method, params) != NULL
    except RpcError:
        return False


async def _offers(client: NodeClient, method: str, params: Sequence[object]) -> bool:
    """True where the node knows the method, whatever it says of the parameters."""
    try:
        await client.call(method, params)
    except MethodNotSupported:
        return False
    except RpcError:
        return True
    return True


def _number(client: NodeClient, answer: msgspec.Raw) -> int:
    try:
        return quantity_of(_text(client, answer))
    except ValueError:
        raise NodeGarbled(client.name, "an answer that is no number") from None


def _text(client: NodeClient, answer: msgspec.Raw) -> str:
    try:
        return msgspec.json.decode(answer, type=str)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise NodeGarbled(client.name, "an answer that is no text") from None
