"""Routes about the process itself, for whoever runs it: alive, ready, metrics, and the description of the API."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec
import structlog
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from api.page import PAGE_POLICY
from api.problems import Code, Refused
from api.routes import SERVICES, OpenRoute
from ledger.chains import chain_state_of, list_chains
from ledger.database import UNAVAILABLE, database_now, transaction
from ledger.deliveries import count_deliveries
from ledger.documents import ChainDocument, chain_document
from ledger.errors import SchemaBehind
from ledger.migrate import require_head
from ledger.model import ChainRow
from ledger.states import ChainState

OPENAPI: web.AppKey[bytes] = web.AppKey("openapi", bytes)
"""The description's bytes, made when the application is."""

PAGE: web.AppKey[bytes] = web.AppKey("page", bytes)
"""The description as HTML."""

MULTIPROCESS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

log = structlog.get_logger()


class StatusDocument(msgspec.Struct, frozen=True):
    """That all is well."""

    status: str
    version: str


async def healthz(request: web.Request) -> web.Response:
    """Whether the process is alive

    Asks nothing of anybody: a failing database is no reason to kill the process."""
    return _ok(request)


async def readyz(request: web.Request) -> web.Response:
    """Whether requests can be answered

    The database can be reached and has seen every migration; otherwise a 503 problem says which is missing."""
    try:
        async with transaction(request.app[SERVICES].engine) as connection:
            await require_head(connection)
    except SchemaBehind as error:
        raise Refused(Code.UNAVAILABLE, str(error)) from None
    return _ok(request)


def _ok(request: web.Request) -> web.Response:
    document = StatusDocument("ok", request.app[SERVICES].version)
    return web.Response(body=msgspec.json.encode(document), content_type="application/json")


async def metrics(request: web.Request) -> web.Response:
    """Metrics for Prometheus

    What this process counts, and how far each chain and the queue of deliveries stand in the ledger."""
    return web.Response(
        body=generate_latest(_Exposition(await _ledger_gauges(request))), headers={"Content-Type": CONTENT_TYPE_LATEST}
    )


async def openapi(request: web.Request) -> web.Response:
    """The description of this API

    OpenAPI 3.1, with the webhooks and a schema and an example for each type of event."""
    return web.Response(body=request.app[OPENAPI], content_type="application/json")


async def page(request: web.Request) -> web.Response:
    """The description of this API, to read

    The same as `/openapi.json`, as one page without scripts that loads nothing."""
    headers = {"Content-Security-Policy": PAGE_POLICY}
    return web.Response(body=request.app[PAGE], content_type="text/html", charset="utf-8", headers=headers)


class _Exposition(Collector):
    """The ledger's gauges, and the process's own metrics but those of the same names: the ledger knows all chains and
    the whole queue, a process only what it did itself."""

    def __init__(self, gauges: Sequence[Metric]) -> None:
        self._gauges = gauges

    def collect(self) -> Iterator[Metric]:
        """The ledger\'s first, then what is counted under other names."""
        names = {gauge.name for gauge in self._gauges}
        yield from self._gauges
        yield from (family for family in _counted() if family.name not in names)


def _counted() -> Iterable[Metric]:
    """What this process counts; under the supervisor, what all roles count together (prometheus_client's multiprocess
    mode, switched on by its own variable)."""
    if MULTIPROCESS_VARIABLE not in os.environ:
        return REGISTRY.collect()
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry.collect()


async def _ledger_gauges(request: web.Request) -> list[Metric]:
    reachable = GaugeMetricFamily("chainbell_database_up", "Whether the database answered this scrape")
    try:
        async with transaction(request.app[SERVICES].operator_engine) as connection:
            now = await database_now(connection)
            rows = await list_chains(connection)
            counts = await count_deliveries(connection)
    except UNAVAILABLE as error:
        log.warning("scrape without the ledger", error=type(error).__name__)
        reachable.add_metric([], 0)
        return [reachable]
    reachable.add_metric([], 1)
    chains = [chain_document(row, state=chain_state_of(row, now).value, now=now) for row in rows]
    return [reachable, *_backlog_gauges(counts), *_chain_gauges(chains), _missed(rows)]


def _missed(rows: Sequence[ChainRow]) -> Metric:
    """Counted in the ledger, since whatever process finds one ends or restarts."""
    family = CounterMetricFamily(
        "chainbell_missed_deposits_total", "Deposits that audits found missing", labels=["chain"]
    )
    for row in rows:
        family.add_metric([row.slug], row.missed_deposits)
    return family


def _backlog_gauges(counts: Mapping[str, int]) -> list[Metric]:
    return [
        GaugeMetricFamily("chainbell_deliveries_due", "Deliveries that are due now", value=counts["due"]),
        GaugeMetricFamily("chainbell_deliveries_held", "Deliveries that wait for their endpoint", value=counts["held"]),
        GaugeMetricFamily("chainbell_deliveries_faulted", "Deliveries that failed by us", value=counts["faulted"]),
    ]


class _ChainGauge(NamedTuple):
    name: str
    help: str
    field: str


_CHAIN_GAUGES = (
    _ChainGauge("chainbell_chain_head_height", "Newest block that a node claims", "head"),
    _ChainGauge("chainbell_chain_tip_height", "Newest block that we committed", "tip"),
    _ChainGauge("chainbell_chain_finalized_height", "Newest block of ours that is final", "finalized"),
    _ChainGauge("chainbell_chain_lag_seconds", "Age of our tip while it is behind the head", "lag_seconds"),
)


def _chain_gauges(chains: Sequence[ChainDocument]) -> list[Metric]:
    families: list[Metric] = []
    for gauge in _CHAIN_GAUGES:
        family = GaugeMetricFamily(gauge.name, gauge.help, labels=["chain"])
        for chain in chains:
            value = getattr(chain, gauge.field)
            if value is not None:
                family.add_metric([chain.chain], value)
        families.append(family)
    halted = GaugeMetricFamily("chainbell_chain_halted", "1 while a person has to decide", labels=["chain"])
    enforced = GaugeMetricFamily(
        "chainbell_chain_proof_enforced", "0 while a block that fails its proof is taken all the same", labels=["chain"]
    )
    for chain in chains:
        halted.add_metric([chain.chain], float(chain.state == ChainState.HALTED.value))
        enforced.add_metric([chain.chain], float(chain.proof_enforced))
    return [*families, halted, enforced]


ROUTES = (
    OpenRoute("/healthz", healthz, "application/json", StatusDocument),
    OpenRoute("/readyz", readyz, "application/json", StatusDocument),
    OpenRoute("/metrics", metrics, "text/plain", is_operators=True),
    OpenRoute("/openapi.json", openapi, "application/json"),
    OpenRoute("/docs", page, "text/html"),
)
