"""The shipped facts, and what makes a profile incomplete."""

from __future__ import annotations

import re
import tomllib
from importlib.resources import files

import pytest

from chains.errors import ProfileError
from chains.evm.address import AddressError, checksum_of
from chains.evm.polygon import MADHUGIRI_HEIGHT
from chains.model import AssetKind, ChainId, ProofLevel, Slug
from chains.profile import (
    ETHER_LOG_EMITTER,
    ChainProfile,
    add_tokens,
    load_profile,
    make_token,
    profile_names,
    read_profile,
    rename_profile,
)


def shipped(name: str) -> str:
    return files("chains").joinpath("profiles", f"{name}.toml").read_text()


@pytest.mark.parametrize("name", profile_names())
def test_a_shipped_profile_is_complete_and_consistent(name: str) -> None:
    profile = load_profile(name)
    assert profile.slug == name
    assert profile.proof is ProofLevel.ROOTS
    assert profile.sources
    assert profile.assets[0] is profile.native
    assert profile.native.kind is AssetKind.NATIVE
    assert all(token.id.startswith(f"{profile.chain_id}/erc20:0x") for token in profile.tokens)


@pytest.mark.parametrize("name", profile_names())
def test_contracts_in_the_files_carry_their_checksum(name: str) -> None:
    """A contract in one case would pass without a check; so the files write the checksum."""
    written = re.findall(r'^contract = "(0x\w+)"', shipped(name), re.MULTILINE)
    contracts = [token.contract for token in load_profile(name).tokens if token.contract is not None]
    assert written == [checksum_of(contract) for contract in contracts]


def test_only_mainnet_money_is_live() -> None:
    assert {name for name in profile_names() if not load_profile(name).livemode} == {"anvil", "sepolia"}


COINS = {
    "anvil": "eip155:31337/slip44:60 ETH",
    "arbitrum": "eip155:42161/slip44:60 ETH",
    "avalanche": "eip155:43114/slip44:9005 AVAX",
    "base": "eip155:8453/slip44:60 ETH",
    "bnb": "eip155:56/slip44:714 BNB",
    "ethereum": "eip155:1/slip44:60 ETH",
    "optimism": "eip155:10/slip44:60 ETH",
    "polygon": "eip155:137/slip44:966 POL",
    "sepolia": "eip155:11155111/slip44:60 ETH",
}


def test_every_network_and_its_coin_by_their_numbers() -> None:
    coins = {name: load_profile(name).native for name in profile_names()}
    assert {name: f"{coin.id} {coin.symbol}" for name, coin in coins.items()} == COINS
    assert {coin.decimals for coin in coins.values()} == {18}


STABLECOINS = {
    "arbitrum": {"USDC": 6, "USDC.e": 6, "USDT0": 6, "DAI": 18},
    "avalanche": {"USDC": 6, "USDC.e": 6, "USDT": 6, "USDT.e": 6, "DAI.e": 18},
    "base": {"USDC": 6, "USDbC": 6, "USDT": 6, "DAI": 18},
    "bnb": {"USDC": 18, "USDT": 18, "DAI": 18},
    "ethereum": {"USDC": 6, "USDT": 6, "DAI": 18, "USDS": 18, "PYUSD": 6, "EURC": 6, "USDP": 18, "GHO": 18},
    "optimism": {"USDC": 6, "USDC.e": 6, "USDT": 6, "USDT0": 6, "DAI": 18},
    "polygon": {"USDC": 6, "USDC.e": 6, "USDT0": 6, "DAI": 18},
}


@pytest.mark.parametrize("name", STABLECOINS)
def test_a_network_knows_the_main_stablecoins_apart_and_their_scale(name: str) -> None:
    """A bridged dollar is not its issuer's: each has a symbol of its own, so that a credit rule can name it."""
    tokens = load_profile(name).tokens
    assert {token.symbol: token.decimals for token in tokens} == STABLECOINS[name]
    assert len({token.symbol for token in tokens}) == len({token.contract for token in tokens}) == len(tokens)


@pytest.mark.parametrize("name", profile_names())
def test_every_contract_was_found_in_two_places_at_least(name: str) -> None:
    tokens = tomllib.loads(shipped(name))["tokens"]
    assert [token["symbol"] for token in tokens if len(set(token["sources"])) < 2] == []
    assert all(source.startswith("https://") for token in tokens for source in token["sources"])


CREDIT = {
    "arbitrum": "finalized",
    "avalanche": 1,
    "base": "safe",
    "bnb": 15,
    "ethereum": 12,
    "optimism": "safe",
    "polygon": 50,
}


