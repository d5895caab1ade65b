"""Lists of entries against a model of them: whatever is asked for, and whatever is written between the pages.

The model is the entries themselves, in a dictionary, filtered by Python. Everything is drawn from fixed seeds, and a page
may look at so few rows that walks stop short, sets are found, and pages come empty, all the time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from random import Random
from typing import Any

import pytest
from sqlalchemy import insert

from chains.model import AssetId, ChainId, hex_of
from ledger import walks
from ledger.database import transaction
from ledger.documents import time_of
from ledger.entries import write_entries
from ledger.ids import EntryId, Side
from ledger.model import Entry
from ledger.schema import assets
from ledger.states import EntryState
from ledger.watches import NewWatch, WatchRow, insert_watches
from tests.integration.api.conftest import Service
from tests.integration.api.seeding import ETHEREUM, NATIVE, SECOND, START, add_chain, make_entry

WALKS = 30
LOOKED_MAX = 12
TOKEN = AssetId(f"{ETHEREUM}/erc20:0x{'ab' * 20}")
SECOND_NATIVE = AssetId(f"{SECOND}/slip44:60")
CHAINS = {ETHEREUM: (NATIVE, TOKEN), SECOND: (SECOND_NATIVE,)}
ADDRESSES = [bytes([n]) * 20 for n in range(1, 7)]
REFERENCES = ["alone", "many", "many", "many", None, "alone too"]
"""Of the watches on the addresses, in turn."""

IN_BLOCK = (EntryState.DETECTED, EntryState.CONFIRMED, EntryState.FINALIZED)
LOST = (EntryState.REORGED, EntryState.DROPPED)
WEIGHTS = (4, 3, 10, 2, 2)


def standing(entry: Entry, state: EntryState, moment: datetime) -> Entry:
    """The entry in a state since a moment."""
    is_lost = state in LOST
    return replace(
        entry,
        state=state,
        block_height=None if is_lost else 7,
        block_hash=None if is_lost else b"\x07" * 32,
        block_at=None if is_lost else START,
        confirmed_at=moment if state in IN_BLOCK[1:] else None,
        finalized_at=moment if state is EntryState.FINALIZED else None,
        updated_at=moment,
    )


@dataclass
class World:
    """The entries that there are, as they stand, and a clock that stands still every other time."""

    service: Service
    watches: list[WatchRow]
    random: Random
    entries: dict[EntryId, Entry] = field(default_factory=dict)
    number: int = 0
    at: datetime = START

    def tick(self) -> datetime:
        self.at += timedelta(microseconds=self.random.choice((0, 0, 1, 1_000_000)))
        return self.at

    def draw(self) -> Entry:
        """A new entry, detected now."""
        self.number += 1
        place = self.random.randrange(len(ADDRESSES)) if self.random.random() < 0.6 else 1
        chain_id = self.random.choice((ETHEREUM, ETHEREUM, ETHEREUM, SECOND))
        side = self.random.choice((Side.DEPOSIT, Side.DEPOSIT, Side.DEPOSIT, Side.WITHDRAWAL))
        moment = self.tick()
        entry = replace(
            make_entry(self.service.tenant_id, self.watches[place], self.number, side),
            chain_id=chain_id,
            asset_id=self.random.choice(CHAINS[chain_id]),
            transaction_hash=bytes([self.number // 4]) * 32,
            detected_at=moment,
        )
        return standing(entry, self.random.choices((*IN_BLOCK, *LOST), WEIGHTS)[0], moment)

    async def write(self, new: int, changes: int) -> None:
        """Detect some entries, and let others be in another state."""
        drawn = [self.draw() for _ in range(new)]
        old = self.random.sample(sorted(self.entries), min(changes, len(self.entries)))
        changed = [(self.entries[key], self.change(self.entries[key])) for key in old]
        async with transaction(self.service.owner) as connection:
            await write_entries(connection, drawn, changed)
        self.entries |= {entry.id: entry for entry in (*drawn, *(after for _, after in changed))}

    def change(self, entry: Entry) -> Entry:
        self.at += timedelta(microseconds=1)
        changed = standing(entry, self.random.choices((*IN_BLOCK, *LOST), WEIGHTS)[0], self.at)
        return replace(changed, sequence=entry.sequence + 1)


async def make_world(service: Service) -> World:
    """Two chains, six watches, 120 entries."""
    async with transaction(service.owner) as connection:
        await add_chain(connection, tip=1000)
        await add_chain(connection, SECOND, "second", tip=1000)
        token = {
            "asset_id": TOKEN,
            "chain_id": ETHEREUM,
            "symbol": "T",
            "decimals": 6,
            "kind": "fungible",
            "contract": b"\xab" * 20,
        }
        await connection.execute(insert(assets).values(token))
        asked = [NewWatch("evm", address, name, {}, None) for address, name in zip(ADDRESSES, REFERENCES, strict=True)]
        inserted, _ = await insert_watches(connection, service.tenant_id, asked, START)
    world = World(service, [one.row for one in inserted], Random("world"))
    for _ in range(6):
        await world.write(20, 5)
    return world


Admits = Callable[[Entry], bool]


def draw_filter(world: World) -> tuple[dict[str, str], Admits]:
    """What is asked for, as a query and as the model understands it."""
    random, some = world.random, world.random.choice(sorted(world.entries))
    example = world.entries[some]
    reference_of = dict(zip((watch.id for watch in world.watches), REFERENCES, strict=True))
    chain_id: ChainId = random.choice((ETHEREUM, SECOND))
    asset_id = random.choice((NATIVE, TOKEN, SECOND_NATIVE))
    address = random.choice((*ADDRESSES, ADDRESSES[1], b"\x99" * 20))
    reference = random.choice(("many", "many", "alone", "nobody"))
    state = random.choice((*IN_BLOCK, *LOST, EntryState.REVERSED))
    since = random.choice((example.updated_at, START, world.at))
    known: dict[str, tuple[str, Admits]] = {
        "chain": ({ETHEREUM: "ethereum", SECOND: str(SECOND)}[chain_id], lambda entry: entry.chain_id == chain_id),
        "asset": (asset_id, lambda entry: entry.asset_id == asset_id),
        "address": (hex_of(address), lambda entry: entry.address == address),
        "reference": (reference, lambda entry: reference_of[entry.watch_id] == reference),
        "state": (state.value, lambda entry: entry.state == state),
        "tx": (
            hex_of(example.transaction_hash or b""),
            lambda entry: entry.transaction_hash == example.transaction_hash,
        ),
        "updated_since": (time_of(since), lambda entry: entry.updated_at >= since),
    }
    count = random.choice((0, 1, 1, 2, 2, 2, 3, 4))
    chosen = {name: known[name] for name in random.sample(sorted(known), count)}
    return (
        {name: text for name, (text, _) in chosen.items()},
        lambda entry: all(admits(entry) for _, admits in chosen.values()),
    )


Seen = list[tuple[Mapping[str, Any], Entry]]
"""Rows as they were answered, each with the entry as it stood then."""


async def walk(world: World, side: Side, query: Mapping[str, str], is_disturbed: bool) -> tuple[Seen, int]:
    """All pages, with writing between them or without; and how many of them led on though they were not full."""
    limit, seen, short = world.random.choice((3, 10, 20, 40)), [], 0
    asked: dict[str, object] = {**query, "limit": limit}
    while True:
        answer = await world.service.ask("GET", f"/v1/{side}s", query=asked)
        assert answer.status == 200, answer.json
        rows, cursor = answer.json["data"], answer.json["next_cursor"]
        assert len(rows) <= limit
        seen += [(row, world.entries[row["id"]]) for row in rows]
        if cursor is None:
            return seen, short
        short += len(rows) < limit
        asked["cursor"] = cursor
        if is_disturbed and world.random.random() < 0.3:
            await world.write(world.random.randrange(2), world.random.randrange(3))


@pytest.fixture
async def world(service: Service, monkeypatch: pytest.MonkeyPatch) -> World:
    """A running API that looks at few rows for a page."""
    monkeypatch.setattr(walks, "LOOKED_MAX", LOOKED_MAX)
    return await make_world(service)


async def test_any_filter_answers_exactly_what_fits_it_in_order(world: World) -> None:
    short = 0
    for _ in range(WALKS):
        side = world.random.choice((Side.DEPOSIT, Side.DEPOSIT, Side.WITHDRAWAL))
        query, admits = draw_filter(world)
        seen, shorter = await walk(world, side, query, is_disturbed=False)
        fitting = [entry for entry in world.entries.values() if entry.side is side and admits(entry)]
        if "updated_since" in query:
            fitting.sort(key=lambda entry: (entry.updated_at, entry.id))
        else:
            fitting.sort(key=lambda entry: (entry.detected_at, entry.id), reverse=True)
        assert [row["id"] for row, _ in seen] == [entry.id for entry in fitting], query
        assert [row["updated_at"] for row, _ in seen] == [time_of(entry.updated_at) for entry in fitting], query
        short += shorter
    assert short, "no page stopped short: the bound was not met"


async def test_whatever_is_written_between_pages_nothing_that_stays_is_skipped_or_told_twice(world: World) -> None:
    for _ in range(WALKS):
        query, admits = draw_filter(world)
        before = {key: entry for key, entry in world.entries.items() if entry.side is Side.DEPOSIT and admits(entry)}
        seen, _ = await walk(world, Side.DEPOSIT, query, is_disturbed=True)
        assert all(admits(entry) and row["updated_at"] == time_of(entry.updated_at) for row, entry in seen), query
        ids = [row["id"] for row, _ in seen]
        stayed = {key for key, entry in before.items() if world.entries[key] is entry}
        assert {key: ids.count(key) for key in stayed} == dict.fromkeys(stayed, 1), query
        if "updated_since" not in query:
            assert len(set(ids)) == len(ids), query
            continue
        versions = [(row["id"], row["updated_at"]) for row, _ in seen]
        newest = {(e.id, time_of(e.updated_at)) for e in world.entries.values() if e.side is Side.DEPOSIT and admits(e)}
        assert len(set(versions)) == len(versions), query
        assert newest <= set(versions), query
