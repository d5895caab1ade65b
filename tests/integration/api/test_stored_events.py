"""Every type of event, made by the product's own ways and read from the table, fits the schema that is published for it.

The examples of the description are made by hand; what is stored is made by followers, audits, backfills, judges and the API.
The schemas are taken strictly here: a field of a stored event that no schema names is a failure too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jsonschema_rs
import msgspec
from sqlalchemy import select, text

from chains.model import Movement
from indexer.audit import BlockAuditor
from indexer.auditing import Auditor
from indexer.watchkeeping import Watchkeeper
from ledger.chains import lock_chain
from ledger.database import database_now, transaction
from ledger.halts import resume_chain
from ledger.holding import Held, resume_endpoint
from ledger.ids import EndpointId, TenantId
from ledger.schema import events
from ledger.states import EVENT_TYPES
from notifier.maintenance import judge_endpoints
from tests.fakes.adapter import CHAIN_ID, COIN, FakeChain, address, payment
from tests.integration.api.conftest import Service, running
from tests.integration.indexer.conftest import Ledger, make_ledger
from tests.integration.indexer.past_world import PastWorld, world_of

SHOP, WALLET, OTHER, PULLER = address(1), address(2), address(3), address(4)
TENANT, ENDPOINT = TenantId("ten_a"), EndpointId("ep_1")
STANDSTILL_S = 60.0


async def live_through_blocks(ledger: Ledger) -> None:
    """What blocks and reorgs bring: the wallet pays the shop, and both are watched, so each story is told from two sides."""
    chain = ledger.chain
    for watched in (SHOP, WALLET):
        await ledger.watch(watched, covered_from=0)
    await ledger.converge()
    chain.mine(payment("moves", SHOP, 1, sender=WALLET))
    chain.mine()
    await ledger.converge()
    chain.drop_to(0)
    chain.mine(salt="b")
    chain.mine(payment("moves", SHOP, 1, sender=WALLET))
    chain.mine(payment("is lost", SHOP, 2, sender=WALLET, nonce=4), count=3)
    await ledger.converge(2)
    chain.drop_to(2)
    chain.mine(payment("instead", OTHER, 3, sender=WALLET, nonce=4))
    chain.mine(payment("fails", OTHER, 4, sender=WALLET, has_failed=True), count=3)
    await ledger.converge(2)
    chain.mine(payment("is young", SHOP, 5, sender=WALLET, nonce=5), _pulled("by another", 7))
    await ledger.converge()
    chain.drop_to(len(chain.blocks) - 2)
    instead = payment("instead of the young", OTHER, 6, sender=WALLET, nonce=5)
    chain.mine(instead, payment("instead of the pulled", OTHER, 8, sender=PULLER, nonce=9), count=4)
    await ledger.converge(2)
    chain.finalized = len(chain.blocks) - 2
    await ledger.converge(2)


def _pulled(name: str, amount_atomic: int) -> Movement:
    """What somebody else's transaction takes out of the wallet."""
    moved = payment(name, OTHER, amount_atomic, sender=WALLET)
    assert moved.transaction is not None
    return replace(moved, transaction=replace(moved.transaction, sender=PULLER, nonce=9))


@dataclass
class Clock:
    """Seconds, as the test says."""

    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


async def stand_still(ledger: Ledger) -> None:
    """A chain whose head stays where it is is delayed, and told when it goes on."""
    clock = Clock()
    keeper = Watchkeeper(ledger.follower, STANDSTILL_S, is_steady=True, clock=clock)
    for waited_s in (0.0, STANDSTILL_S + 1):
        clock.now_s += waited_s
        await keeper.show(await ledger.converge())
    ledger.chain.mine()
    await keeper.show(await ledger.converge())


async def be_halted(ledger: Ledger) -> None:
    """A branch that leaves out what is final halts the chain; a person lifts the halt."""
    chain = ledger.chain
    kept = list(chain.blocks)
    finalized, chain.finalized = chain.finalized, None
    chain.drop_to(0)
    chain.mine(salt="c", count=len(kept) + 2)
    await ledger.converge()
    async with transaction(ledger.engine) as connection:
        row, now = await lock_chain(connection, CHAIN_ID)
        await resume_chain(connection, row, None, "test", now)
    chain.blocks[:], chain.finalized = kept, finalized


async def be_audited(world: PastWorld) -> None:
    """What the ledger lost is found."""
    await world.execute("DELETE FROM entries WHERE amount_atomic = 1 AND side = 'deposit'")
    blocks = BlockAuditor(world.ledger.engine, world.past.rereader, world.ledger.follower.followed)
    auditor = Auditor(world.ledger.engine, blocks, CHAIN_ID, world.ledger.follower.course.slug)
    report = await auditor.audit(0, 3, 0)
    assert [finding.kind for finding in report.new] == ["missing"]


async def be_judged(ledger: Ledger) -> None:
    """An endpoint fails for days, is warned of, stopped in the end, and resumed."""
    failures = (
        "UPDATE endpoints SET created_at = now() - interval '30 days', failures_consecutive = {},"
        " failing_since = now() - interval '{}'"
    )
    for count, age in ((10, "4 days"), (20, "6 days")):
        async with transaction(ledger.engine) as connection:
            await connection.execute(text(failures.format(count, age)))
        await judge_endpoints(ledger.engine)
    async with transaction(ledger.engine) as connection:
        found = await resume_endpoint(connection, TENANT, ENDPOINT, Held.ALL, await database_now(connection))
        assert found is not None


async def send_a_test(service: Service) -> None:
    """The only type that is asked for."""
    endpoint = (await service.ask("POST", "/v1/endpoints", {"url": "https://merchant.example/"})).json["id"]
    assert (await service.ask("POST", f"/v1/endpoints/{endpoint}/test", {})).status == 200


def strictly(schema: Any) -> Any:  # noqa: ANN401 (JSON)
    """A schema in which an object has no other fields than the named ones."""
    if isinstance(schema, list):
        return [strictly(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: strictly(inner) for name, inner in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object":
        made.setdefault("additionalProperties", False)
    return made


async def test_every_type_of_event_is_stored_as_its_schema_says(database_url: str) -> None:
    chain = FakeChain(opening={(WALLET, COIN.id): 10**9})
    chain.mine()
    ledger = await make_ledger(database_url, chain)
    await live_through_blocks(ledger)
    await stand_still(ledger)
    await be_halted(ledger)
    world = world_of(ledger)
    await world.watch(OTHER, start_height=1)
    await world.work()
    await be_audited(world)
    await be_judged(ledger)
    async with running(database_url) as service:
        await send_a_test(service)
        description = (await service.ask("GET", "/openapi.json", key="")).json
    async with transaction(ledger.engine) as connection:
        bodies = [msgspec.json.decode(body) for body in (await connection.execute(select(events.c.body))).scalars()]
    await ledger.engine.dispose()

    assert {body["type"] for body in bodies} == set(EVENT_TYPES)
    components = strictly(description["components"])
    for event_type in EVENT_TYPES:
        content = description["webhooks"][event_type]["post"]["requestBody"]["content"]["application/json"]
        validator = jsonschema_rs.validator_for({**content["schema"], "components": components})
        for body in bodies:
            if body["type"] == event_type:
                said = [f"{error.instance_path}: {error.message}" for error in validator.iter_errors(body)]
                assert said == [], (event_type, body)
                assert body["livemode"] is (event_type.startswith("endpoint."))  # a chain of tests has no live money
