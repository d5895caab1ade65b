"""Jobs: long work that outlives a process. One mechanism for backfills, replays and recovery.

A job is a row. A process takes it by a lease and says how far it is in the transaction of each effect, comparing the
lease. So what a job did and what it says of it cannot differ; a process that dies is followed by another, which goes on
where that one stood; and one whose job was cancelled meanwhile finds out before it has any further effect. Leases are
judged by the database's clock. Jobs take turns: each is worked on for a while and then goes to the end of the line.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, Row, and_, func, or_, select, union_all, update
from sqlalchemy.ext.asyncio import AsyncConnection

from chains.model import ChainId
from ledger.documents import time_of
from ledger.errors import JobTaken
from ledger.ids import JobId, TenantId, new_id
from ledger.schema_jobs import jobs
from ledger.states import JobKind, JobState
from ledger.walks import in_text
from ledger.words import JobKindWord, JobWord, Time

LEASE = timedelta(seconds=60)
"""How long a process may be silent about a job before another one takes it over: several times as long as a step."""

_OPEN = (JobState.QUEUED.value, JobState.RUNNING.value)


@dataclass(frozen=True, slots=True)
class JobRow:
    """A job as its row stands. Columns are explained in `ledger/schema_jobs.py`."""

    tenant_id: TenantId
    id: JobId
    kind: JobKind
    state: JobState
    chain_id: ChainId | None
    request: Mapping[str, Any]
    cursor: Mapping[str, Any]
    done: int
    total: int | None
    covered_from: int | None
    result: Mapping[str, Any]
    reason: str | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    lease_token: str | None


class JobDocument(msgspec.Struct, frozen=True, tag_field="object", tag="job"):
    """Long work. `done` of `total` (null until it is known) counts blocks, or events or deliveries that were looked at;
    `result` is what it has come to so far. `reason` says why it failed, or what it waits for."""

    id: str
    kind: JobKindWord
    state: JobWord
    chain: str | None
    request: dict[str, Any]
    done: int
    total: int | None
    result: dict[str, Any]
    reason: str | None
    created_at: Time
    started_at: Time | None
    ended_at: Time | None


def job_document(job: JobRow, chain: str | None) -> JobDocument:
    """A job as JSON; `chain` is the slug of its chain."""
    return JobDocument(
        id=job.id,
        kind=job.kind.value,
        state=job.state.value,
        chain=chain,
        request=dict(job.request),
        done=job.done,
        total=job.total,
        result=dict(job.result),
        reason=job.reason,
        created_at=time_of(job.created_at),
        started_at=time_of(job.started_at) if job.started_at else None,
        ended_at=time_of(job.ended_at) if job.ended_at else None,
    )


_columns = [jobs.c[name] for name in JobRow.__slots__]


def _job_from(row: Row[Any]) -> JobRow:
    values = dict(row._mapping)
    return JobRow(**{**values, "kind": JobKind(values["kind"]), "state": JobState(values["state"])})


async def create_job(
    connection: AsyncConnection,
    *,
    tenant_id: TenantId,
    kind: JobKind,
    chain_id: ChainId | None,
    request: Mapping[str, Any],
    total: int | None,
    now: datetime,
    job_id: JobId | None = None,
    is_taken: bool = False,
) -> JobRow:
    """Make a job. With `is_taken` it is the caller's own from the start: nobody else works on it while its lease lasts."""
    taken = {"lease_token": secrets.token_hex(16), "leased_until": now + LEASE, "started_at": now} if is_taken else {}
    state = JobState.RUNNING if is_taken else JobState.QUEUED
    row = {
        "tenant_id": tenant_id,
        "id": job_id or new_job_id(now),
        "kind": kind.value,
        "state": state.value,
        "chain_id": chain_id,
        "request": dict(request),
        "total": total,
        "created_at": now,
        "turn_at": now,
        **taken,
    }
    return _job_from((await connection.execute(jobs.insert().values(row).returning(*_columns))).one())


def new_job_id(now: datetime) -> JobId:
    """A fresh id."""
    return JobId(new_id("job", now))


async def find_job(connection: AsyncConnection, tenant_id: TenantId, job_id: JobId) -> JobRow | None:
    """A job of the tenant."""
    statement = select(*_columns).where(jobs.c.tenant_id == tenant_id, jobs.c.id == job_id)
    row = (await connection.execute(statement)).first()
    return None if row is None else _job_from(row)


async def list_jobs(
    connection: AsyncConnection,
    tenant_id: TenantId,
    *,
    kind: JobKind | None = None,
    state: JobState | None = None,
    after: JobId | None = None,
    limit: int,
) -> list[JobRow]:
    """Jobs of the tenant, the newest first: ids are in the order of time. An index has those of one kind in one state in
    that order: of several, a page is taken from the first of each."""
    statement = select(*_columns).where(jobs.c.tenant_id == tenant_id)
    if after is not None:
        statement = statement.where(jobs.c.id < after)
    statement = statement.order_by(jobs.c.id.desc()).limit(limit)
    if kind is not None or state is not None:
        parts = [
            statement.where(jobs.c.kind == in_text(one.value), jobs.c.state == in_text(other.value))
            for one in ([kind] if kind is not None else JobKind)
            for other in ([state] if state is not None else JobState)
        ]
        found = union_all(*(select(part.subquery()) for part in parts)).subquery("found")
        statement = select(found).order_by(found.c.id.desc()).limit(limit)
    return [_job_from(row) for row in await connection.execute(statement)]


