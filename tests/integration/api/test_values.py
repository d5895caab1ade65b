"""What goes in and comes out: amounts, times and metadata, each over the whole of what may be, through Postgres and HTTP."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal, localcontext
from random import Random
from typing import Any

import msgspec

from api.watch_rows import METADATA_BYTES_MAX, METADATA_DEPTH_MAX
from chains.model import hex_of
from ledger.database import transaction
from ledger.documents import time_of
from ledger.entries import write_entries
from tests.integration.api.conftest import Answer, Service
from tests.integration.api.seeding import add_chain, add_watch, make_entry

AMOUNTS = [0, 1, 10**18 - 1, 10**18, 2**63, 2**64, 2**128, 2**255, 2**256 - 1]


async def test_every_amount_comes_out_as_it_is(service: Service) -> None:
    random = Random("amounts")
    amounts = AMOUNTS + [random.getrandbits(random.randrange(1, 257)) for _ in range(60)]
    async with transaction(service.owner) as connection:
        await add_chain(connection, tip=1000)
        watch = await add_watch(connection, service.tenant_id)
        made = [
            replace(make_entry(service.tenant_id, watch, n), amount_atomic=amount) for n, amount in enumerate(amounts)
        ]
        await write_entries(connection, made, [])
    rows = (await service.ask("GET", "/v1/deposits?limit=1000")).json["data"]
    assert {row["id"]: row["amount_atomic"] for row in rows} == {entry.id: str(entry.amount_atomic) for entry in made}
    with localcontext(prec=100):
        assert all(Decimal(row["amount"]).scaleb(18) == int(row["amount_atomic"]) for row in rows)
    assert all(set(row["amount"]) <= set("0123456789.") for row in rows)


MOMENTS = [
    datetime(1970, 1, 1, tzinfo=UTC),
    datetime(2026, 2, 28, 23, 59, 59, 999_999, tzinfo=UTC),
    datetime(2026, 3, 1, tzinfo=UTC),
    datetime(2026, 3, 1, 0, 0, 0, 1, tzinfo=UTC),
    datetime(2026, 3, 29, 1, 30, tzinfo=UTC),
    datetime(2100, 12, 31, 23, 59, 59, 500_000, tzinfo=UTC),
]
"""In order of change; the last but one in the hour that clocks of Europe skip."""


async def test_updated_since_begins_at_that_very_microsecond(service: Service) -> None:
    async with transaction(service.owner) as connection:
        await add_chain(connection, tip=1000)
        watch = await add_watch(connection, service.tenant_id)
        entries = [replace(make_entry(service.tenant_id, watch, n), updated_at=at) for n, at in enumerate(MOMENTS)]
        await write_entries(connection, entries, [])

    async def _since(text: str) -> list[str]:
        answer = await service.ask("GET", "/v1/deposits", query={"updated_since": text})
        assert answer.status == 200, answer.json
        return [row["updated_at"] for row in answer.json["data"]]

    told = [time_of(moment) for moment in MOMENTS]
    for number, moment in enumerate(MOMENTS):
        assert await _since(told[number]) == told[number:]
        assert await _since(time_of(moment + timedelta(microseconds=1))) == told[number + 1 :]
    assert await _since("2026-03-29T03:30:00+02:00") == told[4:]
    assert await _since("2026-03-28T18:00:00-07:30") == told[4:]
    for first in ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00+23:59"):
        assert await _since(first) == told
    for last in ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59-23:59"):
        assert await _since(last) == []


async def add(service: Service, number: int, metadata: object) -> Answer:
    """A watch of its own with this metadata."""
    row = {"chain": "ethereum", "address": hex_of(number.to_bytes(20, "big")), "metadata": metadata}
    return await service.ask("POST", "/v1/watches", {"watches": [row]})


TEXTS = [
    "",
    "é",
    "e\u0301",
    "🙂",
    "\u202e",
    "\ufeff",
    "\uffff",
    "\U0010ffff",
    '"\\/\b\f\n\r\t',
    "\\u0000",
    "\x7f",
    "\u2028",
    "__proto__",
]
NUMBERS = [0, -1, 2**53 + 1, 2**64, -(2**70), 10**80, 0.1, -2.5e-7, 1e21, 1.7976931348623157e308, 5e-324]


def draw(random: Random, depth: int) -> Any:  # noqa: ANN401 (any JSON)
    """Some JSON, nested at most so deep."""
    kind = random.randrange(6 if depth else 4)
    if kind == 4:
        return [draw(random, depth - 1) for _ in range(random.randrange(4))]
    if kind == 5:
        return draw_object(random, depth)
    return (random.choice(TEXTS), random.choice(NUMBERS), random.choice((True, False)), None)[kind]


def draw_object(random: Random, depth: int) -> dict[str, Any]:
    """An object of some JSON."""
    return {random.choice(TEXTS) + random.choice(TEXTS): draw(random, depth - 1) for _ in range(random.randrange(5))}


def as_written(value: Any) -> Any:  # noqa: ANN401 (any JSON)
    """With numbers as JSON has them, in decimals: 1e300 and a one with three hundred zeros are the same."""
    if isinstance(value, dict):
        return {name: as_written(part) for name, part in value.items()}
    if isinstance(value, list):
        return [as_written(part) for part in value]
    return Decimal(repr(value)) if isinstance(value, int | float) and not isinstance(value, bool) else value


async def test_metadata_comes_back_as_it_went_in(service: Service) -> None:
    async with transaction(service.owner) as connection:
        await add_chain(connection, tip=1000)
    random = Random("metadata")
    for number in range(1, 60):
        metadata = draw_object(random, random.randrange(1, METADATA_DEPTH_MAX + 1))
        answer = await add(service, number, metadata)
        if answer.status == 422:
            assert "bytes as JSON" in answer.json["detail"], metadata
            continue
        [row] = answer.json["data"]
        kept = (await service.ask("GET", f"/v1/watches/{row['id']}")).json["metadata"]
        assert as_written(kept) == as_written(metadata)


async def test_metadata_is_bounded_by_what_is_kept_and_sent(service: Service) -> None:
    async with transaction(service.owner) as connection:
        await add_chain(connection, tip=1000)
    fits = "x" * (METADATA_BYTES_MAX - len('{"a":""}'))
    cases = [
        ({"a": fits}, True),
        ({"a": fits + "x"}, False),
        ({"a": "é" * (len(fits) // 2)}, True),
        ({"a": "é" * (len(fits) // 2 + 1)}, False),
        ({"a": [1e300] * 13}, True),
        ({"a": [1e300] * 14}, False),
        ({"a": [5e-324] * 20}, False),
    ]
    for number, (metadata, is_taken) in enumerate(cases, 1):
        answer = await add(service, number, metadata)
        assert answer.status == (200 if is_taken else 422), metadata
        if is_taken:
            [row] = answer.json["data"]
            kept = (await service.ask("GET", f"/v1/watches/{row['id']}")).json["metadata"]
            assert as_written(kept) == as_written(metadata)
            assert len(msgspec.json.encode(kept)) <= METADATA_BYTES_MAX
