"""What each role does once its database is open: follow chains, notify endpoints, serve the API.

A role ends when `stop` is set; it then finishes what it is in the middle of. Whatever it raises is either a
`ChainbellError` (a person has to correct something) or a fault of ours, which the supervisor meets with a restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial

import structlog
from aiohttp import web
from sqlalchemy.ext.asyncio import AsyncEngine

from api.app import create_app
from api.server import serving
from chainbell.configured import ConfiguredChain, configure_chains
from chainbell.errors import ChainbellError, UsageError
from chainbell.master_key import find_secret_box
from chainbell.opening import admit, open_database, open_engine, register_chains
from chainbell.settings_model import Settings, split_listen
from chainbell.version import VERSION
from chains.errors import WrongChain
from chains.evm.adapter import EvmAdapter
from chains.evm.workers import Workers
from indexer.audit import BlockAuditor
from indexer.auditing import Auditor, audits_by_the_clock
from indexer.commit import Followed
from indexer.follower import Course, Follower
from indexer.historian import Historian
from indexer.past import Past
from indexer.policy import Policy, reasons_against
from indexer.prefetch import Bounds
from indexer.rereading import BESIDE_HEAD, Rereader
from indexer.run import follow
from ledger.chains import list_chains
from ledger.database import connect_api, transaction
from ledger.migrate import head_revision
from ledger.secrets import SecretBox
from ledger.urls import EndpointPolicy
from notifier.clock import ClockWatch
from notifier.dispatcher import Dispatcher
from notifier.maintenance import housekeeping, partition_upkeep
from notifier.recovery import keep_recovering
from notifier.sender import Sender

log = structlog.get_logger()

FOLLOWER_TRANSACTION_LIMIT_S = 120
"""Far longer than a commit takes, and as long as a frozen leader may keep another from taking over."""

NOTIFIER_CONNECTIONS = 8
"""One each for hints, claims, claims for failing endpoints, sweeps and heartbeats, two for settlings, and one for what is
rare: none of these is to wait for another's."""

NOTIFIER_TRANSACTION_LIMIT_S = 30
"""A frozen notifier may hold locks that all others need to settle. Theirs is settled after this at the latest: well before
their leases end, even of what had waited for an answer as long as it may."""

Role = Callable[[Settings, asyncio.Event], Awaitable[None]]

LIVE_BLOCKS = 20
LIVE_WINDOW_MIN = timedelta(minutes=2)
"""An entry is `live` when its block is younger than this, or than `LIVE_BLOCKS` block times, at its commit."""

PAST_SHARE = 0.25
"""Of the calls a second that a node may be asked, for what jobs on the past ask beside the head."""

BEHIND_BLOCKS = 10
BEHIND_LIMIT_MIN_S = 60.0
"""A node may be below our tip for this long, or for ten block times, before operators are told that the chain waits."""


def policy_of(settings: Settings) -> EndpointPolicy:
    """What endpoints' URLs may be, by the operator's settings."""
    notifier = settings.notifier
    return EndpointPolicy(notifier.allow_http, tuple(notifier.allow_private), tuple(notifier.allow_ports))


def chosen_chains(settings: Settings, slugs: Sequence[str]) -> tuple[ConfiguredChain, ...]:
    """The configured chains of these slugs, all of them for none. Raises `UsageError` for a slug that there is not."""
    chains = configure_chains(settings)
    known = {chain.slug: chain for chain in chains}
    for slug in slugs:
        if slug not in known:
            names = ", ".join(known) or "none"
            raise UsageError(f"--chain {slug}: no such chain is configured; there are: {names}")
    return tuple(known[slug] for slug in slugs) if slugs else chains  # type: ignore[index]


def followed_of(chain: ConfiguredChain, policy_version: int) -> Followed:
    """What is known of a configured chain besides its row."""
    profile = chain.profile
    return Followed(
        chain_id=profile.chain_id,
        policy=Policy(chain.slug, policy_version, chain.credit_rules),
        live_window=max(LIVE_WINDOW_MIN, timedelta(seconds=LIVE_BLOCKS * profile.block_time_s)),
        finality_depth=profile.finality_depth,
        reasons=reasons_against(profile.assets),
    )