async def cancel_job(connection: AsyncConnection, tenant_id: TenantId, job_id: JobId, now: datetime) -> JobRow | None:
    """Stop a job that has not ended; what it did stays. Returns the job as it then is, None where there is none."""
    ended = {"state": JobState.CANCELLED.value, "ended_at": now, "lease_token": None, "leased_until": None}
    is_it = (jobs.c.tenant_id == tenant_id, jobs.c.id == job_id)
    await connection.execute(update(jobs).where(*is_it, jobs.c.state.in_(_OPEN)).values(ended))
    return await find_job(connection, tenant_id, job_id)


async def claim_job(
    connection: AsyncConnection, chain_ids: Collection[ChainId], settled_for: timedelta, now: datetime
) -> JobRow | None:
    """Take the job about one of these chains that has waited longest for its turn; None where there is none.

    One that was made less than `settled_for` ago is left for later: what is asked for just after it may still join it.
    One of the statements that cross tenants."""
    is_settled = or_(jobs.c.state == JobState.RUNNING.value, jobs.c.created_at <= now - settled_for)
    return await take_next(connection, and_(jobs.c.chain_id.in_(chain_ids), is_settled), now)


async def take_next(connection: AsyncConnection, condition: ColumnElement[bool], now: datetime) -> JobRow | None:
    """Take, of the jobs for which the condition holds and whose turn has come, the one that has waited longest."""
    waiting = (
        select(jobs.c.tenant_id, jobs.c.id)
        .where(
            condition,
            jobs.c.state.in_(_OPEN),
            jobs.c.turn_at <= now,
            or_(jobs.c.leased_until.is_(None), jobs.c.leased_until < now),
        )
        .order_by(jobs.c.turn_at, jobs.c.id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .cte("waiting")
    )
    taken = {
        "state": JobState.RUNNING.value,
        "lease_token": secrets.token_hex(16),
        "leased_until": now + LEASE,
        "started_at": func.coalesce(jobs.c.started_at, now),
    }
    statement = update(jobs).values(taken).where(jobs.c.tenant_id == waiting.c.tenant_id, jobs.c.id == waiting.c.id)
    row = (await connection.execute(statement.returning(*_columns))).first()
    return None if row is None else _job_from(row)


async def require_held(connection: AsyncConnection, job: JobRow) -> None:
    """Raise `JobTaken` when a job is not the caller's any more: before it writes what only the job's holder may."""
    statement = select(jobs.c.id).where(_is_held(job))
    if (await connection.execute(statement)).first() is None:
        raise JobTaken(f"job {job.id}: it was cancelled, or another process works on it")


def _is_held(job: JobRow) -> ColumnElement[bool]:
    return and_(
        jobs.c.tenant_id == job.tenant_id,
        jobs.c.id == job.id,
        jobs.c.state == JobState.RUNNING.value,
        jobs.c.lease_token == job.lease_token,
    )


async def progress_job(connection: AsyncConnection, job: JobRow, now: datetime, **values: Any) -> JobRow:  # noqa: ANN401
    """Write how far a job is (`cursor`, `done`, `total`, `covered_from`, `result`, `reason`), and go on holding it. Raises
    `JobTaken` when it is not the caller's any more: then its transaction must not be committed."""
    return await _write(connection, job, {**values, "leased_until": now + LEASE})


async def release_job(
    connection: AsyncConnection,
    job: JobRow,
    now: datetime,
    reason: str | None = None,
    pause: timedelta = timedelta(0),
) -> JobRow:
    """Give a job back: the others have their turn first, and it has none before the pause is over. `reason` says what it
    waits for. Raises `JobTaken`."""
    return await _write(
        connection, job, {"lease_token": None, "leased_until": None, "turn_at": now + pause, "reason": reason}
    )


async def end_job(
    connection: AsyncConnection, job: JobRow, state: JobState, now: datetime, reason: str | None = None
) -> JobRow:
    """End a job as `done` or `failed`. Raises `JobTaken`."""
    values = {"state": state.value, "reason": reason, "ended_at": now, "lease_token": None, "leased_until": None}
    return await _write(connection, job, values)


async def _write(connection: AsyncConnection, job: JobRow, values: Mapping[str, Any]) -> JobRow:
    statement = update(jobs).where(_is_held(job)).values(dict(values)).returning(*_columns)
    row = (await connection.execute(statement)).first()
    if row is None:
        raise JobTaken(f"job {job.id}: it was cancelled, or another process works on it")
    return _job_from(row)
