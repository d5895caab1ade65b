"""Per-chain facts: what has to be known of a network before a deposit on it can be credited.

The shipped profiles are `chains/profiles/<slug>.toml`. Every field is required there: there is no default finality,
pace or credit rule for a chain that nobody has thought about.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Literal

import msgspec
from msgspec import Struct

from chains.errors import ProfileError
from chains.evm.address import checksum_of, parse_address
from chains.evm.dialect import Dialect
from chains.model import Address, Asset, AssetId, AssetKind, ChainId, ProofLevel, Slug, hex_of

FinalityTag = Literal["safe", "finalized"]
"""A block tag by which nodes say how far the chain is settled (`execution-apis`: safe, finalized)."""

CreditPoint = int | FinalityTag
"""When an entry is confirmed: a count of confirmations (the including block counts as 1), or a finality tag."""

ETHER_LOG_EMITTER: Address = bytes.fromhex("ff" * 19 + "fe")
"""Whence a chain with EIP-7708 emits a `Transfer` log for native value: an alias of the native coin on every chain."""


@dataclass(frozen=True, slots=True)
class ChainProfile:
    """One network's facts. A configured chain is a profile, perhaps under another slug and chain id."""

    slug: Slug
    chain_id: ChainId
    livemode: bool
    """True where the coins are worth money."""
    native: Asset
    tokens: tuple[Asset, ...]
    """The allow-list: an unlisted token is never an entry."""
    block_time_s: float
    """The usual time between blocks."""
    poll_interval_s: float
    """How often to ask for the head."""
    finality_tags: tuple[FinalityTag, ...]
    """The tags that nodes of this chain answer and that mean something there."""
    finality_depth: int
    """Blocks below the tip after which a block is final where there is no tag; also how many blocks the reorg window
    keeps at least."""
    proof: ProofLevel
    """How far each block has to prove itself."""
    credit_at: CreditPoint
    sources: tuple[str, ...]
    """Where the facts were read."""
    dialect: Dialect = Dialect.ETHEREUM
    """How its blocks are encoded."""
    native_aliases: tuple[Address, ...] = (ETHER_LOG_EMITTER,)
    """Contracts whose `Transfer` logs tell of the native coin once more: never read, and never to be listed."""
    mines_on_demand: bool = False
    """It has a block when somebody sends a transaction, and may be quiet for days."""
    is_proof_enforced: bool = True
    """False where the operator only observes: then a block that fails its proof is taken at the level that it reached."""
    unproven: tuple[str, ...] = ()
    """What of this chain no proof covers, and what is not read at all: a sentence each, for operators."""

    @property
    def has_finality_tags(self) -> bool:
        """True where a tag says what is final; elsewhere depth does."""
        return "finalized" in self.finality_tags

    @property
    def assets(self) -> tuple[Asset, ...]:
        """Native coin first, then the allow-listed tokens."""
        return (self.native, *self.tokens)


class _NativeRow(Struct, forbid_unknown_fields=True):
    symbol: str
    decimals: int
    slip44: int


class _TokenRow(Struct, forbid_unknown_fields=True):
    contract: str
    symbol: str
    decimals: int
    sources: list[str]
    unindexed: bool = False
    wraps_without_transfer: bool = False
    fee_on_transfer: bool = False
    rebasing: bool = False


class _ProfileFile(Struct, forbid_unknown_fields=True):
    chain_id: str
    livemode: bool
    native: _NativeRow
    tokens: list[_TokenRow]
    block_time_s: float
    poll_interval_s: float
    finality_tags: list[FinalityTag]
    finality_depth: int
    proof: ProofLevel
    credit_at: CreditPoint
    sources: list[str]
    dialect: Dialect
    native_aliases: list[str]
    unproven: list[str]
    mines_on_demand: bool


def make_native(chain_id: ChainId, symbol: str, decimals: int, slip44: int) -> Asset:
    """The native coin of a chain, named by its SLIP-44 coin type (CAIP-19, CAIP-20)."""
    return Asset(AssetId(f"{chain_id}/slip44:{slip44}"), symbol, decimals, AssetKind.NATIVE)


def make_token(
    chain_id: ChainId,
    contract: str,
    symbol: str,
    decimals: int,
    *,
    is_unindexed: bool = False,
    wraps_without_transfer: bool = False,
    is_fee_on_transfer: bool = False,
    is_rebasing: bool = False,
) -> Asset:
    """An ERC-20 token (CAIP-19, CAIP-21); what the flags mean stands at `Asset`. Raises
    `chains.evm.address.AddressError` for a contract that is no address or has a wrong checksum."""
    address = parse_address(contract)
    return Asset(
        id=AssetId(f"{chain_id}/erc20:{hex_of(address)}"),
        symbol=symbol,
        decimals=decimals,
        kind=AssetKind.FUNGIBLE,
        contract=address,
        is_unindexed=is_unindexed,
        wraps_without_transfer=wraps_without_transfer,
        is_fee_on_transfer=is_fee_on_transfer,
        is_rebasing=is_rebasing,
    )


