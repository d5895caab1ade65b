"""Contracts that tell of movements in odd ways, assembled by hand as `chainbell.demo.contracts` is.

Calls carry words after four bytes of selector, which nobody looks at: `call_with(word, word, ...)`.
"""

from __future__ import annotations

from chainbell.demo.contracts import TRANSFER_TOPIC

WRAP_TOPIC = "e1fffcc4923d04b559f4d29a8bfc6cda04eb5b0d3c460751c2402c5c5cc9109c"
UNWRAP_TOPIC = "7fcf532c15f0a6db0bd6d0e038bea71d30d808c7d98cb3bf7268a95bf5081b65"

_FIRST, _SECOND, _THIRD = "600435", "602435", "604435"  # push that word of the calldata
_CALLER = "33"
_KEEP = "600052"  # memory[0] = what was pushed
_TRANSFER = f"7f{TRANSFER_TOPIC}"
_LOG2, _LOG3 = "60206000a2", "60206000a3"  # log memory[0:32] with so many topics


def creation_of(runtime: str) -> str:
    """Creation code: copy what follows to memory and return it as the contract."""
    return f"0x60{len(runtime) // 2:02x}80600b6000396000f3{runtime}"


def call_with(*words: str | int) -> str:
    """Calldata of these words: addresses and numbers."""
    digits = (word.removeprefix("0x") if isinstance(word, str) else f"{word:x}" for word in words)
    return "0x00000000" + "".join(f"{digit:0>64}" for digit in digits)


ANYBODY = _THIRD + _KEEP + _SECOND + _FIRST + _TRANSFER + _LOG3
"""Emits `Transfer(first, second, third)`: in whosever name its caller likes. (A runtime, to be put anywhere.)"""

ANYBODY_CODE = creation_of(ANYBODY)

FORWARDER = "34" + _KEEP + _FIRST + _CALLER + _TRANSFER + _LOG3 + "600060006000600034" + _FIRST + "5af1" + "00"
"""Hands the value that comes along on to the first, and emits `Transfer(caller, first, value)`. (A runtime.)"""

TRIPLE_CODE = creation_of(_SECOND + _KEEP + (_FIRST + _CALLER + _TRANSFER + _LOG3) * 3)
"""Emits `Transfer(caller, first, second)` three times."""

UNINDEXED_CODE = creation_of(
    _CALLER + _KEEP + _FIRST + "602052" + _SECOND + "604052" + _TRANSFER + "60606000a1"  # memory[0:96], one topic
)
"""Emits the old form: caller, first and second word in the data."""

NFT_CODE = creation_of(_SECOND + _FIRST + _CALLER + _TRANSFER + "60006000a4")  # no data, four topics
"""Emits what an ERC-721 emits: `Transfer(caller, first, second)`, the second being the thing's number."""

_UNWRAP = _FIRST + _KEEP + _CALLER + f"7f{UNWRAP_TOPIC}" + _LOG2 + "00"
_WRAP = "5b" + _KEEP + _CALLER + f"7f{WRAP_TOPIC}" + _LOG2

WRAPPER_CODE = creation_of(f"348060{5 + len(_UNWRAP) // 2:02x}57" + _UNWRAP + _WRAP)  # with value: jump to the wrapping
"""Emits as WETH9 does: `Deposit(caller, value)` where value comes along, else `Withdrawal(caller, first)`."""
