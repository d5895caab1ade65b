"""A small server on loopback that lives until its standard input closes."""

from __future__ import annotations

import asyncio
import sys

import uvloop
from aiohttp import web

BODY_BYTES_MAX = 64 * 1024 * 1024


def serve_until_stdin_closes(app: web.Application) -> None:
    """Serve on a free port of 127.0.0.1 and print the URL; return when whoever started us is gone."""
    uvloop.run(_serve(app))


async def _serve(app: web.Application) -> None:
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=512)
    await site.start()
    host, port = runner.addresses[0][:2]
    print(f"http://{host}:{port}", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()
