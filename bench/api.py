"""The REST API as `chainbell serve` runs it, on a free port: `python -m bench.api DATABASE_URL [RPS_PER_KEY]`."""

from __future__ import annotations

import asyncio
import sys

import uvloop
from aiohttp import web

from api.app import create_app
from api.limits import RPS_PER_KEY
from api.server import serving
from bench.installation import SECRET_BOX, loopback_policy
from chainbell.logs import configure_logs
from chainbell.supervisor import calm_garbage_collector
from chainbell.version import VERSION
from ledger.cursors import cursor_key_of
from ledger.database import connect, connect_api


async def serve(app: web.Application) -> None:
    """Listen as `chainbell serve` does, until whoever started us is gone."""
    async with serving(app, "127.0.0.1", 0) as (host, port):
        print(f"http://{host}:{port}", flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    configure_logs()
    calm_garbage_collector()
    uvloop.run(
        serve(
            create_app(
                engine=connect_api(sys.argv[1]),
                operator_engine=connect(sys.argv[1], application="bench", pool_size=2),
                secret_box=SECRET_BOX,
                endpoint_policy=loopback_policy(),
                cursor_key=cursor_key_of(bytes(32)),
                version=VERSION,
                rps_per_key=float(sys.argv[2]) if len(sys.argv) > 2 else RPS_PER_KEY,
            )
        )
    )
