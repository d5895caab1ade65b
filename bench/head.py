"""A chain followed at its head for as long as somebody wants: `python -m bench.head DATABASE_URL NODE_URL CHAIN INTERVAL_S`.

As in `bench.live`, with nobody to deliver to. It commits the first block and starts the mining; then it prints a URL, which
answers nothing.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import aiohttp
from aiohttp import web

from bench.chain import load_chain, watched_live
from bench.following import open_adapter
from bench.installation import add_tenant, add_watches, ledger_at, make_follower, register
from bench.live import PROOF, follow_live, start_mining
from bench.serving import serve_until_stdin_closes
from chainbell.logs import configure_logs
from chainbell.supervisor import calm_garbage_collector


async def following(_app: web.Application) -> AsyncIterator[None]:
    """Follow the chain while the application runs."""
    database_url, node_url, chain_path, interval_s = sys.argv[1:]
    stop = asyncio.Event()
    async with ledger_at(database_url) as engine, open_adapter(node_url, PROOF) as adapter:
        followed = await register(engine, PROOF)
        tenant_id, _ = await add_tenant(engine, "merchant", [])
        await add_watches(engine, tenant_id, watched_live(load_chain(chain_path)))
        follower = make_follower(engine, adapter, followed)
        await follower.converge()
        async with aiohttp.ClientSession() as session:
            await start_mining(session, node_url)
        async with asyncio.TaskGroup() as group:
            group.create_task(follow_live(follower, engine, float(interval_s), stop))
            yield
            stop.set()


if __name__ == "__main__":
    configure_logs()
    calm_garbage_collector()
    app = web.Application()
    app.cleanup_ctx.append(following)
    serve_until_stdin_closes(app)
