"""`chainbell recover`: deliver events of an endpoint once more, as a job that this command works on too."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from sqlalchemy.ext.asyncio import AsyncEngine

from chainbell.cli.context import Context, context_of, moment_given
from chainbell.errors import ChainbellError, UsageError
from chainbell.opening import open_database, open_engine
from ledger.audit import COMMAND_LINE, record_audit
from ledger.database import database_now, transaction
from ledger.endpoints import find_endpoint_owner
from ledger.holding import Task, start_task
from ledger.ids import EndpointId
from ledger.jobs import JobDocument, JobRow, cancel_job, find_job, job_document
from ledger.states import ENDED_STATES, JobState
from notifier.recovery import recover_once

WAIT_S = 0.2


class Only(StrEnum):
    """Which events."""

    FAILED = "failed"
    MISSING = "missing"
    ALL = "all"


def recover(
    context: typer.Context,
    endpoint: Annotated[str, typer.Option(help="Id of the endpoint.")],
    since: Annotated[str, typer.Option(help="First moment, such as 2026-11-01T00:00:00Z.")],
    until: Annotated[str | None, typer.Option(help="Last moment; now where it is left out.")] = None,
    only: Annotated[Only, typer.Option(help="What failed, what it never had a delivery of, or all.")] = Only.FAILED,
) -> None:
    """Deliver events to an endpoint once more, with the same ids and bytes. A running notifier sends them."""
    ours = context_of(context)
    first, last = moment_given("--since", since), None if until is None else moment_given("--until", until)
    if last is not None and first > last:
        raise UsageError(f"--since {since} is after --until {until}; swap them")
    asked = {"since": first.isoformat(), "until": last.isoformat() if last else None, "only": only.value}
    with open_database(ours.settings()) as url:
        document = asyncio.run(_recover(ours, url, EndpointId(endpoint), asked))
    if ours.wants_json:
        typer.echo(msgspec.json.encode(document).decode())
    else:
        sent = document.result.get("redelivered", 0)
        typer.echo(f"{document.done} events looked at, {sent} to be delivered once more ({document.state})")
    if document.state != JobState.DONE.value:
        raise ChainbellError(f"job {document.id} is {document.state}: {document.reason or 'it was stopped'}")


async def _recover(ours: Context, url: str, endpoint_id: EndpointId, asked: dict[str, str | None]) -> JobDocument:
    async with open_engine(ours.settings(), url, application="chainbell recover", pool_size=2) as engine:
        job = await _create(engine, endpoint_id, asked)
        try:
            job = await _follow(ours, engine, job)
        except asyncio.CancelledError:
            async with transaction(engine) as connection:
                await cancel_job(connection, job.tenant_id, job.id, await database_now(connection))
            raise
    return job_document(job, None)


async def _create(engine: AsyncEngine, endpoint_id: EndpointId, asked: dict[str, str | None]) -> JobRow:
    async with transaction(engine) as connection:
        owner = await find_endpoint_owner(connection, endpoint_id)
        if owner is None:
            raise UsageError(f"--endpoint {endpoint_id}: there is no such endpoint")
        now = await database_now(connection)
        job = await start_task(connection, owner, endpoint_id, Task.RECOVER, asked, now)
        detail = {"job": job.id, **asked}
        await record_audit(
            connection,
            tenant_id=owner,
            actor=COMMAND_LINE,
            action="endpoint.recovered",
            subject=endpoint_id,
            now=now,
            detail=detail,
        )
        return job


async def _follow(ours: Context, engine: AsyncEngine, job: JobRow) -> JobRow:
    """Work on jobs, as a notifier does, until this one has ended."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=ours.wants_json) as progress:
        task = progress.add_task("recovering", total=job.total)
        while job.state not in ENDED_STATES:
            await recover_once(engine)
            async with transaction(engine) as connection:
                found = await find_job(connection, job.tenant_id, job.id)
            if found is None:
                raise ChainbellError(f"job {job.id} is gone")
            job = found
            progress.update(task, completed=job.done, total=job.total)
            if job.reason is not None:
                await asyncio.sleep(WAIT_S)
    return job