def profile_names() -> tuple[str, ...]:
    """The shipped profiles, sorted."""
    names = (entry.name for entry in files("chains").joinpath("profiles").iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml")))


def load_profile(name: str) -> ChainProfile:
    """The shipped profile of that name. Raises `ProfileError` with the names that there are."""
    if name not in profile_names():
        known = ", ".join(profile_names())
        raise ProfileError(f"no profile is named {name!r}; shipped profiles: {known}")
    text = files("chains").joinpath("profiles", f"{name}.toml").read_bytes()
    return read_profile(name, text)


def read_profile(name: str, text: bytes) -> ChainProfile:
    """The profile in a TOML file's bytes. Raises `ProfileError` naming the key that is missing, unknown or wrong."""
    try:
        row = msgspec.toml.decode(text, type=_ProfileFile)
        return _profile_of(name, row)
    except (msgspec.MsgspecError, ProfileError, ValueError) as error:
        raise ProfileError(f"profile {name!r} is not complete: {error}") from error


def rename_profile(profile: ChainProfile, slug: Slug, chain_id: ChainId) -> ChainProfile:
    """The same kind of network under another slug and chain id: its coin and tokens are named by the new id."""

    def _moved(asset: Asset) -> Asset:
        return replace(asset, id=AssetId(f"{chain_id}/{asset.id.partition('/')[2]}"))

    tokens = tuple(_moved(token) for token in profile.tokens)
    return replace(profile, slug=slug, chain_id=chain_id, native=_moved(profile.native), tokens=tokens)


def add_tokens(profile: ChainProfile, tokens: tuple[Asset, ...]) -> ChainProfile:
    """The profile with tokens added. Raises `ProfileError` when a contract is listed already, or is an alias of the native
    coin: its logs repeat what the transactions themselves say, and one movement is counted on one path."""
    listed = {token.contract: token.symbol for token in profile.tokens}
    for token in tokens:
        if token.contract in profile.native_aliases:
            raise ProfileError(
                f"{profile.slug}: {checksum_of(token.contract)} is another face of {profile.native.symbol}, whose "
                f"movements are read without it; listed as {token.symbol} it would count each of them twice; remove it"
            )
        if token.contract in listed:
            raise ProfileError(f"{profile.slug}: {token.id} is listed already, as {listed[token.contract]}; remove one")
        listed[token.contract] = token.symbol
    return replace(profile, tokens=profile.tokens + tokens)


def _profile_of(name: str, row: _ProfileFile) -> ChainProfile:
    chain_id = ChainId(row.chain_id)
    _check(row)
    bare = ChainProfile(
        slug=Slug(name),
        chain_id=chain_id,
        livemode=row.livemode,
        native=make_native(chain_id, row.native.symbol, row.native.decimals, row.native.slip44),
        tokens=(),
        block_time_s=row.block_time_s,
        poll_interval_s=row.poll_interval_s,
        finality_tags=tuple(row.finality_tags),
        finality_depth=row.finality_depth,
        proof=row.proof,
        credit_at=row.credit_at,
        sources=tuple(row.sources),
        dialect=row.dialect,
        native_aliases=(ETHER_LOG_EMITTER, *(parse_address(alias) for alias in row.native_aliases)),
        mines_on_demand=row.mines_on_demand,
        unproven=tuple(row.unproven),
    )
    return add_tokens(bare, tuple(_token_of(chain_id, token) for token in row.tokens))


def _token_of(chain_id: ChainId, row: _TokenRow) -> Asset:
    return make_token(
        chain_id,
        row.contract,
        row.symbol,
        row.decimals,
        is_unindexed=row.unindexed,
        wraps_without_transfer=row.wraps_without_transfer,
        is_fee_on_transfer=row.fee_on_transfer,
        is_rebasing=row.rebasing,
    )


def _check(row: _ProfileFile) -> None:
    namespace, _, reference = row.chain_id.partition(":")
    if namespace != "eip155" or not reference.isdecimal():
        raise ValueError(f"chain_id {row.chain_id!r} is not of the form eip155:<number>")
    if min(row.block_time_s, row.poll_interval_s, row.finality_depth) <= 0:
        raise ValueError("block_time_s, poll_interval_s and finality_depth must be above zero")
    if isinstance(row.credit_at, int) and row.credit_at < 1:
        raise ValueError("credit_at counts the including block, so it is 1 or more")
    if isinstance(row.credit_at, str) and row.credit_at not in row.finality_tags:
        raise ValueError(f"credit_at is {row.credit_at!r}, which is not among the chain's finality_tags")
