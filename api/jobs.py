"""`/v1/jobs` and `/v1/replays`: long work, how far it is, and the work that an operator asks for."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from api.auditing import audit
from api.inputs import AddressText, ChainName, Height, address_given, chain_named
from api.problems import Code, Refused, invalid, not_found
from api.routes import Call, Route
from ledger.chains import list_chains
from ledger.database import Connection
from ledger.errors import NoSuchHeights
from ledger.ids import JobId
from ledger.jobs import JobDocument, JobRow, cancel_job, find_job, job_document
from ledger.replays import NewReplay, create_replay
from ledger.states import JobState


class ReplayInput(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    rename={"from_height": "from", "to_height": "to"},
):
    """Which blocks to read again."""

    chain: ChainName
    from_height: Annotated[Height, Meta(description="First height")]
    to_height: Annotated[Height, Meta(description="Last height, included; at most our tip")]
    address: Annotated[AddressText | None, Meta(description="Only what concerns this address")] = None
    dry_run: Annotated[bool, Meta(description="Only compare; `result` shows what differs")] = False


async def create_my_replay(call: Call[None, ReplayInput]) -> JobDocument:
    """Replay blocks

    Reads blocks again, proves them, and brings the ledger to what they say, as a job; the checkpoint never moves. A dry run
    changes nothing. `result` of the job counts what was missing, extra and changed. It fails where no node can prove the
    blocks."""
    asked = call.body
    chain = chain_named(await list_chains(call.connection), asked.chain, "/chain")
    address = None if asked.address is None else address_given(asked.address, "/address")
    replay = NewReplay(asked.from_height, asked.to_height, address, asked.dry_run)
    try:
        job = await create_replay(call.connection, chain, replay, call.now)
    except NoSuchHeights as error:
        raise invalid(f"/{error.part}", str(error)) from None
    await audit(call, "replay.created", job.id, **job.request)
    return job_document(job, chain.slug)


async def get_job(call: Call[None, None]) -> JobDocument:
    """Get a job

    A backfill of your watches by its `backfill_job_id`, and what recovers your deliveries; for the
    operator also replays, and backfills of listed assets."""
    return await _described(call.connection, await find_job(call.connection, call.tenant_id, JobId(call.path["id"])))


async def cancel_my_job(call: Call[None, None]) -> JobDocument:
    """Cancel a job

    What it did stays, and it does nothing more. A cancelled backfill leaves its watches covered from where it stood. A job
    that was cancelled before is answered as it is; one that is done or has failed is refused."""
    job = await cancel_job(call.connection, call.tenant_id, JobId(call.path["id"]), call.now)
    if job is not None and job.state is not JobState.CANCELLED:
        raise Refused(Code.JOB_ENDED, f"the job has ended: it is {job.state}; there is nothing left to cancel")
    if job is not None and job.ended_at == call.now:
        await audit(call, "job.cancelled", job.id)
    return await _described(call.connection, job)


async def _described(connection: Connection, job: JobRow | None) -> JobDocument:
    if job is None:
        raise not_found("job")
    slugs = {chain.chain_id: chain.slug for chain in await list_chains(connection)}
    return job_document(job, None if job.chain_id is None else slugs[job.chain_id])


ROUTES = (
    Route("POST", "/v1/replays", "replays:write", create_my_replay, status=202, is_operators=True),
    Route("GET", "/v1/jobs/{id}", "watches:read", get_job, other_scopes=("replays:write", "endpoints:write")),
    Route(
        "POST",
        "/v1/jobs/{id}/cancel",
        "watches:write",
        cancel_my_job,
        problems=(Code.JOB_ENDED,),
        other_scopes=("replays:write", "endpoints:write"),
    ),
)
