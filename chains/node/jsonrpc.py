"""JSON-RPC 2.0 as bytes: requests written, answers matched to them by id. Pure: no sockets, no clock.

Results stay raw bytes (`msgspec.Raw`, a view into the answer), so that typed decoding happens once, where the type is
known. Ids are numbers that a client never uses twice: an answer that was meant for somebody else (a confused proxy, a
shared cache) has an id that we did not send.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from chains.deep_json import decode_deep
from chains.node.errors import NodeError, NodeGarbled, NodeOverloaded, RpcError, rpc_error
from chains.node.naming import one_line

Call = tuple[str, Sequence[object]]
"""A method and its parameters."""

ABSENT = msgspec.Raw(b"")
NULL = msgspec.Raw(b"null")
"""What a node answers when it has no such block."""

_BATCH_REFUSALS = frozenset({-32600, -32601, -32700})
"""Codes with which servers that do not know batches answer one: to them an array is no request."""


class _Fault(msgspec.Struct):
    code: int = 0
    message: str = ""


class _Reply(msgspec.Struct):
    id: int | str | None = None
    result: msgspec.Raw = ABSENT
    error: _Fault | None = None


_decode_reply = msgspec.json.Decoder(_Reply).decode
_decode_replies = msgspec.json.Decoder(list[_Reply]).decode


class BatchRefused(NodeGarbled):
    """The node took the batch for no request at all, or for one that is too long."""

    outcome = "batch_refused"


def write_call(call: Call, request_id: int) -> bytes:
    """One request."""
    return msgspec.json.encode(_request(call, request_id))


def write_batch(calls: Sequence[Call], first_id: int) -> bytes:
    """A batch: the n-th call has id `first_id + n`."""
    return msgspec.json.encode([_request(call, first_id + n) for n, call in enumerate(calls)])


def _request(call: Call, request_id: int) -> dict[str, object]:
    method, params = call
    return {"jsonrpc": "2.0", "id": request_id, "method": method, "params": list(params)}


def read_answer(node: str, body: bytes, method: str, request_id: int) -> msgspec.Raw:
    """The result of one call. Raises `RpcError`, `NodeOverloaded`, or `NodeGarbled` for all that is no answer to it."""
    reply = _one_reply(node, body)
    if reply.error is None and reply.id != request_id:
        raise NodeGarbled(node, f"{method}: answer with id {reply.id!r:.40} to request {request_id}")
    result = _outcome_of(node, method, reply)
    if isinstance(result, NodeError):
        raise result
    return result


def read_answers(node: str, body: bytes, methods: Sequence[str], first_id: int) -> list[msgspec.Raw | RpcError]:
    """The results of a batch in the order of its calls, whatever the order of the answers.

    A call's own error is returned in its place. Raises `BatchRefused`, `NodeOverloaded` (where one call was refused for
    lack of patience the batch is worth asking again), or `NodeGarbled` when answers are short, doubled or foreign.
    """
    if not body.lstrip()[:1] == b"[":
        raise _refusal_of(node, body)
    try:
        replies = decode_deep(_decode_replies, body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NodeGarbled(node, _not_json(body, error)) from None
    by_id = {reply.id: reply for reply in replies}
    wanted = range(first_id, first_id + len(methods))
    if len(replies) != len(methods) or by_id.keys() != set(wanted):
        raise NodeGarbled(node, f"{len(replies)} answers to a batch of {len(methods)}, or answers to other requests")
    results = [_outcome_of(node, method, by_id[n]) for method, n in zip(methods, wanted, strict=True)]
    return [_unless_overloaded(result) for result in results]


def fault_of(node: str, body: bytes, method: str) -> RpcError | NodeOverloaded | None:
    """The JSON-RPC error in the body of an HTTP error; None where the body is something else."""
    try:
        reply = _decode_reply(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return None if reply.error is None else _error_of(node, method, reply.error)


def _one_reply(node: str, body: bytes) -> _Reply:
    try:
        return decode_deep(_decode_reply, body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NodeGarbled(node, _not_json(body, error)) from None


def _outcome_of(node: str, method: str, reply: _Reply) -> msgspec.Raw | RpcError | NodeOverloaded | NodeGarbled:
    if reply.error is not None:
        return _error_of(node, method, reply.error)
    if reply.result == ABSENT:
        return NodeGarbled(node, f"{method}: an answer with neither result nor error")
    return reply.result


def _unless_overloaded(result: msgspec.Raw | RpcError | NodeOverloaded | NodeGarbled) -> msgspec.Raw | RpcError:
    if isinstance(result, (NodeOverloaded, NodeGarbled)):
        raise result
    return result


def _refusal_of(node: str, body: bytes) -> NodeError:
    """Why one object came where a list was due."""
    reply = _one_reply(node, body)
    if reply.error is None:
        return NodeGarbled(node, "one answer to a batch")
    error = _error_of(node, "batch", reply.error)
    if isinstance(error, NodeOverloaded):
        return error
    if reply.error.code in _BATCH_REFUSALS or "batch" in reply.error.message.lower():
        return BatchRefused(node, error.detail)
    return error


def _error_of(node: str, method: str, fault: _Fault) -> RpcError | NodeOverloaded:
    return rpc_error(node, method, fault.code, one_line(fault.message) or "no message")


def _not_json(body: bytes, error: Exception) -> str:
    """What came instead of JSON-RPC, as far as a sentence can say it."""
    if not body.strip():
        return "an empty answer"
    if body.lstrip()[:1] == b"<":
        return "answered HTML, not JSON: is the URL that of a JSON-RPC server?"
    return f"malformed answer of {len(body)} bytes: {one_line(str(error))}"
