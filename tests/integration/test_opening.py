"""A database that goes away is told in one sentence, whenever it does; one that answers is not said to be away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from chainbell.opening import DatabaseUnreachable, open_engine
from chainbell.settings import load_settings
from chainbell.settings_model import Settings
from ledger.database import Engine, transaction

Ask = Callable[[Settings, str], Awaitable[None]]


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    """Settings of a database of one's own."""
    path = tmp_path / "chainbell.toml"
    path.write_text(f'[database]\nurl = "{database_url}"\n')
    return load_settings(path)


async def ask(settings: Settings, statement: str) -> None:
    """Open it as a role does, and ask for something in a task."""
    async with open_engine(settings, settings.database.url, application="test") as engine, asyncio.TaskGroup() as group:
        group.create_task(_execute(engine, statement))


async def ask_first(settings: Settings, statement: str) -> None:
    """Open it as a role does, and ask for something at once."""
    async with open_engine(settings, settings.database.url, application="test") as engine:
        await _execute(engine, statement)


async def _execute(engine: Engine, statement: str) -> None:
    async with transaction(engine) as connection:
        await connection.execute(text(statement))


@pytest.mark.parametrize("ask", [ask, ask_first])
async def test_a_database_that_goes_away_while_a_role_begins_is_told_in_one_sentence(
    settings: Settings, ask: Ask
) -> None:
    with pytest.raises(
        DatabaseUnreachable, match=r"^database\.url: .* does not answer: .*; is Postgres running there\?$"
    ):
        await ask(settings, "SELECT pg_terminate_backend(pg_backend_pid())")


async def test_what_the_database_answered_is_not_taken_for_its_absence(settings: Settings) -> None:
    with pytest.raises(ExceptionGroup):
        await ask(settings, "SET LOCAL statement_timeout = 1; SELECT pg_sleep(60)")
    with pytest.raises(OperationalError, match="statement timeout"):
        await ask_first(settings, "SET LOCAL statement_timeout = 1; SELECT pg_sleep(60)")
