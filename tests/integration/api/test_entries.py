"""Deposits, withdrawals and their stories over a real database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from chains.model import hex_of
from ledger.database import transaction
from ledger.documents import time_of
from ledger.ids import Side
from ledger.model import Entry
from tests.integration.api.conftest import Answer, Service
from tests.integration.api.seeding import ADDRESS, NATIVE, START, add_chain, add_entry, add_watch, confirm_entry

OTHER = b"\x77" * 20


async def with_deposits(service: Service, count: int, side: Side = Side.DEPOSIT) -> list[Entry]:
    """Entries 1..count on a chain at height 1000; the odd ones are of the watch `order-1`."""
    now = datetime.now(UTC)
    async with transaction(service.owner) as connection:
        await add_chain(connection, tip=1000)
        watches = [
            await add_watch(connection, service.tenant_id, OTHER, "order-2"),
            await add_watch(connection, service.tenant_id),
        ]
        return [
            await add_entry(connection, service.tenant_id, watches[n % 2], n, side=side, now=now)
            for n in range(1, count + 1)
        ]


async def listed(service: Service, path: str = "/v1/deposits", **query: object) -> list[str]:
    answer = await service.ask("GET", path, query=query)
    assert answer.status == 200, answer.json
    return [row["id"] for row in answer.json["data"]]


async def test_a_deposit_is_shown_as_the_contract_says(service: Service) -> None:
    [entry] = await with_deposits(service, 1)
    answer = await service.ask("GET", f"/v1/deposits/{entry.id}")
    assert answer.status == 200
    seen = answer.json
    assert seen["object"] == "deposit"
    assert (seen["amount_atomic"], seen["amount"]) == ("1000000000000000001", "1.000000000000000001")
    assert (seen["chain"], seen["chain_id"], seen["asset"]["id"]) == ("ethereum", "eip155:1", NATIVE)
    assert (seen["from"], seen["to"]) == ("0x" + "01" * 20, hex_of(ADDRESS))
    assert seen["confirmations"]["current"] == 1000
    assert seen["watch"]["reference"] == "order-1"
    assert seen["detected_at"] == "2026-03-01T12:00:01Z"


async def test_a_withdrawal_is_no_deposit(service: Service) -> None:
    [entry] = await with_deposits(service, 1, Side.WITHDRAWAL)
    seen = (await service.ask("GET", f"/v1/withdrawals/{entry.id}")).json
    assert (seen["object"], seen["fee"]["amount_atomic"], seen["failure"]) == ("withdrawal", "21000", None)
    assert (await service.ask("GET", f"/v1/deposits/{entry.id}")).status == 404
    assert await listed(service) == []
    assert await listed(service, "/v1/withdrawals") == [entry.id]


async def test_deposits_are_found_by_each_filter(service: Service) -> None:
    entries = await with_deposits(service, 4)
    async with transaction(service.owner) as connection:
        await confirm_entry(connection, entries[3], datetime.now(UTC))
    odd, even = [entries[2].id, entries[0].id], [entries[3].id, entries[1].id]
    assert await listed(service) == [entry.id for entry in reversed(entries)]
    assert await listed(service, address=hex_of(ADDRESS)) == odd
    assert await listed(service, reference="order-2") == even
    assert await listed(service, state="confirmed") == [entries[3].id]
    assert await listed(service, state="finalized") == []
    assert await listed(service, chain="ethereum", asset=NATIVE.upper()) == [entry.id for entry in reversed(entries)]
    assert await listed(service, tx=hex_of(entries[1].transaction_hash or b"")) == [entries[1].id]
    assert await listed(service, reference="order-2", state="detected") == [entries[1].id]
    since = time_of(START + timedelta(seconds=3))
    assert await listed(service, updated_since=since) == [entries[2].id, entries[3].id]


async def test_a_bad_filter_is_pointed_at(service: Service) -> None:
    await with_deposits(service, 1)
    cases = {
        "chain": "nowhere",
        "address": "0x9696F59E4d72E237BE84FFD425DCAD154bf96976",
        "state": "lost",
        "asset": "USDC",
        "tx": "0x12",
        "updated_since": "2026-03-01T12:00:00",
        "limit": "0",
        "page": "2",
    }
    for name, value in cases.items():
        answer = await service.ask("GET", "/v1/deposits", query={name: value})
        assert (answer.status, answer.json["code"]) == (422, "invalid_request"), name
        assert answer.json["errors"][0]["pointer"] == f"/{name}"
    twice = await service.ask("GET", "/v1/deposits?limit=1&limit=2")
    assert twice.json["errors"][0]["pointer"] == "/limit"


async def walk(service: Service, query: dict[str, object], between: list[Entry]) -> list[str]:
    """All pages of a list; after each page one of the waiting entries is stored."""
    seen: list[str] = []
    cursor: dict[str, object] = {}
    while True:
        page = (await service.ask("GET", "/v1/deposits", query={**query, **cursor})).json
        seen += [row["id"] for row in page["data"]]
        if between:
            changed = between.pop()
            async with transaction(service.owner) as connection:
                await confirm_entry(connection, changed, datetime.now(UTC))
        if page["next_cursor"] is None:
            return seen
        cursor = {"cursor": page["next_cursor"]}


async def test_a_walk_in_order_of_detection_sees_each_once_while_entries_change(service: Service) -> None:
    entries = await with_deposits(service, 23)
    seen = await walk(service, {"limit": 5}, entries[:4])
    assert seen == [entry.id for entry in reversed(entries)]


async def test_a_walk_in_order_of_change_misses_no_change(service: Service) -> None:
    entries = await with_deposits(service, 23)
    changed = [entries[0], entries[12], entries[22]]
    seen = await walk(service, {"limit": 5, "updated_since": time_of(START)}, list(changed))
    assert {entry.id for entry in entries} == set(seen)
    assert seen[-3:].count(entries[0].id) == 1


async def test_a_cursor_is_good_for_its_own_list_and_tenant_only(service: Service) -> None:
    await with_deposits(service, 3)
    cursor = (await service.ask("GET", "/v1/deposits", query={"limit": 1})).json["next_cursor"]
    _, stranger = await service.make_tenant("other")

    async def refused(answer: Answer) -> None:
        assert (answer.status, answer.json["code"]) == (400, "invalid_cursor")

    for wrong in (cursor[:-2] + "AA", "x", "", "é" * 20, "A" * 400):
        await refused(await service.ask("GET", "/v1/deposits", query={"cursor": wrong}))
    await refused(await service.ask("GET", "/v1/withdrawals", query={"cursor": cursor}))
    by_change = {"cursor": cursor, "updated_since": time_of(START)}
    await refused(await service.ask("GET", "/v1/deposits", query=by_change))
    await refused(await service.ask("GET", "/v1/deposits", query={"cursor": cursor}, key=stranger))
    assert (await service.ask("GET", "/v1/deposits", query={"cursor": cursor})).status == 200


async def test_the_story_of_an_entry_is_told_in_sequence_with_the_bytes_of_the_feed(service: Service) -> None:
    entries = await with_deposits(service, 2)
    async with transaction(service.owner) as connection:
        await confirm_entry(connection, entries[0], datetime.now(UTC))
    path = f"/v1/deposits/{entries[0].id}/events"
    story = (await service.ask("GET", path)).json
    assert [(event["type"], event["sequence"]) for event in story["data"]] == [
        ("deposit.detected", 1),
        ("deposit.confirmed", 2),
    ]
    first = (await service.ask("GET", path, query={"limit": 1})).json
    second = (await service.ask("GET", path, query={"cursor": first["next_cursor"]})).json
    assert first["data"] + second["data"] == story["data"]
    feed = (await service.ask("GET", "/v1/events")).json["data"]
    assert [event for event in feed if event["data"]["id"] == entries[0].id] == story["data"]


async def test_foreign_entries_are_404_and_in_no_list(service: Service) -> None:
    [entry] = await with_deposits(service, 1)
    _, stranger = await service.make_tenant("other")
    for path in (f"/v1/deposits/{entry.id}", f"/v1/deposits/{entry.id}/events"):
        answer = await service.ask("GET", path, key=stranger)
        assert (answer.status, answer.json["code"]) == (404, "not_found")
    for path in ("/v1/deposits", "/v1/events"):
        assert (await service.ask("GET", path, key=stranger)).json["data"] == []
