"""Coverage as the API and the command tell it, over ranges that followers would have written."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from chains.model import AssetId, AssetKind, ChainId, hex_of
from ledger.chains import EVM_SCOPE, update_chain
from ledger.coverage import CoverageRange, Reading, ensure_reading, extend_coverage
from ledger.database import database_now, transaction
from ledger.ids import TenantId
from ledger.jobs import JobRow, cancel_job, claim_job, end_job, progress_job
from ledger.rereading import extend_job_coverage
from ledger.schema import assets
from ledger.states import JobState
from ledger.watches import NewWatch, WatchRow, delete_watch, insert_watches
from tests.integration.api.conftest import Service
from tests.integration.api.seeding import ADDRESS, ETHEREUM, NATIVE, START, add_chain, set_tip

TIP = 1000
WITH_LOGS = Reading(("log", "native"), (NATIVE,), 3)


def at(height: int) -> bytes:
    return height.to_bytes(32, "big")


def read(from_height: int, to_height: int, reading: int, proof: str = "roots") -> CoverageRange:
    """A run of blocks that two hosts agreed on."""
    return CoverageRange(
        from_height, to_height, at(from_height - 1), at(to_height), reading, proof, None, 2, ("node-a", "node-b")
    )


async def add_followed_chain(connection: AsyncConnection) -> None:
    """Ethereum, followed from 1 to its tip: all of it proven, above 500 to its roots."""
    await add_chain(connection, tip=TIP)
    nodes = [{"name": f"node-{one}", "host": f"{one}.example"} for one in "ab"]
    await update_chain(connection, ETHEREUM, {"nodes": nodes})
    version = await ensure_reading(connection, ETHEREUM, WITH_LOGS, START)
    await extend_coverage(connection, ETHEREUM, [read(1, 500, version, "bloom"), read(501, TIP, version)])


async def watch_at(
    connection: AsyncConnection, tenant_id: TenantId, tip: int, scope: str = ETHEREUM, start_height: int | None = None
) -> WatchRow:
    """A watch that is made when the tip is there."""
    await set_tip(connection, tip)
    asked = NewWatch(scope, ADDRESS, None, {}, start_height)
    [made], _ = await insert_watches(connection, tenant_id, [asked], START + timedelta(seconds=tip))
    await set_tip(connection, TIP)
    return made.row


async def covered(service: Service, **query: object) -> Any:  # noqa: ANN401
    answer = await service.ask("GET", "/v1/coverage", query={"chain": "ethereum", **query})
    assert answer.status == 200, answer.content
    return answer.json


def heights(rows: list[dict[str, Any]], *more: str) -> list[tuple[Any, ...]]:
    return [(row["from_height"], row["to_height"], *(row[name] for name in more)) for row in rows]


async def test_a_chains_coverage_is_told_with_how_each_range_was_read(service: Service) -> None:
    async with transaction(service.owner) as connection:
        await add_followed_chain(connection)
    told = await covered(service)
    assert (told["object"], told["chain_id"], told["from_height"], told["to_height"]) == ("coverage", ETHEREUM, 1, TIP)
    assert heights(told["ranges"], "proof", "agreed_by") == [(1, 500, "bloom", 2), (501, TIP, "roots", 2)]
    assert told["ranges"][0] | {"value_paths": ["log", "native"], "assets": [NATIVE], "decoder": 3} == told["ranges"][0]
    assert told["ranges"][0]["nodes"] == ["node-a", "node-b"]
    assert told["gaps"] == []
    assert (await covered(service, **{"from": 990, "to": 1010}))["gaps"] == [
        {"from_height": 1001, "to_height": 1010, "missing": None}
    ]


async def test_an_address_is_covered_from_its_watchs_own_height_on_and_nothing_below_it(service: Service) -> None:
    async with transaction(service.owner) as connection:
        await add_followed_chain(connection)
        watch = await watch_at(connection, service.tenant_id, 400)
    address = hex_of(ADDRESS)
    told = await covered(service, address=address)
    assert (told["object"], told["address"]) == ("address_coverage", address)
    assert (told["from_height"], told["to_height"]) == (401, TIP)
    [mine] = told["watches"]
    assert (mine["id"], mine["tenant"], mine["covered_from_height"]) == (watch.id, service.tenant_id, 401)
    assert heights(mine["ranges"], "proof") == [(401, 500, "bloom"), (501, TIP, "roots")]
    assert mine["gaps"] == []
    [mine] = (await covered(service, address=address, **{"from": 300, "to": 450}))["watches"]
    assert heights(mine["ranges"]) == [(401, 450)]
    assert heights(mine["gaps"], "missing") == [(300, 400, None)]
    [mine] = (await covered(service, address=address, **{"from": 300, "to": 350}))["watches"]
    assert (mine["ranges"], heights(mine["gaps"])) == ([], [(300, 350)])


async def test_a_watch_whose_first_block_has_not_come_covers_nothing_and_lacks_nothing(service: Service) -> None:
    async with transaction(service.owner) as connection:
        await add_followed_chain(connection)
        await watch_at(connection, service.tenant_id, TIP)
    told = await covered(service, address=hex_of(ADDRESS))
    assert (told["from_height"], told["to_height"]) == (TIP + 1, TIP)
    assert (told["watches"][0]["ranges"], told["watches"][0]["gaps"]) == ([], [])


async def test_what_a_watch_will_never_cover_of_the_blocks_to_come_is_a_gap(service: Service) -> None:
    """Its start was set above the chain's next block."""
    async with transaction(service.owner) as connection:
        await add_followed_chain(connection)
        await watch_at(connection, service.tenant_id, TIP, start_height=1_700_000_000)
    told = await covered(service, address=hex_of(ADDRESS))
    assert (told["from_height"], told["to_height"]) == (TIP + 1, 1_699_999_999)
    assert heights(told["watches"][0]["gaps"], "missing", "job_id") == [(TIP + 1, 1_699_999_999, None, None)]
    async with transaction(service.owner) as connection:
        await watch_at(connection, service.tenant_id, TIP - 100, EVM_SCOPE)
    late, early = (await covered(service, address=hex_of(ADDRESS)))["watches"]
    if late["covered_from_height"] < early["covered_from_height"]:
        late, early = early, late
    assert (heights(late["gaps"]), early["gaps"]) == ([(TIP - 99, TIP)], [])


