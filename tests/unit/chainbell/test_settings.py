"""Settings: what is accepted, and the one sentence for everything else."""

from __future__ import annotations

import json
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chainbell.configured import configure_chains
from chainbell.errors import SettingsError
from chainbell.settings import load_settings, redact_url
from chainbell.settings_model import Settings, split_listen
from chains.profile import make_token
from indexer.policy import CreditRule, Policy

FIRST = '{ url = "https://u:hunter2@a.example/v2/KEYKEYKEY", ws = "wss://u:hunter2@a.example/KEYKEYKEY", rps = 25 }'
NODES = f'nodes = [{FIRST}, {{ url = "https://b.example" }}]'
ETHEREUM = f"[chains.ethereum]\n{NODES}\n"
ONE_HOST = (
    '[chains.{slug}]\nnodes = [{{ url = "http://127.0.0.1:8545" }}, {{ url = "http://127.0.0.1:8546" }}]\n{more}\n'
)
USDC = "eip155:1/erc20:0xa0b86991c6218b36c1d19d4a2e9eb0ce3606eb48"


@pytest.fixture(autouse=True)
def _no_settings_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CHAINBELL_CONFIG", raising=False)


def load(text: str) -> Settings:
    file = Path("settings.toml")
    file.write_text(text)
    return load_settings(file)


def test_what_is_not_given_has_its_default() -> None:
    settings = load("")
    assert settings.database.is_embedded
    assert split_listen(settings.api.listen) == ("127.0.0.1", 8080)
    assert settings.notifier.allow_ports == (443, 8443)
    assert not settings.notifier.allow_http
    assert configure_chains(settings) == ()


def test_a_chain_is_its_profile_with_what_the_settings_change() -> None:
    (chain,) = configure_chains(load(ETHEREUM + 'proof = "bloom"\npoll_interval_s = 5\ncredit_at = "safe"'))
    assert chain.profile.chain_id == "eip155:1"
    assert (chain.profile.proof, chain.profile.poll_interval_s, chain.profile.credit_at) == ("bloom", 5.0, "safe")
    assert chain.hosts == ("a.example", "b.example")
    assert chain.quorum == 2
    assert chain.start == "latest"
    assert chain.credit_rules == (CreditRule("default", "safe"),)
    Policy(chain.slug, 1, chain.credit_rules)


def test_proofs_are_enforced_unless_the_file_or_the_environment_says_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert configure_chains(load(ETHEREUM))[0].profile.is_proof_enforced
    assert not configure_chains(load(ETHEREUM + "proof_enforced = false"))[0].profile.is_proof_enforced
    monkeypatch.setenv("CHAINBELL_CHAINS__ETHEREUM__PROOF_ENFORCED", "false")
    assert not configure_chains(load(ETHEREUM))[0].profile.is_proof_enforced


def test_two_nodes_on_one_host_are_one_word() -> None:
    (chain,) = configure_chains(load(ONE_HOST.format(slug="anvil", more="")))
    assert chain.quorum == 1


def test_another_network_of_a_kind_names_its_coin_and_tokens_by_its_own_chain_id() -> None:
    more = """profile = "anvil"
chain_id = "eip155:31338"
[[chains.second.assets]]
contract = "0x5FbDB2315678afecb367f032d93F642f64180aa3"
symbol = "TST"
decimals = 18"""
    (chain,) = configure_chains(load(ONE_HOST.format(slug="second", more=more)))
    assert [asset.id for asset in chain.profile.assets] == [
        "eip155:31338/slip44:60",
        "eip155:31338/erc20:0x5fbdb2315678afecb367f032d93f642f64180aa3",
    ]


def test_credit_rules_are_read_in_the_smallest_unit_of_their_asset() -> None:
    rules = """
[[chains.ethereum.credit]]
asset = "USDC"
min_amount = "1000.5"
max_amount = "20000"
credit_at = "finalized"
[[chains.ethereum.credit]]
asset = "0xA0b86991c6218b36c1d19D4a2e9Eb0cE3606eB48"
credit_at = 3
"""
    (chain,) = configure_chains(load(ETHEREUM + rules))
    assert [(r.credit_at, r.asset_id, r.min_atomic, r.max_atomic) for r in chain.credit_rules] == [
        ("finalized", USDC, 1_000_500_000, 20_000_000_000),
        ("3", USDC, None, None),
        ("12", None, None, None),
    ]


def credit(text: str) -> str:
    return f"{ETHEREUM}[[chains.ethereum.credit]]\n{text}"


