"""How one node can fail us, split by what the caller does next.

    ChainError
    `-- NodeError                    one node failed; never leaves `chains/`
        |-- NodeBusy                 ask the same node again in a moment
        |   |-- NodeTimeout          no whole answer in time
        |   |-- NodeUnreachable      refused, reset, or the answer broke off
        |   `-- NodeOverloaded       HTTP 429 or 5xx, or the same said in JSON-RPC; may say when to come back
        |-- NodeLacks                not its fault: it has no such block; ask the others
        `-- NodeFailed               give up on this node for now, ask the next
            |-- NodeDenied           401, 403: the key is wrong or spent
            |-- NodeGarbled          not JSON-RPC: HTML, cut or malformed JSON, ids that we never sent, a short batch
            |-- AnswerTooLarge       over the bound; reading on would cost our memory
            |-- RpcError             a JSON-RPC error object
            |   `-- MethodNotSupported
            `-- NodeUnproven         it answered, and the answer cannot be proven (or speaks of another chain)
                `-- NodeUnsettled    its parts are of two moments: worth one more question

`outcome` is the word for it in `chainbell_node_requests_total`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import ClassVar

from chains.errors import ChainError
from chains.node.naming import hide

NOT_FOUND_CODES = frozenset({-32001, -39001})
"""`Resource not found` (EIP-1474) and `Unknown block` (execution-apis)."""

UNSUPPORTED_CODES = frozenset({-32601, -32004})
"""`Method not found` (JSON-RPC 2.0, section 5.1) and `Method not supported` (EIP-1474)."""

_NOT_FOUND = re.compile(
    r"(block|header|resource|receipts?) (is |was )?(not found|unknown)|unknown block", re.IGNORECASE
)
_UNSUPPORTED = re.compile(
    r"unsupported method|method\b.*(not (found|supported|available|allowed|enabled|whitelisted)|does not exist|disabled)",
    re.IGNORECASE,
)
_OVERLOADED = re.compile(r"\brate\b|too many requests|limit exceeded|capacity|throttl", re.IGNORECASE)


class NodeError(ChainError):
    """One node failed. `node` is its name, `detail` says how, without credentials."""

    outcome: ClassVar[str] = "failed"

    def __init__(self, node: str, detail: str) -> None:
        super().__init__(f"{node}: {detail}")
        self.node = node
        self.detail = detail

    def hide(self, secrets: Sequence[str]) -> None:
        """Take credentials out of the message."""
        self.detail = hide(self.detail, secrets)
        self.args = (f"{self.node}: {self.detail}",)


class NodeBusy(NodeError):
    """A failing that may be over in a moment: ask the same node again."""


class NodeTimeout(NodeBusy):
    """No whole answer in time."""

    outcome = "timeout"


class NodeUnreachable(NodeBusy):
    """The connection was refused or reset, or the answer broke off."""

    outcome = "unreachable"


class NodeOverloaded(NodeBusy):
    """The node asks for patience; `retry_after_s` is how long, in seconds, where it said so."""

    outcome = "overloaded"

    def __init__(self, node: str, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(node, detail)
        self.retry_after_s = retry_after_s


class NodeLacks(NodeError):
    """The node does not have what was asked for (yet): no failing of the node."""

    outcome = "lacks"


class NodeFailed(NodeError):
    """A failing that asking again does not mend: use another node."""


class NodeDenied(NodeFailed):
    """The node does not let us in."""

    outcome = "denied"


class NodeGarbled(NodeFailed):
    """The answer is not the JSON-RPC that was asked for."""

    outcome = "garbled"


class AnswerTooLarge(NodeFailed):
    """The answer is larger than the bound."""

    outcome = "too_large"


class RpcError(NodeFailed):
    """A JSON-RPC error object, with its `code`."""

    outcome = "error"

    def __init__(self, node: str, method: str, code: int, message: str) -> None:
        super().__init__(node, f"{method}: {message} (code {code})")
        self.code = code
        self.is_not_found = code in NOT_FOUND_CODES or _NOT_FOUND.search(message) is not None
        """True where the error says what others say by `null`: no such block."""


class MethodNotSupported(RpcError):
    """The node does not offer the method."""

    outcome = "unsupported"


class NodeUnproven(NodeFailed):
    """The node answered and `check` failed: the answer is incomplete, altered, or of another chain."""

    outcome = "unproven"

    def __init__(self, node: str, check: str, detail: str) -> None:
        super().__init__(node, f"{check}: {detail}")
        self.check = check


class NodeUnsettled(NodeUnproven):
    """The parts of the answer do not belong together in the way that they do not while a node takes in a new block, or
    changes its branch, between two calls of a batch."""


def rpc_error(node: str, method: str, code: int, message: str) -> RpcError | NodeOverloaded:
    """The error that a JSON-RPC error object stands for.

    Code -32005 is `Limit exceeded` (EIP-1474): some providers use it for "too many requests", others for "too many
    results", so that the message decides. 429 in its place is a habit of hosted providers.
    """
    if code == 429 or (code == -32005 and _OVERLOADED.search(message)):
        return NodeOverloaded(node, f"{method}: {message} (code {code})")
    if code in UNSUPPORTED_CODES or _UNSUPPORTED.search(message):
        return MethodNotSupported(node, method, code, message)
    return RpcError(node, method, code, message)
