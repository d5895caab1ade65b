"""An installation as an operator has it: a settings file, the documented commands, processes, and the REST API.

Nothing in here reaches inside: what a test learns, an operator or a merchant could have learnt. The one exception is
that processes are killed where an operator's machine would have done it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import urlencode

import aiohttp

from tests.fakes.receiver import Receiver

T = TypeVar("T")

DEADLINE_S = 240.0
"""For what a loaded machine may take; nothing waits that long by design."""

STOP_LIMIT_S = 120.0
POLL_S = 0.05
MASTER_KEY = base64.b64encode(bytes(range(32))).decode()
LOCAL_ENDPOINTS = """
[notifier]
allow_http = true
allow_private = ["127.0.0.0/8"]
"""
"""Settings that let a merchant's endpoint be on this machine."""

EVERY_SCOPE = ("watches:*", "entries:read", "endpoints:*", "events:read", "deliveries:*", "chains:read")


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    status: int
    output: str
    complaint: str

    @property
    def sentence(self) -> str:
        """Its last line on stderr: what it has to say for itself. Log lines may stand before it."""
        lines = self.complaint.strip().splitlines()
        return lines[-1] if lines else ""


@dataclass(frozen=True)
class Answer:
    """An answer of the API."""

    status: int
    document: Any
    headers: Mapping[str, str]


@dataclass
class Installation:
    """One settings file with what runs by it. Made by `installed`."""

    directory: Path
    database_url: str
    session: aiohttp.ClientSession
    log: IO[bytes]
    port: int
    environment: dict[str, str]
    processes: dict[str, asyncio.subprocess.Process] = field(default_factory=dict)

    @property
    def config(self) -> Path:
        """The settings file."""
        return self.directory / "chainbell.toml"

    @property
    def url(self) -> str:
        """Of the REST API."""
        return f"http://127.0.0.1:{self.port}"

    def configure(self, settings: str) -> None:
        """Write the settings file: `[database]` and `[api]` are given, the rest is `settings`."""
        head = f'[database]\nurl = "{self.database_url}"\n\n[api]\nlisten = "127.0.0.1:{self.port}"\n'
        self.config.write_text(head + settings)

    async def attempt(self, *arguments: str) -> Ended:
        """Run `chainbell --config FILE <arguments>` to its end, whatever that is."""
        process = await self._spawn(arguments, asyncio.subprocess.PIPE)
        try:
            async with asyncio.timeout(DEADLINE_S):
                output, complaint = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode is not None
        return Ended(process.returncode, output.decode(), complaint.decode())

    async def command(self, *arguments: str) -> Any:  # noqa: ANN401 - JSON
        """Run a command that has to succeed; what it prints as JSON."""
        ended = await self.attempt("--json", *arguments)
        assert ended.status == 0, f"chainbell {' '.join(arguments)}: status {ended.status}: {ended.complaint}"
        return json.loads(ended.output)

    async def _spawn(self, arguments: Sequence[str], output: int | IO[bytes]) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "chainbell", "--config", str(self.config), *arguments,
            cwd=self.directory, env=self.environment, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip

    async def start(self, *arguments: str, name: str | None = None) -> None:
        """Start a role (or `run`) under its own name, or another where there are several; it logs to our file."""
        self.processes[name or arguments[0]] = await self._spawn(arguments, self.log)

    async def run(self) -> None:
        """Start everything and wait until the API answers."""
        await self.start("run")
        await self.ready()

    async def ready(self) -> None:
        """Wait until the API answers that it can work."""

        async def is_ready() -> bool:
            gone = [name for name, process in self.processes.items() if process.returncode is not None]
            assert not gone, f"{gone} ended by itself:\n{self.log_tail()}"
            try:
                async with self.session.get(self.url + "/readyz") as response:
                    return response.status == 200
            except aiohttp.ClientError:
                return False

        await self.until("the API is ready", is_ready)

    async def kill(self, name: str) -> None:
        """`kill -9` a role, if it has not ended by itself: the one thing that may end it is a database that was away."""
        process = self.processes.pop(name)
        if process.returncode is None:
            process.kill()
        else:
            assert "database.url" in self.log_text(), f"{name} had ended by itself:\n{self.log_tail(40)}"
        await process.wait()

    async def stop(self, name: str) -> None:
        """End a role as an operator does; it has to end well."""
        process = self.processes.pop(name)
        process.terminate()
        status = await asyncio.wait_for(process.wait(), STOP_LIMIT_S)
        assert status == 0, f"{name} ended with {status} on SIGTERM:\n{self.log_tail()}"

    async def stop_all(self) -> None:
        """End what runs, with force where it does not listen."""
        for process in self.processes.values():
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            try:
                await asyncio.wait_for(process.wait(), STOP_LIMIT_S)
            except TimeoutError:
                process.kill()
                await process.wait()
        self.processes.clear()

    def log_text(self) -> str:
        """Everything that was logged so far."""
        return (self.directory / "chainbell.log").read_text(errors="replace")

    def log_tail(self, lines: int = 15) -> str:
        """The newest lines of the log, for a failing test's message."""
        return "\n".join(self.log_text().splitlines()[-lines:])

    async def until(self, what: str, condition: Callable[[], Awaitable[T]], deadline_s: float = DEADLINE_S) -> T:
        """What `condition` returns as soon as that is truthy; fails naming `what` and the end of the log."""
        last: T | None = None
        try:
            async with asyncio.timeout(deadline_s):
                while True:
                    last = await condition()
                    if last:
                        return last
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise AssertionError(f"not within {deadline_s:g} s: {what} (last {last!r})\n{self.log_tail()}") from None

    async def tenant(self, name: str, *scopes: str) -> Tenant:
        """Make a tenant and a key of it by the command line."""
        created = await self.command("tenants", "create", name)
        return await self.keyed(created["id"], *scopes)

    async def keyed(self, tenant: str, *scopes: str) -> Tenant:
        """Make another key of a tenant; `ops` is the operator's."""
        words = [word for scope in scopes or EVERY_SCOPE for word in ("--scope", scope)]
        key = await self.command("keys", "create", "--tenant", tenant, *words)
        return Tenant(self, tenant, key["key"])


