"""A wrong request is a problem that points at what is wrong, and changes nothing."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio

from chainbell.demo.anvil import anvil
from tests.outside.installation import Answer, Tenant, free_port, installed
from tests.outside.payments import new_address

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHECKSUMMED = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed"
"""From EIP-55."""
MISTYPED = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAeD"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Tenant]:
    """A tenant of a running installation with one chain."""
    async with anvil() as node:
        # The line goes on with the section [api].
        settings = (
            f'operator_listen = "127.0.0.1:{free_port()}"\n\n'
            f'[chains.anvil]\nnodes = [ {{ url = "{node.url}" }} ]\nstart = 0\npoll_interval_s = 0.1\n'
        )
        async with installed(tmp_path_factory.mktemp("requests"), module_database_url, settings) as installation:
            await installation.run()
            yield await installation.tenant("shop")


def require_problem(answer: Answer, status: int, code: str, *pointers: str) -> str:
    """An RFC 9457 problem that points at what is wrong; its sentence."""
    document = answer.document
    assert (answer.status, document["status"], document["code"]) == (status, status, code)
    assert answer.headers["Content-Type"].startswith("application/problem+json")
    assert {"type", "title", "detail", "request_id"} <= set(document)
    assert [error["pointer"] for error in document.get("errors", [])] == list(pointers)
    return str(document["detail"])


async def test_an_address_with_a_wrong_checksum_is_refused_wherever_it_is_given(shop: Tenant) -> None:
    body = {"watches": [{"chain": "anvil", "address": MISTYPED}]}
    answer = await shop.ask("POST", "/v1/watches", body)
    assert "wrong checksum" in require_problem(answer, 422, "invalid_request", "/watches/0/address")
    answer = await shop.ask("GET", f"/v1/deposits?address={MISTYPED}")
    assert "wrong checksum" in require_problem(answer, 422, "invalid_request", "/address")
    (row,) = await shop.watch("anvil", CHECKSUMMED)
    assert row["address"] == CHECKSUMMED.lower()


async def test_one_bad_row_refuses_the_whole_batch_and_is_named_by_its_index(shop: Tenant) -> None:
    before = len(await shop.rows("/v1/watches"))
    rows = [{"chain": "anvil", "address": new_address()} for _ in range(1_000)]
    rows[617] = {"chain": "anvil", "address": "0x12"}
    answer = await shop.ask("POST", "/v1/watches", {"watches": rows})
    detail = require_problem(answer, 422, "invalid_request", "/watches/617/address")
    assert "no watch was made" in detail
    rows[617] = {"chain": "nope", "address": new_address()}
    answer = await shop.ask("POST", "/v1/watches", {"watches": rows})
    assert "there are: anvil" in require_problem(answer, 422, "invalid_request", "/watches/617/chain")
    assert len(await shop.rows("/v1/watches")) == before


async def test_keys_that_are_none_are_told_apart_from_keys_that_lack_a_scope(shop: Tenant) -> None:
    def with_key(key: str) -> Tenant:
        return Tenant(shop.installation, shop.id, key)

    require_problem(await with_key("sk_live_1").ask("GET", "/v1/watches"), 401, "malformed_key")
    altered = shop.key[:-1] + ("A" if shop.key[-1] != "A" else "B")
    answer = await with_key(altered).ask("GET", "/v1/watches")
    assert answer.status == 401
    assert shop.key not in str(answer.document)
    reader = await shop.installation.keyed(shop.id, "watches:read")
    body = {"watches": [{"chain": "anvil", "address": new_address()}]}
    detail = require_problem(await reader.ask("POST", "/v1/watches", body), 403, "missing_scope")
    assert "watches:write" in detail


async def test_a_revoked_key_opens_nothing(shop: Tenant) -> None:
    reader = await shop.installation.keyed(shop.id, "watches:read")
    assert (await reader.ask("GET", "/v1/watches")).status == 200
    key_id = reader.key.removeprefix("cb_live_").partition("_")[0]
    await shop.installation.command("keys", "revoke", key_id)
    require_problem(await reader.ask("GET", "/v1/watches"), 401, "invalid_key")


async def test_a_key_for_other_addresses_opens_nothing_here_and_is_listed_with_its_end(shop: Tenant) -> None:
    limits = ("--network", "203.0.113.0/24", "--network", "2001:db8::/32", "--expires-in-days", "90")
    words = ("--tenant", shop.id, "--scope", "watches:read", *limits)
    made = await shop.installation.command("keys", "create", *words)
    answer = await Tenant(shop.installation, shop.id, made["key"]).ask("GET", "/v1/watches")
    assert "127.0.0.1" in require_problem(answer, 403, "wrong_address")
    listed = await shop.installation.attempt("--json", "keys", "list", "--tenant", shop.id)
    (row,) = [row for row in map(json.loads, listed.output.splitlines()) if row["id"] == made["id"]]
    assert row["networks"] == made["networks"] == ["203.0.113.0/24", "2001:db8::/32"]
    assert row["expires_at"] == made["expires_at"]
    ends_in = datetime.fromisoformat(made["expires_at"]) - datetime.now(UTC)
    assert timedelta(days=89) < ends_in <= timedelta(days=90)
    bad = await shop.installation.attempt(
        "keys", "create", "--tenant", shop.id, "--scope", "*", "--network", "everywhere"
    )
    assert (bad.status, "is no network" in bad.sentence) == (2, True)


async def test_a_body_that_is_too_large_is_refused(shop: Tenant) -> None:
    rows = [{"chain": "anvil", "address": new_address(), "reference": "r" * 150} for _ in range(10_000)]
    answer = await shop.ask("POST", "/v1/watches", {"watches": [*rows, *rows, *rows]})
    assert "5242880 bytes" in require_problem(answer, 413, "body_too_large")
    assert len((await shop.call("POST", "/v1/watches", {"watches": rows}))["data"]) == 10_000
    answer = await shop.ask("POST", "/v1/watches", {"watches": [*rows, rows[0]]})
    require_problem(answer, 422, "invalid_request", "/watches")


async def test_one_idempotency_key_is_one_request(shop: Tenant) -> None:
    headers = {"idempotency-key": "order-1"}
    body = {"watches": [{"chain": "anvil", "address": new_address()}]}
    answers = [await shop.ask("POST", "/v1/watches", body, headers) for _ in range(2)]
    assert answers[0].status == answers[1].status
    assert answers[0].document == answers[1].document
    assert answers[0].document["data"][0]["status"] == "active"
    other = {"watches": [{"chain": "anvil", "address": new_address()}]}
    require_problem(await shop.ask("POST", "/v1/watches", other, headers), 422, "idempotency_mismatch")


async def test_what_is_the_operators_has_an_address_of_its_own(shop: Tenant) -> None:
    require_problem(await shop.ask("GET", "/metrics"), 404, "not_found")
    named = re.search(r'operator_listen = "(.*)"', shop.installation.config.read_text())
    assert named is not None
    async with shop.installation.session.get(f"http://{named[1]}/metrics") as response:
        assert (response.status, "chainbell_chain_tip_height" in await response.text()) == (200, True)
    async with shop.installation.session.get(f"http://{named[1]}/readyz") as response:
        assert response.status == 200
