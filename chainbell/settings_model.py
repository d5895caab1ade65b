"""The shape of `chainbell.toml`: every key, its type, its default and what it means.

Validators say what is wrong with one value; `chainbell.settings` adds the key, the value and where to correct it. Types are
strict: TOML has numbers and booleans of its own, so `"true"` in quotes is a mistake and not a boolean.
"""

from __future__ import annotations

import re
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictBool, StrictFloat, StrictInt
from pydantic_settings import BaseSettings, SettingsConfigDict

from api.limits import RPS_PER_KEY
from chains.errors import ProfileError
from chains.evm.address import parse_address
from chains.model import ProofLevel
from chains.node.naming import check_ws_url, host_of
from ledger.urls import IPNetwork

_SLUG = re.compile(r"[a-z][a-z0-9_-]{0,31}\Z")
_CHAIN_ID = re.compile(r"eip155:[1-9][0-9]{0,17}\Z")
_DECIMAL = re.compile(r"[0-9]{1,60}(\.[0-9]{1,60})?\Z")


def _one_of(*words: str, count_min: int | None = None) -> BeforeValidator:
    """Accept the `words` and, where `count_min` is given, whole numbers from there on."""
    allowed = [f'"{word}"' for word in words]
    if count_min is not None:
        allowed.append(f"a whole number of at least {count_min}")

    def _check(value: object) -> object:
        if value in words or (count_min is not None and type(value) is int and value >= count_min):
            return value
        raise ValueError(f"must be {' or '.join(allowed)}")

    return BeforeValidator(_check)


def _matching(pattern: re.Pattern[str], what: str) -> AfterValidator:
    def _check(value: str) -> str:
        if not pattern.match(value):
            raise ValueError(f"must be {what}")
        return value

    return AfterValidator(_check)


