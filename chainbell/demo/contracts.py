"""The demo's token, assembled by hand: the smallest contract that emits what an ERC-20 emits.

`transfer(address,uint256)`, and any other call, emits `Transfer(caller, first argument, second argument)` and answers true.
It keeps no balances: a local chain's play money needs none.
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

TOKEN_CODE = "0x60" + f"{len(_RUNTIME) // 2:02x}" + "80600b6000396000f3" + _RUNTIME
"""Creation code: copy what follows to memory and return it as the contract."""

COIN_SYMBOL = "TST"
COIN_DECIMALS = 6


def transfer_call(recipient: str, amount_atomic: int) -> str:
    """Calldata of `transfer(recipient, amount_atomic)` (EIP-20; selector a9059cbb)."""
    return f"0xa9059cbb{recipient.removeprefix('0x').lower():0>64}{amount_atomic:064x}"
