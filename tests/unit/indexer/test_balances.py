"""Whether entries explain what an address holds."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chains.model import Asset, AssetId, Holding, LocatorKind, TransferId
from indexer.balances import Judgement, Untold, Verdict, judge, up_to
from ledger.ids import EntryId, Side, TenantId, WatchId
from ledger.model import Entry
from ledger.states import Disposition, EntryState, Origin, Reason
from tests.fakes.adapter import CHAIN_ID, COIN, TOKEN, address

ALICE, BOB = address(1), address(2)
AT = datetime(2026, 11, 1, tzinfo=UTC)


def entry(name: str, side: Side, amount: int, **changes: Any) -> Entry:  # noqa: ANN401 - any field
    """An entry of Alice's about a native transfer; a withdrawal paid a fee of 10."""
    is_in = side is Side.DEPOSIT
    made = Entry(
        tenant_id=TenantId("ten_a"),
        id=EntryId(f"ent_{name}"),
        side=side,
        state=EntryState.FINALIZED,
        sequence=1,
        disposition=Disposition.CREDIT,
        reasons=(),
        origin=Origin.LIVE,
        chain_id=CHAIN_ID,
        asset_id=COIN.id,
        amount_atomic=amount,
        sender=BOB if is_in else ALICE,
        recipient=ALICE if is_in else BOB,
        address=ALICE,
        transfer_id=TransferId(f"tr_{name}"),
        transaction_hash=sha256(name.encode()).digest(),
        transaction_index=0,
        transaction_sender=BOB if is_in else ALICE,
        transaction_nonce=None,
        replaced_by=None,
        fee_atomic=None if is_in else 10,
        locator_kind=LocatorKind.NATIVE,
        locator_path="",
        log_index=None,
        block_height=5,
        block_hash=b"\1" * 32,
        block_at=AT,
        proof="roots",
        agreed_by=1,
        policy="local/default@1",
        credit_at="3",
        confirm_height=8,
        watch_id=WatchId("wat_a"),
        detected_at=AT,
        confirmed_at=AT,
        finalized_at=AT,
        updated_at=AT,
    )
    return replace(made, **changes)


def deposit(name: str, amount: int, **changes: Any) -> Entry:  # noqa: ANN401 - any field
    return entry(name, Side.DEPOSIT, amount, **changes)


def withdrawal(name: str, amount: int, **changes: Any) -> Entry:  # noqa: ANN401 - any field
    return entry(name, Side.WITHDRAWAL, amount, **changes)


def judged(
    found: int,
    *entries: Entry,
    asset: Asset = COIN,
    before: int = 1_000,
    sent: int = 0,
    has_code: bool = False,
    are_internals_read: bool = True,
) -> Judgement:
    """Alice held `before`, holds `found`, and sent so many transactions meanwhile."""
    return judge(
        ALICE,
        asset,
        Holding(before, True, 3, has_code, "a"),
        Holding(found, True, 3 + sent, has_code, "a"),
        entries,
        are_internals_read=are_internals_read,
    )


def test_nothing_happened() -> None:
    assert judged(1_000) == Judgement(Verdict.MATCHES, 1_000, 1_000)


def test_deposits_withdrawals_and_fees_explain_a_balance() -> None:
    entries = (deposit("a", 500), withdrawal("b", 200))
    assert judged(1_290, *entries, sent=1) == Judgement(Verdict.MATCHES, 1_290, 1_290)
    assert judged(1_291, *entries, sent=1).verdict is Verdict.MISSING
    assert judged(1_289, *entries, sent=1).verdict is Verdict.UNEXPLAINED


def test_a_transactions_fee_is_paid_once_however_many_entries_carry_it() -> None:
    one = withdrawal("a", 100)
    two = replace(withdrawal("b", 7, transaction_hash=one.transaction_hash), asset_id=TOKEN.id)
    assert judged(890, one, two, sent=1).verdict is Verdict.MATCHES
    assert judged(993, one, two, sent=1, asset=TOKEN).verdict is Verdict.MATCHES


def test_what_failed_moved_nothing_and_paid_its_fee() -> None:
    assert judged(990, withdrawal("a", 100, state=EntryState.FAILED), sent=1).verdict is Verdict.MATCHES


def test_a_transfer_to_oneself_costs_its_fee_alone() -> None:
    out = withdrawal("a", 100, recipient=ALICE)
    back = replace(deposit("a", 100), sender=ALICE, transaction_sender=ALICE)
    assert judged(990, out, back, sent=1).verdict is Verdict.MATCHES


def test_entries_of_several_tenants_count_once() -> None:
    one = deposit("a", 100)
    other = replace(one, tenant_id=TenantId("ten_b"), id=EntryId("ent_other"))
    assert judged(1_100, one, other).verdict is Verdict.MATCHES


def test_a_fee_that_another_paid_is_not_ones_own() -> None:
    pulled = withdrawal("a", 100, asset_id=TOKEN.id, transaction_sender=BOB, fee_atomic=None)
    assert judged(1_000, pulled).verdict is Verdict.MATCHES
    assert judged(999, pulled).verdict is Verdict.UNEXPLAINED


