"""What the logs of listed tokens say (ERC-20). Pure.

- A `Transfer` event with exactly three topics and 32 bytes of data, from an allow-listed contract. Four topics are an NFT
  (ERC-721). A token with `is_unindexed` has the old form instead: one topic, 96 bytes of data.
- A token that `wraps_without_transfer` (WETH9 and its copies) tells of wrapping by `Deposit(address indexed dst, uint wad)`
  and of unwrapping by `Withdrawal(address indexed src, uint wad)`. These are a mint and a burn: a movement from, or to, the
  zero address, as ERC-20 would have it told. Copies of WETH9 that emit a `Transfer` besides say one thing twice: such a
  pair, equal in both addresses and amount, is one movement.
- A movement of zero is never a transfer: a third party can make a token emit those in anybody's name.
- An address fills the last 20 of its 32 bytes; a contract that puts anything into the first twelve does not follow the
  ABI, two readers could disagree about whom it means, and the log is skipped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from chains.evm.wire import WireLog, packed
from chains.model import Address, Asset

TRANSFER_TOPIC = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"
"""The hash of `Transfer(address,address,uint256)`."""

WRAP_TOPIC = "0xe1fffcc4923d04b559f4d29a8bfc6cda04eb5b0d3c460751c2402c5c5cc9109c"
"""The hash of `Deposit(address,uint256)` (WETH9)."""

UNWRAP_TOPIC = "0x7fcf532c15f0a6db0bd6d0e038bea71d30d808c7d98cb3bf7268a95bf5081b65"
"""The hash of `Withdrawal(address,uint256)` (WETH9)."""

NOBODY: Address = bytes(20)
"""The zero address: who sends what is minted and receives what is burnt (ERC-20)."""

_TRANSFER_DIGITS = TRANSFER_TOPIC[2:]
_WRAP_DIGITS = WRAP_TOPIC[2:]
_UNWRAP_DIGITS = UNWRAP_TOPIC[2:]
_PADDING = "0" * 24


@dataclass(frozen=True, slots=True)
class TokenLog:
    """One movement of a listed token, with the log that tells of it and the log's ordinal in its transaction."""

    ordinal: int
    log: WireLog
    asset: Asset
    sender: Address
    recipient: Address
    amount_atomic: int


def token_logs(logs: list[WireLog], tokens: Mapping[str, Asset]) -> list[TokenLog]:
    """The movements of listed tokens in a transaction's logs, in their order. `tokens` is the allow-list by the contract's
    40 hex digits. Raises `ProofFailure("structure")`."""
    transfers: list[TokenLog] = []
    wraps: list[TokenLog] = []
    for ordinal, log in enumerate(logs):
        asset = tokens.get(log.address[2:].lower())
        if asset is None:
            continue
        for found, read in ((transfers, _transfer_of), (wraps, _wrap_of)):
            arguments = read(log, asset)
            if arguments is not None and arguments[2] > 0:
                found.append(TokenLog(ordinal, log, asset, *arguments))
    if not wraps:
        return transfers
    return sorted((*transfers, *_untold(wraps, transfers)), key=lambda found: found.ordinal)


def _untold(wraps: list[TokenLog], transfers: list[TokenLog]) -> Iterator[TokenLog]:
    """The wraps of which no equal `Transfer` of the same transaction tells."""
    told = Counter(_movement_of(found) for found in transfers)
    for wrap in wraps:
        movement = _movement_of(wrap)
        if told[movement]:
            told[movement] -= 1
        else:
            yield wrap


def _movement_of(found: TokenLog) -> tuple[str, Address, Address, int]:
    return found.asset.id, found.sender, found.recipient, found.amount_atomic


def _transfer_of(log: WireLog, asset: Asset) -> tuple[Address, Address, int] | None:
    """Sender, recipient and amount of a `Transfer` in the form that the token uses; None for any other log."""
    topics = log.topics
    if not topics or topics[0][2:].lower() != _TRANSFER_DIGITS:
        return None
    if asset.is_unindexed:
        words = [log.data[at : at + 64] for at in (2, 66, 130)]
        is_transfer = len(topics) == 1 and len(log.data) == 2 + 3 * 64
    else:
        words = [topic[2:] for topic in topics[1:]] + [log.data[2:]]
        is_transfer = len(topics) == 3 and len(log.data) == 2 + 64
    if not is_transfer or not words[0].startswith(_PADDING) or not words[1].startswith(_PADDING):
        return None
    return packed(words[0][24:]), packed(words[1][24:]), int.from_bytes(packed(words[2]), "big")


def _wrap_of(log: WireLog, asset: Asset) -> tuple[Address, Address, int] | None:
    """Sender, recipient and amount of a `Deposit` or `Withdrawal` of a token that wraps so; None for any other log."""
    topics = log.topics
    if not asset.wraps_without_transfer or len(topics) != 2 or len(log.data) != 2 + 64:
        return None
    event, holder_word = topics[0][2:].lower(), topics[1][2:]
    if event not in (_WRAP_DIGITS, _UNWRAP_DIGITS) or not holder_word.startswith(_PADDING):
        return None
    holder, amount_atomic = packed(holder_word[24:]), int.from_bytes(packed(log.data[2:]), "big")
    return (NOBODY, holder, amount_atomic) if event == _WRAP_DIGITS else (holder, NOBODY, amount_atomic)
