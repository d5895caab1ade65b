"""How single entries stand, read for many requests at once.

A payments backend asks again and again how one of its deposits stands. Answered alone, such a question took seven statements
in a transaction of its own: three milliseconds of this process for one row. So requests share:

- *One question to Postgres is under way at a time.* Who asks meanwhile waits for its end and then goes with all others who
  wait. An idle process asks at once and for one; the busier it is, the more go together, and the less each of them costs.
- *One round trip.* For each key among those who ask there are two statements: one finds the key and lets the transaction
  speak for its tenant, the other reads all entries that were asked for by it. They are sent together, as one transaction
  (`ledger/pipelines.py`).
- *A reference is a name too.* Backends ask by what they call an order as much as by our ids. That is a list, and answered
  here for as long as its watches and entries are few.
- *Nothing is remembered.* A key is read anew by each question, so that one that was revoked is of no use from the next one
  on. What was read for a key that turns out to be none is thrown away: it is the same work for all of them.
- *Both walls stand.* The statement names the key's tenant, found by the key, and runs under the policies for that tenant
  (`ledger/tenancy.py`). An unknown key speaks for nobody, whoever was spoken for before it.

The connection is kept between questions, and given back to its pool once a minute: what was learned there meanwhile (that
Postgres is gone, or has become a standby) is learned here. One that fails was perhaps cut off while nobody asked, so the
question is asked once more on another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Text, and_, bindparam, func, lateral, literal, select
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.asyncio import AsyncEngine

from chains.model import AssetKind
from ledger.bulk import unnested
from ledger.database import UNAVAILABLE, transaction
from ledger.documents import DepositDocument, WithdrawalDocument, entry_document
from ledger.exchange import Row
from ledger.ids import EntryId, KeyId, Side
from ledger.keys import KEY_COLUMNS, KeyRow, find_key_by_id, key_from, touch_key
from ledger.model import AssetRow, ChainStanding, Entry, WatchLabel
from ledger.pipelines import Pipeline, Prepared, Step
from ledger.rows import ENTRY_COLUMNS, entry_of
from ledger.schema import assets, chains, entries, watches
from ledger.tenancy import SETTING, speak_for

SAME_MAX = 100
"""Entries of one reference that are read here. Where there are more, it is a list that is asked for."""

TOGETHER_MAX = 100
"""Requests that are answered by one question: a bound for how long the others wait."""

LAST_QUESTION_LIMIT_S = 5.0
"""How long a question may take that is under way when the process ends."""

_STANDING = (
    "chain_id",
    "slug",
    "livemode",
    "native_asset_id",
    "tip_height",
    "safe_height",
    "finalized_height",
    "proof_enforced",
)
_ASSET = ("asset_id", "chain_id", "symbol", "decimals", "kind", "contract")
_LABEL = ("id", "reference", "metadata")

_PLANNING = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}
"""Settings of the transaction: each row is looked up by its primary key. Left to itself Postgres plans anew each time, which
takes three times as long as answering, and it may remember how small the tables were once."""

_found = find_key_by_id(bindparam("key_id", type_=Text), "found")
_nobody = select(literal(1)).subquery("nobody")
_find_key = Prepared(
    select(
        *(_found.c[name] for name in KEY_COLUMNS),
        func.clock_timestamp(),
        func.set_config(SETTING, func.coalesce(_found.c.tenant_id, ""), True),
        *(func.set_config(name, value, True) for name, value in _PLANNING.items()),
    ).select_from(_nobody.outerjoin(_found, literal(True)))
)
"""One row, also where there is no such key: then for nobody."""

_whose = find_key_by_id(bindparam("key_id", type_=Text), "whose")
_references = unnested("asked", reference=Text())
_find_entries = Prepared(
    select(
        *(entries.c[name] for name in ENTRY_COLUMNS),
        *(chains.c[name] for name in _STANDING),
        *(assets.c[name] for name in _ASSET),
        *(watches.c[name] for name in _LABEL),
    )
    .join(watches, and_(watches.c.tenant_id == entries.c.tenant_id, watches.c.id == entries.c.watch_id))
    .join(chains, chains.c.chain_id == entries.c.chain_id)
    .join(assets, assets.c.asset_id == entries.c.asset_id)
    .where(
        entries.c.tenant_id == select(_whose.c.tenant_id).scalar_subquery(),
        entries.c.id == func.any(bindparam("entry_ids", type_=ARRAY(Text))),
    )
)
_named = lateral(
    select(watches.c.tenant_id, watches.c.id)
    .where(
        watches.c.tenant_id == _whose.c.tenant_id,
        # Of a range that is one value, since that has an order: then no other index can seem as good.
        watches.c.reference.between(_references.c.reference, _references.c.reference),
    )
    .order_by(watches.c.reference)
    .limit(SAME_MAX + 1)
    .correlate(_whose, _references),
    "named",
)
_same = lateral(
    select(*(entries.c[name] for name in ENTRY_COLUMNS))
    .select_from(
        _named.outerjoin(entries, and_(entries.c.tenant_id == _named.c.tenant_id, entries.c.watch_id == _named.c.id))
    )
    .limit(SAME_MAX + 1)
    .correlate(_whose, _references),
    "same",
)
_find_by_reference = Prepared(
    select(
        _references.c.reference.label("asked"),
        *(_same.c[name] for name in ENTRY_COLUMNS),
        *(chains.c[name] for name in _STANDING),
        *(assets.c[name] for name in _ASSET),
        *(watches.c[name] for name in _LABEL),
    ).select_from(
        _whose.join(_references, literal(True))
        .join(_same, literal(True))
        .outerjoin(watches, and_(watches.c.tenant_id == _same.c.tenant_id, watches.c.id == _same.c.watch_id))
        .outerjoin(chains, chains.c.chain_id == _same.c.chain_id)
        .outerjoin(assets, assets.c.asset_id == _same.c.asset_id)
    )
)
"""At most one row too many for each reference. A watch without entries is a row too, all but the reference null: so a
reference that very many watches have is found to be one as well."""

_STATEMENTS = (_find_entries, _find_by_reference)
_PARAMETERS = ("entry_ids", "all_reference")
_PARTS = [len(ENTRY_COLUMNS), len(_STANDING), len(_ASSET), len(_LABEL)]
_ID_AT, _SIDE_AT = ENTRY_COLUMNS.index("id"), ENTRY_COLUMNS.index("side")


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """An entry with all that its document tells beside it."""

    entry: Entry
    chain: ChainStanding
    asset: AssetRow
    watch: WatchLabel

    def document(self) -> DepositDocument | WithdrawalDocument:
        """As it stands."""
        return entry_document(self.entry, self.chain, self.asset, self.watch)


@dataclass(frozen=True, slots=True)
class StatusRead:
    """What one request gets: the key as its row stands, and what its tenant has of what was asked for, of either side."""

    key: KeyRow | None
    rows: Sequence[Row]

    @property
    def is_whole(self) -> bool:
        """False where there is more than is read here."""
        return len(self.rows) <= SAME_MAX

    def entries(self, side: Side) -> list[StoredEntry]:
        """The entries of this side, in the order of lists: the newest first."""
        found = [_stored(row) for row in self.rows if row[_ID_AT] is not None and row[_SIDE_AT] == side.value]
        return sorted(found, key=lambda one: (one.entry.detected_at, one.entry.id), reverse=True)


def _stored(row: Row) -> StoredEntry:
    at, parts = 0, []
    for count in _PARTS:
        parts.append(row[at : at + count])
        at += count
    asset_id, chain_id, symbol, decimals, kind, contract = parts[2]
    asset = AssetRow(asset_id, chain_id, symbol, decimals, AssetKind(kind), contract)
    return StoredEntry(entry_of(parts[0]), ChainStanding(*parts[1]), asset, WatchLabel(*parts[3]))


@dataclass(frozen=True, slots=True)
class _Asked:
    key_id: KeyId
    is_reference: bool
    name: str
    """An entry's id, or the reference of its watch."""
    answer: asyncio.Future[StatusRead]


