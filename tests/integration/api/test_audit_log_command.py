"""The command `audit-log`, run as an operator would."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from ledger.database import transaction
from ledger.keys import create_key, revoke_key
from tests.integration.api.conftest import MASTER_KEY, Service

ROOT = Path(__file__).resolve().parents[3]


async def audit_log(database_url: str, cwd: Path, *arguments: str) -> list[Any]:
    """The lines that the command prints."""
    (cwd / "chainbell.toml").write_text(f"[database]\nurl = {json.dumps(database_url)}\n")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "chainbell", "--json", "audit-log", *arguments),
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CHAINBELL_MASTER_KEY": base64.b64encode(MASTER_KEY).decode()},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    return [json.loads(line) for line in out.decode().splitlines()]


async def test_who_changed_what_is_read_without_sql_and_a_new_key_is_told_by_what_it_may_do(
    service: Service, database_url: str, tmp_path: Path
) -> None:
    now, end = datetime(2026, 11, 1, tzinfo=UTC), datetime(2027, 11, 1, tzinfo=UTC)
    networks = [ip_network("203.0.113.0/24")]
    async with transaction(service.owner) as connection:
        key_id, key = await create_key(
            connection, service.tenant_id, ["watches:read"], now, expires_at=end, networks=networks
        )
        await revoke_key(connection, key_id, now + timedelta(hours=1))
    made, revoked = await audit_log(database_url, tmp_path, "--subject", key_id)
    assert made | {"actor": "command line", "action": "key.created", "tenant": service.tenant_id} == made
    assert made["detail"] == {
        "scopes": ["watches:read"],
        "expires_at": "2027-11-01T00:00:00Z",
        "networks": ["203.0.113.0/24"],
    }
    assert (revoked["action"], revoked["created_at"]) == ("key.revoked", "2026-11-01T01:00:00Z")
    assert key[-50:] not in json.dumps(made)
    [newest] = await audit_log(database_url, tmp_path, "--tenant", "acme", "--limit", "1")
    assert newest["tenant"] == service.tenant_id
