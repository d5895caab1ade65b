"""Chain rows: registering what is configured, the follower's lock and checkpoint, and what operators see and decide."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, Text, case, func, literal, select, true, update
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, insert
from sqlalchemy.ext.asyncio import AsyncConnection

from chains.model import Asset, AssetId, BlockHash, ChainId, Slug, ValuePath
from ledger.bulk import unnested
from ledger.database import lock_number
from ledger.errors import CheckpointMoved, UnknownName
from ledger.model import AssetRow, ChainRow
from ledger.rows import asset_from, chain_from
from ledger.schema import assets, chains, policies
from ledger.states import ChainState

HEARTBEAT_TIMEOUT = timedelta(seconds=60)
"""A follower that gave no sign of life for this long is shown as stopped."""

EVM_SCOPE = "evm"
"""Scope of a watch for every EVM chain."""


@dataclass(frozen=True, slots=True)
class ChainConfiguration:
    """What settings and profile say of a chain, for its row."""

    chain_id: ChainId
    slug: Slug
    profile: str
    livemode: bool
    native_asset_id: AssetId
    proof: str
    quorum: int
    value_paths: tuple[str, ...]
    """What is read without a tracing node."""
    assets: tuple[Asset, ...]
    credit_rules: tuple[Mapping[str, Any], ...]
    """First-match rules as JSON: `name`, `credit_at`, and optional `asset_id`, `min_atomic`, `max_atomic`."""
    is_proof_enforced: bool = True
    """False where a block that fails its proof is taken all the same."""
    tracing_hosts: tuple[str, ...] = ()
    """The hosts whose traces are read if they are known to trace; none where the operator wants no traces."""


async def register_chain(connection: AsyncConnection, configuration: ChainConfiguration, now: datetime) -> int:
    """Bring the rows of a chain, its assets and its policy to what is configured; returns the policy's version.

    The checkpoint is never touched, and who was seen to trace is not forgotten. A policy that differs from the newest
    stored one becomes the next version."""
    facts: dict[str, Any] = {
        "slug": configuration.slug,
        "profile": configuration.profile,
        "livemode": configuration.livemode,
        "native_asset_id": configuration.native_asset_id,
        "proof": configuration.proof,
        "proof_enforced": configuration.is_proof_enforced,
        "quorum": configuration.quorum,
        "value_paths": list(configuration.value_paths),
    }
    await _take_turn(connection, configuration.chain_id)
    statement = insert(chains).values(chain_id=configuration.chain_id, **facts)
    is_traced = chains.c.tracers.has_any(literal(list(configuration.tracing_hosts), ARRAY(Text)))
    traced = literal([*configuration.value_paths, ValuePath.TRACES.value], ARRAY(Text))
    facts["value_paths"] = case((is_traced, traced), else_=literal(facts["value_paths"], ARRAY(Text)))
    await connection.execute(statement.on_conflict_do_update(index_elements=[chains.c.chain_id], set_=facts))
    await _register_assets(connection, configuration)
    return await _register_policy(connection, configuration, now)


async def _register_assets(connection: AsyncConnection, configuration: ChainConfiguration) -> None:
    tip = select(chains.c.tip_height + 1).where(chains.c.chain_id == configuration.chain_id).scalar_subquery()
    for asset in configuration.assets:
        facts = {"symbol": asset.symbol, "decimals": asset.decimals}
        statement = insert(assets).values(
            asset_id=asset.id,
            chain_id=configuration.chain_id,
            kind=asset.kind.value,
            contract=asset.contract,
            listed_from_height=tip,
            **facts,
        )
        await connection.execute(statement.on_conflict_do_update(index_elements=[assets.c.asset_id], set_=facts))


async def _register_policy(connection: AsyncConnection, configuration: ChainConfiguration, now: datetime) -> int:
    # The chain row is locked by the upsert before this, so two processes cannot both add a version.
    newest = (
        await connection.execute(
            select(policies.c.version, policies.c.rules)
            .where(policies.c.chain_id == configuration.chain_id)
            .order_by(policies.c.version.desc())
            .limit(1)
        )
    ).first()
    rules = [dict(rule) for rule in configuration.credit_rules]
    if newest is not None and newest.rules == rules:
        return int(newest.version)
    version = 1 if newest is None else newest.version + 1
    row = {"chain_id": configuration.chain_id, "version": version, "rules": rules, "created_at": now}
    await connection.execute(policies.insert().values(row))
    return version


def _turn(chain_id: str) -> int:
    """The advisory lock at which all queue who want a chain's row, for themselves or to share it.

    Why a row lock alone is not enough. Who asks `FOR SHARE` is let in past a follower that waits for others who share the
    row: two loads of watches at once, each call begun before the last one has ended, kept a follower out for as long as
    they went on. Advisory locks are given in the order in which they were asked for."""
    return lock_number("chain", chain_id)


async def _take_turn(connection: AsyncConnection, chain_id: ChainId) -> None:
    await connection.execute(select(func.pg_advisory_xact_lock(_turn(chain_id))))


async def lock_chain(connection: AsyncConnection, chain_id: ChainId) -> tuple[ChainRow, datetime]:
    """The chain's row `FOR UPDATE`, and the database's time: the first lock of every commit.

    From here to the end of the transaction rows are found by index and not by reading tables. A connection keeps the plan
    of a statement until the tables' statistics are renewed, and the plan for an empty table is to read it: after
    many watches or entries have come at once, every block read them all."""
    # The row is locked above the join, so after the turn was taken; a row that changed meanwhile is read again.
    turn = select(
        func.pg_advisory_xact_lock(_turn(chain_id)).label("taken"),
        func.set_config("enable_seqscan", "off", True).label("reading"),
    ).cte("turn")
    row = (
        await connection.execute(
            select(chains, func.clock_timestamp().label("now"))
            .join_from(chains, turn, true())
            .where(chains.c.chain_id == chain_id)
            .with_for_update(of=chains)
        )
    ).one()
    values = dict(row._mapping)
    now = values.pop("now")
    values["state"] = ChainState(values["state"])
    values["value_paths"] = tuple(values["value_paths"])
    values["nodes"] = tuple(values["nodes"])
    return ChainRow(**values), now


async def share_chains(connection: AsyncConnection, chain_ids: Collection[ChainId]) -> list[ChainRow]:
    """These chains' rows, locked `FOR SHARE` in the order of their ids: none of their blocks is committed while watches
    are inserted, so a watch inserted at tip T is covered from T + 1 exactly."""
    ordered = sorted(chain_ids)
    turns = unnested("turns", number=BigInteger())
    await connection.execute(
        select(func.pg_advisory_xact_lock_shared(turns.c.number)),
        {"all_number": [_turn(chain_id) for chain_id in ordered]},
    )
    statement = select(chains).where(chains.c.chain_id.in_(ordered)).order_by(chains.c.chain_id)
    return [chain_from(row) for row in await connection.execute(statement.with_for_update(read=True))]


async def find_chain(connection: AsyncConnection, chain_id: ChainId) -> ChainRow:
    """One chain's row; raises `UnknownName`."""
    row = (await connection.execute(select(chains).where(chains.c.chain_id == chain_id))).first()
    if row is None:
        raise UnknownName(f"chain {chain_id} is not in the ledger; start its follower once")
    return chain_from(row)