def asset(contract: str, decimals: str = "6") -> str:
    return f'{ETHEREUM}[[chains.ethereum.assets]]\ncontract = "{contract}"\nsymbol = "TST"\ndecimals = {decimals}'


def test_the_flags_of_a_token_are_off_unless_they_are_set() -> None:
    token = asset("0x00000000000000000000000000000000000000aa")
    (chain,) = configure_chains(load(token))
    assert chain.profile.tokens[-1] == make_token(chain.profile.chain_id, "0x" + "00" * 19 + "aa", "TST", 6)
    flags = "unindexed = true\nwraps_without_transfer = true\nfee_on_transfer = true\nrebasing = true"
    (chain,) = configure_chains(load(f"{token}\n{flags}"))
    added = chain.profile.tokens[-1]
    assert (added.is_unindexed, added.wraps_without_transfer) == (True, True)
    assert (added.is_fee_on_transfer, added.is_rebasing) == (True, True)


ETHER_LOGS = "0xfffffffffffffffffffffffffffffffffffffffe"

WRONG = [
    ("[apy]", "apy is not a setting; did you mean api?"),
    (ETHEREUM + 'profle = "x"', "chains.ethereum.profle is not a setting; did you mean profile?"),
    (ETHEREUM + 'zzz = "x"', "chains.ethereum.zzz is not a setting; there are assets, chain_id, credit,"),
    ('[chains.ethereum]\nnodes = [{ ur = "https://a.example" }]', "nodes[0].ur is not a setting; did you mean url?"),
    ("[chains.ethereum]", "chains.ethereum.nodes is missing; add it"),
    ("[chains.ethereum]\nnodes = []", "chains.ethereum.nodes: must not be empty"),
    ('[chains.ethereum]\nnodes = "https://a.example/KEY"', "chains.ethereum.nodes = https://a.example: must be a list"),
    (
        '[chains.ethereum]\nnodes = [{ url = "ws://a.example" }]',
        "nodes[0].url = ws://a.example: a node's url must be http",
    ),
    (
        '[chains.ethereum]\nnodes = [{ url = "https://a.example", ws = "https://a.example/KEY" }]',
        "nodes[0].ws = https://a.example: a node's ws must be ws:// or wss:// with a host",
    ),
    (
        '[chains.ethereum]\nnodes = [{ url = "https://a.example", ws = "KEY" }]',
        "nodes[0].ws: a node's ws must be ws://",
    ),
    ('[chains.ethereum]\nnodes = [{ url = "https://a.example", rps = "9" }]', 'nodes[0].rps = "9": must be a number'),
    ('[chains.ethereum]\nnodes = [{ url = "https://a.example", rps = 0 }]', "nodes[0].rps = 0: must be greater than 0"),
    (
        '[chains.ethereum]\nnodes = [{ url = "https://a.example", name = "a" }, { url = "https://b.example", name = "a" }]',
        "chains.ethereum.nodes: two nodes are called 'a'; give each",
    ),
    (ETHEREUM + 'proof_enforced = "false"', 'proof_enforced = "false": must be true or false, without quotes'),
    (
        ETHEREUM + 'proof = "off"\nproof_enforced = false',
        'proof_enforced = false: with proof = "off" there is nothing to observe',
    ),
    (ETHEREUM + 'proof = "rots"', 'proof = "rots": must be "off" or "structure" or "bloom" or "roots"'),
    (ETHEREUM + "start = -1", 'start = -1: must be "latest" or a whole number of at least 0'),
    (ETHEREUM + 'start = "5"', 'start = "5": must be "latest" or a whole number'),
    (ETHEREUM + "credit_at = 0", "credit_at = 0: must be"),
    (
        ONE_HOST.format(slug="polygon", more='credit_at = "safe"'),
        'chains.polygon.credit_at = "safe": nodes of this chain do not say what is safe, so nothing would ever be',
    ),
    (ETHEREUM + "credit_at = true", "credit_at = true: must be"),
    (ETHEREUM + "credit_at = 1.5", "credit_at = 1.5: must be"),
    (ETHEREUM + "quorum = 3", "quorum = 3: the nodes are on 2 distinct hosts (a.example, b.example)"),
    (ETHEREUM + 'internal = "yes"', 'internal = "yes": must be "auto" or "required" or "off"'),
    (ETHEREUM + 'chain_id = "1"', 'chain_id = "1": must be a chain id, as in "eip155:1"'),
    (ETHEREUM + "poll_interval_s = 0", "poll_interval_s = 0: must be greater than 0"),
    (
        ONE_HOST.format(slug="second", more='profile = "anvil"'),
        "chains.second.chain_id is missing: 'second' is another",
    ),
    (ONE_HOST.format(slug="second", more=""), "chains.second: no profile is named 'second'; shipped profiles: anvil,"),
    (ONE_HOST.format(slug="anvil", more='profile = "moon"'), "chains.anvil.profile: no profile is named 'moon'"),
    (ONE_HOST.format(slug="evm", more=""), 'no chain can be called "evm"'),
    (ONE_HOST.format(slug="Eth", more=""), "'Eth' must be a short name of lower-case letters"),
    (
        ETHEREUM + ONE_HOST.format(slug="anvil", more='chain_id = "eip155:1"'),
        "chains.anvil: chain id eip155:1 is that of chains.ethereum too",
    ),
    ("[api]\nlisten = 8080", "api.listen = 8080: must be text in quotes"),
    ('[api]\nlisten = "127.0.0.1"', 'api.listen = "127.0.0.1": must be an address and a port'),
    ('[api]\nlisten = "127.0.0.1:99999"', "must be an address and a port up to 65535"),
    ('[notifier]\nallow_http = "false"', 'notifier.allow_http = "false": must be true or false, without quotes'),
    ('[notifier]\nallow_private = ["10.0.0.1/8"]', 'notifier.allow_private[0] = "10.0.0.1/8": must be a network'),
    ("[notifier]\nallow_private = [10]", "notifier.allow_private[0] = 10: must be a network"),
    ("[notifier]\nallow_ports = [65536]", "notifier.allow_ports[0] = 65536: must be less than or equal to 65535"),
    ("[notifier]\nallow_ports = 443", "notifier.allow_ports = 443: must be a list in [ ]"),
    ('[database]\nurl = "mysql://u:hunter2@h/db"', 'database.url = mysql://h: must be "embedded" or a URL that begins'),
    ('[database]\nurl = "postgresql://u:x@hunter2@h/db"', "database.url = postgresql://h: cannot be read: "),
    ('[database]\nurl = "postgresql://u:hunter2/db"', "database.url = (a URL that cannot be read): cannot be read: "),
    ('[database]\nurl = "postgresql://u:12345/hunter2@h/db"', "database.url = (a URL that cannot be read): cannot be"),
    ('[database]\nurl = "postgresql://u:12#hunter2@h/db"', "in a password @ is written as %40"),
    ('[database]\nurl = "postgresql://u:hunter2?x@h/db"', "in a password @ is written as %40"),
    ("[database]\ndata_dir = 5", "database.data_dir = 5: must be a path in quotes"),
    ('secrets = "hunter2"', "secrets: must be a table"),
    ("[secrets]\nmaster_key = 123456", "secrets.master_key: must be text in quotes"),
    ("[api", "settings.toml is not valid TOML: "),
    (asset("0xdAC17F958D2ee523a2206206994597C13D831ec7"), "chains.ethereum.assets: eip155:1/erc20:0xdac17f95"),
    (asset("0xDAC17F958D2ee523a2206206994597C13D831ec7"), "has a wrong checksum"),
    (asset("0x123"), "is not an address"),
    (
        asset(ETHER_LOGS),
        "chains.ethereum.assets: 0xffffFFFfFFffffffffffffffFfFFFfffFFFfFFfE is another face of ETH, whose movements are",
    ),
    (
        asset("0x00000000000000000000000000000000000000aa") + '\nrebasing = "yes"',
        'assets[0].rebasing = "yes": must be true or false, without quotes',
    ),
    (asset("0x00000000000000000000000000000000000000aa", "80"), "assets[0].decimals = 80: must be less than"),
    (credit("credit_at = 1\nasset = 'NONE'"), "credit[0].asset = 'NONE': known are ETH, USDC"),
    (credit('credit_at = 1\nmin_amount = "1"'), "credit[0].asset is missing: an amount means something only with"),
    (
        credit('credit_at = 1\nasset = "USDC"\nmin_amount = "1.1234567"'),
        "min_amount = '1.1234567': USDC has 6 decimals",
    ),
    (credit('credit_at = 1\nasset = "USDC"\nmin_amount = "1e3"'), 'min_amount = "1e3": must be an amount in quotes'),
    (credit('credit_at = 1\nasset = "USDC"\nmin_amount = "2"\nmax_amount = "1"'), "min_amount 2 is above max_amount 1"),
    (credit('asset = "USDC"'), "credit[0].credit_at is missing"),
]


