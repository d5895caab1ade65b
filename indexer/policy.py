"""When a transfer counts as money: first-match rules over asset and amount. Pure.

A rule says `credit_at`: a count of confirmations (the including block counts as 1), `safe` or `finalized`. The last rule
of a chain admits everything. The version in force at detection stays with the entry, so that a change of rules never
moves a promise already made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from chains.model import Asset, AssetId, Slug, TraceProof, Transfer
from ledger.states import Reason

TAGS = frozenset({"safe", "finalized"})


@dataclass(frozen=True, slots=True)
class CreditRule:
    """One rule: it matches when the asset and both bounds (atomic, included) do; None matches all."""

    name: str
    credit_at: str
    asset_id: AssetId | None = None
    min_atomic: int | None = None
    max_atomic: int | None = None

    def matches(self, asset_id: AssetId, amount_atomic: int) -> bool:
        """True when this rule speaks of such a transfer."""
        return (
            self.asset_id in (None, asset_id)
            and (self.min_atomic is None or amount_atomic >= self.min_atomic)
            and (self.max_atomic is None or amount_atomic <= self.max_atomic)
        )


@dataclass(frozen=True, slots=True)
class CreditPoint:
    """What an entry keeps of the policy: its name with version, and when it credits."""

    policy: str
    credit_at: str

    def confirm_height(self, block_height: int) -> int | None:
        """The tip at which the count is reached; None where a tag decides."""
        return None if self.credit_at in TAGS else block_height + int(self.credit_at) - 1


@dataclass(frozen=True, slots=True)
class Policy:
    """A chain's rules in one version. The last rule must match everything."""

    slug: Slug
    version: int
    rules: tuple[CreditRule, ...]

    def __post_init__(self) -> None:
        """Refuse rules that leave a transfer without a credit point."""
        if not self.rules or not self.rules[-1].matches(AssetId("any"), 0) or self.rules[-1].max_atomic is not None:
            raise ValueError(f"{self.slug}: the last credit rule must match every transfer")

    def credit_point(self, asset_id: AssetId, amount_atomic: int) -> CreditPoint:
        """The credit point of a transfer, by the first rule that matches."""
        rule = next(rule for rule in self.rules if rule.matches(asset_id, amount_atomic))
        return CreditPoint(f"{self.slug}/{rule.name}@{self.version}", rule.credit_at)


def reasons_against(assets: Iterable[Asset]) -> Mapping[AssetId, tuple[Reason, ...]]:
    """The assets whose amounts are not to be believed, each with why: a log tells what a token was asked to move, and only
    of an honest one is that what arrived."""
    found = {asset.id: tuple(_reasons_against(asset)) for asset in assets}
    return {asset_id: reasons for asset_id, reasons in found.items() if reasons}


def _reasons_against(asset: Asset) -> Iterable[Reason]:
    if asset.is_fee_on_transfer:
        yield Reason.FEE_ON_TRANSFER
    if asset.is_rebasing:
        yield Reason.REBASING


def rules_as_json(rules: Sequence[CreditRule]) -> tuple[Mapping[str, Any], ...]:
    """Rules as the ledger stores them; amounts as strings, for they may exceed what JSON numbers hold."""
    return tuple(
        {
            "name": rule.name,
            "credit_at": rule.credit_at,
            "asset_id": rule.asset_id,
            "min_atomic": None if rule.min_atomic is None else str(rule.min_atomic),
            "max_atomic": None if rule.max_atomic is None else str(rule.max_atomic),
        }
        for rule in rules
    )


def reasons_against_transfer(transfer: Transfer) -> tuple[Reason, ...]:
    """Why one transfer counts for nothing, whatever its asset; empty for all but what only a tracer claims of a contract's
    end."""
    is_claim = transfer.is_destruction and transfer.proof is not TraceProof.STATE
    return (Reason.UNPROVEN_DESTRUCTION,) if is_claim else ()
