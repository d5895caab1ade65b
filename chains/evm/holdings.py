"""What accounts hold after a block: asking nodes, and what their answers are worth.

Native value is proven wherever a node gives proofs of accounts (EIP-1186) against the state root of a header that hashes to
the block's hash. What a token's contract says of a balance is execution, which nothing in a header commits to in a way that
we could read: it is one node's word, as native value is where nobody proves it.

Nodes are asked in their order, and what one lacks is asked of the next. Most of them keep the state of their newest blocks
alone, so that one that cannot tell has not failed. One whose proof is false has, and is not believed in anything else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Protocol

import msgspec

from chains.evm.account import NO_CODE, decode_account_proof, prove_account, state_root_of
from chains.evm.blaming import blaming
from chains.evm.dialect import Dialect
from chains.evm.errors import ProofFailure
from chains.evm.fetching import Answer, block_call, described, present
from chains.evm.reading import ReadingRules, read_ref
from chains.evm.wire import bytes_of, packed
from chains.model import Address, AssetId, BlockRef, Holding, ProofLevel, hex_of
from chains.node.errors import MethodNotSupported, NodeError, NodeLacks, RpcError
from chains.node.health import STATE, Upstream
from chains.node.jsonrpc import NULL, Call
from chains.node.pool import Pool

QUESTIONS_PER_BATCH = 16
"""With up to three calls for each, and the two headers around them, as many calls as a node gets in one batch."""

BALANCE_OF = "0x70a08231"
"""The selector of `balanceOf(address)` (ERC-20)."""

Asked = tuple[Address, AssetId]
Place = str | Mapping[str, str]
"""How a call names its block: by number, or by hash (EIP-1898)."""


@dataclass(frozen=True, slots=True)
class _Told:
    """Who answers, about which block, and its header as he gave it."""

    host: str
    ref: BlockRef
    header: msgspec.Raw


class _Question(Protocol):
    """One thing that a node can be asked about an account."""

    @property
    def asked(self) -> Asked:
        """What it is to answer."""

    def calls(self, place: Place) -> list[Call]:
        """The calls that ask it."""

    def read(self, results: Sequence[msgspec.Raw], told: _Told) -> Holding | None:
        """What their results say; None where they say nothing. Raises `ProofFailure` where the node is at fault."""


@dataclass(frozen=True, slots=True)
class _ProofOfNative:
    """Native value, proven."""

    asked: Asked
    dialect: Dialect

    def calls(self, place: Place) -> list[Call]:
        """One call, for the account's proof (EIP-1186)."""
        return [("eth_getProof", [hex_of(self.asked[0]), [], place])]

    def read(self, results: Sequence[msgspec.Raw], told: _Told) -> Holding | None:
        """The account as the block's state root has it, in wei. Raises `ProofFailure`."""
        state_root = state_root_of(told.header, told.ref.hash, self.dialect)
        account = prove_account(state_root, self.asked[0], decode_account_proof(results[0]))
        return Holding(account.balance, True, account.nonce, account.code_hash != NO_CODE, told.host)


@dataclass(frozen=True, slots=True)
class _Native:
    """Native value, as a node says."""

    asked: Asked

    def calls(self, place: Place) -> list[Call]:
        """Three calls: what it holds, how often it sent, and whether it has code."""
        methods = ("eth_getBalance", "eth_getTransactionCount", "eth_getCode")
        return [(method, [hex_of(self.asked[0]), place]) for method in methods]

    def read(self, results: Sequence[msgspec.Raw], told: _Told) -> Holding | None:
        """The account by the node's word, in wei. Raises `ProofFailure` for what is no number."""
        balance, nonce, code = map(_hex_of_result, results)
        return Holding(_number_of(balance), False, _number_of(nonce), len(bytes_of(code)) > 0, told.host)


@dataclass(frozen=True, slots=True)
class _Token:
    """What a token's contract says of a balance."""

    asked: Asked
    contract: Address

    def calls(self, place: Place) -> list[Call]:
        """One call, of the contract's `balanceOf(address)` (ERC-20)."""
        data = BALANCE_OF + self.asked[0].rjust(32, b"\0").hex()
        return [("eth_call", [{"to": hex_of(self.contract), "data": data}, place])]

    def read(self, results: Sequence[msgspec.Raw], told: _Told) -> Holding | None:
        """The contract's word, in the token's smallest unit; None where it is not one word of 32 bytes."""
        word = bytes_of(_hex_of_result(results[0]))
        if len(word) != 32:
            return None  # no contract is there (yet), or one that answers otherwise
        return Holding(int.from_bytes(word), False, None, None, told.host)


