"""Status reads that share a round trip: what each request gets is what it would get alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import OperationalError

import api.entries
import ledger.entry_lists
import ledger.pipelines
import ledger.status_reads
from ledger.database import connect_api, transaction
from ledger.ids import EntryId, KeyId, Side, TenantId
from ledger.keys import format_key, is_usable, parse_key, revoke_key
from ledger.model import Entry
from ledger.pipelines import Prepared
from ledger.schema import entries
from ledger.schema_access import api_keys
from ledger.status_reads import StatusRead, StatusReads
from ledger.tenancy import SETTING
from ledger.watches import NewWatch, insert_watches
from tests.integration.api.conftest import Answer, Service
from tests.integration.api.seeding import ETHEREUM, add_chain, add_entry, add_watch

UNKNOWN = KeyId("0" * 16)


async def with_deposit(service: Service, tenant_id: TenantId, number: int = 1) -> Entry:
    """One more tenant's deposit."""
    async with transaction(service.owner) as connection:
        watch = await add_watch(connection, tenant_id)
        return await add_entry(connection, tenant_id, watch, number, now=datetime.now(UTC))


@pytest.fixture
async def reads(service: Service, database_url: str) -> AsyncIterator[StatusReads]:
    """Another process's, at the same ledger; a chain is there."""
    async with transaction(service.owner) as connection:
        await add_chain(connection, tip=1000)
    engine = connect_api(database_url, pool_size=2)
    reads = StatusReads(engine)
    yield reads
    await reads.close()
    await engine.dispose()


def id_of(key: str) -> KeyId:
    """The public part of a key."""
    return parse_key(key).id


async def ask_together(reads: StatusReads, *asked: tuple[KeyId, EntryId]) -> list[StatusRead]:
    """All at once. The first goes alone, the others wait for it and share the next question."""
    return await asyncio.gather(*(reads.read(key_id, entry_id) for key_id, entry_id in asked))


async def test_each_key_is_shown_its_own_tenants_entries_whoever_asks_beside_it(
    service: Service, reads: StatusReads
) -> None:
    other_id, other = await service.make_tenant("other")
    mine, theirs = await with_deposit(service, service.tenant_id), await with_deposit(service, other_id)
    asked = [(key, entry.id) for key in (id_of(service.key), UNKNOWN, id_of(other)) for entry in (mine, theirs)]
    for _ in range(2):
        found = await ask_together(reads, (id_of(service.key), mine.id), *asked)
        shown = [[one.entry.id for one in read.entries(Side.DEPOSIT)] for read in found]
        assert shown == [[mine.id], [mine.id], [], [], [], [], [theirs.id]]
        whose = [read.key.tenant_id if read.key else None for read in found]
        assert whose == [service.tenant_id] * 3 + [None] * 2 + [other_id] * 2