async def list_chains(connection: AsyncConnection) -> list[ChainRow]:
    """Every chain that was ever followed, by slug."""
    return [chain_from(row) for row in await connection.execute(select(chains).order_by(chains.c.slug))]


async def list_assets(connection: AsyncConnection, asset_ids: Sequence[str]) -> dict[str, AssetRow]:
    """The named assets, by id."""
    rows = await connection.execute(select(assets).where(assets.c.asset_id.in_(asset_ids)))
    return {row.asset_id: asset_from(row) for row in rows}


def chain_state_of(row: ChainRow, now: datetime) -> ChainState:
    """The state to show: `stopped` where the follower gave no sign of life, except that a halt stays a halt."""
    if row.state is ChainState.HALTED:
        return ChainState.HALTED
    if row.heartbeat_at is None or now - row.heartbeat_at > HEARTBEAT_TIMEOUT:
        return ChainState.STOPPED
    return row.state


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tip, as a follower last committed it."""

    height: int
    hash: BlockHash


async def move_checkpoint(
    connection: AsyncConnection,
    chain_id: ChainId,
    *,
    expected: Checkpoint | None,
    new: Checkpoint,
    new_at: datetime,
    extra: Mapping[str, Any],
) -> None:
    """Move the tip by compare-and-set, with what else changes on the row; raises `CheckpointMoved` when the tip is not
    the expected one. A second follower can waste work, never corrupt."""
    statement = update(chains).where(chains.c.chain_id == chain_id)
    if expected is None:
        statement = statement.where(chains.c.tip_hash.is_(None))
    else:
        statement = statement.where(chains.c.tip_hash == expected.hash, chains.c.tip_height == expected.height)
    values = {"tip_height": new.height, "tip_hash": new.hash, "tip_at": new_at, **extra}
    result = await connection.execute(statement.values(values))
    if result.rowcount != 1:
        raise CheckpointMoved(f"{chain_id}: the tip is not {expected.height if expected else 'empty'} any more")


async def update_chain(connection: AsyncConnection, chain_id: ChainId, values: Mapping[str, Any]) -> None:
    """Set columns of a chain's row: heights that the caller judged under its lock, or what operators see."""
    await connection.execute(update(chains).where(chains.c.chain_id == chain_id).values(dict(values)))


async def remember_tracers(
    connection: AsyncConnection, chain_id: ChainId, tracers: Mapping[str, str], value_paths: Sequence[str]
) -> None:
    """Add hosts that were seen to trace, each with its method, and say which value paths are read with them. None is
    ever taken out: from now on a missing trace holds the chain, after a restart too."""
    merged = chains.c.tracers.op("||")(literal(dict(tracers), JSONB))
    await _take_turn(connection, chain_id)
    statement = update(chains).where(chains.c.chain_id == chain_id)
    await connection.execute(statement.values(tracers=merged, value_paths=list(value_paths)))


async def show_follower(
    connection: AsyncConnection,
    chain_id: ChainId,
    *,
    state: ChainState,
    reason: str | None,
    head_height: int | None,
    nodes: Sequence[Mapping[str, Any]],
    now: datetime,
) -> None:
    """A follower's sign of life. It never overwrites a halt: only `resume_chain` lifts one."""
    await _take_turn(connection, chain_id)
    await connection.execute(
        update(chains)
        .where(chains.c.chain_id == chain_id, chains.c.state != ChainState.HALTED.value)
        .values(
            state=state.value,
            reason=reason,
            head_height=func.coalesce(head_height, chains.c.head_height),
            nodes=list(nodes),
            heartbeat_at=now,
        )
    )