@pytest.mark.parametrize(
    ("entries", "sent"),
    [
        ((withdrawal("a", 100, fee_atomic=None),), 1),
        ((deposit("a", -100, transaction_sender=ALICE),), 1),  # what it asked a contract for, and paid a fee for
        ((withdrawal("a", 90),), 2),  # and an approve()
    ],
    ids=["an underivable fee", "a fee that no entry carries", "a transaction that is no entry"],
)
def test_where_fees_are_unknown_less_is_untold_and_more_is_certain(entries: tuple[Entry, ...], sent: int) -> None:
    assert judged(901, *entries, sent=sent).verdict is Verdict.MISSING
    assert judged(900, *entries, sent=sent).verdict is Verdict.MATCHES
    assert judged(899, *entries, sent=sent).verdict is Verdict.UNTOLD
    assert judged(899, *entries, sent=sent).reason is Untold.UNKNOWN_FEES


def test_tokens_pay_no_fees_and_need_no_nonce() -> None:
    unknown = withdrawal("a", 100, asset_id=TOKEN.id, fee_atomic=None)
    assert judged(900, unknown, asset=TOKEN, sent=5).verdict is Verdict.MATCHES
    assert judged(899, unknown, asset=TOKEN, sent=5).verdict is Verdict.UNEXPLAINED


def test_a_contract_that_created_nothing_pays_nothing() -> None:
    assert judged(999, has_code=True).verdict is Verdict.UNEXPLAINED
    assert judged(999, has_code=True, sent=1).reason is Untold.UNKNOWN_FEES


def test_where_internal_value_is_not_read_native_differences_are_untold() -> None:
    for found in (999, 1_001):
        assert judged(found, are_internals_read=False).reason is Untold.INTERNAL_NOT_READ
    assert judged(1_000, are_internals_read=False).verdict is Verdict.MATCHES
    assert judged(1_001, are_internals_read=False, asset=TOKEN).verdict is Verdict.MISSING


@pytest.mark.parametrize("flag", ["is_rebasing", "is_fee_on_transfer"])
def test_what_changes_by_itself_is_not_judged(flag: str) -> None:
    assert judged(1, asset=replace(TOKEN, **{flag: True})).reason is Untold.CHANGES_BY_ITSELF  # type: ignore[arg-type]


def test_a_deposit_that_perhaps_never_was_explains_both() -> None:
    doubtful = deposit("a", 100, disposition=Disposition.IGNORE, reasons=(Reason.UNPROVEN_DESTRUCTION.value,))
    for found, verdict in {
        999: Verdict.UNEXPLAINED,
        1_000: Verdict.MATCHES,
        1_100: Verdict.MATCHES,
        1_101: Verdict.MISSING,
    }.items():
        assert judged(found, doubtful).verdict is verdict


def test_only_what_is_in_a_block_up_to_the_height_counts() -> None:
    entries = [deposit("a", 1, block_height=5), deposit("b", 1, block_height=6), deposit("c", 1, block_height=None)]
    assert [one.id for one in up_to(entries, 5)] == ["ent_a"]


histories = st.lists(
    st.tuples(st.sampled_from(Side), st.sampled_from([COIN, TOKEN]), st.integers(1, 50), st.booleans(), st.booleans()),
    max_size=12,
)


def history(rows: list[tuple[Side, Asset, int, bool, bool]]) -> tuple[list[Entry], dict[AssetId, int], int]:
    """Entries of an honest chain, what it leaves of each asset, and how many transactions Alice sent."""
    held = {COIN.id: 10_000, TOKEN.id: 10_000}
    entries: list[Entry] = []
    sent = 0
    for n, (side, asset, amount, has_failed, is_doubled) in enumerate(rows):
        is_in = side is Side.DEPOSIT
        fails = has_failed and not is_in
        state = EntryState.FAILED if fails else EntryState.FINALIZED
        made = entry(str(n), side, amount, asset_id=asset.id, state=state)
        entries += [made, replace(made, tenant_id=TenantId("ten_b"))] if is_doubled else [made]
        sent += not is_in
        held[COIN.id] -= 0 if is_in else 10
        held[asset.id] += 0 if fails else amount if is_in else -amount
    return entries, held, sent


@given(histories)
def test_an_honest_history_always_matches(rows: list[tuple[Side, Asset, int, bool, bool]]) -> None:
    entries, held, sent = history(rows)
    for asset in (COIN, TOKEN):
        assert judged(held[asset.id], *entries, asset=asset, before=10_000, sent=sent).verdict is Verdict.MATCHES


@given(histories, st.integers(1, 50), st.sampled_from([COIN, TOKEN]), st.integers(0, 12))
def test_any_deposit_that_is_left_out_is_missing_and_any_invented_one_unexplained(
    rows: list[tuple[Side, Asset, int, bool, bool]], amount: int, asset: Asset, place: int
) -> None:
    with_it = [*rows[:place], (Side.DEPOSIT, asset, amount, False, False), *rows[place:]]
    (told, held, sent), (more, held_more, _) = history(rows), history(with_it)
    for left_out, verdict in ((told, Verdict.MISSING), (more, Verdict.UNEXPLAINED)):
        found = held_more if verdict is Verdict.MISSING else held
        judgement = judged(found[asset.id], *left_out, asset=asset, before=10_000, sent=sent)
        assert (judgement.verdict, abs(judgement.expected - judgement.found)) == (verdict, amount)
