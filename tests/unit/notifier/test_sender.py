"""The POST against a real receiver that does everything a receiver should not."""

from __future__ import annotations

import asyncio
import gzip
import resource
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ledger.secrets import new_endpoint_secret
from ledger.states import Outcome
from ledger.urls import EndpointPolicy
from notifier.outcome import AttemptError
from notifier.sender import Sender, SendRequest, TimeLimits
from tests.fakes import receiver as fake
from tests.fakes.receiver import Receiver, running_receiver
from tests.outside.installation import free_port

POLICY = EndpointPolicy(allow_http=True, allow_private=(ip_network("127.0.0.0/8"),))
SECRET = new_endpoint_secret()
RECEIVER = ""
"""Stands for the running receiver's URL."""
BODY = b'{"id":"evt_1","type":"test.ping"}'
QUICK = TimeLimits(total_s=0.4, connect_s=60.0, dns_s=0.2)
PATIENT = TimeLimits(total_s=240.0, connect_s=60.0, dns_s=240.0)
"""More than the slowest machine needs."""
NEVER_MS = 15_000
"""Less than any limit that is not `QUICK`, and more than a busy machine adds to one that is."""


@pytest_asyncio.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with running_receiver(secrets=[SECRET]) as running:
        yield running


@pytest_asyncio.fixture
async def sender() -> AsyncIterator[Sender]:
    async with Sender(POLICY, version="1.2.3", limits=PATIENT) as entered:
        yield entered


@pytest_asyncio.fixture
async def quick_sender(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Sender]:
    monkeypatch.setattr("notifier.sender.FROZEN_S", NEVER_MS)  # a busy machine is late, and did not stand still
    async with Sender(POLICY, version="1.2.3", limits=QUICK) as entered:
        yield entered


def pass_time(seconds: float) -> None:
    """Set the running loop's clock ahead: its timers find that so much time has passed at one moment."""
    loop = asyncio.get_running_loop()
    clock = loop.time
    loop.time = lambda: clock() + seconds  # type: ignore[method-assign]


def request_to(url: str, event_id: str = "evt_1") -> SendRequest:
    return SendRequest(url=url, event_id=event_id, body=BODY, secrets=(SECRET,))


async def test_an_accepted_attempt_carries_the_stored_bytes_and_the_standard_headers(
    receiver: Receiver, sender: Sender
) -> None:
    receiver.behaviour = fake.answer(200, b"thanks")
    before = datetime.now(UTC)
    result = await sender.send(request_to(receiver.url + "?a=%2F&b=c"))
    assert (result.outcome, result.status_code, result.error) == (Outcome.ACCEPTED, 200, None)
    assert result.response_excerpt == "thanks"
    assert before <= result.started_at <= datetime.now(UTC)
    (got,) = receiver.requests
    assert got.body == BODY
    assert got.is_signed
    assert got.path == "/hook?a=%2F&b=c"
    assert got.event_id == "evt_1"
    assert abs(int(got.timestamp) - result.started_at.timestamp()) <= 1
    assert got.headers["content-type"] == "application/json"
    assert got.headers["user-agent"] == "Chainbell/1.2.3"
    assert got.headers["accept-encoding"] == "identity"


async def test_the_timestamp_is_the_clock_s_at_the_attempt(receiver: Receiver) -> None:
    at = datetime(2026, 11, 1, 1, 2, 3, tzinfo=UTC)
    async with Sender(POLICY, version="1", clock=lambda: at) as sender:
        assert (await sender.send(request_to(receiver.url))).started_at == at
    assert receiver.requests[0].timestamp == str(int(at.timestamp()))


async def test_several_secrets_all_sign(receiver: Receiver, sender: Sender) -> None:
    await sender.send(replace(request_to(receiver.url), secrets=(new_endpoint_secret(), SECRET)))
    assert receiver.requests[0].is_signed
    assert receiver.requests[0].headers["webhook-signature"].count("v1,") == 2


async def test_connections_are_kept_between_attempts(receiver: Receiver, sender: Sender) -> None:
    receiver.behaviour = fake.answer(200, b"ok")
    for _ in range(5):
        await sender.send(request_to(receiver.url))
    assert len({got.peer for got in receiver.requests}) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 429, 500, 502, 503])
