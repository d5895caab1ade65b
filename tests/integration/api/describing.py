"""Calling an API by its own description: schemathesis, its checks, and what has to be there for it to find."""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from ledger.database import transaction
from ledger.ids import Side
from tests.integration.api.conftest import Service
from tests.integration.api.seeding import add_chain, add_entry, add_watch, confirm_entry

_ROOT = Path(__file__).parents[3]
_ENVIRONMENT = {**os.environ, "PYTHONPATH": str(_ROOT), "SCHEMATHESIS_HOOKS": "tests.integration.api.expectations"}


async def fill(service: Service) -> None:
    """Something of each kind: a chain, a watch, an endpoint, a deposit with its story and deliveries, a withdrawal, jobs."""
    now = datetime.now(UTC)
    endpoint = (await service.ask("POST", "/v1/endpoints", {"url": "https://merchant.example/webhooks"})).json["id"]
    async with transaction(service.owner) as connection:
        await add_chain(connection, tip=1000)
        watch = await add_watch(connection, service.tenant_id)
        entry = await add_entry(connection, service.tenant_id, watch, 1, now=now)
        await confirm_entry(connection, entry, now)
        await add_entry(connection, service.tenant_id, watch, 2, side=Side.WITHDRAWAL, now=now)
    await service.ask("POST", f"/v1/endpoints/{endpoint}/recover", {"since": "2026-01-01T00:00:00Z"})


async def call_everything(
    url: str, key: str, directory: Path, *which: str, examples: int, seed: int
) -> tuple[bool, str]:
    """Call the operations that the options `which` leave, with a key; whether each check held, and what was said of it."""
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"),
        # Ours stands for `positive_data_acceptance`, which would want every chain and cursor to be known.
        *(
            "--header",
            f"Authorization: Bearer {key}",
            "--checks",
            "all",
            "--exclude-checks",
            "positive_data_acceptance",
        ),
        *("--max-examples", str(examples), "--seed", str(seed), "--generation-database", "none", *which),
        *("--no-color", "--request-timeout", "60", "--suppress-health-check", "all"),
    ]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=directory, env=_ENVIRONMENT
    )
    output, _ = await process.communicate()
    return process.returncode == 0, output.decode()
