"""`/v1/watches` over a real database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

import ledger.watches
from api.watch_rows import START_AHEAD_MAX
from chains.model import hex_of
from ledger.chains import lock_chain, share_chains, update_chain
from ledger.database import transaction
from ledger.jobs import find_job
from ledger.schema import watches
from ledger.schema_access import audit_log
from tests.integration.api.conftest import Answer, Service
from tests.integration.api.seeding import ADDRESS, ETHEREUM, SECOND, add_chain, set_tip

TEXT = hex_of(ADDRESS)


def address(number: int) -> str:
    return "0x" + number.to_bytes(20, "big").hex()


async def watch(service: Service, *rows: Mapping[str, object], key: str | None = None) -> Answer:
    return await service.ask("POST", "/v1/watches", {"watches": list(rows)}, key=key)


async def with_chain(service: Service, tip: int | None = 122) -> None:
    async with transaction(service.owner) as connection:
        await add_chain(connection, tip=tip)


async def test_a_new_watch_is_covered_from_the_block_after_the_tip(service: Service) -> None:
    await with_chain(service)
    answer = await watch(
        service, {"chain": "ethereum", "address": TEXT, "reference": "order-1", "metadata": {"a": [1]}}
    )
    assert answer.status == 200
    [row] = answer.json["data"]
    assert row.pop("id").startswith("wat_")
    assert row == {
        "object": "watch",
        "chain": "ethereum",
        "address": TEXT,
        "reference": "order-1",
        "metadata": {"a": [1]},
        "start_height": None,
        "covered_from_height": 123,
        "status": "active",
        "backfill_job_id": None,
    }


async def test_a_watch_that_is_there_is_answered_as_it_is_with_status_exists(service: Service) -> None:
    await with_chain(service)
    first = (await watch(service, {"chain": "ethereum", "address": TEXT, "reference": "one"})).json["data"][0]
    async with transaction(service.owner) as connection:
        await set_tip(connection, 500)
    twice = {"chain": "eip155:1", "address": address(7)}
    rows = (await watch(service, {"chain": "ethereum", "address": TEXT, "reference": "two"}, twice, twice)).json["data"]
    assert rows[0] == {**first, "status": "exists"}
    assert [row["status"] for row in rows[1:]] == ["active", "exists"]
    assert rows[1]["id"] == rows[2]["id"]


async def test_a_watch_for_all_evm_chains_is_covered_on_each_from_its_own_height(service: Service) -> None:
    async with transaction(service.owner) as connection:
        await add_chain(connection, tip=122)
        await add_chain(connection, SECOND, "second")
    [row] = (await watch(service, {"chain": "evm", "address": TEXT})).json["data"]
    assert row["chain"] == "evm"
    assert row["covered_from_height"] == {"ethereum": 123, "second": None}
    async with transaction(service.owner) as connection:
        await set_tip(connection, 9, SECOND)
    seen = (await service.ask("GET", f"/v1/watches/{row['id']}")).json
    assert seen["covered_from_height"] == {"ethereum": 123, "second": 1}


async def test_a_chain_without_a_block_covers_the_watch_from_its_first_one(service: Service) -> None:
    await with_chain(service, tip=None)
    [row] = (await watch(service, {"chain": "ethereum", "address": TEXT})).json["data"]
    assert row["covered_from_height"] is None


async def test_one_bad_row_refuses_the_whole_call_with_its_index(service: Service) -> None:
    await with_chain(service)
    rows: list[dict[str, object]] = [{"chain": "ethereum", "address": address(n)} for n in range(1, 20)]
    rows[17]["address"] = "0x9696F59E4d72E237BE84FFD425DCAD154bf96976"
    answer = await watch(service, *rows)
    assert answer.status == 422
    assert answer.json["code"] == "invalid_request"
    assert answer.json["errors"][0]["pointer"] == "/watches/17/address"
    assert "checksum" in answer.json["errors"][0]["detail"]
    assert (await service.ask("GET", "/v1/watches")).json["data"] == []


async def test_each_kind_of_bad_row_is_pointed_at(service: Service) -> None:
    await with_chain(service)
    good: dict[str, object] = {"chain": "ethereum", "address": TEXT}
    deep: object = {}
    for _ in range(40):
        deep = {"a": deep}
    cases: list[tuple[dict[str, object], str, str]] = [
        ({**good, "chain": "dogecoin"}, "/watches/0/chain", "there are: ethereum"),
        ({"chain": "ethereum"}, "/watches/0/address", "missing"),
        ({**good, "adress": 1}, "/watches/0/adress", "there is no field"),
        ({**good, "address": "0x12"}, "/watches/0/address", "hexadecimal"),
        ({**good, "reference": "x" * 201}, "/watches/0/reference", "200"),
        ({**good, "reference": "a\x00"}, "/watches/0/reference", "NUL"),
        ({**good, "metadata": {"a": "x" * 5000}}, "/watches/0/metadata", "4096"),
        ({**good, "metadata": {"a": "\x00"}}, "/watches/0/metadata", "NUL"),
        ({**good, "metadata": deep}, "/watches/0/metadata", "deeper"),
        ({**good, "start_height": -1}, "/watches/0/start_height", "at least 0"),
        ({"chain": "evm", "address": TEXT, "start_height": 1}, "/watches/0/start_height", "differ"),
    ]
    for row, pointer, said in cases:
        answer = await watch(service, row)
        assert (answer.status, answer.json["errors"][0]["pointer"]) == (422, pointer), row
        assert said in answer.json["errors"][0]["detail"]
    for rows in ([], [good] * 10_001):
        assert (await watch(service, *rows)).json["errors"][0]["pointer"] == "/watches"


async def test_all_bad_rows_are_told_in_one_answer_for_their_form_and_for_their_meaning(service: Service) -> None:
    await with_chain(service)
    good: dict[str, object] = {"chain": "ethereum", "address": TEXT}
    rows: list[object] = [
        {**good, "chain": "dogecoin", "address": "0x12"},
        good,
        {**good, "reference": 5},
        {"chain": "evm", "address": TEXT, "start_height": 1, "metadata": {"a": "x" * 5000}},
    ]
    pointers = ["/watches/0/chain", "/watches/0/address", "/watches/2/reference"]
    pointers += ["/watches/3/metadata", "/watches/3/start_height"]
    for sent, expected in (
        (rows, pointers),
        ([*rows[:2], *rows[3:]], [one.replace("/3/", "/2/") for one in pointers[:2] + pointers[3:]]),
    ):
        answer = await service.ask("POST", "/v1/watches", {"watches": sent})
        assert answer.status == 422
        assert [one["pointer"] for one in answer.json["errors"]] == expected
        assert answer.json["errors_total"] == len(expected)
        assert answer.json["detail"].endswith(f"; and {len(expected) - 1} more; no watch was made")
    unknown = await service.ask("POST", "/v1/watches", {"watches": rows, "whatches": []})
    assert [one["pointer"] for one in unknown.json["errors"]] == ["/whatches", *pointers]
    many = [{**good, "chain": "dogecoin" if index % 2 else 7} for index in range(3_000)]
    answer = await service.ask("POST", "/v1/watches", {"watches": many})
    assert [one["pointer"] for one in answer.json["errors"]] == [f"/watches/{index}/chain" for index in range(1_000)]
    assert answer.json["errors_total"] == 3_000
    assert (await service.ask("GET", "/v1/watches")).json["data"] == []


async def test_metadata_keeps_backslashes_and_any_character_but_nul(service: Service) -> None:
    await with_chain(service)
    metadata = {"path": "C:\\u0000\\x", "emoji": "🙂", "big": 2**70}
    [row] = (await watch(service, {"chain": "ethereum", "address": TEXT, "metadata": metadata})).json["data"]
    assert (await service.ask("GET", f"/v1/watches/{row['id']}")).json["metadata"] == metadata


async def test_a_start_height_in_the_past_begins_a_backfill_and_one_in_the_future_does_not(service: Service) -> None:
    await with_chain(service)
    [row] = (await watch(service, {"chain": "ethereum", "address": TEXT, "start_height": 300})).json["data"]
    assert (row["start_height"], row["covered_from_height"], row["backfill_job_id"]) == (300, 300, None)
    again = await watch(service, {"chain": "ethereum", "address": TEXT, "start_height": 1})
    assert again.json["data"][0]["status"] == "exists"
    assert again.json["data"][0]["backfill_job_id"] is None
    rows = [{"chain": "ethereum", "address": f"0x{number:040x}", "start_height": 100 + number} for number in (5, 1)]
    made = (await watch(service, *rows)).json["data"]
    assert [one["covered_from_height"] for one in made] == [123, 123]  # nothing of the past is covered yet
    assert made[0]["backfill_job_id"] == made[1]["backfill_job_id"] is not None
    later = (await watch(service, {"chain": "ethereum", "address": f"0x{9:040x}", "start_height": 7})).json["data"]
    assert later[0]["backfill_job_id"] == made[0]["backfill_job_id"]  # nobody has begun it yet
    async with transaction(service.owner) as connection:
        job = await find_job(connection, service.tenant_id, later[0]["backfill_job_id"])
    assert job is not None
    assert (job.request, job.total) == ({"from": 7, "to": 122, "watches": 3}, 116)


@pytest.mark.parametrize("tip", [122, None], ids=["behind the head", "before the first block"])
async def test_a_start_height_that_no_node_is_near_is_refused(service: Service, tip: int | None) -> None:
    """A time, or another chain's height: nothing would ever be found before the chain is there."""
    await with_chain(service, tip=tip)
    async with transaction(service.owner) as connection:
        await update_chain(connection, ETHEREUM, {"head_height": 500})
    for start_height in (500 + START_AHEAD_MAX + 1, 1_700_000_000, 2**53 - 1):
        answer = await watch(service, {"chain": "ethereum", "address": TEXT, "start_height": start_height})
        assert (answer.status, answer.json["errors"][0]["pointer"]) == (422, "/watches/0/start_height")
        assert "newest known block of ethereum, 500" in answer.json["errors"][0]["detail"]
    answer = await watch(service, {"chain": "ethereum", "address": TEXT, "start_height": 2**53})
    assert (answer.status, answer.json["errors"][0]["pointer"]) == (422, "/watches/0/start_height")
    assert (await service.ask("GET", "/v1/watches")).json["data"] == []
    nearest = await watch(service, {"chain": "ethereum", "address": TEXT, "start_height": 500 + START_AHEAD_MAX})
    assert nearest.status == 200


