"""The bloom filter over a block's logs (Yellow Paper, section 4.3.1): 2048 bits, three for each address and topic."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from struct import Struct

from chains.evm.keccak import keccak
from chains.evm.wire import WireLog, bytes_of

_three_numbers = Struct(">HHH").unpack_from
_BITS = [1 << place for place in range(2048)]


def bloom_of(logs: Iterable[WireLog]) -> int:
    """The bloom over the logs, as the number whose 256 big-endian bytes are the field `logsBloom`."""
    bloom = 0
    for log in logs:
        bloom |= _bits_of(log.address)
        for topic in log.topics:
            bloom |= _bits_of(topic)
    return bloom


def may_hold(bloom: int, address: str, topics: Iterable[str]) -> bool:
    """False where the bloom excludes a log of that address with one of the topics. A bloom that admits one may do so by
    chance."""
    bits = _bits_of(address)
    return bloom & bits == bits and any(bloom & _bits_of(topic) == _bits_of(topic) for topic in topics)


@lru_cache(maxsize=16384)
def _bits_of(text: str) -> int:
    """The three bits of one address or topic. Kept, because tokens, events and busy addresses come again and again;
    bounded to a few megabytes."""
    first, second, third = _three_numbers(keccak(bytes_of(text)))
    bits: int = _BITS[first & 2047] | _BITS[second & 2047] | _BITS[third & 2047]
    return bits