def make_follower(engine: AsyncEngine, adapter: EvmAdapter, chain: ConfiguredChain, policy_version: int) -> Follower:
    """The follower of a configured chain."""
    followed = followed_of(chain, policy_version)
    profile = chain.profile
    start = None if chain.start == "latest" else chain.start
    return Follower(engine, adapter, followed, Course(chain.slug, start, profile.has_finality_tags))


async def migrate_once(settings: Settings, url: str, box: SecretBox | None = None) -> str:
    """Bring the database to head, and the chains' rows to the settings; returns the revision. With `box`, a master key that
    is not the database's is refused by its `WrongMasterKey`."""
    async with open_engine(settings, url, application="chainbell migrate", pool_size=2, may_migrate=True) as engine:
        await register_chains(engine, configure_chains(settings))
        if box is not None:
            await admit(engine, box)
    return head_revision()


async def follow_chains(settings: Settings, stop: asyncio.Event, slugs: Sequence[str] = ()) -> None:
    """Follow the chosen chains, each by itself: one that holds or halts stops no other."""
    chains = chosen_chains(settings, slugs)
    if not chains:
        raise ChainbellError("no chain is configured: add a [chains.<slug>] section, as `chainbell init` shows")
    async with AsyncExitStack() as stack:
        url = stack.enter_context(open_database(settings))
        # A leader's lock, its commits and its sign of life for each chain. Its past shares these: it can wait, and Postgres
        # has a hundred connections for everybody.
        pool_size = 3 * len(chains) + 2
        opened = open_engine(
            settings,
            url,
            application="chainbell follow",
            pool_size=pool_size,
            transaction_limit_s=FOLLOWER_TRANSACTION_LIMIT_S,
        )
        engine = await stack.enter_async_context(opened)
        versions = await register_chains(engine, chains)
        stack.enter_context(partition_upkeep(engine))
        workers = Workers()
        stack.push_async_callback(workers.close)
        is_new = await _is_new(engine)
        async with asyncio.TaskGroup() as group:
            for chain in chains:
                group.create_task(_follow_chain(engine, chain, versions[chain.slug], workers, stop, is_new=is_new))


async def _is_new(engine: AsyncEngine) -> bool:
    """True when no chain was ever followed here: then somebody is at the screen, and a mistake is best said at once."""
    async with transaction(engine) as connection:
        return all(row.tip_height is None for row in await list_chains(connection))