async def test_on_a_chain_that_nobody_has_seen_any_start_height_is_taken_and_loses_nothing(service: Service) -> None:
    await with_chain(service, tip=None)
    answer = await watch(service, {"chain": "ethereum", "address": TEXT, "start_height": 1_700_000_000})
    [row] = answer.json["data"]
    assert row["covered_from_height"] is None
    async with transaction(service.owner) as connection:
        await set_tip(connection, 9)
    assert (await service.ask("GET", f"/v1/watches/{row['id']}")).json["covered_from_height"] == 1


async def test_a_deleted_watch_keeps_its_history_and_can_be_made_again(service: Service) -> None:
    await with_chain(service)
    [first] = (await watch(service, {"chain": "ethereum", "address": TEXT})).json["data"]
    for _ in range(2):
        assert (await service.ask("DELETE", f"/v1/watches/{first['id']}")).status == 204
    assert (await service.ask("GET", f"/v1/watches/{first['id']}")).json["status"] == "deleted"
    assert (await service.ask("GET", "/v1/watches")).json["data"] == []
    [second] = (await watch(service, {"chain": "ethereum", "address": TEXT})).json["data"]
    assert second["status"] == "active"
    assert second["id"] != first["id"]


async def test_watches_are_found_by_address_chain_and_reference(service: Service) -> None:
    async with transaction(service.owner) as connection:
        await add_chain(connection, tip=1)
        await add_chain(connection, SECOND, "second", tip=1)
    await watch(
        service,
        {"chain": "ethereum", "address": address(1), "reference": "r1"},
        {"chain": "second", "address": address(1), "reference": "r2"},
        {"chain": "evm", "address": address(2), "reference": "r2"},
        {"chain": "evm", "address": address(1), "reference": "r3"},
    )

    async def found(**query: object) -> set[tuple[str, str]]:
        rows = (await service.ask("GET", "/v1/watches", query=query)).json["data"]
        return {(row["chain"], row["address"]) for row in rows}

    for_all = {("evm", address(1)), ("evm", address(2))}
    assert await found(address=address(1)) == {(chain, address(1)) for chain in ("ethereum", "second", "evm")}
    assert await found(chain="second") == {("second", address(1)), *for_all}  # who watches all chains watches this one
    assert await found(chain="second", address=address(1)) == {("second", address(1)), ("evm", address(1))}
    assert await found(chain="evm") == for_all
    assert await found(reference="r2") == {("second", address(1)), ("evm", address(2))}
    assert await found(reference="r1", chain=SECOND) == set()
    refused = await service.ask("GET", "/v1/deposits", query={"chain": "evm"})
    assert "evm stands for all EVM chains" in refused.json["errors"][0]["detail"]
    refused = await service.ask("GET", "/v1/watches", query={"chain": "nowhere"})
    assert (refused.status, refused.json["errors"][0]["pointer"]) == (422, "/chain")


