"""Master keys: a wrong one is refused, a new one takes over without a pause, and a lost one is done without."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.ext.asyncio import AsyncEngine

from ledger.cursors import cursor_key_of
from ledger.database import connect, database_now, transaction
from ledger.endpoint_secrets import find_live_secrets, rotate_secret
from ledger.endpoints import create_endpoint
from ledger.errors import UnknownName
from ledger.idempotency import StoredAnswer, find_answer, store_answer
from ledger.ids import EndpointId, TenantId
from ledger.master_keys import abandon_master_key, admit_master_key, forget_unused_keys
from ledger.rewrapping import BATCH_MAX, count_old_rows, rewrap
from ledger.schema import endpoint_secrets, tenants
from ledger.schema_access import master_keys
from ledger.secrets import SealBroken, SecretBox, WrongMasterKey

TENANT = TenantId("ten_a")
OLD, NEW, WRONG = b"o" * 32, b"n" * 32, b"w" * 32
BOTH = SecretBox(NEW, (OLD,))


@dataclass
class Vault:
    """A ledger with a tenant, and what a test does with its secrets."""

    engine: AsyncEngine
    shown: dict[EndpointId, str] = field(default_factory=dict)
    """The current secret of each endpoint, as its owner knows it."""

    async def admit(self, box: SecretBox) -> bytes:
        """As every role does when it starts."""
        async with transaction(self.engine) as connection:
            return await admit_master_key(connection, box, await database_now(connection))

    async def add_endpoints(self, number: int, box: SecretBox) -> None:
        """So many endpoints, as the API makes them with this key."""
        async with transaction(self.engine) as connection:
            for _ in range(number):
                row, secret = await create_endpoint(
                    connection, box, tenant_id=TENANT, url="https://a.example/", event_types=None, description=None,
                    now=datetime.now(UTC),
                )  # fmt: skip
                self.shown[row.id] = secret

    async def opened(self, box: SecretBox) -> dict[EndpointId, str | None]:
        """The secret that each endpoint's webhooks are signed with first; None where it does not open."""
        async with transaction(self.engine) as connection:
            live = await find_live_secrets(connection, box, [(TENANT, endpoint_id) for endpoint_id in self.shown])
        return {key[1]: found[0] if isinstance(found, tuple) else None for key, found in live.items()}

    async def old_rows(self, box: SecretBox) -> int:
        """Rows that are not sealed under the present key."""
        async with transaction(self.engine) as connection:
            return await count_old_rows(connection, box)

    async def key_ids(self) -> set[bytes]:
        """Those that the database knows."""
        async with transaction(self.engine) as connection:
            return {bytes(key_id) for key_id in (await connection.execute(select(master_keys.c.key_id))).scalars()}

    async def rewrap(self, box: SecretBox) -> int:
        """As `chainbell secrets rewrap` does."""
        rewrapped = await rewrap(self.engine, box, lambda rows: None)
        async with transaction(self.engine) as connection:
            await forget_unused_keys(connection, box)
        return rewrapped


@pytest.fixture
async def vault(database_url: str) -> AsyncIterator[Vault]:
    """A migrated ledger with one tenant, into which no master key was entered yet."""
    engine = connect(database_url, application="tests", pool_size=5)
    async with transaction(engine) as connection:
        await connection.execute(insert(tenants).values(id=TENANT, name="a", created_at=datetime.now(UTC)))
    yield Vault(engine)
    await engine.dispose()


async def test_the_first_key_is_entered_and_admitted_ever_after(vault: Vault) -> None:
    first = await vault.admit(SecretBox(OLD))
    assert await vault.admit(SecretBox(OLD)) == first == cursor_key_of(OLD)
    assert await vault.key_ids() == {SecretBox(OLD).key_id}


async def test_processes_that_start_at_once_enter_one_key(vault: Vault) -> None:
    assert len(set(await asyncio.gather(*(vault.admit(SecretBox(OLD)) for _ in range(4))))) == 1
    assert await vault.key_ids() == {SecretBox(OLD).key_id}


