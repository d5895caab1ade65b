"""Lists of entries at volume, as the API's role: every filter and every two of them, by index, and never more than a bounded
number of rows for a page. Buffers are counted too: an index may be read far without a row to show for it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from bench.lists import PAGE, Case, asking, cases_of
from bench.looking import Look, look_at
from bench.volume import TENANT, fill
from bench.watching import plain_url
from ledger import walks
from ledger.database import connect_api

ROWS = int(os.environ.get("CHAINBELL_ENTRY_ROWS", "12000"))
"""`CHAINBELL_ENTRY_ROWS=10000000` for ten million, by hand: an hour, and twenty gigabytes of disk."""

LOOKED_MAX = walks.LOOKED_MAX if ROWS >= 1_000_000 else 300
"""What a page may look at, small enough to be a small part of the table."""

CASES = cases_of(ROWS)

BY_STEPS = ("till", "shop", "finalized", "that pays many", "very many", "of many")
"""Kinds of which a page may have to look at more than it answers, even alone: they are looked for first, or sorted, or stand
behind others."""

COMMON_PAIRS = (
    "asset, since",
    "chain, since",
    "state dropped, asset",
    "chain, state dropped",
    "state dropped, since",
    "chain, asset",
)
"""Two filters that one index holds both of."""

WORST = (
    "chain",
    "address of the treasury",
    "reference of very many",
    "state dropped",
    "asset EDGE",
    "since the beginning",
)
"""Of each filter what is frequent; two of these may hardly ever meet."""


def _is_chosen(name: str) -> bool:
    """Whether a small run takes it: every filter alone, and each two of the frequent."""
    parts = name.removesuffix(", from the middle").split(", ")
    return ROWS >= 1_000_000 or len(parts) == 1 or (set(parts) <= set(WORST) and parts[-1] != "from the middle")


CHOSEN = {name: case for name, case in CASES.items() if _is_chosen(name)}


def _is_tight(name: str) -> bool:
    """Whether an index holds all that is asked, so that a page looks at its own rows and no others."""
    if any(kind in name for kind in BY_STEPS):
        return False
    return len(name.removesuffix(", from the middle").split(", ")) == 1 or any(
        name.startswith(pair) for pair in COMMON_PAIRS
    )


@pytest.fixture
async def api(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AsyncEngine]:
    """The API's engine on a ledger in which one tenant has nearly everything."""
    monkeypatch.setattr(walks, "LOOKED_MAX", LOOKED_MAX)
    fill(plain_url(database_url), ROWS)
    engine = connect_api(database_url, pool_size=1)
    yield engine
    await engine.dispose()


async def looks_at(engine: AsyncEngine, cases: dict[str, Case], *, is_generic: bool) -> dict[str, Look]:
    """What each page looks at."""
    return {name: await look_at(engine, TENANT, asking(case), is_generic=is_generic) for name, case in cases.items()}


async def test_every_filter_and_every_two_are_read_by_index_and_within_bounds(api: AsyncEngine) -> None:
    looks = await looks_at(api, CHOSEN, is_generic=False)
    generic = await looks_at(
        api, {name: case for name, case in CHOSEN.items() if "middle" not in name}, is_generic=True
    )
    for seen in (looks, generic):
        assert {name: look for name, look in seen.items() if look.sequential} == {}
        assert {
            name: look for name, look in seen.items() if look.rows > 9 * LOOKED_MAX + 3 * PAGE and "tx" not in name
        } == {}
        assert {name: look for name, look in seen.items() if _is_tight(name) and look.rows > 3 * PAGE} == {}
        assert {
            name: look for name, look in seen.items() if _is_tight(name) and look.buffers > 2 * look.answered + 20
        } == {}
    assert {name for name, look in looks.items() if look.answered == PAGE} >= {
        "everything",
        "chain",
        "asset",
        "address of the treasury",
    }
    assert {name for name, look in looks.items() if not look.answered} >= {
        "chain without any",
        "reference of none",
        "since now",
    }
