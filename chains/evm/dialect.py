"""In what an EVM chain departs from Ethereum on the wire: a profile names its dialect, the proof and the decoder obey it."""

from __future__ import annotations

from enum import StrEnum


class Dialect(StrEnum):
    """A family of chains whose headers, transactions and receipts are encoded alike."""

    ETHEREUM = "ethereum"
    """As the Yellow Paper and the EIPs have it. BNB Chain too."""
    OP_STACK = "op_stack"
    """Optimism, Base: deposit transactions (0x7e) without a signature, receipts with two more fields."""
    ARBITRUM = "arbitrum"
    """Arbitrum: transaction types 0x64 to 0x6a without a signature, gas that pays for two chains."""
    POLYGON = "polygon"
    """Polygon PoS: state-sync transactions and their logs lie outside roots and bloom."""
    AVALANCHE = "avalanche"
    """Avalanche's C-Chain: a header with fields of its own, and atomic transactions outside the transactions root."""