async def test_a_walk_by_cursor_sees_each_watch_once_while_others_are_made(service: Service) -> None:
    await with_chain(service)
    made = await watch(service, *({"chain": "ethereum", "address": address(n)} for n in range(1, 26)))
    wanted = {row["id"] for row in made.json["data"]}
    seen: list[str] = []
    cursor: dict[str, object] = {}
    for step in range(10):
        page = (await service.ask("GET", "/v1/watches", query={"limit": 7, **cursor})).json
        seen += [row["id"] for row in page["data"]]
        await watch(service, {"chain": "ethereum", "address": address(1000 + step)})
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert len(seen) == len(set(seen))
    assert set(seen) == wanted


async def test_a_foreign_watch_is_404(service: Service) -> None:
    await with_chain(service)
    [row] = (await watch(service, {"chain": "ethereum", "address": TEXT})).json["data"]
    _, stranger = await service.make_tenant("other")
    for method in ("GET", "DELETE"):
        answer = await service.ask(method, f"/v1/watches/{row['id']}", key=stranger)
        assert (answer.status, answer.json["code"]) == (404, "not_found")
    assert (await service.ask("GET", f"/v1/watches/{row['id']}")).json["status"] == "active"
    [theirs] = (await watch(service, {"chain": "ethereum", "address": TEXT}, key=stranger)).json["data"]
    assert theirs["status"] == "active"


