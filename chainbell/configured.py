"""A configured chain: a profile's facts with what the operator changed, free of contradictions.

Raises `SettingsError` where two settings, or a setting and a profile, do not go together; what is wrong with one value alone
has been said by `chainbell.settings_model`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from chainbell.errors import SettingsError
from chainbell.settings_model import AssetSettings, ChainSettings, CreditRuleSettings, NodeSettings, Settings
from chains.adapter import Internal
from chains.errors import ProfileError
from chains.model import Asset, ChainId, ProofLevel, Slug, hex_of
from chains.node.naming import host_of
from chains.profile import ChainProfile, add_tokens, load_profile, make_token, rename_profile
from indexer.policy import CreditRule


@dataclass(frozen=True, slots=True)
class ConfiguredChain:
    """One chain to follow, ready to be given to an adapter and a follower."""

    slug: Slug
    profile_name: str
    """The shipped profile that it starts from."""
    profile: ChainProfile
    """The effective facts: the operator's chain id, tokens, proof, pace, finality depth and credit point are in it."""
    nodes: tuple[NodeSettings, ...]
    hosts: tuple[str, ...]
    """Distinct hosts of the nodes, in order."""
    start: int | Literal["latest"]
    quorum: int
    """Hosts that must agree on a block before anything in it is credited."""
    internal: Internal
    """Whether value that contracts send on is read, and whether a block is taken without it."""
    credit_rules: tuple[CreditRule, ...]
    """First match counts; the last one matches everything."""


def configure_chains(settings: Settings) -> tuple[ConfiguredChain, ...]:
    """Every chain of the settings, in their order. Raises `SettingsError`."""
    chains = tuple(_configure(slug, chain) for slug, chain in settings.chains.items())
    seen: dict[ChainId, Slug] = {}
    for chain in chains:
        chain_id = chain.profile.chain_id
        if chain_id in seen:
            raise SettingsError(
                f"chains.{chain.slug}: chain id {chain_id} is that of chains.{seen[chain_id]} too; "
                "give each chain once, with all its nodes"
            )
        seen[chain_id] = chain.slug
    return chains


def _configure(slug: str, chain: ChainSettings) -> ConfiguredChain:
    profile = _effective_profile(slug, chain)
    hosts = tuple(dict.fromkeys(host_of(node.url) for node in chain.nodes))
    _check_names(slug, chain)
    return ConfiguredChain(
        slug=Slug(slug),
        profile_name=chain.profile or slug,
        profile=profile,
        nodes=chain.nodes,
        hosts=hosts,
        start=chain.start,
        quorum=_quorum(slug, chain, hosts),
        internal=Internal(chain.internal),
        credit_rules=_credit_rules(slug, chain, profile),
    )


def _effective_profile(slug: str, chain: ChainSettings) -> ChainProfile:
    name = chain.profile or slug
    key = f"chains.{slug}.profile" if chain.profile else f"chains.{slug}"
    try:
        profile = load_profile(name)
    except ProfileError as error:
        raise SettingsError(f"{key}: {error}; set profile to one of them") from error
    if name != slug and chain.chain_id is None:
        raise SettingsError(
            f"chains.{slug}.chain_id is missing: {slug!r} is another network than its profile {name!r} "
            f'({profile.chain_id}); give its own, as in chain_id = "eip155:31338", or call the chain {name!r}'
        )
    profile = rename_profile(profile, Slug(slug), ChainId(chain.chain_id or profile.chain_id))
    try:
        profile = add_tokens(profile, tuple(_token(profile.chain_id, asset) for asset in chain.assets))
    except ProfileError as error:
        raise SettingsError(f"chains.{slug}.assets: {str(error).removeprefix(f'{slug}: ')}") from error
    return _with_overrides(slug, chain, profile)


def _token(chain_id: ChainId, asset: AssetSettings) -> Asset:
    return make_token(
        chain_id,
        asset.contract,
        asset.symbol,
        asset.decimals,
        is_unindexed=asset.unindexed,
        wraps_without_transfer=asset.wraps_without_transfer,
        is_fee_on_transfer=asset.fee_on_transfer,
        is_rebasing=asset.rebasing,
    )


