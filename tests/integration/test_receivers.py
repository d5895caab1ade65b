"""Whoever receives our webhooks, in Python and in Node: the public libraries accept what is genuine and nothing else.

Every request below is judged by both languages, for Node by one process for all. Secrets (`v1`) are judged by the public
library `standardwebhooks` of each; public keys (`v1a`), which these libraries do not read, by the language's own crypto.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from api.webhooks import example_of
from ledger.secrets import new_endpoint_secret
from ledger.states import EVENT_TYPES
from notifier.errors import CannotSign
from notifier.signing import webhook_headers
from tests.fakes.javascript import MODULES, ROOT, judge, node_program, run_module
from tests.outside.installation import free_port

DATA = ROOT / "tests" / "data" / "webhooks"
SECRET_VECTORS: list[dict[str, Any]] = json.loads((DATA / "standard_webhooks_sign.json").read_text())
KEY_VECTORS: list[dict[str, Any]] = json.loads((DATA / "sign_v1a.json").read_text())
SCENARIOS: dict[str, Any] = json.loads((DATA / "standard_webhooks_verify_scenarios.json").read_text())
BASE: dict[str, Any] = SCENARIOS["base"]

SECRET = str(BASE["secret"])
FOREIGN_SECRET = new_endpoint_secret()
BODY = str(BASE["payload"])
EVENT_ID = str(BASE["id"])
BEYOND_EDGE_S = 600
"""How much farther off than a scenario says a timestamp is put: one library counts whole seconds, the other does not, and
Node judges a while after us."""


@dataclass(frozen=True)
class Request:
    """One request, what its receiver knows, and whether it has to be accepted."""

    headers: Mapping[str, str]
    is_genuine: bool
    body: str = BODY
    secret: str = SECRET
    public_key: str | None = None

    def for_node(self) -> dict[str, Any]:
        """As `judge.mjs` reads it."""
        return {
            "headers": dict(self.headers),
            "body": self.body,
            "secret": self.secret,
            "public_key": self.public_key,
        }


def now(offset_s: int = 0) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=offset_s)


def signed(*secrets: str, body: str = BODY, offset_s: int = 0) -> dict[str, str]:
    """Our own headers of an attempt at this moment, or so many seconds from it."""
    return webhook_headers(EVENT_ID, now(offset_s), body.encode(), secrets or (SECRET,))


def public_key_of(secret: str) -> str:
    private = Ed25519PrivateKey.from_private_bytes(b64decode(secret.removeprefix("whsk_")))
    return "whpk_" + b64encode(private.public_key().public_bytes_raw()).decode()


def signed_by_key(secret: str, offset_s: int = 0) -> dict[str, str]:
    """Headers with an ed25519 signature, beside one of a secret, as every endpoint gets both."""
    return signed(SECRET, secret, offset_s=offset_s)


# --- what is judged ---------------------------------------------------------------------------------------------------


def scenario_requests() -> Iterator[tuple[str, Request]]:
    """The reference libraries' own scenarios, as far as they are requests, with headers that we signed."""
    for case in SCENARIOS["cases"]:
        if "secret" in case:
            continue  # a secret that is none: nothing is ever signed with it
        offset_s = case.get("timestamp_offset", 0)
        headers = signed(offset_s=offset_s + (BEYOND_EDGE_S if offset_s > 0 else -BEYOND_EDGE_S) * bool(offset_s))
        valid = headers["webhook-signature"]
        if "signature" in case:
            headers["webhook-signature"] = case["signature"]
        if "signatures" in case:
            headers["webhook-signature"] = " ".join(valid if one == "<valid>" else one for one in case["signatures"])
        for part in ("id", "timestamp", "signature"):
            if case["name"] == f"missing {part} header":
                del headers[f"webhook-{part}"]
        known = SECRET.removeprefix("whsec_") if "without prefix" in case["name"] else SECRET
        yield case["name"], Request(headers, case["expect"] == "accept", secret=known)


def secret_requests() -> Iterator[tuple[str, Request]]:
    """Requests whose receiver knows a secret."""
    tampered = BODY.replace("2432232314", "2432232315")
    yield "a body that was altered", Request(signed(), False, body=tampered)
    yield (
        "a body that was read and written again",
        Request(signed(), False, body=json.dumps(json.loads(BODY), indent=1)),
    )
    yield "another secret", Request(signed(FOREIGN_SECRET), False)
    yield "another event's id", Request({**signed(), "webhook-id": "evt_2"}, False)
    later = str(int(time.time()) + 1)
    yield (
        "an old signature with a new time",
        Request({**signed(offset_s=-BEYOND_EDGE_S), "webhook-timestamp": later}, False),
    )
    yield "both secrets of a rotation, known the old one", Request(signed(FOREIGN_SECRET, SECRET), True)
    yield "both secrets of a rotation, known the new one", Request(signed(SECRET, FOREIGN_SECRET), True)
    keys = [vector["secret"] for vector in KEY_VECTORS]
    both = signed(FOREIGN_SECRET, keys[0], SECRET, keys[1])
    yield "both secrets and both keys of a rotation, known the old secret", Request(both, True)
    odd = json.dumps({"reference": "Ünïcode ☕ 𝄞 \u2028", "amount": "1"}, ensure_ascii=False)
    yield "a body in several scripts", Request(signed(body=odd), True, body=odd)
    large = json.dumps({"text": "x" * 250_000})
    yield "a large body", Request(signed(body=large), True, body=large)
    for odd_signature in ("v1", "v1,", "v1,!", ",", "v1,a,b", "\N{SNOWMAN}"):
        headers = {**signed(), "webhook-signature": odd_signature}
        yield f"the signature {odd_signature!r}", Request(headers, False)
    yield "a secret beside a key", Request(signed_by_key(KEY_VECTORS[0]["secret"]), True)


