"""`chainbell tenants` and `chainbell keys`: who may use this installation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Annotated, TypeVar

import typer
from sqlalchemy.ext.asyncio import AsyncConnection

from chainbell.cli.context import Context, context_of
from chainbell.opening import open_database, open_engine
from ledger.audit import COMMAND_LINE
from ledger.database import database_now, transaction
from ledger.documents import time_of
from ledger.ids import KeyId
from ledger.keys import create_key, list_keys, read_network, revoke_key
from ledger.tenants import create_tenant, find_tenant, list_tenants

tenants = typer.Typer(help="Payment companies that use this installation.", no_args_is_help=True)
keys = typer.Typer(help="Bearer keys of the REST API.", no_args_is_help=True)

T = TypeVar("T")


def in_transaction(ours: Context, work: Callable[[AsyncConnection], Awaitable[T]]) -> T:
    """Do something in one transaction on the configured database."""

    async def _run() -> T:
        settings = ours.settings()
        with open_database(settings) as url:
            opened = open_engine(settings, url, application="chainbell", pool_size=1)
            async with opened as engine, transaction(engine) as connection:
                return await work(connection)

    return asyncio.run(_run())


@tenants.command("create")
def create(context: typer.Context, name: Annotated[str, typer.Argument(help="A name of its own, e.g. acme.")]) -> None:
    """Make a tenant and print its id."""

    async def _work(connection: AsyncConnection) -> str:
        return await create_tenant(connection, name, await database_now(connection))

    ours = context_of(context)
    tenant_id = in_transaction(ours, _work)
    ours.print_object({"id": tenant_id, "name": name}, f"{tenant_id}  {name}")


@tenants.command("list")
def list_all(context: typer.Context) -> None:
    """List every tenant."""
    ours = context_of(context)
    rows = in_transaction(ours, list_tenants)
    ours.print_rows(
        [{"id": row.id, "name": row.name, "created_at": time_of(row.created_at)} for row in rows],
        ("id", "name", "created_at"),
    )


@keys.command("create")
def create_one(
    context: typer.Context,
    tenant: Annotated[str, typer.Option(help="Name or id of the tenant; `ops` for an operator's key.")],
    scope: Annotated[list[str], typer.Option(help="What it may do, e.g. watches:write; may be repeated.")],
    network: Annotated[
        list[str] | None,
        typer.Option(help="From where it may be used, e.g. 203.0.113.0/24; may be repeated; from anywhere by default."),
    ] = None,
    expires_in_days: Annotated[
        int | None, typer.Option(min=1, max=36_500, help="When it ends by itself; never by default.")
    ] = None,
) -> None:
    """Make a key and print it. It is shown this once."""
    networks = [read_network(each) for each in network or []]

    async def _work(connection: AsyncConnection) -> tuple[str, str, str, datetime | None]:
        found, now = await find_tenant(connection, tenant), await database_now(connection)
        expires_at = now + timedelta(days=expires_in_days) if expires_in_days else None
        key_id, key = await create_key(
            connection, found.id, tuple(scope), now, expires_at=expires_at, networks=networks, actor=COMMAND_LINE
        )
        return key_id, key, found.id, expires_at

    ours = context_of(context)
    key_id, key, tenant_id, expires_at = in_transaction(ours, _work)
    row = {
        "id": key_id,
        "key": key,
        "tenant": tenant_id,
        "scopes": list(scope),
        "networks": [str(each) for each in networks] or None,
        "expires_at": time_of(expires_at) if expires_at else None,
    }
    ours.print_object(row, f"{key}\nkeep it now: it is not shown again (id {key_id})")


@keys.command("list")
def list_keys_of(
    context: typer.Context,
    tenant: Annotated[str | None, typer.Option(help="Name or id of a tenant; all by default.")] = None,
) -> None:
    """List keys, without their secrets."""

    async def _work(connection: AsyncConnection) -> list[dict[str, object]]:
        tenant_id = (await find_tenant(connection, tenant)).id if tenant else None
        return [
            {
                "id": key.id,
                "tenant": key.tenant_id,
                "scopes": list(key.scopes),
                "networks": [str(each) for each in key.networks] if key.networks is not None else None,
                "created_at": time_of(key.created_at),
                "expires_at": time_of(key.expires_at) if key.expires_at else None,
                "last_used_at": time_of(key.last_used_at) if key.last_used_at else None,
                "revoked_at": time_of(key.revoked_at) if key.revoked_at else None,
            }
            for key in await list_keys(connection, tenant_id)
        ]

    ours = context_of(context)
    columns = ("id", "tenant", "scopes", "networks", "created_at", "expires_at", "last_used_at", "revoked_at")
    ours.print_rows(in_transaction(ours, _work), columns)


@keys.command("revoke")
def revoke(context: typer.Context, key_id: Annotated[str, typer.Argument(help="The id inside the key.")]) -> None:
    """Revoke a key at once."""

    async def _work(connection: AsyncConnection) -> None:
        await revoke_key(connection, KeyId(key_id), await database_now(connection))

    ours = context_of(context)
    in_transaction(ours, _work)
    ours.print_object({"id": key_id, "revoked": True}, f"{key_id} is revoked")
