"""`/v1/jobs` and `/v1/replays`: long work, how far it is, and the work that an operator asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from api.auditing import audit
from api.inputs import AddressText, ChainName, Height, NoFields, address_given, chain_named
from api.paging import Page, PageQuery, cursor_at, place_after
from api.problems import Code, Refused, invalid, not_found
from api.routes import Call, Route
from api.withholding import without_words
from ledger.chains import list_chains
from ledger.errors import NoSuchHeights
from ledger.holding import Task
from ledger.ids import JobId
from ledger.jobs import JobDocument, JobRow, cancel_job, find_job, job_document, list_jobs
from ledger.replays import NewReplay, create_replay
from ledger.states import ENDED_STATES, JobKind, JobState

_LIST = "jobs"


class JobQuery(PageQuery, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which jobs; all that are given must fit."""

    kind: JobKind | None = None
    state: JobState | None = None


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


async def list_my_jobs(call: Call[JobQuery, None]) -> Page[JobDocument]:
    """List jobs

    The newest first: the way to a job whose id was in an answer that got lost."""
    query = call.query
    after = place_after(call, _LIST, query.cursor)
    rows = await list_jobs(
        call.connection,
        call.tenant_id,
        kind=query.kind,
        state=query.state,
        after=JobId(str(after[0])) if after else None,
        limit=query.limit + 1,
    )
    page = rows[: query.limit]
    following = cursor_at(call, _LIST, (page[-1].id,)) if len(rows) > query.limit else None
    return Page(await _described(call, page), following)


async def get_job(call: Call[None, None]) -> JobDocument:
    """Get a job

    A backfill of your watches by its `backfill_job_id`, and what recovers your deliveries; for the
    operator also replays, and backfills of listed assets."""
    return await _found(call, await find_job(call.connection, call.tenant_id, JobId(call.path["id"])))


async def cancel_my_job(call: Call[None, NoFields]) -> JobDocument:
    """Cancel a job

    What it did stays, and it does nothing more. A cancelled backfill leaves its watches covered from where it stood. A job
    that was cancelled before is answered as it is; one that is done or has failed is refused. So is one of a pause, a
    resumption or a deletion: half of an endpoint's deliveries would be left behind, and what comes after them would wait."""
    asked = await find_job(call.connection, call.tenant_id, JobId(call.path["id"]))
    if asked is not None and asked.state not in ENDED_STATES and asked.request.get("task") in _NEEDED:
        raise Refused(Code.JOB_NEEDED, _WHY_NEEDED)
    job = await cancel_job(call.connection, call.tenant_id, JobId(call.path["id"]), call.now)
    if job is not None and job.state is not JobState.CANCELLED:
        raise Refused(Code.JOB_ENDED, f"the job has ended: it is {job.state}; there is nothing left to cancel")
    if job is not None and job.ended_at == call.now:
        await audit(call, "job.cancelled", job.id)
    return await _found(call, job)


async def _found(call: Call[Any, Any], job: JobRow | None) -> JobDocument:
    if job is None:
        raise not_found("job")
    [described] = await _described(call, [job])
    return described


async def _described(call: Call[Any, Any], rows: Sequence[JobRow]) -> list[JobDocument]:
    chains = await list_chains(call.connection)
    slugs = {chain.chain_id: chain.slug for chain in chains}
    nodes = [node for chain in chains for node in chain.nodes]
    documents = [job_document(row, None if row.chain_id is None else slugs[row.chain_id]) for row in rows]
    return [
        document
        if document.reason is None or call.may_see_nodes
        else msgspec.structs.replace(document, reason=without_words(document.reason, nodes))
        for row, document in zip(rows, documents, strict=True)
    ]


_NEEDED = frozenset({Task.HOLD, Task.RELEASE, Task.DISCARD})
_WHY_NEEDED = (
    "this job does what a pause, a resumption or a deletion of an endpoint left to do; pause or resume the endpoint, which"
    " ends it"
)

_OTHER_SCOPES = ("replays:write", "endpoints:write")
"""Who may ask for a job may look at jobs."""

ROUTES = (
    Route("POST", "/v1/replays", "replays:write", create_my_replay, status=202, is_operators=True),
    Route("GET", "/v1/jobs", "watches:read", list_my_jobs, other_scopes=_OTHER_SCOPES),
    Route("GET", "/v1/jobs/{id}", "watches:read", get_job, other_scopes=_OTHER_SCOPES),
    Route(
        "POST",
        "/v1/jobs/{id}/cancel",
        "watches:write",
        cancel_my_job,
        problems=(Code.JOB_ENDED, Code.JOB_NEEDED),
        other_scopes=_OTHER_SCOPES,
    ),
)
