"""Status reads while a chain is followed at its head, beside an empty aiohttp handler that is asked the same."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from bench.asking import Asked, AskingTask
from bench.deposits import Deposits, DepositsTask
from bench.installation import make_database
from bench.process import Server, measured, serving, serving_process
from bench.report import Row
from bench.sizes import Sizes

RPS_PER_KEY = 1_000_000.0
"""The one key of the bench is not held back."""


def measure_reads(sizes: Sizes, chain: str, database_url: str, say: Callable[[str], None]) -> list[Row]:
    """At a rate, and as many as are answered: the empty handler and the API in turn, under the same load beside them."""
    database_url = make_database(database_url, "reads")
    interval = str(sizes.live_interval_s)
    with (
        serving("bench.node", chain, interval) as node_url,
        serving("bench.head", database_url, node_url, chain, interval),
        serving_process("bench.empty") as empty,
        serving_process("bench.api", database_url, str(RPS_PER_KEY)) as api,
    ):
        task = DepositsTask(database_url, sizes.deposits, sizes.seed)
        deposits = msgspec.convert(measured("bench.deposits", task), Deposits)

        def _asked(server: Server, paths: list[str], rate: float) -> Asked:
            pace = f"{rate:,g}/s" if rate else "on and on"
            say(f"asking {'an empty handler' if server is empty else 'the API'} for {paths[0]} and others, {pace}")
            task = AskingTask(server.url, server.pid, paths, deposits.key, rate, sizes.reads_s, sizes.connections)
            task.seed = sizes.seed
            task.database_url = database_url if server is api else ""
            return msgspec.convert(measured("bench.asking", task), Asked)

        rows = []
        for rate in (sizes.reads_rate, 0):
            least = _asked(empty, deposits.by_id, rate)
            for name, paths in (("by id", deposits.by_id), ("by reference", deposits.by_reference)):
                pace = f"{rate:,g}/s" if rate else "on and on"
                rows += rows_of(f"{name}, {pace}", _asked(api, paths, rate), least)
        return rows


def rows_of(name: str, asked: Asked, least: Asked) -> list[Row]:
    """What was answered how soon, and what it took."""

    def _us(cpu_s: float) -> float:
        return cpu_s * 1e6 / asked.count

    empty_us = least.server_cpu_s * 1e6 / least.count
    return [
        Row(f"{name}: answered", asked.count / asked.elapsed_s, least.count / least.elapsed_s, "1/s"),
        Row(f"{name}, p50", asked.latency.p50_ms, least.latency.p50_ms, "ms"),
        Row(f"{name}, p99", asked.latency.p99_ms, least.latency.p99_ms, "ms"),
        Row(f"{name}, CPU of the API for one", _us(asked.server_cpu_s), empty_us, "µs"),
        Row(f"{name}, CPU of its sessions in Postgres", _us(asked.database_cpu_s), empty_us, "µs"),
        Row(f"{name}, CPU of who asks", _us(asked.cpu_s), least.cpu_s * 1e6 / least.count, "µs"),
    ]