def _with_overrides(slug: str, chain: ChainSettings, profile: ChainProfile) -> ChainProfile:
    credit_points = [chain.credit_at, *(rule.credit_at for rule in chain.credit)]
    for point in credit_points:
        if isinstance(point, str) and point not in profile.finality_tags:
            known = "".join(f'"{tag}" or ' for tag in profile.finality_tags)
            raise SettingsError(
                f'chains.{slug}.credit_at = "{point}": nodes of this chain do not say what is {point}, so nothing would '
                f"ever be credited; give {known}a count of confirmations"
            )
    proof = chain.proof or profile.proof
    if proof is ProofLevel.OFF and not chain.proof_enforced:
        raise SettingsError(
            f'chains.{slug}.proof_enforced = false: with proof = "off" there is nothing to observe; '
            'set proof to the level to try, as in "roots", or leave proof_enforced out'
        )
    return replace(
        profile,
        proof=proof,
        is_proof_enforced=chain.proof_enforced,
        credit_at=chain.credit_at or profile.credit_at,
        poll_interval_s=chain.poll_interval_s or profile.poll_interval_s,
        finality_depth=chain.finality_depth or profile.finality_depth,
    )


def _check_names(slug: str, chain: ChainSettings) -> None:
    names = [node.name for node in chain.nodes if node.name is not None]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise SettingsError(f"chains.{slug}.nodes: two nodes are called {repeated!r}; give each a name of its own")


def _quorum(slug: str, chain: ChainSettings, hosts: tuple[str, ...]) -> int:
    if chain.quorum == "auto":
        return min(2, len(hosts))
    if chain.quorum > len(hosts):
        raise SettingsError(
            f"chains.{slug}.quorum = {chain.quorum}: the nodes are on {len(hosts)} distinct "
            f"{'host' if len(hosts) == 1 else 'hosts'} ({', '.join(hosts)}), so nothing would ever be credited; "
            "add nodes on other hosts or lower it"
        )
    return chain.quorum


# --- credit rules -----------------------------------------------------------------------------------------------------


def _credit_rules(slug: str, chain: ChainSettings, profile: ChainProfile) -> tuple[CreditRule, ...]:
    rules = [_credit_rule(f"chains.{slug}.credit[{n}]", n, rule, profile) for n, rule in enumerate(chain.credit)]
    return (*rules, CreditRule("default", str(profile.credit_at)))


def _credit_rule(key: str, n: int, rule: CreditRuleSettings, profile: ChainProfile) -> CreditRule:
    name, credit_at = f"rule-{n + 1}", str(rule.credit_at)
    if rule.asset is None:
        if rule.min_amount or rule.max_amount:
            raise SettingsError(f"{key}.asset is missing: an amount means something only with its asset; add asset")
        return CreditRule(name, credit_at)
    asset = _find_asset(key, rule.asset, profile)
    low = _atomic(f"{key}.min_amount", rule.min_amount, asset)
    high = _atomic(f"{key}.max_amount", rule.max_amount, asset)
    if low is not None and high is not None and low > high:
        raise SettingsError(f"{key}: min_amount {rule.min_amount} is above max_amount {rule.max_amount}; swap them")
    return CreditRule(name, credit_at, asset.id, low, high)


def _find_asset(key: str, wanted: str, profile: ChainProfile) -> Asset:
    found = [
        asset
        for asset in profile.assets
        if wanted in (asset.symbol, asset.id) or (asset.contract and wanted.lower() == hex_of(asset.contract))
    ]
    if len(found) != 1:
        known = ", ".join(asset.symbol for asset in profile.assets)
        problem = "several assets of this chain are called so; give the contract" if found else f"known are {known}"
        raise SettingsError(f"{key}.asset = {wanted!r}: {problem}; an unlisted token goes into assets first")
    return found[0]


def _atomic(key: str, amount: str | None, asset: Asset) -> int | None:
    """An amount in whole coins as an integer of the asset's smallest unit."""
    if amount is None:
        return None
    whole, _, fraction = amount.partition(".")
    if len(fraction.rstrip("0")) > asset.decimals:
        raise SettingsError(
            f"{key} = {amount!r}: {asset.symbol} has {asset.decimals} decimals; write no more than that"
        )
    return int(whole + fraction[: asset.decimals].ljust(asset.decimals, "0"))
