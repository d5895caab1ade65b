"""A public generator makes a typed client from `/openapi.json` without a warning, and a payments backend can live on it."""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

from ledger.database import transaction
from tests.integration.api.conftest import Service
from tests.integration.api.seeding import add_chain, add_entry, add_watch, confirm_entry

TOOLS = Path(sys.prefix) / "generator" / "bin"
"""An environment of its own, made by `make test`: the generator's requirements contradict ours."""
SCRIPT = Path(__file__).with_name("using_client.py")
DEPOSITS = 16
"""More than two pages of the script, and the last one is not full."""


async def run(directory: Path, *command: str | Path) -> str:
    """Run a command to its end; what it prints."""
    assert TOOLS.exists(), "the generator is not installed; run: make test"
    process = await asyncio.create_subprocess_exec(
        *map(str, command), cwd=directory, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    output, complaint = await process.communicate()
    assert process.returncode == 0, (output + complaint).decode()
    return output.decode()


async def test_a_generated_client_registers_watches_lists_deposits_and_reads_the_feed(
    service: Service, tmp_path: Path
) -> None:
    async with transaction(service.owner) as connection:
        await add_chain(connection, tip=1000)
        watch = await add_watch(connection, service.tenant_id)
        now = datetime.now(UTC)
        entries = [await add_entry(connection, service.tenant_id, watch, n, now=now) for n in range(DEPOSITS)]
        confirmed = await confirm_entry(connection, entries[3], now)
    (tmp_path / "generator.yaml").write_text("post_hooks: []\n")
    await run(
        tmp_path,
        *(TOOLS / "openapi-python-client", "generate", "--url", f"{service.url}/openapi.json", "--meta", "none"),
        *("--output-path", "chainbell_client", "--config", "generator.yaml", "--fail-on-warning"),
    )
    script = tmp_path / SCRIPT.name  # beside what was generated, and away from our own packages
    script.write_text(SCRIPT.read_text())
    seen = json.loads(await run(tmp_path, TOOLS / "python", script, service.url, service.key))

    assert seen["watches"] == [[f"order-{number}", "active"] for number in (1, 2, 3)]
    assert [status for _, status in seen["again"]] == ["exists"] * 3
    assert seen["refusal"] == ["invalid_request", ["/watches/0/address"]]
    states = {entry.id: "confirmed" if entry.id == confirmed.id else "detected" for entry in entries}
    assert seen["deposits"] == [[e.id, states[e.id], str(e.amount_atomic)] for e in reversed(entries)]
    one = json.loads(
        json.dumps(seen["one"]).replace("+00:00", "Z")
    )  # times are times to it, and written in its own way
    assert one == (await service.ask("GET", f"/v1/deposits/{entries[-1].id}")).json
    told = [["deposit.detected", entry.id, 1] for entry in entries]
    assert seen["events"] == [*told, ["deposit.confirmed", confirmed.id, 2]]
