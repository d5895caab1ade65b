"""`chainbell recover`: deliver events once more, as a job that this command works on too."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from chainbell.cli.context import Context, context_of, moment_given
from chainbell.errors import ChainbellError, UsageError
from chainbell.opening import open_database, open_engine
from ledger.audit import COMMAND_LINE, record_audit
from ledger.database import Connection, Engine, database_now, transaction
from ledger.documents import time_of
from ledger.endpoints import find_endpoint_owner
from ledger.holding import Only, Task, start_task
from ledger.ids import EndpointId, TenantId
from ledger.jobs import JobDocument, JobRow, cancel_job, find_job, job_document
from ledger.recovery import find_event_owner, find_story_owner
from ledger.states import ENDED_STATES, JobState
from notifier.recovery import PAUSE_S, recover_once

WAIT_S = 0.2
"""Between two looks at a job that another process works on, or that waits."""


@dataclass(frozen=True, slots=True)
class Order:
    """What to deliver once more, and to whom: to each endpoint of the owner where none is named."""

    endpoint_id: EndpointId | None
    event_id: str | None
    entry_id: str | None
    asked: dict[str, str | None]
    """The rest of the job's request."""


def recover(
    context: typer.Context,
    endpoint: Annotated[str | None, typer.Option(help="Id of the endpoint; needed with --since.")] = None,
    since: Annotated[str | None, typer.Option(help="First moment, such as 2026-11-01T00:00:00Z.")] = None,
    until: Annotated[str | None, typer.Option(help="Last moment; now where it is left out.")] = None,
    event: Annotated[str | None, typer.Option(help="Id of one event.")] = None,
    entry: Annotated[str | None, typer.Option(help="Id of a deposit or withdrawal: all of its events.")] = None,
    only: Annotated[
        Only | None,
        typer.Option(help="What failed (default with --since), what was never sent, or all (default otherwise)."),
    ] = None,
) -> None:
    """Deliver events once more, with the same ids and bytes: of a range of time, of a deposit or withdrawal, or one alone.
    A running notifier sends them."""
    ours = context_of(context)
    order = _read_order(endpoint, since, until, event, entry, only)
    with open_database(ours.settings()) as url:
        document = asyncio.run(_recover(ours, url, order))
    if ours.wants_json:
        typer.echo(msgspec.json.encode(document).decode())
    else:
        sent = document.result.get("redelivered", 0)
        typer.echo(f"{document.done} events looked at, {sent} to be delivered once more ({document.state})")
    if document.state != JobState.DONE.value:
        raise ChainbellError(f"job {document.id} is {document.state}: {document.reason or 'it was stopped'}")


def _read_order(
    endpoint: str | None, since: str | None, until: str | None, event: str | None, entry: str | None, only: Only | None
) -> Order:
    if [since, event, entry].count(None) != 2:
        raise UsageError("name one of --since, --event and --entry: what is to be delivered once more")
    endpoint_id = None if endpoint is None else EndpointId(endpoint)
    if since is None:
        if until is not None:
            raise UsageError("--until belongs to --since")
        what = {"event_id": event} if entry is None else {"entry_id": entry}
        return Order(endpoint_id, event, entry, {**what, "only": (only or Only.ALL).value})
    if endpoint_id is None:
        raise UsageError("--since needs an --endpoint")
    first, last = moment_given("--since", since), None if until is None else moment_given("--until", until)
    if last is not None and first > last:
        raise UsageError(f"--since {since} is after --until {until}; swap them")
    asked = {"since": time_of(first), "until": time_of(last) if last else None}
    return Order(endpoint_id, None, None, {**asked, "only": (only or Only.FAILED).value})


async def _recover(ours: Context, url: str, order: Order) -> JobDocument:
    async with open_engine(ours.settings(), url, application="chainbell recover", pool_size=2) as engine:
        job = await _create(engine, order)
        try:
            job = await _follow(ours, engine, job)
        except asyncio.CancelledError:
            async with transaction(engine) as connection:
                await cancel_job(connection, job.tenant_id, job.id, await database_now(connection))
            raise
    return job_document(job, None)


async def _create(engine: Engine, order: Order) -> JobRow:
    async with transaction(engine) as connection:
        owner = await _find_owner(connection, order)
        now = await database_now(connection)
        job = await start_task(connection, owner, order.endpoint_id, Task.RECOVER, order.asked, now)
        what = "event" if order.event_id else "entry" if order.entry_id else "endpoint"
        await record_audit(
            connection,
            tenant_id=owner,
            actor=COMMAND_LINE,
            action=f"{what}.recovered",
            subject=order.event_id or order.entry_id or str(order.endpoint_id),
            now=now,
            detail={"job": job.id, "endpoint": order.endpoint_id, **order.asked},
        )
        return job


async def _find_owner(connection: Connection, order: Order) -> TenantId:
    """Whose they are: all that is named has to be one tenant's."""
    owners: dict[str, TenantId | None] = {}
    if order.endpoint_id is not None:
        owners[f"--endpoint {order.endpoint_id}"] = await find_endpoint_owner(connection, order.endpoint_id)
    if order.event_id is not None:
        owners[f"--event {order.event_id}"] = await find_event_owner(connection, order.event_id)
    if order.entry_id is not None:
        owners[f"--entry {order.entry_id}"] = await find_story_owner(connection, order.entry_id)
    for named, owner in owners.items():
        if owner is None:
            raise UsageError(f"{named}: there is no such {named[2:].split()[0]}")
    first, *others = {owner for owner in owners.values() if owner is not None}
    if others:
        raise UsageError(f"{' and '.join(owners)} belong to different tenants")
    return first


async def _follow(ours: Context, engine: Engine, job: JobRow) -> JobRow:
    """Work on jobs, as a notifier does, until this one has ended."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=ours.wants_json) as progress:
        task = progress.add_task("recovering", total=job.total)
        while job.state not in ENDED_STATES:
            has_worked = await recover_once(engine)
            async with transaction(engine) as connection:
                found = await find_job(connection, job.tenant_id, job.id)
            if found is None:
                raise ChainbellError(f"job {job.id} is gone")
            job = found
            progress.update(task, completed=job.done, total=job.total)
            await asyncio.sleep(PAUSE_S if has_worked else WAIT_S)
    return job
