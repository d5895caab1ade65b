"""The shipped facts, and what makes a profile incomplete."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from chains.errors import ProfileError
from chains.evm.address import AddressError, checksum_of
from chains.model import AssetKind, ChainId, ProofLevel, Slug
from chains.profile import (
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
    assert {name: load_profile(name).livemode for name in profile_names()} == {
        "anvil": False,
        "ethereum": True,
        "sepolia": False,
    }


def test_the_three_networks_by_their_numbers() -> None:
    numbers = {name: load_profile(name).chain_id for name in profile_names()}
    assert numbers == {"anvil": "eip155:31337", "ethereum": "eip155:1", "sepolia": "eip155:11155111"}


def test_mainnet_knows_the_main_stablecoins_and_their_scale() -> None:
    scales = {token.symbol: token.decimals for token in load_profile("ethereum").tokens}
    assert scales.items() >= {"USDC": 6, "USDT": 6, "DAI": 18, "USDS": 18, "PYUSD": 6}.items()
    assert "WETH" not in scales


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(ProfileError, match="'dogecoin'; shipped profiles: anvil, ethereum, sepolia"):
        load_profile("dogecoin")


@pytest.mark.parametrize("name", ["../profiles/anvil", "anvil.toml", "", "/etc/passwd"])
def test_a_name_is_no_path(name: str) -> None:
    with pytest.raises(ProfileError, match="shipped profiles"):
        load_profile(name)


REQUIRED = re.findall(r"^(\w+) = ", shipped("anvil"), re.MULTILINE)


@pytest.mark.parametrize("key", REQUIRED)
def test_a_profile_without_a_key_is_incomplete(key: str) -> None:
    text = re.sub(rf"^{key} = .*$", "", shipped("anvil"), flags=re.MULTILINE)
    with pytest.raises(ProfileError, match=f"not complete.*`{key}`"):
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
