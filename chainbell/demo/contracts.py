"""The demo's contracts, assembled by hand: a token, the smallest contract that emits what an ERC-20 emits, and a forwarder,
which sends on what it is sent, as a smart wallet or an exchange's payout contract does.

`transfer(address,uint256)`, and any other call, emits `Transfer(caller, first argument, second argument)` and answers true.
It keeps no balances: a local chain's play money needs none. The forwarder sends the value of a call to the address in
the first word of its calldata; no log tells of it, and no transaction is addressed to the recipient.
"""

from __future__ import annotations

TRANSFER_TOPIC = "ddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"
"""keccak-256 of `Transfer(address,address,uint256)` (EIP-20)."""

_RUNTIME = (
    "60243560005260"  # memory[0] = calldata word at 36: the amount
    "0435"  # push calldata word at 4: the recipient
    "33"  # push the caller
    f"7f{TRANSFER_TOPIC}"  # push the event's topic
    "60206000a3"  # log memory[0:32] with three topics
    "60016000526020"  # memory[0] = true
    "6000f3"  # return memory[0:32]
)

_FORWARDER_RUNTIME = (
    "6000600060006000"  # no input, no output: four times push 0
    "34"  # push the call's value
    "600035"  # push calldata word at 0: the recipient
    "5a"  # push the gas that is left
    "f1"  # call
    "00"  # stop
)


def _creating(runtime: str) -> str:
    """Creation code: copy what follows it to memory and return that as the contract."""
    return "0x60" + f"{len(runtime) // 2:02x}" + "80600b6000396000f3" + runtime


TOKEN_CODE = _creating(_RUNTIME)
FORWARDER_CODE = _creating(_FORWARDER_RUNTIME)

COIN_SYMBOL = "TST"
COIN_DECIMALS = 6


def forward_call(recipient: str) -> str:
    """Calldata that makes the forwarder send on to `recipient`."""
    return f"0x{recipient.removeprefix('0x').lower():0>64}"


def transfer_call(recipient: str, amount_atomic: int) -> str:
    """Calldata of `transfer(recipient, amount_atomic)` (EIP-20; selector a9059cbb)."""
    return f"0xa9059cbb{recipient.removeprefix('0x').lower():0>64}{amount_atomic:064x}"
