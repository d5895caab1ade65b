"""Rows that followers and notifiers would have written."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256

from sqlalchemy.ext.asyncio import AsyncConnection

from chains.model import Asset, AssetId, AssetKind, ChainId, LocatorKind, Slug, TransferId
from ledger.chains import ChainConfiguration, find_chain, list_assets, register_chain, update_chain
from ledger.documents import entry_document
from ledger.entries import find_labels, write_entries
from ledger.events import record_event
from ledger.ids import EventId, Side, TenantId, WatchId, entry_id_of
from ledger.model import Entry
from ledger.states import Disposition, EntryState, Origin
from ledger.watches import NewWatch, WatchRow, insert_watches

START = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
ETHEREUM = ChainId("eip155:1")
SECOND = ChainId("eip155:31338")
NATIVE = AssetId("eip155:1/slip44:60")
ADDRESS = bytes.fromhex("9696f59e4d72e237be84ffd425dcad154bf96976")


async def add_chain(
    connection: AsyncConnection, chain_id: ChainId = ETHEREUM, slug: str = "ethereum", *, tip: int | None = None
) -> None:
    """A registered chain, with a tip where one is given."""
    native = Asset(AssetId(f"{chain_id}/slip44:60"), "ETH", 18, AssetKind.NATIVE)
    configuration = ChainConfiguration(
        chain_id, Slug(slug), "anvil", False, native.id, "roots", 1, ("native", "log"), (native,), ({"credit_at": "3"},)
    )
    await register_chain(connection, configuration, START)
    if tip is not None:
        await set_tip(connection, tip, chain_id)


async def set_tip(connection: AsyncConnection, tip: int, chain_id: ChainId = ETHEREUM) -> None:
    """Move a chain's tip, as a follower's commit does."""
    values = {"tip_height": tip, "tip_hash": tip.to_bytes(32, "big"), "tip_at": START, "head_height": tip}
    await update_chain(connection, chain_id, {**values, "first_height": 1})


async def add_watch(
    connection: AsyncConnection, tenant_id: TenantId, address: bytes = ADDRESS, reference: str | None = "order-1"
) -> WatchRow:
    """A watch on Ethereum."""
    [inserted], _ = await insert_watches(
        connection, tenant_id, [NewWatch(ETHEREUM, address, reference, {"n": 1}, None)], START
    )
    return inserted.row


def make_entry(tenant_id: TenantId, watch: WatchRow, number: int, side: Side = Side.DEPOSIT) -> Entry:
    """The `number`-th entry: a second later than the one before, in its own block."""
    transfer_id = TransferId("tr_" + sha256(f"{side}{number}".encode()).hexdigest()[:40])
    moment = START + timedelta(seconds=number)
    return Entry(
        tenant_id=tenant_id,
        id=entry_id_of(tenant_id, side, transfer_id),
        side=side,
        state=EntryState.DETECTED,
        sequence=1,
        disposition=Disposition.CREDIT,
        reasons=(),
        origin=Origin.LIVE,
        chain_id=ETHEREUM,
        asset_id=NATIVE,
        amount_atomic=10**18 + number,
        sender=b"\x01" * 20,
        recipient=watch.address,
        address=watch.address,
        transfer_id=transfer_id,
        transaction_hash=sha256(f"tx{number}".encode()).digest(),
        transaction_index=0,
        transaction_sender=b"\x01" * 20,
        replaced_by=None,
        transaction_nonce=number,
        fee_atomic=21_000 if side is Side.WITHDRAWAL else None,
        locator_kind=LocatorKind.NATIVE,
        locator_path="",
        log_index=None,
        block_height=number,
        block_hash=sha256(f"block{number}".encode()).digest(),
        block_at=moment,
        proof="roots",
        agreed_by=1,
        policy="ethereum/default@1",
        credit_at="3",
        confirm_height=number + 2,
        watch_id=WatchId(watch.id),
        detected_at=moment,
        confirmed_at=None,
        finalized_at=None,
        updated_at=moment,
    )


async def add_entry(
    connection: AsyncConnection,
    tenant_id: TenantId,
    watch: WatchRow,
    number: int,
    *,
    side: Side = Side.DEPOSIT,
    now: datetime,
) -> Entry:
    """An entry with its first event."""
    entry = make_entry(tenant_id, watch, number, side)
    await write_entries(connection, [entry], [])
    await tell_entry(connection, entry, None, now)
    return entry


async def confirm_entry(connection: AsyncConnection, entry: Entry, now: datetime) -> Entry:
    """The entry's second event."""
    confirmed = replace(entry, state=EntryState.CONFIRMED, sequence=2, confirmed_at=now, updated_at=now)
    await write_entries(connection, [], [(entry, confirmed)])
    await tell_entry(connection, confirmed, entry.state, now)
    return confirmed


async def tell_entry(connection: AsyncConnection, entry: Entry, previous: EntryState | None, now: datetime) -> EventId:
    """The event of an entry's newest state."""
    chain = await find_chain(connection, entry.chain_id)
    asset = (await list_assets(connection, [entry.asset_id]))[entry.asset_id]
    label = (await find_labels(connection, [(entry.tenant_id, entry.watch_id)]))[(entry.tenant_id, entry.watch_id)]
    return await record_event(
        connection,
        tenant_id=entry.tenant_id,
        event_type=f"{entry.side}.{entry.state}",
        subject=entry.id,
        data=entry_document(entry, chain, asset, label),
        livemode=False,
        now=now,
        sequence=entry.sequence,
        previous_state=previous,
    )
