"""What accounts hold, told by nodes that prove it, say it, lie, refuse, and have no state any more."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any

import pytest

from chains.evm.adapter import EvmAdapter
from chains.evm.holdings import BALANCE_OF, QUESTIONS_PER_BATCH
from chains.model import AssetId, BlockRef, Holding, ProofLevel
from chains.profile import load_profile
from tests.fakes.node import Json, RecordedNode, Refusal, html
from tests.unit.chains.evm.factories import ALICE, BOB, word
from tests.unit.chains.evm.recorded import DATA, read_json, recorded

WETH_PROOF = read_json(DATA / "evm" / "proofs" / "mainnet_weth.json")
HEIGHT: int = WETH_PROOF["block"]
BLOCK = recorded(HEIGHT).block
REF = BlockRef(HEIGHT, bytes.fromhex(BLOCK["hash"][2:]), bytes.fromhex(BLOCK["parentHash"][2:]))
WETH = bytes.fromhex(WETH_PROOF["proof"]["address"][2:])
PROVEN = Holding(int(WETH_PROOF["proof"]["balance"], 16), True, 1, True, "127.0.0.1")
PROFILE = load_profile("ethereum")
COIN = PROFILE.native.id
USDC, USDT = PROFILE.tokens[0].id, PROFILE.tokens[1].id
Method = Callable[..., Json]


@dataclass(frozen=True)
class Settings:
    """A node as the operator configures it."""

    url: str
    name: str | None = None
    rps: float | None = None
    ws: str | None = None


def prove(address: str, _keys: Json, _place: Json) -> Json:
    """The recorded proof; the state of other accounts is gone."""
    if address != WETH_PROOF["proof"]["address"]:
        raise Refusal(-32000, "missing trie node 1234 (path ) state is not available")
    return WETH_PROOF["proof"]


def numbered(method: Method) -> Method:
    """The method on a node that lets a call name its block by number alone."""

    def _answer(*params: Json) -> Json:
        if not isinstance(params[-1], str):
            raise Refusal(-32602, "invalid argument 1: json: cannot unmarshal object into Go value of type string")
        return method(*params)

    return _answer


TELLING: dict[str, Method] = {
    "eth_getBalance": lambda *_: "0x5",
    "eth_getTransactionCount": lambda *_: "0x2",
    "eth_getCode": lambda *_: "0x",
    "eth_call": lambda *_: word(7),
}
"""A node that proves nothing, and says that everybody holds 5 wei, and 7 of each token."""


@dataclass
class Town:
    """Two nodes that know one block; tests say what they tell of accounts."""

    stack: AsyncExitStack
    near: RecordedNode
    far: RecordedNode

    def adapter(self, *, proof: ProofLevel = ProofLevel.ROOTS, **changes: Any) -> EvmAdapter:  # noqa: ANN401 - any field
        profile = replace(PROFILE, proof=proof, **changes)
        adapter = EvmAdapter(profile, [Settings(self.near.url, "near"), Settings(self.far.url, "far")])
        self.stack.push_async_callback(adapter.close)
        return adapter


@pytest.fixture
async def town() -> AsyncIterator[Town]:
    async with AsyncExitStack() as stack:
        blocks: dict[int, tuple[Json, Json]] = {HEIGHT: (BLOCK, [])}
        near = await stack.enter_async_context(RecordedNode(blocks))
        far = await stack.enter_async_context(RecordedNode(blocks, host="127.0.0.2"))
        yield Town(stack, near, far)


async def holding(adapter: EvmAdapter, address: bytes, asset_id: AssetId) -> Holding | None:
    return (await adapter.fetch_holdings(REF, [(address, asset_id)])).get((address, asset_id))


def states(adapter: EvmAdapter) -> list[str]:
    return [status.state for status in adapter.node_statuses()]


async def test_native_value_is_proven_against_the_state_root_of_the_block(town: Town) -> None:
    town.near.extra = {**TELLING, "eth_getProof": prove}
    assert await holding(town.adapter(), WETH, COIN) == PROVEN
    assert town.near.calls_of("eth_getBalance") == 0


async def test_a_proof_by_the_second_node_counts_more_than_the_word_of_the_first(town: Town) -> None:
    town.near.extra = TELLING
    town.far.extra = {"eth_getProof": prove}
    adapter = town.adapter()
    assert await holding(adapter, WETH, COIN) == replace(PROVEN, host="127.0.0.2")
    assert "failing" not in states(adapter)


async def test_what_nobody_proves_is_one_nodes_word(town: Town) -> None:
    town.near.extra = {**TELLING, "eth_getProof": prove}
    assert await holding(town.adapter(), ALICE, COIN) == Holding(5, False, 2, False, "127.0.0.1")
    town.near.extra = {**TELLING, "eth_getCode": lambda *_: "0xfe"}
    assert await holding(town.adapter(), ALICE, COIN) == Holding(5, False, 2, True, "127.0.0.1")


@pytest.mark.parametrize("changes", [{"proof": ProofLevel.BLOOM}, {"is_proof_enforced": False}])
async def test_where_headers_are_not_proven_no_proof_is_asked_for(town: Town, changes: dict[str, Any]) -> None:
    town.near.extra = {**TELLING, "eth_getProof": prove}
    assert await holding(town.adapter(**changes), WETH, COIN) == Holding(5, False, 2, False, "127.0.0.1")
    assert town.near.calls_of("eth_getProof") == 0


FALSE_PROOFS: dict[str, Json] = {
    "cut": {"accountProof": WETH_PROOF["proof"]["accountProof"][:-1]},
    "none": {"accountProof": []},
    "malformed": {"accountProof": 7},
    "altered": {"accountProof": [*WETH_PROOF["proof"]["accountProof"][:-1], "0xc0"]},
    "text": "0x1d663f6a4afc5b01abb5d",
}


@pytest.mark.parametrize("why", FALSE_PROOFS)
async def test_a_node_whose_proof_is_false_is_failing_and_not_believed_in_anything(town: Town, why: str) -> None:
    town.near.extra = {**TELLING, "eth_getProof": lambda *_: FALSE_PROOFS[why]}
    town.far.extra = {**TELLING, "eth_call": lambda *_: word(8)}
    adapter = town.adapter()
    found = await adapter.fetch_holdings(REF, [(WETH, COIN), (WETH, USDC)])
    assert found == {
        (WETH, COIN): Holding(5, False, 2, False, "127.0.0.2"),
        (WETH, USDC): Holding(8, False, None, None, "127.0.0.2"),
    }
    assert states(adapter) == ["failing", "ok"]


async def test_tokens_are_asked_of_their_contracts(town: Town) -> None:
    town.near.extra = TELLING
    assert await holding(town.adapter(), ALICE, USDC) == Holding(7, False, None, None, "127.0.0.1")
    ((call, place),) = [params for method, params in town.near.calls if method == "eth_call"]
    assert call == {"to": USDC.rsplit(":", 1)[1], "data": BALANCE_OF + word(ALICE)[2:]}
    assert place == {"blockHash": BLOCK["hash"]}


@pytest.mark.parametrize("answer", ["0x", "0x07", word(7) + "00", None])
async def test_an_answer_of_another_length_tells_nothing_and_is_no_failing(town: Town, answer: Json) -> None:
    town.near.extra = {"eth_call": lambda *_: answer}
    adapter = town.adapter()
    assert await holding(adapter, ALICE, USDC) is None
    assert states(adapter)[0] == "ok"
    town.far.extra = TELLING
    assert await holding(adapter, ALICE, USDC) == Holding(7, False, None, None, "127.0.0.2")


@pytest.mark.parametrize("answer", [7, "7" * 66, "0x" + "zz" * 32, word(7)[:-1], ["0x"]])
async def test_an_answer_that_is_no_hex_is_the_nodes_failing(town: Town, answer: Json) -> None:
    town.near.extra = {"eth_call": lambda *_: answer}
    town.far.extra = TELLING
    adapter = town.adapter()
    assert await holding(adapter, ALICE, USDC) == Holding(7, False, None, None, "127.0.0.2")
    assert states(adapter) == ["failing", "ok"]


@pytest.mark.parametrize("answer", ["0x", "0x-5", "0x1_0", "5", 5, "0x1" + "0" * 64])
async def test_a_balance_that_is_no_quantity_is_the_nodes_failing(town: Town, answer: Json) -> None:
    town.near.extra = {**TELLING, "eth_getBalance": lambda *_: answer}
    town.far.extra = TELLING
    adapter = town.adapter()
    assert await holding(adapter, ALICE, COIN) == Holding(5, False, 2, False, "127.0.0.2")
    assert states(adapter) == ["failing", "ok"]


async def test_a_node_that_takes_no_hash_is_asked_by_number_from_then_on(town: Town) -> None:
    town.near.extra = {name: numbered(method) for name, method in {**TELLING, "eth_getProof": prove}.items()}
    adapter = town.adapter()
    assert await holding(adapter, WETH, COIN) == PROVEN
    before = len(town.near.calls)
    assert await holding(adapter, ALICE, USDC) == Holding(7, False, None, None, "127.0.0.1")
    places = [params[-1] for method, params in town.near.calls[before:] if method == "eth_call"]
    assert places == [hex(HEIGHT)]


async def test_a_pruned_node_that_once_took_a_hash_is_not_asked_twice(town: Town) -> None:
    town.near.extra = TELLING
    adapter = town.adapter()
    assert await holding(adapter, ALICE, USDC) is not None
    town.near.extra = {"eth_call": gone}
    before = town.near.calls_of("eth_call")
    assert await holding(adapter, ALICE, USDC) is None
    assert town.near.calls_of("eth_call") - before == 1


def gone(*_: Json) -> Json:
    raise Refusal(-32000, "required historical state unavailable")


async def test_what_one_node_has_no_state_for_is_asked_of_the_next(town: Town) -> None:
    town.near.extra = {**TELLING, "eth_call": gone}
    town.far.extra = {**TELLING, "eth_getBalance": lambda *_: "0x9"}
    adapter = town.adapter()
    assert await adapter.fetch_holdings(REF, [(ALICE, COIN), (ALICE, USDT)]) == {
        (ALICE, COIN): Holding(5, False, 2, False, "127.0.0.1"),
        (ALICE, USDT): Holding(7, False, None, None, "127.0.0.2"),
    }
    assert "failing" not in states(adapter)


async def test_where_no_node_can_tell_nothing_is_told(town: Town) -> None:
    town.near.extra = {"eth_call": gone, "eth_getBalance": gone}
    await town.far.stop()
    assert await town.adapter().fetch_holdings(REF, [(ALICE, COIN), (ALICE, USDC)]) == {}


async def test_a_node_with_another_block_there_tells_nothing_and_has_not_failed(town: Town) -> None:
    town.near.extra = {**TELLING, "eth_getProof": prove}
    adapter = town.adapter()
    other = replace(REF, hash=REF.parent_hash)
    assert await adapter.fetch_holdings(other, [(ALICE, COIN), (ALICE, USDC)]) == {}
    assert await adapter.fetch_holdings(replace(REF, height=HEIGHT + 1), [(ALICE, COIN)]) == {}
    assert "failing" not in states(adapter)


async def test_a_node_that_changes_its_branch_while_it_answers_is_found_out(town: Town) -> None:
    def _told_and_gone(*_: Json) -> Json:
        town.near.head = HEIGHT - 1
        return word(7)

    town.near.extra = {**TELLING, "eth_call": _told_and_gone}
    assert await holding(town.adapter(), ALICE, USDC) is None


async def test_a_false_header_is_the_nodes_failing(town: Town) -> None:
    town.near.extra = town.far.extra = TELLING
    town.near.misbehave(lambda block: {**block, "stateRoot": word(1)}, method="eth_getBlockByNumber")
    adapter = town.adapter()
    assert await holding(adapter, ALICE, USDC) == Holding(7, False, None, None, "127.0.0.2")
    assert states(adapter) == ["failing", "ok"]


async def test_a_failing_node_is_passed_over(town: Town) -> None:
    town.near.misbehave(html)
    town.far.extra = TELLING
    adapter = town.adapter()
    assert await holding(adapter, ALICE, USDC) == Holding(7, False, None, None, "127.0.0.2")
    exchanges = town.near.exchanges
    assert await holding(adapter, ALICE, USDT) == Holding(7, False, None, None, "127.0.0.2")
    assert town.near.exchanges == exchanges


async def test_only_the_given_hosts_are_asked(town: Town) -> None:
    town.near.extra = town.far.extra = TELLING
    adapter = town.adapter()
    found = await adapter.fetch_holdings(REF, [(ALICE, USDC)], ["127.0.0.2"])
    assert [one.host for one in found.values()] == ["127.0.0.2"]
    assert town.near.exchanges == 0
    assert await adapter.fetch_holdings(REF, [(ALICE, USDC)], []) == {}


async def test_many_accounts_are_asked_in_bounded_batches_and_each_once(town: Town) -> None:
    town.near.extra = TELLING
    town.near.batch_max = 3 * QUESTIONS_PER_BATCH + 2
    addresses = [bytes([n]) * 20 for n in range(3 * QUESTIONS_PER_BATCH + 1)]
    asked = [(address, COIN) for address in [*addresses, BOB, BOB]]
    found = await town.adapter().fetch_holdings(REF, asked)
    assert found.keys() == set(asked)
    assert town.near.calls_of("eth_getBalance") == len(set(asked))
    assert town.near.calls_of("eth_getProof") == QUESTIONS_PER_BATCH * 2  # the first batch, by hash and by number


async def test_an_unlisted_asset_is_not_asked_for(town: Town) -> None:
    town.near.extra = TELLING
    assert await holding(town.adapter(), ALICE, AssetId("eip155:1/erc20:0x" + "12" * 20)) is None
    assert town.near.exchanges == 0