async def test_those_who_wait_share_one_question(
    service: Service, reads: StatusReads, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = await with_deposit(service, service.tenant_id)
    questions: list[int] = []
    ask = StatusReads._ask

    async def _counted(self: StatusReads, together: Sequence[ledger.status_reads._Asked]) -> list[StatusRead]:
        questions.append(len(together))
        return await ask(self, together)

    monkeypatch.setattr(StatusReads, "_ask", _counted)
    monkeypatch.setattr(ledger.status_reads, "TOGETHER_MAX", 4)
    found = await ask_together(reads, *[(id_of(service.key), entry.id)] * 10)
    assert questions == [4, 4, 2]
    assert all(read.rows for read in found)


async def test_nothing_is_left_of_whom_a_question_spoke_for(service: Service, reads: StatusReads) -> None:
    entry = await with_deposit(service, service.tenant_id)
    assert (await reads.read(id_of(service.key), entry.id)).rows
    assert (await reads.read(UNKNOWN, entry.id)).rows == []
    left = Prepared(select(func.current_setting(SETTING, True), func.count()).select_from(entries))
    assert await reads._pipeline.run([(left, {})]) == [[("", 0)]]


async def test_a_key_is_of_no_use_from_the_moment_at_which_it_is_revoked(service: Service, reads: StatusReads) -> None:
    entry = await with_deposit(service, service.tenant_id)
    parts = parse_key(service.key)
    stop = asyncio.Event()

    async def _ask_on_and_on() -> None:
        while not stop.is_set():
            await reads.read(parts.id, entry.id)

    crowd = [asyncio.create_task(_ask_on_and_on()) for _ in range(8)]
    assert is_usable((await reads.read(parts.id, entry.id)).key, parts)
    async with transaction(service.owner) as connection:
        await revoke_key(connection, parts.id, datetime.now(UTC))
    for read in await ask_together(reads, *[(parts.id, entry.id)] * 8):
        assert not is_usable(read.key, parts)
    stop.set()
    await asyncio.gather(*crowd)


async def test_a_connection_that_was_cut_off_while_it_was_idle_is_made_again(
    service: Service, reads: StatusReads
) -> None:
    entry = await with_deposit(service, service.tenant_id)
    assert (await reads.read(UNKNOWN, entry.id)).rows == []
    for _ in range(2):
        driver = reads._pipeline._driver
        assert driver is not None
        async with transaction(service.owner) as connection:
            ended = text("SELECT pg_terminate_backend(:pid, 120000)")
            assert (await connection.execute(ended, {"pid": driver.info.backend_pid})).scalar_one()
        found = await ask_together(reads, *[(id_of(service.key), entry.id)] * 3)
        assert all(read.rows for read in found)


async def test_the_connection_goes_back_to_its_pool_from_time_to_time(
    service: Service, reads: StatusReads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger.pipelines, "KEPT_S", 0.0)
    entry = await with_deposit(service, service.tenant_id)
    for _ in range(4):  # its pool has two
        assert (await reads.read(id_of(service.key), entry.id)).rows


async def test_who_goes_away_takes_nobody_along(service: Service, reads: StatusReads) -> None:
    entry = await with_deposit(service, service.tenant_id)
    asked = [asyncio.create_task(reads.read(id_of(service.key), entry.id)) for _ in range(6)]
    await asyncio.sleep(0)
    for task in asked[::2]:
        task.cancel()
    assert all(read.rows for read in await asyncio.gather(*asked[1::2]))


async def test_a_question_that_cannot_be_put_fails_alone(service: Service, reads: StatusReads) -> None:
    entry = await with_deposit(service, service.tenant_id)
    key_id = id_of(service.key)
    for unspeakable in ("\x00", "\ud800"):
        names = ["order-1", "order-1", unspeakable, "order-1"]
        told = await asyncio.gather(*(reads.read_reference(key_id, name) for name in names), return_exceptions=True)
        assert isinstance(told.pop(2), Exception)
        shown = [[one.entry.id for one in read.entries(Side.DEPOSIT)] for read in told if isinstance(read, StatusRead)]
        assert shown == [[entry.id]] * 3


async def test_all_who_ask_are_told_that_the_database_is_gone() -> None:
    engine = connect_api("postgresql://nobody@127.0.0.1:1/nothing", pool_size=1)
    reads = StatusReads(engine)
    for _ in range(2):
        asked = [reads.read(UNKNOWN, EntryId("dep_1")) for _ in range(3)]
        told = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(error) for error in told] == [OperationalError] * 3
    await reads.close()
    await engine.dispose()