@dataclass
class Tenant:
    """A payments backend: a key, and what it does with it."""

    installation: Installation
    id: str
    key: str

    async def ask(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Call the API; the answer, whatever it is."""
        given = {"authorization": f"Bearer {self.key}", **(headers or {})}
        url = self.installation.url + path
        content = None if body is None else BytesIO(json.dumps(body).encode())
        if content is not None:
            given["content-type"] = "application/json"
        async with self.installation.session.request(method, url, data=content, headers=given) as response:
            text = await response.text()
            return Answer(response.status, json.loads(text) if text else None, dict(response.headers))

    async def call(self, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401 - JSON
        """Call the API; it has to succeed."""
        answer = await self.ask(method, path, body)
        assert answer.status < 300, f"{method} {path}: {answer.status} {answer.document}"
        return answer.document

    async def rows(self, path: str, **query: str) -> list[Any]:
        """Every row of a list, over all its pages."""
        found: list[Any] = []
        cursor: str | None = None
        while True:
            words = {"limit": "1000", **query, **({"cursor": cursor} if cursor else {})}
            page = await self.call("GET", f"{path}?{urlencode(words)}")
            found += page["data"]
            cursor = page["next_cursor"]
            if cursor is None:
                return found

    async def feed(self) -> list[Any]:
        """Every event from the oldest on."""
        found: list[Any] = []
        after = ""
        while True:
            page = await self.call("GET", "/v1/events?limit=1000" + (f"&after={after}" if after else ""))
            if not page["data"]:
                return found
            found += page["data"]
            after = page["next_cursor"]

    async def watch(self, chain: str, *addresses: str, reference: str | None = None) -> list[Any]:
        """Watch addresses; a row for each."""
        rows = [{"chain": chain, "address": address, "reference": reference} for address in addresses]
        answer = await self.call("POST", "/v1/watches", {"watches": rows})
        return list(answer["data"])

    async def open_endpoint(self, receiver: Receiver) -> Any:  # noqa: ANN401 - JSON
        """Register a receiver, which then knows the secret to verify by."""
        endpoint = await self.call("POST", "/v1/endpoints", {"url": receiver.url})
        receiver.secrets.append(endpoint["secret"])
        return endpoint

    async def chain(self, slug: str) -> Any:  # noqa: ANN401 - JSON
        """One chain as `GET /v1/chains` shows it."""
        (row,) = [row for row in await self.rows("/v1/chains") if row["chain"] == slug]
        return row

    async def until_chain(self, what: str, slug: str, condition: Callable[[Any], bool]) -> Any:  # noqa: ANN401 - JSON
        """Wait until a chain's row is as it should be; the row."""

        async def row() -> Any:  # noqa: ANN401 - JSON
            found = await self.chain(slug)
            return found if condition(found) else None

        return await self.installation.until(f"{slug}: {what}", row)

    async def until_followed(self, slug: str, height: int) -> None:
        """Wait until our tip is at `height` or above."""
        await self.until_chain(f"tip is {height}", slug, lambda row: row["tip"] is not None and row["tip"] >= height)

    async def until_final(self, slug: str, height: int) -> None:
        """Wait until a height is final."""
        await self.until_chain(
            f"{height} is final", slug, lambda row: row["finalized"] is not None and row["finalized"] >= height
        )

    async def until_delivered(self, deadline_s: float = DEADLINE_S) -> None:
        """Wait until nothing is owed to any endpoint of this tenant."""

        async def is_settled() -> bool:
            return not (await self.call("GET", "/v1/deliveries?state=pending&limit=1"))["data"]

        await self.installation.until("every delivery is settled", is_settled, deadline_s)


@asynccontextmanager
async def installed(directory: Path, database_url: str, settings: str = "") -> AsyncIterator[Installation]:
    """An installation with that settings file; nothing runs yet, and nothing runs afterwards."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CHAINBELL_")}
    with (directory / "chainbell.log").open("ab") as log:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=DEADLINE_S)) as session:
            installation = Installation(
                directory, database_url, session, log, free_port(), {**environment, "CHAINBELL_MASTER_KEY": MASTER_KEY}
            )
            installation.configure(settings)
            try:
                yield installation
            finally:
                await installation.stop_all()


def free_port() -> int:
    """A loopback port that nobody listens on, and that the kernel gives to nobody else for as long as this process lives.

    It stays bound, and is left open on purpose: a server that is started on it later, as servers are (SO_REUSEADDR), may
    listen all the same, while whoever asks for any free port meanwhile, in another test process too, gets another one.
    """
    keeper = socket.socket()
    keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    keeper.bind(("127.0.0.1", 0))
    port: int = keeper.getsockname()[1]
    keeper.detach()
    return port
