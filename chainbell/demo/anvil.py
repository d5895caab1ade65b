"""Anvil, a local EVM node: the chain of the demo and of the integration tests.

What Anvil 1.7.1 does, as far as it matters here (each seen, most of it in `tests/integration/test_anvil.py`):

- Its headers, transactions and receipts hash truly: everything recomputes to the roots and to the block's hash.
- `safe` and `finalized` are plain distances from the head: one and two epochs, `--slots-in-an-epoch` blocks each (32).
- `anvil_reorg [depth, [[transaction, offset], ...]]` replaces the newest `depth` blocks by as many new ones. What they
  carried is gone for good; only the transactions given are in the new branch, each in the block at its offset from 0.
- `anvil_rollback [depth]` only takes blocks off: the head goes down.
- Two blocks with the same parent, content and second may be equal to the last bit, and then a reorg is none:
  `AnvilNode.reorg` changes the miner first and checks that the hashes changed.
- Three or more `debug_traceBlockByHash` at once while it mines can lock it up: it never answers anything again. Two at once
  never did, nor `trace_block`. What follows it at its head traces one block at a time; what catches up may trace more.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO, Any

import aiohttp

_START_TIMEOUT_S = 120.0
_CALL_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 10.0
_POLL_S = 0.05
_SAID_MAX = 64 * 1024


class AnvilError(Exception):
    """Anvil is not installed, did not start, or answered a request with an error."""


class AnvilNode:
    """A running Anvil. `accounts` of the well-known test mnemonic are unlocked and rich."""

    def __init__(self, url: str, pid: int, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.pid = pid
        self._session = session

    async def rpc(self, method: str, *params: object) -> Any:  # noqa: ANN401 - whatever JSON the method answers
        """Call one JSON-RPC method and return its result. Raises `AnvilError` with the node's message."""
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": list(params)}
        async with self._session.post(self.url, json=request) as response:
            answer = await response.json()
        if "error" in answer:
            raise AnvilError(f"anvil: {method}: {answer['error']['message']}")
        return answer["result"]

    async def height(self) -> int:
        """Height of the newest block."""
        return int(await self.rpc("eth_blockNumber"), 16)

    async def mine(self, count: int = 1) -> int:
        """Mine `count` blocks, the first of them with what is pending; returns the new height."""
        await self.rpc("anvil_mine", hex(count))
        return await self.height()

    async def reorg(self, depth: int, transactions: Sequence[tuple[dict[str, str] | str, int]] = ()) -> None:
        """Replace the newest `depth` blocks by as many others with only `transactions` in them, each a request or signed
        bytes as hex, with the offset of its block from the lowest replaced one. Raises `AnvilError` when a block came out
        as it was."""
        lowest = hex(await self.height() - depth + 1)
        before = await self.rpc("eth_getBlockByNumber", lowest, False)
        await self.rpc("anvil_setCoinbase", "0x" + secrets.token_hex(20))
        await self.rpc("anvil_reorg", depth, [list(pair) for pair in transactions])
        after = await self.rpc("eth_getBlockByNumber", lowest, False)
        if after["hash"] == before["hash"]:
            raise AnvilError(f"anvil: a reorg of depth {depth} left block {lowest} as it was")


def find_anvil() -> Path:
    """Path of the Anvil program: `$CHAINBELL_ANVIL`, else the one that npm installed here, else the one on PATH."""
    named = os.environ.get("CHAINBELL_ANVIL")
    if named:
        return _require_program(Path(named))
    for root in (Path(__file__).resolve().parents[2], Path.cwd()):
        # Each platform's package holds the program itself: no Node.js is needed to run it.
        for program in sorted(root.glob("node_modules/@foundry-rs/anvil-*/bin/anvil")):
            return _require_program(program)
    on_path = shutil.which("anvil")
    if on_path is None:
        raise AnvilError("anvil is not installed; run `make anvil`, or name the program in CHAINBELL_ANVIL")
    return Path(on_path)


def _require_program(path: Path) -> Path:
    if not os.access(path, os.X_OK) or not path.is_file():
        raise AnvilError(f"anvil: {path} is not a program that can be run; run `make anvil` or correct CHAINBELL_ANVIL")
    return path.resolve()


@asynccontextmanager
async def anvil(port: int | None = None, *, extra_args: Sequence[str] = ()) -> AsyncIterator[AnvilNode]:
    """Run Anvil on a loopback port for as long as the block lasts; it mines on each transaction. Without a port it takes a
    free one itself, and says which: one that was found for it could be another program's by the time it starts.

    `extra_args` are options of the program, e.g. `["--slots-in-an-epoch", "4", "--chain-id", "31338"]`.
    """
    # Where it keeps old states: it would leave 20 MB in the user's home for each run.
    kept = tempfile.TemporaryDirectory(prefix="chainbell-anvil-", ignore_cleanup_errors=True)
    with tempfile.TemporaryFile() as output, kept as cache:
        options = ["--host", "127.0.0.1", "--port", str(port or 0), "--cache-path", cache, *extra_args]
        process = await asyncio.create_subprocess_exec(
            str(find_anvil()), *options, stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
        try:
            async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_CALL_TIMEOUT_S)) as session:
                place = await _wait_until_listening(process, output)
                node = AnvilNode(f"http://{place}", process.pid, session)
                await node.height()
                yield node
        finally:
            await _stop(process)


async def _wait_until_listening(process: asyncio.subprocess.Process, output: IO[bytes]) -> str:
    """Its address, as it says when it takes connections. Raises `AnvilError` when it ends before, or does not come to it."""
    deadline = asyncio.get_running_loop().time() + _START_TIMEOUT_S
    while True:
        is_over = process.returncode is not None
        # Not by `output.seek`, which would move Anvil's own place in it.
        said = os.pread(output.fileno(), _SAID_MAX, 0).decode(errors="replace")
        if found := re.search(r"^Listening on (\S+:\d+)$", said, re.MULTILINE):
            return found[1]
        if is_over:
            raise AnvilError(f"anvil ended with status {process.returncode}: {' / '.join(said.strip().splitlines())}")
        if asyncio.get_running_loop().time() > deadline:
            raise AnvilError(f"anvil did not listen within {_START_TIMEOUT_S:.0f} s")
        await asyncio.sleep(_POLL_S)


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), _STOP_TIMEOUT_S)
    except TimeoutError:
        process.kill()
        await process.wait()
