"""Several nodes: who is asked, in which order, and what it means when all of them fail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp
import pytest
from structlog.testing import capture_logs

from chains.errors import BlockNotFound, ChainError, ChainHolds, NodeUnavailable
from chains.model import Slug
from chains.node import health
from chains.node.client import NodeClient
from chains.node.errors import NodeDenied, NodeError, NodeGarbled, NodeLacks, NodeTimeout, NodeUnproven
from chains.node.health import BLOCK, HEAD, Upstream
from chains.node.pool import BEHIND_BLOCKS, COMPLAINT_INTERVAL_S, PAUSE_JITTER, PAUSE_MIN_S, Pool

TIMEOUT = NodeTimeout("x", "no whole answer in 10 s")
UNPROVEN = NodeUnproven("x", "receipts_root", "3 items give 0xaa, the header says 0xbb")
LACKS = NodeLacks("x", "has no block 7")
HANGS = object()
"""It takes the question and never answers."""


@dataclass
class Street:
    """A pool of nodes whose answers a test decides: an error is raised, anything else answered."""

    pool: Pool
    answers: dict[str, object] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    admitted: list[str] = field(default_factory=list)
    foreign: set[str] = field(default_factory=set)
    now: float = 1000.0

    async def ask(self, upstream: Upstream) -> object:
        self.asked.append(upstream.name)
        answer = self.answers.get(upstream.name, f"from {upstream.name}")
        if answer is HANGS:
            await asyncio.Event().wait()
        if isinstance(answer, NodeError):
            raise answer
        return answer

    async def admit(self, upstream: Upstream) -> None:
        self.admitted.append(upstream.name)
        if upstream.name in self.foreign:
            raise NodeUnproven(upstream.name, "chain_id", "it speaks of eip155:5")

    async def first(self) -> object:
        self.asked.clear()
        return await self.pool.first_answer("block 7", self.ask, kind=BLOCK)

    def states(self) -> list[str]:
        return [upstream.state for upstream in self.pool.upstreams]


@pytest.fixture
def street(session: aiohttp.ClientSession) -> Street:
    names = ("a", "b", "c")
    upstreams = [Upstream(NodeClient(Slug("poolnet"), name, f"http://{name}.example", session)) for name in names]

    async def admit(upstream: Upstream) -> None:
        await made.admit(upstream)

    pool = Pool(Slug("poolnet"), upstreams, admit, clock=lambda: made.now, chance=lambda: 0.0)
    made = Street(pool)
    return made


async def test_the_first_node_in_the_operators_order_answers(street: Street) -> None:
    assert await street.first() == "from a"
    assert street.asked == ["a"]
    assert street.states() == ["ok", "unknown", "unknown"]


async def test_a_node_that_two_other_hosts_are_ahead_of_is_asked_after_them(street: Street) -> None:
    a, b, c = street.pool.upstreams
    a.head, b.head, c.head = 7, 7 + BEHIND_BLOCKS, 8 + BEHIND_BLOCKS
    assert await street.first() == "from a"  # of b it may be told that it was asked later
    b.head = 8 + BEHIND_BLOCKS
    assert await street.first() == "from b"
    assert a.status().state == "ok"
    a.head = 8
    assert await street.first() == "from a"


async def test_one_host_that_claims_a_far_head_puts_nobody_back(street: Street) -> None:
    a, b, c = street.pool.upstreams
    a.head, b.head, c.head = 7, 1007, 7
    assert await street.first() == "from a"


async def test_the_next_node_answers_for_a_failing_one_and_the_failing_one_goes_last(street: Street) -> None:
    street.answers["a"] = TIMEOUT
    assert await street.first() == "from b"
    assert street.pool.upstreams[0].status().reason == "no whole answer in 10 s"
    assert await street.first() == "from b"
    assert street.asked == ["b"]
    street.answers |= {"b": TIMEOUT, "c": TIMEOUT}
    with pytest.raises(NodeUnavailable):
        await street.first()
    assert street.asked == ["b", "c", "a"]


async def test_a_failing_node_gets_its_place_back_after_a_pause_that_grows(street: Street) -> None:
    street.answers["a"] = TIMEOUT
    await street.first()
    street.now += PAUSE_MIN_S
    await street.first()
    assert street.asked == ["a", "b"]
    street.now += PAUSE_MIN_S
    await street.first()
    assert street.asked == ["b"]
    street.now += PAUSE_MIN_S
    del street.answers["a"]
    assert await street.first() == "from a"
    assert street.states()[0] == "ok"


async def test_the_pause_stays_bounded_however_long_a_node_fails(street: Street) -> None:
    upstream = street.pool.upstreams[0]
    upstream.failures = 5000
    street.answers["a"] = TIMEOUT
    await street.first()
    street.now += 300.0
    await street.first()
    assert street.asked == ["a", "b"]


async def test_a_node_is_admitted_once_and_again_after_each_failing(street: Street) -> None:
    await street.first()
    await street.first()
    assert street.admitted == ["a"]
    street.answers["a"] = TIMEOUT
    await street.first()
    del street.answers["a"]
    street.now += PAUSE_MIN_S
    await street.first()
    assert street.admitted == ["a", "b", "a"]


async def test_a_node_that_comes_back_with_another_chain_is_not_believed(street: Street) -> None:
    street.answers["a"] = TIMEOUT
    await street.first()
    del street.answers["a"]
    street.foreign.add("a")
    street.now += PAUSE_MIN_S
    assert await street.first() == "from b"
    assert street.asked == ["b"]
    assert "eip155:5" in (street.pool.upstreams[0].reason or "")


async def test_a_node_without_the_block_is_not_failing_and_the_others_are_asked(street: Street) -> None:
    street.answers["a"] = LACKS
    assert await street.first() == "from b"
    assert street.states()[0] != "failing"
    assert street.pool.upstreams[0].reason is None
    await street.first()
    assert street.asked == ["a", "b"]


@pytest.mark.parametrize(
    ("answers", "error", "words"),
    [
        ([LACKS, LACKS, LACKS], BlockNotFound, "no node has it"),
        ([TIMEOUT, LACKS, TIMEOUT], BlockNotFound, "no node has it"),
        ([TIMEOUT, TIMEOUT, NodeDenied("x", "HTTP 403")], NodeUnavailable, "no node answered"),
        ([UNPROVEN, UNPROVEN, UNPROVEN], ChainHolds, r"poolnet: block 7: .*proven \(receipts_root\)"),
        ([TIMEOUT, UNPROVEN, LACKS], ChainHolds, "receipts_root"),
    ],
)
async def test_when_all_fail_the_reasons_decide_what_it_means(
    street: Street, answers: Sequence[NodeError], error: type[ChainError], words: str
) -> None:
    street.answers |= dict(zip("abc", answers, strict=True))
    with pytest.raises(error, match=words) as caught:
        await street.first()
    assert type(caught.value) is error
    assert street.asked == ["a", "b", "c"]


async def test_a_node_complains_once_a_minute_and_says_when_it_is_well(street: Street) -> None:
    street.answers |= {"a": TIMEOUT, "b": TIMEOUT, "c": TIMEOUT}

    async def fail() -> None:
        with pytest.raises(NodeUnavailable):
            await street.first()

    with capture_logs() as logs:
        for _ in range(5):
            await fail()
        street.now += COMPLAINT_INTERVAL_S
        await fail()
        street.answers.clear()
        await street.first()
    mine = [row for row in logs if row["node"] == street.asked[-1]]
    assert [row["event"] for row in mine] == ["node failing", "node failing", "node recovered"]
    assert (mine[0]["log_level"], mine[0]["chain"]) == ("warning", "poolnet")
    assert "no whole answer" in mine[0]["reason"]


async def test_a_node_that_flaps_says_so_once_a_minute(street: Street) -> None:
    with capture_logs() as logs:
        for _ in range(10):
            street.answers["a"] = NodeGarbled("a", "answered HTML")
            with pytest.raises(NodeError):
                await street.pool.ask_one(street.pool.upstreams[0], street.ask, BLOCK)
            street.answers.clear()
            await street.pool.ask_one(street.pool.upstreams[0], street.ask, BLOCK)
    assert [row["event"] for row in logs] == ["node failing", "node recovered"]


async def test_failed_proofs_are_counted_by_node_and_check(street: Street, count_of: Callable[..., float]) -> None:
    labels: Mapping[str, str] = {"chain": "poolnet", "node": "a", "check": "receipts_root"}
    before = count_of("chainbell_proof_failures_total", **labels)
    street.answers["a"] = UNPROVEN
    await street.first()
    assert count_of("chainbell_proof_failures_total", **labels) == before + 1


async def test_only_the_named_nodes_are_asked(street: Street) -> None:
    found = await street.pool.first_answer("block 7", street.ask, kind=BLOCK, among=street.pool.upstreams[1:2])
    assert (found, street.asked) == ("from b", ["b"])


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes are late after a moment."""
    monkeypatch.setattr(health, "PATIENCE_MIN_S", 0.02)
    monkeypatch.setattr(health, "PATIENCE_UNKNOWN_S", 0.02)


