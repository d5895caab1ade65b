"""What the logs of listed tokens say (ERC-20). Pure.

- A `Transfer` event with exactly three topics and 32 bytes of data, from an allow-listed contract. Four topics are an NFT
  (ERC-721). A token with `is_unindexed` has the old form instead: one topic, 96 bytes of data.
- A movement of zero is never a transfer: a third party can make a token emit those in anybody's name.
- An address fills the last 20 of its 32 bytes; a contract that puts anything into the first twelve does not follow the
  ABI, two readers could disagree about whom it means, and the log is skipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from chains.evm.wire import WireLog, packed
from chains.model import Address, Asset

TRANSFER_TOPIC = "0xddf252ad1be2c89b69c2b068fc378daa952ba7f163c4a11628f55a4df523b3ef"
"""The hash of `Transfer(address,address,uint256)`."""

_TRANSFER_DIGITS = TRANSFER_TOPIC[2:]
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
    found = []
    for ordinal, log in enumerate(logs):
        asset = tokens.get(log.address[2:].lower())
        if asset is not None:
            arguments = _arguments_of(log, asset)
            if arguments is not None and arguments[2] > 0:
                found.append(TokenLog(ordinal, log, asset, *arguments))
    return found


def _arguments_of(log: WireLog, asset: Asset) -> tuple[Address, Address, int] | None:
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
