"""A notifier with a wrong clock signs nothing, loses nothing, and goes on by itself."""

from __future__ import annotations

import asyncio
import time
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from chainbell.roles import notify
from chainbell.settings_model import DatabaseSettings, NotifierSettings, SecretsSettings, Settings
from ledger.database import connect
from notifier.clock import SKEW_MAX_S, ClockWatch
from tests.fakes.receiver import running_receiver
from tests.integration.notifier.conftest import MASTER_KEY, Post


@dataclass
class WallClock:
    """A clock that a test sets."""

    wrong_s: float = 0.0

    def __call__(self) -> float:
        """Seconds since 1970, as wrong as it was set."""
        return time.time() + self.wrong_s


def refusals() -> float:
    """Comparisons so far that forbade signing."""
    return REGISTRY.get_sample_value("chainbell_clock_refusals_total") or 0.0


@pytest.mark.parametrize("wrong_s", [SKEW_MAX_S + 10, -SKEW_MAX_S - 10, 3600.0])
async def test_a_clock_that_is_wrong_at_the_start_forbids_signing_and_says_so(post: Post, wrong_s: float) -> None:
    before = refusals()
    watch = ClockWatch(post.engine, wall=WallClock(wrong_s))
    assert not watch.may_sign(), "nothing is known yet"
    with capture_logs() as logs:
        await watch.check()
        await watch.check()
    assert not watch.may_sign()
    assert refusals() == before + 2
    assert [(line["event"], line["log_level"]) for line in logs] == [("clock is wrong, nothing is signed", "error")]


async def test_a_clock_within_the_limit_may_sign(post: Post) -> None:
    watch = ClockWatch(post.engine, wall=WallClock(SKEW_MAX_S - 10))
    await watch.check()
    assert watch.may_sign()


async def test_a_clock_that_is_set_is_seen_before_the_next_comparison(post: Post) -> None:
    clock = WallClock()
    watch = ClockWatch(post.engine, wall=clock)
    await watch.check()
    assert watch.may_sign()
    clock.wrong_s = -3600.0
    assert not watch.may_sign()
    clock.wrong_s = 0.0
    assert watch.may_sign()


async def test_a_database_that_is_away_leaves_the_last_comparison_in_force(post: Post) -> None:
    watch = ClockWatch(connect("postgresql://nobody@127.0.0.1:1/none", application="tests", pool_size=1))
    with capture_logs() as logs:
        await watch.check()
    assert not watch.may_sign()
    assert [line["event"] for line in logs] == ["clock not compared"]


def notifier_settings(post: Post, directory: Path) -> Settings:
    """A notifier of this database, which may call loopback."""
    return Settings(
        database=DatabaseSettings(url=post.url, data_dir=directory),
        secrets=SecretsSettings(master_key=b64encode(MASTER_KEY).decode()),
        notifier=NotifierSettings.model_validate({"allow_http": True, "allow_private": ["127.0.0.0/8"]}),
    )


async def set_database_clock(post: Post, ahead_s: int) -> None:
    """Let the database's clock be so far ahead, for whoever connects from now on and for those who have."""
    await post.execute(
        f"""CREATE OR REPLACE FUNCTION skewed.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS
            $$ SELECT pg_catalog.clock_timestamp() + interval '{ahead_s} s' $$"""
    )


async def test_a_wrong_clock_holds_every_delivery_without_an_attempt_until_it_is_mended(
    post: Post, tmp_path: Path
) -> None:
    await post.execute("CREATE SCHEMA skewed")
    await set_database_clock(post, 300)
    await post.execute(
        """DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = skewed, public, pg_catalog', current_database());
        END $$"""
    )
    stop, before = asyncio.Event(), refusals()
    async with running_receiver() as receiver, asyncio.TaskGroup() as group:
        await post.add_endpoint(receiver)
        event_id = await post.record("dep_1")
        group.create_task(notify(notifier_settings(post, tmp_path), stop))
        await post.wait_until("the clock was found wrong twice", lambda _: refusals() >= before + 2)
        delivery = await post.delivery(event_id)
        assert (delivery.state, delivery.attempts, delivery.lease_token) == ("pending", 0, None)
        assert receiver.requests == []

        await set_database_clock(post, 0)
        await receiver.wait_until("it is told", lambda: len(receiver.requests) == 1)
        assert receiver.requests[0].is_signed
        stop.set()
    assert (await post.delivery(event_id)).attempts == 1