def noticing(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Set once a question is under way."""
    is_under_way, ask = asyncio.Event(), StatusReads._ask

    async def _noticed(self: StatusReads, together: Sequence[ledger.status_reads._Asked]) -> list[StatusRead]:
        is_under_way.set()
        return await ask(self, together)

    monkeypatch.setattr(StatusReads, "_ask", _noticed)
    return is_under_way


async def test_the_question_under_way_is_answered_before_the_end_and_no_other(
    service: Service, reads: StatusReads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger.status_reads, "LAST_QUESTION_LIMIT_S", 120.0)
    is_under_way = noticing(monkeypatch)
    entry = await with_deposit(service, service.tenant_id)
    first = asyncio.create_task(reads.read(id_of(service.key), entry.id))
    await is_under_way.wait()
    second = asyncio.create_task(reads.read(id_of(service.key), entry.id))
    await asyncio.sleep(0)  # it has asked
    await reads.close()
    await asyncio.wait([second])
    assert (await first).rows
    assert second.cancelled()


async def test_a_question_that_does_not_end_is_given_up_at_the_end(
    service: Service, reads: StatusReads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger.status_reads, "LAST_QUESTION_LIMIT_S", 0.1)
    entry = await with_deposit(service, service.tenant_id)
    assert (await reads.read(id_of(service.key), entry.id)).rows
    is_under_way = noticing(monkeypatch)
    async with transaction(service.owner) as connection:
        await connection.execute(text("LOCK TABLE entries IN ACCESS EXCLUSIVE MODE"))
        stuck = asyncio.create_task(reads.read(id_of(service.key), entry.id))
        await is_under_way.wait()
        await reads.close()
        await asyncio.wait([stuck])
        assert stuck.cancelled()


async def test_a_deposit_read_alone_has_the_bytes_that_it_has_in_a_list(service: Service) -> None:
    async with transaction(service.owner) as connection:
        await add_chain(connection, tip=1000)
    entry = await with_deposit(service, service.tenant_id)
    alone = await asyncio.gather(*(service.ask("GET", f"/v1/deposits/{entry.id}") for _ in range(5)))
    page = await service.ask("GET", "/v1/deposits")
    listed = bytes(msgspec.json.decode(page.content, type=dict[str, msgspec.Raw])["data"])
    assert {answer.content for answer in alone} == {listed[1:-1]}


async def test_a_status_read_counts_as_a_use_of_its_key(service: Service) -> None:
    async def _last_used() -> datetime | None:
        async with transaction(service.owner) as connection:
            used_at: datetime | None = (await connection.execute(select(api_keys.c.last_used_at))).scalar_one()
            return used_at

    await asyncio.gather(*(service.ask("GET", "/v1/deposits/dep_1") for _ in range(5)))
    first = await _last_used()
    assert first is not None
    await asyncio.gather(*(service.ask("GET", "/v1/deposits/dep_1") for _ in range(5)))
    assert await _last_used() == first


async def test_a_bad_key_is_refused_before_anything_is_said_of_the_entry(service: Service) -> None:
    async with transaction(service.owner) as connection:
        await add_chain(connection, tip=1000)
    entry = await with_deposit(service, service.tenant_id)
    forged = format_key(id_of(service.key), bytes(32))

    async def _told(key: str, path: str) -> tuple[int, str]:
        answer: Answer = await service.ask("GET", path, key=key)
        return answer.status, answer.json["code"]

    unscoped = await service.make_key("watches:read")
    for path in (f"/v1/deposits/{entry.id}", "/v1/deposits/dep_1", f"/v1/deposits/{entry.id}?x=1"):
        assert await _told(unscoped, path) == (403, "missing_scope")
        assert await _told(forged, path) == (401, "invalid_key")
    assert await _told(service.key, f"/v1/deposits/{entry.id}?x=1") == (422, "invalid_request")
    assert await _told(service.key, f"/v1/withdrawals/{entry.id}") == (404, "not_found")


async def both_ways(service: Service, query: str, key: str | None = None) -> tuple[Answer, Answer]:
    """A list by a reference alone, and the same by way of lists."""
    alone = await service.ask("GET", f"/v1/deposits?{query}", key=key)
    listed = await service.ask("GET", f"/v1/deposits?{query}&chain=ethereum", key=key)
    return alone, listed


async def test_a_list_by_reference_alone_is_the_list(service: Service) -> None:
    _, other = await service.make_tenant("other")
    now = datetime.now(UTC)
    async with transaction(service.owner) as connection:
        await add_chain(connection, tip=1000)
        busy = await add_watch(connection, service.tenant_id, b"\x01" * 20, "busy")
        twin = await add_watch(connection, service.tenant_id, b"\x02" * 20, "twins")
        other_twin = await add_watch(connection, service.tenant_id, b"\x03" * 20, "twins")
        await add_watch(connection, service.tenant_id, b"\x04" * 20, "quiet")
        for number in range(1, 6):
            await add_entry(connection, service.tenant_id, busy, number, now=now)
        await add_entry(connection, service.tenant_id, busy, 6, side=Side.WITHDRAWAL, now=now)
        await add_entry(connection, service.tenant_id, twin, 7, now=now)
        await add_entry(connection, service.tenant_id, other_twin, 8, now=now)
    for query, count in (
        ("reference=busy", 5),
        ("reference=busy&limit=5", 5),
        ("reference=busy&limit=2", 2),
        ("reference=twins", 2),
        ("reference=quiet", 0),
        ("reference=nobody", 0),
        ("reference=", 0),
    ):
        alone, listed = await both_ways(service, query)
        assert (alone.status, alone.content) == (listed.status, listed.content), query
        assert len(alone.json["data"]) == count, query
    assert (await service.ask("GET", "/v1/deposits?reference=busy", key=other)).json["data"] == []
    withdrawn = await service.ask("GET", "/v1/withdrawals?reference=busy")
    assert [row["object"] for row in withdrawn.json["data"]] == ["withdrawal"]


async def test_a_reference_of_many_is_answered_as_a_list(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    many = ledger.status_reads.SAME_MAX + 1
    now = datetime.now(UTC)
    async with transaction(service.owner) as connection:
        await add_chain(connection, tip=1000)
        busy = await add_watch(connection, service.tenant_id, b"\x01" * 20, "busy")
        for number in range(1, many + 1):
            await add_entry(connection, service.tenant_id, busy, number, now=now)
        made = [NewWatch(ETHEREUM, number.to_bytes(20, "big"), "crowd", {}, None) for number in range(1, many + 1)]
        crowd, _ = await insert_watches(connection, service.tenant_id, made, now)
        await add_entry(connection, service.tenant_id, crowd[-1].row, many + 1, now=now)
    listed = []
    list_entries = ledger.entry_lists.list_entries

    async def _noted(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - as they come
        listed.append(arguments[2].reference)
        return await list_entries(*arguments, **named)

    monkeypatch.setattr(api.entries, "list_entries", _noted)
    assert len((await service.ask("GET", "/v1/deposits?reference=busy&limit=1000")).json["data"]) == many
    assert len((await service.ask("GET", "/v1/deposits?reference=crowd")).json["data"]) == 1
    assert listed == ["busy", "crowd"]
    assert (await service.ask("GET", "/v1/deposits?reference=quiet")).json == {"data": [], "next_cursor": None}
    assert listed == ["busy", "crowd"]


async def test_references_and_ids_of_several_tenants_go_together(service: Service, reads: StatusReads) -> None:
    other_id, other = await service.make_tenant("other")
    mine, theirs = await with_deposit(service, service.tenant_id), await with_deposit(service, other_id, 2)
    keys = (id_of(service.key), UNKNOWN, id_of(other))
    for _ in range(2):
        by_reference = [reads.read_reference(key, name) for key in keys for name in ("order-1", "order-2")]
        found = await asyncio.gather(reads.read(keys[0], theirs.id), *by_reference, reads.read(keys[2], theirs.id))
        shown = [[one.entry.id for one in read.entries(Side.DEPOSIT)] for read in found]
        assert shown == [[], [mine.id], [], [], [], [theirs.id], [], [theirs.id]]


async def test_a_bad_key_is_refused_before_anything_is_said_of_the_query(service: Service) -> None:
    forged = format_key(id_of(service.key), bytes(32))
    for query in ("reference=x", "reference=x&limit=0", "reference=x&nonsense=1", "reference=x&reference=y"):
        assert (await service.ask("GET", f"/v1/deposits?{query}", key=forged)).json["code"] == "invalid_key"
