"""A wrong setting, or something missing around it, is one sentence (what, where, remedy) and the exit status of its kind."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

from chainbell.demo.anvil import anvil
from tests.outside.installation import Ended, free_port, installed
from tests.outside.payments import new_address, send

NODE = 'nodes = [ { url = "http://127.0.0.1:1" } ]'
MISTYPED = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAeD"
"""An address of EIP-55 with its last digit in the wrong case."""

POL_LOGS = "0x0000000000000000000000000000000000001010"
"""Polygon's contract that emits a log for what transactions move in POL."""

WRONG_SETTINGS: dict[str, tuple[str, ...]] = {
    "[api\nlisten = 1": ("is not valid TOML", "line 1"),
    '[api]\nlisen = "127.0.0.1:1"': ("api.lisen is not a setting", "did you mean listen?"),
    '[api]\nlisten = "127.0.0.1"': ('api.listen = "127.0.0.1"', "must be an address and a port"),
    '[database]\nurl = "mysql://root:hunter2@db/x"': ("database.url", "must be", "postgresql://"),
    '[notifier]\nallow_http = "yes"': ("notifier.allow_http", "must be true or false"),
    '[notifier]\nallow_private = ["10.0.0.0/33"]': ("notifier.allow_private[0]", "10.0.0.0/33", "CIDR"),
    "[notifier]\nallow_ports = [70000]": ("notifier.allow_ports[0]", "70000", "65535"),
    f"[chains.unheard_of]\n{NODE}": ("chains.unheard_of", "'unheard_of'", "shipped profiles", "ethereum"),
    f'[chains.second]\nprofile = "anvil"\n{NODE}': ("chains.second.chain_id is missing", "eip155:31338"),
    "[chains.anvil]\nnodes = []": ("chains.anvil.nodes", "must not be empty"),
    '[chains.anvil]\nnodes = [ { url = "ftp://user:hunter2@a.example" } ]': ("chains.anvil.nodes[0].url", "http"),
    f'[chains.anvil]\n{NODE}\nproof = "root"': ("chains.anvil.proof", '"root"', "roots"),
    f"[chains.anvil]\n{NODE}\ncredit_at = 0": ("chains.anvil.credit_at", "= 0", "at least 1"),
    f"[chains.anvil]\n{NODE}\nquorum = 2": ("chains.anvil.quorum = 2", "1 distinct host", "lower it"),
    f'[chains.anvil]\n{NODE}\n[[chains.anvil.assets]]\ncontract = "{MISTYPED}"\nsymbol = "T"\ndecimals = 6': (
        "chains.anvil.assets[0].contract", MISTYPED, "checksum",
    ),
    f'[chains.polygon]\n{NODE}\n[[chains.polygon.assets]]\ncontract = "{POL_LOGS}"\nsymbol = "P"\ndecimals = 18': (
        "chains.polygon.assets", POL_LOGS, "another face of POL", "twice", "remove it",
    ),
    f'[chains.polygon]\n{NODE}\ncredit_at = "safe"': (
        'chains.polygon.credit_at = "safe"', '"finalized" or a count of confirmations',
    ),
    f'[chains.ethereum]\n{NODE}\n[[chains.ethereum.credit]]\nasset = "USDX"\ncredit_at = 3': (
        "chains.ethereum.credit[0].asset = 'USDX'", "known are ETH, USDC", "assets first",
    ),
    f'[chains.anvil]\n{NODE}\n[chains.copy]\nprofile = "anvil"\nchain_id = "eip155:31337"\n{NODE}': (
        "chains.copy", "eip155:31337", "chains.anvil too",
    ),
}  # fmt: skip
"""Settings, and what the one sentence about each has to name: the key, the value, the remedy."""


def require_sentence(ended: Ended, status: int, *words: str) -> None:
    """One line on stderr, nothing on stdout, no traceback, no credential, and every word that helps."""
    assert (ended.status, ended.output) == (status, ""), ended
    assert ended.complaint.count("\n") == 1, ended
    assert ended.complaint.startswith("chainbell: ")
    assert "hunter2" not in ended.complaint
    missing = [word for word in words if word not in ended.complaint]
    assert not missing, f"{missing} not in {ended.complaint!r}"


