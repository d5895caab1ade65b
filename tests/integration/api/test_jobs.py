"""Jobs over the API: a tenant's backfills, the operator's replays, and how they are stopped."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select

from chains.model import hex_of
from ledger.database import database_now, transaction
from ledger.ids import OPS_TENANT
from ledger.jobs import claim_job, end_job, progress_job
from ledger.schema_access import audit_log
from ledger.schema_jobs import jobs
from ledger.states import JobState
from tests.integration.api.conftest import Service
from tests.integration.api.seeding import ADDRESS, ETHEREUM, add_chain

TIP = 1000
REPLAY = {"chain": "ethereum", "from": 10, "to": 20}


@pytest.fixture
async def ops(service: Service) -> str:
    """An operator's key, over a chain that is followed from 1 to its tip."""
    async with transaction(service.owner) as connection:
        await add_chain(connection, tip=TIP)
    return await service.make_key("replays:write", tenant_id=OPS_TENANT)


async def audited(service: Service, subject: str) -> list[tuple[str, str]]:
    async with transaction(service.owner) as connection:
        lines = select(audit_log.c.action, audit_log.c.tenant_id).where(audit_log.c.subject == subject)
        return [(row.action, row.tenant_id) for row in await connection.execute(lines)]


async def work(service: Service, done: int, state: JobState | None = None, reason: str | None = None) -> None:
    """What the process does that takes the one job there is."""
    async with transaction(service.owner) as connection:
        now = await database_now(connection)
        job = await claim_job(connection, [ETHEREUM], timedelta(0), now)
        assert job is not None
        job = await progress_job(connection, job, now, done=done, result={"missing": 1})
        if state is not None:
            await end_job(connection, job, state, now, reason)


async def backfill_of(service: Service) -> str:
    """The job of a watch that asks for its past."""
    row = {"chain": "ethereum", "address": hex_of(ADDRESS), "start_height": 900}
    answer = await service.ask("POST", "/v1/watches", {"watches": [row]})
    job_id: str = answer.json["data"][0]["backfill_job_id"]
    return job_id


async def test_a_replay_is_a_job_of_the_operators(service: Service, ops: str) -> None:
    asked = {**REPLAY, "chain": ETHEREUM, "address": hex_of(ADDRESS), "dry_run": True}
    answer = await service.ask("POST", "/v1/replays", asked, key=ops)
    assert answer.status == 202
    job = answer.json
    assert (job["object"], job["kind"], job["state"], job["chain"]) == ("job", "replay", "queued", "ethereum")
    assert (job["done"], job["total"], job["result"]) == (0, 11, {})
    assert job["request"] == {"from": 10, "to": 20, "address": hex_of(ADDRESS), "dry_run": True}
    assert (await service.ask("GET", f"/v1/jobs/{job['id']}", key=ops)).json == job
    assert await audited(service, job["id"]) == [("replay.created", OPS_TENANT)]
    await work(service, 11, JobState.DONE)
    told = (await service.ask("GET", f"/v1/jobs/{job['id']}", key=ops)).json
    assert (told["state"], told["done"], told["result"]) == ("done", 11, {"missing": 1})
    assert told["ended_at"] is not None


async def test_a_repeated_replay_with_its_idempotency_key_is_one_job(service: Service, ops: str) -> None:
    headers = {"Idempotency-Key": "again"}
    first, second = [await service.ask("POST", "/v1/replays", REPLAY, key=ops, headers=headers) for _ in range(2)]
    assert (first.status, second.status) == (202, 202)
    assert first.json == second.json
    async with transaction(service.owner) as connection:
        assert len((await connection.execute(select(jobs.c.id))).all()) == 1


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"chain": "nowhere"}, "/chain"),
        ({"from": 21}, "/from"),
        ({"from": -1}, "/from"),
        ({"from": 0}, "/from"),
        ({"to": TIP + 1}, "/to"),
        ({"to": "20"}, "/to"),
        ({"address": "0x12"}, "/address"),
        ({"dry_run": "yes"}, "/dry_run"),
        ({"sample": 1}, "/sample"),
    ],
)
async def test_a_replay_of_what_nobody_has_read_is_refused(
    service: Service, ops: str, change: dict[str, Any], pointer: str
) -> None:
    answer = await service.ask("POST", "/v1/replays", {**REPLAY, **change}, key=ops)
    assert (answer.status, answer.json["code"]) == (422, "invalid_request")
    assert [one["pointer"] for one in answer.json["errors"]] == [pointer]
    async with transaction(service.owner) as connection:
        assert (await connection.execute(select(jobs.c.id))).all() == []