async def test_each_watch_of_the_tenant_is_told_of_and_no_other(service: Service) -> None:
    other_id, other_key = await service.make_tenant("other")
    async with transaction(service.owner) as connection:
        await add_followed_chain(connection)
        first = await watch_at(connection, service.tenant_id, 400)
        second = await watch_at(connection, service.tenant_id, 700, EVM_SCOPE)
        await watch_at(connection, other_id, 600)
    told = await covered(service, address=hex_of(ADDRESS).upper().replace("0X", "0x"))
    assert [(one["id"], one["covered_from_height"]) for one in told["watches"]] == [(first.id, 401), (second.id, 701)]
    assert heights(told["watches"][1]["gaps"]) == [(401, 700)]
    theirs = await service.ask(
        "GET", "/v1/coverage", query={"chain": ETHEREUM, "address": hex_of(ADDRESS)}, key=other_key
    )
    assert [one["covered_from_height"] for one in theirs.json["watches"]] == [601]


async def test_an_address_that_the_tenant_does_not_watch_is_not_found(service: Service) -> None:
    other_id, _ = await service.make_tenant("other")
    async with transaction(service.owner) as connection:
        await add_followed_chain(connection)
        await watch_at(connection, other_id, 600)
        mine = await watch_at(connection, service.tenant_id, 600)
        await delete_watch(connection, service.tenant_id, mine.id, START)
    answer = await service.ask("GET", "/v1/coverage", query={"chain": "ethereum", "address": hex_of(ADDRESS)})
    assert (answer.status, answer.json["code"]) == (404, "not_found")


async def take(connection: AsyncConnection) -> JobRow:
    """The one job that waits, to work on it."""
    job = await claim_job(connection, [ETHEREUM], timedelta(0), await database_now(connection))
    assert job is not None
    return job


