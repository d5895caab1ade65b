"""The command `listen`: a tenant's events come to a program on this machine, as webhooks would."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from api.app import create_app
from api.server import serving
from chainbell.cli.context import Context
from chainbell.cli.listen import Forwarding, Screen, forward
from chainbell.errors import UsageError
from chainbell.feed import Feed, FeedRefused, FeedUnavailable
from ledger.cursors import cursor_key_of
from ledger.database import connect_api, database_now, transaction
from ledger.events import record_event
from ledger.ids import EventId
from ledger.secrets import SecretBox, new_endpoint_secret
from ledger.urls import EndpointPolicy
from tests.fakes.receiver import answer, reset, running_receiver
from tests.integration.api.conftest import MASTER_KEY, Service
from tests.outside.installation import free_port

ROOT = Path(__file__).resolve().parents[3]
LIMIT_S = 120.0
"""For what a loaded machine may take to start a command; nothing here waits that long by design."""


async def tell(service: Service, event_type: str = "deposit.detected", subject: str = "dep_1") -> EventId:
    """An event that nobody has an endpoint for."""
    async with transaction(service.owner) as connection:
        return await record_event(
            connection,
            tenant_id=service.tenant_id,
            event_type=event_type,
            subject=subject,
            data={"id": subject, "reference": "caf\u00e9 \u2713"},
            livemode=False,
            now=await database_now(connection),
        )


@dataclass
class Listener:
    """The running command."""

    process: asyncio.subprocess.Process

    async def read_row(self) -> dict[str, Any]:
        """Its next JSON line."""
        assert self.process.stdout is not None
        async with asyncio.timeout(LIMIT_S):
            row: dict[str, Any] = json.loads(await self.process.stdout.readline())
            return row

    async def end(self) -> tuple[int | None, str]:
        """Its exit status and errors, once it has ended."""
        async with asyncio.timeout(LIMIT_S):
            _, errors = await self.process.communicate()
        return self.process.returncode, errors.decode()


@asynccontextmanager
async def running_command(cwd: Path, key: str, *arguments: str) -> AsyncIterator[Listener]:
    """The command in a directory without settings; killed at the end where it still runs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "chainbell", "listen", "--json", *arguments),
        cwd=cwd,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "CHAINBELL_API_KEY": key},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield Listener(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


async def test_events_come_signed_with_their_exact_bytes_and_a_failing_receiver_stops_nothing(
    service: Service, tmp_path: Path
) -> None:
    key = await service.make_key("events:read")
    before = await tell(service)
    async with running_receiver() as receiver:
        asked = ("--api", service.url, "--forward-to", receiver.url, "--event-types", "deposit.*")
        async with running_command(tmp_path, key, *asked) as listener:
            started = await listener.read_row()
            assert (started["api"], started["forward_to"]) == (service.url, receiver.url)
            receiver.secrets.append(started["secret"])
            receiver.script(answer(500), reset(), answer(204))
            others = await tell(service, "watch.activated", "wat_1")
            told = [await tell(service, subject=f"dep_{number}") for number in range(3)]
            rows = [await listener.read_row() for _ in told]
            assert [(row["event_id"], row["status_code"], row["outcome"], row["error"]) for row in rows] == [
                (told[0], 500, "retryable", None),
                (told[1], None, "retryable", "reset"),
                (told[2], 204, "accepted", None),
            ]
            assert [request.event_id for request in receiver.requests] == told
            assert {before, others}.isdisjoint(told)
            for request in receiver.requests:
                stored = await service.ask("GET", f"/v1/events/{request.event_id}")
                assert request.body == stored.content
                assert request.is_signed
                assert request.headers["user-agent"].startswith("Chainbell/")
            listener.process.send_signal(signal.SIGINT)
            status, errors = await listener.end()
    assert status == 0, errors
    assert errors.startswith("chainbell: stopped; go on from here with --after ")
    assert key not in errors
    assert key not in json.dumps([started, *rows])


async def test_a_key_without_the_scope_gets_one_sentence(service: Service, tmp_path: Path) -> None:
    key = await service.make_key("watches:read")
    asked = ("--api", service.url, "--forward-to", "http://localhost:3000/")
    async with running_command(tmp_path, key, *asked) as listener:
        status, errors = await listener.end()
    assert (status, errors) == (
        1,
        f"chainbell: {service.url}: the key lacks the scope events:read; it has watches:read\n",
    )


def listening(receiver_url: str, secret: str, place: dict[str, str]) -> Forwarding:
    return Forwarding(receiver_url, secret, None, place)


def screen(*, wants_json: bool = True) -> Screen:
    return Screen(Context(None, wants_json=wants_json), is_secret_shown=True)


@asynccontextmanager
async def forwarding(feed: Feed, what: Forwarding, shown: Screen) -> AsyncIterator[asyncio.Task[None]]:
    """Forward while the block runs, and end as by Ctrl-C."""
    stop = asyncio.Event()
    task = asyncio.create_task(forward(feed, what, shown, stop))
    try:
        yield task
    finally:
        stop.set()
        await task


async def test_a_restart_of_the_api_costs_nothing_but_time(
    service: Service, database_url: str, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    engine = connect_api(database_url, pool_size=3)

    def _app() -> Any:  # noqa: ANN401 (an application serves once)
        return create_app(
            engine=engine,
            operator_engine=engine,
            secret_box=SecretBox(MASTER_KEY),
            endpoint_policy=EndpointPolicy(),
            cursor_key=cursor_key_of(MASTER_KEY),
            version="0.0.0",
        )

    secret = new_endpoint_secret()
    async with running_receiver(secrets=[secret]) as receiver:
        async with serving(_app(), "127.0.0.1", 0) as (host, port):
            first = await tell(service)
            feed = Feed(URL(f"http://{host}:{port}"), service.key)
            what = listening(receiver.url, secret, {"since": "2026-01-01T00:00:00Z"})
            running = forwarding(feed, what, screen())
            await running.__aenter__()
            await receiver.wait_until("the first came", lambda: len(receiver.requests) == 1, LIMIT_S)
        second = await tell(service)
        errors = ""
        async with asyncio.timeout(LIMIT_S):
            while "trying again" not in errors:
                errors += capsysbinary.readouterr().err.decode()
                await asyncio.sleep(0.01)
        async with serving(_app(), host, port):
            await receiver.wait_until("the second came", lambda: len(receiver.requests) == 2, LIMIT_S)
            await running.__aexit__(None, None, None)
        assert [request.event_id for request in receiver.requests] == [first, second]
        assert all(request.is_signed for request in receiver.requests)
    await engine.dispose()
    errors += capsysbinary.readouterr().err.decode()
    assert "cannot be reached" in errors
    assert "trying again" in errors
    assert "answers again" in errors


async def test_people_read_one_line_for_each_event(service: Service, capsys: pytest.CaptureFixture[str]) -> None:
    first = await tell(service)
    what = listening(f"http://127.0.0.1:{free_port()}/", new_endpoint_secret(), {"since": "2026-01-01T00:00:00Z"})
    said = ""
    async with forwarding(Feed(URL(service.url), service.key), what, screen(wants_json=False)):
        async with asyncio.timeout(LIMIT_S):
            while "connections" not in said:
                said += capsys.readouterr().out
                await asyncio.sleep(0.01)
    lines = [
        line for line in said.splitlines() if "request finished" not in line
    ]  # the API logs to the same screen here
    assert lines[0] == f"forwarding all events from {service.url} to {what.url}"
    assert lines[1] == f"verify with {what.secret}"
    assert f"deposit.detected       {first}  connect: nothing accepts connections there (" in lines[2]
    assert service.key not in said


async def test_what_no_waiting_can_mend_ends_it(service: Service) -> None:
    stranger = await service.make_key("watches:read")
    for url, key, place, kind, said in (
        (service.url, stranger, {"after": "latest"}, FeedRefused, "events:read"),
        (service.url, service.key, {"after": "nonsense"}, UsageError, "cursor"),
        (f"{service.url}/elsewhere", service.key, {"after": "latest"}, FeedRefused, "there is no"),
        (
            f"http://127.0.0.1:{free_port()}",
            service.key,
            {"after": "latest"},
            FeedUnavailable,
            "Connection refused",
        ),
    ):
        with pytest.raises(kind, match=said) as raised:
            await forward(
                Feed(URL(url), key), listening("http://localhost:1/", "whsec_", place), screen(), asyncio.Event()
            )
        assert key not in str(raised.value)


async def test_an_answer_that_is_not_ours_is_said_to_be_none(service: Service) -> None:
    del service
    async with running_receiver(behaviour=answer(200, b"<html>")) as elsewhere:
        with pytest.raises(FeedRefused, match="does not answer as a Chainbell API does"):
            async with Feed(URL(elsewhere.url), "key") as feed:
                await feed.read({"after": "latest"})
        elsewhere.behaviour = answer(302, location="http://127.0.0.1:1/")
        with pytest.raises(FeedRefused, match="answers 302, and not as a Chainbell API does"):
            async with Feed(URL(elsewhere.url), "key") as feed:
                await feed.read({"after": "latest"})
        elsewhere.behaviour = answer(502, b"<html>")
        with pytest.raises(FeedUnavailable, match="502"):
            async with Feed(URL(elsewhere.url), "key") as feed:
                await feed.read({"after": "latest"})


async def test_the_end_of_the_feed_and_a_time_in_it_can_be_asked_for(service: Service) -> None:
    await tell(service)
    between = datetime.now(UTC)
    second = await tell(service)
    latest = (await service.ask("GET", "/v1/events", query={"after": "latest"})).json
    assert latest["data"] == []
    third = await tell(service)
    page = (await service.ask("GET", "/v1/events", query={"after": latest["next_cursor"], "wait": 30})).json
    assert [event["id"] for event in page["data"]] == [third]
    since = (await service.ask("GET", "/v1/events", query={"since": between.isoformat().replace("+00:00", "Z")})).json
    assert [event["id"] for event in since["data"]] == [second, third]
    future = (await service.ask("GET", "/v1/events", query={"since": "2999-01-01T00:00:00Z"})).json
    assert future == {"data": [], "next_cursor": page["next_cursor"]}
    for query, pointer in (
        ({"after": "latest", "wait": 1}, "/wait"),
        ({"after": "latest", "since": "2026-01-01T00:00:00Z"}, "/since"),
        ({"since": "2026-01-01T00:00:00"}, "/since"),
    ):
        refused = await service.ask("GET", "/v1/events", query=query)
        assert (refused.status, refused.json["errors"][0]["pointer"]) == (422, pointer)