@pytest.mark.usefixtures("ops")
async def test_a_tenant_reads_its_backfill_and_nobody_elses(service: Service) -> None:
    job_id = await backfill_of(service)
    reading = await service.make_key("watches:read")
    await work(service, 40)
    job = (await service.ask("GET", f"/v1/jobs/{job_id}", key=reading)).json
    assert (job["kind"], job["state"], job["done"], job["total"]) == ("backfill", "running", 40, 101)
    _, other_key = await service.make_tenant("other")
    for key in (other_key, await service.make_key("*", tenant_id=OPS_TENANT)):
        for method, path in (("GET", f"/v1/jobs/{job_id}"), ("POST", f"/v1/jobs/{job_id}/cancel")):
            answer = await service.ask(method, path, key=key)
            assert (answer.status, answer.json["code"]) == (404, "not_found")
    assert (await service.ask("POST", f"/v1/jobs/{job_id}/cancel", key=reading)).json["code"] == "missing_scope"
    assert (await service.ask("GET", f"/v1/jobs/{job_id}")).json["state"] == "running"


async def test_the_operators_job_is_not_a_tenants(service: Service, ops: str) -> None:
    job_id = (await service.ask("POST", "/v1/replays", REPLAY, key=ops)).json["id"]
    assert (await service.ask("GET", f"/v1/jobs/{job_id}")).status == 404
    assert (await service.ask("POST", f"/v1/jobs/{job_id}/cancel")).status == 404
    assert (await service.ask("POST", f"/v1/jobs/{job_id}/cancel", key=ops)).json["state"] == "cancelled"


@pytest.mark.usefixtures("ops")
async def test_a_cancelled_job_stays_so_however_often_it_is_cancelled(service: Service) -> None:
    job_id = await backfill_of(service)
    await work(service, 40)
    answers = [await service.ask("POST", f"/v1/jobs/{job_id}/cancel") for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 200]
    assert answers[0].json == answers[1].json
    assert (answers[0].json["state"], answers[0].json["done"]) == ("cancelled", 40)
    assert await audited(service, job_id) == [("job.cancelled", service.tenant_id)]


@pytest.mark.usefixtures("ops")
@pytest.mark.parametrize(("state", "reason"), [(JobState.DONE, None), (JobState.FAILED, "no node has block 950")])
async def test_a_job_that_has_ended_is_not_cancelled(service: Service, state: JobState, reason: str | None) -> None:
    job_id = await backfill_of(service)
    await work(service, 101, state, reason)
    answer = await service.ask("POST", f"/v1/jobs/{job_id}/cancel")
    assert (answer.status, answer.json["code"]) == (409, "job_ended")
    told = (await service.ask("GET", f"/v1/jobs/{job_id}")).json
    assert (told["state"], told["reason"]) == (state, reason)
    assert await audited(service, job_id) == []


async def test_a_job_whose_answer_got_lost_is_found_in_the_list(service: Service, ops: str) -> None:
    made = [(await service.ask("POST", "/v1/replays", REPLAY, key=ops)).json for _ in range(5)]
    await service.ask("POST", f"/v1/jobs/{made[1]['id']}/cancel", key=ops)
    newest = sorted((job["id"] for job in made), reverse=True)  # ids of one millisecond are in no order
    page = (await service.ask("GET", "/v1/jobs?limit=3", key=ops)).json
    rest = (await service.ask("GET", "/v1/jobs", query={"limit": 3, "cursor": page["next_cursor"]}, key=ops)).json
    assert [job["id"] for job in (*page["data"], *rest["data"])] == newest
    assert (rest["next_cursor"], rest["data"][0]["chain"], rest["data"][0]["request"]["to"]) == (None, "ethereum", 20)
    for query, found in (
        ({"state": "cancelled"}, [made[1]["id"]]),
        ({"kind": "backfill"}, []),
        ({"kind": "replay", "state": "queued"}, [job for job in newest if job != made[1]["id"]]),
    ):
        answer = await service.ask("GET", "/v1/jobs", query=query, key=ops)
        assert [job["id"] for job in answer.json["data"]] == found
    assert (await service.ask("GET", "/v1/jobs")).json == {"data": [], "next_cursor": None}
    job_id = await backfill_of(service)
    assert [job["id"] for job in (await service.ask("GET", "/v1/jobs")).json["data"]] == [job_id]
    assert (await service.ask("GET", "/v1/jobs?kind=hold")).json["errors"][0]["pointer"] == "/kind"