async def test_each_stage_of_a_backfill_is_told_as_it_is(service: Service) -> None:
    async with transaction(service.owner) as connection:
        await add_chain(connection, tip=TIP)
        version = await ensure_reading(connection, ETHEREUM, WITH_LOGS, START)
        await extend_coverage(connection, ETHEREUM, [read(600, TIP, version)])
        await update_chain(connection, ETHEREUM, {"first_height": 600})
        asked = NewWatch(ETHEREUM, ADDRESS, None, {}, 550)
        [made], _ = await insert_watches(connection, service.tenant_id, [asked], START)
        job_id = made.row.backfill_job_id
    told = await covered(service, address=hex_of(ADDRESS))
    [mine] = told["watches"]
    assert (told["from_height"], told["to_height"], mine["covered_from_height"]) == (550, TIP, TIP + 1)
    assert (mine["start_height"], mine["backfill_job_id"], mine["ranges"]) == (550, job_id, [])
    assert heights(mine["gaps"], "job_id") == [(550, TIP, job_id)]

    async with transaction(service.owner) as connection:
        job = await take(connection)
        found = [read(700, 800, version, "bloom"), read(801, TIP, version)]
        await extend_job_coverage(connection, service.tenant_id, job.id, ETHEREUM, found)
        job = await progress_job(connection, job, await database_now(connection), covered_from=700, done=301)
        await extend_coverage(connection, ETHEREUM, [read(TIP + 1, TIP + 5, version)])
        await set_tip(connection, TIP + 5)
    [mine] = (await covered(service, address=hex_of(ADDRESS)))["watches"]
    assert mine["covered_from_height"] == 700
    # The backfill tells of what it has read, the follower of what came after.
    expected = [(700, 800, "bloom"), (801, TIP, "roots"), (TIP + 1, TIP + 5, "roots")]
    assert heights(mine["ranges"], "proof") == expected
    assert heights(mine["gaps"], "job_id") == [(550, 699, job_id)]
    [mine] = (await covered(service, address=hex_of(ADDRESS), **{"from": 500, "to": 750}))["watches"]
    assert heights(mine["ranges"], "proof") == [(700, 750, "bloom")]
    assert heights(mine["gaps"], "job_id") == [(500, 549, None), (550, 699, job_id)]

    async with transaction(service.owner) as connection:
        await extend_job_coverage(connection, service.tenant_id, job.id, ETHEREUM, [read(540, 699, version)])
        now = await database_now(connection)
        job = await progress_job(connection, job, now, covered_from=540, done=461)
        await end_job(connection, job, JobState.DONE, now)
    told = await covered(service, address=hex_of(ADDRESS))
    [mine] = told["watches"]
    assert (told["from_height"], mine["covered_from_height"], mine["gaps"]) == (550, 550, [])
    assert heights(mine["ranges"], "proof")[0] == (550, 699, "roots")


async def test_a_cancelled_backfill_leaves_its_gap_and_is_not_named_as_closing_it(service: Service) -> None:
    async with transaction(service.owner) as connection:
        await add_followed_chain(connection)
        watch = await watch_at(connection, service.tenant_id, 700, start_height=600)
        assert watch.backfill_job_id is not None
        await cancel_job(connection, service.tenant_id, watch.backfill_job_id, START)
    [mine] = (await covered(service, address=hex_of(ADDRESS)))["watches"]
    assert mine["backfill_job_id"] == watch.backfill_job_id
    assert heights(mine["ranges"]) == [(701, TIP)]
    assert heights(mine["gaps"], "missing", "job_id") == [(600, 700, None, None)]


async def test_an_asset_that_was_listed_later_is_a_gap_of_an_address_too(service: Service) -> None:
    token = AssetId("eip155:1/erc20:0x" + "ab" * 20)
    async with transaction(service.owner) as connection:
        await add_followed_chain(connection)
        await watch_at(connection, service.tenant_id, 400)
        more = await ensure_reading(connection, ETHEREUM, Reading(("log", "native"), (NATIVE, token), 3), START)
        await extend_coverage(connection, ETHEREUM, [read(TIP + 1, TIP + 10, more)])
        listed = {"symbol": "TST", "decimals": 18, "kind": AssetKind.FUNGIBLE.value, "contract": b"\xab" * 20}
        await connection.execute(assets.insert().values(asset_id=token, chain_id=ETHEREUM, **listed))
        await set_tip(connection, TIP + 10)
    [mine] = (await covered(service, address=hex_of(ADDRESS)))["watches"]
    assert heights(mine["gaps"], "missing") == [(401, TIP, token)]


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ({}, "/chain"),
        ({"chain": "nowhere"}, "/chain"),
        ({"chain": "evm"}, "/chain"),
        ({"chain": "ethereum", "from": 5, "to": 4}, "/from"),
        ({"chain": "ethereum", "from": TIP + 1}, "/from"),
        ({"chain": "ethereum", "to": 0}, "/to"),
        ({"chain": "ethereum", "from": -1}, "/from"),
        ({"chain": "ethereum", "to": "x"}, "/to"),
        ({"chain": "ethereum", "address": "0x12"}, "/address"),
        ({"chain": "second"}, "/chain"),
    ],
)
async def test_what_is_no_question_of_coverage_is_refused(
    service: Service, query: dict[str, object], pointer: str
) -> None:
    async with transaction(service.owner) as connection:
        await add_followed_chain(connection)
        await add_chain(connection, ChainId("eip155:31338"), "second")
    answer = await service.ask("GET", "/v1/coverage", query=query)
    assert (answer.status, answer.json["code"]) == (422, "invalid_request")
    assert [one["pointer"] for one in answer.json["errors"]] == [pointer]
