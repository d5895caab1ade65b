"""Whatever dies or freezes in the middle of a delivery: every committed event comes, an entry's in order, and again only
where a lease was lost and counted. `make soak` plays many more seeds."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.fixtures.cluster import Cluster, own_cluster
from tests.outside.sink_accidents import POINTS, points_of
from tests.outside.sink_proof import play_seed
from tests.outside.sink_world import World, sink_world

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="whose connection that is, is read from Linux's /proc")

SEEDS = range(6)
"""Together they have every point."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with own_cluster() as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    directory: Path = tmp_path_factory.mktemp("sink")
    async with sink_world(directory, cluster) as made:
        yield made


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("seed", SEEDS)
async def test_every_event_comes_in_order_and_again_only_where_a_lease_was_lost(world: World, seed: int) -> None:
    figures = await play_seed(world, seed, points_of(seed))
    assert figures.is_right, f"{figures}\n{world.installation.log_tail(30)}"


def test_the_fixed_seeds_have_every_point() -> None:
    assert {name for seed in SEEDS for name in points_of(seed)} == POINTS.keys()