async def test_other_statuses_are_retryable_and_keep_the_excerpt(
    receiver: Receiver, sender: Sender, status: int
) -> None:
    receiver.behaviour = fake.answer(status, b"no\0pe", retry_after="17")
    result = await sender.send(request_to(receiver.url))
    assert (result.outcome, result.status_code, result.error) == (Outcome.RETRYABLE, status, None)
    assert result.response_excerpt == "no\ufffdpe"
    assert result.retry_after == "17"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(receiver: Receiver, sender: Sender, status: int) -> None:
    async with running_receiver() as elsewhere:
        receiver.behaviour = fake.redirect(elsewhere.url, status)
        result = await sender.send(request_to(receiver.url))
        assert (result.outcome, result.status_code, result.error) == (
            Outcome.RETRYABLE,
            status,
            AttemptError.REDIRECT,
        )
        assert len(receiver.requests) == 1
        assert elsewhere.requests == []


@pytest.mark.parametrize("behaviour", [fake.hang(), fake.drip_headers(0.02)], ids=["hang", "drip of headers"])
async def test_a_receiver_without_a_status_is_left_at_the_total_limit(
    receiver: Receiver, quick_sender: Sender, behaviour: fake.Behaviour
) -> None:
    receiver.behaviour = behaviour
    result = await quick_sender.send(request_to(receiver.url))
    assert (result.outcome, result.status_code, result.error) == (Outcome.RETRYABLE, None, AttemptError.TIMEOUT)
    assert result.response_excerpt is None
    assert 1000 * QUICK.total_s <= result.duration_ms < NEVER_MS


@pytest.mark.parametrize(("status", "outcome"), [(200, Outcome.ACCEPTED), (500, Outcome.RETRYABLE)])
async def test_a_slow_drip_is_cut_off_at_the_total_limit_and_judged_by_its_status(
    receiver: Receiver, sender: Sender, monkeypatch: pytest.MonkeyPatch, status: int, outcome: Outcome
) -> None:
    monkeypatch.setattr("notifier.sender.READ_BODY_S", 2 * PATIENT.total_s)
    monkeypatch.setattr("notifier.sender.FROZEN_S", PATIENT.total_s)
    has_begun = asyncio.Event()

    async def drip(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(status=status)
        await response.prepare(request)
        for count in range(1_000_000):
            await response.write(b".")
            await asyncio.sleep(0.01)
            if count == 20:  # the first of them have been read by now: one loop serves both
                has_begun.set()
        raise AssertionError("nobody left")

    receiver.behaviour = drip
    sending = asyncio.create_task(sender.send(request_to(receiver.url)))
    await has_begun.wait()
    pass_time(PATIENT.total_s)
    result = await sending
    assert (result.outcome, result.status_code, result.error) == (outcome, status, None)
    assert result.response_excerpt is not None
    assert result.response_excerpt.startswith(".")


async def test_an_endless_answer_is_read_to_the_limit_and_no_further(receiver: Receiver, sender: Sender) -> None:
    receiver.behaviour = fake.endless()
    await sender.send(request_to(receiver.url))
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(20):
        result = await sender.send(request_to(receiver.url))
        assert result.outcome is Outcome.ACCEPTED
        assert result.response_excerpt == "x" * 4096
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 20 * 1024


async def test_ten_promised_gigabytes_are_not_waited_for(receiver: Receiver, sender: Sender) -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 10737418240\r\n\r\n"
    receiver.behaviour = fake.raw(head + b"y" * 40_000)
    result = await sender.send(request_to(receiver.url))
    assert (result.outcome, result.response_excerpt) == (Outcome.ACCEPTED, "y" * 4096)


async def test_a_connection_with_an_unread_rest_is_not_used_again(receiver: Receiver, sender: Sender) -> None:
    receiver.script(fake.endless())
    await sender.send(request_to(receiver.url))
    receiver.behaviour = fake.answer(200, b"clean")
    assert (await sender.send(request_to(receiver.url))).response_excerpt == "clean"
    assert len({got.peer for got in receiver.requests}) == 2


async def test_a_receiver_that_shows_what_it_knows_is_kept_without_it(receiver: Receiver, sender: Sender) -> None:
    """A debug page shows its server's variables, and an attempt is kept in the open."""
    page = f"<td>'WEBHOOK_SECRET': '{SECRET}'</td><td>KEY=cb_live_0123456789abcdef_x</td>"
    receiver.behaviour = fake.answer(500, b"\xff" + page.encode())
    result = await sender.send(request_to(receiver.url))
    assert result.response_excerpt == "\ufffd<td>'WEBHOOK_SECRET': '***'</td><td>KEY=***</td>"
    receiver.behaviour = fake.answer(500, b"x" * 4080 + SECRET.encode())
    assert (await sender.send(request_to(receiver.url))).response_excerpt == "x" * 4080 + "***"


async def test_a_gzip_bomb_is_kept_as_it_came(receiver: Receiver, sender: Sender) -> None:
    bomb = gzip.compress(bytes(20_000_000))
    receiver.behaviour = fake.gzip_bomb(bomb)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = await sender.send(request_to(receiver.url))
    assert result.outcome is Outcome.ACCEPTED
    assert result.response_excerpt is not None
    assert len(result.response_excerpt) <= 4096
    assert "\0" not in result.response_excerpt
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 10 * 1024


async def test_cookies_are_forgotten(receiver: Receiver, sender: Sender) -> None:
    receiver.behaviour = fake.cookie("stolen")
    await sender.send(request_to(receiver.url))
    await sender.send(request_to(receiver.url))
    assert all("cookie" not in got.headers for got in receiver.requests)


async def test_a_reset_is_retryable(receiver: Receiver, sender: Sender) -> None:
    receiver.behaviour = fake.reset()
    result = await sender.send(request_to(receiver.url))
    assert (result.outcome, result.status_code, result.error) == (Outcome.RETRYABLE, None, AttemptError.RESET)
    assert len(receiver.requests) == 1


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"SSH-2.0-OpenSSH_9.6\r\n", AttemptError.PROTOCOL),
        (b"HTTP/1.1 abc\r\n\r\n", AttemptError.PROTOCOL),
        (b"\x00\xff\x00\xff", AttemptError.PROTOCOL),
        (b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n", AttemptError.PROTOCOL),
        (b"HTTP/1.1 200 OK\r\nx: " + b"a" * 200_000 + b"\r\n\r\n", AttemptError.TOO_LARGE),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1", AttemptError.RESET),
        (b"", AttemptError.RESET),
    ],
)
async def test_answers_that_are_not_http_are_retryable(
    receiver: Receiver, sender: Sender, data: bytes, error: AttemptError
) -> None:
    receiver.behaviour = fake.raw(data)
    result = await sender.send(request_to(receiver.url))
    assert (result.outcome, result.status_code, result.error) == (Outcome.RETRYABLE, None, error)


