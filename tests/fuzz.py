"""`make fuzz EXAMPLES=200`: schemathesis calls every operation of a running API with thousands of cases."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

import structlog
from sqlalchemy import create_engine, make_url

from ledger.embedded import embedded_postgres
from ledger.ids import OPS_TENANT
from ledger.keys import SCOPES
from tests.fixtures.postgres import FAST, cluster_directory, make_template, new_database
from tests.integration.api.conftest import running
from tests.integration.api.describing import call_everything, fill

_READING = [scope for scope in SCOPES if scope.endswith(":read")]


def main() -> int:
    """Call the API as often as the command line says; the exit status."""
    parser = argparse.ArgumentParser(prog="fuzz", description="Call every operation with many cases.")
    parser.add_argument("--examples", type=int, default=200, help="cases for each operation and phase")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    with cluster_directory() as directory, embedded_postgres(directory, settings=FAST) as url:
        admin = create_engine(make_url(url).set(database="postgres"), isolation_level="AUTOCOMMIT")
        with new_database(url, admin, make_template(url, admin)) as database_url:
            is_well = asyncio.run(_fuzz(database_url, options.examples, options.seed, directory))
        admin.dispose()
    return 0 if is_well else 1


async def _fuzz(database_url: str, examples: int, seed: int, directory: Path) -> bool:
    async with running(database_url) as service:
        await fill(service)
        keys = {
            "a tenant's key": service.key,
            "the operator's key": await service.make_key("*", tenant_id=OPS_TENANT),
            "a key that may read and no more": await service.make_key(*_READING),
            "a key for watches alone": await service.make_key("watches:*"),
        }
        is_well = True
        for name, key in keys.items():
            is_good, said = await call_everything(service.url, key, directory, examples=examples, seed=seed)
            print(f"{name}:\n{said}", flush=True)
            is_well = is_well and is_good
        return is_well


if __name__ == "__main__":
    sys.exit(main())