def split_listen(listen: str) -> tuple[str, int]:
    """Host and port of `127.0.0.1:8080` or `[::1]:8080`; port 0 lets the system choose. Raises ValueError."""
    try:
        parts = urlsplit(f"//{listen}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if host is None or port is None or parts.netloc != listen:
        raise ValueError('must be an address and a port up to 65535, as in "127.0.0.1:8080" or "[::1]:8080"')
    return host, port


def _check_listen(listen: str) -> str:
    split_listen(listen)
    return listen


_UNREADABLE_URL = (
    "cannot be read: the port must be a number, and in a password @ is written as %40, / as %2F, # as %23 and ? as %3F"
)


def _check_database_url(url: str) -> str:
    """Raises ValueError, also where a password has one of the URL's own characters: what follows it would be taken for a
    host or a port, and those are named in messages."""
    try:
        parts = urlsplit(url)
        is_readable = parts.port != 0 and url.count("@") == parts.netloc.count("@") <= 1 and not parts.fragment
    except ValueError:
        raise ValueError(_UNREADABLE_URL) from None
    if url != "embedded" and parts.scheme not in ("postgresql", "postgres", "postgresql+psycopg"):
        raise ValueError('must be "embedded" or a URL that begins with postgresql://')
    if not is_readable:
        raise ValueError(_UNREADABLE_URL)
    return url


def _read_network(value: object) -> IPNetwork:
    try:
        return ip_network(value if isinstance(value, str) else repr(value))
    except ValueError as error:
        raise ValueError(f'must be a network in CIDR form, as in "10.1.0.0/16" ({error})') from None


def _check_node_url(url: str) -> str:
    try:
        host_of(url)
    except ProfileError as error:
        raise ValueError(str(error)) from None
    return url


def _check_ws_url(url: str) -> str:
    try:
        check_ws_url(url)
    except ProfileError as error:
        raise ValueError(str(error)) from None
    return url


def _check_address(text: str) -> str:
    parse_address(text)
    return text


def _check_slugs(chains: dict[str, Any]) -> dict[str, Any]:
    for slug in chains:
        if slug == "evm":
            raise ValueError('no chain can be called "evm": it stands for all EVM chains; choose another name')
        if not _SLUG.match(slug):
            raise ValueError(f"{slug!r} must be a short name of lower-case letters, digits, - and _, a letter first")
    return chains


Port = Annotated[StrictInt, Field(ge=1, le=65535)]
CreditAt = Annotated[int | Literal["safe", "finalized"], _one_of("safe", "finalized", count_min=1)]
"""A count of confirmations (the including block counts as 1), or a finality tag."""

DisplayAmount = Annotated[str, _matching(_DECIMAL, 'an amount in quotes, as in "1000" or "0.5"')]
"""An amount as people write it, in whole coins."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DatabaseSettings(_Section):
    """`[database]`: where the ledger is."""

    url: Annotated[str, AfterValidator(_check_database_url), Field(repr=False)] = "embedded"
    data_dir: Path = Path("chainbell-data")
    """Of the embedded database and of a master key that we made; relative to the settings file."""

    @property
    def is_embedded(self) -> bool:
        """True when we run the database ourselves."""
        return self.url == "embedded"


class SecretsSettings(_Section):
    """`[secrets]`: what encrypts endpoint secrets at rest."""

    master_key: Annotated[str, Field(repr=False)] = "env:CHAINBELL_MASTER_KEY"
    """32 bytes in base64, or `env:NAME` of the variable that holds them."""
    previous_master_keys: Annotated[tuple[str, ...], Field(repr=False)] = ()
    """Likewise; they are read, but nothing is sealed with them: for as long as master keys change."""


class ApiSettings(_Section):
    """`[api]`: the REST server."""

    listen: Annotated[str, AfterValidator(_check_listen)] = "127.0.0.1:8080"
    operator_listen: Annotated[str, AfterValidator(_check_listen)] | None = None
    """Where everything is served, the operator's too, which `listen` then has not; None: all of it there."""
    rps_per_key: Annotated[StrictFloat, Field(gt=0)] = RPS_PER_KEY
    """Requests a second that each key may make of each process; twice as many at once."""
    trusted_proxies: tuple[Annotated[IPNetwork, BeforeValidator(_read_network)], ...] = ()
    """Whose `X-Forwarded-For` is believed."""


class NotifierSettings(_Section):
    """`[notifier]`: what endpoints' URLs may be."""

    allow_http: StrictBool = False
    allow_private: tuple[Annotated[IPNetwork, BeforeValidator(_read_network)], ...] = ()
    allow_ports: tuple[Port, ...] = (443, 8443)


class NodeSettings(_Section):
    """One node of a chain: `{ url = "https://...", ws = "wss://...", name = "a", rps = 25 }`."""

    url: Annotated[str, AfterValidator(_check_node_url), Field(repr=False)]
    ws: Annotated[Annotated[str, AfterValidator(_check_ws_url)] | None, Field(repr=False)] = None
    """Where it announces new heads; None: it is only asked."""
    name: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    rps: Annotated[StrictFloat, Field(gt=0)] | None = None
    """Calls a second that it may be asked; None: as many as we like."""


class AssetSettings(_Section):
    """`[[chains.SLUG.assets]]`: a token added to the profile's allow-list."""

    contract: Annotated[str, AfterValidator(_check_address)]
    symbol: Annotated[str, Field(min_length=1, max_length=32)]
    decimals: Annotated[StrictInt, Field(ge=0, le=77)]
    unindexed: StrictBool = False
    """Its `Transfer` has the old form, all three arguments in the data."""
    wraps_without_transfer: StrictBool = False
    """It wraps the native coin and tells of it by `Deposit` and `Withdrawal` alone, as WETH9 does."""
    fee_on_transfer: StrictBool = False
    """Less may arrive than its `Transfer` says: its deposits are told, never credited."""
    rebasing: StrictBool = False
    """Its balances change without a `Transfer`: its deposits are told, never credited."""


class CreditRuleSettings(_Section):
    """`[[chains.SLUG.credit]]`: another credit point for an asset, an amount, or both; the first rule that fits counts."""

    credit_at: CreditAt
    asset: str | None = None
    """Symbol, contract, or asset id; needed where an amount is given."""
    min_amount: DisplayAmount | None = None
    max_amount: DisplayAmount | None = None


class ChainSettings(_Section):
    """`[chains.SLUG]`: one chain to follow. What is None comes from the profile."""

    nodes: Annotated[tuple[NodeSettings, ...], Field(min_length=1)]
    profile: str | None = None
    """A shipped profile; None: the one named like the slug."""
    chain_id: Annotated[str, _matching(_CHAIN_ID, 'a chain id, as in "eip155:1"')] | None = None
    start: Annotated[int | Literal["latest"], _one_of("latest", count_min=0)] = "latest"
    proof: Annotated[ProofLevel, _one_of(*(level.value for level in ProofLevel))] | None = None
    proof_enforced: StrictBool = True
    """False: proofs are only observed. A block that fails one is told of, and taken at the level that it reached."""
    quorum: Annotated[int | Literal["auto"], _one_of("auto", count_min=1)] = "auto"
    internal: Annotated[Literal["auto", "required", "off"], _one_of("auto", "required", "off")] = "auto"
    credit_at: CreditAt | None = None
    credit: tuple[CreditRuleSettings, ...] = ()
    assets: tuple[AssetSettings, ...] = ()
    poll_interval_s: Annotated[StrictFloat, Field(gt=0, le=3600)] | None = None
    finality_depth: Annotated[StrictInt, Field(ge=1)] | None = None


class Settings(BaseSettings):
    """All settings, checked; `chainbell.settings.load_settings` makes them."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)

    database: DatabaseSettings = DatabaseSettings()
    secrets: SecretsSettings = SecretsSettings()
    api: ApiSettings = ApiSettings()
    notifier: NotifierSettings = NotifierSettings()
    chains: Annotated[dict[str, ChainSettings], BeforeValidator(_check_slugs)] = {}