async def _follow_chain(
    engine: AsyncEngine,
    chain: ConfiguredChain,
    policy_version: int,
    workers: Workers,
    stop: asyncio.Event,
    *,
    is_new: bool,
) -> None:
    """Follow one chain. A node of another chain stops a new installation with its sentence; later it is only a failing
    node, for a provider's mistake with one chain must not take the others down."""
    profile = chain.profile
    if not profile.is_proof_enforced:
        log.warning("proof is only observed", chain=chain.slug, proof=profile.proof.value)
    adapter = EvmAdapter(profile, chain.nodes, workers=workers, internal=chain.internal, quorum=chain.quorum)
    try:
        try:
            await adapter.check_chain_id()
        except WrongChain as error:
            if is_new:
                raise ChainbellError(str(error)) from error
            log.error("node of another chain", chain=chain.slug, reason=str(error))
        following = follow(
            make_follower(engine, adapter, chain, policy_version),
            engine,
            poll_interval_s=profile.poll_interval_s,
            behind_limit_s=max(BEHIND_LIMIT_MIN_S, BEHIND_BLOCKS * profile.block_time_s),
            stop=stop,
            block_time_s=profile.block_time_s,
            is_steady=not profile.mines_on_demand,
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(following)
            group.create_task(_keep_past(engine, chain, policy_version, workers, stop))
    finally:
        await adapter.close()


@asynccontextmanager
async def open_past(
    engine: AsyncEngine, chain: ConfiguredChain, policy_version: int, workers: Workers, share: float
) -> AsyncIterator[tuple[Past, EvmAdapter]]:
    """What works on a chain's past, with an adapter of its own that asks each node at `share` of its pace."""
    nodes = [node.model_copy(update={"rps": node.rps * share}) if node.rps else node for node in chain.nodes]
    adapter = EvmAdapter(chain.profile, nodes, workers=workers, internal=chain.internal, quorum=chain.quorum)
    try:
        bounds = Bounds() if share == 1.0 else BESIDE_HEAD
        rereader = Rereader(engine, adapter, chain.profile.chain_id, chain.slug, bounds)
        await rereader.recall()
        yield Past(engine, rereader, followed_of(chain, policy_version), chain.slug), adapter
    finally:
        await adapter.close()


def auditor_of(engine: AsyncEngine, past: Past, chain: ConfiguredChain) -> Auditor:
    """What audits a configured chain."""
    blocks = BlockAuditor(engine, past.rereader, past.followed)
    return Auditor(engine, blocks, chain.profile.chain_id, chain.slug)


async def _keep_past(
    engine: AsyncEngine, chain: ConfiguredChain, policy_version: int, workers: Workers, stop: asyncio.Event
) -> None:
    """Work on the jobs of one chain, and make those that its listed assets call for."""
    async with open_past(engine, chain, policy_version, workers, PAST_SHARE) as (past, adapter):
        with audits_by_the_clock(auditor_of(engine, past, chain)):
            await Historian(engine, past, adapter, chain.profile.chain_id, chain.slug).keep(stop)


async def notify(settings: Settings, stop: asyncio.Event) -> None:
    """Deliver events to endpoints, and keep house."""
    secret_box = find_secret_box(settings)
    async with AsyncExitStack() as stack:
        url = stack.enter_context(open_database(settings))
        opened = open_engine(
            settings,
            url,
            application="chainbell notify",
            pool_size=NOTIFIER_CONNECTIONS,
            transaction_limit_s=NOTIFIER_TRANSACTION_LIMIT_S,
        )
        engine = await stack.enter_async_context(opened)
        await admit(engine, secret_box)
        stack.enter_context(housekeeping(engine))
        sender = await stack.enter_async_context(Sender(policy_of(settings), version=VERSION))
        clock = ClockWatch(engine)
        await clock.check()
        async with asyncio.TaskGroup() as group:
            group.create_task(clock.keep(stop))
            group.create_task(keep_recovering(engine, stop))
            group.create_task(Dispatcher(engine, sender, secret_box, may_sign=clock.may_sign).run(stop))


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Serve the REST API until `stop`."""
    secret_box = find_secret_box(settings)
    async with AsyncExitStack() as stack:
        url = stack.enter_context(open_database(settings))
        engine = await stack.enter_async_context(open_engine(settings, url, application="chainbell serve", pool_size=4))
        await register_chains(engine, configure_chains(settings))
        cursor_key = await admit(engine, secret_box)
        stack.enter_context(partition_upkeep(engine))
        api_engine = connect_api(url)
        stack.push_async_callback(api_engine.dispose)
        app_for = partial(
            create_app,
            engine=api_engine,
            operator_engine=engine,
            secret_box=secret_box,
            endpoint_policy=policy_of(settings),
            cursor_key=cursor_key,
            version=VERSION,
            rps_per_key=settings.api.rps_per_key,
            trusted_proxies=settings.api.trusted_proxies,
        )
        operators = settings.api.operator_listen
        if operators is not None:
            await stack.enter_async_context(_listening(app_for(), settings, "api.operator_listen", operators))
        app = app_for(is_for_tenants=operators is not None)
        await stack.enter_async_context(_listening(app, settings, "api.listen", settings.api.listen))
        await stop.wait()


@asynccontextmanager
async def _listening(app: web.Application, settings: Settings, setting: str, listen: str) -> AsyncIterator[None]:
    """Serve an application for as long as the block lasts, at the address that a setting names."""
    async with AsyncExitStack() as stack:
        try:
            listening = serving(app, *split_listen(listen), trusted_proxies=settings.api.trusted_proxies)
            host, port = await stack.enter_async_context(listening)
        except OSError as error:
            raise ChainbellError(
                f"{setting} = {listen!r}: {error.strerror}; free the port or choose another"
            ) from error
        log.info("serving", address=f"{host}:{port}", setting=setting)
        yield