async def test_an_insert_waits_for_the_commit_of_a_block(service: Service) -> None:
    await with_chain(service, tip=122)
    async with transaction(service.owner) as follower:
        await set_tip(follower, 123)
        asked = asyncio.create_task(watch(service, {"chain": "ethereum", "address": TEXT}))
        done, _ = await asyncio.wait([asked], timeout=0.3)
        assert not done
    assert (await asked).json["data"][0]["covered_from_height"] == 124


async def until_waiting(connection: AsyncConnection, count: int) -> None:
    """Return when so many connections wait for a lock."""
    waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    async with asyncio.timeout(120):
        while (await connection.execute(waiting)).scalar_one() < count:  # noqa: ASYNC110 - Postgres tells nobody
            await asyncio.sleep(0.01)


async def test_a_load_does_not_get_in_past_a_follower_that_waits_for_another_load(service: Service) -> None:
    await with_chain(service, tip=122)

    async def _commit_block() -> None:
        async with transaction(service.owner) as follower:
            await lock_chain(follower, ETHEREUM)
            await set_tip(follower, 123)

    async with transaction(service.owner) as first_load:
        await share_chains(first_load, [ETHEREUM])
        committing = asyncio.create_task(_commit_block())
        await until_waiting(first_load, 1)
        asked = asyncio.create_task(watch(service, {"chain": "ethereum", "address": TEXT}))
        await until_waiting(first_load, 2)
        assert not committing.done()
    await committing
    assert (await asked).json["data"][0]["covered_from_height"] == 124


@pytest.mark.parametrize("at_once_max", [0, 1000], ids=["without the lock first", "under the lock"])
async def test_watches_that_are_there_are_answered_when_a_block_comes_in_between(
    service: Service, at_once_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the insert is done, what was there before is told from what is new."""
    monkeypatch.setattr(ledger.watches, "UNDER_LOCK_MAX", at_once_max)
    await with_chain(service, tip=122)
    [there] = (await watch(service, {"chain": "ethereum", "address": address(1)})).json["data"]
    async with transaction(service.owner) as follower:
        await set_tip(follower, 123)
        rows = [
            {"chain": "ethereum", "address": address(n), "start_height": s} for n, s in ((1, 1), (2, None), (3, 300))
        ]
        asked = asyncio.create_task(watch(service, *rows, rows[1]))
        await until_waiting(follower, 1)
    data = (await asked).json["data"]
    assert data[0] == {**there, "status": "exists"}
    assert [row["covered_from_height"] for row in data[1:]] == [124, 300, 124]
    assert [row["status"] for row in data[1:]] == ["active", "active", "exists"]
    for row in data[1:3]:
        seen = (await service.ask("GET", f"/v1/watches/{row['id']}")).json
        assert seen["covered_from_height"] == row["covered_from_height"]


async def test_ten_thousand_watches_are_made_in_one_call(service: Service) -> None:
    await with_chain(service)
    rows = [
        {"chain": "ethereum", "address": address(n), "reference": f"order-{n}", "metadata": {"n": n}}
        for n in range(1, 10_001)
    ]
    started = time.perf_counter()
    answer = await watch(service, *rows)
    elapsed_s = time.perf_counter() - started
    assert answer.status == 200
    data = answer.json["data"]
    assert [row["address"] for row in data] == [row["address"] for row in rows]
    assert {row["status"] for row in data} == {"active"}
    again = await watch(service, *rows)
    assert [row["id"] for row in again.json["data"]] == [row["id"] for row in data]
    assert {row["status"] for row in again.json["data"]} == {"exists"}
    async with transaction(service.owner) as connection:
        counted = await connection.execute(select(func.count()).where(watches.c.scope == ETHEREUM))
        assert counted.scalar_one() == 10_000
        lines = await connection.execute(select(audit_log.c.detail).where(audit_log.c.action == "watches.created"))
        assert lines.scalars().all() == [{"count": 10_000}]
    assert elapsed_s < 240, f"10,000 watches took {elapsed_s:.1f} s"