@pytest.mark.parametrize(("text", "said"), WRONG, ids=[said[:60] for _, said in WRONG])
def test_a_wrong_setting_is_told_in_one_sentence_without_credentials(text: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert "KEY" not in str(caught.value)
    assert caught.value.exit_status == 2


def test_the_environment_goes_before_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAINBELL_API__LISTEN", "[::1]:9000")
    monkeypatch.setenv("CHAINBELL_NOTIFIER__ALLOW_HTTP", "true")
    monkeypatch.setenv("CHAINBELL_NOTIFIER__ALLOW_PRIVATE", '["127.0.0.0/8"]')
    monkeypatch.setenv("CHAINBELL_CHAINS__ETHEREUM__QUORUM", "1")
    monkeypatch.setenv("CHAINBELL_CHAINS__ANVIL__NODES", json.dumps([{"url": "http://127.0.0.1:8545"}]))
    monkeypatch.setenv("CHAINBELL_PORT_8080_TCP_ADDR", "10.0.0.1")
    monkeypatch.setenv("CHAINBELL_API_SERVICE_HOST", "10.0.0.1")
    settings = load(ETHEREUM + '[api]\nlisten = "127.0.0.1:1"')
    assert split_listen(settings.api.listen) == ("::1", 9000)
    assert settings.notifier.allow_http
    assert settings.notifier.allow_private == (ip_network("127.0.0.0/8"),)
    assert settings.chains["ethereum"].quorum == 1
    assert len(settings.chains["ethereum"].nodes) == 2
    assert set(settings.chains) == {"ethereum", "anvil"}


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        (
            "CHAINBELL_API__LISTN",
            "x",
            "api.listn is not a setting; did you mean listen? (in the environment, CHAINBELL_API__",
        ),
        ("CHAINBELL_CHAINS__ETHEREUM__PROOF", "rots", "(in the environment, CHAINBELL_CHAINS__ETHEREUM__PROOF)"),
        ("CHAINBELL_NOTIFIER__ALLOW_PORTS", "[0]", "allow_ports[0] = 0"),
        ("CHAINBELL_API_LISTEN", "0.0.0.0:80", "did you mean CHAINBELL_API__LISTEN?"),
        ("CHAINBELL_DATABASE_URL", "postgresql://u:hunter2@db/x", "did you mean CHAINBELL_DATABASE__URL?"),
    ],
)
def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(SettingsError) as caught:
        load(ETHEREUM)
    assert said in str(caught.value)