async def test_a_wrong_key_is_refused_in_one_sentence_with_the_ids_of_both(vault: Vault) -> None:
    await vault.admit(SecretBox(OLD))
    with pytest.raises(WrongMasterKey) as refused:
        await vault.admit(SecretBox(WRONG))
    assert {SecretBox(key).key_id.hex() in str(refused.value) for key in (OLD, WRONG)} == {True}
    assert "\n" not in str(refused.value)
    assert await vault.key_ids() == {SecretBox(OLD).key_id}


async def test_a_wrong_key_is_refused_by_a_database_from_before_keys_were_entered(vault: Vault) -> None:
    await vault.add_endpoints(1, SecretBox(OLD))
    with pytest.raises(WrongMasterKey, match=SecretBox(OLD).key_id.hex()):
        await vault.admit(SecretBox(WRONG))
    assert await vault.admit(SecretBox(OLD)) == cursor_key_of(OLD), "cursors from before stay good"


async def test_a_row_of_a_key_that_was_altered_is_told(vault: Vault) -> None:
    await vault.admit(SecretBox(OLD))
    async with transaction(vault.engine) as connection:
        await connection.execute(text("UPDATE master_keys SET sealed_cursor_key = sealed_cursor_key || '\\x00'"))
    with pytest.raises(SealBroken, match=r"master_keys\.sealed_cursor_key"):
        await vault.admit(SecretBox(OLD))


async def test_while_keys_change_both_are_read_and_the_new_one_is_written_with(vault: Vault) -> None:
    cursor_key = await vault.admit(SecretBox(OLD))
    await vault.add_endpoints(2, SecretBox(OLD))
    # First every process learns the new key beside the old one, then each is restarted with the two the other way round.
    await vault.admit(SecretBox(OLD, (NEW,)))
    assert await vault.admit(BOTH) == cursor_key, "a merchant's cursor stays good"
    await vault.add_endpoints(1, BOTH)
    assert await vault.opened(BOTH) == await vault.opened(SecretBox(OLD, (NEW,))) == vault.shown
    assert await vault.old_rows(BOTH) == 2


async def test_after_a_rewrap_the_new_key_alone_opens_everything_and_the_old_one_is_refused(vault: Vault) -> None:
    cursor_key = await vault.admit(SecretBox(OLD))
    await vault.add_endpoints(BATCH_MAX + 5, SecretBox(OLD))
    now = datetime.now(UTC)
    async with transaction(vault.engine) as connection:
        answer = StoredAnswer(b"f", 201, b'{"secret":"whsec_..."}')
        await store_answer(connection, SecretBox(OLD), TENANT, "key-1", answer, now)
    await vault.admit(BOTH)
    assert await vault.rewrap(BOTH) == BATCH_MAX + 6
    assert await vault.rewrap(BOTH) == 0

    alone = SecretBox(NEW)
    assert await vault.key_ids() == {alone.key_id}
    assert await vault.admit(alone) == cursor_key
    assert await vault.opened(alone) == vault.shown
    async with transaction(vault.engine) as connection:
        assert await find_answer(connection, alone, TENANT, "key-1", now) == answer
    with pytest.raises(WrongMasterKey):
        await vault.admit(SecretBox(OLD))


async def test_the_old_key_cannot_be_left_out_before_the_rewrap_is_done(vault: Vault) -> None:
    await vault.admit(SecretBox(OLD))
    await vault.add_endpoints(1, SecretBox(OLD))
    await vault.admit(BOTH)
    with pytest.raises(WrongMasterKey, match=r"previous_master_keys until `chainbell secrets rewrap`"):
        await vault.admit(SecretBox(NEW))
    await vault.rewrap(BOTH)
    await vault.admit(SecretBox(NEW))


async def test_a_new_key_that_was_never_used_can_be_taken_back(vault: Vault) -> None:
    await vault.admit(SecretBox(OLD))
    await vault.add_endpoints(1, SecretBox(OLD))
    await vault.admit(SecretBox(WRONG, (OLD,)))
    await vault.admit(SecretBox(OLD))
    assert await vault.opened(SecretBox(OLD)) == vault.shown