class StatusReads:
    """The questions of one process. `close` it before its engine."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._waiting: list[_Asked] = []
        self._working: asyncio.Task[None] | None = None
        self._pipeline = Pipeline(engine)
        self._is_closed = False
        self._touching: set[KeyId] = set()

    async def read(self, key_id: KeyId, entry_id: EntryId) -> StatusRead:
        """The key of that id as it stands after the call, and the entry of its tenant. Whether the key is usable is for
        the caller to say, before it shows anything. Raises what `UNAVAILABLE` names."""
        return await self._answered(key_id, is_reference=False, name=entry_id)

    async def read_reference(self, key_id: KeyId, reference: str) -> StatusRead:
        """The same with all entries of the watches that have this reference."""
        return await self._answered(key_id, is_reference=True, name=reference)

    async def _answered(self, key_id: KeyId, *, is_reference: bool, name: str) -> StatusRead:
        loop = asyncio.get_running_loop()
        asked = _Asked(key_id, is_reference, name, loop.create_future())
        self._waiting.append(asked)
        if self._working is None:
            self._working = loop.create_task(self._work())
        return await asked.answer

    async def touch(self, key: KeyRow) -> None:
        """Store that a key was used, unless another request is just doing so."""
        if key.id in self._touching:
            return
        self._touching.add(key.id)
        try:
            async with transaction(self._engine) as connection:
                await speak_for(connection, key.tenant_id)
                await touch_key(connection, key)
        finally:
            self._touching.discard(key.id)

    async def close(self) -> None:
        """Let the question under way end, and give the connection back. Who waits for the next is let go."""
        self._is_closed = True
        while self._waiting:
            self._waiting.pop().answer.cancel()
        if self._working is not None:
            await asyncio.wait([self._working], timeout=LAST_QUESTION_LIMIT_S)
        if self._working is not None:
            self._working.cancel()
            await asyncio.wait([self._working])
        await self._pipeline.give_back()

    async def _work(self) -> None:
        while self._waiting:
            together, self._waiting = self._waiting[:TOGETHER_MAX], self._waiting[TOGETHER_MAX:]
            await self._answer(together)
        self._working = None

    async def _answer(self, together: Sequence[_Asked]) -> None:
        try:
            found = await self._find(together)
            for asked, read in zip(together, found, strict=True):
                if not asked.answer.done():
                    asked.answer.set_result(read)
        except Exception as error:  # noqa: BLE001 - whatever it is, who asked raises it
            if len(together) > 1 and not isinstance(error, UNAVAILABLE):
                for asked in together:
                    await self._answer([asked])  # one of them cannot be answered, and shall not take the others along
                return
            for asked in together:
                if not asked.answer.done():
                    asked.answer.set_exception(error)
        finally:
            for asked in together:
                asked.answer.cancel()  # of no effect on those that have been told

    async def _find(self, together: Sequence[_Asked]) -> list[StatusRead]:
        was_kept = self._pipeline.is_kept
        try:
            return await self._ask(together)
        except UNAVAILABLE:
            if self._is_closed or not was_kept:
                raise
        return await self._ask(together)

    async def _ask(self, together: Sequence[_Asked]) -> list[StatusRead]:
        wanted: dict[KeyId, tuple[set[str], set[str]]] = {}
        for asked in together:
            wanted.setdefault(asked.key_id, (set(), set()))[asked.is_reference].add(asked.name)
        steps: list[Step] = []
        for key_id, names in wanted.items():
            steps.append((_find_key, {"key_id": key_id}))
            for is_reference in (False, True):
                if names[is_reference]:
                    given = {"key_id": key_id, _PARAMETERS[is_reference]: list(names[is_reference])}
                    steps.append((_STATEMENTS[is_reference], given))
        return _reads_of(together, steps, await self._pipeline.run(steps))


def _reads_of(together: Sequence[_Asked], steps: Sequence[Step], results: Sequence[Sequence[Row]]) -> list[StatusRead]:
    keys: dict[object, KeyRow | None] = {}
    rows_of: dict[tuple[object, bool, str], list[Row]] = {}
    for (statement, given), rows in zip(steps, results, strict=True):
        key_id = given["key_id"]
        if statement is _find_key:
            keys[key_id] = key_from(rows[0][: len(KEY_COLUMNS) + 1])
        elif statement is _find_entries:
            rows_of |= {(key_id, False, row[_ID_AT]): [row] for row in rows}
        else:
            for row in rows:
                rows_of.setdefault((key_id, True, row[0]), []).append(row[1:])
    return [
        StatusRead(keys[asked.key_id], rows_of.get((asked.key_id, asked.is_reference, asked.name), []))
        for asked in together
    ]