def key_requests() -> Iterator[tuple[str, Request]]:
    """Requests whose receiver knows a public key."""
    rotating = signed(SECRET, *(vector["secret"] for vector in KEY_VECTORS))
    for number, vector in enumerate(KEY_VECTORS):
        secret, known = vector["secret"], vector["public_key"] or public_key_of(vector["secret"])
        other = public_key_of(KEY_VECTORS[number - 1]["secret"])
        headers = signed_by_key(secret)
        yield f"key {number}", Request(headers, True, public_key=known)
        yield f"key {number}: a body that was altered", Request(headers, False, BODY + " ", public_key=known)
        yield f"key {number}: both keys of a rotation", Request(rotating, True, public_key=known)
        yield f"key {number}: another key", Request(headers, False, public_key=other)
        old = signed_by_key(secret, -300 - BEYOND_EDGE_S)
        yield f"key {number}: an old request", Request(old, False, public_key=known)
        yield f"key {number}: only a secret's signature", Request(signed(), False, public_key=known)
        for part in headers:
            for wrong in ("", "v1a,", "v1a,!", "v1a", "\N{SNOWMAN}"):
                odd = {**headers, part: wrong}
                yield f"key {number}: {part} {wrong!r}", Request(odd, False, public_key=known)
            rest = {name: value for name, value in headers.items() if name != part}
            yield f"key {number}: no {part}", Request(rest, False, public_key=known)


def event_requests() -> Iterator[tuple[str, Request]]:
    """One request of every type of event."""
    for event_type in EVENT_TYPES:
        body = json.dumps(example_of(event_type))
        yield event_type, Request(signed(body=body), True, body=body)


def every_request() -> dict[str, Request]:
    return {
        name: request
        for requests in (scenario_requests(), secret_requests(), key_requests(), event_requests())
        for name, request in requests
    }


# --- the two judges ---------------------------------------------------------------------------------------------------


def accepted_by_python(request: Request) -> bool:
    try:
        if request.public_key is None:
            Webhook(request.secret).verify(request.body.encode(), dict(request.headers))
        else:
            _verify_by_key(request, request.public_key)
    except (WebhookVerificationError, ValueError, KeyError):
        return False
    return True


def _verify_by_key(request: Request, public_key: str) -> None:
    """What a receiver has to do that knows a public key: the time, and a signature of this version that holds."""
    timestamp = request.headers["webhook-timestamp"]
    if abs(time.time() - int(timestamp)) > BASE["tolerance_seconds"]:
        raise ValueError("the timestamp is too far off")
    signatures = re.findall(r"\bv1a,(\S+)", request.headers["webhook-signature"])
    content = f"{request.headers['webhook-id']}.{timestamp}.{request.body}".encode()
    known = Ed25519PublicKey.from_public_bytes(b64decode(public_key.removeprefix("whpk_")))
    if not any(_holds(known, b64decode(signature), content) for signature in signatures):
        raise ValueError("no signature holds")


def _holds(key: Ed25519PublicKey, signature: bytes, content: bytes) -> bool:
    try:
        key.verify(signature, content)
    except InvalidSignature:
        return False
    return True


@dataclass(frozen=True)
class Judged:
    """What both said of each request, and the signatures that Node makes of the published vectors."""

    requests: Mapping[str, Request]
    python: Mapping[str, bool]
    node: Mapping[str, str]
    """Empty where accepted, else why not."""

    node_signatures: list[str]


@pytest.fixture(scope="module")
def judged() -> Judged:
    requests = every_request()
    python = {name: accepted_by_python(request) for name, request in requests.items()}
    verdicts, signatures = judge([request.for_node() for request in requests.values()], [*SECRET_VECTORS, *KEY_VECTORS])
    return Judged(requests, python, dict(zip(requests, verdicts, strict=True)), signatures)


@pytest.mark.parametrize("name", every_request())
def test_a_receiver_judges_our_headers_as_the_reference_does(name: str, judged: Judged) -> None:
    is_genuine = judged.requests[name].is_genuine
    assert judged.python[name] is is_genuine
    assert (judged.node[name] == "") is is_genuine, judged.node[name]


def test_node_signs_the_published_vectors_as_they_are_published(judged: Judged) -> None:
    assert judged.node_signatures == [vector["signature"] for vector in (*SECRET_VECTORS, *KEY_VECTORS)]


