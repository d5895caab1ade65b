"""The README's first real chain, command by command as it is written there, with a local node in the place of real ones."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from chainbell.demo.anvil import AnvilNode
from ledger.embedded import remove_embedded_postgres
from tests.outside.installation import free_port

ROOT = Path(__file__).parent.parent.parent
START_LIMIT_S = 240.0


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory that another user may pass through: as root, the embedded database runs as another one."""
    directory = Path(tempfile.mkdtemp(prefix="chainbell-readme-"))
    directory.chmod(0o755)
    yield directory
    remove_embedded_postgres(directory / "chainbell-data")
    shutil.rmtree(directory)


def read_commands() -> list[str]:
    """The lines of the block, a continued one as one line."""
    _, _, rest = (ROOT / "README.md").read_text().partition("\n## A first real chain\n")
    block = re.search(r"```sh\n(.*?)```", rest, re.DOTALL)
    assert block is not None
    return block[1].replace("\\\n", " ").splitlines()


async def start(command: str, environment: dict[str, str], home: Path) -> asyncio.subprocess.Process:
    """A line of the README in a shell; `chainbell` is this checkout's."""
    ours = re.sub(r"^chainbell ", f"exec {shlex.quote(sys.executable)} -m chainbell ", command)
    return await asyncio.create_subprocess_shell(
        ours, cwd=home, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )


async def finish(command: str, environment: dict[str, str], home: Path) -> str:
    process = await start(command, environment, home)
    output, _ = await process.communicate()
    assert process.returncode == 0, command
    return output.decode()


def read_all(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as response:  # noqa: S310 - our own, on loopback
        body: bytes = response.read()
        return body


async def wait_until_ready(url: str, process: asyncio.subprocess.Process) -> None:
    deadline = asyncio.get_running_loop().time() + START_LIMIT_S
    while asyncio.get_running_loop().time() < deadline:
        assert process.returncode is None, "chainbell run ended"
        try:
            await asyncio.to_thread(read_all, f"{url}/readyz")
            return
        except OSError:
            await asyncio.sleep(0.2)
    raise TimeoutError(f"{url} did not get ready")


@pytest.mark.skipif(shutil.which("curl") is None, reason="the README calls the API with curl")
async def test_the_first_real_chain_of_the_readme(anvil_node: AnvilNode, home: Path) -> None:
    init, run, create_tenant, create_key, watch = read_commands()
    listen = f"127.0.0.1:{free_port()}"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "CHAINBELL_API__LISTEN": listen,
        "CHAINBELL_CHAINS__ETHEREUM__PROFILE": "anvil",
        "CHAINBELL_CHAINS__ETHEREUM__CHAIN_ID": "eip155:31337",
        "CHAINBELL_CHAINS__ETHEREUM__NODES": json.dumps([{"url": anvil_node.url}]),
    }
    await finish(init, environment, home)
    running = await start(run, environment, home)
    try:
        await wait_until_ready(f"http://{listen}", running)
        await finish(create_tenant, environment, home)
        environment["KEY"] = (await finish(create_key, environment, home)).split()[0]
        answer = json.loads(await finish(watch.replace("127.0.0.1:8080", listen), environment, home))
    finally:
        running.terminate()
        await running.communicate()
    [row] = answer["data"]
    assert (row["chain"], row["reference"], row["status"]) == ("ethereum", "order-1", "active")
