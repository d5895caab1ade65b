"""The API against its own description: schemathesis calls every operation with what its schema allows and forbids."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime
from pathlib import Path

from ledger.database import transaction
from ledger.ids import OPS_TENANT
from tests.integration.api.conftest import Service
from tests.integration.api.seeding import add_chain, add_entry, add_watch, confirm_entry

CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,unsupported_method,ignored_auth"
)
EXAMPLES = 12
SEED = 7


async def test_no_request_of_schemathesis_is_answered_against_the_description(service: Service, tmp_path: Path) -> None:
    async with transaction(service.owner) as connection:
        await add_chain(connection, tip=1000)
        watch = await add_watch(connection, service.tenant_id)
        entry = await add_entry(connection, service.tenant_id, watch, 1, now=datetime.now(UTC))
        await confirm_entry(connection, entry, datetime.now(UTC))
    await call_everything(service, service.key, tmp_path, "--exclude-path-regex", "^/(metrics|openapi)")
    operators = await service.make_key("*", tenant_id=OPS_TENANT)
    await call_everything(service, operators, tmp_path, "--include-path-regex", "^/v1/(replays|jobs)")


async def call_everything(service: Service, key: str, tmp_path: Path, *which: str) -> None:
    """One run of schemathesis with a key."""
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{service.url}/openapi.json"),
        *("--header", f"Authorization: Bearer {key}"),
        *("--checks", CHECKS, "--max-examples", str(EXAMPLES), "--seed", str(SEED)),
        *("--phases", "examples,coverage,fuzzing", *which),
        *("--generation-database", "none", "--no-color", "--request-timeout", "40"),
    ]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=tmp_path
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()[-8000:]