@pytest.mark.usefixtures("impatient")
async def test_a_node_that_never_answers_delays_by_its_patience_once_and_then_nobody(street: Street) -> None:
    street.answers["a"] = HANGS
    assert await street.first() == "from b"
    assert street.asked == ["a", "b"]
    late = street.pool.upstreams[0].status()
    assert late.state == "failing"
    assert late.reason is not None and "when another had one" in late.reason
    assert await street.first() == "from b"
    assert street.asked == ["b"]


@pytest.mark.usefixtures("impatient")
async def test_a_late_node_may_still_be_the_first_to_answer_and_is_not_failing_then(street: Street) -> None:
    has_entered = asyncio.Event()

    async def ask(upstream: Upstream) -> str:
        if upstream.name == "a":
            await has_entered.wait()
            return "from a"
        has_entered.set()
        await asyncio.Event().wait()
        raise AssertionError

    assert await street.pool.first_answer("block 7", ask, kind=BLOCK) == "from a"
    assert street.states() == ["ok", "unknown", "unknown"]


@pytest.mark.usefixtures("impatient")
async def test_what_is_not_urgent_is_asked_of_one_node_at_a_time(street: Street) -> None:
    entered: list[str] = []

    async def ask(upstream: Upstream) -> str:
        entered.append(upstream.name)
        await asyncio.sleep(0.1)
        return f"from {upstream.name}"

    assert await street.pool.first_answer("block 7", ask, kind=BLOCK, is_urgent=False) == "from a"
    assert entered == ["a"]