def test_without_a_file_and_variables_the_remedy_is_named() -> None:
    with pytest.raises(SettingsError, match="chainbell init"):
        load_settings()


def test_files_are_looked_for_in_their_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("chainbell", "variable", "option"):
        Path(f"{name}.toml").write_text(f'[database]\ndata_dir = "{name}"')
    monkeypatch.setenv("CHAINBELL_CONFIG", str(tmp_path / "variable.toml"))
    assert load_settings(Path("option.toml")).database.data_dir == tmp_path / "option"
    assert load_settings().database.data_dir == tmp_path / "chainbell"
    Path("chainbell.toml").unlink()
    assert load_settings().database.data_dir == tmp_path / "variable"
    with pytest.raises(SettingsError, match=r"no settings file none\.toml"):
        load_settings(Path("none.toml"))


def test_the_data_directory_lies_beside_the_settings_file(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    file = tmp_path / "etc" / "chainbell.toml"
    file.write_text('[database]\ndata_dir = "./data"')
    assert load_settings(file).database.data_dir == tmp_path / "etc" / "data"


def test_settings_do_not_print_credentials() -> None:
    text = repr(load(ETHEREUM + '[database]\nurl = "postgresql://u:hunter2@h/d"\n[secrets]\nmaster_key = "KEYKEY"'))
    assert "hunter2" not in text
    assert "KEY" not in text


@given(user=st.from_regex(r"[a-z]{4,9}Z[a-z]{4,9}", fullmatch=True), port=st.integers(1, 65535))
def test_a_redacted_url_keeps_the_host_and_no_credentials(user: str, port: int) -> None:
    assert (
        redact_url(f"https://{user}:{user}@node.example:{port}/{user}?k={user}#{user}")
        == f"https://node.example:{port}"
    )


@given(st.text(max_size=30))
def test_an_address_to_listen_on_is_read_or_refused(text: str) -> None:
    try:
        host, port = split_listen(text)
    except ValueError:
        return
    assert host
    assert 0 <= port <= 65535
