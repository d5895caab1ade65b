"""`chainbell listen`: forward a tenant's events to a program on this machine, signed, as they happen.

For whoever writes a receiver: no database, no public address and no endpoint is needed, only a key of the tenant. Events
are read from the feed and sent by the notifier's own sender, so that what arrives differs from a webhook in nothing but
the secret. An event is sent once: one that the receiver did not take is said, and the next one follows.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_network
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from chainbell.cli.context import Context, context_of, moment_given
from chainbell.errors import UsageError
from chainbell.feed import Feed, FeedEvent, FeedPage, FeedUnavailable, check_key, parse_api_url
from chainbell.supervisor import run_until_signal
from chainbell.version import VERSION
from ledger.documents import time_of
from ledger.events import admits
from ledger.secrets import new_endpoint_secret
from ledger.states import EVENT_TYPES, Outcome
from ledger.urls import EndpointPolicy, UnsafeUrl, parse_endpoint_url
from notifier.errors import CannotSign
from notifier.outcome import AttemptError
from notifier.sender import AttemptResult, Sender, SendRequest
from notifier.signing import webhook_headers

WAIT_S = 30
"""How long the API is asked to hold an empty answer back: its own limit."""

PAUSE_FIRST_S = 0.5
PAUSE_MAX_S = 10.0
"""Between two questions to an API that is away, doubling."""

LOCAL = EndpointPolicy(allow_http=True, allow_private=(ip_network("127.0.0.0/8"), ip_network("::1/128")))
"""What may be forwarded to: any port of this machine, and what an endpoint of an ordinary installation may be."""

_MEANINGS = {
    AttemptError.CONNECT: "nothing accepts connections there",
    AttemptError.DNS: "its name is not known",
    AttemptError.TIMEOUT: "no answer in time (5 s for a connection and for TLS, 20 s in all)",
    AttemptError.RESET: "the connection ended before a status came",
    AttemptError.TLS: "its certificate is not trusted here",
    AttemptError.REDIRECT: "redirects are not followed",
    AttemptError.REFUSED_ADDRESS: "its name leads to neither this machine nor a public address",
}
_FAMILIES = sorted({event_type.split(".")[0] + ".*" for event_type in EVENT_TYPES})


@dataclass(frozen=True, slots=True)
class Forwarding:
    """What one call was asked to forward, and where to."""

    url: str
    secret: str
    event_types: tuple[str, ...] | None
    """None admits all."""
    place: dict[str, str]
    """Where in the feed it begins: `after` or `since`."""


def listen(
    context: typer.Context,
    forward_to: Annotated[str, typer.Option(help="URL of your receiver, such as http://localhost:3000/webhooks.")],
    key: Annotated[
        str, typer.Option(envvar="CHAINBELL_API_KEY", help="Key with the scope events:read.", show_default=False)
    ] = "",
    api: Annotated[str, typer.Option(envvar="CHAINBELL_API_URL", help="URL of the API.")] = "http://127.0.0.1:8080",
    secret: Annotated[
        str | None,
        typer.Option(envvar="WEBHOOK_SECRET", help="Sign with this whsec_ secret; one is made where it is left out."),
    ] = None,
    event_types: Annotated[
        list[str] | None, typer.Option(help="Such as deposit.confirmed or deposit.*; may be repeated. All by default.")
    ] = None,
    since: Annotated[str | None, typer.Option(help="Begin at this time, such as 2026-11-01T00:00:00Z.")] = None,
    after: Annotated[str | None, typer.Option(help="Begin after this cursor of the feed.")] = None,
) -> None:
    """Forward a tenant's events to a program on this machine, signed, as they happen. Ends with Ctrl-C."""
    ours = context_of(context)
    if not key:
        raise UsageError("no key was given; set CHAINBELL_API_KEY, or give --key, with the scope events:read")
    feed = Feed(parse_api_url(api), check_key(key))
    forwarding = Forwarding(
        url=check_receiver(forward_to),
        secret=new_endpoint_secret() if secret is None else _check_secret(secret),
        event_types=check_types(event_types),
        place=_place(since, after),
    )
    screen = Screen(ours, is_secret_shown=secret is None)
    run_until_signal(lambda stop: forward(feed, forwarding, screen, stop))


def check_receiver(text: str) -> str:
    """The URL to forward to, in its one spelling. Raises `UsageError` for another's plain http and for other networks."""
    try:
        endpoint = parse_endpoint_url(text, LOCAL)
        if endpoint.scheme == "http" and not _looks_local(endpoint.host):
            raise UnsafeUrl("plain http is only sent to this machine")
        return endpoint.text
    except UnsafeUrl as error:
        said = str(error).partition(";")[0]
        raise UsageError(
            f"--forward-to: {said}; name a program on this machine, as in http://localhost:3000/webhooks, or a public"
            " https URL"
        ) from None


def _looks_local(host: str) -> bool:
    """True where an ordinary installation refuses the host, though `LOCAL` lets it pass: loopback, or a local network's
    name, which must then lead to loopback."""
    try:
        parse_endpoint_url(f"https://[{host}]/" if ":" in host else f"https://{host}/", EndpointPolicy())
    except UnsafeUrl:
        return True
    return False


