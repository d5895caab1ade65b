"""What a header alone tells of its block's transfers. Pure.

The bloom over a block's logs is in its header, and the header's fields are bound by its hash. So a header whose place in our
chain is known proves which blocks *cannot* hold a log of some contract: no node can leave one out of it. That is what
`eth_getLogs` cannot give: a list that was cut short looks like one that was not.
"""

from __future__ import annotations

import msgspec

from chains.evm.bloom import may_hold
from chains.evm.dialect import Dialect
from chains.evm.errors import ProofFailure
from chains.evm.tokens import TRANSFER_TOPIC, UNWRAP_TOPIC, WRAP_TOPIC
from chains.evm.wire import decode_header
from chains.model import Asset, hex_of

_UNBOUND = (Dialect.POLYGON,)
"""Where the chain appends logs that are outside its headers' blooms: state syncs, which move tokens."""


def may_move(header: bytes | msgspec.Raw, asset: Asset, dialect: Dialect) -> bool:
    """False where the block's logs cannot tell of the asset. The native coin moves without logs. Raises `ProofFailure`."""
    if asset.contract is None or dialect in _UNBOUND:
        return True
    fields = decode_header(header, dialect)
    if fields is None:
        raise ProofFailure("structure", "null in place of a header")
    topics = (TRANSFER_TOPIC, WRAP_TOPIC, UNWRAP_TOPIC) if asset.wraps_without_transfer else (TRANSFER_TOPIC,)
    return may_hold(int(fields.logs_bloom, 16), hex_of(asset.contract), topics)