@pytest.mark.parametrize("vector", SECRET_VECTORS, ids=lambda vector: str(vector["id"]))
def test_we_sign_the_published_vector_of_a_secret_as_it_is_published(vector: dict[str, Any]) -> None:
    at = datetime.fromtimestamp(vector["timestamp"], UTC)
    headers = webhook_headers(vector["id"], at, vector["payload"].encode(), [vector["secret"]])
    assert headers == {
        "webhook-id": vector["id"],
        "webhook-timestamp": str(vector["timestamp"]),
        "webhook-signature": vector["signature"],
    }


@pytest.mark.parametrize("vector", KEY_VECTORS, ids=lambda vector: str(vector["signature"][:12]))
def test_we_sign_the_published_vector_of_a_key_as_it_is_published(vector: dict[str, Any]) -> None:
    at = datetime.fromtimestamp(vector["timestamp"], UTC)
    headers = webhook_headers(vector["id"], at, vector["payload"].encode(), [SECRET, vector["secret"]])
    assert headers["webhook-signature"].split(" ")[1:] == [vector["signature"]]
    assert vector["public_key"] in (None, public_key_of(vector["secret"]))


@pytest.mark.parametrize(
    "case", [case for case in SCENARIOS["cases"] if "secret" in case], ids=lambda case: case["name"]
)
def test_a_secret_that_the_reference_refuses_signs_nothing(case: dict[str, Any]) -> None:
    with pytest.raises(CannotSign):
        webhook_headers(EVENT_ID, now(), b"{}", [case["secret"]])


# --- the example of the documents -------------------------------------------------------------------------------------


def example(language: str, word: str) -> str:
    """The one example of the documents in this language that has this word."""
    examples = re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / "docs/webhooks.md").read_text(), re.M | re.S)
    [found] = [text for text in examples if word in text]
    return str(found)


async def answers_of_example(port: int, process: asyncio.subprocess.Process) -> list[int]:
    """What the sample receiver answers to a genuine request and to four that are none."""
    body = json.dumps(example_of("deposit.confirmed"))
    genuine = signed(body=body)
    sent: list[tuple[str, dict[str, str]]] = [
        (body, genuine),
        (body.replace("confirmed", "finalized"), genuine),
        (body, signed(FOREIGN_SECRET, body=body)),
        (body, signed(body=body, offset_s=-300 - BEYOND_EDGE_S)),
        (body, {}),
    ]
    url = f"http://127.0.0.1:{port}/"
    async with asyncio.timeout(120), aiohttp.ClientSession() as session:
        await _until_it_listens(port, process)
        return [(await session.post(url, data=text, headers=headers)).status for text, headers in sent]


async def _until_it_listens(port: int, process: asyncio.subprocess.Process) -> None:
    while True:
        assert process.returncode is None, "the example ended by itself"
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.02)
        else:
            writer.close()
            return


async def test_the_javascript_example_accepts_what_we_sign_and_refuses_what_was_altered(tmp_path: Path) -> None:
    (tmp_path / "receiver.mjs").write_text(example("javascript", "createServer"))
    (tmp_path / "node_modules").symlink_to(MODULES)
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        node_program(), str(tmp_path / "receiver.mjs"), stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "WEBHOOK_SECRET": SECRET, "PORT": str(port)},
    )  # fmt: skip
    try:
        assert await answers_of_example(port, process) == [204, 401, 401, 401, 401]
    finally:
        process.kill()
        output, _ = await process.communicate()
    data = example_of("deposit.confirmed")["data"]
    assert output.decode() == f"deposit.confirmed {data['id']}\n"


def test_the_python_example_answers_each_request_as_the_reference_judges_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
    names: dict[str, Any] = {}
    exec(example("python", "def receive"), names)  # noqa: S102 (our own documents)
    receive = names["receive"]
    for name, request in (*scenario_requests(), *secret_requests()):
        status, event = receive(request.body.encode(), request.headers)
        assert (status, event is not None) == ((204, True) if request.is_genuine else (401, False)), name
    assert receive(b"\xff", signed()) == (401, None)


def test_the_examples_for_public_keys_accept_what_the_key_signed_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = dict(key_requests())
    (tmp_path / "example.mjs").write_text(example("javascript", "isSignedBy"))
    (tmp_path / "asked.mjs").write_text(
        """import { readFileSync } from "node:fs";
import { isSignedBy } from "./example.mjs";
const asked = JSON.parse(readFileSync(0, "utf8"));
console.log(JSON.stringify(asked.map((one) => isSignedBy(one.public_key, Buffer.from(one.body), one.headers))));
"""
    )
    told = run_module(tmp_path / "asked.mjs", [request.for_node() for request in requests.values()])
    expected = {name: request.is_genuine for name, request in requests.items()}
    assert dict(zip(requests, told, strict=True)) == expected

    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
    names: dict[str, Any] = {}
    for word in ("def receive", "def is_signed_by"):
        exec(example("python", word), names)  # noqa: S102 (our own documents)
    is_signed_by = names["is_signed_by"]
    assert {
        name: is_signed_by(request.public_key, request.body.encode(), request.headers)
        for name, request in requests.items()
    } == expected