async def test_a_row_that_somebody_holds_is_waited_for_by_nobody_and_done_by_the_next(vault: Vault) -> None:
    await vault.add_endpoints(3, SecretBox(OLD))
    async with transaction(vault.engine) as connection:
        await connection.execute(select(endpoint_secrets).order_by(endpoint_secrets.c.id).limit(1).with_for_update())
        async with asyncio.timeout(120):
            assert await vault.rewrap(BOTH) == 2
        assert await vault.old_rows(BOTH) == 1
    assert await vault.rewrap(BOTH) == 1
    assert await vault.opened(SecretBox(NEW)) == vault.shown


async def test_secrets_rotate_and_sign_while_they_are_sealed_anew(vault: Vault) -> None:
    await vault.admit(SecretBox(OLD))
    await vault.add_endpoints(40, SecretBox(OLD))
    await vault.admit(BOTH)

    async def rotate(endpoint_id: EndpointId) -> None:
        async with transaction(vault.engine) as connection:
            now = await database_now(connection)
            made = await rotate_secret(connection, BOTH, TENANT, endpoint_id, timedelta(hours=1), now)
            assert made is not None
            vault.shown[endpoint_id] = made.secret

    async def rotate_each() -> None:
        for endpoint_id in list(vault.shown):
            await rotate(endpoint_id)
            assert None not in (await vault.opened(BOTH)).values()

    async with asyncio.timeout(120):
        await asyncio.gather(vault.rewrap(BOTH), rotate_each())
    await vault.rewrap(BOTH)
    assert await vault.opened(SecretBox(NEW)) == vault.shown
    assert await vault.old_rows(BOTH) == 0


async def test_what_does_not_open_stays_as_it_is_and_stops_nothing_else(vault: Vault) -> None:
    await vault.admit(SecretBox(OLD))
    await vault.add_endpoints(3, SecretBox(OLD))
    await vault.admit(BOTH)
    broken = next(iter(vault.shown))
    async with transaction(vault.engine) as connection:
        await connection.execute(
            text("UPDATE endpoint_secrets SET sealed = sealed || '\\x00' WHERE endpoint_id = :id"), {"id": broken}
        )
    assert await vault.rewrap(BOTH) == 2
    assert await vault.old_rows(BOTH) == 1
    assert await vault.opened(BOTH) == {**vault.shown, broken: None}
    assert SecretBox(OLD).key_id in await vault.key_ids(), "it is needed by what is left"


async def test_a_lost_key_is_done_without_and_endpoints_get_new_secrets(vault: Vault) -> None:
    await vault.admit(SecretBox(OLD))
    await vault.add_endpoints(2, SecretBox(OLD))
    box = SecretBox(NEW)
    async with transaction(vault.engine) as connection:
        now = await database_now(connection)
        with pytest.raises(UnknownName, match=SecretBox(OLD).key_id.hex()):
            await abandon_master_key(connection, box, SecretBox(WRONG).key_id, now)
        assert await abandon_master_key(connection, box, SecretBox(OLD).key_id, now) == 2
    await vault.admit(box)
    assert set((await vault.opened(box)).values()) == {None}, "their deliveries wait"

    endpoint_id = next(iter(vault.shown))
    async with transaction(vault.engine) as connection:
        made = await rotate_secret(connection, box, TENANT, endpoint_id, timedelta(), await database_now(connection))
    assert made is not None
    assert (await vault.opened(box))[endpoint_id] == made.secret


async def test_a_key_that_we_have_is_not_abandoned(vault: Vault) -> None:
    await vault.admit(SecretBox(OLD))
    async with transaction(vault.engine) as connection:
        with pytest.raises(UnknownName, match="none"):
            await abandon_master_key(connection, SecretBox(OLD), SecretBox(OLD).key_id, datetime.now(UTC))
