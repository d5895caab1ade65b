"""A halted chain is resumed over the API, by the operator alone, and nothing else of a chain can be written from there."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import func, insert, select, text
from sqlalchemy.exc import ProgrammingError

from ledger.chains import find_chain, lock_chain, update_chain
from ledger.database import transaction
from ledger.halts import halt_chain
from ledger.ids import OPS_TENANT
from ledger.keys import parse_key
from ledger.model import ChainRow
from ledger.schema import blocks, events
from ledger.schema_access import audit_log
from ledger.states import ChainState
from ledger.tenancy import speak_for
from tests.integration.api.conftest import Service
from tests.integration.api.seeding import ETHEREUM, START, add_chain

TIP = 1000
FINAL = 990
KEPT = 980
REASON = "block 991 of two hosts is not ours, which is final"
PATH = "/v1/chains/ethereum/resume"


@pytest.fixture
async def ops(service: Service) -> str:
    """An operator's key, over a chain that is halted."""
    kept = {"hash": b"k" * 32, "parent_hash": b"p" * 32, "state": "canonical", "proof": "roots", "agreed_by": 1}
    counted = {"node": "a", "transaction_count": 0, "entry_count": 0, "block_at": START, "committed_at": START}
    async with transaction(service.owner) as connection:
        await add_chain(connection, tip=TIP)
        await update_chain(connection, ETHEREUM, {"finalized_height": FINAL, "finalized_hash": b"f" * 32})
        await connection.execute(insert(blocks).values(chain_id=ETHEREUM, height=KEPT, **kept, **counted))
        chain, now = await lock_chain(connection, ETHEREUM)
        await halt_chain(connection, chain, REASON, now)
    return await service.make_key("chains:write", tenant_id=OPS_TENANT)


async def found(service: Service) -> ChainRow:
    async with transaction(service.owner) as connection:
        return await find_chain(connection, ETHEREUM)


async def recorded(service: Service) -> list[tuple[str, str, Any]]:
    """The audit log's lines of the chain, and how often the operator was told."""
    async with transaction(service.owner) as connection:
        lines = select(audit_log.c.actor, audit_log.c.action, audit_log.c.detail).where(audit_log.c.subject == ETHEREUM)
        told = select(func.count()).where(events.c.type == "chain.resumed", events.c.tenant_id == OPS_TENANT)
        rows = [(row.actor, row.action, row.detail) for row in await connection.execute(lines)]
        assert (await connection.execute(told)).scalar_one() == len(rows)
        return rows


@pytest.mark.parametrize(("body", "accepted"), [(None, None), ({}, None), ({"accept_reorg_to": KEPT}, KEPT)])
async def test_a_halt_is_lifted_recorded_and_told_in_one_transaction(
    service: Service, ops: str, body: dict[str, int] | None, accepted: int | None
) -> None:
    headers = {"Idempotency-Key": "resume-1"}
    answers = [await service.ask("POST", PATH, body, key=ops, headers=headers) for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 200]
    assert answers[0].json == answers[1].json
    shown = answers[0].json
    assert (shown["chain"], shown["state"], shown["reason"]) == ("ethereum", "stopped", None)
    row = await found(service)
    assert (row.state, row.accepted_reorg_height) == (ChainState.STOPPED, accepted)
    detail = {"halted_for": REASON, "accept_reorg_to": accepted}
    assert await recorded(service) == [(parse_key(ops).id, "chain.resumed", detail)]
    again = await service.ask("POST", PATH, body, key=ops)
    assert (again.status, again.json["code"]) == (409, "not_halted")
    assert "it is stopped" in again.json["detail"]
    assert len(await recorded(service)) == 1


@pytest.mark.parametrize(
    ("height", "said"), [(FINAL, "below what ethereum holds as final (990)"), (985, "give 980, below it"), (-1, "")]
)
async def test_a_reorg_that_no_branch_can_be_is_refused_and_the_chain_stays_halted(
    service: Service, ops: str, height: int, said: str
) -> None:
    answer = await service.ask("POST", PATH, {"accept_reorg_to": height}, key=ops)
    assert (answer.status, answer.json["errors"][0]["pointer"]) == (422, "/accept_reorg_to")
    assert said in answer.json["detail"]
    assert (await found(service)).state is ChainState.HALTED
    assert await recorded(service) == []


async def test_a_chain_is_named_by_its_slug_or_its_caip_2_name_and_another_is_404(service: Service, ops: str) -> None:
    answer = await service.ask("POST", "/v1/chains/nowhere-2/resume", {}, key=ops)
    assert (answer.status, answer.json["code"]) == (404, "not_found")
    assert (await service.ask("POST", f"/v1/chains/{ETHEREUM}/resume", {}, key=ops)).status == 200


@pytest.mark.usefixtures("ops")
async def test_the_apis_role_lifts_a_halt_for_the_operator_and_writes_nothing_else_of_a_chain(service: Service) -> None:
    lift = text("SELECT chainbell_lift_halt('eip155:1', NULL)")
    async with transaction(service.engine) as connection:
        await speak_for(connection, service.tenant_id)
        assert (await connection.execute(lift)).scalar() is None
    for statement in ("state = 'stopped'", "reason = NULL", "accepted_reorg_height = 1"):
        with pytest.raises(ProgrammingError, match="permission denied"):
            async with transaction(service.engine) as connection:
                await speak_for(connection, OPS_TENANT)
                await connection.execute(text(f"UPDATE chains SET {statement}"))
    async with transaction(service.engine) as connection:
        await speak_for(connection, OPS_TENANT)
        assert (await connection.execute(lift)).scalar() is True