class Holdings:
    """What accounts of one chain hold. One for each adapter."""

    def __init__(self, pool: Pool, rules: ReadingRules) -> None:
        self._pool = pool
        self._rules = rules
        self._contracts = {token.id: contract for contract, token in rules.tokens.items()}
        self._takes_hash: dict[str, bool] = {}
        """By node, whether it lets a call name its block by hash, as far as we have learnt."""

    async def fetch(
        self, ref: BlockRef, asked: Sequence[Asked], hosts: Sequence[str] | None = None
    ) -> dict[Asked, Holding]:
        """What is held after the block, by the first node that can tell, and one that proves it before one that does not;
        absent where none can, and for assets that are not listed."""
        among = [upstream for upstream in self._pool.upstreams if hosts is None or upstream.host in hosts]
        line = self._pool.in_order(among, ref.height)
        found: dict[Asked, Holding] = {}
        for question_of in (self._proof_of, self._native_of, self._token_of):
            questions = [question_of(one) for one in dict.fromkeys(asked) if one not in found]
            found |= await self._ask_in_turn(line, ref, [question for question in questions if question is not None])
        return found

    def _proof_of(self, asked: Asked) -> _Question | None:
        is_proven = self._rules.proof is ProofLevel.ROOTS and self._rules.is_proof_enforced
        return _ProofOfNative(asked, self._rules.dialect) if is_proven and asked[1] == self._rules.native.id else None

    def _native_of(self, asked: Asked) -> _Question | None:
        return _Native(asked) if asked[1] == self._rules.native.id else None

    def _token_of(self, asked: Asked) -> _Question | None:
        contract = self._contracts.get(asked[1])
        return None if contract is None else _Token(asked, contract)

    async def _ask_in_turn(
        self, line: list[Upstream], ref: BlockRef, questions: Sequence[_Question]
    ) -> dict[Asked, Holding]:
        """What the nodes tell. One that fails leaves the line."""
        found: dict[Asked, Holding] = {}
        for upstream in list(line):
            left = [question for question in questions if question.asked not in found]
            for start in range(0, len(left), QUESTIONS_PER_BATCH):
                part = left[start : start + QUESTIONS_PER_BATCH]
                try:
                    found |= await self._pool.ask_one(upstream, partial(self._ask, ref, part), STATE)
                except NodeLacks:
                    break
                except NodeError:  # counted and said by the pool
                    line.remove(upstream)
                    break
        return found

    async def _ask(self, ref: BlockRef, questions: Sequence[_Question], upstream: Upstream) -> dict[Asked, Holding]:
        """What one node tells, of all of it or of nothing. Raises a `NodeError`."""
        header, answers = await self._answers(ref, questions, upstream)
        told = _Told(upstream.host, ref, header)
        found = {}
        for question, row in zip(questions, answers, strict=True):
            holding = _read(upstream, question, row, told)
            if holding is not None:
                found[question.asked] = holding
        return found

    async def _answers(
        self, ref: BlockRef, questions: Sequence[_Question], upstream: Upstream
    ) -> tuple[msgspec.Raw, list[list[Answer]]]:
        """What the node answers to each question, its block named by hash where the node takes that (EIP-1898). How it
        refuses differs from node to node, so that one which has never answered is asked by number too."""
        takes_hash = self._takes_hash.get(upstream.name)
        if takes_hash is not False:
            header, answers = await self._answers_at(ref, questions, upstream, {"blockHash": hex_of(ref.hash)})
            if takes_hash or _has_result(answers):
                self._takes_hash[upstream.name] = True
                return header, answers
        header, answers = await self._answers_at(ref, questions, upstream, hex(ref.height))
        if _has_result(answers):
            self._takes_hash[upstream.name] = False
        return header, answers

    async def _answers_at(
        self, ref: BlockRef, questions: Sequence[_Question], upstream: Upstream, place: Place
    ) -> tuple[msgspec.Raw, list[list[Answer]]]:
        """The answers, and the block's header. It is asked for before and after them: a node that changes its branch
        meanwhile would tell of another block."""
        header_call = block_call(ref.height, has_transactions=False)
        calls = [question.calls(place) for question in questions]
        before, *answers, after = await upstream.client.batch([header_call, *chain.from_iterable(calls), header_call])
        header = self._header(ref, upstream, before)
        self._header(ref, upstream, after)
        left = iter(answers)
        return header, [[next(left) for _ in row] for row in calls]

    def _header(self, ref: BlockRef, upstream: Upstream, answer: Answer) -> msgspec.Raw:
        """The header of that block. Raises `NodeLacks` where the node has another one in its place."""
        level = self._rules.proof if self._rules.is_proof_enforced else ProofLevel.STRUCTURE
        header = present(upstream, answer, ref.height)
        with blaming(upstream):
            theirs = read_ref(level, header, ref.height, self._rules.dialect)
        if theirs.hash != ref.hash:
            raise NodeLacks(upstream.name, f"has another block in the place of {described(ref.hash)}")
        return header


def _has_result(answers: Sequence[Sequence[Answer]]) -> bool:
    return any(not isinstance(answer, RpcError) for row in answers for answer in row)


def _read(upstream: Upstream, question: _Question, answers: Sequence[Answer], told: _Told) -> Holding | None:
    """What the results say; None where the node has none, which is no failing: most have no state of older blocks, and a
    contract may refuse. Raises a `NodeError`."""
    results = []
    for answer in answers:
        if isinstance(answer, MethodNotSupported):
            raise NodeLacks(upstream.name, answer.detail)
        if isinstance(answer, RpcError) or answer == NULL:
            return None
        results.append(answer)
    with blaming(upstream):
        return question.read(results, told)


def _number_of(text: str) -> int:
    """A quantity that nothing proves: of digits alone, and of 256 bits at most. Raises `ProofFailure`."""
    digits = text[2:]
    if not 1 <= len(digits) <= 64:
        raise ProofFailure("structure", f"not a quantity: {text[:80]!r}")
    return int.from_bytes(packed("0" * (len(digits) % 2) + digits))


def _hex_of_result(result: msgspec.Raw) -> str:
    """The hex in a result. Raises `ProofFailure`."""
    try:
        text = msgspec.json.decode(result, type=str)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProofFailure("structure", f"an answer that is no hex: {error}") from error
    if not text.startswith("0x"):
        raise ProofFailure("structure", "an answer that is no hex")
    return text
