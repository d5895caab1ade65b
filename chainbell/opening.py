"""Opening what every command needs: the settings' database, its engine, and the chains' rows."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import structlog
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine

from chainbell.configured import ConfiguredChain
from chainbell.errors import ChainbellError
from chainbell.settings import redact_url
from chainbell.settings_model import Settings
from chains.adapter import Internal
from chains.model import Slug, ValuePath
from indexer.policy import rules_as_json
from ledger.chains import ChainConfiguration, register_chain
from ledger.database import UNAVAILABLE, connect, database_now, transaction
from ledger.embedded import EmbeddedPostgresError, embedded_postgres
from ledger.errors import LedgerError
from ledger.master_keys import admit_master_key
from ledger.migrate import prepare, require_head
from ledger.secrets import SecretBox

VALUE_PATHS = (ValuePath.NATIVE.value, ValuePath.LOGS.value, ValuePath.VALIDATOR_WITHDRAWALS.value)
"""What is read of every EVM chain; contract-sent value needs a tracing node."""

EMBEDDED_LOOK_S = 5.0
"""How often it is seen whether the embedded server still answers."""

log = structlog.get_logger()


class DatabaseUnreachable(ChainbellError):
    """The database does not answer; the text says which and why."""


@contextmanager
def open_database(settings: Settings) -> Iterator[str]:
    """The database's URL; an embedded one runs for as long as the block lasts. Raises `ChainbellError`."""
    if not settings.database.is_embedded:
        yield settings.database.url
        return
    try:
        with embedded_postgres(settings.database.data_dir) as url:
            yield url
    except EmbeddedPostgresError as error:
        raise ChainbellError(str(error)) from error


async def keep_embedded_running(data_dir: Path, url: str, stop: asyncio.Event) -> None:
    """Start the embedded server again whenever it has died, until `stop`: the system kills one when memory runs out, and who
    runs everything on one machine has nobody else to do it. Within its `open_database`."""
    engine = connect(url, application="chainbell run", pool_size=1)
    try:
        while not stop.is_set():
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), EMBEDDED_LOOK_S)
            if not stop.is_set() and not await _answers(engine):
                await asyncio.to_thread(_start_again, data_dir)
    finally:
        await engine.dispose()


async def _answers(engine: AsyncEngine) -> bool:
    try:
        async with transaction(engine) as connection:
            await database_now(connection)
    except (*UNAVAILABLE, OSError):
        return False
    return True


def _start_again(data_dir: Path) -> None:
    log.error("embedded database does not answer", data_dir=str(data_dir))
    try:
        with embedded_postgres(data_dir):  # whoever shares it makes it run, and is not its last user when he leaves
            log.warning("embedded database runs again")
    except EmbeddedPostgresError as error:
        log.error("embedded database does not start", error=str(error))


@asynccontextmanager
async def open_engine(
    settings: Settings,
    url: str,
    *,
    application: str,
    pool_size: int = 5,
    may_migrate: bool | None = None,
    transaction_limit_s: int | None = None,
) -> AsyncIterator[AsyncEngine]:
    """An engine on a database at head. An embedded one is migrated, another one only with `may_migrate`; if it is behind,
    the command refuses. Raises `ChainbellError`."""
    engine = connect(url, application=application, pool_size=pool_size, transaction_limit_s=transaction_limit_s)
    try:
        if settings.database.is_embedded if may_migrate is None else may_migrate:
            await prepare(engine, url)
        else:
            async with transaction(engine) as connection:
                await require_head(connection)
    except OperationalError as error:
        raise _unreachable(settings, error) from error
    except LedgerError as error:
        raise ChainbellError(str(error)) from error
    try:
        yield engine
    except (OperationalError, ExceptionGroup) as error:  # it went away just now, while a role begins, say
        loss = _loss_in(error)
        if loss is not None:
            raise _unreachable(settings, loss) from error
        raise
    finally:
        await engine.dispose()


def _loss_in(error: Exception) -> OperationalError | None:
    """That there is nobody to ask any more, where that is all that is wrong; a deadlock, say, was answered."""
    if isinstance(error, ExceptionGroup):
        losses = [_loss_in(one) for one in error.exceptions]
        return losses[0] if all(losses) else None
    if not isinstance(error, OperationalError):
        return None
    return error if error.connection_invalidated or getattr(error.orig, "sqlstate", None) is None else None


def _unreachable(settings: Settings, error: OperationalError) -> DatabaseUnreachable:
    return DatabaseUnreachable(
        f"database.url: {redact_url(settings.database.url)} does not answer: {_reason_of(error)};"
        " is Postgres running there?"
    )


def _reason_of(error: OperationalError) -> str:
    """Why Postgres cannot be reached, in one line: libpq says the cause, and behind it, after a tab, asks what we ask."""
    lines = [line.strip() for line in str(error.orig).strip().splitlines()]
    return "; ".join(line for line in lines if not line.endswith("?")) or " ".join(lines)


async def admit(engine: AsyncEngine, box: SecretBox) -> bytes:
    """Refuse a master key that is not the database's, by its `WrongMasterKey`; returns what cursors are signed with."""
    async with transaction(engine) as connection:
        return await admit_master_key(connection, box, await database_now(connection))


async def register_chains(engine: AsyncEngine, chains: Sequence[ConfiguredChain]) -> dict[Slug, int]:
    """Bring the ledger's rows of the configured chains up to the settings; returns each chain's policy version."""
    versions: dict[Slug, int] = {}
    for chain in chains:
        async with transaction(engine) as connection:
            configuration = configuration_of(chain)
            versions[chain.slug] = await register_chain(connection, configuration, datetime.now(UTC))
    return versions


def configuration_of(chain: ConfiguredChain) -> ChainConfiguration:
    """What the ledger keeps of a configured chain."""
    return ChainConfiguration(
        chain_id=chain.profile.chain_id,
        slug=chain.slug,
        profile=chain.profile_name,
        livemode=chain.profile.livemode,
        native_asset_id=chain.profile.native.id,
        proof=chain.profile.proof.value,
        is_proof_enforced=chain.profile.is_proof_enforced,
        quorum=chain.quorum,
        value_paths=VALUE_PATHS,
        assets=chain.profile.assets,
        credit_rules=rules_as_json(chain.credit_rules),
        tracing_hosts=() if chain.internal is Internal.OFF else chain.hosts,
    )