def test_every_live_network_credits_by_its_own_rule() -> None:
    rules = {name: load_profile(name) for name in profile_names()}
    assert {name: rule.credit_at for name, rule in rules.items() if rule.livemode} == CREDIT
    assert [rule.has_finality_tags for rule in rules.values()] == [True] * len(rules)
    assert {name for name, rule in rules.items() if "safe" not in rule.finality_tags} == {"polygon"}


@pytest.mark.parametrize("name", profile_names())
def test_the_window_for_reorgs_is_wider_than_the_wait_for_credit(name: str) -> None:
    """A reorg that undoes a credit is followed, not halted at, as long as no tag says that the block was final."""
    profile = load_profile(name)
    if isinstance(profile.credit_at, int):
        assert profile.finality_depth > profile.credit_at
    else:
        assert profile.finality_depth * profile.block_time_s >= 1800


@pytest.mark.parametrize("name", profile_names())
def test_no_network_is_asked_more_than_once_a_second(name: str) -> None:
    profile = load_profile(name)
    assert profile.poll_interval_s >= 1 or not profile.livemode


@pytest.mark.parametrize("name", profile_names())
def test_what_is_not_proven_is_said_in_sentences(name: str) -> None:
    assert all(sentence[0].isupper() and sentence.endswith(".") for sentence in load_profile(name).unproven)


def test_the_heights_that_polygon_and_its_sentence_speak_of_are_one() -> None:
    assert any(f"(block {MADHUGIRI_HEIGHT})" in sentence for sentence in load_profile("polygon").unproven)


ALIASES = {
    "anvil": [],
    "arbitrum": [],
    "avalanche": [],
    "base": ["0xDeadDeAddeAddEAddeadDEaDDEAdDeaDDeAD0000"],
    "bnb": [],
    "ethereum": [],
    "optimism": ["0xDeadDeAddeAddEAddeadDEaDDEAdDeaDDeAD0000"],
    "polygon": ["0x0000000000000000000000000000000000001010"],
    "sepolia": [],
}


@pytest.mark.parametrize("name", profile_names())
def test_the_native_coins_other_faces_are_known(name: str) -> None:
    assert [checksum_of(alias) for alias in load_profile(name).native_aliases] == [
        checksum_of(ETHER_LOG_EMITTER),
        *ALIASES[name],
    ]


FACES = {
    "0xffffFFFfFFffffffffffffffFfFFFfffFFFfFFfE": "anvil",
    "0x0000000000000000000000000000000000001010": "polygon",
    "0x000000000000000000000000000000000000800A": "zksync",
    "0x471EcE3750Da237f93B8E339c536989b8978a438": "celo",
}


@pytest.mark.parametrize("face", FACES)
def test_a_face_of_the_native_coin_is_refused_as_a_token(face: str) -> None:
    """zkSync's base token and Celo's GoldToken need no profile of ours: whoever writes one names the alias in it."""
    name = FACES[face]
    text = re.sub(r"^native_aliases = .*$", f'native_aliases = ["{face}"]', shipped("anvil"), flags=re.MULTILINE)
    token = f'[[tokens]]\ncontract = "{face}"\nsymbol = "COIN"\ndecimals = 18\nsources = []\n'
    assert face in {checksum_of(alias) for alias in read_profile(name, text.encode()).native_aliases}
    with pytest.raises(ProfileError) as caught:
        read_profile(name, f"{text.replace('tokens = []', '')}\n{token}".encode())
    assert f"{face} is another face of ETH, whose movements are read without it" in str(caught.value)
    assert str(caught.value).endswith("remove it")
    assert "\n" not in str(caught.value)


FLAGS = {
    "unindexed": "is_unindexed",
    "wraps_without_transfer": "wraps_without_transfer",
    "fee_on_transfer": "is_fee_on_transfer",
    "rebasing": "is_rebasing",
}


@pytest.mark.parametrize("flag", FLAGS)
def test_a_token_of_a_profile_has_the_flags_that_its_row_sets(flag: str) -> None:
    text = shipped("sepolia").replace("decimals = 6", f"decimals = 6\n{flag} = true")
    (token,) = read_profile("sepolia", text.encode()).tokens
    assert {name: getattr(token, name) for name in FLAGS.values()} == {
        name: name == FLAGS[flag] for name in FLAGS.values()
    }


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(ProfileError, match="'dogecoin'; shipped profiles: anvil, arbitrum, avalanche, base, bnb,"):
        load_profile("dogecoin")