async def test_each_wrong_setting_is_told_in_one_sentence_before_anything_starts(
    database_url: str, tmp_path: Path
) -> None:
    two_at_a_time = asyncio.Semaphore(2)

    async def check(number: int, text: str, words: tuple[str, ...]) -> None:
        directory = tmp_path / str(number)
        directory.mkdir()
        async with two_at_a_time, installed(directory, database_url) as installation:
            installation.config.write_text(text)
            require_sentence(await installation.attempt("run"), 2, *words)

    async with asyncio.TaskGroup() as group:
        for number, (text, words) in enumerate(WRONG_SETTINGS.items()):
            group.create_task(check(number, text, words))


async def test_what_is_missing_around_the_settings_is_told(database_url: str, tmp_path: Path) -> None:
    async with installed(tmp_path, database_url, f"\n[chains.anvil]\n{NODE}\n") as installation:
        require_sentence(await installation.attempt("follow", "--chain", "nope"), 2, "--chain nope", "there are: anvil")
        installation.environment.pop("CHAINBELL_MASTER_KEY")
        for role in ("run", "notify"):
            require_sentence(await installation.attempt(role), 2, "CHAINBELL_MASTER_KEY is not set", "openssl rand")
        installation.environment["CHAINBELL_MASTER_KEY"] = "c2hvcnQ="
        require_sentence(await installation.attempt("run"), 2, "CHAINBELL_MASTER_KEY", "32")
        installation.config.unlink()
        require_sentence(await installation.attempt("status"), 2, "no settings file", "chainbell init")


async def test_a_run_that_is_refused_ends_with_the_reason_and_with_nothing_after_it(
    database_url: str, tmp_path: Path
) -> None:
    async with anvil() as node:
        settings = f"""
[chains.second]
profile = "anvil"
chain_id = "eip155:31338"
nodes = [ {{ url = "{node.url}" }} ]
"""
        async with installed(tmp_path, database_url, settings) as installation:
            ended = await installation.attempt("run")
    assert ended.status == 1
    reason, last = [line for line in ended.complaint.splitlines() if not line.startswith("{")]
    assert "it speaks of eip155:31337, not eip155:31338" in reason
    assert ended.complaint.splitlines()[-1] == last == "chainbell: the role follow cannot start; it has said why above"
    assert "Traceback" not in ended.complaint


async def test_a_database_that_does_not_answer_is_named_without_its_password(tmp_path: Path) -> None:
    url = f"postgresql://user:hunter2@127.0.0.1:{free_port()}/chainbell"
    async with installed(tmp_path, url) as installation:
        ended = await installation.attempt("status")
        require_sentence(
            ended,
            1,
            "database.url",
            "127.0.0.1",
            "does not answer: ",
            "Connection refused; is Postgres",
            "is Postgres running there?",
        )


async def test_a_database_without_our_tables_asks_for_migrate(empty_database_url: str, tmp_path: Path) -> None:
    async with installed(tmp_path, empty_database_url) as installation:
        require_sentence(await installation.attempt("serve"), 1, "chainbell migrate")


async def test_a_node_that_is_down_holds_the_chain_and_nothing_is_lost(database_url: str, tmp_path: Path) -> None:
    port, address = free_port(), new_address()
    settings = f"""
[chains.anvil]
nodes = [ {{ name = "home", url = "http://user:hunter2@127.0.0.1:{port}" }} ]
start = 0
poll_interval_s = 0.1
"""
    async with AsyncExitStack() as stack:
        installation = await stack.enter_async_context(installed(tmp_path, database_url, settings))
        await installation.start("serve")
        await installation.ready()
        shop = await installation.tenant("shop")
        await shop.watch("anvil", address)
        await installation.start("follow")
        row = await shop.until_chain("it holds", "anvil", lambda row: row["state"] == "holding")
        assert "no node answered: home: " in row["reason"]
        node = await stack.enter_async_context(anvil(port))
        await send(node, (await node.rpc("eth_accounts"))[0], to=address, value=3)
        await shop.until_chain("it follows", "anvil", lambda row: (row["tip"], row["state"]) == (1, "following"))
        assert [entry["amount_atomic"] for entry in await shop.rows("/v1/deposits")] == ["3"]
        await installation.stop("follow")
        assert "hunter2" not in installation.log_text()
