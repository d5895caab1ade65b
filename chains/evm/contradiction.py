"""What it means when a block's transfers and an account's proven balances do not go together. Pure.

Equal, and the transfers to and from the account are all there are. Unequal, and the traces are false, unless the balance
may have changed in a way that is no transfer. Those ways are known, and a difference that one of them may explain tells
nothing; it must not make a chain hold, or anybody could make it hold who watches an address of his own.

- A contract that destroyed itself in the block: value that it left to itself, or that came after its end, is burned.
- An account of the protocol (a system contract, a precompile, the one that fees go to on some chains): it is credited and
  emptied without a transaction.
- Elsewhere than on Ethereum an account that got more than transfers say: fees are paid out to accounts of the chain's own.
- Arbitrum moves value before and after transactions.
- What contracts that destroyed themselves are said to have left to the account. Anvil's tracer tells of it where nothing
  was left (it takes the last movement before the end for it), and others that share its EVM may do so too. If the balance
  lacks just such movements and nothing else, they are the ones that never were: not borne out, and not credited.
- An account with code that has less than transfers say, where a node was asked for `trace_block`: it may have sent value
  to a precompiled contract, which that leaves out (`chains.evm.traces`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum, auto

from chains.evm.dialect import Dialect
from chains.evm.traces import RawTraces, TraceMethod
from chains.model import Address, hex_of

SYSTEM_BYTES_MIN = 10
"""So many bytes of nothing but zeros or ones make an account one of the protocol's: nobody finds a key, or a creator's
nonce, whose address has as many."""

SUMS_MAX = 4096


class Bearing(Enum):
    """What an account's proven balances say of a block's transfers."""

    BORNE_OUT = auto()
    UNTOLD = auto()
    CONTRADICTED = auto()


def bearing_of(
    expected: int,
    proven: int,
    address: Address,
    traces: Sequence[RawTraces],
    dialect: Dialect = Dialect.ETHEREUM,
    *,
    has_code: bool = False,
    inherited: Sequence[int] = (),
) -> Bearing:
    """What it means that the balance of `address` should have changed by `expected` and did change by `proven`, both in
    the native coin's smallest unit. `inherited` are the amounts that contracts which destroyed themselves left to it."""
    if expected == proven:
        return Bearing.BORNE_OUT
    if expected - proven in _sums_of(inherited):
        return Bearing.UNTOLD
    if dialect is Dialect.ARBITRUM or (dialect is not Dialect.ETHEREUM and proven > expected):
        return Bearing.UNTOLD
    if _is_of_the_protocol(address) or any(_tells_destruction(answer, address) for answer in traces):
        return Bearing.UNTOLD
    if has_code and proven < expected and any(answer.method is TraceMethod.TRACE_BLOCK for answer in traces):
        return Bearing.UNTOLD
    return Bearing.CONTRADICTED


def _sums_of(amounts: Sequence[int]) -> set[int]:
    """What some of the amounts come to together, as far as there are not too many ways to add them up."""
    sums: set[int] = set()
    for amount in amounts:
        if len(sums) < SUMS_MAX:
            sums |= {amount} | {amount + other for other in sums}
    return sums


def _is_of_the_protocol(address: Address) -> bool:
    return sum(byte in (0x00, 0xFF) for byte in address) >= SYSTEM_BYTES_MIN


def _tells_destruction(traces: RawTraces, address: Address) -> bool:
    """The account destroyed itself, by the word of these traces. Such a frame has no frames under it."""
    named = re.escape(hex_of(address).encode())
    answer = bytes(traces.answer)
    if traces.method is TraceMethod.TRACE_BLOCK:
        return re.search(rb'"action"\s*:\s*\{[^{}]*"address"\s*:\s*"' + named, answer, re.IGNORECASE) is not None
    by_account = re.compile(rb'"from"\s*:\s*"' + named, re.IGNORECASE)
    frames = re.finditer(rb"\{[^{}]*SELFDESTRUCT[^{}]*\}", answer)
    return any(by_account.search(frame.group()) for frame in frames)
