"""Contracts that send value on, assembled by hand: each is the smallest that moves value in one of the ways there are.

Arguments stand on the stack from right to left: `CALL` (f1) takes gas, address, value, input offset, input size, output
offset, output size.
"""

from __future__ import annotations

from collections.abc import Sequence

from sha3 import keccak_256

_NO_DATA = "6000600060006000"  # neither output nor input: four times push 0

FORWARDER = _NO_DATA + "34" + "600035" + "5af100"
"""Sends its call's value to the address in the first word of the calldata."""

REVERTER = _NO_DATA + "34" + "600035" + "5af1" + "60006000fd"
"""Does the same and then reverts: nothing has moved."""

DESTROYER = "600035" + "ff"
"""Destroys itself in favour of the address in the first word: what it holds goes there, and no call tells of it."""


def forwarding_creation(recipient: str) -> str:
    """Creation code that sends the transaction's value on while it runs, and leaves a contract without code."""
    return "0x" + _NO_DATA + "34" + _push_address(recipient) + "5af100"


def tolerant_of(contract: str) -> str:
    """Hands its call's value and first word on to `contract`, and does not care whether that reverts."""
    return "600035600052" + "6000600060206000" + "34" + _push_address(contract) + "5af100"


def batch_of(payments: Sequence[tuple[str, int]]) -> str:
    """Makes one call with value (push17 70) for each payment, as a smart wallet does."""
    return "".join(f"{_NO_DATA}70{amount:034x}{_push_address(address)}5af150" for address, amount in payments) + "00"


def factory_of(runtime: str) -> str:
    """Creates a contract with its call's value by `CREATE2` (f5: value, offset, size, salt), with salt 0."""
    code = creating(runtime).removeprefix("0x")
    size = f"60{len(code) // 2:02x}"
    copy = size + "6010" + "6000" + "39"  # the code, which begins at byte 16, to memory[0:]
    return copy + "6000" + size + "6000" + "34" + "f5" + "00" + code


ENDING = "33ff"
"""Creation code of a contract that is over at once: it destroys itself in favour of its creator."""

BURNER = (
    f"61{ENDING}600052"  # memory[30:32] = the code
    "60006002601e6000f5"  # create2 with that code, without value, with salt 0
    + _NO_DATA
    + "34"  # the call's value
    + "85"  # the created contract's address, from below
    + "5af100"
)
"""Sends its call's value to a contract that was created and destroyed before: at the transaction's end it is burned."""


def address_made_by(factory: str, runtime: str) -> str:
    """Where that factory puts its contract."""
    return address_of_creation(factory, creating(runtime))


def address_of_creation(creator: str, code: str) -> str:
    """Where a contract with that creation code is put by `CREATE2` with salt 0 (EIP-1014)."""
    hashed = keccak_256(bytes.fromhex(code.removeprefix("0x"))).digest()
    fields = b"\xff" + bytes.fromhex(creator.removeprefix("0x")) + bytes(32) + hashed
    made: bytes = keccak_256(fields).digest()[12:]
    return "0x" + made.hex()


def creating(runtime: str) -> str:
    """Creation code of a contract: copy what follows these twelve bytes and return it."""
    return f"0x61{len(runtime) // 2:04x}80600c6000396000f3{runtime}"


def word(address: str) -> str:
    """Calldata of one word."""
    return f"0x{address.removeprefix('0x'):0>64}"


def _push_address(address: str) -> str:
    return "73" + address.removeprefix("0x").lower()
