"""The chain that all measurements read: made once, kept in one file, and whom to watch on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import msgspec

from bench.blocks import make_chain
from chains.evm.reading import RawBlock, ReadingRules, read_block
from chains.model import Address, ProofLevel
from chains.profile import ChainProfile, load_profile

RECIPIENTS = 20_000
"""Addresses that movements pay: a block pays about 130 of them in listed assets."""

RECIPIENTS_WATCHED = 500
"""How many of those are watched while following: three or four movements of a block meet a watch."""

START_HEIGHT = 1_000
TOKENS_UNLISTED = 22
POLL_INTERVAL_S = 0.05
"""A quarter of the live chain's block time, as the profile of Ethereum polls."""


class RecordedChain(msgspec.Struct):
    """Blocks as a node answers them, with the addresses that its movements pay."""

    blocks: list[tuple[bytes, bytes]]
    """For each height from `START_HEIGHT` on: the block with full transactions, and its receipts."""
    recipients: list[Address]


def bench_profile(proof: str) -> ChainProfile:
    """Ethereum's profile at a proof level."""
    profile = load_profile("ethereum")
    return replace(profile, proof=ProofLevel(proof), poll_interval_s=POLL_INTERVAL_S)


def record_chain(path: Path, count: int, seed: int) -> None:
    """Make `count` blocks of mainnet's size and write them."""
    random = Random(f"paid {seed}")
    recipients = [random.randbytes(20) for _ in range(RECIPIENTS)]
    listed = [token.contract for token in bench_profile("roots").tokens if token.contract is not None]
    tokens = [*listed, *(random.randbytes(20) for _ in range(TOKENS_UNLISTED))]
    blocks = make_chain(count, seed=seed, start_height=START_HEIGHT, recipients=recipients, tokens=tokens)
    path.write_bytes(msgspec.msgpack.encode(RecordedChain(blocks, recipients)))
    _recipients_path(path).write_bytes(b"".join(recipients))


def load_chain(path: str) -> RecordedChain:
    """The chain that `record_chain` wrote."""
    return msgspec.msgpack.decode(Path(path).read_bytes(), type=RecordedChain)


def load_recipients(path: str) -> list[Address]:
    """Its recipients alone: a process whose memory is measured does not hold the chain as well."""
    joined = _recipients_path(Path(path)).read_bytes()
    return [joined[at : at + 20] for at in range(0, len(joined), 20)]


def _recipients_path(chain: Path) -> Path:
    return chain.with_suffix(".recipients")


def watched_while_following(recipients: list[Address], count: int, seed: int) -> list[Address]:
    """`count` addresses to watch, of which `RECIPIENTS_WATCHED` are paid on the chain."""
    random = Random(f"watched {seed}")
    hit = recipients[:RECIPIENTS_WATCHED]
    return [*hit, *(random.randbytes(20) for _ in range(max(0, count - len(hit))))]


def watched_live(chain: RecordedChain) -> list[Address]:
    """For each block one address that is paid in it, and nowhere else: one deposit a block."""
    profile = bench_profile("off")
    tokens = {token.contract: token for token in profile.tokens if token.contract is not None}
    rules = ReadingRules(profile.chain_id, profile.proof, profile.native, tokens)
    paid: list[list[Address]] = []
    for height, (block, receipts) in enumerate(chain.blocks, START_HEIGHT):
        read = read_block(rules, height, RawBlock(block, receipts, "bench", "bench", 2))
        paid.append([t.recipient for t in read.transfers if t.recipient is not None and not t.has_failed])
    everyone = [address for addresses in paid for address in addresses]
    counts: dict[Address, int] = {}
    for address in everyone:
        counts[address] = counts.get(address, 0) + 1
    return [next(address for address in addresses if counts[address] == 1) for addresses in paid]