@pytest.mark.usefixtures("impatient")
async def test_of_nodes_that_all_hang_none_is_blamed_for_the_others(street: Street) -> None:
    street.answers = dict.fromkeys("abc", HANGS)
    first = asyncio.create_task(street.first())
    async with asyncio.timeout(120):
        while street.asked != ["a", "b", "c"]:  # noqa: ASYNC110 - each is asked after the patience with the one before
            await asyncio.sleep(0.01)
    done, _ = await asyncio.wait([first], timeout=0.2)
    assert not done
    first.cancel()
    assert street.states() == ["unknown"] * 3


async def test_patience_grows_with_what_a_node_usually_takes(street: Street) -> None:
    node = street.pool.upstreams[0]
    assert node.patience_s(BLOCK) == health.PATIENCE_UNKNOWN_S
    for _ in range(50):
        node.note_latency(BLOCK, 3.0)
    assert node.patience_s(BLOCK) == pytest.approx(3.0 * health.PATIENCE_FACTOR)
    assert (node.status().latency_ms, node.patience_s(HEAD)) == (None, health.PATIENCE_UNKNOWN_S)
    for _ in range(50):
        node.note_latency(BLOCK, 0.01)
    assert node.patience_s(BLOCK) == health.PATIENCE_MIN_S


async def test_a_node_that_has_thrown_old_blocks_away_is_asked_for_them_last(street: Street) -> None:
    pruned = street.pool.upstreams[0]
    pruned.head = 1_000
    street.answers["a"] = LACKS

    async def asked_for(height: int) -> list[str]:
        street.asked.clear()
        await street.pool.first_answer(f"block {height}", street.ask, kind=BLOCK, height=height)
        return street.asked

    assert await asked_for(500) == ["a", "b"]
    assert await asked_for(400) == ["b"]
    assert await asked_for(501) == ["a", "b"]
    assert pruned.state == "unknown"


async def test_a_block_that_is_not_there_yet_says_nothing_of_a_nodes_history(street: Street) -> None:
    street.pool.upstreams[0].head = 1_000
    street.answers["a"] = LACKS
    for _ in range(2):
        street.asked.clear()
        assert await street.pool.first_answer("block 999", street.ask, kind=BLOCK, height=999) == "from b"
        assert street.asked == ["a", "b"]


async def test_a_pause_has_jitter(street: Street) -> None:
    pool = Pool(Slug("poolnet"), street.pool.upstreams, street.admit, clock=lambda: street.now, chance=lambda: 1.0)
    pool.note_failure(pool.upstreams[0], TIMEOUT)
    street.now += PAUSE_MIN_S * (1 - PAUSE_JITTER)
    assert not pool.is_paused(pool.upstreams[0])


async def test_a_node_that_falls_short_beside_blocks_is_shown_so_and_keeps_its_place(street: Street) -> None:
    assert await street.first() == "from a"
    street.pool.upstreams[0].shortcomings["traces"] = "no whole answer in 30 s"
    shown = street.pool.upstreams[0].status()
    assert (shown.state, shown.reason) == ("failing", "traces: no whole answer in 30 s")
    assert await street.first() == "from a"
    assert street.asked == ["a"]


async def test_quick_heads_do_not_make_a_node_seem_late_with_blocks(street: Street) -> None:
    node = street.pool.upstreams[0]
    for _ in range(50):
        node.note_latency(BLOCK, 3.0)
        for _ in range(6):
            node.note_latency(HEAD, 0.05)
    assert node.patience_s(BLOCK) == pytest.approx(3.0 * health.PATIENCE_FACTOR)
    assert node.status().latency_ms == 50


@pytest.mark.usefixtures("impatient")
async def test_of_two_that_answer_at_one_moment_neither_is_late(street: Street) -> None:
    both = asyncio.Event()

    async def ask(upstream: Upstream) -> str:
        if upstream.name == "b":
            asyncio.get_running_loop().call_soon(both.set)
        await both.wait()
        return f"from {upstream.name}"

    for _ in range(20):
        both.clear()
        assert await street.pool.first_answer("block 7", ask, kind=BLOCK) == "from a"
        assert street.pool.upstreams[0].state == "ok"
