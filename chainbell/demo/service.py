"""Chainbell as the demo runs it: its own settings file, the documented commands, and its REST API. Nothing else."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

START_LIMIT_S = 90.0
"""The first start makes a database."""


class DemoFailed(Exception):
    """The story did not come out as it should; the text says what."""


@dataclass
class Service:
    """A running installation: its commands and its API."""

    config: Path
    url: str
    session: aiohttp.ClientSession
    key: str = ""

    async def command(self, *arguments: str) -> Any:  # noqa: ANN401 - whatever JSON the command prints
        """Run `chainbell --json <arguments>` and return what it prints. Raises `DemoFailed`."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "chainbell", "--config", str(self.config), "--json", *arguments,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        output, complaint = await process.communicate()
        if process.returncode != 0:
            raise DemoFailed(f"chainbell {' '.join(arguments)}: {complaint.decode().strip()}")
        return json.loads(output)

    async def call(self, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401 - JSON
        """Call the REST API with our key. Raises `DemoFailed` with the problem's detail."""
        headers = {"authorization": f"Bearer {self.key}"}
        async with self.session.request(method, self.url + path, json=body, headers=headers) as response:
            answer = await response.json(content_type=None)
            if response.status >= 400:
                raise DemoFailed(f"{method} {path}: {response.status} {answer.get('detail', answer)}")
            return answer


@asynccontextmanager
async def running_service(directory: Path, settings: str) -> AsyncIterator[Service]:
    """`chainbell run` on a free port with these settings (TOML after `[api]`), until the block ends. Logs go to a file."""
    port = _free_port()
    config = directory / "chainbell.toml"
    config.write_text(
        f'[api]\nlisten = "127.0.0.1:{port}"\n\n[database]\ndata_dir = "{directory / "data"}"\n{settings}'
    )
    log = (directory / "chainbell.log").open("wb")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "chainbell", "--config", str(config), "run", stdout=log, stderr=log
    )
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
            service = Service(config, f"http://127.0.0.1:{port}", session)
            await _wait_until_ready(service, process, directory)
            yield service
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
        log.close()


async def _wait_until_ready(service: Service, process: asyncio.subprocess.Process, directory: Path) -> None:
    deadline = asyncio.get_running_loop().time() + START_LIMIT_S
    while asyncio.get_running_loop().time() < deadline and process.returncode is None:
        try:
            async with service.session.get(service.url + "/readyz") as response:
                if response.status == 200:
                    return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.1)
    last = (directory / "chainbell.log").read_text(errors="replace").strip().splitlines()[-5:]
    raise DemoFailed("chainbell did not get ready; its log ends:\n" + "\n".join(last))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
