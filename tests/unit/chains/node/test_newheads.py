"""Announcements are heard, and no socket that misbehaves does more than not be heard."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from structlog.testing import capture_logs

from chains.adapter import HeadHint
from chains.model import Slug
from chains.node import newheads
from chains.node.newheads import HeadSocket, HintBox, SocketFailed, listening, silence_limit_s
from tests.fakes.announcer import BAD, Announcer, Behaviour, announcing, foreign, head, leaving, mute, refusing, silent

SILENCE_S = 0.3
OPEN_TIMEOUT_S = 0.5
PATIENCE_S = 120.0
"""More than the slowest machine needs; the others are for what never comes."""


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newheads, "PAUSE_MIN_S", 0.01)
    monkeypatch.setattr(newheads, "PAUSE_MAX_S", 0.02)
    monkeypatch.setattr(newheads, "OPEN_TIMEOUT_S", PATIENCE_S)


def socket_to(announcer: Announcer, session: aiohttp.ClientSession, silence_s: float = PATIENCE_S) -> HeadSocket:
    return HeadSocket(Slug("testnet"), "node-a", f"{announcer.url}/v2/TOPSECRETKEY", session, silence_s)


async def hear(box: HintBox) -> HeadHint:
    return await asyncio.wait_for(box.next_hint(), PATIENCE_S)


async def test_an_announced_head_is_a_hint(session: aiohttp.ClientSession) -> None:
    async with Announcer(announcing) as announcer, listening([socket_to(announcer, session)]) as box:
        announcer.heads.put_nowait(head(7, 0xAB))
        assert await hear(box) == HeadHint(7, b"\xab" * 32)


async def test_a_burst_is_one_hint_of_the_highest_head() -> None:
    box = HintBox()
    for height in (5, 7, 6):
        box.put(HeadHint(height, bytes([height])))
    assert await box.next_hint() == HeadHint(7, b"\x07")
    box.put(HeadHint(3, b"\x03"))
    assert await box.next_hint() == HeadHint(3, b"\x03")


async def test_a_wait_that_is_given_up_loses_no_hint() -> None:
    box = HintBox()
    waiting = asyncio.create_task(box.next_hint())
    await asyncio.sleep(0)
    box.put(HeadHint(5, b"\x05"))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert await hear(box) == HeadHint(5, b"\x05")


async def test_answers_and_announcements_for_others_are_passed_over(session: aiohttp.ClientSession) -> None:
    async with Announcer(foreign) as announcer, listening([socket_to(announcer, session)]) as box:
        announcer.heads.put_nowait(head(7))
        assert (await hear(box)).height == 7
        assert announcer.connections == 1


@pytest.mark.parametrize("bad", BAD, ids=lambda behaviour: behaviour.__name__)
async def test_a_socket_that_misbehaves_is_opened_anew(
    session: aiohttp.ClientSession, bad: Behaviour, monkeypatch: pytest.MonkeyPatch
) -> None:
    if bad is mute:
        monkeypatch.setattr(newheads, "OPEN_TIMEOUT_S", OPEN_TIMEOUT_S)

    async def telling(announcer: Announcer, connection: aiohttp.web.WebSocketResponse) -> None:
        announcer.heads.put_nowait(head(7))  # to each connection: the first may have been given up on a slow machine
        await announcing(announcer, connection)

    async with Announcer(bad, bad, telling) as announcer:
        with capture_logs() as logs:
            silence_s = SILENCE_S if bad is silent else PATIENCE_S
            async with listening([socket_to(announcer, session, silence_s)]) as box:
                assert (await hear(box)).height == 7
        assert announcer.connections >= 3
    complaints = [row for row in logs if row["log_level"] == "warning"]
    assert [row["event"] for row in complaints] == ["no announcements, polling goes on"]  # twice failed, said once
    assert logs[-1]["event"] == "announcements recovered"
    assert "TOPSECRETKEY" not in str(logs)


async def test_a_socket_that_drops_again_and_again_is_complained_of_once_a_minute(
    session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def flapping(announcer: Announcer, connection: aiohttp.web.WebSocketResponse) -> None:
        announcer.heads.put_nowait(head(announcer.connections))
        task = asyncio.create_task(announcing(announcer, connection))
        await asyncio.wait({task}, timeout=0.02)
        task.cancel()
        await connection.close()

    async with Announcer(flapping) as announcer:
        with capture_logs() as logs:
            async with listening([socket_to(announcer, session)]) as box:
                while announcer.connections < 6:
                    await hear(box)
    assert sum(row["log_level"] == "warning" for row in logs) == 1


async def test_a_node_that_is_away_is_tried_again(session: aiohttp.ClientSession) -> None:
    async with Announcer(announcing) as gone:
        url = gone.url
    with pytest.raises(SocketFailed, match="connection failed"):
        await HeadSocket(Slug("testnet"), "node-a", url, session, PATIENCE_S).check()


async def test_one_bad_socket_does_not_silence_another(session: aiohttp.ClientSession) -> None:
    async with Announcer(silent) as bad, Announcer(announcing) as good:
        sockets = [socket_to(bad, session), socket_to(good, session)]
        async with listening(sockets) as box:
            good.heads.put_nowait(head(7))
            assert (await hear(box)).height == 7


async def test_a_check_says_what_is_wrong_without_the_key(
    session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Announcer(announcing, refusing, mute, leaving) as announcer:
        await socket_to(announcer, session).check()
        with pytest.raises(SocketFailed, match=r"eth_subscribe is refused: .* for key \*\*\*"):
            await socket_to(announcer, session).check()
        monkeypatch.setattr(newheads, "OPEN_TIMEOUT_S", OPEN_TIMEOUT_S)
        with pytest.raises(SocketFailed, match=r"(not answered|no connection) in 0\.5 s"):
            await socket_to(announcer, session).check()


async def test_a_fault_of_ours_reaches_whoever_waits() -> None:
    session = aiohttp.ClientSession()
    await session.close()
    async with Announcer(announcing) as announcer, listening([socket_to(announcer, session)]) as box:
        with pytest.raises(RuntimeError, match="Session is closed"):
            await hear(box)


def test_a_slow_chain_may_be_silent_for_longer() -> None:
    assert (silence_limit_s(2), silence_limit_s(12)) == (60, 120)