async def test_a_2xx_whose_body_is_cut_off_has_accepted(receiver: Receiver, sender: Sender) -> None:
    receiver.behaviour = fake.raw(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort")
    result = await sender.send(request_to(receiver.url))
    assert (result.outcome, result.status_code, result.error) == (Outcome.ACCEPTED, 200, None)


async def test_nobody_listening_is_a_connect_error(sender: Sender) -> None:
    result = await sender.send(request_to(f"http://127.0.0.1:{free_port()}/"))
    assert (result.outcome, result.error) == (Outcome.RETRYABLE, AttemptError.CONNECT)


def _no_such_host(host: str, port: int) -> list[str]:
    raise OSError(f"{host}:{port} is not known")


def _slow_name_server(host: str, port: int) -> list[str]:
    assert (host, port) == ("merchant.example", 443)
    threading.Event().wait(60)  # in a thread that nobody waits for
    return ["127.0.0.1"]


def _no_answers(host: str, port: int) -> list[str]:
    assert (host, port) == ("merchant.example", 443)
    return []


@pytest.mark.parametrize("lookup", [_no_such_host, _slow_name_server, _no_answers])
async def test_a_name_that_does_not_resolve_in_time_is_a_dns_error(lookup: Callable[[str, int], list[str]]) -> None:
    async with Sender(POLICY, version="1", limits=QUICK, lookup=lookup) as sender:
        result = await sender.send(request_to("https://merchant.example/"))
    assert (result.outcome, result.error) == (Outcome.RETRYABLE, AttemptError.DNS)
    assert result.duration_ms < NEVER_MS


async def test_dead_name_servers_do_not_delay_other_endpoints(receiver: Receiver) -> None:
    may_answer = threading.Event()

    def lookup(host: str, port: int) -> list[str]:
        if host != "good.example":
            may_answer.wait(PATIENT.dns_s)
        return ["127.0.0.1"] if port else []

    port = receiver.url.split(":")[2]
    async with Sender(POLICY, version="1", lookup=lookup, limits=PATIENT) as sender:
        slow = [asyncio.create_task(sender.send(request_to(f"http://dead{n}.example:{port}"))) for n in range(40)]
        await asyncio.sleep(0)
        result = await sender.send(request_to(f"http://good.example:{port}"))
        assert result.outcome is Outcome.ACCEPTED
        assert not any(task.done() for task in slow)
        may_answer.set()
        await asyncio.gather(*slow)


@pytest.mark.parametrize(
    ("url", "event_id", "secrets", "error"),
    [
        (RECEIVER, "evt\r\nX-Evil: 1", (SECRET,), AttemptError.UNSIGNABLE),
        (RECEIVER, "evt.1", (SECRET,), AttemptError.UNSIGNABLE),
        (RECEIVER, "evt_1", (), AttemptError.UNSIGNABLE),
        (RECEIVER, "evt_1", ("whsec_%%%",), AttemptError.UNSIGNABLE),
        ("http://127.0.0.1:2/\r\nX-Evil: 1", "evt_1", (SECRET,), AttemptError.BAD_URL),
        ("ftp://127.0.0.1/", "evt_1", (SECRET,), AttemptError.BAD_URL),
        ("https://", "evt_1", (SECRET,), AttemptError.BAD_URL),
    ],
)
async def test_what_cannot_be_sent_is_refused_without_a_connection(
    receiver: Receiver, sender: Sender, url: str, event_id: str, secrets: tuple[str, ...], error: AttemptError
) -> None:
    result = await sender.send(SendRequest(url or receiver.url, event_id, BODY, secrets))
    assert (result.outcome, result.status_code, result.error) == (Outcome.REFUSED, None, error)
    assert receiver.requests == []


async def test_a_user_agent_that_cannot_be_a_header_fails_one_attempt_and_not_the_worker(receiver: Receiver) -> None:
    async with Sender(POLICY, version="1\r\nX-Evil: 1") as sender:
        result = await sender.send(request_to(receiver.url))
    assert (result.outcome, result.error) == (Outcome.REFUSED, AttemptError.BAD_HEADER)
    assert receiver.requests == []


async def test_a_hundred_hanging_receivers_do_not_delay_a_healthy_one(receiver: Receiver, sender: Sender) -> None:
    receiver.script_event("evt_hang", fake.hang())
    hanging = [asyncio.create_task(sender.send(request_to(receiver.url, "evt_hang"))) for _ in range(100)]
    await receiver.wait_until("all hang", lambda: len(receiver.requests) == 100)
    result = await sender.send(request_to(receiver.url))
    assert result.outcome is Outcome.ACCEPTED
    assert not any(task.done() for task in hanging)
    for task in hanging:
        task.cancel()
    await asyncio.gather(*hanging, return_exceptions=True)


async def test_a_sender_that_was_not_entered_says_so() -> None:
    with pytest.raises(RuntimeError, match="enter the Sender"):
        await Sender(POLICY, version="1").send(request_to("http://127.0.0.1:8000/"))


def test_a_request_does_not_show_its_secrets() -> None:
    assert SECRET not in repr(request_to("https://example.com/"))


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for merchant.example that nobody but the test trusts, with its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "merchant.example")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("merchant.example")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "merchant.pem"
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(key_pem + signed.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.mark.parametrize(
    ("host", "is_trusted", "error"),
    [
        ("merchant.example", True, None),
        ("merchant.example", False, AttemptError.TLS),
        ("other.example", True, AttemptError.TLS),
    ],
)
async def test_tls_needs_a_trusted_certificate_for_the_very_name(
    certificate: Path, host: str, is_trusted: bool, error: AttemptError | None
) -> None:
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=str(certificate)) if is_trusted else None
    async with running_receiver(secrets=[SECRET], ssl_context=server_side) as receiver:
        port = receiver.url.split(":")[2].removesuffix("/hook")
        async with Sender(POLICY, version="1", ssl_context=trusting, lookup=lambda *_: ["127.0.0.1"]) as sender:
            result = await sender.send(request_to(f"https://{host}:{port}/hook"))
        assert result.error == error
        assert len(receiver.requests) == (0 if error else 1)


async def test_a_plain_http_server_behind_https_is_a_tls_error(receiver: Receiver, sender: Sender) -> None:
    result = await sender.send(request_to(receiver.url.replace("http:", "https:")))
    assert (result.outcome, result.error) == (Outcome.RETRYABLE, AttemptError.TLS)


async def test_a_process_that_stood_still_takes_no_answer_for_silence(
    receiver: Receiver, sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer comes, and the time limit passes: both are seen at one moment."""
    monkeypatch.setattr("notifier.sender.FROZEN_S", 60.0)
    sending = asyncio.create_task(sender.send(request_to(receiver.url)))
    await receiver.wait_until("it came", lambda: len(receiver.requests) == 1)
    pass_time(PATIENT.total_s + 120)
    assert (await sending).outcome is Outcome.ACCEPTED


async def test_what_hangs_while_the_process_stands_still_is_no_failure_of_the_receivers(
    receiver: Receiver, sender: Sender
) -> None:
    receiver.behaviour = fake.hang()
    sending = asyncio.create_task(sender.send(request_to(receiver.url)))
    await receiver.wait_until("it came", lambda: len(receiver.requests) == 1)
    pass_time(PATIENT.total_s + 120)
    assert (await sending).error is AttemptError.ABANDONED