@pytest.mark.parametrize("name", ["../profiles/anvil", "anvil.toml", "", "/etc/passwd"])
def test_a_name_is_no_path(name: str) -> None:
    with pytest.raises(ProfileError, match="shipped profiles"):
        load_profile(name)


REQUIRED = re.findall(r"^(\w+) = ", shipped("anvil"), re.MULTILINE)


@pytest.mark.parametrize("key", REQUIRED)
def test_a_profile_without_a_key_is_incomplete(key: str) -> None:
    text = re.sub(rf"^{key} = .*$", "", shipped("anvil"), flags=re.MULTILINE)
    with pytest.raises(ProfileError, match=rf"\Aprofile 'anvil' is not complete: [^\n]*`{key}`[^\n]*\Z"):
        read_profile("anvil", text.encode())


@pytest.mark.parametrize("key", ["contract", "symbol", "decimals", "sources"])
def test_a_token_without_a_key_is_incomplete(key: str) -> None:
    row = {"contract": f'"0x{"ab" * 20}"', "symbol": '"TST"', "decimals": "6", "sources": "[]"}
    tokens = "[[tokens]]\n" + "\n".join(f"{name} = {value}" for name, value in row.items() if name != key)
    text = f"{shipped('anvil').replace('tokens = []', '')}\n{tokens}\n"
    with pytest.raises(ProfileError, match=rf"\Aprofile 'anvil' is not complete: [^\n]*`{key}`[^\n]*\Z"):
        read_profile("anvil", text.encode())


def test_a_profile_without_its_native_coin_is_incomplete() -> None:
    text = shipped("anvil").partition("[native]")[0]
    with pytest.raises(ProfileError, match=r"not complete: [^\n]*`native`"):
        read_profile("anvil", text.encode())


WRONG = {
    'chain_id = "eip155:31337"': ('chain_id = "solana:x"', "eip155:<number>"),
    "finality_depth = 64": ("finality_depth = 0", "above zero"),
    "poll_interval_s = 0.25": ("poll_interval_s = -1.0", "above zero"),
    "credit_at = 2": ("credit_at = 0", "1 or more"),
    'proof = "roots"': ('proof = "belief"', "belief"),
    'finality_tags = ["safe", "finalized"]': ('finality_tags = ["latest"]', "Invalid enum value 'latest'"),
    "livemode = false": ("livemode = false\nlivemod = true", "livemod"),
}


@pytest.mark.parametrize("right", WRONG)
def test_a_wrong_value_is_refused_with_its_reason(right: str) -> None:
    wrong, reason = WRONG[right]
    with pytest.raises(ProfileError, match=reason):
        read_profile("anvil", shipped("anvil").replace(right, wrong).encode())


def test_a_tag_cannot_be_the_credit_point_where_there_are_no_tags() -> None:
    text = shipped("anvil").replace("credit_at = 2", 'credit_at = "finalized"')
    assert read_profile("anvil", text.encode()).credit_at == "finalized"
    with pytest.raises(ProfileError, match="'finalized', which is not among the chain's finality_tags"):
        read_profile("anvil", text.replace('["safe", "finalized"]', '["safe"]').encode())


def test_a_contract_with_a_wrong_checksum_is_refused() -> None:
    text = shipped("sepolia").replace("0x1c7D4B", "0x1C7D4B")
    with pytest.raises(ProfileError, match="checksum"):
        read_profile("sepolia", text.encode())


def renamed() -> ChainProfile:
    return rename_profile(load_profile("sepolia"), Slug("second"), ChainId("eip155:5"))


def test_a_renamed_profile_names_its_assets_by_the_new_chain() -> None:
    profile = renamed()
    assert (profile.slug, profile.chain_id) == ("second", "eip155:5")
    assert [asset.id for asset in profile.assets] == [
        "eip155:5/slip44:60",
        "eip155:5/erc20:0x1c7d4b196cb0c7b01d743fbc6116a902379c7238",
    ]


def test_an_operators_token_is_added_and_a_listed_one_is_refused() -> None:
    token = make_token(ChainId("eip155:5"), "0x" + "ab" * 20, "TST", 18)
    profile = add_tokens(renamed(), (token,))
    assert profile.tokens[-1] == token
    with pytest.raises(ProfileError, match="listed already, as TST"):
        add_tokens(profile, (token,))


def test_a_token_needs_an_address() -> None:
    with pytest.raises(AddressError):
        make_token(ChainId("eip155:5"), "0x12", "TST", 18)
