"""A transaction that lost its block and whose nonce another one spent: the story ends when that is final, not before."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy import select

from chains.model import Movement
from ledger.chains import lock_chain
from ledger.database import transaction
from ledger.halts import resume_chain
from ledger.ids import TenantId, WatchId
from ledger.model import Entry
from ledger.rows import entry_from
from ledger.schema import entries, spent_nonces
from ledger.states import EntryState
from ledger.watches import delete_watch
from tests.fakes.adapter import address, payment
from tests.integration.indexer.conftest import NOW, Ledger

SHOP, PAYER, OTHER = address(1), address(2), address(3)


async def entry_of(ledger: Ledger, amount_atomic: int) -> Entry:
    """The entry of that amount."""
    statement = select(entries).where(entries.c.amount_atomic == amount_atomic)
    async with transaction(ledger.engine) as connection:
        return entry_from((await connection.execute(statement)).one())


async def end_of(ledger: Ledger) -> tuple[str, dict[str, Any]]:
    """Type and subject of the newest event."""
    newest = (await ledger.bodies())[-1]
    return newest["type"], newest["data"]


async def lose(ledger: Ledger, *instead: Movement) -> None:
    """A branch in which the newest block has other transactions, one block longer."""
    ledger.chain.drop_to(len(ledger.chain.blocks) - 2)
    ledger.chain.mine(*instead, salt="b")
    ledger.chain.mine(salt="b")
    await ledger.converge()


async def test_a_deposit_whose_payer_spent_the_money_otherwise_is_dropped_when_that_is_final(ledger: Ledger) -> None:
    await ledger.watch(SHOP, covered_from=0)
    await ledger.converge()
    ledger.chain.mine(payment("paid", SHOP, sender=PAYER, nonce=4))
    await ledger.converge()
    double = payment("spent otherwise", OTHER, sender=PAYER, nonce=4)
    await lose(ledger, double)
    ledger.chain.mine(count=5)
    await ledger.converge(3)
    assert [kind for kind, *_ in await ledger.story()] == ["deposit.detected", "deposit.reorged"]
    ledger.chain.finalized = 2
    await ledger.converge()
    kind, deposit = await end_of(ledger)
    assert (kind, deposit["state"], deposit["sequence"]) == ("deposit.dropped", "dropped", 3)
    assert double.transaction is not None
    assert deposit["replaced_by"] == "0x" + double.transaction.hash.hex()
    assert deposit["block"] is None


async def test_a_withdrawal_that_its_own_wallet_replaced_is_replaced(ledger: Ledger) -> None:
    await ledger.watch(PAYER, covered_from=0)
    await ledger.converge()
    ledger.chain.mine(payment("paid out", OTHER, sender=PAYER, nonce=4))
    await ledger.converge()
    await lose(ledger, payment("with a higher fee", OTHER, 2_000, sender=PAYER, nonce=4))
    ledger.chain.mine(count=3)
    ledger.chain.finalized = 3
    await ledger.converge(2)
    story = [kind for kind, *_ in await ledger.story()]
    assert story[:2] == ["withdrawal.detected", "withdrawal.reorged"]
    assert "withdrawal.replaced" in story
    assert (await entry_of(ledger, 1_000)).state is EntryState.REPLACED
    assert (await entry_of(ledger, 2_000)).state is EntryState.FINALIZED


async def test_a_withdrawal_moved_by_somebody_elses_transaction_is_dropped(ledger: Ledger) -> None:
    await ledger.watch(SHOP, covered_from=0)
    await ledger.converge()
    moved = payment("pulled", OTHER, sender=SHOP)
    assert moved.transaction is not None
    pulled = replace(moved, transaction=replace(moved.transaction, sender=PAYER, nonce=9))
    ledger.chain.mine(pulled)
    await ledger.converge()
    await lose(ledger, payment("never mind", OTHER, sender=PAYER, nonce=9))
    ledger.chain.finalized = 2
    await ledger.converge()
    assert (await end_of(ledger))[0] == "withdrawal.dropped"


async def test_a_higher_nonce_shows_that_a_lower_one_is_spent(ledger: Ledger) -> None:
    await ledger.watch(PAYER, covered_from=0)
    await ledger.converge()
    ledger.chain.mine(payment("paid out", OTHER, sender=PAYER, nonce=4))
    await ledger.converge()
    await lose(ledger)
    ledger.chain.mine(payment("later", OTHER, 7, sender=PAYER, nonce=6))
    ledger.chain.finalized = 3
    await ledger.converge(2)
    lost = await entry_of(ledger, 1_000)
    assert (lost.state, lost.replaced_by) == (EntryState.DROPPED, None)


async def test_a_deposit_whose_transaction_came_again_and_failed_is_dropped_and_nobody_took_its_place(
    ledger: Ledger,
) -> None:
    await ledger.watch(SHOP, covered_from=0)
    await ledger.converge()
    ledger.chain.mine(payment("paid", SHOP, sender=PAYER, nonce=4))
    await ledger.converge()
    await lose(ledger, payment("paid", SHOP, sender=PAYER, nonce=4, has_failed=True))
    ledger.chain.finalized = 2
    await ledger.converge()
    kind, deposit = await end_of(ledger)
    assert (kind, deposit["replaced_by"]) == ("deposit.dropped", None)


async def test_what_only_waits_is_not_given_up(ledger: Ledger) -> None:
    await ledger.watch(SHOP, covered_from=0)
    await ledger.converge()
    ledger.chain.mine(payment("paid", SHOP, sender=PAYER, nonce=4))
    await ledger.converge()
    await lose(
        ledger, payment("before it", OTHER, sender=PAYER, nonce=3), payment("other's", SHOP, 5, sender=OTHER, nonce=4)
    )
    ledger.chain.mine(count=4)
    ledger.chain.finalized = 5
    await ledger.converge(2)
    assert (await entry_of(ledger, 1_000)).state is EntryState.REORGED
    ledger.chain.mine(payment("paid", SHOP, sender=PAYER, nonce=4))
    await ledger.converge()
    assert (await end_of(ledger))[0] == "deposit.detected"


async def test_what_spent_the_nonce_may_be_orphaned_itself(ledger: Ledger) -> None:
    await ledger.watch(SHOP, covered_from=0)
    await ledger.converge()
    paid = payment("paid", SHOP, sender=PAYER, nonce=4)
    ledger.chain.mine(paid)
    await ledger.converge()
    await lose(ledger, payment("spent otherwise", OTHER, sender=PAYER, nonce=4))
    ledger.chain.drop_to(0)
    ledger.chain.mine(count=4, salt="c")
    await ledger.converge()
    ledger.chain.finalized = 3
    await ledger.converge()
    assert [kind for kind, *_ in await ledger.story()] == ["deposit.detected", "deposit.reorged"]
    async with transaction(ledger.engine) as connection:
        kept = (await connection.execute(select(spent_nonces))).all()
    assert len(kept) == 1  # a fact of an orphaned block
    ledger.chain.mine(paid)
    await ledger.converge()
    assert (await end_of(ledger))[0] == "deposit.detected"


async def test_a_deposit_given_up_comes_back_when_an_operator_accepts_a_reorg_below_finality(ledger: Ledger) -> None:
    watch_id = await ledger.watch(SHOP, covered_from=0)
    await ledger.converge()
    paid = payment("paid", SHOP, sender=PAYER, nonce=4)
    ledger.chain.mine(paid)
    await ledger.converge()
    await lose(ledger, payment("spent otherwise", OTHER, sender=PAYER, nonce=4))
    ledger.chain.finalized = 2
    await ledger.converge()
    assert (await end_of(ledger))[0] == "deposit.dropped"
    async with transaction(ledger.engine) as connection:
        await delete_watch(connection, TenantId("ten_a"), WatchId(watch_id), NOW)
    ledger.chain.finalized = None
    ledger.chain.drop_to(0)
    ledger.chain.mine(paid, salt="c")
    ledger.chain.mine(count=4, salt="c")
    await ledger.converge()
    async with transaction(ledger.engine) as connection:
        chain, now = await lock_chain(connection, ledger.follower.followed.chain_id)
        await resume_chain(connection, chain, 0, "test", now)
    await ledger.converge(3)
    kind, deposit = await end_of(ledger)
    assert kind in ("deposit.detected", "deposit.confirmed")
    assert (deposit["block"]["height"], deposit["replaced_by"]) == (1, None)
