"""First-match rules give every transfer a credit point."""

from __future__ import annotations

from dataclasses import replace

import pytest

from chains.model import AssetId, ChainId, Locator, LocatorKind, Slug, TraceProof, Transfer
from indexer.policy import (
    CreditPoint,
    CreditRule,
    Policy,
    reasons_against,
    reasons_against_transfer,
    rules_as_json,
)
from ledger.states import Reason
from tests.fakes.adapter import COIN, TOKEN

USDC, ETH = AssetId("usdc"), AssetId("eth")
RULES = (
    CreditRule("small-usdc", "1", USDC, max_atomic=100),
    CreditRule("large-usdc", "finalized", USDC, min_atomic=1_000_000),
    CreditRule("default", "12"),
)


@pytest.mark.parametrize(
    ("asset", "amount", "expected"),
    [
        (USDC, 100, ("local/small-usdc@3", "1")),
        (USDC, 101, ("local/default@3", "12")),
        (USDC, 1_000_000, ("local/large-usdc@3", "finalized")),
        (ETH, 5, ("local/default@3", "12")),
    ],
)
def test_the_first_matching_rule_decides(asset: AssetId, amount: int, expected: tuple[str, str]) -> None:
    assert Policy(Slug("local"), 3, RULES).credit_point(asset, amount) == CreditPoint(*expected)


def test_the_including_block_counts_as_one_confirmation() -> None:
    assert CreditPoint("p", "1").confirm_height(10) == 10
    assert CreditPoint("p", "12").confirm_height(10) == 21
    assert CreditPoint("p", "finalized").confirm_height(10) is None


@pytest.mark.parametrize("rules", [(), RULES[:1], (CreditRule("most", "1", max_atomic=5),)])
def test_rules_that_leave_a_transfer_without_a_credit_point_are_refused(rules: tuple[CreditRule, ...]) -> None:
    with pytest.raises(ValueError, match="must match every transfer"):
        Policy(Slug("local"), 1, rules)


def test_amounts_of_rules_are_stored_as_strings() -> None:
    assert rules_as_json(RULES)[0]["max_atomic"] == "100"


def test_only_assets_whose_amounts_are_not_to_be_believed_have_reasons() -> None:
    assert reasons_against((COIN, TOKEN, replace(TOKEN, is_unindexed=True, wraps_without_transfer=True))) == {}
    flagged = replace(TOKEN, is_fee_on_transfer=True)
    assert reasons_against((COIN, flagged)) == {TOKEN.id: (Reason.FEE_ON_TRANSFER,)}
    assert reasons_against((replace(flagged, is_rebasing=True),))[TOKEN.id] == (Reason.FEE_ON_TRANSFER, Reason.REBASING)


@pytest.mark.parametrize(
    ("is_destruction", "proof", "reasons"),
    [
        (True, TraceProof.TRACE, (Reason.UNPROVEN_DESTRUCTION,)),
        (True, TraceProof.AGREED, (Reason.UNPROVEN_DESTRUCTION,)),
        (True, TraceProof.STATE, ()),
        (False, TraceProof.TRACE, ()),
    ],
)
def test_what_a_contracts_end_left_counts_only_where_the_balance_bears_it_out(
    is_destruction: bool, proof: TraceProof, reasons: tuple[Reason, ...]
) -> None:
    chain_id, address = ChainId("eip155:1"), b"\x01" * 20
    locator = Locator(LocatorKind.TRACE, "0")
    transfer = Transfer(
        chain_id, AssetId("coin"), None, address, 1, locator, None, proof=proof, is_destruction=is_destruction
    )
    assert reasons_against_transfer(transfer) == reasons
