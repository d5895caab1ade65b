"""The REST API as `chainbell serve` runs it, on a free port: `python -m bench.api DATABASE_URL [RPS_PER_KEY]`."""

from __future__ import annotations

import sys

from api.app import create_app
from api.limits import RPS_PER_KEY
from bench.installation import SECRET_BOX, loopback_policy
from bench.serving import serve_until_stdin_closes
from chainbell.logs import configure_logs
from chainbell.supervisor import calm_garbage_collector
from chainbell.version import VERSION
from ledger.cursors import cursor_key_of
from ledger.database import connect, connect_api

if __name__ == "__main__":
    configure_logs()
    calm_garbage_collector()
    serve_until_stdin_closes(
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
