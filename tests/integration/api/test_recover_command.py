"""The command `recover`, run as an operator would over the API's database."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from pathlib import Path

from ledger.database import database_now, transaction
from ledger.events import record_event
from ledger.ids import OPS_TENANT
from tests.integration.api.conftest import MASTER_KEY, Service
from tests.integration.api.telling import create, execute, states, tell

ROOT = Path(__file__).resolve().parents[3]


async def recover(database_url: str, cwd: Path, *arguments: str) -> tuple[int | None, str, str]:
    """Exit status, output and errors of the command."""
    (cwd / "chainbell.toml").write_text(f"[database]\nurl = {json.dumps(database_url)}\n")
    key = base64.b64encode(MASTER_KEY).decode()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "chainbell", "--json", "recover", *arguments),
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CHAINBELL_MASTER_KEY": key},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await process.communicate()
    return process.returncode, out.decode(), errors.decode()


async def test_the_command_recovers_what_an_endpoint_never_had(
    service: Service, database_url: str, tmp_path: Path
) -> None:
    async with transaction(service.owner) as connection:
        await record_event(
            connection,
            tenant_id=service.tenant_id,
            event_type="watch.activated",
            subject="wat_1",
            data={"id": "wat_1"},
            livemode=False,
            now=await database_now(connection),
        )
    endpoint = (await service.ask("POST", "/v1/endpoints", {"url": "https://merchant.example/"})).json["id"]
    since = ("--since", "2026-01-01T00:00:00Z")
    done = await recover(database_url, tmp_path, "--endpoint", endpoint, *since, "--only", "missing")
    assert done[0] == 0, done
    job = json.loads(done[1])
    assert (job["state"], job["done"], job["total"], job["result"]) == ("done", 1, 1, {"redelivered": 1})
    [delivery] = (await service.ask("GET", "/v1/deliveries")).json["data"]
    assert (delivery["endpoint_id"], delivery["state"]) == (endpoint, "pending")
    status, _, errors = await recover(database_url, tmp_path, "--endpoint", "ep_none", *since)
    assert (status, errors) == (2, "chainbell: --endpoint ep_none: there is no such endpoint\n")
    status, _, errors = await recover(database_url, tmp_path, "--endpoint", endpoint, "--since", "yesterday")
    assert status == 2
    assert "is not a time" in errors


async def test_the_command_recovers_one_event_and_one_deposits_events(
    service: Service, database_url: str, tmp_path: Path
) -> None:
    await create(service)
    event, _ = await tell(service, "dep_1", "dep_1")
    await execute(service, "UPDATE deliveries SET state = 'delivered', settled_at = now()")
    for arguments, number in ((("--event", event), 1), (("--entry", "dep_1", "--only", "all"), 1)):
        status, out, errors = await recover(database_url, tmp_path, *arguments)
        assert status == 0, errors
        assert json.loads(out)["result"] == {"redelivered": number}  # the first of the two is still owed
    assert await states(service) == {"delivered": 2, "pending": 2}


async def test_the_command_takes_what_is_one_tenants(service: Service, database_url: str, tmp_path: Path) -> None:
    await service.make_tenant("other")
    endpoint = await create(service)
    async with transaction(service.owner) as connection:
        event = await record_event(
            connection,
            tenant_id=OPS_TENANT,
            event_type="test.ping",
            subject="ep_1",
            data={},
            livemode=False,
            now=await database_now(connection),
        )
    status, _, errors = await recover(database_url, tmp_path, "--event", event, "--endpoint", endpoint)
    assert status == 2
    assert "belong to different tenants" in errors