def _check_secret(secret: str) -> str:
    try:
        webhook_headers("evt", datetime.fromtimestamp(0).astimezone(), b"", [secret])
    except CannotSign:
        raise UsageError(
            "--secret is not whsec_ and base64 of 24 to 64 bytes; copy it again, or leave it out"
        ) from None
    return secret


def check_types(given: Sequence[str] | None) -> tuple[str, ...] | None:
    """The types and families that were given, one by one or with commas. Raises `UsageError` naming those that exist."""
    patterns = tuple(pattern.strip() for text in given or () for pattern in text.split(","))
    for pattern in patterns:
        if pattern not in (*EVENT_TYPES, *_FAMILIES, "*"):
            known = ", ".join((*_FAMILIES, *EVENT_TYPES))
            raise UsageError(f"--event-types: no event has the type {pattern!r}; there are: {known}")
    return patterns or None


def _place(since: str | None, after: str | None) -> dict[str, str]:
    if since is not None and after is not None:
        raise UsageError("--since and --after both say where to begin; give one of them")
    if since is not None:
        return {"since": time_of(moment_given("--since", since))}
    return {"after": "latest" if after is None else after}


class Screen:
    """What is shown: lines for people, JSON lines for programs; complaints go to stderr."""

    def __init__(self, ours: Context, *, is_secret_shown: bool) -> None:
        """A secret that was given is known to whoever gave it, and not shown."""
        self._wants_json = ours.wants_json
        self._is_secret_shown = is_secret_shown
        self._console = Console(highlight=False, soft_wrap=True)

    def show_start(self, feed: Feed, forwarding: Forwarding) -> None:
        """That the API has answered, and what to verify with."""
        shown = forwarding.secret if self._is_secret_shown else None
        types = ", ".join(forwarding.event_types or ("all events",))
        if self._wants_json:
            row = {"api": str(feed.api), "forward_to": forwarding.url, "event_types": forwarding.event_types}
            self._print_row({**row, "secret": shown})
            return
        self._console.print(Text(f"forwarding {types} from {feed.api} to {forwarding.url}"))
        verify = f"verify with {shown}" if shown else "signed with the secret that was given"
        self._console.print(Text(verify, style="bold"))

    def show_attempt(self, event: FeedEvent, result: AttemptResult) -> None:
        """What the receiver answered to an event."""
        if self._wants_json:
            row = {"event_id": event.id, "event_type": event.type, "status_code": result.status_code}
            self._print_row(
                {**row, "outcome": result.outcome, "error": result.error, "duration_ms": result.duration_ms}
            )
            return
        style = "green" if result.outcome is Outcome.ACCEPTED else "red"
        at = result.started_at.astimezone().strftime("%H:%M:%S")
        said = Text(f"{_said_of(result)} ({result.duration_ms} ms)", style=style)
        self._console.print(Text(f"{at}  {event.type:<22} {event.id}  ").append_text(said))

    def complain(self, sentence: str) -> None:
        """Say what is wrong, or that it is over."""
        typer.echo(f"chainbell: {sentence}", err=True)

    def _print_row(self, row: dict[str, object]) -> None:
        sys.stdout.buffer.write(msgspec.json.encode(row) + b"\n")
        sys.stdout.buffer.flush()


def _said_of(result: AttemptResult) -> str:
    if result.error is None:
        return str(result.status_code)
    meaning = _MEANINGS.get(result.error)
    status = f"{result.status_code}, " if result.status_code is not None else ""
    return f"{status}{result.error}: {meaning}" if meaning else f"{status}{result.error}"


async def forward(feed: Feed, forwarding: Forwarding, screen: Screen, stop: asyncio.Event) -> None:
    """Forward events until `stop`. Raises what the API's first answer makes clear, and later what no waiting can mend."""
    place = dict(forwarding.place)
    forwarder = asyncio.create_task(_forward(feed, forwarding, screen, place))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({forwarder, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    forwarder.cancel()  # an answer that is waited for now would not come before the next event
    with suppress(asyncio.CancelledError):
        await forwarder
    if place.get("after", "latest") != "latest":
        screen.complain(f"stopped; go on from here with --after {place['after']}")


async def _forward(feed: Feed, forwarding: Forwarding, screen: Screen, place: dict[str, str]) -> None:
    """`place` is moved on behind each page whose events have all been sent."""
    async with feed, Sender(LOCAL, version=VERSION) as sender:
        page = await feed.read(place)
        screen.show_start(feed, forwarding)
        while True:
            for event in page.events:
                if admits(forwarding.event_types, event.type):
                    order = SendRequest(forwarding.url, event.id, event.body, (forwarding.secret,))
                    screen.show_attempt(event, await sender.send(order))
            place.clear()
            place["after"] = page.next_cursor
            page = await _next_page(feed, page.next_cursor, screen)


async def _next_page(feed: Feed, cursor: str, screen: Screen) -> FeedPage:
    """The next page, however long the API is away: it is restarted, and nothing is skipped."""
    pause_s = PAUSE_FIRST_S
    while True:
        try:
            page = await feed.read({"after": cursor}, wait_s=WAIT_S)
        except FeedUnavailable as error:
            if pause_s == PAUSE_FIRST_S:
                screen.complain(f"{error}; trying again")
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, PAUSE_MAX_S)
            continue
        if pause_s > PAUSE_FIRST_S:
            screen.complain(f"{feed.api} answers again")
        return page
